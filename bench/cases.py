"""The table of cases, the two modes, and which number of a measurement counts in which case."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "echo", "round trip", "fixed rate", "upgrades", "memory", "fan-out", "chat", "echo beside fan-out", "backlog memory"
]
Service = Literal["echo", "fan-out"]
"""Each message back to the connection that sent it, or to all members of a room."""
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
BACKLOG_BYTES = Metric("resident_bytes_of_backlogs", "bytes", more_is_better=False)


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
    rate: float = 0
    """Messages per second of all echo connections together; 0: as fast as possible, or by `half_of`."""
    members: int = 0
    """Connections to which messages are published; `in_flight` is then how many messages a publish round has. In a case
    of fan-out or chat, a message counts once for each member that receives it."""
    stalled: int = 0
    """Members that do not read."""
    publishes: int = 0
    """Backlog memory: how many messages the stalled members are sent."""
    publish_rate: float = 0
    """Echo beside fan-out: messages published per second."""

    @property
    def service(self) -> Service:
        """The service of the servers that take part."""
        return "fan-out" if self.members else "echo"

    @property
    def takes_fresh_servers(self) -> bool:
        """Whether each measurement starts its server: memory that was freed may still be resident."""
        return self.kind in {"memory", "backlog memory"}

    def metric(self, mode: Mode) -> Metric:
        """The number that decides."""
        if self.kind == "round trip":
            return P50
        if self.kind in {"fixed rate", "echo beside fan-out"}:
            return P99
        if self.kind == "memory":
            return BYTES_PER_SESSION
        if self.kind == "backlog memory":
            return BACKLOG_BYTES
        return MESSAGES_PER_SECOND if mode == "throughput" else CPU_PER_MESSAGE


def fan_out(
    name: str, members: int, messages: int, *, payload_bytes: int = 64, stalled: int = 0, kind: Kind = "fan-out"
) -> Case:
    """A case whose next messages are sent when all members that read have received the last ones."""
    return Case(
        name=name,
        group="fan-out",
        kind=kind,
        connections=0,
        payload_bytes=payload_bytes,
        in_flight=messages,
        members=members,
        stalled=stalled,
    )


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
        Case(name="records-64", group="batches", connections=100, payload_bytes=32, in_flight=64),
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
        # members, and messages per round
        fan_out("fanout-1000x1", 1000, 1),
        fan_out("fanout-1000x16", 1000, 16),
        fan_out("fanout-1000x64", 1000, 64),
        fan_out("fanout-200x16KiB", 200, 1, payload_bytes=16 << 10),
        fan_out("fanout-stalled", 1000, 16, payload_bytes=1 << 10, stalled=100),
        fan_out("chat-320", 320, 1, kind="chat"),
        Case(
            name="echo-beside",
            group="fan-out-latency",
            kind="echo beside fan-out",
            connections=100,
            rate=2000,
            members=10_000,
            publish_rate=10,
            modes=("throughput",),
        ),
        Case(
            name="backlog-memory",
            group="fan-out-memory",
            kind="backlog memory",
            connections=0,
            payload_bytes=1 << 10,
            members=101,
            stalled=100,
            publishes=10_000,
            modes=("throughput",),
        ),
    )
}

GROUPS = tuple(dict.fromkeys(case.group for case in CASES.values()))
SHAPES = tuple(case.name for case in CASES.values() if case.group == "shapes")
