"""The queue of commands from other threads to a reactor: bounded, in order, run between two turns."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any

from uringws.errors import ReactorStateError, SenderFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.core import Core

__all__ = ["Commands"]

_CLOSED = "the reactor was closed, or its thread ended, before it came to the command"


class Commands:
    """Functions that wait for the reactor's thread, each with a Future if another thread awaits its result."""

    def __init__(self, core: Core, commands_max: int) -> None:
        self.waiting: deque[tuple[Callable[[], Any], Future[Any] | None]] = deque()
        self._core = core
        self._commands_max = commands_max
        self.senders: set[object] = set()
        """One key per Sender that lives. Changing it takes no lock, because a Sender may be collected in any thread."""
        self.renew_lock()
        core.owner.on_end = self.drop_all

    def renew_lock(self) -> None:
        """Make the lock that guards the queue, and on which threads wait that find it full."""
        self._changed = threading.Condition()

    # ---- for any thread

    def check_open(self) -> None:
        """Raise ReactorStateError if no thread can run a command any more."""
        self._core.check_usable()
        if self._core.owner.has_ended:
            raise ReactorStateError(
                "the thread that ran the reactor has ended, so no command can be run: close the reactor"
            )

    def put(self, function: Callable[[], Any], timeout: float | None, future: Future[Any] | None = None) -> None:
        """Add a function. While the queue is full wait up to `timeout` seconds, then raise SenderFull.

        `future` gets the function's result or exception; without a future, an exception is logged. If the future is
        cancelled before the reactor comes to it, the function is not called. If the reactor is closed or its thread
        ends first, the future gets a ReactorStateError.
        """
        with self._changed:
            self.check_open()
            if len(self.waiting) >= self._commands_max:
                self._wait_for_room(timeout)
            self.waiting.append((function, future))
        self._core.wake()

    def _wait_for_room(self, timeout: float | None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        while len(self.waiting) >= self._commands_max:
            left = None if until is None else until - time.monotonic()
            if self._core.owner.is_caller or (left is not None and left <= 0):
                raise SenderFull(f"{self._commands_max} commands wait for the reactor (Options.sender_commands_max)")
            self._changed.wait(left)
            self.check_open()

    def remove_sender(self, key: object) -> None:
        """Forget a Sender; it may be forgotten already. `run` goes on while there is one."""
        self.senders.discard(key)
        self._core.wake()

    # ---- for the reactor's thread

    def run(self) -> None:
        """Call the functions that waited when the turn ended."""
        waiting = self.waiting
        for _ in range(len(waiting)):
            function, future = waiting[0]
            try:
                # From here to the function's start no signal handler can raise: it is called, or it still waits.
                del waiting[0]
                if future is None:
                    function()
                elif future.set_running_or_notify_cancel():
                    future.set_result(function())
            except Exception as error:  # noqa: BLE001 - reported
                if future is None:
                    self._core.report(error, "a command of a Sender failed")
                else:
                    _fail(future, error)
            except BaseException:
                if future is not None:
                    _fail(future, ReactorStateError("the reactor was interrupted while it carried out the command"))
                raise
        with self._changed:
            self._changed.notify_all()

    def drop_all(self) -> None:
        """Drop all commands: the reactor is closed, or its thread ends.

        Threads that wait for room or for a result get ReactorStateError.
        """
        with self._changed:
            dropped = list(self.waiting)
            self.waiting.clear()
            self._changed.notify_all()
        for _, future in dropped:
            if future is not None and future.set_running_or_notify_cancel():
                _fail(future, ReactorStateError(_CLOSED))


def _fail(future: Future[Any], error: Exception) -> None:
    """Let a future raise `error`, unless it is done."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
