"""A message that is framed once and kept, to be sent any number of times."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from uringws.sending import ABSENT, check_publish, name_opcode
from uringws.shim import ffi, lib

if TYPE_CHECKING:
    from uringws.shim import CData

__all__ = ["Frame", "make_frame"]

_BYTES: Final = ffi.typeof("uint8_t[]")
_BLOCK_OVERHEAD: Final = 64


class Frame:
    """A message, text or binary, with its header: `Reactor.frame` makes it.

    It can be sent by any reactor in any thread, as often as you like: `Connection.send(frame)`,
    `Topic.publish(frame)`, `Reactor.broadcast(frame)`, and likewise through a Sender. Nothing of it is copied for a
    peer that reads. It never changes. Its memory is freed when the application has let go of it and it has left
    everywhere; it is the application's, and not charged to `Options.memory_bytes_max`. The part that a slow reader
    still waits for is charged to its reactor, as with every message.

    `len(frame)` is the payload's size in bytes, `bytes(frame)` a copy of it. It is hashable and compares by identity.
    """

    __slots__ = ("__weakref__", "_block", "data", "opcode")

    opcode: int
    """TEXT (1) or BINARY (2)."""
    data: memoryview
    """The payload, read-only and without a copy. It may be kept."""

    def __init__(self, opcode: int, payload: bytes | bytearray | memoryview) -> None:
        """Use `Reactor.frame`."""
        with ffi.from_buffer(_BYTES, payload) as buffer:
            block: CData = lib.urs_prepared_new(opcode, buffer, len(buffer))
        if block == ffi.NULL:
            raise MemoryError(f"no memory for a frame of {len(payload)} bytes")
        count = lib.urs_prepared_payload_bytes(block)
        # ffi.buffer keeps the pointer alive, the pointer the reference to the block.
        drop = partial(lib.urs_block_drop_for, block)
        start = ffi.gc(lib.urs_prepared_payload(block), drop, _BLOCK_OVERHEAD + count)
        self.data = memoryview(ffi.buffer(start, count)).toreadonly()
        self.opcode = opcode
        self._block = block

    def text(self) -> str:
        """Return a copy of the payload, decoded. Raises UnicodeDecodeError for binary that is not UTF-8."""
        return bytes(self.data).decode()

    def __bytes__(self) -> bytes:
        """Return a copy of the payload."""
        return bytes(self.data)

    def __len__(self) -> int:
        """Return the payload's size in bytes."""
        return self.data.nbytes

    def __bool__(self) -> bool:
        """True, also for an empty payload."""
        return True

    def __sizeof__(self) -> int:
        """Return the memory that it takes, in bytes, with its payload."""
        return object.__sizeof__(self) + _BLOCK_OVERHEAD + len(self)

    def __repr__(self) -> str:
        """Name it for a log."""
        return f"<Frame opcode={self.opcode} bytes={len(self)}>"


def make_frame(opcode: Any, payload: Any = ABSENT) -> Frame:
    """Return a frame. See `Reactor.frame`."""
    if payload is ABSENT:
        opcode, payload = name_opcode(opcode)
    number, data = check_publish(opcode, payload)
    return Frame(int(number), data)
