"""`ServerEngine` in its pull form: chunks in, columns and bytes out. wire.py makes the streams, codec.py reads answers.

The frames, limits and endings of RFC 6455 are tested in test_engine.py for the callback form; here both must agree.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from codec import Frame, decode
from uringws import Close, CloseCode, Closing, ConnectionClosed, EngineColumns, EngineMessage, Opcode, ServerEngine
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame

Event = tuple[int, object, int]


def events_of(columns: EngineColumns) -> list[Event]:
    return list(zip(columns.opcodes, columns.payloads, columns.fins, strict=True))


def drain(engine: ServerEngine, chunks: list[bytes], events_max: int = 256) -> tuple[list[Event], bytes]:
    """Feed the chunks, go on while anything is held, and return all events and replies."""
    events: list[Event] = []
    reply = b""
    for chunk in chunks:
        columns = engine.feed(chunk, events_max)
        while True:
            assert len(columns.opcodes) <= events_max
            assert columns.held_len == engine.held_len
            events += events_of(columns)
            reply += columns.reply
            if columns.held_len == 0:
                break
            columns = engine.feed(b"", events_max)
    return events, reply


def chunks_of(data: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, and cut at random places."""
    cut = []
    for seed in range(5):
        marks = sorted(random.Random(seed).sample(range(len(data)), 5))
        cut.append([data[start:stop] for start, stop in zip([0, *marks], [*marks, len(data)], strict=True)])
    return [[data], [data[at : at + 1] for at in range(len(data))], *cut]


CONVERSATION = (
    frame(TEXT, "größer".encode())
    + frame(BINARY, b"\xff" * 300)
    + frame(PING, b"still there?")
    + frame(TEXT, "漢".encode()[:1], fin=False)
    + frame(PONG, b"unasked")
    + frame(CONTINUATION, "漢".encode()[1:])
    + frame(BINARY, b"")
    + frame(BINARY, b"x" * 9000)
    + close_frame(4321, "bye ü")
)
MESSAGES: list[Event] = [
    (TEXT, "größer", 1),
    (BINARY, b"\xff" * 300, 1),
    (PING, b"still there?", 1),
    (PONG, b"unasked", 1),
    (TEXT, "漢", 1),
    (BINARY, b"", 1),
    (BINARY, b"x" * 9000, 1),
    (CLOSE, "bye ü", 1),
]


@pytest.mark.parametrize("events_max", [1, 2, 256])
@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_events_do_not_depend_on_how_they_arrive(events_max: int, make: Callable[[bytes], bytes]) -> None:
    for chunks in chunks_of(CONVERSATION):
        engine = ServerEngine()
        events, reply = drain(engine, [make(chunk) for chunk in chunks], events_max)
        assert events == MESSAGES
        assert decode(reply) == ([Frame(PONG, b"still there?"), Frame(CLOSE, struct.pack("!H", 4321))], b"")
        assert engine.is_closed
        assert engine.closing == Closing(Close(4321), Close(4321, "bye ü"), received_first=True)
        assert engine.partial_len == engine.held_len == 0


def test_frames_are_bytes_with_their_boundaries() -> None:
    stream = frame(TEXT, "é".encode()[:1], fin=False) + frame(PING) + frame(CONTINUATION, "é".encode()[1:])
    for chunks in chunks_of(stream + frame(TEXT, b"whole")):
        events, _ = drain(ServerEngine(frames=True), chunks)
        assert events == [
            (TEXT, b"\xc3", 0),
            (PING, b"", 1),
            (CONTINUATION, b"\xa9", 1),
            (TEXT, b"whole", 1),
        ]


def test_text_comes_as_bytes_on_request() -> None:
    events, _ = drain(ServerEngine(decode_text=False), [frame(TEXT, "né".encode())])
    assert events == [(TEXT, "né".encode(), 1)]


def test_bytes_are_left_as_they_are_and_a_writable_buffer_is_unmasked_in_place() -> None:
    data = frame(TEXT, b"hello")
    kept = bytes(bytearray(data))
    ServerEngine().feed(data)
    assert data == kept
    buffer = bytearray(data)
    ServerEngine().feed(buffer)
    assert buffer == data[:6] + b"hello"
    buffer.clear()  # it is not held


def test_payloads_outlive_the_engine_and_the_chunk() -> None:
    buffer = bytearray(frame(BINARY, b"kept" * 100))
    engine = ServerEngine()
    columns = engine.feed(buffer)
    buffer[:] = bytes(len(buffer))
    del engine
    assert columns.payloads == [b"kept" * 100]


def test_feeding_stops_in_the_middle_of_a_chunk() -> None:
    engine = ServerEngine()
    stream = b"".join(frame(TEXT, b"%d" % number) for number in range(10))
    first = engine.feed(stream, 3)
    assert first.payloads == ["0", "1", "2"]
    assert first.held_len == engine.held_len == 7 * 7
    second = engine.feed(frame(TEXT, b"10") + frame(TEXT, b"cut")[:4], 3)  # the new bytes come after those held
    assert second.payloads == ["3", "4", "5"]
    rest = engine.feed(b"")
    assert rest.payloads == ["6", "7", "8", "9", "10"]
    assert (rest.held_len, engine.partial_len) == (0, 4)


def test_the_close_frame_comes_after_held_input() -> None:
    engine = ServerEngine()
    columns = engine.feed(frame(TEXT, b"a") + close_frame(1001), 1)
    assert (columns.payloads, columns.reply, engine.is_closed) == (["a"], b"", False)
    columns = engine.feed(b"", 1)
    assert (columns.opcodes, engine.is_closed) == (bytes([CLOSE]), True)


VIOLATIONS = {
    "reserved-bit": (frame(TEXT, b"a", rsv=4), 1002),
    "unmasked": (frame(TEXT, b"a", key=None), 1002),
    "not-utf-8": (frame(TEXT, b"\xc0\xaf"), 1007),
    "too-big": (frame(BINARY, b"x" * 1001), 1009),
    "close-code": (close_frame(1005), 1002),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_a_close_event_with_the_close_frame_to_send(name: str) -> None:
    bad, code = VIOLATIONS[name]
    for chunks in chunks_of(frame(TEXT, b"good") + bad):
        engine = ServerEngine(message_bytes_max=1000)
        events, reply = drain(engine, chunks)
        (close,), rest = decode(reply)
        assert rest == b""
        assert close == Frame(CLOSE, struct.pack("!H", code) + engine.close_reason.encode())
        assert events == [(TEXT, "good", 1), (CLOSE, engine.close_reason, 1)]
        assert (engine.is_closed, engine.close_code) == (True, code)
        assert engine.closing == Closing(Close(code, engine.close_reason), None, received_first=False)
        assert drain(engine, [frame(TEXT, b"late")]) == ([], b"")


def test_messages_after_our_close_are_given_and_pings_are_not_answered() -> None:
    engine = ServerEngine()
    assert decode(engine.encode_close(4000, "enough"))[0] == [Frame(CLOSE, struct.pack("!H", 4000) + b"enough")]
    assert (engine.is_closing, engine.is_closed) == (True, False)
    assert engine.closing == Closing(Close(4000, "enough"), None, received_first=False)
    columns = engine.feed(frame(TEXT, b"late") + frame(PING, b"?") + close_frame(4001, "too"))
    assert events_of(columns) == [(TEXT, "late", 1), (PING, b"?", 1), (CLOSE, "too", 1)]
    assert columns.reply == b""
    assert engine.closing == Closing(Close(4000, "enough"), Close(4001, "too"), received_first=False)


def test_a_close_without_a_code_is_1005() -> None:
    engine = ServerEngine()
    assert decode(engine.feed(close_frame(None)).reply)[0] == [Frame(CLOSE)]
    assert engine.closing == Closing(Close(1005), Close(1005), received_first=True)
    engine = ServerEngine()
    assert decode(engine.encode_close(None))[0] == [Frame(CLOSE)]
    assert engine.closing == Closing(Close(1005), None, received_first=False)


# Frames out


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_frames_are_encoded(size: int, make: Callable[[bytes], bytes]) -> None:
    payload = random.Random(size).randbytes(size)
    engine = ServerEngine()
    assert decode(engine.encode(Opcode.BINARY, make(payload))) == ([Frame(BINARY, payload)], b"")
    assert b"".join(engine.encode_vectors(Opcode.BINARY, make(payload))) == engine.encode(Opcode.BINARY, payload)


def test_text_is_encoded_from_str_and_bytes() -> None:
    engine = ServerEngine()
    for payload in ("größe 漢", "größe 漢".encode()):
        assert decode(engine.encode(Opcode.TEXT, payload))[0] == [Frame(TEXT, "größe 漢".encode())]


def test_a_large_payload_is_not_copied_into_vectors() -> None:
    payload = bytearray(100_000)
    _, view = ServerEngine().encode_vectors(Opcode.BINARY, payload)
    payload[0] = 1
    assert view[0] == 1


def test_fragments_are_encoded_with_pings_between_them() -> None:
    engine = ServerEngine()
    sent = engine.encode(Opcode.TEXT, "a", fin=False)
    sent += engine.encode(Opcode.PING, b"?")
    sent += engine.encode(Opcode.CONTINUATION, "b", fin=False)
    sent += engine.encode(Opcode.CONTINUATION, b"")
    sent += engine.encode(Opcode.TEXT, "c")
    assert decode(sent)[0] == [
        Frame(TEXT, b"a", fin=False),
        Frame(PING, b"?"),
        Frame(CONTINUATION, b"b", fin=False),
        Frame(CONTINUATION, b""),
        Frame(TEXT, b"c"),
    ]


def unfinished(engine: ServerEngine) -> ServerEngine:
    engine.encode(Opcode.TEXT, "a", fin=False)
    return engine


MISUSE: dict[str, tuple[Callable[[ServerEngine], object], type[Exception]]] = {
    "close-opcode": (lambda engine: engine.encode(Opcode.CLOSE, b""), ValueError),
    "unknown-opcode": (lambda engine: engine.encode(3, b""), ValueError),
    "long-ping": (lambda engine: engine.encode(Opcode.PING, b"x" * 126), ValueError),
    "fragmented-ping": (lambda engine: engine.encode(Opcode.PING, b"", fin=False), ValueError),
    "text-as-binary": (lambda engine: engine.encode(Opcode.BINARY, "text"), TypeError),
    "no-payload": (lambda engine: engine.encode(Opcode.TEXT, None), TypeError),  # type: ignore[arg-type]
    "surrogate": (lambda engine: engine.encode(Opcode.TEXT, "\ud800"), UnicodeEncodeError),
    "nothing-to-continue": (lambda engine: engine.encode(Opcode.CONTINUATION, b""), ValueError),
    "message-in-a-message": (lambda engine: unfinished(engine).encode(Opcode.BINARY, b""), ValueError),
    "text-in-a-message": (lambda engine: unfinished(engine).encode(Opcode.TEXT, "b"), ValueError),
    "bad-close-code": (lambda engine: engine.encode_close(1005), ValueError),
    "long-reason": (lambda engine: engine.encode_close(1000, "x" * 124), ValueError),
    "feed-str": (lambda engine: engine.feed("text"), TypeError),
    "feed-none": (lambda engine: engine.feed(None), TypeError),
    "no-events": (lambda engine: engine.feed(b"", 0), ValueError),
    "too-many-events": (lambda engine: engine.feed(b"", 1025), ValueError),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_raises_and_leaves_the_engine_open(name: str) -> None:
    call, error = MISUSE[name]
    engine = ServerEngine()
    with pytest.raises(error):
        call(engine)
    assert not engine.is_closing
    assert engine.feed(frame(TEXT, b"go on")).payloads == ["go on"]


@pytest.mark.parametrize("end", [lambda engine: engine.encode_close(), lambda engine: engine.feed(close_frame())])
def test_nothing_may_be_sent_after_a_close_frame(end: Callable[[ServerEngine], object]) -> None:
    engine = ServerEngine()
    end(engine)
    for call in (
        lambda: engine.encode(Opcode.TEXT, "late"),
        lambda: engine.encode_vectors(Opcode.TEXT, "late"),
        engine.encode_close,
    ):
        with pytest.raises(ConnectionClosed):
            call()


# Both forms


def test_the_callback_form_is_refused_while_input_is_held() -> None:
    engine = ServerEngine()
    engine.feed(frame(TEXT, b"a") * 2, 1)
    with pytest.raises(RuntimeError, match="held_len"):
        engine.process(b"", print, print)
    assert engine.feed(b"").payloads == ["a"]
    seen: list[str] = []
    engine.process(frame(TEXT, b"b"), print, lambda message: seen.append(message.text()))
    assert seen == ["b"]


def test_feed_is_refused_in_a_handler_and_before_the_segments_are_cleared() -> None:
    engine = ServerEngine()

    def feed_again(message: EngineMessage) -> None:
        with pytest.raises(RuntimeError, match="handler"):
            engine.feed(b"")
        message.echo()

    engine.process_into(bytearray(frame(TEXT, b"a")), feed_again)
    with pytest.raises(RuntimeError, match="clear_outbound"):
        engine.feed(b"")
    engine.clear_outbound()
    assert engine.feed(frame(TEXT, b"b")).payloads == ["b"]


def test_closing_is_the_same_in_the_callback_form() -> None:
    assert ServerEngine().closing is None
    engine = ServerEngine()
    engine.close(4000, "enough")
    engine.process(close_frame(4001), print, print)
    assert engine.closing == Closing(Close(4000, "enough"), Close(4001), received_first=False)
    engine = ServerEngine()
    engine.process(close_frame(1001, "bye"), lambda _: None, print)
    assert engine.closing == Closing(Close(1001), Close(1001, "bye"), received_first=True)


# Costs


def test_no_large_block_is_kept_after_a_large_message() -> None:
    engine = ServerEngine()
    for part in (b"x" * 300_000, b"y" * 3_000_000):
        stream = frame(BINARY, part)
        drain(engine, [stream[:1000], stream[1000:]])
    assert engine._memory.bytes_used == 0
    assert engine._memory.cached_bytes <= 128 * 1024


def test_a_flood_of_pings_costs_no_more_than_it_sent() -> None:
    engine = ServerEngine()
    columns = engine.feed(frame(PING) * 5000, 1024)
    assert len(columns.reply) == 2 * 1024
    assert columns.held_len == 6 * (5000 - 1024)


def test_an_engine_freed_while_it_holds_input_leaks_nothing() -> None:
    """AddressSanitizer looks for the leak."""
    engine = ServerEngine()
    engine.feed(frame(BINARY, b"x" * 100) * 10 + frame(BINARY, b"cut" * 100_000)[:200_000], 1)
    assert engine.close_code is None
    del engine


def test_close_codes_are_numbers_of_the_protocol() -> None:
    engine = ServerEngine()
    engine.encode_close(CloseCode.GOING_AWAY)
    assert engine.closing is not None
    assert engine.closing.sent == Close(1001)
