"""What a reactor counts, as one frozen picture of a moment. Only data: who counts is the C shim and the reactor."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from uringws.field_docs import document_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uringws.errors import RejectReason

__all__ = ["Stats", "stats_of"]


@document_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The figures of `Reactor.stats()`.

    Each is a count since the reactor was made, except those whose text says "now". Bytes are those of the TCP streams,
    HTTP heads and frame headers included.
    """

    backend: str = ""
    """The one that runs, "io_uring" or "epoll"."""

    sessions: int = 0
    """Sessions now: open, closing, and refused but not gone yet. Upgrades in progress do not count."""
    sessions_peak: int = 0
    """The most sessions at a time, upgrades in progress included."""
    handshakes: int = 0
    """Upgrades in progress now."""
    accepted: int = 0
    """Connections that became sessions, adopted ones included."""
    rejected: Mapping[RejectReason, int] = field(default_factory=dict)
    """Connections that did not, by reason."""
    accept_pauses: int = 0
    """Times accepting stopped for a while, for want of descriptors or memory."""
    close_codes: Mapping[int, int] = field(default_factory=dict)
    """Sessions that ended, by the code given to `on_close` (1006: without a close frame)."""
    timeouts: int = 0
    """Deadlines of sessions that passed: idle, no pong, too old, and closes that were not answered in time (one session
    may have two of them). An opening request that took too long is counted in `rejected`."""

    messages_in: int = 0
    """Messages (under `on_frame` frames) of text and binary that came whole."""
    messages_out: int = 0
    """Those sent or queued, echoes included."""
    bytes_in: int = 0
    """Taken from sockets."""
    bytes_out: int = 0
    """Taken by sockets."""
    pings_sent: int = 0
    """By the server's own interval or by `Connection.ping`."""
    pongs_received: int = 0
    """Asked for or not."""

    queued_bytes: int = 0
    """Waiting now in all backlogs, frame headers included."""
    drops: int = 0
    """Messages that a full backlog turned away."""
    sends_short: int = 0
    """Sends of which the socket took only a part."""
    sends_direct: int = 0
    """Large messages offered to the socket within `send`, without a copy before it. What the socket did not take is
    queued."""
    zero_copy_sends: int = 0
    """Sends that asked the kernel not to copy."""
    zero_copy_copied: int = 0
    """Zero-copy sends that the kernel copied after all."""

    memory_bytes: int = 0
    """Held now by partial messages and backlogs: what `Options.memory_bytes_max` bounds, without the receive pool."""
    evictions: int = 0
    """Sessions closed to keep within `Options.memory_bytes_max`."""
    pool_buffers: int = 0
    """Buffers of the receive pool."""
    pool_in_use: int = 0
    """Of those, lent now to receives and sends."""
    pool_in_use_peak: int = 0
    """The most that were lent at a time."""
    enobufs_parks: int = 0
    """Receives that found the pool empty and waited."""
    cq_overflows: int = 0
    """Times the kernel had more completions than the ring holds. None is lost by it."""

    turns: int = 0
    """Turns of the loop."""
    enters: int = 0
    """System calls that waited or submitted: io_uring_enter(2), or epoll_wait(2) on epoll."""
    events: int = 0
    """Events that the turns brought to Python."""

    def __repr__(self) -> str:
        """Show what is not 0, as Python writes it."""
        shown = ((name, getattr(self, name)) for name in (field.name for field in fields(self)))
        return f"Stats({', '.join(f'{name}={value!r}' for name, value in shown if value)})"

    @property
    def events_per_turn(self) -> float:
        """How well work is batched: events per turn, 0.0 before the first."""
        return self.events / self.turns if self.turns else 0.0


def stats_of(
    shim: Any,
    *,
    backend: str,
    accepted: int,
    rejected: Mapping[RejectReason, int],
    close_codes: Mapping[int, int],
) -> Stats:
    """Return the figures of a `struct urs_reactor_stats`, and beside them those that the reactor counts itself."""
    return Stats(
        backend=backend,
        accepted=accepted,
        rejected=rejected,
        close_codes=close_codes,
        sessions=int(shim.sessions - shim.handshakes),
        sessions_peak=int(shim.sessions_most),
        handshakes=int(shim.handshakes),
        accept_pauses=int(shim.accept_pauses),
        timeouts=int(shim.timeouts),
        messages_in=int(shim.messages_in),
        messages_out=int(shim.messages_out),
        bytes_in=int(shim.bytes_in),
        bytes_out=int(shim.bytes_out),
        pings_sent=int(shim.pings_sent),
        pongs_received=int(shim.pongs_received),
        queued_bytes=int(shim.queued_bytes),
        drops=int(shim.drops),
        sends_short=int(shim.sends_short),
        sends_direct=int(shim.sends_direct),
        zero_copy_sends=int(shim.zero_copy_sends),
        zero_copy_copied=int(shim.zero_copy_copied),
        memory_bytes=int(shim.memory_bytes),
        evictions=int(shim.evictions),
        pool_buffers=int(shim.pool_buffers),
        pool_in_use=int(shim.pool_in_use),
        pool_in_use_peak=int(shim.pool_in_use_most),
        enobufs_parks=int(shim.enobufs_parks),
        cq_overflows=int(shim.cq_overflows),
        turns=int(shim.turns),
        enters=int(shim.enters),
        events=int(shim.events),
    )
