"""`ServerEngine` against oracles: a plain server written here from RFC 6455, websockets' and wsproto's.

Streams are drawn at random: conversations that keep the rules, and the same with one rule broken. Whatever the chunks
in which a stream arrives, the engine has to deliver and to answer the same, and what each oracle does.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import websockets.exceptions
import websockets.frames
import wsproto.connection
import wsproto.events
import wsproto.utilities
from hypothesis import given
from hypothesis import strategies as st
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from codec import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, decode, decode_one
from uringws import EngineMessage, ServerEngine

MESSAGE_BYTES_MAX = 1000


@dataclass
class Outcome:
    """A server's results for a stream."""

    messages: list[tuple[int, bytes]] = field(default_factory=list)
    answers: list[Frame] = field(default_factory=list)
    """Echoes, pongs and the close frame, without its reason."""
    close_code: int | None = None


# ---- streams


@dataclass(frozen=True)
class Sent:
    """A frame, and the form in which it goes out."""

    frame: Frame
    length_bytes: int | None = None

    def encode(self) -> bytes:
        return self.frame.encode(self.length_bytes)


keys = st.binary(min_size=4, max_size=4)
texts = st.text(max_size=40)
close_codes = st.sampled_from([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 3000, 3999, 4000, 4999])
bad_close_codes = st.sampled_from([0, 1, 999, 1004, 1005, 1006, 1016, 1999, 2999, 5000, 65_535])


@st.composite
def control_frames(draw: st.DrawFn) -> Frame:
    return Frame(draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125)), key=draw(keys))


@st.composite
def messages(draw: st.DrawFn) -> list[Frame]:
    """A message in fragments, cut anywhere, with control frames between them."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(texts).encode() if opcode == TEXT else draw(st.binary(max_size=300))
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    parts = [payload[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(payload)])]
    frames = []
    for number, part in enumerate(parts):
        frames.append(Frame(CONTINUATION if number else opcode, part, number + 1 == len(parts), key=draw(keys)))
        if number + 1 < len(parts):
            frames += draw(st.lists(control_frames(), max_size=1))
    return frames


@st.composite
def conversations(draw: st.DrawFn) -> list[Sent]:
    """Frames that keep every rule, with a close frame at the end or without."""
    groups = draw(st.lists(st.one_of(messages(), control_frames().map(lambda frame: [frame])), max_size=6))
    frames = [frame for group in groups for frame in group]
    if draw(st.booleans()):
        payload = struct.pack("!H", draw(close_codes)) + draw(st.text(max_size=30)).encode()
        frames.append(Frame(CLOSE, draw(st.sampled_from([b"", payload])), key=draw(keys)))
    return [Sent(frame) for frame in frames]


def broken(frame: Frame) -> st.SearchStrategy[Sent]:
    """The frame with a rule broken, or another that breaks one."""
    payload = frame.payload
    long = payload.ljust(126, b"x")
    return st.one_of(
        st.sampled_from([1, 2, 3, 4, 7]).map(lambda rsv: Sent(replace(frame, rsv=rsv))),
        st.sampled_from([3, 4, 5, 6, 7, 11, 15]).map(lambda opcode: Sent(replace(frame, opcode=opcode))),
        st.just(Sent(replace(frame, key=None))),
        st.just(Sent(replace(frame, opcode=PING, fin=False))),
        st.just(Sent(replace(frame, opcode=PING, fin=True, payload=long))),
        st.just(Sent(replace(frame, opcode=CLOSE, fin=True, payload=b"\x03"))),
        bad_close_codes.map(lambda code: Sent(replace(frame, opcode=CLOSE, fin=True, payload=struct.pack("!H", code)))),
        st.just(Sent(replace(frame, opcode=CLOSE, fin=True, payload=b"\x03\xe8\xff"))),
        st.just(Sent(replace(frame, opcode=TEXT if frame.opcode == CONTINUATION else CONTINUATION))),
        st.sampled_from([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]).map(
            lambda bad: Sent(replace(frame, opcode=TEXT, payload=payload + bad, fin=True))
        ),
        st.just(Sent(replace(frame, payload=payload * (MESSAGE_BYTES_MAX // max(1, len(payload)) + 1) + b"x" * 1001))),
    )


@st.composite
def violations(draw: st.DrawFn) -> list[Sent]:
    """A conversation in which one frame was changed to break a rule (sometimes without effect: then it breaks none)."""
    sent = draw(conversations()) or [Sent(Frame(TEXT, b"x", key=bytes(4)))]
    at = draw(st.integers(0, len(sent) - 1))
    sent[at] = draw(broken(sent[at].frame))
    return sent


@st.composite
def with_needless_lengths(draw: st.DrawFn) -> list[Sent]:
    """A conversation of which one frame has its length in a longer form than it needs."""
    sent = draw(conversations()) or [Sent(Frame(TEXT, b"x", key=bytes(4)))]
    at = draw(st.integers(0, len(sent) - 1))
    frame = sent[at].frame
    sent[at] = Sent(frame, draw(st.sampled_from([2, 8] if len(frame.payload) < 126 else [8])))
    return sent


streams = st.one_of(conversations(), violations(), with_needless_lengths())


def encode(sent: Iterable[Sent]) -> bytes:
    return b"".join(one.encode() for one in sent)


# ---- servers


def in_chunks(stream: bytes, size_max: int, seed: int | None = None) -> Iterator[bytes]:
    """The stream in chunks of that size; with a seed, of random sizes up to it."""
    source = None if seed is None else random.Random(seed)
    at = 0
    while at < len(stream):
        size = size_max if source is None else source.randint(1, size_max)
        yield stream[at : at + size]
        at += size


def engine_outcome(chunks: Iterable[bytes], *, frames: bool = False) -> Outcome:
    outcome = Outcome()
    written: list[bytes] = []

    def handle(message: EngineMessage) -> None:
        outcome.messages.append((message.opcode, bytes(message)))
        message.echo()

    engine = ServerEngine(message_bytes_max=MESSAGE_BYTES_MAX, frames=frames)
    for chunk in chunks:
        engine.process(chunk, written.append, handle)
    outcome.answers, rest = decode(b"".join(written))
    assert rest == b""
    outcome.answers = [without_reason(frame) for frame in outcome.answers]
    outcome.close_code = engine.close_code
    assert engine.is_closed == (engine.close_code is not None)
    assert not engine.is_closed or engine.partial_len == 0
    return outcome


def without_reason(frame: Frame) -> Frame:
    return replace(frame, payload=frame.payload[:2]) if frame.opcode == CLOSE else frame


class BrokenRuleError(Exception):
    """The connection has to be failed with that code, RFC 6455 7.1.7."""

    def __init__(self, code: int) -> None:
        self.code = code


class PlainServer:
    """RFC 6455 sections 5 and 7, a frame at a time, with no thought of speed. It echoes."""

    def __init__(self) -> None:
        self.outcome = Outcome()
        self.opcode = 0
        self.message = b""

    def take(self, stream: bytes) -> Outcome:
        """Take all whole frames of the stream."""
        start = 0
        try:
            while self.outcome.close_code is None and (found := decode_one(stream, start)) is not None:
                frame, stop = found
                header_bytes = stop - start - len(frame.payload)
                self.check(frame, header_bytes)
                self.take_frame(frame)
                start = stop
        except BrokenRuleError as failure:
            self.end(failure.code, failure.code)
        return self.outcome

    def check(self, frame: Frame, header_bytes: int) -> None:
        size = len(frame.payload)
        shortest = 2 + 4 + (0 if size < 126 else 2 if size < 65_536 else 8)
        control = frame.opcode >= CLOSE
        known = frame.opcode in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG)
        if frame.rsv or not known or frame.key is None or (control and (size > 125 or not frame.fin)):
            raise BrokenRuleError(1002)
        if header_bytes != shortest:
            raise BrokenRuleError(1002)

    def take_frame(self, frame: Frame) -> None:
        if frame.opcode == PING:
            self.outcome.answers.append(Frame(PONG, frame.payload))
        elif frame.opcode == CLOSE:
            self.take_close(frame.payload)
        elif frame.opcode != PONG:
            self.take_data(frame)

    def take_data(self, frame: Frame) -> None:
        if (frame.opcode == CONTINUATION) != (self.opcode != 0):
            raise BrokenRuleError(1002)
        self.opcode = self.opcode or frame.opcode
        self.message += frame.payload
        if len(self.message) > MESSAGE_BYTES_MAX:
            raise BrokenRuleError(1009)
        if self.opcode == TEXT and not is_utf8(self.message, whole=frame.fin):
            raise BrokenRuleError(1007)
        if frame.fin:
            self.outcome.messages.append((self.opcode, self.message))
            self.outcome.answers.append(Frame(self.opcode, self.message))
            self.opcode, self.message = 0, b""

    def take_close(self, payload: bytes) -> None:
        if payload == b"":
            self.end(1005, None)
            return
        code = int.from_bytes(payload[:2])
        if len(payload) == 1 or not (code in {1000, 1001, 1002, 1003} or 1007 <= code <= 1014 or 3000 <= code <= 4999):
            raise BrokenRuleError(1002)
        if not is_utf8(payload[2:], whole=True):
            raise BrokenRuleError(1007)
        self.end(code, code)

    def end(self, code: int, answer: int | None) -> None:
        self.outcome.close_code = code
        self.outcome.answers.append(Frame(CLOSE, b"" if answer is None else struct.pack("!H", answer)))


def is_utf8(text: bytes, *, whole: bool) -> bool:
    """Whether the bytes are UTF-8, or (`whole` False) could be the beginning of it."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return not whole and error.reason == "unexpected end of data"
    return True


# ---- the engine against itself


@given(streams, st.integers(2, 100), st.integers(0, 255))
def test_chunks_make_no_difference(sent: list[Sent], size_max: int, seed: int) -> None:
    stream = encode(sent)
    whole = engine_outcome([stream])
    assert engine_outcome(in_chunks(stream, 1)) == whole
    assert engine_outcome(in_chunks(stream, size_max, seed)) == whole


@given(streams, st.integers(1, 30))
def test_chunks_make_no_difference_to_frames(sent: list[Sent], size: int) -> None:
    stream = encode(sent)
    whole = engine_outcome([stream], frames=True)
    assert engine_outcome(in_chunks(stream, size), frames=True) == whole


@given(st.binary(max_size=200), st.integers(1, 9))
def test_chunks_make_no_difference_to_noise(noise: bytes, size: int) -> None:
    assert engine_outcome(in_chunks(noise, size)) == engine_outcome([noise])


# ---- against others


@given(streams)
def test_a_plain_server_does_the_same(sent: list[Sent]) -> None:
    stream = encode(sent)
    assert engine_outcome([stream]) == PlainServer().take(stream)


@given(streams, st.data())
def test_a_stream_cut_short_gives_its_complete_messages(sent: list[Sent], data: st.DataObject) -> None:
    stream = encode(sent)
    cut = stream[: data.draw(st.integers(0, len(stream)))]
    outcome = engine_outcome([cut])
    plain = PlainServer().take(cut)
    if outcome.close_code == plain.close_code:
        assert outcome == plain
    else:
        # A violation may be reported before the whole frame has come, but never for frames that keep the rules.
        assert outcome.messages == plain.messages
        assert plain.close_code is None
        assert outcome.close_code == PlainServer().take(stream + bytes(1 << 11)).close_code


@given(conversations(), st.integers(1, 100))
def test_websockets_receives_the_same_frames(sent: list[Sent], size: int) -> None:
    stream = encode(sent)
    protocol = ServerProtocol(state=OPEN)
    ours: list[tuple[int, bool, bytes]] = []
    engine = ServerEngine(frames=True)
    for chunk in in_chunks(stream, size):
        protocol.receive_data(chunk)
        engine.process(chunk, lambda _: None, lambda frame: ours.append((frame.opcode, frame.fin, bytes(frame))))
    events = [event for event in protocol.events_received() if isinstance(event, websockets.frames.Frame)]
    theirs = [(int(event.opcode), event.fin, bytes(event.data)) for event in events if event.opcode < CLOSE]
    assert ours == theirs
    assert protocol.parser_exc is None
    assert engine.close_code == (None if protocol.close_rcvd is None else protocol.close_rcvd.code)


@given(violations())
def test_websockets_refuses_the_same(sent: list[Sent]) -> None:
    """Except for checks that websockets leaves to its upper layers (UTF-8 of text), and for two differences: a close
    frame inside a fragmented message, which RFC 6455 5.4 allows, and the order of two broken rules.
    """
    stream = encode(sent)
    protocol = ServerProtocol(state=OPEN, max_size=MESSAGE_BYTES_MAX)
    protocol.receive_data(stream)
    outcome = engine_outcome([stream])
    if protocol.parser_exc is None:
        assert outcome.close_code in {None, 1007} or outcome.close_code == protocol.close_code
    elif "incomplete fragmented message" not in str(protocol.parser_exc) and outcome.close_code != 1007:
        assert protocol.close_sent is not None
        assert outcome.close_code in {1002, protocol.close_sent.code}


def wsproto_outcome(chunks: Iterable[bytes]) -> Outcome:
    outcome = Outcome()
    connection = wsproto.connection.Connection(wsproto.connection.ConnectionType.SERVER)
    message = b""
    try:
        for chunk in chunks:
            connection.receive_data(chunk)
            for event in connection.events():
                match event:
                    case wsproto.events.Message(data=data, message_finished=finished):
                        opcode = TEXT if isinstance(data, str) else BINARY
                        message += data.encode() if isinstance(data, str) else bytes(data)
                        if finished:
                            outcome.messages.append((opcode, message))
                            message = b""
                    case wsproto.events.CloseConnection(code=code):
                        outcome.close_code = code
                        return outcome
    except wsproto.utilities.RemoteProtocolError as error:
        hint = error.event_hint
        assert isinstance(hint, wsproto.events.CloseConnection)
        outcome.close_code = hint.code
    return outcome


@given(st.one_of(conversations(), violations(), with_needless_lengths()), st.integers(1, 100))
def test_wsproto_receives_and_refuses_the_same(sent: list[Sent], size: int) -> None:
    """Except for messages over a limit: wsproto has no limit."""
    stream = encode(sent)
    outcome = engine_outcome([stream])
    if outcome.close_code == 1009:
        return
    theirs = wsproto_outcome(in_chunks(stream, size))
    assert (outcome.messages, outcome.close_code) == (theirs.messages, theirs.close_code)
