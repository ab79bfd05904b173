"""The selector of the event loop: its `select` is one turn of a reactor. No coroutines, no policy of the loop."""

from __future__ import annotations

import selectors
import time
from typing import TYPE_CHECKING, Any, Final

from uringws.turn import TurnOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uringws.asyncio.waiters import Wakeups
    from uringws.driver import Driver
    from uringws.reactor import Reactor
    from uringws.watches import Watch

__all__ = ["ReactorSelector"]

_CALLBACK_SECONDS: Final = 0.001
"""About how long one turn may call callbacks. Timers and tasks of the loop wait that long."""


class ReactorSelector(selectors.BaseSelector):
    """A selector whose `select` takes one turn of a reactor, and so calls the handlers of its sessions.

    The file objects that are registered here stand in an epoll of their own. The reactor watches its descriptor, so
    that their readiness ends the turn. `close` leaves the reactor open.
    """

    def __init__(self, reactor: Reactor, driver: Driver, wakeups: Wakeups | None = None) -> None:
        """The reactor is not touched before the first `select`, which may be another thread's.

        `wakeups` are those of the loop, whose tasks messages resume.
        """
        self._reactor = reactor
        self._driver = driver
        self._wakeups = wakeups
        self._others = selectors.EpollSelector()
        self._others_ready = False
        self._watch: Watch | None = None

    def _note_others(self) -> None:
        self._others_ready = True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Take a turn; return the keys that are ready, as `selectors.BaseSelector` says.

        Waits whole milliseconds, rounded up as EpollSelector does, so that a timer of the loop is due afterwards. Also
        returns, with an empty list, once the turn has called back. A signal whose handler raises nothing does not
        end the wait (PEP 475).
        """
        if self._watch is None:
            self._watch = self._reactor.watch(self._others.fileno(), self._note_others)
        wakeups = self._wakeups
        if wakeups is not None and wakeups.in_turn is not None:
            wakeups.end_turn()  # an exception got out of the last turn
            timeout = 0  # the loop looks at what that made ready
        until = None
        if timeout is not None and timeout > 0:
            until = time.monotonic() + timeout
        elif timeout is not None:
            timeout = 0
        while True:
            outcome = self._driver.take_turn(timeout, _CALLBACK_SECONDS)
            if wakeups is not None and wakeups.in_turn is not None:
                wakeups.end_turn()
            if self._others_ready or outcome is TurnOutcome.CUT_SHORT:
                # Looked at once: the next turn reports again what stays ready. A turn that only goes on with the events
                # of the last one reports nothing.
                self._others_ready = False
                return self._others.select(0)
            if outcome is not TurnOutcome.INTERRUPTED or timeout == 0:
                return []
            if until is not None:
                timeout = max(0, until - time.monotonic())

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Register a file object, as `selectors.BaseSelector` says."""
        return self._others.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Unregister a file object, as `selectors.BaseSelector` says."""
        return self._others.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Change what a file object is registered for, as `selectors.BaseSelector` says."""
        return self._others.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return the key of a file object, as `selectors.BaseSelector` says."""
        return self._others.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return the keys by file object, as `selectors.BaseSelector` says."""
        return self._others.get_map()

    def unwatch(self) -> None:
        """Take no more turns: the reactor is to be closed. Twice is fine."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    def close(self) -> None:
        """Watch no more, and forget all file objects. Twice is fine."""
        try:
            self.unwatch()
        finally:
            self._others.close()
