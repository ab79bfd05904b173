"""The end of a connection: both sides' close frames, and which side began. Declarations and pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["NOT_BEGUN", "Close", "Closing", "begin", "lost", "peer_closed", "peer_violated"]


@dataclass(frozen=True, slots=True)
class Close:
    """The content of a close frame, RFC 6455 5.5.1."""

    code: int
    """1005 if the frame has no code."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a connection, as far as it has come. Complete when `on_close` runs."""

    sent: Close | None = None
    """Our close frame; None if none was sent."""
    received: Close | None = None
    """The peer's close frame; None if none came."""
    received_first: bool | None = None
    """Whether the peer's close frame came before ours was sent; None if neither side sent one."""
    error: Exception | None = None
    """The OSError (or TimeoutError, or LimitReached of the memory) that lost the connection; None if none did. The
    end of the peer's stream without a close frame is no error."""


NOT_BEGUN: Final = Closing()
"""The ending of a connection that is open."""


def begin(sent: Close | None) -> Closing:
    """Return how far an ending has come after our close frame was sent."""
    return Closing(sent=sent, received_first=None if sent is None else False)


def peer_closed(so_far: Closing, received: Close) -> Closing:
    """Return the end of a connection whose peer has sent a close frame, which the shim answers with the same code."""
    if so_far.sent is not None:
        return Closing(so_far.sent, received, so_far.received_first, so_far.error)
    sent = Close(received.code) if received.reason else received  # the same, made once
    return Closing(sent, received, received_first=True, error=so_far.error)


def peer_violated(so_far: Closing, violation: Close) -> Closing:
    """Return the end of a connection whose peer broke the protocol or a limit, which the shim tells it."""
    return begin(violation) if so_far.sent is None else so_far


def lost(so_far: Closing, error: Exception | None) -> Closing:
    """Return the end of a connection that was lost for an error, or (None) because the peer's stream ended."""
    if error is None or so_far.error is not None:
        return so_far
    return Closing(so_far.sent, so_far.received, so_far.received_first, error)
