"""The engine on its own: one connection's protocol without any I/O, for other loops and for tests."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple, overload

from uringws.errors import ConnectionClosed, check
from uringws.frames import CloseCode, Opcode
from uringws.sending import ABSENT, check_close, check_send, name_opcode
from uringws.shim import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.sending import Payload

__all__ = ["EngineMessage", "OutboundSegment", "ServerEngine"]


_MESSAGE_BYTES_MAX: Final = 2**63 - 1  # RFC 6455 5.2: a frame can be no larger


class _Exclusive:
    """Lets one thread at a time into an engine, as often as it likes, and raises in the others."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("another thread is using this engine: an engine is for one thread at a time")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class OutboundSegment(NamedTuple):
    """Contiguous bytes to send: [start, stop), in bytes, of what `local` names."""

    local: bool
    """True: of `outbound_local()`. False: of the data given to `process_into`."""
    start: int
    stop: int


class EngineMessage:
    """A message, or under `frames` a frame, that the engine found. Valid until the next call of the engine."""

    __slots__ = ("_engine", "_item", "data", "fin", "opcode")

    def __init__(self, engine: ServerEngine, item: Any, data: memoryview) -> None:
        """Only the engine makes them."""
        self._engine = engine
        self._item = item
        self.opcode = Opcode(item.opcode)
        """TEXT or BINARY; of a frame also CONTINUATION."""
        self.fin = bool(item.fin)
        """Whether the message ends here."""
        self.data = data
        """The payload, writable."""

    def text(self) -> str:
        """Return a copy of the payload, decoded. Raises UnicodeDecodeError for binary that is not UTF-8."""
        return self.data.tobytes().decode()

    def __bytes__(self) -> bytes:
        """Return a copy of the payload."""
        return bytes(self.data)

    def __len__(self) -> int:
        """Return the payload's size in bytes."""
        return len(self.data)

    def echo(self) -> None:
        """Send it back as it is now, without a copy where its frame lay whole in the data.

        Once, and only while its handler runs: else RuntimeError. Raises ConnectionClosed after a close frame. Its bytes
        are the answer's from then on, which may move them: look at `data` before, not after.
        """
        self._engine._echo(self)

    @overload
    def send(self, payload: Payload, /) -> None: ...

    @overload
    def send(self, opcode: int, payload: Payload) -> None: ...

    def send(self, opcode: Any, payload: Any = ABSENT) -> None:
        """Send a message or control frame. See `ServerEngine.send`."""
        self._engine.send(opcode, payload)


class ServerEngine:
    """The server's side of one connection after its opening handshake, RFC 6455 5 to 8: bytes in, bytes owed out.

    It does no I/O. Give it what came with `process`, or with `process_into` and the `outbound_*` methods to save the
    copies; send what it owes in that order. What breaks the protocol is answered with a close frame, after the answers
    to all that came whole before it; then `is_closed` is True: send what is owed and close. A handler that raises ends
    the connection in the same way, with 1011, and what it raised gets out.

    An engine is for one thread at a time: a call while another thread is inside of one raises RuntimeError. A handler
    may call everything except `process` and `process_into` of its own engine.
    """

    def __init__(
        self,
        *,
        message_bytes_max: int = 16 * 1024 * 1024,
        frames: bool = False,
        refuse_text: bool = False,
        refuse_binary: bool = False,
    ) -> None:
        """`frames` gives fragments as they come. A refused type is answered with 1003, a larger message with 1009."""
        if isinstance(message_bytes_max, bool) or not isinstance(message_bytes_max, int):
            raise TypeError(f"message_bytes_max is an int, not {type(message_bytes_max).__name__}")
        if not 1 <= message_bytes_max <= _MESSAGE_BYTES_MAX:
            raise ValueError(f"message_bytes_max must be from 1 to {_MESSAGE_BYTES_MAX}, not {message_bytes_max}")
        self._exclusive = _Exclusive()
        rules = self._rules = ffi.new("struct urs_engine_rules *")
        rules.message_bytes_max = message_bytes_max
        rules.frames = frames
        rules.refuse_text = refuse_text
        rules.refuse_binary = refuse_binary
        memory = self._memory = ffi.new("struct urs_memory *")
        outbox_type = "struct urs_outbox *"
        # One destructor for both: a collector takes those of a cycle in any order, and the engine's blocks are charged
        # to the memory.
        self._engine = ffi.gc(
            ffi.new("struct urs_engine *"),
            lambda engine: (lib.urs_engine_clear(engine), lib.urs_memory_clear(memory)),
        )
        self._outbox = ffi.gc(ffi.new(outbox_type), lib.urs_outbox_clear)
        self._outbound = ffi.new("struct urs_outbound *")
        self._input = ffi.new("struct urs_input *")
        self._item = ffi.new("struct urs_item *")
        self._data: memoryview | None = None  # what segments may lie in
        self._data_start = 0
        self._close_code: int | None = None
        self._close_reason = ""
        self._close_sent = False
        self._feeding = False
        self._current: EngineMessage | None = None

    def __del__(self) -> None:
        """Drop what is still to be sent."""
        if hasattr(self, "_outbound"):
            lib.urs_outbound_clear(self._outbox, self._outbound)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is to come in: the peer's close frame came, or it broke the protocol."""
        return bool(self._engine.phase == lib.URS_ENGINE_ENDED)

    @property
    def close_code(self) -> int | None:
        """The peer's close code (1005: none in its frame), or the one it was failed with; None before."""
        return self._close_code

    @property
    def close_reason(self) -> str:
        """The peer's close reason, or what it did wrong."""
        return self._close_reason

    @property
    def partial_len(self) -> int:
        """Bytes of a frame or message begun that the engine holds."""
        with self._exclusive:
            return int(lib.urs_engine_partial_bytes(self._engine))

    def process(self, data: Any, write: Callable[[bytes], object], handler: Callable[[EngineMessage], object]) -> None:
        """Take in `data`, call `handler(message)` for each message, then `write(bytes)` once with all that is owed.

        `data` is bytes (copied) or a writable contiguous buffer of bytes (unmasked in place, so changed). What the
        handler raises gets out, after what is owed is written. What the peer did wrong does not raise: see
        `close_code`.
        """
        with self._exclusive:
            self._check_ready()
            try:
                self._feed(bytearray(data) if isinstance(data, bytes) else data, handler)
            finally:
                if self._outbound.first:
                    owed = b"".join(ffi.buffer(ffi.cast("char *", start), size) for start, size in self._raw_segments())
                    self.clear_outbound()
                    write(owed)

    def process_into(self, data: Any, handler: Callable[[EngineMessage], object]) -> list[OutboundSegment]:
        """Take in `data`, a writable buffer, call `handler(message)` for each message; return `outbound_segments()`.

        Echoes are written over `data` itself. Send the segments, in order, then call `clear_outbound`. Raises
        RuntimeError if the segments of the call before were not cleared, TypeError or BufferError for data that cannot
        be written to. After an exception of the handler, `outbound_segments()` has what was owed.
        """
        with self._exclusive:
            self._check_ready()
            self._feed(data, handler)
            return self.outbound_segments()

    def outbound_segments(self) -> list[OutboundSegment]:
        """Return what is owed, in the order of the wire."""
        segments = []
        base = 0
        with self._exclusive:
            for data, size in self._raw_segments():
                if self._is_in_data(data):
                    start = data - self._data_start
                    segments.append(OutboundSegment(False, start, start + size))
                else:
                    segments.append(OutboundSegment(True, base, base + size))
                    base += size
        return segments

    def outbound_local(self) -> bytes:
        """Return a copy of those of the segments' bytes that do not lie in the data: close frames, sends, and answers
        to what came in several pieces.
        """
        with self._exclusive:
            return b"".join(
                ffi.buffer(ffi.cast("char *", data), size)
                for data, size in self._raw_segments()
                if not self._is_in_data(data)
            )

    def clear_outbound(self) -> None:
        """Forget what was owed, once it is sent. In a handler: what was owed so far, whether sent or not."""
        with self._exclusive:
            lib.urs_outbound_clear(self._outbox, self._outbound)
            lib.urs_outbox_reset(self._outbox)
            if not self._feeding:  # else the messages still to come lie in it
                self._data = None

    @overload
    def send(self, payload: Payload, /) -> None: ...

    @overload
    def send(self, opcode: int, payload: Payload) -> None: ...

    def send(self, opcode: Any, payload: Any = ABSENT) -> None:
        """Queue a message, a PING or a PONG, in one frame: `send(payload)`, or `send(opcode, payload)`.

        Opcode and payload are as for `Connection.send`; the payload is copied. Raises TypeError or ValueError for what
        cannot be sent, ConnectionClosed after a close frame.
        """
        if payload is ABSENT:
            opcode, payload = name_opcode(opcode)
        buffer = check_send(opcode, payload)
        with self._exclusive:
            self._check_open()
            check(
                lib.urs_outbound_frame(
                    self._outbox, self._outbound, opcode, True, ffi.from_buffer("uint8_t[]", buffer), len(buffer)
                ),
                "send",
            )

    def close(self, code: int | None = CloseCode.NORMAL, reason: str = "") -> None:
        """Queue a close frame (RFC 6455 5.5.1). The peer's answer ends the connection: `is_closed`.

        Code and reason as for `Connection.close`. Raises TypeError or ValueError for those that cannot be sent,
        ConnectionClosed after a close frame.
        """
        number, encoded = check_close(code, reason)
        with self._exclusive:
            self._check_open()
            check(lib.urs_outbound_close(self._outbox, self._outbound, number, encoded, len(encoded)), "close")
            self._close_sent = True

    def _check_open(self) -> None:
        if self._close_sent or self.is_closed:
            raise ConnectionClosed("a close frame was sent: nothing may follow it")

    def _check_ready(self) -> None:
        if self._feeding:
            raise RuntimeError("no data can be given to an engine by its own handler")
        if self._data is not None:
            raise RuntimeError("what process_into found before is still to be sent: clear_outbound() comes first")

    def _feed(self, data: Any, handler: Callable[[EngineMessage], object]) -> None:
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(bytearray())
        with ffi.from_buffer("uint8_t[]", view, require_writable=True) as cdata:
            self._data = view
            self._data_start = int(ffi.cast("uintptr_t", cdata))
            self._input.next, self._input.end = cdata, cdata + len(view)
            self._feeding = True
            try:
                while self._take_item(handler):
                    pass
            finally:
                self._feeding = False
                if not self._outbound.first:
                    self._data = None

    def _take_item(self, handler: Callable[[EngineMessage], object]) -> bool:
        item = self._item
        kind = lib.urs_engine_next(self._engine, self._rules, self._memory, self._input, item)
        if kind == lib.URS_ITEM_NONE:
            return False
        try:
            if kind not in (lib.URS_ITEM_MESSAGE, lib.URS_ITEM_FRAME):
                self._owe(kind, item)
            elif not self._close_sent:
                self._deliver(item, handler)
        finally:
            lib.urs_block_drop(item.block)
            item.block = ffi.NULL
        return True

    def _deliver(self, item: Any, handler: Callable[[EngineMessage], object]) -> None:
        view = self._payload(item)
        message = self._current = EngineMessage(self, item, view)
        try:
            handler(message)
        except BaseException:
            self._fail()
            raise
        finally:
            self._current = None
            with contextlib.suppress(BufferError):  # the handler keeps an array of it
                view.release()

    def _payload(self, item: Any) -> memoryview:
        """View a payload; what a handler keeps of it keeps the memory in which it lies."""
        block = item.block
        if not block and self._data is not None:
            start = int(ffi.cast("uintptr_t", item.payload)) - self._data_start
            return self._data[start : start + item.bytes]
        lib.urs_block_share(block)
        # ffi.buffer keeps the pointer alive, the pointer its share of the block.
        payload = ffi.gc(item.payload, lambda _: lib.urs_block_drop(block), item.bytes)
        return memoryview(ffi.buffer(payload, item.bytes))

    def _fail(self) -> None:
        """End the connection: the handler raised, and its messages would be missing from then on."""
        if not self.is_closed:
            self._close_code, self._close_reason = CloseCode.INTERNAL_ERROR.value, "internal error"
        lib.urs_engine_clear(self._engine)
        if not self._close_sent:
            self._close_sent = True
            reason = self._close_reason.encode()
            check(lib.urs_outbound_close(self._outbox, self._outbound, self._close_code, reason, len(reason)), "close")

    def _owe(self, kind: int, item: Any) -> None:
        if kind == lib.URS_ITEM_CLOSE:
            self._close_code = int(item.close_code)
            self._close_reason = bytes(ffi.buffer(item.payload, item.bytes)).decode() if item.bytes else ""
        elif kind == lib.URS_ITEM_FAILED:
            self._close_code = int(item.close_code)
            self._close_reason = ffi.string(lib.urs_engine_error_text(item.error)).decode()
        if self._close_sent:
            return
        check(lib.urs_outbound_owed(self._outbox, self._outbound, item), "answer")
        self._close_sent = kind != lib.URS_ITEM_PING and kind != lib.URS_ITEM_PONG

    def _echo(self, message: EngineMessage) -> None:
        with self._exclusive:
            if self._current is not message:
                raise RuntimeError("echo() is for the message that is being handled, once")
            self._check_open()
            self._current = None
            item = message._item
            check(lib.urs_outbound_answer(self._outbox, self._outbound, item, item.opcode, item.fin), "echo")

    def _raw_segments(self) -> list[tuple[int, int]]:
        found = []
        index = self._outbound.first
        while index:
            segment = self._outbox.segments[index - 1]
            found.append((int(ffi.cast("uintptr_t", segment.data)), int(segment.bytes)))
            index = segment.next
        return found

    def _is_in_data(self, address: int) -> bool:
        return self._data is not None and 0 <= address - self._data_start < len(self._data)
