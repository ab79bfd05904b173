"""`Stats` in Prometheus' text exposition format 0.0.4. Pure text: upgrade.py serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from uringws.errors import RejectReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uringws.stats import Stats

__all__ = ["CONTENT_TYPE", "prometheus_text"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Metric(NamedTuple):
    """How one field of Stats is exposed. A mapping has one sample per key, under `label`, those of `keys` always."""

    field: str
    kind: Literal["counter", "gauge"]
    name: str
    help: str
    label: str | None = None
    keys: tuple[str, ...] = ()


def _gauge(field: str, help_text: str, name: str | None = None) -> _Metric:
    return _Metric(field, "gauge", f"uringws_{name or field}", help_text)


def _counter(
    field: str, help_text: str, name: str | None = None, *, label: str | None = None, keys: tuple[str, ...] = ()
) -> _Metric:
    return _Metric(field, "counter", f"uringws_{name or field}_total", help_text, label, keys)


# Names after Prometheus' rules: the base unit in the name, _total on what only grows.
_METRICS: Final = (
    _gauge("sessions", "Sessions open now."),
    _gauge("sessions_peak", "The most sessions that there were at a time, upgrades in progress included."),
    _gauge("handshakes", "Upgrades in progress now."),
    _counter("accepted", "Connections that became sessions.", "sessions_accepted"),
    _counter(
        "rejected",
        "Connections that became no session, by reason.",
        "connections_rejected",
        label="reason",
        keys=get_args(RejectReason),
    ),
    _counter("accept_pauses", "Times that accepting stopped because descriptors or memory ran out."),
    _counter("close_codes", "Sessions that ended, by close code.", "sessions_closed", label="code"),
    _counter("timeouts", "Deadlines of sessions that passed."),
    _counter("messages_in", "Messages received.", "messages_received"),
    _counter("messages_inflated", "Messages that came compressed.", "messages_inflated"),
    _counter("messages_deflated", "Messages that were compressed.", "messages_deflated"),
    _counter("messages_out", "Messages sent.", "messages_sent"),
    _counter("bytes_in", "Bytes received, HTTP heads and frame headers included.", "received_bytes"),
    _counter("bytes_out", "Bytes sent, HTTP heads and frame headers included.", "sent_bytes"),
    _counter("pings_sent", "Pings sent."),
    _counter("pongs_received", "Pongs received."),
    _gauge("queued_bytes", "Bytes waiting in all backlogs now."),
    _counter("drops", "Messages dropped because a backlog was full.", "messages_dropped"),
    _counter("sends_short", "Sends of which the socket took only a part."),
    _counter("sends_direct", "Large messages offered to the socket without a copy before it."),
    _counter("zero_copy_sends", "Sends without a copy into the kernel."),
    _counter("zero_copy_copied", "Zero-copy sends that the kernel copied after all."),
    _gauge("memory_bytes", "Bytes held now by partial messages and backlogs."),
    _counter("evictions", "Sessions closed to keep within the memory budget.", "sessions_evicted"),
    _gauge("pool_buffers", "Buffers of the receive pool."),
    _gauge("pool_in_use", "Buffers of the receive pool lent now.", "pool_buffers_in_use"),
    _gauge("pool_in_use_peak", "The most buffers of the receive pool lent at a time.", "pool_buffers_in_use_peak"),
    _counter("enobufs_parks", "Receives that found the pool empty and waited."),
    _counter("cq_overflows", "Times the kernel had more completions than the ring holds."),
    _counter("turns", "Turns of the loop."),
    _counter("enters", "System calls that waited or submitted."),
    _counter("events", "Events that the turns brought to Python."),
)


def prometheus_text(stats: Stats) -> bytes:
    """Return `stats` as Prometheus scrapes it, to be sent with CONTENT_TYPE.

    Each metric has its HELP and TYPE line. Every reason of a rejection has a sample from the start, so that the first
    rejection shows in a rate; a close code has one after its first use. `events_per_turn` is left to a query:
    rate(uringws_events_total) / rate(uringws_turns_total).
    """
    lines = [
        "# HELP uringws_info The server and its backend.",
        "# TYPE uringws_info gauge",
        f'uringws_info{{backend="{_escape(stats.backend)}"}} 1',
    ]
    for metric in _METRICS:
        lines.append(f"# HELP {metric.name} {metric.help}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        lines.extend(_samples(metric, getattr(stats, metric.field)))
    return ("\n".join(lines) + "\n").encode()


def _samples(metric: _Metric, value: int | Mapping[object, int]) -> list[str]:
    if isinstance(value, int):
        return [f"{metric.name} {value}"]
    counts: dict[object, int] = {**dict.fromkeys(metric.keys, 0), **value}
    return [f'{metric.name}{{{metric.label}="{_escape(str(key))}"}} {count}' for key, count in counts.items()]


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
