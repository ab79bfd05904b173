"""What an application writes: callbacks for the events of every connection. Declarations only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from uringws.handshake import Accept, Reject, Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.connection import Connection
    from uringws.message import Message

__all__ = ["Handler", "HandlerProtocol", "handler_fn"]


class HandlerProtocol(Protocol):
    """What a reactor takes for a handler. Derive from `Handler` to write only the callbacks that matter."""

    def on_upgrade(self, request: Request) -> Accept | Reject | None:
        """Decide on an opening request."""

    def on_request(self, request: Request) -> Response | None:
        """Answer a plain HTTP request."""

    def on_open(self, conn: Connection) -> None:
        """Greet a new connection."""

    def on_message(self, conn: Connection, message: Message) -> None:
        """Take a message."""

    def on_drain(self, conn: Connection) -> None:
        """Go on sending."""

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        """Say farewell."""


class Handler:
    """The callbacks of a reactor, all on its thread, each doing nothing unless overridden.

    For one connection the order is
    `on_upgrade`, `on_open` once, messages, `on_close` once, and nothing after it. A callback that raises closes its
    connection with 1011 and is logged with its traceback; the reactor goes on. A callback that blocks stops all
    connections.

    A handler that defines `on_frame(conn, frame)` is given the fragments of messages as they come, each a `Message` of
    one frame whose `opcode` is CONTINUATION after the first and whose `fin` is True for the last; whole messages too
    (`fin` is True). `on_message` is not called then.
    """

    def on_upgrade(self, request: Request) -> Accept | Reject | None:
        """Decide on an opening request that is valid by RFC 6455.

        None accepts it, with the first of `Options.subprotocols` that the client offers.
        """
        return None

    def on_request(self, request: Request) -> Response | None:
        """Answer a plain GET or HEAD on the same port. None answers 426 Upgrade Required."""
        return None

    def on_open(self, conn: Connection) -> None:
        """The connection is open: what is sent from now on follows the 101 answer."""

    def on_message(self, conn: Connection, message: Message) -> None:
        """A whole message came. `message.data` is valid until the return."""

    def on_drain(self, conn: Connection) -> None:
        """Go on sending: `conn.buffered_amount`, once at the high water mark, has fallen to the low one.

        Once for each such rise and fall. Whoever sends while `buffered_amount` is below
        `Options.backlog_high_bytes`, and again from here, sends as fast as the peer reads and no faster.
        """

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        """The connection has ended; nothing can be sent any more.

        `code` is the peer's close code (1005: its close frame had none), the one it was failed with (RFC 6455 7.4.1),
        or 1006: it was lost without a close frame.
        """


class _FunctionHandler(Handler):
    def __init__(self, on_message: Callable[[Connection, Message], object]) -> None:
        # An attribute of the instance: the reactor calls the function itself, with nothing between.
        self.on_message = on_message  # type: ignore[method-assign, assignment]


def handler_fn(on_message: Callable[[Connection, Message], object]) -> Handler:
    """Return a handler that calls `on_message(conn, message)` and does nothing else."""
    if not callable(on_message):
        raise TypeError(f"handler_fn takes a function of (conn, message), not {type(on_message).__name__}")
    return _FunctionHandler(on_message)
