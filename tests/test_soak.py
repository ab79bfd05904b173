"""A short soak on each backend; see soak.py for longer ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from soak import NO_SESSION, RSS_GROWTH_BYTES_MAX, WEIGHTS, draw_script, soak
from uringws.backend import Backend

SECONDS = float(os.environ.get("URINGWS_SOAK_SECONDS", "10"))


@pytest.mark.timeout(SECONDS + 110)
def test_a_soak_loses_nothing_and_leaks_nothing(backend: Backend) -> None:
    report = soak(backend, SECONDS, tell=print)
    assert report.problems == []
    assert report.bytes_lost == 0
    if "libasan" not in Path("/proc/self/maps").read_text(encoding="utf-8"):  # whose own memory it would be
        assert report.growth < RSS_GROWTH_BYTES_MAX, report.resident
    assert set(report.visitors) == set(WEIGHTS)
    taken = report.visitors.total() - sum(report.visitors[kind] for kind in NO_SESSION)
    assert 0 < report.stats.accepted <= taken
    assert report.stats.sends_short > 0
    assert report.stats.pings_sent > 0


def test_a_seed_makes_the_same_visitors_again() -> None:
    for number in range(20):
        assert draw_script(1, number) == draw_script(1, number)
    assert draw_script(1, 0) != draw_script(2, 0)
