"""The arithmetic: medians with spread, ratios between servers which were visited in turn, geometric means.

Absolute figures drift by half on a shared machine; two measurements of the same round do so together. So servers are
compared within each round, and it is the ratios of which the median is taken.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cases import CASES, Metric, Mode


@dataclass(frozen=True)
class Spread:
    """A median, and the quartiles around it (the extremes, if there are fewer than four values)."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError if there are no values."""
    if not values:
        raise ValueError("no values")
    if len(values) < 4:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high, len(values))


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios: twice as fast and half as fast are 1 together."""
    return math.exp(statistics.fmean(map(math.log, values)))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One visit to one server."""

    server: str
    case: str
    mode: Mode
    round: int
    values: dict[str, float]
    """By Metric.key, and more."""


@dataclass
class Measurements:
    """All of a run, and what can be asked of them. A question to which there is no answer gets None."""

    all: list[Measurement] = field(default_factory=list)

    def servers(self) -> list[str]:
        """In the order in which they were visited first."""
        return list(dict.fromkeys(measurement.server for measurement in self.all))

    def cases(self, mode: Mode) -> list[str]:
        """In the order of the table of cases."""
        measured = {measurement.case for measurement in self.all if measurement.mode == mode}
        return [name for name in CASES if name in measured]

    def by_round(self, server: str, case: str, mode: Mode, key: str) -> dict[int, float]:
        """A number of each visit to a server in a case."""
        return {
            one.round: one.values[key]
            for one in self.all
            if (one.server, one.case, one.mode) == (server, case, mode) and key in one.values
        }

    def value(self, server: str, case: str, mode: Mode, key: str | None = None) -> Spread | None:
        """By default, of the number that decides."""
        found = self.by_round(server, case, mode, key or CASES[case].metric(mode).key)
        return spread(list(found.values())) if found else None

    def ratio(self, server: str, against: str, case: str, mode: Mode) -> Spread | None:
        """How many times as good `server` is: above 1 it answers more, needs less CPU time, less memory, is sooner."""
        metric: Metric = CASES[case].metric(mode)
        own = self.by_round(server, case, mode, metric.key)
        other = self.by_round(against, case, mode, metric.key)
        ratios = [
            own[turn] / other[turn] if metric.more_is_better else other[turn] / own[turn]
            for turn in own
            if other.get(turn, 0) > 0 and own[turn] > 0
        ]
        return spread(ratios) if ratios else None

    def geometric_mean(self, server: str, against: str, cases: Iterable[str], mode: Mode) -> float | None:
        """Of the ratios in all of `cases`; None if one is missing."""
        ratios = [self.ratio(server, against, case, mode) for case in cases]
        if not ratios or any(ratio is None for ratio in ratios):
            return None
        return geometric_mean(ratio.median for ratio in ratios if ratio is not None)

    def difference(self, server: str, against: str, case: str, mode: Mode, key: str) -> Spread | None:
        """How much more of `key` the server has, round by round."""
        own = self.by_round(server, case, mode, key)
        other = self.by_round(against, case, mode, key)
        differences = [own[turn] - other[turn] for turn in own if turn in other]
        return spread(differences) if differences else None
