"""The table of cases, the two modes, and which number of a measurement counts in which case."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["echo", "round trip", "fixed rate", "upgrades", "memory"]
Mode = Literal["throughput", "capacity"]

MODES: tuple[Mode, ...] = ("throughput", "capacity")
"""Throughput: server and client have one CPU each. Capacity: a busy loop takes half of the server's CPU, so that it is
always the server that saturates, and what counts is the CPU time it needs per message."""


@dataclass(frozen=True)
class Metric:
    """A number of a measurement."""

    key: str
    unit: str
    more_is_better: bool


MESSAGES_PER_SECOND = Metric("messages_per_second", "/s", more_is_better=True)
CPU_PER_MESSAGE = Metric("server_cpu_microseconds_per_message", "us CPU", more_is_better=False)
P50 = Metric("latency_p50_microseconds", "us", more_is_better=False)
P99 = Metric("latency_p99_microseconds", "us", more_is_better=False)
BYTES_PER_SESSION = Metric("resident_bytes_per_session", "bytes", more_is_better=False)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table below."""

    name: str
    group: str
    kind: Kind = "echo"
    connections: int
    payload_bytes: int = 20
    in_flight: int = 1
    modes: tuple[Mode, ...] = MODES
    half_of: str | None = None
    """Fixed rate: half of what the baseline answers per second in this case."""

    def metric(self, mode: Mode) -> Metric:
        """The number that decides."""
        if self.kind == "round trip":
            return P50
        if self.kind == "fixed rate":
            return P99
        if self.kind == "memory":
            return BYTES_PER_SESSION
        return MESSAGES_PER_SECOND if mode == "throughput" else CPU_PER_MESSAGE


CASES = {
    case.name: case
    for case in (
        # connections/payload bytes
        Case(name="100/20", group="shapes", connections=100, payload_bytes=20),
        Case(name="10/1024", group="shapes", connections=10, payload_bytes=1024),
        Case(name="10/16384", group="shapes", connections=10, payload_bytes=16384),
        Case(name="200/16384", group="shapes", connections=200, payload_bytes=16384),
        Case(name="500/16384", group="shapes", connections=500, payload_bytes=16384),
        Case(name="pipelined-16", group="pipelined", connections=100, payload_bytes=20, in_flight=16),
        Case(name="pipelined-64", group="pipelined", connections=100, payload_bytes=20, in_flight=64),
        Case(name="64KiB", group="large", connections=20, payload_bytes=64 << 10),
        Case(name="1MiB", group="large", connections=5, payload_bytes=1 << 20),
        Case(name="round-trip", group="latency", kind="round trip", connections=1, modes=("throughput",)),
        Case(
            name="rate-100/20",
            group="latency",
            kind="fixed rate",
            connections=100,
            payload_bytes=20,
            modes=("throughput",),
            half_of="100/20",
        ),
        Case(
            name="rate-200/16384",
            group="latency",
            kind="fixed rate",
            connections=200,
            payload_bytes=16384,
            modes=("throughput",),
            half_of="200/16384",
        ),
        Case(name="upgrades", group="sessions", kind="upgrades", connections=64),
        Case(name="idle-memory", group="sessions", kind="memory", connections=4000, modes=("throughput",)),
    )
}

GROUPS = tuple(dict.fromkeys(case.group for case in CASES.values()))
SHAPES = tuple(case.name for case in CASES.values() if case.group == "shapes")
