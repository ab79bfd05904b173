"""The queue of what has come in on a connection: messages and fragments, oldest first.

It is a plain list while it is short, because a deque takes 600 bytes even for an idle connection. `max_queue` normally
keeps it short; a long queue is moved into a deque.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar, NamedTuple, TypeAlias

__all__ = ["Discarding", "Fragment", "Inbox", "Item", "as_inbox", "put_back", "queue_marks"]


class Fragment(NamedTuple):
    """One frame of a fragmented message."""

    opcode: int
    """TEXT or BINARY of the first, CONTINUATION of the others."""
    data: bytes
    fin: bool


Item: TypeAlias = str | bytes | Fragment
"""A text message, a binary message, or a fragment."""


class Inbox(deque[Item]):
    """A long queue, with the two methods of a list that a connection calls."""

    LONG: ClassVar[int] = 1024
    """Items above which a list is replaced."""

    def pop(self, index: int = 0) -> Item:
        """Remove and return the oldest item; `index` is 0."""
        return self.popleft()


class Discarding(list[Item]):
    """A queue that ignores new items: the handler has returned, so no code reads them."""

    def append(self, item: Any) -> None:
        """Forget the item."""


def as_inbox(queue: list[Item] | Inbox) -> list[Item] | Inbox:
    """Return the queue in the form that suits its length."""
    return Inbox(queue) if len(queue) > Inbox.LONG and not isinstance(queue, Inbox) else queue


def put_back(queue: list[Item] | Inbox, item: Fragment) -> list[Item] | Inbox:
    """Put items that were taken out back at the front of the queue."""
    queue.insert(0, item)
    return as_inbox(queue)


def queue_marks(max_queue: int | tuple[int | None, int | None] | None) -> tuple[int, int | None]:
    """Return the number of frames above which reading pauses, and the number at which it resumes (None: it never
    pauses).

    Raises ValueError or TypeError.
    """
    high, low = max_queue if isinstance(max_queue, tuple) else (max_queue, None)
    for mark in (high, low):
        if mark is not None and (isinstance(mark, bool) or not isinstance(mark, int)):
            raise TypeError(f"max_queue is an int, a (high, low) tuple of them, or None, not {max_queue!r}")
    if high is None:
        if low is None:
            return Inbox.LONG, None
        high = low * 4
    if low is None:
        low = high // 4
    if low < 0:
        raise ValueError("low must be positive or equal to zero")
    if high < low:
        raise ValueError("high must be greater than or equal to low")
    return high, low
