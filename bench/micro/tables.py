"""How a table is measured and printed. The contents of the tables are in run.py and the files beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple


class UnavailableError(Exception):
    """This machine cannot run a candidate; the message says why, in a line."""


class Candidate(NamedTuple):
    """One line of a table."""

    name: str
    run: Callable[[int], int]
    """Handles all its items as many times as it is told, and returns the nanoseconds that took."""
    items: int = 1
    base: int = 0
    """The line that this one is compared with."""
    note: Callable[[], str] = str
    """Further text for the line, asked for after the measurement; nothing by default."""


class Table(NamedTuple):
    """The candidates, and the unit of their lines: one item per nanosecond is `rate` `unit`."""

    title: str
    rate: float
    unit: str
    candidates: list[Candidate]
    compare: str = "ratio"
    """To the line it is compared with, each line's "ratio" or "difference" is shown."""


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    """For each candidate in each round."""


def run(candidate: Candidate, repeats: int) -> int:
    """The nanoseconds that `repeats` repeats took."""
    nanoseconds = candidate.run(repeats)
    if nanoseconds < 0:
        raise RuntimeError(f"{candidate.name} refused its input")
    return nanoseconds


def enough_repeats(candidate: Candidate, seconds: float) -> int:
    """How many repeats take about that long."""
    repeats = 1
    while (nanoseconds := run(candidate, repeats)) < seconds * 1e8:
        repeats *= 4
    return max(1, round(repeats * seconds * 1e9 / nanoseconds))


def measure(candidates: list[Candidate], effort: Effort) -> list[list[float]]:
    """Nanoseconds per item, for each candidate in each round."""
    repeats = [enough_repeats(candidate, effort.seconds) for candidate in candidates]
    results: list[list[float]] = [[] for _ in candidates]
    for _ in range(effort.rounds):
        for candidate, count, result in zip(candidates, repeats, results, strict=True):
            result.append(run(candidate, count) / count / candidate.items)
    return results


def compared(table: Table, base: list[float], own: list[float]) -> str:
    """The median over the rounds of what a line is to another."""
    pairs = list(zip(base, own, strict=True))
    if table.compare == "ratio":
        return f"{statistics.median(first / second for first, second in pairs):>9.2f}x"
    return f"{statistics.median(second - first for first, second in pairs):>+11.1f} ns"


def report(table: Table, effort: Effort) -> None:
    """Measures a table and prints it."""
    results = measure(table.candidates, effort)
    print(f"\n{table.title}")
    for candidate, result in zip(table.candidates, results, strict=True):
        nanoseconds = statistics.median(result)
        rate = table.rate / nanoseconds
        last = compared(table, results[candidate.base], result)
        line = f"  {candidate.name:<18}{nanoseconds:>14,.1f} ns{rate:>10.2f} {table.unit}{last}  {candidate.note()}"
        print(line.rstrip())
