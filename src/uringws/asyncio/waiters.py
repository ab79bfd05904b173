"""How a task waits for a message: an awaitable that is used again and again, and the list of those to be resumed.

A future per message would cost a callback of the event loop each. Here one callback resumes all tasks that became ready
in one iteration; on the ring the turn itself resumes them.
"""

from __future__ import annotations

import asyncio
import itertools
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context

__all__ = ["Waiter", "Wakeups"]


class _State(IntEnum):
    IDLE = 0
    WAITING = 1
    WOKEN = 2
    """On the list of its `Wakeups`."""
    CANCELLED = 3
    """Likewise; the task is to be resumed with CancelledError."""


_IDLE: Final = _State.IDLE
_WAITING: Final = _State.WAITING
_WOKEN: Final = _State.WOKEN
_CANCELLED: Final = _State.CANCELLED


class Wakeups:
    """The waiters of one event loop whose tasks are to be resumed."""

    __slots__ = ("_loop", "_waiters", "get_loop", "in_turn")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiters: list[Waiter] = []
        """Resumed by the next iteration, in order."""
        self.in_turn: Waiter | None = None
        """Woken by a message of the present turn: resumed when one of another connection wakes the next waiter, or else
        at the end of the turn. Its task then finds all messages that came together, and a large one in the CPU caches.
        """
        self.get_loop: Callable[[], asyncio.AbstractEventLoop] = itertools.repeat(loop).__next__
        """Returns the event loop of the tasks. A function in C: a task calls it each time it waits."""

    def add(self, waiter: Waiter) -> None:
        """Resume the task of a waiter, which must not be on the list yet."""
        waiters = self._waiters
        if not waiters:
            self._loop.call_soon(self._resume)
        waiters.append(waiter)

    def end_turn(self) -> None:
        """Resume the task that the last message of a turn has woken."""
        waiter, self.in_turn = self.in_turn, None
        if waiter is not None:
            waiter.resume()

    def _resume(self) -> None:
        waiters, self._waiters = self._waiters, []
        iterator = iter(waiters)
        try:
            for waiter in iterator:
                waiter.resume()
        finally:
            # Only what is no error, KeyboardInterrupt for example, gets out of a task's step. The others still wait.
            left = list(iterator)
            if left:
                if not self._waiters:
                    self._loop.call_soon(self._resume)
                self._waiters[:0] = left


class Waiter:
    """An awaitable for one task at a time, which may wait on it any number of times.

    To the task it is a future (asyncio's protocol of `_asyncio_future_blocking`), except that `Wakeups` runs its
    callback, without a handle of its own.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_message", "_state", "_wakeups", "get_loop")

    def __init__(self, wakeups: Wakeups) -> None:
        self._asyncio_future_blocking = False
        self._wakeups = wakeups
        self._state: _State = _IDLE
        self._callback: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._message: object = None
        self.get_loop = wakeups.get_loop
        """Returns the loop whose tasks may wait on it; asyncio raises an error for a task of another loop."""

    def __await__(self) -> Generator[Waiter, None, None]:
        self._asyncio_future_blocking = True
        self._state = _WAITING
        yield self

    def wake(self) -> None:
        """Resume the task in the next iteration, if it waits and is not being resumed already."""
        if self._state is _WAITING:
            self._state = _WOKEN
            wakeups = self._wakeups
            if wakeups._waiters:
                wakeups._waiters.append(self)  # `Wakeups.add`, written out
            else:
                wakeups.add(self)

    def wake_in_turn(self) -> None:
        """Do as `wake` for a message of the turn that is being dispatched; resume the task that was woken before."""
        if self._state is _WAITING:
            self._state = _WOKEN
            wakeups = self._wakeups
            earlier = wakeups.in_turn
            wakeups.in_turn = self
            if earlier is not None:
                earlier.resume()

    def resume(self) -> None:
        """Run the next step of the task that was woken."""
        callback, context = self._callback, self._context
        self._callback = None
        if callback is not None and context is not None:
            context.run(callback, self)

    # ---- what a task asks of a future

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        """Keep the task's way to be resumed."""
        self._callback = callback
        self._context = context

    def cancel(self, msg: object = None) -> bool:
        """Resume the task with CancelledError; False if it is being resumed already."""
        if self._state is not _WAITING:
            return False
        self._state = _CANCELLED
        self._message = msg
        self._wakeups.add(self)
        return True

    def result(self) -> None:
        """Raise CancelledError if it was cancelled."""
        if self._state is _CANCELLED:
            message, self._message = self._message, None
            raise asyncio.CancelledError() if message is None else asyncio.CancelledError(message)
