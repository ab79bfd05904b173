"""Messages that are sent in several frames, `send(..., fin=False)`, with everything that may or may not come between.

RFC 6455 5.4: only control frames may come between the fragments of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from servers import ReactorThread, Recorder, connected, run_until, wait_until
from uringws import BacklogFull, Connection, ConnectionClosed, Opcode, Options, Reactor, SendResult, ServerEngine
from uringws.backend import Backend
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, Peer, close_frame, frame

QUIET = Options(ping_interval_seconds=None)


class Pair:
    """A connection whose reactor is in the caller's thread, and its peer."""

    def __init__(self, backend: Backend, options: Options = QUIET, recorder: Recorder | None = None) -> None:
        self.recorder = recorder or Recorder()
        self.reactor = Reactor(self.recorder, options, backend=backend)
        self.peer = connected(self.reactor)
        (self.conn,) = self.recorder.connections.values()

    def read(self, count: int) -> list[Frame]:
        self.reactor.run_once(0)
        return self.peer.read_frames(count)

    def close(self) -> None:
        self.reactor.close()
        self.peer.close()


@pytest.fixture
def pair(backend: Backend) -> Iterator[Pair]:
    made = Pair(backend)
    yield made
    made.close()


SIZES = (0, 1, 125, 126, 65_535, 65_536, 200_000)


@pytest.mark.parametrize("size", SIZES)
def test_a_message_in_three_frames(pair: Pair, size: int) -> None:
    """Of sizes that go through the arena, and past it straight to the socket."""
    parts = [bytes([number]) * size for number in (1, 2, 3)]
    assert pair.conn.send(BINARY, parts[0], fin=False) in (SendResult.SENT, SendResult.QUEUED)
    pair.conn.send(CONTINUATION, bytearray(parts[1]), fin=False)
    pair.conn.send(Opcode.CONTINUATION, parts[2])
    got = pair.read(3)
    assert got == [
        Frame(BINARY, parts[0], fin=False),
        Frame(CONTINUATION, parts[1], fin=False),
        Frame(CONTINUATION, parts[2]),
    ]
    assert pair.reactor.stats().messages_out == 1


def test_text_in_two_frames_and_then_whole_messages(pair: Pair) -> None:
    pair.conn.send(TEXT, "grün", fin=False)
    pair.conn.send(CONTINUATION, "er Tee")
    pair.conn.send("whole")
    pair.conn.send(b"whole", fin=False)
    pair.conn.send(CONTINUATION, b"")
    assert pair.read(5) == [
        Frame(TEXT, "grün".encode(), fin=False),
        Frame(CONTINUATION, b"er Tee"),
        Frame(TEXT, b"whole"),
        Frame(BINARY, b"whole", fin=False),
        Frame(CONTINUATION, b""),
    ]


def test_pings_pongs_and_the_close_frame_may_come_between(pair: Pair) -> None:
    pair.conn.send(TEXT, "a", fin=False)
    pair.conn.ping(b"p")
    pair.conn.send(PONG, b"q")
    pair.peer.send(PING, b"theirs")
    pair.reactor.run_once(1)
    pair.conn.send(CONTINUATION, "b", fin=False)
    pair.conn.close(1001)
    got = pair.read(6)
    assert [(one.opcode, one.fin) for one in got] == [
        (TEXT, False), (PING, True), (PONG, True), (PONG, True), (CONTINUATION, False), (CLOSE, True),
    ]  # fmt: skip
    with pytest.raises(ConnectionClosed):
        pair.conn.send(CONTINUATION, "c")


WRONG_INSIDE: dict[str, Callable[[Connection], object]] = {
    "a text": lambda conn: conn.send("x"),
    "bytes": lambda conn: conn.send(b"x"),
    "a buffer": lambda conn: conn.send(bytearray(70_000)),
    "send_text": lambda conn: conn.send_text("x"),
    "send_binary": lambda conn: conn.send_binary(b"x"),
    "a first fragment": lambda conn: conn.send(TEXT, "x", fin=False),
}


@pytest.mark.parametrize("name", WRONG_INSIDE)
def test_a_message_inside_a_fragmented_one_is_refused_and_nothing_of_it_sent(pair: Pair, name: str) -> None:
    pair.conn.send(TEXT, "a", fin=False)
    with pytest.raises(ValueError, match="unfinished"):
        WRONG_INSIDE[name](pair.conn)
    pair.conn.send(CONTINUATION, "b")
    WRONG_INSIDE[name](pair.conn)
    got = pair.read(3)
    assert got[:2] == [Frame(TEXT, b"a", fin=False), Frame(CONTINUATION, b"b")]
    assert got[2].opcode in (TEXT, BINARY)


@pytest.mark.parametrize("fin", [True, False])
def test_a_continuation_of_nothing_is_refused(pair: Pair, *, fin: bool) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="no fragmented message to continue"):
            pair.conn.send(CONTINUATION, "x", fin=fin)
        pair.conn.send("whole")
    assert pair.read(2) == [Frame(TEXT, b"whole")] * 2


def test_a_control_frame_cannot_be_fragmented(pair: Pair) -> None:
    for opcode in (PING, PONG):
        with pytest.raises(ValueError, match="cannot be fragmented"):
            pair.conn.send(opcode, b"x", fin=False)
    with pytest.raises(ValueError, match="cannot be sent"):
        pair.conn.send(CLOSE, b"", fin=False)


def test_each_connection_has_its_own_fragments(backend: Backend) -> None:
    recorder = Recorder()
    with Reactor(recorder, QUIET, backend=backend) as reactor, connected(reactor) as one, connected(reactor) as two:
        first, second = recorder.connections.values()
        first.send(TEXT, "a", fin=False)
        second.send("whole")
        first.send(CONTINUATION, "b")
        reactor.run_once(0)
        assert one.read_frames(2) == [Frame(TEXT, b"a", fin=False), Frame(CONTINUATION, b"b")]
        assert two.read_frame() == Frame(TEXT, b"whole")


# ---- echoes


class Acting(Recorder):
    def __init__(self, act: Callable[[Connection, Any], object]) -> None:
        super().__init__()
        self._act = act

    def on_message(self, conn: Connection, message: Any) -> None:
        super().on_message(conn, message)
        self._act(conn, message)


def echo_inside(conn: Connection, message: Any) -> None:
    conn.send(TEXT, "begun", fin=False)
    with pytest.raises(ValueError, match="fragmented message is unfinished"):
        conn.echo()
    conn.send(CONTINUATION, "ended")
    conn.echo()


def echo_before(conn: Connection, _: Any) -> None:
    conn.echo()
    conn.send(TEXT, "begun", fin=False)


def send_message_inside(conn: Connection, message: Any) -> None:
    conn.send(TEXT, "begun", fin=False)
    with pytest.raises(ValueError, match="unfinished"):
        conn.send(message)
    conn.send(CONTINUATION, "ended")


def test_an_echo_inside_a_fragmented_message_raises(backend: Backend) -> None:
    """Whatever it is that the connection has: the reactor's own handler, a subprotocol, a handler of its own."""
    with Reactor(Acting(echo_inside), QUIET, backend=backend) as reactor:
        kinds: tuple[dict[str, Any], ...] = ({}, {"subprotocol": "chat"}, {"handler": Acting(echo_inside)})
        for settings in kinds:
            with connected(reactor, **settings) as peer:
                for _ in range(2):
                    peer.send(TEXT, b"hello")
                    for _ in range(3):
                        reactor.run_once(0.1)
                    assert peer.read_frames(3) == [
                        Frame(TEXT, b"begun", fin=False),
                        Frame(CONTINUATION, b"ended"),
                        Frame(TEXT, b"hello"),
                    ]


def test_a_fragmented_message_that_begins_before_an_echo_leaves_closes_with_1011(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """An echo leaves after all that its handler sends: the connection must not lie about it."""
    pair = Pair(backend, recorder=Acting(echo_before))
    pair.peer.send(TEXT, b"hello")
    run_until(pair.reactor, lambda: pair.recorder.of("message"))
    assert pair.read(2) == [Frame(TEXT, b"begun", fin=False), Frame(CLOSE, b"\x03\xf3internal error")]
    pair.peer.write(close_frame(1011))
    run_until(pair.reactor, lambda: pair.recorder.of("close"))
    pair.close()
    assert "echo() while a fragmented message was unfinished" in caplog.text


def test_the_peers_fragments_may_end_a_message_of_ours(backend: Backend) -> None:
    class Ending(Recorder):
        def on_frame(self, conn: Connection, message: Any) -> None:
            if message.opcode != CONTINUATION:
                conn.send(TEXT, "mine ", fin=False)
            else:
                conn.echo()

    pair = Pair(backend, recorder=Ending())
    for _ in range(2):
        pair.peer.write(frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"b", fin=False), frame(CONTINUATION, b"c"))
        frames = [Frame(TEXT, b"mine ", fin=False), Frame(CONTINUATION, b"b", fin=False), Frame(CONTINUATION, b"c")]
        assert pair.read(3) == frames
    pair.close()


def test_the_message_that_is_handled_cannot_be_sent_inside_either(backend: Backend) -> None:
    pair = Pair(backend, recorder=Acting(send_message_inside))
    pair.peer.send(TEXT, b"hello")
    run_until(pair.reactor, lambda: pair.recorder.of("message"))
    assert pair.read(2) == [Frame(TEXT, b"begun", fin=False), Frame(CONTINUATION, b"ended")]
    pair.close()


def test_run_echo_does_not_break_into_a_fragmented_message_of_a_sender(backend: Backend) -> None:
    recorder = Recorder()
    with (
        ReactorThread(recorder, backend=backend, options=QUIET, run=lambda reactor: reactor.run_echo()) as server,
        Peer.connect(server.address) as peer,
    ):
        ((_, identity),) = recorder.wait_for("open")
        server.sender.send(identity, TEXT, "begun", fin=False)
        assert peer.read_frame() == Frame(TEXT, b"begun", fin=False)
        peer.send(TEXT, b"hello")
        assert peer.read_close() == 1011


class FrameEcho(Recorder):
    def __init__(self, wanted: Callable[[Any], bool]) -> None:
        super().__init__()
        self._wanted = wanted
        self.errors: list[str] = []

    def on_frame(self, conn: Connection, message: Any) -> None:
        self.record("frame", bytes(message))
        if self._wanted(message):
            conn.echo()
        elif bytes(message) == b"send":
            try:
                conn.send("mine")
            except ValueError as error:
                self.errors.append(str(error))


def test_echoed_fragments_are_fragments_of_ours(backend: Backend) -> None:
    """A send between them raises, because it would break into the message that is echoed."""
    recorder = FrameEcho(lambda message: bytes(message) != b"send")
    pair = Pair(backend, recorder=recorder)
    pair.peer.write(frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"send", fin=False), frame(CONTINUATION, b"c"))
    run_until(pair.reactor, lambda: len(recorder.of("frame")) == 3)
    assert pair.read(2) == [Frame(TEXT, b"a", fin=False), Frame(CONTINUATION, b"c")]
    assert len(recorder.errors) == 1
    assert "unfinished" in recorder.errors[0]
    pair.conn.send("whole")
    assert pair.read(1) == [Frame(TEXT, b"whole")]
    pair.close()


def test_a_fragment_echoed_without_its_beginning_closes_with_1011(backend: Backend) -> None:
    recorder = FrameEcho(lambda message: message.opcode == CONTINUATION)
    pair = Pair(backend, recorder=recorder)
    pair.peer.write(frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"b"))
    run_until(pair.reactor, lambda: len(recorder.of("frame")) == 2)
    assert pair.read(1) == [Frame(CLOSE, b"\x03\xf3internal error")]
    pair.close()


# ---- limits


@pytest.mark.parametrize("on_full", ["drop", "error", "close"])
def test_a_full_backlog_inside_a_fragmented_message(backend: Backend, on_full: Any) -> None:
    """A continuation is never dropped silently: "drop" raises for it as "error" does, and it may be sent again."""
    options = Options(backlog_bytes_max=100_000, on_full=on_full, ping_interval_seconds=None)
    pair = Pair(backend, options)
    pair.conn.send(BINARY, b"begun", fin=False)
    pair.conn.send(CONTINUATION, bytes(90_000), fin=False)
    big = bytes(100_001)
    if on_full == "close":
        assert pair.conn.send(CONTINUATION, big) is SendResult.DROPPED
        assert not pair.conn.is_open
    else:
        with pytest.raises(BacklogFull):
            pair.conn.send(CONTINUATION, big)
        with pytest.raises(ValueError, match="unfinished"):
            pair.conn.send("x")
        pair.conn.send(CONTINUATION, b"ended")
        run_until(pair.reactor, lambda: not pair.conn.buffered_amount, timeout=0.01)
        assert [len(got.payload) for got in pair.read(3)] == [5, 90_000, 5]
    pair.close()


def test_a_first_fragment_that_is_dropped_begins_nothing(backend: Backend) -> None:
    options = Options(backlog_bytes_max=1000, on_full="drop", ping_interval_seconds=None)
    pair = Pair(backend, options)
    assert pair.conn.send(BINARY, bytes(1001), fin=False) is SendResult.DROPPED
    with pytest.raises(ValueError, match="no fragmented message"):
        pair.conn.send(CONTINUATION, b"x")
    pair.conn.send("whole")
    assert pair.read(1) == [Frame(TEXT, b"whole")]
    pair.close()


# ---- from other threads


def test_a_sender_sends_fragments(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    with ReactorThread(recorder, backend=backend, options=QUIET) as server, Peer.connect(server.address) as peer:
        ((_, identity),) = recorder.wait_for("open")
        send = server.sender.send
        with pytest.raises(ValueError, match="cannot be fragmented"):
            send(identity, PING, b"", fin=False)
        assert send(identity, TEXT, "a", fin=False)
        assert send(identity, "a message in between")
        assert send(identity, CONTINUATION, bytearray(b"b"), fin=False)
        assert send(identity, CONTINUATION, "c")
        assert send(identity, CONTINUATION, "too much")
        assert send(identity, "whole")
        assert peer.read_frames(4) == [
            Frame(TEXT, b"a", fin=False),
            Frame(CONTINUATION, b"b", fin=False),
            Frame(CONTINUATION, b"c"),
            Frame(TEXT, b"whole"),
        ]
        wait_until(lambda: "no fragmented message to continue" in caplog.text)
        assert "a fragmented message is unfinished" in caplog.text


# ---- the engine alone


def test_the_engine_queues_fragments() -> None:
    engine = ServerEngine()
    engine.send(TEXT, "a", fin=False)
    for fin in (True, False):
        with pytest.raises(ValueError, match="unfinished"):
            engine.send(TEXT, "x", fin=fin)
    with pytest.raises(ValueError, match="unfinished"):
        engine.encode(TEXT, "x")
    engine.send(PING, b"p")
    with pytest.raises(ValueError, match="cannot be fragmented"):
        engine.send(PING, b"p", fin=False)
    engine.send(CONTINUATION, "b")
    with pytest.raises(ValueError, match="no fragmented message"):
        engine.send(CONTINUATION, "c")
    assert engine.outbound_local() == b"\x01\x01a\x89\x01p\x80\x01b"


def test_the_engine_refuses_an_echo_inside_a_fragmented_message() -> None:
    engine = ServerEngine()

    def handler(message: Any) -> None:
        engine.send(TEXT, "a", fin=False)
        with pytest.raises(ValueError, match="unfinished"):
            message.echo()
        message.send(CONTINUATION, "b")
        message.echo()

    written: list[bytes] = []
    engine.process(frame(TEXT, b"hi"), written.append, handler)
    assert b"".join(written) == b"\x01\x01a\x80\x01b\x81\x02hi"


def test_the_engine_echoes_fragments_in_their_order() -> None:
    engine = ServerEngine(frames=True)
    written: list[bytes] = []
    sent = frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b")
    engine.process(sent, written.append, lambda message: message.echo())
    assert b"".join(written) == b"\x01\x01a\x80\x01b"
    engine.send("whole")
