"""Every attack of the hostile client for one second, with a tenth of the attackers; hostile.py measures the figures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attacks import ATTACKS
from hostile import Plan, quantile, run_attack, servers
from servers import ServerProcess
from uringws.backend import Backend

PLAN = Plan(seconds=1.0, scale=0.1, witnesses=3)
WAIT_SECONDS_MAX = 5.0
"""A bound for any machine, under any sanitizer: a neighbour is not starved. How fast it is, hostile.py measures."""


@pytest.fixture(scope="module")
def two_servers(backend: Backend) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    with servers(backend) as both:
        yield both


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_no_other_session_a_byte(two_servers: tuple[ServerProcess, ServerProcess], name: str) -> None:
    beset, control = two_servers
    result = run_attack(name, PLAN, beset, control)
    assert result.lost == []
    assert quantile(result.neighbour, 1) < quantile(result.control, 1) + WAIT_SECONDS_MAX
    assert result.tally.connections >= 2
    assert beset.process.poll() is None
