"""Compares WebSocket echo servers: throughput, price per message, latency, memory.

python bench/compare.py --quick
python bench/compare.py --peer "uwebsockets=9100:/path/to/EchoServer 9100" --baseline uwebsockets --bars
python bench/compare.py --servers uringws_handler,picows --cases shapes,round-trip --modes capacity
python bench/compare.py --from bench/results/2026-01-31-120000.jsonl --bars
"""

import argparse
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar, get_args

import machine
import results
from cases import CASES, GROUPS, MODES, Case, Mode
from contenders import CONTENDER_GROUPS, CONTENDERS, Contender, peer
from native import BuildError, build
from results import Results, ResultsError, Writer
from runner import Plan, Runner

try:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    import bars
    import plot
    import report
except ImportError as error:
    sys.exit(f"{error.name} is missing: pip install 'uringws[bench]', or rich and matplotlib")

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Pace:
    """How often and how long: short visits in many rounds, because machines drift."""

    rounds: int
    seconds: float
    warmup_seconds: float
    retries: int


USUAL = Pace(rounds=5, seconds=1.2, warmup_seconds=0.2, retries=2)
QUICK = Pace(rounds=3, seconds=0.4, warmup_seconds=0.1, retries=0)
QUICK_SERVERS = ("uringws_echo", "uringws_handler", "picows", "websockets")

Named = TypeVar("Named")


def listed(names: Iterable[str], groups: Iterable[str]) -> str:
    """The help of an option that takes names."""
    return f"{', '.join(names)}; or groups: {', '.join(groups)}"


def arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser, whose error() reports later mistakes, and the parsed arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to measure (names, comma-separated; default: usual servers, all else)")
    what.add_argument("--servers", metavar="NAMES", help=listed(CONTENDERS, CONTENDER_GROUPS))
    what.add_argument("--cases", metavar="NAMES", help=listed(CASES, GROUPS))
    what.add_argument("--modes", metavar="NAMES", help=", ".join(get_args(Mode)))
    what.add_argument("--peer", metavar="NAME=PORT:COMMAND", action="append", default=[], help="any other server")
    what.add_argument("--baseline", metavar="NAME", help="what ratios are to; default: the first peer, else picows")
    what.add_argument("--verify", action="store_true", help="compare every byte of every answer; costs the client")
    how = parser.add_argument_group("how long")
    how.add_argument("--quick", action="store_true", help="the five shapes, few servers, in under two minutes")
    how.add_argument("--rounds", type=int, help=f"visits to each server in each case and mode ({USUAL.rounds})")
    how.add_argument("--seconds", type=float, help=f"of each visit ({USUAL.seconds})")
    how.add_argument("--warmup-seconds", type=float, help=f"before each ({USUAL.warmup_seconds})")
    how.add_argument("--retries", type=int, help=f"of a visit that was disturbed ({USUAL.retries})")
    how.add_argument("--cores", metavar="SERVER,CLIENT", default="0,1", help="CPUs (%(default)s)")
    out = parser.add_argument_group("what to show")
    out.add_argument("--bars", action="store_true", help="also the bars that are set, and whether they are met")
    out.add_argument("--from", metavar="FILE", type=Path, dest="source", help="show an earlier run, measure nothing")
    out.add_argument("--output", metavar="DIRECTORY", type=Path, default=RESULTS, help="default: bench/results")
    return parser, parser.parse_args()


def chosen(parser: argparse.ArgumentParser, names: str, kind: str, known: dict[str, list[Named]]) -> list[Named]:
    """The things that the names stand for, in the order given, each once."""
    found: list[Named] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in known:
            parser.error(f"there is no {kind} {name!r}; there are: {', '.join(known)}")
        found += [one for one in known[name] if one not in found]
    if not found:
        parser.error(f"no {kind} is named")
    return found


def chosen_contenders(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[list[Contender], str]:
    """The contenders, and the name of the baseline."""
    try:
        peers = [peer(text) for text in options.peer]
    except ValueError as error:
        parser.error(str(error))
    everyone = {**CONTENDERS, **{one.name: one for one in peers}}
    known = {name: [one] for name, one in everyone.items()}
    groups = {group: [one for one in CONTENDERS.values() if one.group == group] for group in CONTENDER_GROUPS}
    usual = ",".join(QUICK_SERVERS) if options.quick else "usual"
    servers = chosen(parser, options.servers or usual, "server", known | groups)
    servers += [one for one in peers if one not in servers]
    if options.baseline:
        [baseline] = chosen(parser, options.baseline, "server", known)[:1]
    elif peers:
        baseline = peers[0]
    else:
        baseline = CONTENDERS["picows"] if CONTENDERS["picows"] in servers else servers[0]
    if baseline not in servers:
        servers.append(baseline)
    return servers, baseline.name


def chosen_cores(parser: argparse.ArgumentParser, text: str) -> tuple[int, int]:
    """The server's CPU and the client's."""
    try:
        server, client = map(int, text.split(","))
    except ValueError:
        parser.error(f"--cores takes two CPUs, like 0,1, not {text!r}")
    for core in (server, client):
        if core not in os.sched_getaffinity(0):
            parser.error(f"CPU {core} is not available; there are: {sorted(os.sched_getaffinity(0))}")
    if server == client:
        parser.error("server and client need a CPU each")
    return server, client


def usual_cases(contenders: Sequence[Contender], *, quick: bool) -> str:
    """The cases where none are named: those for which a contender of the bench is; a peer may take part in all."""
    if quick:
        return "shapes"
    services = {service for one in contenders if one.name in CONTENDERS for service in one.services}
    return ",".join(name for name, case in CASES.items() if case.service in (services or {"echo"}))


def plan(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Plan:
    """The plan of the command line; ends the program if the arguments are wrong."""
    contenders, baseline = chosen_contenders(parser, options)
    server_core, client_core = chosen_cores(parser, options.cores)
    known_cases: dict[str, list[Case]] = {name: [case] for name, case in CASES.items()}
    for group in GROUPS:
        known_cases[group] = [case for case in CASES.values() if case.group == group]
    known_modes: dict[str, list[Mode]] = {mode: [mode] for mode in MODES}
    asked = {field.name: value for field in fields(Pace) if (value := getattr(options, field.name)) is not None}
    pace = replace(QUICK if options.quick else USUAL, **asked)
    if pace.rounds < 1 or pace.retries < 0 or not 0.05 <= pace.seconds <= 3600 or not 0 <= pace.warmup_seconds <= 3600:
        parser.error("at least one round, and at least 0.05 seconds, are needed")
    return Plan(
        contenders=contenders,
        baseline=baseline,
        cases=chosen(parser, options.cases or usual_cases(contenders, quick=options.quick), "case", known_cases),
        modes=chosen(parser, options.modes or ",".join(MODES), "mode", known_modes),
        **vars(pace),
        server_core=server_core,
        client_core=client_core,
        verify=options.verify,
    )


def measure(plan: Plan, directory: Path) -> tuple[Results, Path, bool]:
    """Carries the plan out under a progress bar.

    Returns the measurements, the file that holds them, and whether it ran to its end.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / time.strftime("%Y-%m-%d-%H%M%S.jsonl")
    facts = machine.facts()
    screen = report.console()
    screen.print(
        f"{plan.steps()} measurements, about {plan.estimated_seconds():.0f} s; server on CPU {plan.server_core}, "
        f"client on CPU {plan.client_core}",
        highlight=False,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with path.open("w") as file, Progress(*columns, console=screen, transient=True) as progress:
        writer = Writer(file, plan.baseline, facts)
        task = progress.add_task("", total=plan.steps())
        runner = Runner(
            plan,
            on_step=lambda description: progress.update(task, description=description, advance=1),
            on_measurement=writer.measurement,
            on_skip=writer.skipped,
        )
        complete = False
        try:
            runner.run()
            complete = True
        except KeyboardInterrupt:
            pass
    return Results(plan.baseline, facts, runner.measurements, runner.skipped), path, complete


def show(found: Results, *, with_bars: bool) -> None:
    """Prints the tables."""
    screen = report.console()
    report.show(found, screen)
    if with_bars:
        screen.print(bars.table(found))


def prepare() -> None:
    """So that servers may have many sessions, and so that being told to end unwinds like Ctrl-C: no child is left."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main() -> int:
    """Returns the exit status."""
    parser, options = arguments()
    if options.source is not None:
        try:
            show(results.read(options.source), with_bars=options.bars)
        except (OSError, ResultsError) as error:
            parser.error(str(error))
        return 0

    todo = plan(parser, options)
    try:
        build("load")
    except BuildError as error:
        sys.exit(str(error))
    prepare()
    found, path, complete = measure(todo, options.output)
    show(found, with_bars=options.bars)
    picture = path.with_suffix(".png")
    if plot.save(found, picture):
        print(f"plot: {picture}")
    print(f"results: {path}")
    if not complete:
        print("interrupted: these are the results so far", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0 if found.measurements.all else 1


if __name__ == "__main__":
    sys.exit(main())
