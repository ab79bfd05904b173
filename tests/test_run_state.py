"""RunState and its table of transitions: every state can be reached, none twice, and each leads to CLOSED."""

from __future__ import annotations

import pytest

from servers import Silent
from uringws import Reactor
from uringws.backend import Backend
from uringws.run_state import MAY_FOLLOW, RunState


def reachable(start: RunState) -> set[RunState]:
    """The states that can come after `start`, at once or later."""
    found: set[RunState] = set()
    waiting = [start]
    while waiting:
        for state in MAY_FOLLOW[waiting.pop()] - found:
            found.add(state)
            waiting.append(state)
    return found


def test_every_state_has_a_row() -> None:
    assert set(MAY_FOLLOW) == set(RunState)


def test_every_state_can_be_reached_and_none_twice() -> None:
    assert reachable(RunState.NEW) == set(RunState) - {RunState.NEW}
    assert [state for state in RunState if state in reachable(state)] == []


@pytest.mark.parametrize("state", [state for state in RunState if state is not RunState.CLOSED])
def test_every_state_can_end(state: RunState) -> None:
    assert RunState.CLOSED in reachable(state)


def test_a_step_that_the_table_lacks_fails(backend: Backend) -> None:
    with Reactor(Silent(), backend=backend) as reactor, pytest.raises(AssertionError, match=r"CUT.*NEW"):
        reactor._core.become(RunState.CUT)


def test_a_reactor_goes_through_its_states(backend: Backend) -> None:
    reactor = Reactor(Silent(), backend=backend)
    seen = [reactor._core.state]
    reactor.run_once(0)
    seen.append(reactor._core.state)
    reactor.drain(0)
    seen.append(reactor._core.state)
    reactor.close()
    seen.append(reactor._core.state)
    assert seen == [RunState.NEW, RunState.SERVING, RunState.DRAINING, RunState.CLOSED]
