"""Timers of a reactor: functions to be called later, on its thread, between two turns. A heap; it waits for nothing."""

from __future__ import annotations

import heapq
import inspect
import time
from typing import TYPE_CHECKING, Any, Final

from uringws.seconds import check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Timer", "Timers"]

_INTERVAL_SECONDS_MIN: Final = 0.001  # a turn waits whole milliseconds
_CANCELLED_MIN: Final = 64
"""The heap is cleared of cancelled timers when it holds more of them than this."""


class Timer:
    """The handle that `Reactor.call_later` and `Reactor.call_every` return: `cancel` stops the timer."""

    __slots__ = ("_arguments", "_due", "_function", "_interval", "_number", "_timers")

    def __init__(
        self, timers: Timers, interval: float | None, function: Callable[..., object], arguments: tuple[Any, ...]
    ) -> None:
        """Only the reactor makes timers."""
        self._timers = timers
        self._interval = interval
        self._function: Callable[..., object] | None = function
        self._arguments = arguments
        self._due = 0.0
        self._number = 0  # the number of its only valid entry in the heap

    @property
    def is_active(self) -> bool:
        """Whether it will call its function: not once it was cancelled, or has called it and does not repeat."""
        return self._function is not None

    def cancel(self) -> None:
        """Do not call the function any more. May be called twice, and by the function itself. Raises WrongThread."""
        self._timers.cancel(self)

    def __repr__(self) -> str:
        """Name it for a log."""
        if self._function is None:
            return "<Timer, over>"
        every = "" if self._interval is None else f" every {self._interval:g} s"
        return f"<Timer of {self._function!r}{every}>"


class Timers:
    """The timers of one reactor. `check` raises in a thread that may not touch them, `report` tells what functions
    raise (`Core.report`).
    """

    def __init__(self, check: Callable[[], object], report: Callable[..., object]) -> None:
        self._check = check
        self._report = report
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = 0
        self._cancelled = 0

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(
        self, seconds: float, interval: float | None, function: Callable[..., object], arguments: tuple[Any, ...]
    ) -> Timer:
        """Add a timer that is due in `seconds`, and then every `interval` seconds unless that is None.

        Raises TypeError or ValueError for anything but seconds and a function.
        """
        self._check()
        if callable(seconds):
            raise TypeError("a timer takes the seconds first and then the function, with its arguments after it")
        if seconds is None:
            raise TypeError("a timer takes a number of seconds, not None")
        check_seconds(seconds)
        if interval is not None and interval < _INTERVAL_SECONDS_MIN:
            raise ValueError(f"an interval of {interval} seconds: it must be {_INTERVAL_SECONDS_MIN} or more")
        if not callable(function):
            raise TypeError(f"a timer takes a function, not {type(function).__name__}")
        if inspect.iscoroutinefunction(function):
            raise TypeError("a timer takes a plain function, not `async def`: a reactor has no event loop to run it")
        timer = Timer(self, interval, function, arguments)
        self._push(timer, time.monotonic() + seconds)
        return timer

    def cancel(self, timer: Timer) -> None:
        """See `Timer.cancel`."""
        self._check()
        if timer._function is None:
            return
        timer._function = None
        timer._arguments = ()
        self._cancelled += 1
        if self._cancelled > _CANCELLED_MIN and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if _is_valid(entry)]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def clear(self) -> None:
        """Forget all timers: the reactor is closed."""
        for _, _, timer in self._heap:
            timer._function = None
            timer._arguments = ()
        self._heap.clear()

    def seconds_left(self) -> float | None:
        """Return the seconds until the next timer is due, 0.0 if it is; None without timers."""
        self._drop_invalid()
        return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None

    def run_due(self) -> None:
        """Call the functions of the timers that are due now, in the order of their times; report their errors.

        A KeyboardInterrupt or another exception that is not an Exception propagates; the other timers stay for the next
        call. A timer that is added meanwhile waits for the next call, even if it is due at once.
        """
        now = time.monotonic()
        last = self._numbers
        while self._drop_invalid() and self._heap[0][0] <= now:
            due, number, timer = self._heap[0]
            if number > last:
                return  # for the next call: otherwise a timer that sets itself again would never let this return
            self._call(timer, due, now)

    def _call(self, timer: Timer, due: float, now: float) -> None:
        function, arguments = timer._function, timer._arguments
        if timer._interval is None:
            # From here to the call nothing can raise: a timer interrupted by a signal before it is still set.
            timer._function, timer._arguments = None, ()
        else:
            # Calls that a busy reactor missed are left out.
            missed = (now - due) // timer._interval
            self._push(timer, due + (missed + 1) * timer._interval)
        try:
            function(*arguments)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - reported
            self._report(error, "the function of a timer failed: %r", function)

    def _push(self, timer: Timer, due: float) -> None:
        self._numbers += 1
        number = self._numbers
        heapq.heappush(self._heap, (due, number, timer))
        timer._number = number  # an earlier entry is valid until here

    def _drop_invalid(self) -> bool:
        """Drop entries of cancelled and of reset timers from the front; return whether an entry is left."""
        while self._heap and not _is_valid(self._heap[0]):
            heapq.heappop(self._heap)
        return bool(self._heap)


def _is_valid(entry: tuple[float, int, Timer]) -> bool:
    return entry[2]._number == entry[1] and entry[2]._function is not None
