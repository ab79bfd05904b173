"""The states of a reactor from its creation to its end, and the states that may follow each. No actions."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

__all__ = ["MAY_FOLLOW", "RunState"]


class RunState(Enum):
    """A reactor's state. It does not tell whether a call of `run` is in progress: `Reactor` knows that."""

    NEW = auto()
    """Made; no thread has run it, so it belongs to none."""
    SERVING = auto()
    """It belongs to a thread and takes connections."""
    DRAINING = auto()
    """It takes no connection and waits for its sessions to close."""
    READING_LAST = auto()
    """The drain's time is over. Input that arrived while the thread was blocked is still read."""
    CUT = auto()
    """The sessions that outlasted the drain were cut; their handlers are still to be called."""
    CLOSING = auto()
    """`close` calls `on_close` for every connection."""
    CLOSED = auto()
    """Everything is freed."""
    INHERITED = auto()
    """A copy in a forked child: the original continues to run in the parent process."""


_ENDS: Final = frozenset({RunState.CLOSING, RunState.CLOSED, RunState.INHERITED})  # CLOSED: collected, never closed

MAY_FOLLOW: Final = {
    RunState.NEW: {RunState.SERVING} | _ENDS,
    RunState.SERVING: {RunState.DRAINING} | _ENDS,
    RunState.DRAINING: {RunState.READING_LAST, RunState.CUT} | _ENDS,
    RunState.READING_LAST: {RunState.CUT} | _ENDS,
    RunState.CUT: _ENDS,
    RunState.CLOSING: {RunState.CLOSED, RunState.INHERITED},
    RunState.CLOSED: frozenset(),
    RunState.INHERITED: {RunState.CLOSED},
}
"""The states that may follow each state."""
