"""The engine on its own: one connection's protocol without any I/O, for other loops and for tests."""

from __future__ import annotations

import contextlib
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple, overload

from uringws.closing import Close, Closing
from uringws.errors import ConnectionClosed, check
from uringws.extensions import Deflate, DeflateTerms
from uringws.frames import CloseCode, Opcode
from uringws.options import copy_deflate
from uringws.sending import ABSENT, check_close, check_fragment, check_send, name_opcode
from uringws.shim import fast_feed, fast_frame, fast_message, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.sending import Payload

__all__ = ["EngineColumns", "EngineMessage", "OutboundSegment", "ServerEngine"]


_MESSAGE_BYTES_MAX: Final = 2**63 - 1  # RFC 6455 5.2: a frame can be no larger
_EVENTS_MAX: Final = 256
_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_CLOSE: Final = int(Opcode.CLOSE)
_new_tuple: Final = tuple.__new__


class EngineColumns(NamedTuple):
    """The events that `ServerEngine.feed` found in a chunk. Event number i is entry i of the first three columns."""

    opcodes: bytes
    """TEXT or BINARY (of a frame also CONTINUATION), PING, PONG, or CLOSE, after which nothing comes."""
    payloads: list[Any]
    """A str for a text message and for the reason of a close, else bytes. They are yours."""
    fins: bytes
    """1 where a message ends, 0 for a fragment that others follow."""
    reply: bytes
    """The bytes to write to the peer, before anything that is sent later: pongs, and the close frame."""
    held_len: int
    """Bytes not parsed yet, because `events_max` was reached: call `feed` again for them."""


class _Exclusive:
    """Admits one thread at a time to an engine (reentrant); raises in other threads."""

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
        """Send it back as it is now, without a copy where its frame lay whole in the data;
        compressed where `send` compresses.

        Once, and only while its handler runs: else RuntimeError. Raises ConnectionClosed after a close frame, and
        ValueError inside a fragmented message that this is not a part of. From then on its bytes belong to the answer,
        which may move them: read `data` before this call, not after it.
        """
        self._engine._echo(self)

    @overload
    def send(self, payload: Payload, /, *, fin: bool = True, compress: bool = True) -> None: ...

    @overload
    def send(self, opcode: int, payload: Payload, *, fin: bool = True, compress: bool = True) -> None: ...

    def send(self, opcode: Any, payload: Any = ABSENT, *, fin: bool = True, compress: bool = True) -> None:
        """Send a message or control frame. See `ServerEngine.send`."""
        self._engine.send(opcode, payload, fin=fin, compress=compress)


class ServerEngine:
    """The server's side of one connection after its opening handshake, RFC 6455 5 to 8. It does no I/O.

    There are two ways to use it. The pull form is the quicker one, for transports: `feed` takes a chunk of input and
    returns its events as columns, in one call of C; `encode` and `encode_close` return the bytes of a frame. The
    callback form is for echoes without a copy: `process`, or `process_into` with the `outbound_*` methods, calls a
    handler for each message; `send`, `close` and the handler's answers are queued until they are written.

    A peer that breaks the protocol is answered with a close frame. Then `is_closed` is True: write the bytes to send
    and close the connection. In the callback form the answers to all complete messages before it go first. A handler
    that raises ends the connection in the same way, with 1011, and its exception propagates.

    An engine is for one thread at a time: a call while another thread is inside of one raises RuntimeError. A handler
    may call everything except `process`, `process_into` and `feed` of its own engine.
    """

    def __init__(
        self,
        *,
        message_bytes_max: int = 16 * 1024 * 1024,
        frames: bool = False,
        refuse_text: bool = False,
        refuse_binary: bool = False,
        decode_text: bool = True,
        deflate: DeflateTerms | None = None,
        deflate_settings: Deflate | None = None,
    ) -> None:
        """`frames` gives fragments as they come. A refused type is answered with 1003, a larger message with 1009.

        `deflate` has the terms of compression that the opening handshake agreed on; `deflate_settings` says how much
        effort it is worth. A compressed message comes whole, also with `frames`.

        `decode_text=False` makes `feed` give text messages as bytes (of valid UTF-8), as it always gives frames.
        """
        if isinstance(message_bytes_max, bool) or not isinstance(message_bytes_max, int):
            raise TypeError(f"message_bytes_max is an int, not {type(message_bytes_max).__name__}")
        if not 1 <= message_bytes_max <= _MESSAGE_BYTES_MAX:
            raise ValueError(f"message_bytes_max must be from 1 to {_MESSAGE_BYTES_MAX}, not {message_bytes_max}")
        core = self._core = ffi.gc(ffi.new("struct urs_server_engine *"), lib.urs_server_engine_clear)
        self._address = int(ffi.cast("uintptr_t", core))  # for `fast_feed`
        self._exclusive = _Exclusive()
        core.bytes_only = not decode_text
        rules = core.rules
        rules.message_bytes_max = message_bytes_max
        rules.frames = frames
        rules.refuse_text = refuse_text
        rules.refuse_binary = refuse_binary
        if deflate is not None:
            copy_deflate(deflate_settings or Deflate(takeover=deflate.server_takeover), rules.deflate)
            lib.urs_engine_agree(self._engine, deflate.number)
        self._sent: Close | None = None
        self._received: Close | None = None
        self._received_first: bool | None = None
        self._violation: Close | None = None
        self._fragment = False  # a message that `encode` began is not finished
        self._data: memoryview | None = None  # segments may lie in it
        self._data_start = 0
        self._feeding = False
        self._current: EngineMessage | None = None

    # Made on first use: the pull form needs none of them.

    @cached_property
    def _engine(self) -> Any:
        return ffi.addressof(self._core, "engine")

    @cached_property
    def _rules(self) -> Any:
        return ffi.addressof(self._core, "rules")

    @cached_property
    def _memory(self) -> Any:
        return ffi.addressof(self._core, "memory")

    @cached_property
    def _outbox(self) -> Any:
        return ffi.addressof(self._core, "outbox")

    @cached_property
    def _outbound(self) -> Any:
        return ffi.addressof(self._core, "outbound")

    @cached_property
    def _input(self) -> Any:
        return ffi.new("struct urs_input *")

    @cached_property
    def _item(self) -> Any:
        return ffi.new("struct urs_item *")

    # ---- its end

    @property
    def is_closed(self) -> bool:
        """Whether the peer's side has ended: its close frame came, or it broke the protocol."""
        return bool(self._core.engine.phase == lib.URS_ENGINE_ENDED)

    @property
    def is_closing(self) -> bool:
        """Whether a close frame was sent: nothing more can be sent."""
        return bool(self._core.close_sent)

    @property
    def has_failed(self) -> bool:
        """Whether the peer broke the protocol, so that it was failed (RFC 6455 7.1.7)."""
        return self._violation is not None

    @property
    def closing(self) -> Closing | None:
        """Both sides' close frames; None before either side began. Complete once `is_closed`."""
        if self._sent is None and self._received is None:
            return None
        return Closing(self._sent, self._received, self._received_first, None)

    @property
    def close_code(self) -> int | None:
        """The peer's close code (1005: none in its frame), or ours if it broke the protocol; None before that."""
        close = self._received or self._violation
        return None if close is None else close.code

    @property
    def close_reason(self) -> str:
        """The peer's close reason, or what it did wrong."""
        close = self._received or self._violation
        return "" if close is None else close.reason

    @property
    def partial_len(self) -> int:
        """Bytes of an incomplete frame or message that the engine holds."""
        with self._exclusive:
            return int(lib.urs_engine_partial_bytes(self._engine))

    @property
    def held_len(self) -> int:
        """Bytes that `feed` has taken and not parsed yet."""
        return int(self._core.held_bytes)

    # ---- the pull form

    def feed(self, data: Any, events_max: int = _EVENTS_MAX) -> EngineColumns:
        """Take in `data`, and return its events: at most `events_max` of them, 1 to 1024.

        The rest is kept: `feed(b"")` goes on with it, and so does a call with more data. Stop reading from the peer
        meanwhile, because nothing else bounds the bytes that are kept. `data` is any contiguous buffer of bytes; a
        writable one is unmasked in place, which changes it and saves a copy.

        Write `reply` first. A peer that breaks the protocol does not make `feed` raise: that gives a CLOSE event with
        the reason as payload, and `close_code`. Messages that come after our own close frame are given, too. Raises
        ValueError or TypeError for wrong arguments, RuntimeError during another call of this engine.
        """
        if self._feeding or self._data is not None:
            self._check_ready()
        return _new_tuple(EngineColumns, fast_feed(self, self._address, data, events_max))

    def encode(self, opcode: int, payload: Payload, *, fin: bool = True, compress: bool = True) -> bytes:
        """Return a message, a PING or a PONG as the bytes of one frame, to be written to the peer.

        Opcode, payload and `compress` are as for `Connection.send`. What is compressed must be written, or the peer
        cannot read what follows. `fin=False` begins a fragmented message, which
        `encode(Opcode.CONTINUATION, ...)` goes on with, up to the one with `fin=True` (RFC 6455 5.4). Raises TypeError
        or ValueError for a frame that cannot be sent now, ConnectionClosed after a close frame.
        """
        self._check_open()
        kind = type(payload)
        is_plain = (kind is bytes and (opcode == _BINARY or opcode == _TEXT)) or (kind is str and opcode == _TEXT)
        if not is_plain or not fin or self._fragment:
            payload = self._check_frame(opcode, payload, fin=fin)
        if compress and fin and self._core.engine.deflate_terms and (opcode == _TEXT or opcode == _BINARY):
            message: bytes = fast_message(self._address, opcode, payload.encode() if type(payload) is str else payload)
            return message
        frame: bytes = fast_frame(opcode, fin, payload)
        return frame

    def encode_vectors(self, opcode: int, payload: Payload, *, fin: bool = True) -> list[bytes | memoryview]:
        """Return the same as `encode` in two pieces, header and payload, for `transport.writelines`.

        The payload is not compressed. It is not copied if it is bytes, or larger than 16 KiB: it must not change until
        it is written.
        """
        self._check_open()
        buffer = memoryview(self._check_frame(opcode, payload, fin=fin))
        header = ffi.new("uint8_t[]", lib.URS_FRAME_ANSWER_BYTES_MAX)
        size = lib.urs_frame_write(header, opcode, fin, len(buffer))
        return [bytes(ffi.buffer(header, size)), buffer]

    def encode_close(self, code: int | None = CloseCode.NORMAL, reason: str = "") -> bytes:
        """Return the bytes of a close frame, to be written to the peer. The peer's answer ends it: `is_closed`.

        Code and reason as for `Connection.close`. Raises TypeError or ValueError for those that cannot be sent,
        ConnectionClosed after a close frame.
        """
        number, encoded = check_close(code, reason)
        self._check_open()
        self._note_sent(number, reason)
        frame: bytes = fast_frame(_CLOSE, True, number.to_bytes(2, "big") + encoded if number else b"")
        return frame

    def _check_frame(self, opcode: int, payload: Payload, *, fin: bool) -> bytes | bytearray | memoryview:
        """Return the payload as a buffer, and note whether the message goes on. Raises TypeError, ValueError."""
        buffer = check_send(opcode, payload, fin=fin)
        self._fragment = check_fragment(opcode, fin=fin, unfinished=self._fragment)
        return buffer

    def _note_sent(self, code: int, reason: str) -> None:
        self._core.close_sent = True
        self._sent = Close(code or CloseCode.NO_STATUS.value, reason)
        if self._received_first is None:
            self._received_first = self._received is not None

    def _ended(self, code: int, reason: str, failed: bool) -> None:  # noqa: FBT001 - the shim passes by position
        """Note the peer's close frame, or its violation. Called by the shim while it takes a chunk."""
        if failed:
            self._violation = Close(code, reason)
            self._sent = self._sent or self._violation
            self._received_first = False
            return
        self._received = Close(code, reason)
        if self._sent is None:  # the shim has answered with the peer's code
            self._received_first = True
            self._sent = Close(code, "")

    def process(self, data: Any, write: Callable[[bytes], object], handler: Callable[[EngineMessage], object]) -> None:
        """Take in `data`, call `handler(message)` for each message, then `write(bytes)` once with all bytes to send.

        `data` is bytes (copied) or a writable contiguous buffer of bytes (unmasked in place, which changes it). An
        exception of the handler propagates, after the bytes are written. A peer that breaks the protocol does not make
        this raise: see `close_code`.
        """
        with self._exclusive:
            self._check_ready()
            try:
                self._feed(bytearray(data) if isinstance(data, bytes) else data, handler)
            finally:
                if self._outbound.first:
                    reply = b"".join(
                        ffi.buffer(ffi.cast("char *", start), size) for start, size in self._raw_segments()
                    )
                    self.clear_outbound()
                    write(reply)

    def process_into(self, data: Any, handler: Callable[[EngineMessage], object]) -> list[OutboundSegment]:
        """Take in `data`, a writable buffer, call `handler(message)` for each message; return `outbound_segments()`.

        Echoes are written over `data` itself. Send the segments, in order, then call `clear_outbound`. Raises
        RuntimeError if the segments of the previous call were not cleared, TypeError or BufferError for data that
        cannot be written to. After an exception of the handler, `outbound_segments()` has the bytes to send.
        """
        with self._exclusive:
            self._check_ready()
            self._feed(data, handler)
            return self.outbound_segments()

    def outbound_segments(self) -> list[OutboundSegment]:
        """Return the bytes to send as segments, in the order in which they go out."""
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
        """Return a copy of the segments' bytes that do not lie in the data: close frames, sends, and answers to
        messages that came in several pieces.
        """
        with self._exclusive:
            return b"".join(
                ffi.buffer(ffi.cast("char *", data), size)
                for data, size in self._raw_segments()
                if not self._is_in_data(data)
            )

    def clear_outbound(self) -> None:
        """Forget the bytes to send, once they are sent. In a handler: those queued so far, whether sent or not."""
        with self._exclusive:
            lib.urs_outbound_clear(self._outbox, self._outbound)
            lib.urs_outbox_reset(self._outbox)
            if not self._feeding:  # otherwise the messages that follow lie in it
                self._data = None

    @overload
    def send(self, payload: Payload, /, *, fin: bool = True, compress: bool = True) -> None: ...

    @overload
    def send(self, opcode: int, payload: Payload, *, fin: bool = True, compress: bool = True) -> None: ...

    def send(self, opcode: Any, payload: Any = ABSENT, *, fin: bool = True, compress: bool = True) -> None:
        """Queue a message, a PING or a PONG, in one frame: `send(payload)`, or `send(opcode, payload)`.

        The arguments are as for `Connection.send`; the payload is copied. Raises TypeError or ValueError
        for a frame that cannot be sent now, ConnectionClosed after a close frame.
        """
        if payload is ABSENT:
            opcode, payload = name_opcode(opcode)
        with self._exclusive:
            self._check_open()
            buffer = self._check_frame(opcode, payload, fin=fin)
            with ffi.from_buffer("uint8_t[]", buffer) as data:
                if not (compress and fin and self._send_compressed(opcode, data, len(data))):
                    added = lib.urs_outbound_frame(self._outbox, self._outbound, opcode, fin, data, len(data))
                    check(added, "send")

    def _send_compressed(self, opcode: int, data: Any, size: int) -> bool:
        """Queue a whole message compressed; return False if it must be sent uncompressed."""
        is_message = opcode == _TEXT or opcode == _BINARY
        if not (is_message and self._core.engine.deflate_terms and size and size >= self._rules.deflate.bytes_min):
            return False
        error = ffi.new("int *")
        parts = (self._outbox, self._outbound, self._engine, self._rules, self._memory)
        is_added: bool = lib.urs_outbound_compressed(*parts, opcode, data, size, error)
        if is_added:
            check(error[0], "send")
        return is_added

    def close(self, code: int | None = CloseCode.NORMAL, reason: str = "") -> None:
        """Queue a close frame (RFC 6455 5.5.1). The peer's answer ends the connection: `is_closed`.

        Code and reason as for `Connection.close`. Raises TypeError or ValueError for those that cannot be sent,
        ConnectionClosed after a close frame.
        """
        number, encoded = check_close(code, reason)
        with self._exclusive:
            self._check_open()
            check(lib.urs_outbound_close(self._outbox, self._outbound, number, encoded, len(encoded)), "close")
            self._note_sent(number, reason)

    def _check_open(self) -> None:
        if self._core.close_sent:
            raise ConnectionClosed("a close frame was sent: nothing may follow it")

    def _check_ready(self) -> None:
        if self._feeding:
            raise RuntimeError("no data can be given to an engine by its own handler")
        if self._data is not None:
            raise RuntimeError(
                "the segments of the previous process_into are not cleared: send them and call clear_outbound() first"
            )
        if self._core.held_bytes:
            raise RuntimeError('feed() holds input that it has not parsed yet: call feed(b"") until held_len is 0')

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
                self._reply(kind, item)
            elif not self._core.close_sent:
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
        """View a payload. A view of it that a handler keeps also keeps its memory."""
        block = item.block
        if not block and self._data is not None:
            start = int(ffi.cast("uintptr_t", item.payload)) - self._data_start
            return self._data[start : start + item.bytes]
        lib.urs_block_share(block)
        # ffi.buffer keeps the pointer alive, the pointer its share of the block.
        payload = ffi.gc(item.payload, lambda _: lib.urs_block_drop(block), item.bytes)
        return memoryview(ffi.buffer(payload, item.bytes))

    def _fail(self) -> None:
        """End the connection: the handler raised, so later messages would arrive without the effect of this one."""
        failure = Close(CloseCode.INTERNAL_ERROR.value, "internal error")
        if not self.is_closed:
            self._violation = failure
        lib.urs_engine_clear(self._engine)
        if not self._core.close_sent:
            self._note_sent(failure.code, failure.reason)
            reason = failure.reason.encode()
            check(lib.urs_outbound_close(self._outbox, self._outbound, failure.code, reason, len(reason)), "close")

    def _reply(self, kind: int, item: Any) -> None:
        """Answer a control frame or a violation, and note the end if it is one."""
        answered = self._core.close_sent
        if kind == lib.URS_ITEM_CLOSE:
            reason = bytes(ffi.buffer(item.payload, item.bytes)).decode() if item.bytes else ""
            self._ended(int(item.close_code), reason, failed=False)
        elif kind == lib.URS_ITEM_FAILED:
            self._ended(int(item.close_code), ffi.string(lib.urs_engine_error_text(item.error)).decode(), failed=True)
        if answered:
            return
        check(lib.urs_outbound_reply(self._outbox, self._outbound, item), "answer")
        self._core.close_sent = kind != lib.URS_ITEM_PING and kind != lib.URS_ITEM_PONG

    def _echo(self, message: EngineMessage) -> None:
        with self._exclusive:
            if self._current is not message:
                raise RuntimeError("echo() is for the message that is being handled, once")
            self._check_open()
            item = message._item
            self._fragment = check_fragment(item.opcode, fin=item.fin, unfinished=self._fragment)
            self._current = None
            if not (item.fin and self._send_compressed(item.opcode, item.payload, item.bytes)):
                check(lib.urs_outbound_echo(self._outbox, self._outbound, item, item.opcode, item.fin), "echo")

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
