"""The callbacks that an application writes for the events of its connections. Declarations only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from uringws.handshake import Accept, Later, Reject, RequestHead
from uringws.http import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.batch import Batch
    from uringws.connection import Connection
    from uringws.message import Message
    from uringws.topics import Topic

__all__ = ["BatchHandler", "Handler", "HandlerProtocol", "handler_fn"]


class HandlerProtocol(Protocol):
    """The shape of a handler, for type checkers. `Handler` says when each is called and what it may return.

    Derive from `Handler` to write only the callbacks that matter. At run time any object does: a callback that it lacks
    does nothing. Arguments are passed by position: name the parameters as you like.
    """

    def on_upgrade(self, request: Request, /) -> Accept | Reject | Later | None:
        """Decide on an opening request."""

    def on_request(self, request: Request, /) -> Response | Later | None:
        """Answer a plain HTTP request."""

    def on_open(self, conn: Connection, /) -> None:
        """Greet a new connection."""

    def on_message(self, conn: Connection, message: Message, /) -> None:
        """Take a message."""

    def on_drain(self, conn: Connection, /) -> None:
        """Send more."""

    def on_close(self, conn: Connection, code: int, reason: str, /) -> None:
        """Learn that a connection has ended."""


class Handler:
    """The callbacks of a reactor, all on its thread, each doing nothing unless overridden.

    For one connection the order is `on_upgrade` (not for an adopted one), `on_open` once, messages, `on_close` once,
    and nothing after it. A callback that raises closes its connection with 1011 (an opening request is answered 500)
    and is logged with its traceback; the reactor goes on. A callback that blocks stops all connections.

    KeyboardInterrupt, SystemExit and other exceptions that are not an Exception propagate out of the reactor's `run`.
    The callback that raised is not called again for the same event; an opening request is answered 500.

    The reactor looks the callbacks up once, when it is made or the handler is given to `bind` or `add_session`: one
    assigned to the handler later is not called. They are plain functions: a coroutine function or a generator function
    raises TypeError there.

    A handler that defines `on_frame(conn, frame)` is given the fragments of messages as they come, each a `Message` of
    one frame whose `opcode` is CONTINUATION after the first and whose `fin` is True for the last; whole messages too
    (`fin` is True). `on_message` is not called then.

    A handler that defines `on_head(head)` is given the head of every request, a `RequestHead`, before it is parsed or
    checked: whatever its method and its version of HTTP. It returns a RawAnswer, whose bytes are the whole answer, None
    to go on as without it, or LATER. It is for programs that bring a handshake of their own.

    A handler that defines `on_pong(conn, payload)` is given the payload, bytes, of every pong: of those that answer
    `conn.ping(payload)`, of unsolicited ones (RFC 6455 5.5.3), and of those that answer the pings of
    `Options.ping_interval_seconds`, whose payload is the library's own. A peer may answer only the latest of several
    pings.
    """

    def on_upgrade(self, request: Request, /) -> Accept | Reject | Later | None:
        """Decide on an opening request that is valid by RFC 6455 4.2.1 and let in by `Options`.

        Return an Accept, a Reject, or None to accept it with the first of `Options.subprotocols` that the client
        offers. Or return `uringws.LATER` and call `Reactor.answer` (`Sender.answer` in another thread) once you can
        decide: after a look into a database, for example. The request may be kept for that. Meanwhile it counts as a
        handshake (`Options.handshakes_max`), the handshake's deadline goes on, and up to 64 KiB of what the client
        sends already are kept for the open connection.
        """
        return None

    def on_upgrade_abandoned(self, request: Request | RequestHead, /) -> None:
        """Stop deciding on a request for which a callback returned LATER: it cannot be answered any more.

        The client has left, or `Options.handshake_seconds_max` is over (it is answered 408 and counted), or the reactor
        drains (503) or is closed. It is called once, unless `answer` was called before.
        """

    def on_request(self, request: Request, /) -> Response | Later | None:
        """Answer a plain GET, HEAD or OPTIONS on the same port.

        Return a Response, or None for the default: 426 Upgrade Required to GET and HEAD, 204 No Content to OPTIONS,
        which load balancers such as HAProxy treat as a sign of a healthy server. `request.method` tells them apart. The
        connection is closed after any answer. The body is not sent to HEAD. LATER as in `on_upgrade`.
        """
        return None

    def on_open(self, conn: Connection, /) -> None:
        """Greet a connection that has just opened: bytes sent from here on follow the 101 answer."""

    def on_message(self, conn: Connection, message: Message, /) -> None:
        """Take a whole message, its fragments put together (RFC 6455 5.4).

        `message` and `message.data` are valid until the return. Pings are answered without you.
        """

    def on_drain(self, conn: Connection, /) -> None:
        """Send more: `conn.buffered_amount`, after it reached the high water mark, has fallen to the low one.

        Called once for each such rise and fall. To send as fast as the peer reads, send while `buffered_amount` is
        below `Options.backlog_high_bytes`, then stop, and continue in this callback.
        """

    def on_drop(self, conn: Connection, topic: Topic, count: int, /) -> None:
        """Learn that `count` messages of a topic were left out for a slow reader (`on_full` of `Reactor.topic`).

        Called in the turn after, once per connection and topic for all of them. Messages that a newer one replaced
        ("conflate") do not count.
        """

    def on_close(self, conn: Connection, code: int, reason: str, /) -> None:
        """Learn that a connection has ended; nothing can be sent on it any more.

        `code` and `reason` are those of the peer's close frame (RFC 6455 7.1.5, 7.1.6; 1005: it had no code), or ours
        if we failed the connection (7.1.7). 1006 is a connection lost without a close frame, with the cause in
        `reason`.
        """


class BatchHandler(Handler):
    """A handler whose messages come in batches: `on_batch` is called in place of `on_message`. It needs numpy.

    A batch is a run: all messages of a turn, of all connections of this handler, that come between two other callbacks
    of the reactor. So for one connection the order is that of `Handler`, and all in it holds, except for this:

    If `on_batch` raises an Exception, every connection that has a message in the batch is closed with 1011, because it
    is unknown which messages were handled; that is logged once. If a KeyboardInterrupt or another exception that is not
    an Exception leaves it, `run`, called again, gives it the same batch again: no message is lost, echoes that it had
    marked are not sent, and what it had sent is sent a second time if it sends it again.
    """

    def on_batch(self, batch: Batch, /) -> None:
        """Take a batch: `Options.batch_messages_max` whole messages at most, and never none.

        `batch` is valid until the return. The default calls `on_message` for each message: a handler that treats some
        of its messages in bulk calls `batch.each(where)` for the others.
        """
        for conn, message in batch.each():
            self.on_message(conn, cast("Message", message))


class _FunctionHandler(Handler):
    def __init__(self, on_message: Callable[[Connection, Message], object]) -> None:
        # An attribute of the instance: the reactor calls the function itself, with nothing between.
        self.on_message = on_message  # type: ignore[method-assign, assignment]


def handler_fn(on_message: Callable[[Connection, Message], object]) -> Handler:
    """Return a handler that calls `on_message(conn, message)` and does nothing else."""
    if not callable(on_message):
        raise TypeError(f"handler_fn takes a function of (conn, message), not {type(on_message).__name__}")
    return _FunctionHandler(on_message)
