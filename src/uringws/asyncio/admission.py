"""Which connections a server takes: its limits on their number, per address, and in the opening handshake."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from uringws.handshake import refusal

if TYPE_CHECKING:
    import asyncio

    from uringws.asyncio.connection import ServerConnection
    from uringws.asyncio.ring import Ring
    from uringws.asyncio.transport import TransportLink
    from uringws.errors import HandshakeError
    from uringws.options import Options

__all__ = ["LIMITS", "Admission"]

LIMITS: Final = ("sessions_max", "sessions_per_ip_max", "handshakes_max", "silent_seconds_max")
"""The fields of `Options` that apply here. Each server has its own values, independent of other servers on the same
loop."""
_MAPPED: Final = "::ffff:"  # of an IPv4 peer on a socket for both families, RFC 4291 2.5.5.2


class Admission:
    """The counts of one server's connections, from `accept` to their end.

    It holds those whose opening handshake is in progress, and numbers of the others.
    """

    __slots__ = ("_by_ip", "_ips", "_limits", "_loop", "_openings", "_ring", "_sessions", "_silent")

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop, ring: Ring | None) -> None:
        self._limits = options
        self._loop = loop
        self._ring = ring
        self._sessions = 0
        self._openings: set[TransportLink] = set()
        self._silent: dict[TransportLink, float] = {}
        """Connections that have sent nothing, oldest first, each with the loop time at which it began."""
        self._ips: dict[ServerConnection, str] = {}
        """Empty without `sessions_per_ip_max`, and so is `_by_ip`."""
        self._by_ip: Counter[str] = Counter()

    def enter(self, link: TransportLink, connection: ServerConnection, peername: Any) -> HandshakeError | None:
        """Count a new connection whose opening handshake begins; return the reason if it is refused: a refused
        connection is not counted.
        """
        limits = self._limits
        if self._sessions >= (limits.sessions_max or math.inf):
            return refusal("sessions_max")
        if self._ring is not None and self._ring.is_full(len(self._openings)):
            return refusal("sessions_max")
        if limits.sessions_per_ip_max is not None and self._by_ip[_ip(peername)] >= limits.sessions_per_ip_max:
            return refusal("sessions_per_ip_max")
        if len(self._openings) >= (limits.handshakes_max or math.inf) and not self._end_a_silent_one():
            return refusal("handshakes_max")
        self.enter_open(connection, peername)
        self._openings.add(link)
        self._silent[link] = self._loop.time()
        return None

    def enter_open(self, connection: ServerConnection, peername: Any) -> None:
        """Count a new connection whose opening handshake was done elsewhere."""
        self._sessions += 1
        if self._limits.sessions_per_ip_max is not None and (ip := _ip(peername)):
            self._ips[connection] = ip
            self._by_ip[ip] += 1

    def _end_a_silent_one(self) -> bool:
        """End the oldest connection that has sent nothing for long enough, to make room for another."""
        seconds = self._limits.silent_seconds_max
        for link, since in self._silent.items():
            if seconds is None or self._loop.time() - since < seconds:
                return False
            self.end_opening(link)
            link.abort()
            return True
        return False

    def note_heard(self, link: TransportLink) -> None:
        """A connection in its opening handshake has sent something."""
        self._silent.pop(link, None)

    def end_opening(self, link: TransportLink) -> None:
        """The opening handshake is over: it was accepted, or the connection has ended. It may have been before."""
        self._openings.discard(link)
        self._silent.pop(link, None)

    def leave(self, connection: ServerConnection) -> None:
        """A connection that was counted has ended."""
        self._sessions -= 1
        ip = self._ips.pop(connection, None)
        if ip is not None:
            self._by_ip[ip] -= 1
            if not self._by_ip[ip]:
                del self._by_ip[ip]


def _ip(peername: Any) -> str:
    """Return the address of a peer; none for that of a Unix socket."""
    return str(peername[0]).removeprefix(_MAPPED) if isinstance(peername, tuple) else ""
