"""A reactor's figures at one moment, frozen. Only data: the C shim and the reactor count."""

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
    """Connections that became no session, by reason."""
    accept_pauses: int = 0
    """Times that accepting stopped for a while, because descriptors or memory ran out."""
    close_codes: Mapping[int, int] = field(default_factory=dict)
    """Sessions that ended, by the code given to `on_close` (1006: without a close frame)."""
    timeouts: int = 0
    """Deadlines of sessions that passed: idle, no pong, too old, and closes that were not answered in time (one session
    may have two of them). An opening request that took too long is counted in `rejected`."""

    messages_in: int = 0
    """Complete text and binary messages received; frames for a handler with `on_frame`."""
    messages_out: int = 0
    """Messages sent or queued, echoes included."""
    messages_inflated: int = 0
    """Those of `messages_in` that came compressed."""
    messages_deflated: int = 0
    """Those of `messages_out` that were compressed."""
    bytes_in: int = 0
    """Read from sockets."""
    bytes_out: int = 0
    """Accepted by sockets for sending."""
    pings_sent: int = 0
    """Those of `Options.ping_interval_seconds` and of `Connection.ping`."""
    pongs_received: int = 0
    """Answers to pings, and unsolicited ones (RFC 6455 5.5.3)."""

    queued_bytes: int = 0
    """Bytes that wait now in all backlogs, frame headers included."""
    drops: int = 0
    """Messages that were dropped because a backlog was full."""
    sends_short: int = 0
    """Sends of which the socket took only a part."""
    sends_direct: int = 0
    """Large messages given to the socket within `send`, without a copy. Bytes that the socket did not take are
    queued."""
    zero_copy_sends: int = 0
    """Sends that asked the kernel not to copy."""
    zero_copy_copied: int = 0
    """Zero-copy sends that the kernel copied after all."""

    memory_bytes: int = 0
    """Bytes held now by partial messages, backlogs and the windows of compression; with the receive pool,
    `Options.memory_bytes_max` bounds them."""
    evictions: int = 0
    """Sessions closed to keep within `Options.memory_bytes_max`."""
    pool_buffers: int = 0
    """Buffers of the receive pool."""
    pool_in_use: int = 0
    """Buffers of the pool that hold received bytes now."""
    pool_in_use_peak: int = 0
    """The most of them at a time."""
    enobufs_parks: int = 0
    """Receives that found the pool empty and waited."""
    cq_overflows: int = 0
    """Times that the kernel had more completions than the ring holds. No completion is lost."""

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
        """Events per turn, which shows how well work is batched; 0.0 before the first turn."""
        return self.events / self.turns if self.turns else 0.0


def stats_of(
    shim: Any,
    *,
    backend: str,
    accepted: int,
    rejected: Mapping[RejectReason, int],
    close_codes: Mapping[int, int],
) -> Stats:
    """Return the figures of a `struct urs_reactor_stats`, together with those that Python counts."""
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
        messages_inflated=int(shim.messages_inflated),
        messages_deflated=int(shim.messages_deflated),
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
