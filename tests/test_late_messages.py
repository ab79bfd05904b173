"""Messages between our close frame and the peer's, where `Options.deliver_while_closing` asks for them; and pongs."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from servers import ReactorThread, Recorder
from uringws import Connection, ConnectionClosed, Message, Options
from uringws.backend import Backend
from wire import BINARY, CLOSE, PING, PONG, TEXT, Peer, close_frame, frame

DELIVER = Options(deliver_while_closing=True, ping_interval_seconds=None)


class Closer(Recorder):
    """Closes its connection at the first message, and notes what it can do afterwards."""

    def __init__(self, act: Callable[[Connection], object] = Connection.close) -> None:
        super().__init__()
        self._act = act

    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        if len(self.of("message")) == 1:
            self._act(conn)

    def payloads(self) -> list[bytes]:
        return [event[3] for event in self.of("message")]


def talk(recorder: Closer, backend: Backend, options: Options, *chunks: bytes) -> list[bytes]:
    """Let a peer send the chunks, then a close frame; return the payloads of the messages that were delivered."""
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        peer.write(chunks[0])
        if len(chunks) > 1:
            assert peer.read_frame().opcode == CLOSE
        peer.write(*chunks[1:], close_frame())
        recorder.wait_for("close")
    return recorder.payloads()


ONE_BURST = (b"".join(frame(TEXT, text) for text in (b"first", b"second", b"third")),)
AFTER_THE_CLOSE_FRAME = (frame(TEXT, b"first"), frame(TEXT, b"second"), frame(TEXT, b"third"))
FRAGMENTS = (
    frame(TEXT, b"first"),
    frame(TEXT, b"sec", fin=False),
    frame(PING),
    frame(0, b"ond"),
    frame(TEXT, b"third"),
)
SAME_TURN_AND_LATER = (ONE_BURST[0][:-2], ONE_BURST[0][-2:])


@pytest.mark.parametrize(
    "chunks",
    [ONE_BURST, AFTER_THE_CLOSE_FRAME, FRAGMENTS, SAME_TURN_AND_LATER],
    ids=["in one burst", "after the close frame", "in fragments", "cut"],
)
@pytest.mark.parametrize("asked", [True, False])
def test_messages_before_the_peers_close_frame_are_delivered_if_asked_for(
    backend: Backend, chunks: tuple[bytes, ...], *, asked: bool
) -> None:
    recorder = Closer()
    options = Options(deliver_while_closing=asked, ping_interval_seconds=None)
    expected = [b"first", b"second", b"third"] if asked else [b"first"]
    assert talk(recorder, backend, options, *chunks) == expected
    assert recorder.events[-1][0] == "close", "on_close is the last callback"


def test_messages_of_many_turns_are_delivered(backend: Backend) -> None:
    """More than one turn's share, so that they lie in held input, and large ones, so that they lie in blocks."""
    texts = [b"%d" % number for number in range(500)] + [bytes(200_000), b"last"]
    recorder = Closer()
    assert talk(recorder, backend, DELIVER, b"".join(frame(BINARY, text) for text in texts)) == texts


def test_a_connection_that_the_server_failed_delivers_too(backend: Backend) -> None:
    """The shim closes it, at its session time, and no handler has called close()."""
    recorder = Recorder()
    options = Options(deliver_while_closing=True, session_seconds_max=0.05, ping_interval_seconds=None)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        assert peer.read_close() == 1001
        peer.write(frame(TEXT, b"late"), close_frame(1001))
        recorder.wait_for("close")
    assert [event[3] for event in recorder.of("message")] == [b"late"]


def test_nothing_is_delivered_after_an_abort(backend: Backend) -> None:
    recorder = Closer(Connection.abort)
    with ReactorThread(recorder, backend=backend, options=DELIVER) as server, Peer.connect(server.address) as peer:
        peer.write(*ONE_BURST)
        recorder.wait_for("close")
    assert recorder.payloads() == [b"first"]


def test_an_abort_while_closing_ends_the_delivery_and_not_that_of_the_next_connection(backend: Backend) -> None:
    class Aborter(Closer):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            if bytes(message) == b"second":
                conn.abort()

    recorder = Aborter()
    with ReactorThread(recorder, backend=backend, options=DELIVER) as server:
        with Peer.connect(server.address) as peer:
            peer.write(*ONE_BURST)
            recorder.wait_for("close")
        assert recorder.payloads() == [b"first", b"second"]
        recorder.events.clear()
        with Peer.connect(server.address) as peer:  # most likely in the same slot
            peer.write(frame(TEXT, b"first"), frame(TEXT, b"other"), close_frame())
            recorder.wait_for("close")
        assert recorder.payloads() == [b"first", b"other"]


def test_nothing_can_be_sent_from_a_late_message(backend: Backend) -> None:
    class Replier(Closer):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            if bytes(message) == b"first":
                return
            for call in (
                conn.echo,
                lambda: conn.send(message),
                lambda: conn.send(b"x"),
                conn.close,
                conn.pause_reading,
            ):
                try:
                    call()
                except ConnectionClosed:
                    self.record("refused")

    recorder = Replier()
    assert talk(recorder, backend, DELIVER, *ONE_BURST) == [b"first", b"second", b"third"]
    assert len(recorder.of("refused")) == 10


def test_a_late_message_is_readable_and_may_be_sent_elsewhere(backend: Backend) -> None:
    class Forwarder(Closer):
        def on_message(self, conn: Connection, message: Message) -> None:
            self.record("message", conn.id, message.opcode, message.text().encode(), bytes(message.data), len(message))
            others = [other for other in self.connections.values() if other is not conn and other.is_open]
            for other in others:
                other.send(message)
            if message.text() == "first":
                conn.close()

    recorder = Forwarder()
    with (
        ReactorThread(recorder, backend=backend, options=DELIVER) as server,
        Peer.connect(server.address) as listener,
        Peer.connect(server.address) as peer,
    ):
        recorder.wait_for("open", 2)
        peer.write(frame(TEXT, b"first"), frame(TEXT, b"second"))
        assert peer.read_close() == 1000
        peer.write(frame(TEXT, b"third"), close_frame())
        assert [got.payload for got in listener.read_frames(3)] == [b"first", b"second", b"third"]
    assert [event[2:] for event in recorder.of("message")] == [
        (TEXT, text, text, len(text)) for text in (b"first", b"second", b"third")
    ]


def test_a_handler_that_fails_on_a_late_message_is_logged_and_gets_the_next(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Closer):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            if bytes(message) == b"second":
                raise RuntimeError("as expected")

    recorder = Failing()
    with caplog.at_level(logging.ERROR, "uringws"):
        assert talk(recorder, backend, DELIVER, *ONE_BURST) == [b"first", b"second", b"third"]
    assert "as expected" in caplog.text
    assert recorder.of("close")[0][2] == 1000


def test_run_echo_neither_echoes_nor_delivers_late_messages(backend: Backend) -> None:
    recorder = Recorder()
    with (
        ReactorThread(recorder, backend=backend, options=DELIVER, run=lambda reactor: reactor.run_echo()) as server,
        Peer.connect(server.address) as peer,
    ):
        ((_, identity),) = recorder.wait_for("open")
        assert server.sender.close_connection(identity)
        assert peer.read_close() == 1000
        peer.write(frame(TEXT, b"late"), close_frame())
        recorder.wait_for("close")
        peer.read_eof()
    assert recorder.of("message") == []


class PongRecorder(Closer):
    def on_pong(self, conn: Connection, payload: bytes) -> None:
        assert type(payload) is bytes
        self.record("pong", conn.id, payload)


def test_pongs_are_given_to_a_handler_that_defines_on_pong(backend: Backend) -> None:
    """Answers and unsolicited ones alike (RFC 6455 5.5.3), in their order among the messages."""

    class Pinger(PongRecorder):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            conn.ping(b"are you there?")
            conn.ping()

    recorder = Pinger(lambda _: None)
    with ReactorThread(recorder, backend=backend, options=DELIVER) as server, Peer.connect(server.address) as peer:
        pings = peer.read_frames(2)
        assert [(ping.opcode, ping.payload) for ping in pings] == [(PING, b"are you there?"), (PING, b"")]
        peer.write(frame(PONG, pings[0].payload), frame(TEXT, b"between"), frame(PONG, b""), frame(PONG, b"x" * 125))
        recorder.wait_for("pong", 3)
    assert [event[0] + ":" + event[-1].decode() for event in recorder.events[1:5]] == [
        "pong:are you there?",
        "message:between",
        "pong:",
        "pong:" + "x" * 125,
    ]


def test_a_pong_may_come_byte_by_byte(backend: Backend) -> None:
    recorder = PongRecorder()
    with ReactorThread(recorder, backend=backend, options=DELIVER) as server, Peer.connect(server.address) as peer:
        for byte in frame(PONG, b"slowly"):
            peer.write(bytes([byte]))
        assert recorder.wait_for("pong")[0][2] == b"slowly"


def test_on_pong_gets_the_pongs_of_the_servers_pings_and_they_still_measure_latency(backend: Backend) -> None:
    recorder = PongRecorder()
    options = Options(ping_interval_seconds=0.05, ping_timeout_seconds=5)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        ping = peer.read_frame()
        assert ping.opcode == PING
        peer.write(frame(PONG, ping.payload))
        ((_, identity, payload),) = recorder.wait_for("pong")
        assert payload == ping.payload
        assert server.ask(lambda: recorder.connections[identity].latency_seconds) is not None


@pytest.mark.parametrize("asked", [True, False])
def test_pongs_after_our_close_frame_are_delivered_like_messages(backend: Backend, *, asked: bool) -> None:
    recorder = PongRecorder()
    options = Options(deliver_while_closing=asked, ping_interval_seconds=None)
    talk(recorder, backend, options, frame(TEXT, b"first") + frame(PONG, b"1"), frame(PONG, b"2"), frame(PONG, b"3"))
    assert [event[2] for event in recorder.of("pong")] == ([b"1", b"2", b"3"] if asked else [])
