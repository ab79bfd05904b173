"""Visits the servers in turn: case by case, mode by mode, round by round, one short load on each."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import load
import processes
from cases import MESSAGES_PER_SECOND, Case, Kind, Mode
from contenders import Contender
from load import Load, LoadError, Outcome
from processes import Server, ServerError
from summary import Measurement, Measurements

IDLE_SESSIONS_BEFORE = 500
"""Stand already when memory is read first, so that what a server allocates once is not counted to the sessions."""

DISTURBED_SHARE = 0.05
"""A process that waited for a CPU for this share of the time was disturbed by other programs."""

LOAD_MODES: dict[Kind, Literal["upgrade", "fanout", "chat"]] = {
    "upgrades": "upgrade",
    "fan-out": "fanout",
    "chat": "chat",
}
"""The generator's modes for the kinds of cases; "echo" for all others."""

MEMORY_ROUNDS_MAX = 3
START_SECONDS = 0.3
OVERHEAD_SECONDS = 0.15
"""Opening and ending sessions, around each load; with START_SECONDS, for the estimate of the whole."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The measurements to make, how often and for how long."""

    contenders: Sequence[Contender]
    baseline: str
    cases: Sequence[Case]
    modes: Sequence[Mode]
    rounds: int
    seconds: float
    warmup_seconds: float
    server_core: int
    client_core: int
    retries: int = 0
    """So often a disturbed measurement is repeated; the least disturbed one counts."""
    verify: bool = False

    def visits(self) -> Iterator[tuple[Case, Mode]]:
        """Each case in each of its modes."""
        for case in self.cases:
            for mode in case.modes:
                if mode in self.modes:
                    yield case, mode

    def taking_part(self, case: Case) -> list[Contender]:
        """The contenders that can run, and that the case is for."""
        return [
            contender
            for contender in self.contenders
            if case.service in contender.services
            and (contender.cases is None or case.name in contender.cases)
            and not (case.kind == "upgrades" and contender.protocol == "tcp")
        ]

    def rounds_of(self, case: Case) -> int:
        """Memory needs a fresh server for each measurement, and hardly varies."""
        return min(self.rounds, MEMORY_ROUNDS_MAX) if case.takes_fresh_servers else self.rounds

    def steps(self) -> int:
        """How many measurements there will be, if no contender is skipped."""
        return sum(self.rounds_of(case) * len(self.taking_part(case)) for case, _ in self.visits())

    def estimated_seconds(self) -> float:
        """Of the whole plan, if nothing has to be repeated."""
        starts = sum(len(self.taking_part(case)) for case in self.cases)
        return self.steps() * (self.warmup_seconds + self.seconds + OVERHEAD_SECONDS) + starts * START_SECONDS


def ignore(*_: object) -> None:
    """Ignores a report."""


def disturbed_share(outcome: Outcome, mode: Mode) -> float:
    """The largest share of the time for which a process waited for a CPU, without the wait for the busy loop."""
    waits = [outcome.client_waited_seconds]
    if mode == "throughput":
        waits.append(outcome.server_waited_seconds)
    return max(waits) / outcome.seconds


def in_the_middle(name: str, servers: Sequence[Server]) -> list[Server]:
    """The servers with the one of that name in the middle, the others in their order around it."""
    others = [server for server in servers if server.name != name]
    found = [server for server in servers if server.name == name]
    half = len(others) // 2
    return [*others[:half], *found, *others[half:]]


@dataclass
class Runner:
    """Carries out a plan. Its results go to `measurements` and, at once, to the two callbacks."""

    plan: Plan
    on_step: Callable[[str], None] = ignore
    """Called before each measurement, with what it will be."""
    on_measurement: Callable[[Measurement], None] = ignore
    on_skip: Callable[[str, str], None] = ignore
    """Called when a server leaves the run, with the reason."""
    measurements: Measurements = field(default_factory=Measurements)
    skipped: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """All of it."""
        with processes.kept_awake(self.plan.server_core, self.plan.client_core):
            for case in self.plan.cases:
                modes = [mode for mode in case.modes if mode in self.plan.modes]
                if modes and case.takes_fresh_servers:
                    self.weigh_in_turn(case)
                elif modes:
                    self.load_in_turn(case, modes)

    def load_in_turn(self, case: Case, modes: Sequence[Mode]) -> None:
        """Fresh servers for each case, so that no case inherits memory or state from another."""
        with ExitStack() as stack:
            servers = [server for one in self.plan.taking_part(case) if (server := self.enter(stack, one))]
            # The baseline is visited in the middle: the machine drifts least between neighbours.
            servers = in_the_middle(self.plan.baseline, servers)
            rate = self.half_of_baseline(case, servers)
            if rate is None:
                return
            for mode in modes:
                with self.busy(mode):
                    for turn in range(self.plan.rounds):
                        # Forwards and backwards in turn: a drift within a round then favours no server.
                        for server in servers if turn % 2 == 0 else reversed(servers):
                            self.visit(server, case, mode, turn, rate)

    def weigh_in_turn(self, case: Case) -> None:
        """Fresh servers for each measurement: memory that was freed may still be resident."""
        for turn in range(self.plan.rounds_of(case)):
            for contender in self.plan.taking_part(case):
                self.on_step(f"{case.name} {contender.name}")
                with ExitStack() as stack:
                    server = self.enter(stack, contender)
                    if server is not None and case.kind == "memory":
                        self.weigh(server, case, turn)
                    elif server is not None:
                        self.weigh_backlogs(server, case, turn)

    def enter(self, stack: ExitStack, contender: Contender) -> Server | None:
        """Starts a server, unless it failed before; a failure is reported once."""
        if contender.name in self.skipped:
            return None
        try:
            return stack.enter_context(processes.started(contender, self.plan.server_core))
        except ServerError as error:
            self.skip(contender.name, str(error))
            return None

    def skip(self, server: str, reason: str) -> None:
        """The server takes no further part."""
        self.skipped[server] = reason
        self.on_skip(server, reason)

    @contextmanager
    def busy(self, mode: Mode) -> Iterator[None]:
        """The processes that make the mode."""
        with processes.busy_loop(self.plan.server_core) if mode == "capacity" else nullcontext():
            yield

    def half_of_baseline(self, case: Case, servers: Sequence[Server]) -> float | None:
        """The rate of a case: 0 for as fast as possible, None if it cannot be known."""
        if case.half_of is None:
            return case.rate
        key = MESSAGES_PER_SECOND.key
        known = self.measurements.value(self.plan.baseline, case.half_of, "throughput", key)
        if known is not None:
            return known.median / 2
        baseline = next((server for server in servers if server.name == self.plan.baseline), None)
        if baseline is None:
            return None
        closed = dataclasses.replace(case, kind="echo", half_of=None)
        return statistics.median(self.put(baseline, closed, "throughput", 0).messages_per_second for _ in range(3)) / 2

    def put(self, server: Server, case: Case, mode: Mode, rate: float) -> Outcome:
        """The load of a case, once."""
        asked = Load(
            mode=LOAD_MODES.get(case.kind, "echo"),
            protocol=server.contender.protocol,
            connections=case.connections,
            payload_bytes=case.payload_bytes,
            in_flight=case.in_flight,
            members=case.members,
            stalled=case.stalled,
            publish_rate=case.publish_rate,
            rate=round(rate),
            # At a fixed rate the client must not be late itself; where the server's CPU time counts, waking the client
            # must not be in it.
            spin=rate > 0 or mode == "capacity",
            verify=self.plan.verify,
            seconds=self.plan.seconds,
            warmup_seconds=self.plan.warmup_seconds,
        )
        return load.run(asked, server.port, core=self.plan.client_core, watch=processes.family(server.pid))

    def put_undisturbed(self, server: Server, case: Case, mode: Mode, rate: float) -> Outcome:
        """The load of a case, again if something else took the CPU."""
        best = self.put(server, case, mode, rate)
        for _ in range(self.plan.retries):
            if disturbed_share(best, mode) <= DISTURBED_SHARE:
                break
            best = min(best, self.put(server, case, mode, rate), key=lambda outcome: disturbed_share(outcome, mode))
        return best

    def visit(self, server: Server, case: Case, mode: Mode, turn: int, rate: float) -> None:
        """One measurement of a server that is running."""
        self.on_step(f"{mode} {case.name} {server.name}")
        if server.name in self.skipped:
            return
        try:
            outcome = self.put_undisturbed(server, case, mode, rate)
        except LoadError as error:
            self.skip(server.name, f"in {case.name}: {error}")
            return
        values = {
            "messages_per_second": outcome.messages_per_second,
            "disturbed_share": disturbed_share(outcome, mode),
            "server_cpu_share": outcome.server_cpu_share,
            "client_cpu_share": outcome.client_cpu_share,
            "unanswered": float(outcome.unanswered),
        }
        if outcome.messages:
            values["server_cpu_microseconds_per_message"] = outcome.server_cpu_microseconds_per_message
        for percentile, microseconds in outcome.latency_microseconds.items():
            values[f"latency_{percentile}_microseconds"] = microseconds
        if rate:
            values["rate"] = rate
        self.record(server, case, mode, turn, values)

    def weigh(self, server: Server, case: Case, turn: int) -> None:
        """One measurement of the memory of a server that is fresh."""
        protocol, core = server.contender.protocol, self.plan.client_core
        try:
            with load.hold(IDLE_SESSIONS_BEFORE, server.port, protocol=protocol, core=core):
                before = processes.resident_bytes(server.pid)
                with load.hold(case.connections, server.port, protocol=protocol, core=core):
                    after = processes.resident_bytes(server.pid)
        except LoadError as error:
            self.skip(server.name, f"in {case.name}: {error}")
            return
        values = {"resident_bytes_per_session": (after - before) / case.connections}
        self.record(server, case, "throughput", turn, values)

    def weigh_backlogs(self, server: Server, case: Case, turn: int) -> None:
        """One measurement of the memory that stalled members take of a server that is fresh."""
        asked = Load(
            mode="backlog",
            connections=case.connections,
            payload_bytes=case.payload_bytes,
            members=case.members,
            stalled=case.stalled,
            publishes=case.publishes,
        )
        try:
            with load.backlogs(asked, server.port, core=self.plan.client_core) as publish:
                before = processes.resident_bytes(server.pid)
                publish()
                after = processes.resident_bytes(server.pid)
        except LoadError as error:
            self.skip(server.name, f"in {case.name}: {error}")
            return
        self.record(server, case, "throughput", turn, {"resident_bytes_of_backlogs": float(after - before)})

    def record(self, server: Server, case: Case, mode: Mode, turn: int, values: dict[str, float]) -> None:
        """Keeps a measurement, and reports it."""
        one = Measurement(server=server.name, case=case.name, mode=mode, round=turn, values=values)
        self.measurements.all.append(one)
        self.on_measurement(one)
