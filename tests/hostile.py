"""A hostile client: attacks on a server that also has well-behaved clients, next to a control server without attacks.

Each attack of attacks.py has two fresh servers, on one CPU; all other processes are on another. Neighbours send 20
bytes twenty times per second to both, and time the echoes. Witnesses exchange seeded streams with the attacked server
and compare every byte. With --markdown the table is fit for docs/hostile.md:

    python tests/hostile.py
    python tests/hostile.py --backend epoll --attack large-senders --attack resets --seconds 20 --seed 7
    python tests/hostile.py --markdown > docs/hostile.md
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from attacks import ATTACKS, Tally
from bystanders import LATE_SECONDS_MAX, Findings, Timings, attack, time_echoes, verify_echoes
from servers import BACKENDS, ROOT, ServerProcess
from uringws.backend import Backend
from wire import http

SECONDS = 12.0
START_SECONDS_MAX = 30.0
EMPTY_SECONDS_MAX = 30.0
"""Within this time a server must have ended its attackers' sessions: longer than the handshake and close deadlines."""
WITNESSES = 8
P99_RATIO_MAX = 5.0
P99_SECONDS = 0.02
"""A neighbour's p99 up to this passes, even if the control's is much better."""
FIGURES = b"GET / HTTP/1.0\r\n\r\n"
HELD = ("sessions", "handshakes", "memory_bytes", "queued_bytes", "pool_in_use")
"""The figures that must be 0 when everybody has left."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how many."""

    seconds: float = SECONDS
    scale: float = 1.0
    """Of the clients that each attack has."""
    witnesses: int = WITNESSES
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """The effects of an attack on a server. Memory is resident, in bytes."""

    attack: str
    backend: str
    neighbour: Timings
    control: Timings
    findings: Findings
    tally: Tally
    held: dict[str, int]
    """Memory that the server still held for sessions that have ended."""
    memory_before: int
    memory_after: int

    @property
    def p99_seconds_max(self) -> float:
        """The bar for the neighbour's p99."""
        return max(P99_SECONDS, P99_RATIO_MAX * quantile(self.control, 0.99))

    @property
    def lost(self) -> list[str]:
        """The failures that no machine excuses, however slow it is."""
        found = {
            "bytes wrong": self.findings.wrong_bytes + self.neighbour.wrong_bytes + self.control.wrong_bytes,
            "bytes missing": self.findings.missing_bytes,
            "echoes missing": self.neighbour.missing + self.control.missing,
            "sessions cut": self.cut,
            **{f"{name} left": count for name, count in self.held.items()},
        }
        problems = [f"{count:,} {name}" for name, count in found.items() if count]
        return problems if self.findings.verified_bytes else [*problems, "nothing was verified"]

    @property
    def late(self) -> list[str]:
        """Which bars on time were missed."""
        problems = []
        p99 = quantile(self.neighbour, 0.99)
        if p99 > self.p99_seconds_max:
            problems.append(f"p99 {1000 * p99:.1f} ms, at most {1000 * self.p99_seconds_max:.1f}")
        wait, wait_max = quantile(self.neighbour, 1) - quantile(self.control, 1), ATTACKS[self.attack].wait_seconds_max
        if wait_max is not None and wait > wait_max:
            problems.append(f"waited {1000 * wait:.0f} ms more than the control, at most {1000 * wait_max:.0f}")
        return problems

    @property
    def cut(self) -> int:
        """Sessions that the server ended without a reason."""
        return self.findings.cut + self.neighbour.cut + self.control.cut

    @property
    def problems(self) -> list[str]:
        return self.lost + self.late


def quantile(timings: Timings, of: float) -> float:
    ordered = sorted(timings.seconds)
    return ordered[min(len(ordered) - 1, int(of * len(ordered)))]


# ---- one attack


@dataclass(frozen=True)
class Process:
    """One of the processes of bystanders.py: start it, tell it the end time, and ask for its results."""

    name: str
    process: Any
    pipe: Pipe

    def receive(self, seconds: float) -> Any:
        try:
            if self.pipe.poll(seconds):
                return self.pipe.recv()
        except EOFError:
            pass
        raise AssertionError(f"the process {self.name} said nothing, exit status {self.process.exitcode}")


@contextmanager
def started(target: Callable[..., None], *arguments: Any) -> Iterator[Process]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        found = Process(target.__name__, process, ours)
        assert found.receive(START_SECONDS_MAX) == "ready"
        yield found
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def core(which: int) -> int:
    """The CPU of the servers (0), or of everybody else (-1)."""
    return sorted(os.sched_getaffinity(0))[which]


@contextmanager
def servers(backend: Backend) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """One to be attacked, and its control. Leaving the context holds both to ending as they should."""
    arguments = ("tests/hostile_server.py", "--backend", backend, "--core", core(0))
    with ServerProcess(*map(str, arguments)) as beset, ServerProcess(*map(str, arguments)) as control:
        yield beset, control


def run_attack(name: str, plan: Plan, beset: ServerProcess, control: ServerProcess) -> Result:
    """Attack a server by that name. Raises AssertionError if it cannot be done, or measured."""
    clients = max(2, round(plan.scale * ATTACKS[name].clients))
    memory_before = resident_bytes(beset.pid)
    with ExitStack() as stack:

        def start(target: Callable[..., None], *arguments: Any) -> Process:
            return stack.enter_context(started(target, core(-1), *arguments))

        neighbours = start(time_echoes, [beset.address, control.address], plan.seed)
        witnesses = start(verify_echoes, beset.address, plan.witnesses, plan.seed)
        attackers = start(attack, (ATTACKS[name], clients), beset.address, plan.seed)
        until = time.monotonic() + plan.seconds
        for process in (attackers, witnesses, neighbours):
            process.pipe.send(until)
        wait_seconds = plan.seconds + 2 * LATE_SECONDS_MAX
        tally: Tally = attackers.receive(wait_seconds)
        neighbour, alone = neighbours.receive(wait_seconds)
        findings: Findings = witnesses.receive(wait_seconds)
    return Result(
        attack=name,
        backend=beset.backend,
        neighbour=neighbour,
        control=alone,
        findings=findings,
        tally=tally,
        held=settled(beset),
        memory_before=memory_before,
        memory_after=resident_bytes(beset.pid),
    )


def settled(server: ServerProcess) -> dict[str, int]:
    """The resources that a server holds after all clients have left and its deadlines are over."""
    deadline = time.monotonic() + EMPTY_SECONDS_MAX
    while True:
        figures = json.loads(http(server.address, FIGURES).body)
        figures["handshakes"] -= 1  # the session that asks, whose request is in a buffer
        figures["pool_in_use"] -= bool(figures["pool_in_use"])
        held = {name: figures[name] for name in HELD if figures[name]}
        if not held or time.monotonic() > deadline:
            return held
        time.sleep(0.1)


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Rss:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"no resident memory of {pid} is known")


# ---- the table

COLUMNS = (
    *("attack", "backend", "neighbour's p50 / p99 / max, ms", "control's", "MB verified", "bytes wrong", "cut"),
    *("memory before / after, MB", "what the attack did", "bars"),
)


def row(result: Result) -> tuple[str, ...]:
    return (
        result.attack,
        result.backend,
        milliseconds(result.neighbour),
        milliseconds(result.control),
        f"{result.findings.verified_bytes / 1e6:,.1f}",
        f"{result.findings.wrong_bytes + result.findings.missing_bytes:,}",
        str(result.cut),
        f"{result.memory_before / 1e6:,.0f} / {result.memory_after / 1e6:,.0f}",
        str(result.tally),
        "; ".join(result.problems) or "met",
    )


def milliseconds(timings: Timings) -> str:
    return " / ".join(f"{1000 * quantile(timings, of):.1f}" for of in (0.5, 0.99, 1))


PAGE = """# A server under attack

Each row is one attack on a fresh server whose handler echoes, beside a control server without attacks. Both share a
CPU; all clients share another. Well-behaved neighbours send 20 bytes twenty times per second to each server.
{witnesses} witnesses exchange seeded streams with the attacked server and compare every byte.
[attacks.py](../tests/attacks.py) has the attacks.

The bars: the neighbours' p99 is at most {ratio:g} times the control's or {p99_ms:g} ms, the larger of the two. Beside
large and medium senders their slowest echo takes at most 150 ms longer than the control's. No byte is wrong or
missing, no session is cut, and the server holds nothing once all clients have left.

Taken by `python tests/hostile.py --markdown --seconds {seconds:g} --seed {seed}` on Linux {kernel}, CPython {python}.

"""


def markdown(plan: Plan, results: Sequence[Result]) -> str:
    """The whole of docs/hostile.md."""
    head = PAGE.format(
        witnesses=plan.witnesses,
        ratio=P99_RATIO_MAX,
        p99_ms=1000 * P99_SECONDS,
        seconds=plan.seconds,
        seed=plan.seed,
        kernel=platform.release(),
        python=platform.python_version(),
    )
    rows = (COLUMNS, len(COLUMNS) * ("---",), *map(row, results))
    return head + "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def main() -> int:
    """0 if all bars are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="both unless given")
    parser.add_argument("--attack", choices=ATTACKS, action="append", help="all unless given")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each attack (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of attackers (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--markdown", action="store_true", help="print docs/hostile.md, and progress to stderr")
    arguments = parser.parse_args()
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    os.chdir(ROOT)
    plan = Plan(seconds=arguments.seconds, scale=arguments.scale, seed=arguments.seed)
    results: list[Result] = []
    failed = False
    output = sys.stderr if arguments.markdown else sys.stdout
    print(*COLUMNS, sep=" | ", file=output, flush=True)
    for name in arguments.attack or ATTACKS:
        for backend in arguments.backend or BACKENDS:
            try:
                with servers(backend) as (beset, control):
                    results.append(run_attack(name, plan, beset, control))
            except AssertionError as error:
                print(name, backend, error, sep=" | ", file=output, flush=True)
                failed = True
                continue
            print(*row(results[-1]), sep=" | ", file=output, flush=True)
            failed |= bool(results[-1].problems)
    if arguments.markdown:
        print(markdown(plan, results))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
