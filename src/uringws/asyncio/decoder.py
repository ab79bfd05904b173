"""Bytes of one connection in, frames out: the shim's engine for a transport that is no socket of the ring's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from uringws.shim import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RECEIVE_BYTES", "Decoder", "DecoderShared", "Frame"]

RECEIVE_BYTES: Final = 256 * 1024
"""The most that one read of a transport brings."""
_BYTES_MAX: Final = 2**63 - 1


class Frame(NamedTuple):
    """What the peer sent."""

    kind: int
    """URS_ITEM_FRAME, _PING, _PONG, _CLOSE or _FAILED."""
    opcode: int
    fin: bool
    payload: bytes
    """Of a close frame: the reason; of a failure: what the peer did wrong, as UTF-8."""
    code: int
    """The close code of a close frame (1005: none) or a failure; else 0."""


class DecoderShared:
    """What the decoders of one server have in common: the rules, and the buffer into which each read goes."""

    def __init__(self, message_bytes_max: int | None) -> None:
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.data = ffi.from_buffer("uint8_t[]", self.buffer)
        self.rules = ffi.new("struct urs_engine_rules *")
        self.rules.message_bytes_max = message_bytes_max or _BYTES_MAX
        self.rules.frames = True
        self.input = ffi.new("struct urs_input *")
        self.item = ffi.new("struct urs_item *")


class Decoder:
    """The protocol's state of one connection, RFC 6455 5."""

    __slots__ = ("_engine", "_memory", "_shared")

    def __init__(self, shared: DecoderShared) -> None:
        self._shared = shared
        memory = self._memory = ffi.new("struct urs_memory *")
        # One destructor for both: the engine's blocks are charged to the memory.
        self._engine: Any = ffi.gc(
            ffi.new("struct urs_engine *"),
            lambda engine: (lib.urs_engine_clear(engine), lib.urs_memory_clear(memory)),
        )

    def feed(self, size: int) -> Iterator[Frame]:
        """Take in the first `size` bytes of the buffer, and return the frames that they complete.

        The iterator must be read to its end, or given up together with the connection.
        """
        shared = self._shared
        item, source = shared.item, shared.input
        source.next, source.end = shared.data, shared.data + size
        while True:
            kind = lib.urs_engine_next(self._engine, shared.rules, self._memory, source, item)
            if kind == lib.URS_ITEM_NONE:
                return
            if kind == lib.URS_ITEM_FAILED:
                payload = ffi.string(lib.urs_engine_error_text(item.error))
            else:
                payload = bytes(ffi.buffer(item.payload, item.bytes)) if item.bytes else b""
            if item.block:
                lib.urs_block_drop(item.block)
                item.block = ffi.NULL
            yield Frame(kind, item.opcode, item.fin, payload, item.close_code)

    def clear(self) -> None:
        """Give up what is held of unfinished frames; nothing more is taken in."""
        lib.urs_engine_clear(self._engine)
