"""How a connection ends: both sides' close frames, the error that caused it, and the exception that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uringws.asyncio.classes import ConnectionClosedError, ConnectionClosedOK

if TYPE_CHECKING:
    from uringws.asyncio.classes import Close, ConnectionClosed

__all__ = ["Ending"]

_OK_CODES: Final = frozenset({1000, 1001, 1005})


class Ending:
    """The facts about the end of a connection. Created when the end begins, so that an open connection takes little
    memory.
    """

    __slots__ = ("cause", "has_failed", "received", "received_first", "sent")

    def __init__(self) -> None:
        self.sent: Close | None = None
        self.received: Close | None = None
        self.received_first: bool | None = None
        self.cause: BaseException | None = None
        self.has_failed = False
        """This side failed the connection: later frames of the peer do not count (RFC 6455 7.1.7)."""

    def error(self) -> ConnectionClosed:
        """Return the exception that says so."""
        sent, received = self.sent, self.received
        is_ok = sent is not None and received is not None and {sent.code, received.code} <= _OK_CODES
        kind = ConnectionClosedOK if is_ok else ConnectionClosedError
        order = self.received_first if sent is not None and received is not None else None
        error: ConnectionClosed = kind(received, sent, order)
        error.__cause__ = self.cause
        return error
