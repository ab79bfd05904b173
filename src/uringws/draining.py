"""A drain's deadline, and the steps by which it ends. The reactor begins it and takes its turns."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from uringws.run_state import RunState
from uringws.shim import lib

if TYPE_CHECKING:
    from uringws.core import Core

__all__ = ["Drain"]

logger = logging.getLogger("uringws")

_LAST_READ_SECONDS: Final = 0.2
"""Time at the end of a drain for reading input that has arrived already."""
_CUT_SECONDS: Final = 1.0
"""Time after the cut for the completions of the sessions that were cut."""


class Drain:
    """The drain of one reactor, before and after it begins."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._until: float | None = None

    def begin(self, seconds: float) -> None:
        """Set the deadline, the first time or again. The reactor has an owner."""
        if self._core.state is RunState.SERVING:
            self._core.become(RunState.DRAINING)
        self._until = time.monotonic() + seconds

    @property
    def is_due(self) -> bool:
        """Whether a drain has begun and its deadline is over."""
        return self._until is not None and time.monotonic() >= self._until

    def seconds_left(self) -> float | None:
        """Return the seconds to the deadline, 0.0 if it is over; None without a drain."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def take_next_step(self) -> bool:
        """Act on the deadline: read once what is unread, then cut the sessions that are left.

        Return whether a turn is needed for that; after the cut it is not.
        """
        core = self._core
        sessions = core.sessions
        self._until = time.monotonic() + _CUT_SECONDS
        if core.state is RunState.CUT or not sessions:
            return False
        if core.state is RunState.DRAINING and lib.urs_reactor_unread(core.handle):
            # This thread was blocked: peers have answered, and their answers have not been read yet.
            core.become(RunState.READING_LAST)
            self._until = time.monotonic() + _LAST_READ_SECONDS
            return True
        core.become(RunState.CUT)
        logger.warning("%d sessions outlasted the drain and are cut", sessions)
        lib.urs_reactor_cut(core.handle)
        return True
