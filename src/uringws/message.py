"""The message that a handler is given: one object a reactor, pointed at each message of a turn in its turn.

Reading it costs nothing until it is asked for: the payload stays where the kernel put it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from uringws.shim import ffi, lib

__all__ = ["Message"]

_IN_BLOCK: Final = 0xFFFFFFFF
_NO_COLUMN: Final = memoryview(b"")
_INVALID: Final = "a message is valid until its handler returns: copy what is to be kept"


class Message:
    """A message (to `on_frame`: a frame). Valid until the handler returns; copy with `bytes(message)` or `text()`.

    After the return `data` is released, and reading it raises ValueError (a slice taken of it shows what lies there by
    then, never freed memory); once the turn is over, all else raises RuntimeError. The object is used again for the
    next message. `len(message)` is the payload's size in bytes.
    """

    __slots__ = (
        "_address",
        "_columns",
        "_connection",
        "_core",
        "_events",
        "_index",
        "_lengths",
        "_memory",
        "_offsets",
        "_opcodes",
        "_pool",
        "_reactor",
        "_verdicts",
        "_view",
    )

    def __init__(self, reactor: Any, core: Any, pool: memoryview, verdicts: bytearray) -> None:
        """Only the reactor makes messages."""
        self._reactor = reactor
        self._core = core
        self._address = int(ffi.cast("uintptr_t", core))  # for `fast_send`
        self._pool = pool
        self._memory: Any = pool.obj  # the mmap itself: a slice of it is a copy, without a view in between
        self._verdicts = verdicts
        self._events = lib.urs_reactor_events(core)
        count = lib.URS_EVENTS_MAX
        columns = lib.urs_reactor_columns(core)
        self._columns = (
            memoryview(ffi.buffer(columns.offsets, 4 * count)).cast("I"),
            memoryview(ffi.buffer(columns.lengths, 4 * count)).cast("I"),
            memoryview(ffi.buffer(columns.opcodes, count)),
        )
        self._show()
        self._index: int = count  # beyond the columns: no message yet
        self._connection: Any = None
        self._view: memoryview | None = None

    @property
    def opcode(self) -> int:
        """TEXT (1) or BINARY (2); of a frame also CONTINUATION (0)."""
        try:
            opcode: int = self._opcodes[self._index]
        except IndexError:
            raise RuntimeError(_INVALID) from None
        return opcode

    @property
    def fin(self) -> bool:
        """Whether this is the end of its message; always True in `on_message`."""
        self.opcode  # noqa: B018 - raises if there is nothing to be read
        return bool(self._events[self._index].item.fin)

    @property
    def is_text(self) -> bool:
        """Whether the opcode is TEXT; the payload is valid UTF-8 then."""
        return bool(self.opcode == lib.URS_OPCODE_TEXT)

    @property
    def data(self) -> memoryview:
        """The payload: a writable memoryview of bytes ("B", one dimension), without a copy.

        What is changed here is what `conn.echo()` sends. numpy.frombuffer(message.data, ...) costs no copy either.
        """
        view = self._view
        if view is None:
            index = self._index
            try:
                offset = self._offsets[index]
            except IndexError:
                raise RuntimeError(_INVALID) from None
            in_pool = offset != _IN_BLOCK
            view = self._pool[offset : offset + self._lengths[index]] if in_pool else self._block_view()
            self._view = view
        return view

    def text(self) -> str:
        """Return a copy of the payload, decoded. Raises UnicodeDecodeError for binary that is not UTF-8."""
        return self.__bytes__().decode()

    def __bytes__(self) -> bytes:
        """Return a copy of the payload."""
        index = self._index
        try:
            offset = self._offsets[index]
        except IndexError:
            raise RuntimeError(_INVALID) from None
        if offset == _IN_BLOCK:
            return bytes(self.data)
        payload: bytes = self._memory[offset : offset + self._lengths[index]]
        return payload

    def __len__(self) -> int:
        """Return the payload's size in bytes."""
        try:
            return int(self._lengths[self._index])
        except IndexError:
            raise RuntimeError(_INVALID) from None

    def __repr__(self) -> str:
        """Name it for a log."""
        if self._index >= len(self._opcodes):
            return "<Message, no longer valid>"
        return f"<Message opcode={self.opcode} bytes={len(self)}>"

    def _show(self) -> None:
        """Let the message at the index be read."""
        self._offsets, self._lengths, self._opcodes = self._columns

    def _hide(self) -> None:
        """Let nothing be read: the event at hand is no message, and the index may already be that of the next event."""
        self._offsets = self._lengths = self._opcodes = _NO_COLUMN

    def _owed(self, connection: Any) -> int:
        """Return how many of the turn's events must be carried out before a close frame on a connection (None: on all):
        the events before the message at hand, and this message as well if it is to be echoed on that connection.
        """
        index: int = self._index
        mine = self._connection is not None and (connection is None or connection is self._connection)
        if not mine or not self._verdicts[index]:
            return index
        if self._offsets[index] == _IN_BLOCK:
            self.data  # noqa: B018 - the view shares the block, which else went with the echo
        return index + 1

    def _block_view(self) -> memoryview:
        """View a payload that lies on the heap: the view shares the block, which so outlives the turn if need be."""
        item = self._events[self._index].item
        block = item.block
        if block == ffi.NULL:
            raise RuntimeError(_INVALID)
        lib.urs_block_share(block)
        # ffi.buffer keeps the pointer alive, the pointer its share of the block.
        payload = ffi.gc(item.payload, partial(lib.urs_block_drop_for, block), self._lengths[self._index])
        return memoryview(ffi.buffer(payload, item.bytes))

    def _release(self) -> None:
        """End the view of the message that was handled."""
        view, self._view = self._view, None
        if view is not None:
            try:  # noqa: SIM105 - suppress() costs more than all else that a message costs
                view.release()
            except BufferError:
                pass  # The handler keeps a slice: it will show whatever the pool holds then, but nothing freed.
