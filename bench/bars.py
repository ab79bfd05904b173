"""The bars for this library, and whether a run reaches them: each claim is a row, each row a number.

Where a bar names C++ uWebSockets, it is the baseline of the run that counts: give uWebSockets' own echo server with
--peer and choose it with --baseline.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from cases import CPU_PER_MESSAGE, MODES, SHAPES, Mode
from results import Results

BASELINE = "the baseline"
SMALL_SHAPES = tuple(name for name in SHAPES if not name.endswith("/16384"))
LARGE_SHAPES = tuple(name for name in SHAPES if name.endswith("/16384"))


@dataclass(frozen=True)
class Reading:
    """The number of a bar, with further details."""

    value: float
    detail: str


Measure = Callable[[Results], Reading | None]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One claim. `measure` gives None where the run lacks a measurement it needs."""

    what: str
    against: str
    required: float
    aim: float | None = None
    unit: str = ""
    at_most: bool = False
    """The number must not exceed what is required, instead of reaching it."""
    measure: Measure

    def met(self, value: float, bar: float) -> bool:
        """Whether `value` is on the right side of `bar`, which is what is required or the aim."""
        return value <= bar if self.at_most else value >= bar


def opponent(results: Results, against: str) -> str:
    """The server a bar is about, in this run."""
    return results.baseline if against == BASELINE else against


def worst(server: str, against: str, cases: Sequence[str], mode: Mode) -> Measure:
    """The lowest of the ratios in `cases`."""

    def measure(results: Results) -> Reading | None:
        found = []
        for case in cases:
            ratio = results.measurements.ratio(server, opponent(results, against), case, mode)
            if ratio is None:
                return None
            found.append((ratio.median, f"{case}: {ratio.low:.2f}-{ratio.high:.2f}"))
        return Reading(*min(found))

    return measure


def mean(server: str, against: str, cases: Sequence[str], mode: Mode) -> Measure:
    """The geometric mean of the ratios in `cases`."""

    def measure(results: Results) -> Reading | None:
        value = results.measurements.geometric_mean(server, opponent(results, against), cases, mode)
        return None if value is None else Reading(value, f"{len(cases)} cases")

    return measure


def times(server: str, against: str, case: str) -> Measure:
    """How many times the other's latency the server has."""

    def measure(results: Results) -> Reading | None:
        ratio = results.measurements.ratio(server, opponent(results, against), case, "throughput")
        value = results.measurements.value(server, case, "throughput")
        if ratio is None or value is None:
            return None
        return Reading(1 / ratio.median, f"{1 / ratio.high:.2f}-{1 / ratio.low:.2f}, {value.median:.0f} us")

    return measure


def more_cpu(server: str, against: str, case: str) -> Measure:
    """How many microseconds of CPU time per message the server needs beyond the other."""

    def measure(results: Results) -> Reading | None:
        found = results.measurements.difference(server, against, case, "capacity", CPU_PER_MESSAGE.key)
        return None if found is None else Reading(found.median, f"{case}: {found.low:.2f}-{found.high:.2f}")

    return measure


def bytes_per_session(server: str) -> Measure:
    """How much resident memory each idle session adds."""

    def measure(results: Results) -> Reading | None:
        found = results.measurements.value(server, "idle-memory", "throughput")
        return None if found is None else Reading(found.median, f"{found.low:.0f}-{found.high:.0f}")

    return measure


def backlog_megabytes(server: str) -> Measure:
    """How much resident memory the backlogs of stalled members add."""

    def measure(results: Results) -> Reading | None:
        found = results.measurements.value(server, "backlog-memory", "throughput")
        return None if found is None else Reading(found.median / 1e6, f"{found.low / 1e6:.1f}-{found.high / 1e6:.1f}")

    return measure


def elsewhere(results: Results) -> None:
    """Not of a server: the microbenchmarks measure it."""


def bars() -> Iterator[Bar]:
    """All bars: each shape, Python's share, pipelines, latency, and the other figures."""
    for mode in MODES:
        yield from shapes(mode)
    yield from sends()
    for mode in MODES:
        yield from against_picows(mode)
        yield from pipelines(mode)
    yield from latency()
    yield from counts()
    for mode in MODES:
        yield from large_messages(mode)
    yield from fan_out()


def shapes(mode: Mode) -> Iterator[Bar]:
    """The five shapes, against the baseline."""
    yield from (
        Bar(
            what=f"run_echo, each shape, {mode}",
            against=BASELINE,
            required=1.0,
            aim=1.1,
            measure=worst("uringws_echo", BASELINE, SHAPES, mode),
        ),
        Bar(
            what=f"run_echo, geometric mean, {mode}",
            against=BASELINE,
            required=1.03,
            measure=mean("uringws_echo", BASELINE, SHAPES, mode),
        ),
        Bar(
            what=f"run_echo, each 16 KiB shape, {mode}",
            against=BASELINE,
            required=1.05,
            measure=worst("uringws_echo", BASELINE, LARGE_SHAPES, mode),
        ),
        Bar(
            what=f"run_echo on epoll, each shape, {mode}",
            against=BASELINE,
            required=0.98,
            aim=1.03,
            measure=worst("uringws_echo_epoll", BASELINE, SHAPES, mode),
        ),
        Bar(
            what=f"Python handler, conn.echo(), each shape, {mode}",
            against=BASELINE,
            required=0.93,
            aim=1.0,
            measure=worst("uringws_handler", BASELINE, SHAPES, mode),
        ),
        Bar(
            what=f"Python handler, conn.send(), each shape, {mode}",
            against=BASELINE,
            required=0.88,
            aim=0.97,
            measure=worst("uringws_send", BASELINE, SHAPES, mode),
        ),
    )


def sends() -> Iterator[Bar]:
    """A handler that sends each message back, and the cost of Python beyond C."""
    for form, server, required, aim in (
        ("send(message.opcode, message.data)", "uringws_send", 0.93, 0.97),
        ("send(message)", "uringws_send_message", 0.97, 1.0),
    ):
        yield Bar(
            what=f"Python handler, conn.{form}, geometric mean, capacity",
            against=BASELINE,
            required=required,
            aim=aim,
            measure=mean(server, BASELINE, SHAPES, "capacity"),
        )
    yield Bar(
        what="Python's own share: CPU per message of the handler less that of run_echo",
        against="uringws_echo",
        required=0.45,
        aim=0.25,
        unit=" us",
        at_most=True,
        measure=more_cpu("uringws_handler", "uringws_echo", "100/20"),
    )


def against_picows(mode: Mode) -> Iterator[Bar]:
    """A Python handler, against the fastest server on asyncio."""
    yield from (
        Bar(
            what=f"Python handler, 20 and 1,024 bytes, {mode}",
            against="picows",
            required=1.15,
            aim=1.25,
            measure=worst("uringws_handler", "picows", SMALL_SHAPES, mode),
        ),
        Bar(
            what=f"Python handler, 16 KiB, {mode}",
            against="picows",
            required=1.4,
            aim=1.6,
            measure=worst("uringws_handler", "picows", LARGE_SHAPES, mode),
        ),
    )


def pipelines(mode: Mode) -> Iterator[Bar]:
    """Several messages in flight on each connection."""
    yield from (
        Bar(
            what=f"run_echo, 16 in flight, {mode}",
            against=BASELINE,
            required=1.1,
            aim=1.5,
            measure=worst("uringws_echo", BASELINE, ["pipelined-16"], mode),
        ),
        Bar(
            what=f"run_echo, 64 in flight, {mode}",
            against=BASELINE,
            required=1.25,
            aim=1.5,
            measure=worst("uringws_echo", BASELINE, ["pipelined-64"], mode),
        ),
        Bar(
            what=f"Python handler, 16 in flight, {mode}",
            against="picows",
            required=6,
            aim=10,
            measure=worst("uringws_handler", "picows", ["pipelined-16"], mode),
        ),
    )


def latency() -> Iterator[Bar]:
    """Times instead of rates."""
    yield Bar(
        what="CPU per message of run_echo, each shape",
        against="bare_uring",
        required=0.97,
        aim=0.99,
        measure=worst("uringws_echo", "bare_uring", SHAPES, "capacity"),
    )
    for case in ("rate-100/20", "rate-200/16384"):
        yield Bar(
            what=f"p99 latency at half of the saturation rate, {case.removeprefix('rate-')}",
            against=BASELINE,
            required=1.0,
            aim=0.9,
            at_most=True,
            measure=times("uringws_echo", BASELINE, case),
        )
    yield Bar(
        what="round trip, 1 connection, 20 bytes",
        against=BASELINE,
        required=1.0,
        at_most=True,
        measure=times("uringws_echo", BASELINE, "round-trip"),
    )
    yield Bar(
        what="the same, with busy polling",
        against=BASELINE,
        required=0.75,
        aim=0.6,
        at_most=True,
        measure=times("uringws_echo_busy_poll", BASELINE, "round-trip"),
    )


def counts() -> Iterator[Bar]:
    """Upgrades, memory, and the work of one function."""
    for against, required in (("websockets", 3), ("picows", 2)):
        yield Bar(
            what="upgrades per second",
            against=against,
            required=required,
            measure=worst("uringws_handler", against, ["upgrades"], "throughput"),
        )
    yield Bar(
        what="resident bytes per idle session, Python handler",
        against="",
        required=512,
        aim=350,
        unit=" bytes",
        at_most=True,
        measure=bytes_per_session("uringws_handler"),
    )
    yield Bar(
        what="unmask at 16 KiB (see bench/micro)",
        against="memcpy",
        required=0.8,
        aim=1.0,
        measure=elsewhere,
    )


def large_messages(mode: Mode) -> Iterator[Bar]:
    """Messages that are larger than a receive buffer."""
    yield Bar(
        what=f"64 KiB and 1 MiB messages, {mode}",
        against=BASELINE,
        required=1.0,
        aim=1.1,
        measure=worst("uringws_echo", BASELINE, ["64KiB", "1MiB"], mode),
    )


def fan_out() -> Iterator[Bar]:
    """One message to many sessions; the baseline is C++ uWebSockets, with a server that publishes (README.md)."""

    def each(what: str, case: str, *opponents: tuple[str, float, float]) -> Iterator[Bar]:
        for against, required, aim in opponents:
            yield Bar(
                what=f"publish, {what}, capacity",
                against=against,
                required=required,
                aim=aim,
                measure=worst("uringws_publish", against, [case], "capacity"),
            )

    yield from each(
        "1,000 members x 64 bytes, 1 per turn",
        "fanout-1000x1",
        (BASELINE, 1.03, 1.12),
        ("bare_fanout", 0.93, 0.97),
        ("picows_send_loop", 1.3, 1.5),
        ("websockets_broadcast", 2.3, 3),
    )
    yield from each(
        "the same, 16 per turn",
        "fanout-1000x16",
        (BASELINE, 1.05, 1.2),
        ("picows_send_loop", 10, 20),
        ("websockets_broadcast", 20, 35),
    )
    yield from each("the same, 64 per turn", "fanout-1000x64", (BASELINE, 6, 10))
    yield from each("320 clients, all to all", "chat-320", (BASELINE, 4, 8))
    yield from each(
        "200 members x 16 KiB, 1 per turn", "fanout-200x16KiB", (BASELINE, 1.15, 1.25), ("picows_send_loop", 1.0, 1.1)
    )
    yield from slow_readers()


def slow_readers() -> Iterator[Bar]:
    """The cost of a room for its server, and for sessions that are not in it."""
    case = "backlog-memory"
    yield Bar(
        what="resident memory of 100 stalled members, 10,000 messages of 1 KiB each",
        against=BASELINE,
        required=10,
        aim=15,
        measure=worst("uringws_publish", BASELINE, [case], "throughput"),
    )
    yield Bar(
        what="the same",
        against="",
        required=64,
        unit=" MB",
        at_most=True,
        measure=backlog_megabytes("uringws_publish"),
    )
    yield Bar(
        what="p99 of 100 echoing connections beside 10,000 members, 10 messages per second",
        against=BASELINE,
        required=1.0,
        aim=0.8,
        at_most=True,
        measure=times("uringws_publish", BASELINE, "echo-beside"),
    )


def table(results: Results) -> Table:
    """All bars, and how the run stands to them."""
    grid = Table(title="bars", title_justify="left", title_style="bold")
    for heading in ("what", "against"):
        grid.add_column(heading)
    for heading in ("required", "aim", "measured", "", "met?"):
        grid.add_column(heading, justify="right")
    for bar in bars():
        sign = "at most " if bar.at_most else ""
        required = f"{sign}{bar.required:g}{bar.unit}"
        aim = "" if bar.aim is None else f"{bar.aim:g}{bar.unit}"
        reading = bar.measure(results)
        if reading is None:
            measured = detail = "-"
            met = "[dim]not measured"
        else:
            measured, detail = f"{reading.value:.{0 if reading.value >= 100 else 2}f}{bar.unit}", reading.detail
            if not bar.met(reading.value, bar.required):
                met = "[red]no"
            elif bar.aim is not None and bar.met(reading.value, bar.aim):
                met = "[green]yes, and the aim"
            else:
                met = "[green]yes"
        against = opponent(results, bar.against)
        grid.add_row(bar.what, against, required, aim, measured, detail, met)
    return grid
