"""The turns of a reactor for an event loop that takes them itself, in place of `Reactor.run`. No event loop in here."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from uringws.seconds import sooner
from uringws.turn import TurnOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uringws.connection import Connection
    from uringws.reactor import Reactor

__all__ = ["Driver"]


class Driver:
    """Takes the turns of one reactor."""

    def __init__(self, reactor: Reactor) -> None:
        """Take none yet."""
        self._reactor = reactor
        self.on_stop: Callable[[], object] | None = None
        """Called after the turn in which `Reactor.stop` was called, from whatever thread."""

    @contextlib.contextmanager
    def driving(self) -> Iterator[None]:
        """For as long as the loop runs: `run` and `close` of the reactor are refused, and `drain` only begins.

        Raises what `Reactor.run` raises where it cannot run.
        """
        reactor = self._reactor
        reactor._enter()
        reactor._is_running = True
        try:
            yield
        finally:
            reactor._is_running = False
            reactor._stop_requested = False

    def take_turn(self, timeout: float | None, seconds: float) -> TurnOutcome:
        """Take one turn: wait at most `timeout` seconds (None: without end), and call back for about `seconds`."""
        reactor = self._reactor
        reactor._core.start()
        if reactor._drain.is_due:
            reactor._drain.take_next_step()
        outcome = reactor._dispatcher.take_bounded_turn(sooner(timeout, reactor._wait_limit()), seconds)
        if reactor._timers:
            reactor._timers.run_due()
            outcome = max(outcome, TurnOutcome.BUSY)
        if reactor._stop_requested and self.on_stop is not None:
            reactor._stop_requested = False
            self.on_stop()
        return outcome

    def check_may_close(self) -> None:
        """Raise what `Reactor.close` would raise."""
        self._reactor._check_may_close()

    def hand_failures_to(self, take: Callable[[str, Exception, Connection | None], object]) -> None:
        """Set the function that is called with an exception of a callback, a sentence about it and its connection,
        instead of the log.
        """
        self._reactor._core.on_failure = take
