"""How a connection ended: what each side's close frame said, and who began. Declarations only."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Close", "Closing"]


@dataclass(frozen=True, slots=True)
class Close:
    """What a close frame says, RFC 6455 5.5.1."""

    code: int
    """1005 where the frame has no code."""
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
    """The OSError or TimeoutError that lost the connection; None if none did."""
