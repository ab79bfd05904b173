"""`ServerEngine`: bytes in, messages and bytes to send out. `codec` makes the frames."""

from __future__ import annotations

import gc
import itertools
import random
import struct
import threading
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from codec import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, decode
from uringws import CloseCode, ConnectionClosed, EngineMessage, Opcode, OutboundSegment, ServerEngine
from uringws.shim import ffi, lib

KEY = b"\x37\xfa\x21\x3d"

Message = tuple[int, bool, bytes]
"""Opcode, fin, payload."""


def wire(*frames: Frame) -> bytes:
    """The frames as a client sends them: masked, whatever key they name."""
    return b"".join(
        Frame(frame.opcode, frame.payload, frame.fin, frame.rsv, frame.key or KEY).encode() for frame in frames
    )


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack("!H", code) + reason.encode()


def ignore(_: object) -> None:
    """Stand in for a handler."""


class Session:
    """An engine, what it delivered, and what it wrote."""

    def __init__(self, engine: ServerEngine | None = None, answer: Callable[[EngineMessage], object] = ignore) -> None:
        self.engine = engine or ServerEngine()
        self.answer = answer
        self.messages: list[Message] = []
        self.written = b""

    def handle(self, message: EngineMessage) -> None:
        self.messages.append((message.opcode, message.fin, bytes(message)))
        self.answer(message)

    def write(self, data: bytes) -> None:
        assert data, "the engine made no output"
        self.written += data

    def feed(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.engine.process(chunk, self.write, self.handle)

    @property
    def frames(self) -> list[Frame]:
        frames, rest = decode(self.written)
        assert rest == b""
        return frames

    @property
    def texts(self) -> list[bytes]:
        return [payload for _, _, payload in self.messages]


def by_bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def random_chunks(data: bytes, source: random.Random) -> list[bytes]:
    cuts = sorted(source.sample(range(len(data) + 1), min(len(data), source.randrange(1, 20))))
    return [data[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(data)])]


def deliveries(data: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, and in random chunks: the results have to be the same."""
    return [[data], by_bytes(data), *(random_chunks(data, random.Random(seed)) for seed in range(5))]


CONVERSATION = wire(
    Frame(TEXT, "größer".encode()),
    Frame(BINARY, bytes(range(256)) * 2),
    Frame(BINARY, b""),
    Frame(PING, b"still there?"),
    Frame(TEXT, "漢".encode()[:1], fin=False),
    Frame(PONG, b"unasked"),
    Frame(CONTINUATION, b"", fin=False),
    Frame(PING, b""),
    Frame(CONTINUATION, "漢".encode()[1:]),
    Frame(BINARY, b"x" * 70_000, key=b"\0\0\0\0"),
    Frame(CLOSE, close_payload(4321, "bye")),
)


# Messages in


@pytest.mark.parametrize("chunks", deliveries(CONVERSATION), ids=["whole", "bytes", *"abcde"])
def test_messages_do_not_depend_on_how_they_arrive(chunks: list[bytes]) -> None:
    session = Session(answer=EngineMessage.echo)
    session.feed(*chunks)
    messages = [
        (TEXT, True, "größer".encode()),
        (BINARY, True, bytes(range(256)) * 2),
        (BINARY, True, b""),
        (TEXT, True, "漢".encode()),
        (BINARY, True, b"x" * 70_000),
    ]
    assert session.messages == messages
    echoes = [Frame(opcode, payload) for opcode, _, payload in messages]
    assert session.frames == [
        *echoes[:3],
        Frame(PONG, b"still there?"),
        Frame(PONG, b""),
        *echoes[3:],
        Frame(CLOSE, close_payload(4321)),
    ]
    assert session.engine.is_closed
    assert (session.engine.close_code, session.engine.close_reason) == (4321, "bye")
    assert session.engine.partial_len == 0


def test_frames_are_given_as_they_come() -> None:
    fragments = wire(
        Frame(TEXT, b"a", fin=False), Frame(PING), Frame(CONTINUATION, b"b", fin=False), Frame(CONTINUATION, b"c")
    )
    for chunks in deliveries(fragments + wire(Frame(BINARY, b"d"))):
        session = Session(ServerEngine(frames=True), EngineMessage.echo)
        session.feed(*chunks)
        assert session.messages == [
            (TEXT, False, b"a"),
            (CONTINUATION, False, b"b"),
            (CONTINUATION, True, b"c"),
            (BINARY, True, b"d"),
        ]
        assert [(frame.opcode, frame.fin) for frame in session.frames] == [
            (TEXT, False),
            (PONG, True),
            (CONTINUATION, False),
            (CONTINUATION, True),
            (BINARY, True),
        ]


def test_the_repr_of_a_message_has_its_opcode_and_size() -> None:
    seen: list[tuple[object, ...]] = []

    def look(message: EngineMessage) -> None:
        seen.append((message.opcode, message.fin, len(message), bytes(message), bytes(message.data)))
        if message.opcode is Opcode.TEXT:
            assert message.text() == "né"

    Session(answer=look).feed(wire(Frame(TEXT, "né".encode()), Frame(BINARY, b"\xff")))
    assert seen == [
        (Opcode.TEXT, True, 3, "né".encode(), "né".encode()),
        (Opcode.BINARY, True, 1, b"\xff", b"\xff"),
    ]


@pytest.mark.parametrize(
    "make", [bytes, bytearray, lambda data: memoryview(bytearray(data)), lambda data: np.array(list(data), np.uint8)]
)
def test_data_may_be_any_bytes(make: Callable[[bytes], object]) -> None:
    session = Session()
    data = make(wire(Frame(TEXT, b"hello")))
    session.engine.process(data, session.write, session.handle)
    assert session.texts == [b"hello"]


def test_bytes_are_left_as_they_are_and_a_buffer_is_unmasked_in_place() -> None:
    data = wire(Frame(TEXT, b"hello"))
    kept = bytes(bytearray(data))
    Session().feed(data)
    assert data == kept
    buffer = bytearray(data)
    ServerEngine().process_into(buffer, ignore)
    assert buffer == data[:6] + b"hello"


def test_data_that_cannot_be_written_to_is_refused() -> None:
    with pytest.raises((TypeError, BufferError)):
        ServerEngine().process_into(wire(Frame(TEXT, b"hello")), ignore)


# Bytes to send


def test_write_is_not_called_without_bytes_to_send() -> None:
    session = Session()
    session.feed(b"", wire(Frame(TEXT, b"a"), Frame(PONG, b"b")))
    assert session.written == b""


def test_the_reply_is_written_once_and_in_order() -> None:
    written: list[bytes] = []
    engine = ServerEngine()

    def answer(message: EngineMessage) -> None:
        message.send(Opcode.BINARY, b"before " + bytes(message))
        message.echo()

    engine.process(wire(Frame(TEXT, b"1"), Frame(PING, b"2"), Frame(TEXT, b"3")), written.append, answer)
    assert len(written) == 1
    assert decode(written[0])[0] == [
        Frame(BINARY, b"before 1"),
        Frame(TEXT, b"1"),
        Frame(PONG, b"2"),
        Frame(BINARY, b"before 3"),
        Frame(TEXT, b"3"),
    ]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 4096, 65_535, 65_536, 200_000])
def test_an_echo_has_the_handlers_changes_of_the_payload(size: int) -> None:
    def shout(message: EngineMessage) -> None:
        message.data[:] = bytes(message).upper()
        message.echo()

    payload = random.Random(size).randbytes(size).translate(bytes(range(97, 123)) * 9 + bytes(range(97, 119)))
    for chunks in ([wire(Frame(TEXT, payload))], random_chunks(wire(Frame(TEXT, payload)), random.Random(size))):
        session = Session(answer=shout)
        session.feed(*chunks)
        assert session.frames == [Frame(TEXT, payload.upper())]


def test_an_echo_in_place_costs_no_copy() -> None:
    data = bytearray(wire(Frame(BINARY, b"x" * 1000)))
    engine = ServerEngine()
    segments = engine.process_into(data, EngineMessage.echo)
    assert segments == [OutboundSegment(local=False, start=4, stop=4 + 4 + 1000)]
    assert decode(bytes(data[4:])) == ([Frame(BINARY, b"x" * 1000)], b"")
    assert engine.outbound_local() == b""


def test_pipelined_small_frames_are_answered_as_one_segment() -> None:
    payloads = [bytes([number]) * 20 for number in range(64)]
    data = bytearray(wire(*(Frame(BINARY, payload) for payload in payloads)))
    engine = ServerEngine()
    (segment,) = engine.process_into(data, EngineMessage.echo)
    assert not segment.local
    assert segment.stop - segment.start == 64 * 22
    assert decode(bytes(data[segment.start : segment.stop]))[0] == [Frame(BINARY, payload) for payload in payloads]


def test_segments_are_those_of_the_data_and_local_ones_in_wire_order() -> None:
    def answer(message: EngineMessage) -> None:
        message.echo()
        message.send(Opcode.TEXT, b"and mine")

    engine = ServerEngine()
    data = bytearray(wire(Frame(TEXT, b"one"), Frame(TEXT, b"two"), Frame(CLOSE)))
    segments = engine.process_into(data, answer)
    assert segments == engine.outbound_segments()
    assert [segment.local for segment in segments] == [False, True, False, True]
    local = engine.outbound_local()
    sources = {False: bytes(data), True: local}
    sent = b"".join(sources[segment.local][segment.start : segment.stop] for segment in segments)
    mine = Frame(TEXT, b"and mine")
    assert decode(sent)[0] == [Frame(TEXT, b"one"), mine, Frame(TEXT, b"two"), mine, Frame(CLOSE)]
    assert sum(segment.stop - segment.start for segment in segments if segment.local) == len(local)
    engine.clear_outbound()
    assert engine.outbound_segments() == []
    assert engine.outbound_local() == b""


def test_an_echo_of_fragments_is_local() -> None:
    engine = ServerEngine()
    data = bytearray(wire(Frame(TEXT, b"one ", fin=False), Frame(CONTINUATION, b"message")))
    (segment,) = engine.process_into(data, EngineMessage.echo)
    assert segment == OutboundSegment(local=True, start=0, stop=13)
    assert decode(engine.outbound_local())[0] == [Frame(TEXT, b"one message")]


def test_no_data_is_taken_before_the_segments_are_sent() -> None:
    engine = ServerEngine()
    data = bytearray(wire(Frame(TEXT, b"one")))
    engine.process_into(data, EngineMessage.echo)
    for again in (
        lambda: engine.process_into(bytearray(wire(Frame(TEXT, b"two"))), ignore),
        lambda: engine.process(wire(Frame(TEXT, b"two")), ignore, ignore),
    ):
        with pytest.raises(RuntimeError, match="clear_outbound"):
            again()
    engine.clear_outbound()
    session = Session(engine)
    session.feed(wire(Frame(TEXT, b"three")))
    assert session.texts == [b"three"]


def test_sends_between_two_calls_come_first() -> None:
    session = Session(answer=EngineMessage.echo)
    session.engine.send(Opcode.PING, b"between")
    session.feed(wire(Frame(TEXT, b"one")))
    assert session.frames == [Frame(PING, b"between"), Frame(TEXT, b"one")]


def test_a_pending_segment_holds_its_data() -> None:
    engine = ServerEngine()
    data = bytearray(wire(Frame(TEXT, b"one")))
    engine.process_into(data, EngineMessage.echo)
    with pytest.raises(BufferError):
        data.clear()
    engine.clear_outbound()
    data.clear()


def test_data_is_released_when_nothing_is_to_be_sent() -> None:
    data = bytearray(wire(Frame(TEXT, b"one"), Frame(TEXT, b"cut"))[:-2])
    ServerEngine().process_into(data, ignore)
    data.clear()


# The end


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_a_close_is_answered_with_its_code(code: int) -> None:
    session = Session()
    session.feed(wire(Frame(CLOSE, close_payload(code, "grund: größe"))))
    assert session.frames == [Frame(CLOSE, close_payload(code))]
    assert (session.engine.close_code, session.engine.close_reason) == (code, "grund: größe")


def test_a_close_without_a_code_is_answered_without_one() -> None:
    session = Session()
    session.feed(wire(Frame(CLOSE)))
    assert session.frames == [Frame(CLOSE)]
    assert (session.engine.close_code, session.engine.close_reason) == (1005, "")


LONG = Frame(BINARY, b"x" * 65_536).encode()

VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "rsv1": (wire(Frame(TEXT, b"a", rsv=4)), 1002),
    "rsv2": (wire(Frame(TEXT, b"a", rsv=2)), 1002),
    "rsv3": (wire(Frame(PING, b"a", rsv=1)), 1002),
    **{f"opcode-{opcode:#x}": (wire(Frame(opcode, b"a")), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "unmasked": (Frame(TEXT, b"a").encode(), 1002),
    "ping-fragmented": (wire(Frame(PING, b"a", fin=False)), 1002),
    "ping-over-125": (wire(Frame(PING, b"a" * 126)), 1002),
    "close-over-125": (wire(Frame(CLOSE, close_payload(1000) + b"a" * 124)), 1002),
    "close-of-one-byte": (wire(Frame(CLOSE, b"\x03")), 1002),
    **{
        f"close-{code}": (wire(Frame(CLOSE, close_payload(code))), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)
    },
    "close-reason-not-utf-8": (wire(Frame(CLOSE, b"\x03\xe8\xff")), 1007),
    "close-reason-cut": (wire(Frame(CLOSE, b"\x03\xe8" + "é".encode()[:1])), 1007),
    "continuation-of-nothing": (wire(Frame(CONTINUATION, b"a")), 1002),
    "message-inside-another": (wire(Frame(TEXT, b"a", fin=False), Frame(TEXT, b"b")), 1002),
    "length-16-bit-of-125": (Frame(BINARY, b"x" * 125, key=KEY).encode(length_bytes=2), 1002),
    "length-64-bit-of-65535": (Frame(BINARY, b"x" * 65_535, key=KEY).encode(length_bytes=8), 1002),
    "length-top-bit": (b"\x82\xff" + b"\x80" + bytes(7) + KEY, 1002),
    "text-not-utf-8": (wire(Frame(TEXT, b"\xc0\xaf")), 1007),
    "text-surrogate": (wire(Frame(TEXT, b"\xed\xa0\x80")), 1007),
    "text-cut": (wire(Frame(TEXT, "é".encode()[:1])), 1007),
    "text-cut-between-fragments": (wire(Frame(TEXT, "é".encode()[:1], fin=False), Frame(CONTINUATION, b"a")), 1007),
    "text-cut-at-the-last-fragment": (wire(Frame(TEXT, "é".encode()[:1], fin=False), Frame(CONTINUATION)), 1007),
    "too-big": (wire(Frame(BINARY, b"x" * 100_001)), 1009),
    "too-big-in-fragments": (wire(Frame(BINARY, b"x" * 60_000, fin=False), Frame(CONTINUATION, b"x" * 40_001)), 1009),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_answered_after_the_complete_messages_before_it(name: str) -> None:
    violation, code = VIOLATIONS[name]
    stream = wire(Frame(TEXT, b"good"), Frame(PING, b"ping")) + violation + wire(Frame(TEXT, b"never"))
    for chunks in deliveries(stream) if len(stream) < 1000 else [[stream]]:
        session = Session(ServerEngine(message_bytes_max=100_000), EngineMessage.echo)
        session.feed(*chunks)
        assert session.frames[:2] == [Frame(TEXT, b"good"), Frame(PONG, b"ping")]
        (close,) = session.frames[2:]
        assert close.opcode == CLOSE
        assert close.payload == close_payload(code, session.engine.close_reason)
        assert session.texts == [b"good"]
        assert session.engine.is_closed
        assert session.engine.close_code == code
        assert session.engine.close_reason
        assert session.engine.partial_len == 0


@pytest.mark.parametrize("refused", [TEXT, BINARY])
def test_a_type_may_be_refused(refused: int) -> None:
    engine = ServerEngine(refuse_text=refused == TEXT, refuse_binary=refused == BINARY)
    session = Session(engine, EngineMessage.echo)
    session.feed(wire(Frame(TEXT + BINARY - refused, b"good")), wire(Frame(refused, b"bad"))[:2])
    assert session.engine.close_code is None
    session.feed(wire(Frame(refused, b"bad"))[2:])
    assert session.texts == [b"good"]
    assert engine.close_code == CloseCode.UNSUPPORTED_DATA


@pytest.mark.parametrize("size", [1001, 65_536, 1 << 32, (1 << 63) - 1])
def test_a_message_too_big_is_refused_at_its_announced_length(size: int) -> None:
    header = Frame(BINARY, b"", key=KEY)
    announced = struct.pack("!BBQ", 0x82, 0xFF, size) if size > 65_535 else struct.pack("!BBH", 0x82, 0xFE, size)
    assert header.key is not None
    session = Session(ServerEngine(message_bytes_max=1000))
    session.feed(announced + header.key)
    assert session.engine.close_code == CloseCode.MESSAGE_TOO_BIG


def test_the_limit_counts_all_fragments_and_starts_again_with_each_message() -> None:
    session = Session(ServerEngine(message_bytes_max=100))
    for _ in range(3):
        session.feed(wire(Frame(BINARY, b"x" * 50, fin=False), Frame(CONTINUATION, b"x" * 50)))
    assert [len(text) for text in session.texts] == [100, 100, 100]
    session.feed(wire(Frame(BINARY, b"x" * 50, fin=False), Frame(CONTINUATION, b"x" * 50, fin=False)))
    assert not session.engine.is_closed
    session.feed(wire(Frame(CONTINUATION, b"x")))
    assert session.engine.close_code == CloseCode.MESSAGE_TOO_BIG


def test_text_fails_at_its_first_bad_byte_in_mid_frame() -> None:
    stream = wire(Frame(TEXT, b"good" + b"\xe2\x82" + b"bad" + b"x" * 100))
    session = Session()
    for at, byte in enumerate(by_bytes(stream)):
        session.feed(byte)
        assert session.engine.is_closed == (at >= 6 + len(b"good") + 2), at
    assert session.engine.close_code == CloseCode.INVALID_PAYLOAD


def test_nothing_is_heard_after_the_end() -> None:
    session = Session(answer=EngineMessage.echo)
    session.feed(
        wire(Frame(CLOSE, close_payload(1000)), Frame(TEXT, b"late"), Frame(PING)), wire(Frame(TEXT, b"later"))
    )
    assert session.messages == []
    assert session.frames == [Frame(CLOSE, close_payload(1000))]


def test_our_close_waits_for_theirs() -> None:
    session = Session(answer=EngineMessage.echo)
    session.engine.close(4000, "enough")
    session.feed(wire(Frame(TEXT, b"unheard"), Frame(PING, b"unanswered")))
    assert session.frames == [Frame(CLOSE, close_payload(4000, "enough"))]
    assert session.messages == []
    assert (session.engine.is_closed, session.engine.close_code) == (False, None)
    session.feed(wire(Frame(CLOSE, close_payload(4000))))
    assert (session.engine.is_closed, session.engine.close_code) == (True, 4000)
    assert len(session.frames) == 1


def test_a_handler_may_close() -> None:
    session = Session()

    def answer(message: EngineMessage) -> None:
        message.echo()
        session.engine.close(CloseCode.GOING_AWAY)

    session.answer = answer
    session.feed(wire(Frame(TEXT, b"one"), Frame(TEXT, b"two"), Frame(CLOSE, close_payload(1001))))
    assert session.texts == [b"one"]
    assert session.frames == [Frame(TEXT, b"one"), Frame(CLOSE, close_payload(1001))]


@pytest.mark.parametrize(
    "end", [lambda engine: engine.close(), lambda engine: engine.process(wire(Frame(CLOSE)), ignore, ignore)]
)
def test_nothing_may_be_sent_after_a_close_frame(end: Callable[[ServerEngine], object]) -> None:
    engine = ServerEngine()
    end(engine)
    with pytest.raises(ConnectionClosed):
        engine.send(Opcode.TEXT, b"late")
    with pytest.raises(ConnectionClosed):
        engine.close()


# Misuse


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda engine: engine.send(Opcode.CLOSE, b""), ValueError),
        (lambda engine: engine.send(Opcode.CONTINUATION, b""), ValueError),
        (lambda engine: engine.send(Opcode.PING, b"x" * 126), ValueError),
        (lambda engine: engine.send(Opcode.BINARY, "text"), TypeError),
        (lambda engine: engine.send(Opcode.TEXT, 1), TypeError),
        (lambda engine: engine.close(1005), ValueError),
        (lambda engine: engine.close(1000, "x" * 124), ValueError),
        (lambda engine: engine.close(None, "reason"), ValueError),
        (lambda _: ServerEngine(message_bytes_max=0), ValueError),
    ],
)
def test_wrong_arguments_raise(call: Callable[[ServerEngine], object], error: type[Exception]) -> None:
    engine = ServerEngine()
    with pytest.raises(error):
        call(engine)
    assert engine.outbound_segments() == []


def test_an_echo_is_for_the_current_message_once() -> None:
    kept: list[EngineMessage] = []

    def answer(message: EngineMessage) -> None:
        kept.append(message)
        message.echo()
        with pytest.raises(RuntimeError, match="once"):
            message.echo()

    session = Session(answer=answer)
    session.feed(wire(Frame(TEXT, b"one")))
    with pytest.raises(RuntimeError, match="being handled"):
        kept[0].echo()
    assert len(session.frames) == 1


def test_the_engine_is_not_entered_from_its_own_handler() -> None:
    session = Session(answer=lambda _: session.engine.process(b"", ignore, ignore))
    with pytest.raises(RuntimeError, match="handler"):
        session.feed(wire(Frame(TEXT, b"one")))


def test_a_payload_kept_past_the_handler_cannot_be_read() -> None:
    kept: list[memoryview] = []
    Session(answer=lambda message: kept.append(message.data)).feed(wire(Frame(TEXT, b"hello")))
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


@pytest.mark.parametrize("chunks", [1, 2], ids=["in-the-data", "in-a-block"])
@pytest.mark.parametrize("size", [100, 300_000])
def test_a_slice_kept_past_the_handler_shows_no_freed_memory(size: int, chunks: int) -> None:
    kept: list[memoryview] = []
    session = Session(answer=lambda message: kept.append(message.data[10:20]))
    stream = wire(Frame(BINARY, b"k" * size))
    session.feed(stream) if chunks == 1 else session.feed(stream[:50], stream[50:])
    del session
    gc.collect()
    for _ in range(10):
        Session().feed(wire(Frame(BINARY, b"overwritten" * 30_000)))
    assert kept[0] == b"k" * 10


def test_a_handler_that_raises_ends_the_connection_with_1011() -> None:
    def answer(message: EngineMessage) -> None:
        message.echo()
        if bytes(message) == b"two":
            raise LookupError("a fault of the handler's")

    for chunks in deliveries(wire(Frame(TEXT, b"one"), Frame(TEXT, b"two"), Frame(TEXT, b"three"))):
        session = Session(answer=answer)
        with pytest.raises(LookupError):
            session.feed(*chunks)
        assert session.frames == [
            Frame(TEXT, b"one"),
            Frame(TEXT, b"two"),
            Frame(CLOSE, close_payload(1011, "internal error")),
        ]
        assert session.engine.is_closed
        assert session.engine.close_code == CloseCode.INTERNAL_ERROR
        session.feed(wire(Frame(TEXT, b"four")))
        assert session.texts == [b"one", b"two"]


def test_an_error_of_the_handler_keeps_the_segments_to_be_sent() -> None:
    def answer(message: EngineMessage) -> None:
        message.echo()
        raise LookupError

    engine = ServerEngine()
    data = bytearray(wire(Frame(TEXT, b"one")))
    with pytest.raises(LookupError):
        engine.process_into(data, answer)
    in_data, local = engine.outbound_segments()
    assert decode(bytes(data[in_data.start : in_data.stop]))[0] == [Frame(TEXT, b"one")]
    assert local.local
    assert decode(engine.outbound_local())[0] == [Frame(CLOSE, close_payload(1011, "internal error"))]


# Costs


def memory(engine: ServerEngine) -> int:
    """Bytes charged for partial messages."""
    return int(engine._memory.bytes_used)


def test_no_memory_is_held_between_whole_messages() -> None:
    engine = ServerEngine()
    engine.process(wire(*(Frame(BINARY, b"x" * size) for size in (1, 1000, 100_000))), ignore, EngineMessage.echo)
    assert memory(engine) == 0
    assert engine.partial_len == 0


def test_memory_is_given_back_when_a_message_is_over() -> None:
    stream = wire(
        Frame(BINARY, b"x" * 100_000, fin=False), Frame(PING, b"y" * 100), Frame(CONTINUATION, b"z" * 100_000)
    )
    engine = ServerEngine()
    engine.process(stream[:-1], ignore, ignore)
    assert engine.partial_len == 199_999
    assert memory(engine) >= 199_999
    engine.process(stream[-1:], ignore, EngineMessage.echo)
    assert memory(engine) == 0
    engine.process(stream[:-1], ignore, ignore)
    engine.process(wire(Frame(0x3)), ignore, ignore)
    assert memory(engine) == 0


def test_partial_len_counts_headers_frames_and_messages() -> None:
    stream = wire(Frame(TEXT, b"abc", fin=False), Frame(PING, b"ping"), Frame(CONTINUATION, b"def"))
    engine = ServerEngine()
    lengths = []
    for byte in by_bytes(stream):
        engine.process(byte, ignore, ignore)
        lengths.append(engine.partial_len)
    header = [1, 2, 3, 4, 5]
    text = [*header, 0, 1, 2, 3]
    ping = [3 + have for have in (*header, 0, 1, 2, 3)] + [3]
    end = [3 + have for have in (*header, 0, 1, 2)] + [0]
    assert lengths == text + ping + end


def growth(chunks: Iterable[bytes]) -> tuple[int, int]:
    """How often the block of the message moved, and the bytes that were copied for it."""
    engine = ServerEngine(message_bytes_max=1 << 30)
    moves = copied = capacity = have = 0
    for chunk in chunks:
        engine.process(chunk, ignore, ignore)
        if memory(engine) != capacity and memory(engine) > 0:
            moves += 1
            copied += have
            capacity = memory(engine)
        have = engine.partial_len
    return moves, copied


@pytest.mark.parametrize("chunk_bytes", [1460, 16_384])
def test_a_large_message_costs_each_byte_a_constant_number_of_copies(chunk_bytes: int) -> None:
    size = 8 << 20
    stream = wire(Frame(BINARY, bytes(size), key=b"\0\0\0\0"))
    moves, copied = growth(stream[at : at + chunk_bytes] for at in range(0, len(stream), chunk_bytes))
    assert moves <= 8
    assert copied <= size


def test_a_message_of_many_fragments_costs_each_byte_a_constant_number_of_copies() -> None:
    size = 2 << 20
    first = wire(Frame(BINARY, b"", fin=False))
    fragment = wire(Frame(CONTINUATION, bytes(64), fin=False))
    moves, copied = growth([first, *([fragment * 256] * (size // 64 // 256))])
    assert moves <= 24
    assert copied <= 2 * size


def test_an_announced_length_alone_costs_no_memory() -> None:
    engine = ServerEngine(message_bytes_max=1 << 62)
    engine.process(struct.pack("!BBQ", 0x82, 0xFF, 1 << 61) + KEY + b"x" * 10, ignore, ignore)
    assert memory(engine) < 10_000


def test_engines_leak_nothing() -> None:
    stream = wire(Frame(TEXT, b"one", fin=False), Frame(CONTINUATION, b"x" * 100_000))
    for _ in range(50):
        engine = ServerEngine()
        engine.process_into(bytearray(stream), EngineMessage.echo)
        del engine  # abandoned with its segments pending: a leak is the sanitizers' to find
    gc.collect()


# Calls from inside of a handler, and from other threads

CALLS: dict[str, Callable[[ServerEngine, EngineMessage], object]] = {
    "clear_outbound": lambda engine, _: engine.clear_outbound(),
    "echo": lambda _, message: message.echo(),
    "send": lambda engine, _: engine.send(Opcode.BINARY, b"sent"),
    "send-message": lambda engine, message: engine.send(message),
    "send-large": lambda engine, _: engine.send(Opcode.BINARY, bytes(200_000)),
    "outbound_segments": lambda engine, _: engine.outbound_segments(),
    "outbound_local": lambda engine, _: engine.outbound_local(),
    "read": lambda engine, message: (engine.partial_len, engine.is_closed, engine.close_code, bytes(message)),
    "close": lambda engine, _: engine.close(),
}


def three_messages(size: int) -> tuple[list[bytes], bytes]:
    """Payloads, and a stream with them: the first message comes whole, the second one in fragments."""
    one, two, three = (bytes([number]) * size for number in (1, 2, 3))
    frames = [
        Frame(BINARY, one),
        Frame(BINARY, two, fin=False),
        Frame(PING, b"?"),
        Frame(CONTINUATION),
        Frame(BINARY, three),
    ]
    return [one, two, three], wire(*frames)


@pytest.mark.parametrize("size", [0, 5, 100_000])
@pytest.mark.parametrize("into", [False, True], ids=["process", "process_into"])
@pytest.mark.parametrize("names", list(itertools.product(CALLS, CALLS)), ids="+".join)
def test_a_handler_may_make_any_two_calls_while_more_messages_wait(
    names: tuple[str, str], size: int, *, into: bool
) -> None:
    engine = ServerEngine()
    seen: list[bytes] = []
    refused: list[tuple[str, type[Exception]]] = []
    payloads, stream = three_messages(size)

    def handler(message: EngineMessage) -> None:
        seen.append(bytes(message))
        for name in names:
            try:
                CALLS[name](engine, message)
            except (ConnectionClosed, RuntimeError) as error:
                refused.append((name, type(error)))

    if into:
        engine.process_into(bytearray(stream), handler)
        engine.clear_outbound()
    else:
        engine.process(stream, ignore, handler)
    assert seen == (payloads[:1] if "close" in names else payloads)
    if "close" in names:
        assert {error for _, error in refused} <= {ConnectionClosed}
    else:
        assert set(refused) == ({("echo", RuntimeError)} if names == ("echo", "echo") else set())
        engine.process(stream, ignore, handler)
        assert seen == 2 * payloads


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_segments_that_a_handler_clears_are_not_sent_and_later_ones_are(*, cut: bool) -> None:
    def answer(message: EngineMessage) -> None:
        message.echo()
        if bytes(message.data) == b"two":
            session.engine.clear_outbound()

    session = Session(answer=answer)
    stream = wire(*(Frame(TEXT, payload) for payload in (b"one", b"two", b"three", b"four")))
    session.feed(*([stream[:25], stream[25:]] if cut else [stream]))
    assert session.frames == [Frame(TEXT, b"three"), Frame(TEXT, b"four")]
    assert session.texts == [b"one", b"two", b"three", b"four"]


def test_nothing_is_written_if_data_is_refused_because_of_unsent_segments() -> None:
    """The caller of process_into sends its segments: if process wrote them too, they would go out twice."""
    engine = ServerEngine()
    segments = engine.process_into(bytearray(wire(Frame(TEXT, b"one"))), EngineMessage.echo)
    written: list[bytes] = []
    with pytest.raises(RuntimeError, match="clear_outbound"):
        engine.process(wire(Frame(TEXT, b"two")), written.append, ignore)
    assert written == []
    assert engine.outbound_segments() == segments


@pytest.mark.parametrize("name", [*CALLS, "process", "process_into"])
def test_another_thread_is_refused_while_a_handler_runs(name: str) -> None:
    """Two threads inside of one engine would change the same lists."""
    engine = ServerEngine()
    calls: dict[str, Callable[[ServerEngine, EngineMessage], object]] = {
        **CALLS,
        "process": lambda engine, _: engine.process(b"", ignore, ignore),
        "process_into": lambda engine, _: engine.process_into(bytearray(), ignore),
        "read": lambda engine, _: engine.partial_len,
    }
    raised: list[BaseException] = []

    def elsewhere(message: EngineMessage) -> None:
        try:
            calls[name](engine, message)
        except RuntimeError as error:
            raised.append(error)

    def handler(message: EngineMessage) -> None:
        thread = threading.Thread(target=elsewhere, args=(message,))
        thread.start()
        thread.join()

    engine.process(wire(Frame(TEXT, b"one")), ignore, handler)
    (error,) = raised
    assert "another thread" in str(error)
    thread = threading.Thread(target=engine.send, args=(Opcode.TEXT, b"afterwards"))
    thread.start()
    thread.join()
    assert decode(engine.outbound_local())[0] == [Frame(TEXT, b"afterwards")]


@pytest.mark.parametrize("value", [0, -1, 2**63, 2**64, 2**100])
def test_a_limit_that_no_message_can_have_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="message_bytes_max"):
        ServerEngine(message_bytes_max=value)


@pytest.mark.parametrize("value", [1.5, "1", None, True])
def test_a_limit_is_a_whole_number(value: object) -> None:
    with pytest.raises(TypeError, match="message_bytes_max"):
        ServerEngine(message_bytes_max=value)  # type: ignore[arg-type]


def test_an_engine_in_a_cycle_is_collected_with_the_message_that_it_holds() -> None:
    """A collector takes the parts of a cycle in any order; the sanitizers see one that is used after its end."""
    output: list[bytes] = []
    for number in range(50):
        engine = ServerEngine()
        engine.process(bytearray(b"\x82\xfe\x40\x00abcd" + bytes(1000)), output.append, lambda _: None)
        assert engine.partial_len >= 1000
        cycle: list[object] = [engine, number]
        cycle.append(cycle)
        del engine, cycle
        gc.collect(1)  # all that is new: to look at the whole heap each time takes half a minute with the sanitizers
    gc.collect()


# The shim's engine, which takes either side's frames


def shim_items(data: bytes, frame_rules: int, *, echo: bool = False) -> list[tuple[int, int]]:
    """Return the items that the shim's engine finds in `data`: the kind of each, and its opcode or its error."""
    engine, memory, taken, item = (
        ffi.new(f"struct {name} *") for name in ("urs_engine", "urs_memory", "urs_input", "urs_item")
    )
    rules = ffi.new("struct urs_engine_rules *", {"message_bytes_max": 1000})
    engine.frame_rules = frame_rules
    found = []
    with ffi.from_buffer("uint8_t[]", bytearray(data)) as buffer:
        taken.next, taken.end = buffer, buffer + len(data)
        while True:
            kind = lib.urs_engine_echo(engine, rules, taken, item) if echo else lib.URS_ITEM_NONE
            kind = kind or lib.urs_engine_next(engine, rules, memory, taken, item)
            if kind == lib.URS_ITEM_NONE:
                break
            found.append((kind, int(item.error or item.opcode)))
            lib.urs_block_drop(item.block)
    lib.urs_engine_clear(engine)
    lib.urs_memory_clear(memory)
    return found


@pytest.mark.parametrize("echo", [False, True], ids=["items", "echo"])
def test_an_engine_whose_peer_is_a_server_takes_only_frames_without_a_mask(*, echo: bool) -> None:
    frames = Frame(TEXT, b"a"), Frame(BINARY, b"b", fin=False), Frame(PING, b"p"), Frame(CONTINUATION, b"c")
    unmasked = b"".join(frame.encode() for frame in frames)
    found = [(lib.URS_ITEM_MESSAGE, TEXT), (lib.URS_ITEM_PING, PING), (lib.URS_ITEM_MESSAGE, BINARY)]
    assert shim_items(unmasked, lib.URS_FRAME_FROM_SERVER, echo=echo) == found
    assert shim_items(wire(*frames), lib.URS_FRAME_FROM_SERVER, echo=echo) == [
        (lib.URS_ITEM_FAILED, lib.URS_ERROR_MASKED)
    ]


@pytest.mark.parametrize("rules", [0, lib.URS_FRAME_FROM_CLIENT])
def test_an_engine_whose_peer_is_a_client_takes_only_frames_with_a_mask(rules: int) -> None:
    assert shim_items(wire(Frame(TEXT, b"a")), rules) == [(lib.URS_ITEM_MESSAGE, TEXT)]
    assert shim_items(Frame(TEXT, b"a").encode(), rules) == [(lib.URS_ITEM_FAILED, lib.URS_ERROR_UNMASKED)]
