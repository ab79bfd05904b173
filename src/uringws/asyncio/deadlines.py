"""Deadlines of many connections on one timer of the event loop: no task and no timer per connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Deadlines"]

_Key = TypeVar("_Key")


class Deadlines(Generic[_Key]):
    """Calls `expired(key)` when the time that `start` gave a key has passed, unless `stop` came first.

    Keys with the same number of seconds are kept in the order in which they started, which is also the order in which
    they expire. So starting or stopping one takes the same time, however many there are. There are few different
    numbers of seconds, because they are arguments of `serve`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[_Key], object]) -> None:
        self._loop = loop
        self._expired = expired
        self._due: dict[float, dict[_Key, float]] = {}
        """By number of seconds: the keys, each with the loop's time at which it expires."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._due.values()))

    def start(self, key: _Key, seconds: float) -> None:
        """Let a key expire in so many seconds, in place of any earlier deadline of the same number of seconds."""
        due = self._loop.time() + seconds
        keys = self._due.setdefault(seconds, {})
        keys.pop(key, None)  # to the end of the order
        keys[key] = due
        if self._timer is None or due < self._timer.when():
            self._set_timer(due)

    def stop(self, key: _Key) -> None:
        """Forget a key. It need not be there."""
        for keys in self._due.values():
            keys.pop(key, None)

    def close(self) -> None:
        """Forget all keys."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._run)

    def _run(self) -> None:
        self._timer = None
        now = self._loop.time()
        expired = []
        for seconds, keys in list(self._due.items()):
            for key, due in keys.items():
                if due > now:
                    break
                expired.append((keys, key))
            if not keys:
                del self._due[seconds]
        try:
            while expired:
                keys, key = expired.pop(0)
                if keys.pop(key, None) is not None:
                    self._expired(key)
        finally:
            self._set_next_timer()

    def _set_next_timer(self) -> None:
        first = [next(iter(keys.values())) for keys in self._due.values() if keys]
        if first:
            self._set_timer(min(first))
