"""The turn that Python handles: its events, the current one among them, and that one's payload. No callbacks.

`Message` and `Connection` know their reactor only through this.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from uringws.closing import Close, begin
from uringws.core import EVENTS_MAX
from uringws.errors import check
from uringws.shim import ffi, lib

if TYPE_CHECKING:
    from uringws.batch import Batch
    from uringws.closing import Closing
    from uringws.connection import Connection
    from uringws.core import Core
    from uringws.sessions import Sessions
    from uringws.shim import CData
    from uringws.topics import Topics

__all__ = ["INVALID", "IN_BLOCK", "NO_COLUMN", "Turn", "TurnOutcome"]

IN_BLOCK: Final = 0xFFFFFFFF
"""The offset of a payload that lies in a block of its own, not in the receive pool."""
INVALID: Final = "a message is valid until its handler returns: copy what is to be kept"

_NO_FAILURE: Final[int] = lib.URS_FAILURE_NONE
_STALE: Final[int] = lib.URS_ERROR_STALE
_FIN_OFFSET: Final = ffi.offsetof("struct urs_event", "item") + ffi.offsetof("struct urs_item", "fin")
NO_COLUMN: Final = memoryview(b"")
"""Stands for each column while the current event is not a message."""


class TurnOutcome(IntEnum):
    """The result of a bounded turn."""

    INTERRUPTED = 0
    """A signal came first; its handler has run, and raised nothing."""
    IDLE = 1
    """The time was over, or a watched descriptor became ready."""
    BUSY = 2
    """It called callbacks, and no event is left."""
    CUT_SHORT = 3
    """It called callbacks until its time was over: the next turn hands out the events that are left."""


class Turn:
    """The events of the present turn. One object per reactor, used for all its turns.

    The shim writes a turn's events in columns, the dispatch loop moves `_index` along them, and `Connection` marks in
    `_echo_flags` which messages are to be sent back. Names begin with an underscore because `Message`, which
    applications hold, inherits them; outside of this layer (tests/test_structure.py) nothing uses them.
    """

    __slots__ = (
        "_address",
        "_batch",
        "_columns",
        "_connection",
        "_core",
        "_echo_flags",
        "_events",
        "_fins",
        "_handle",
        "_index",
        "_lengths",
        "_memory",
        "_offsets",
        "_opcodes",
        "_pool",
        "_sessions",
        "_topics",
        "_view",
    )

    def __init__(self, core: Core, sessions: Sessions) -> None:
        """Only the reactor makes it."""
        self._core = core
        self._sessions = sessions
        self._topics: Topics | None = None  # of the reactor, once it has made them
        self._handle: CData = core.handle  # NULL from where `close` begins: no connection can be used then
        self._address = int(ffi.cast("uintptr_t", core.handle))  # the handle for `fast_send`
        self._pool = core.pool
        self._memory = core.memory  # a slice of it is a copy, without a view in between
        self._echo_flags = core.echo_flags
        self._events: CData = lib.urs_reactor_events(core.handle)
        columns = lib.urs_reactor_columns(core.handle)
        self._columns = (
            memoryview(ffi.buffer(columns.offsets, 4 * EVENTS_MAX)).cast("I"),
            memoryview(ffi.buffer(columns.lengths, 4 * EVENTS_MAX)).cast("I"),
            memoryview(ffi.buffer(columns.opcodes, EVENTS_MAX)),
        )
        # One byte of each event: to index them costs a third of a field of a structure.
        events = memoryview(ffi.buffer(self._events, EVENTS_MAX * ffi.sizeof("struct urs_event")))
        self._fins = events[_FIN_OFFSET :: ffi.sizeof("struct urs_event")]
        self._show()
        self._index = EVENTS_MAX  # no event yet
        self._connection: Connection | None = None
        """The one whose message is being handled, while it can be echoed."""
        self._view: memoryview | None = None
        """Of the current payload, once a handler has asked for it."""
        self._batch: Batch | None = None
        """The run that `on_batch` is handling. The index is then that of its first event."""

    def _show(self) -> None:
        """Let the payload at the index be read."""
        self._offsets, self._lengths, self._opcodes = self._columns

    def _hide(self) -> None:
        """Make reading fail: the current event is not a message, and the index may already be that of the next one."""
        self._offsets = self._lengths = self._opcodes = NO_COLUMN

    def _release(self) -> None:
        """End the view of the message that was handled."""
        view, self._view = self._view, None
        if view is not None:
            try:  # noqa: SIM105 - suppress() costs more than everything else here
                view.release()
            except BufferError:
                pass  # The handler keeps a slice. It will show later bytes of the pool, never freed memory.

    def _view_block(self, index: int, length: int) -> memoryview:
        """View a payload that lies in a block. The view holds a reference, so that the block may outlive the turn."""
        item = self._events[index].item
        block = item.block
        if block == ffi.NULL:
            raise RuntimeError(INVALID)
        lib.urs_block_share(block)
        # ffi.buffer keeps the pointer alive, the pointer its share of the block.
        payload = ffi.gc(item.payload, partial(lib.urs_block_drop_for, block), length)
        return memoryview(ffi.buffer(payload, item.bytes))

    def _events_before_close(self, connection: Connection | None) -> int:
        """Return how many of the turn's events must be applied before a close frame on a connection (None: on all).

        These are the events before the current one. If the current one is a message that this connection echoes, it is
        included.
        """
        index = self._index
        if self._batch is not None:
            self._batch._echo_now(connection)
        is_concerned = self._connection is not None and (connection is None or connection is self._connection)
        if not is_concerned or not self._echo_flags[index]:
            return index
        if self._view is None and self._offsets[index] == IN_BLOCK:
            # Applying the echo drops the block, and the handler may still read it.
            self._view = self._view_block(index, self._lengths[index])
        return index + 1

    def _closing(self, connection: Connection) -> Closing | None:
        """Return how a connection ended, or how far its ending has come; None if it has not begun."""
        closing = self._sessions.closings.get(connection)
        if closing is None:
            failure = lib.urs_command_failure(self._handle, connection.id)
            if failure == _NO_FAILURE or failure == _STALE:
                return None
            frame = lib.urs_failure_close(check(failure, "closing"))
            closing = begin(Close(int(frame.code), ffi.string(frame.reason).decode()))
        return closing

    def _begin_closing(self, connection: Connection, closing: Closing, *, aborted: bool = False) -> None:
        """Deliver no more messages of a connection whose close handshake has begun, or which was aborted."""
        self._sessions.begin_closing(connection, closing, aborted=aborted)
        if self._connection is connection:
            self._connection = None  # too late to echo its message

    def _close(self) -> None:
        """Let every call of every connection raise ConnectionClosed, and of the message RuntimeError."""
        self._handle = ffi.NULL
        self._address = 0
        self._index = EVENTS_MAX
