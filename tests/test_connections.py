"""Calls of a handler beyond answering the current message: on other connections, closing its own, ending the loop."""

from __future__ import annotations

import contextlib
import socket
import time
import weakref
from collections.abc import Iterator

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, run_until
from uringws import (
    Connection,
    ConnectionClosed,
    Message,
    Options,
    Reactor,
    ReactorStateError,
    handler_fn,
)
from uringws.backend import Backend
from wire import BINARY, PING, PONG, TEXT, Frame, Peer, close_frame, distinct_payloads, frame, upgrade_request

QUIET = Options(ping_interval_seconds=None, close_seconds_max=0.2)


@contextlib.contextmanager
def pairs(count: int) -> Iterator[list[tuple[socket.socket, Peer]]]:
    """Socket pairs: the end for the reactor, and the client's."""
    with contextlib.ExitStack() as stack:
        made = [socket.socketpair() for _ in range(count)]
        yield [(stack.enter_context(ours), stack.enter_context(Peer(theirs))) for ours, theirs in made]


# Other connections


@pytest.mark.parametrize("size", [10, 16_000, 70_000])
def test_a_message_may_be_sent_to_all_as_it_lies(backend: Backend, size: int) -> None:
    class Broadcast(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            for other in self.connections.values():
                other.send(message.opcode, message.data)

    count, rounds = 5, 4
    payloads = distinct_payloads(count * rounds, size)
    with ReactorThread(Broadcast(), backend=backend) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(server.address)) for _ in range(count)]
        for number, peer in enumerate(peers):
            peer.write(*(frame(BINARY, payload) for payload in payloads[number::count]))
        for peer in peers:
            received = [frame.payload for frame in peer.read_frames(count * rounds)]
            for number in range(count):
                theirs = payloads[number::count]
                assert [payload for payload in received if payload in theirs] == theirs


@pytest.mark.parametrize("size", [10, 16_000, 70_000, 1 << 20])
def test_sent_bytes_do_not_change_with_the_message(backend: Backend, size: int) -> None:
    def answer(conn: Connection, message: Message) -> None:
        conn.send(message.opcode, message.data)
        message.data[:] = bytes(len(message))
        conn.echo()

    (payload,) = distinct_payloads(1, size)
    with ReactorThread(handler_fn(answer), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(BINARY, payload)
        assert peer.read_frames(2) == [Frame(BINARY, payload), Frame(BINARY, bytes(size))]


def test_closing_another_stops_its_messages_of_the_same_turn(backend: Backend) -> None:
    class CloseOthers(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            for other in self.connections.values():
                if other is not conn and other.is_open:
                    other.close(4000)

    recorder = CloseOthers()
    with pairs(3) as made, Reactor(recorder, QUIET, backend=backend) as reactor:
        for ours, peer in made:
            peer.write(frame(TEXT, b"one"), frame(TEXT, b"two"))
            reactor.add_session(ours)
        run_until(reactor, lambda: len(recorder.of("close")) == 2)
        assert [event[3] for event in recorder.of("message")] == [b"one", b"two"]
        assert len({event[1] for event in recorder.of("message")}) == 1
        assert {event[1] for event in recorder.of("close")} == {
            event[1] for event in recorder.of("open") if event[1] != recorder.of("message")[0][1]
        }


def test_a_handler_may_adopt_a_session(backend: Backend) -> None:
    class Adopt(EchoRecorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            if bytes(message) == b"adopt":
                reactor.add_session_with_prefix(second, frame(TEXT, b"early"))

    recorder = Adopt()
    with pairs(2) as ((first, peer), (second, adopted)), Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.add_session(first)
        peer.write(frame(TEXT, b"adopt"), frame(TEXT, b"after"))
        run_until(reactor, lambda: len(recorder.of("message")) == 3)
        reactor.run_once(0)
        assert peer.read_frames(2) == [Frame(TEXT, b"adopt"), Frame(TEXT, b"after")]
        assert adopted.read_frame() == Frame(TEXT, b"early")


# Its own end


def test_echo_and_sends_leave_before_the_close(backend: Backend) -> None:
    def last_words(conn: Connection, _: Message) -> None:
        conn.echo()
        conn.send_text("and")
        conn.close(4001, "done")

    with ReactorThread(handler_fn(last_words), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.write(frame(TEXT, b"echo"), frame(TEXT, b"never"))
        assert peer.read_frames(2) == [Frame(TEXT, b"and"), Frame(TEXT, b"echo")]
        assert peer.read_close() == 4001
        peer.write(close_frame(4001))
        peer.read_eof()


def test_close_from_on_open(backend: Backend) -> None:
    class Bouncer(Recorder):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            conn.close(4003, "full")

    recorder = Bouncer()
    with (
        ReactorThread(recorder, backend=backend) as server,
        Peer.connect(server.address, then=frame(TEXT, b"let me in")) as peer,
    ):
        assert peer.read_close() == 4003
        peer.write(close_frame(4003))
        peer.read_eof()
        recorder.wait_for("close")
    assert [event[0] for event in recorder.events] == ["open", "close"]


def test_closing_twice_or_sending_after_it_raises(backend: Backend) -> None:
    class Closer(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            conn.close()
            for attempt in (conn.close, lambda: conn.send_text("late"), conn.ping):
                with pytest.raises(ConnectionClosed):
                    attempt()
            self.record("tried")

        def on_close(self, conn: Connection, code: int, reason: str) -> None:
            super().on_close(conn, code, reason)
            assert not conn.is_open
            assert conn.buffered_amount == 0
            with pytest.raises(ConnectionClosed):
                conn.send_text("too late")
            self.record("tried")

    recorder = Closer()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"go")
        assert peer.read_close() == 1000
        peer.write(close_frame())
        peer.read_eof()
        recorder.wait_for("tried", 2)


def test_abort_ends_at_once_without_a_close_frame(backend: Backend) -> None:
    class Abort(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            conn.abort()

    recorder = Abort()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        peer.write(frame(TEXT, b"one"), frame(TEXT, b"two"))
        with contextlib.suppress(ConnectionResetError):
            peer.read_eof()
        ((_, _, code, _),) = recorder.wait_for("close")
    assert code == 1006
    assert [event[0] for event in recorder.events] == ["open", "message", "close"]


def test_answering_a_peer_that_has_left_is_not_logged_as_an_error(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    class Answer(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            try:
                conn.send_binary(bytes(1 << 20))
            finally:
                self.record("is_open", conn.is_open)

    recorder = Answer()
    with pairs(1) as ((ours, peer),), Reactor(recorder, QUIET, backend=backend) as reactor:
        peer.write(frame(TEXT, b"one"), frame(TEXT, b"two"))
        peer.close()
        reactor.add_session(ours)
        run_until(reactor, lambda: recorder.of("close"))
    assert [event[1] for event in recorder.of("is_open")] == [False, False]
    assert [event[2] for event in recorder.of("close")] == [1006]
    assert caplog.records == []


def test_echo_is_for_the_current_message(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        peer.send(TEXT, b"hello")
        assert peer.read_frame() == Frame(TEXT, b"hello")
        (conn,) = recorder.connections.values()
        with pytest.raises(RuntimeError):
            echo.ask(conn.echo)
        assert peer.quiet()


# Reading, and the round trip


def test_paused_reading_holds_messages_back_and_loses_none(echo: ReactorThread, recorder: EchoRecorder) -> None:
    payloads = distinct_payloads(20, 9000)
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        conn = recorder.connections[id_]
        echo.ask(conn.pause_reading)
        peer.write(*(frame(BINARY, payload) for payload in payloads))
        assert peer.quiet()
        assert recorder.of("message") == []
        echo.ask(lambda: conn.send_text("sending goes on"))
        assert peer.read_frame() == Frame(TEXT, b"sending goes on")
        echo.ask(conn.resume_reading)
        assert peer.read_frames(20) == [Frame(BINARY, payload) for payload in payloads]


def test_pausing_in_a_handler_holds_the_rest_of_the_turn_back(backend: Backend) -> None:
    class OneAtATime(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            conn.pause_reading()

    recorder = OneAtATime()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        peer.write(frame(TEXT, b"one"))
        ((_, id_, *_),) = recorder.wait_for("message")
        peer.write(frame(TEXT, b"two"))
        time.sleep(0.05)
        assert len(recorder.of("message")) == 1
        server.ask(recorder.connections[id_].resume_reading)
        assert [event[3] for event in recorder.wait_for("message", 2)] == [b"one", b"two"]


def test_latency_is_that_of_the_servers_pings(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(ping_interval_seconds=0.05)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        conn = recorder.connections[id_]
        assert server.ask(lambda: conn.latency_seconds) is None
        ping = peer.read_frame()
        assert ping.opcode == PING
        time.sleep(0.02)
        peer.write(frame(PONG, ping.payload), frame(TEXT, b"answered"))
        while peer.read_frame().opcode != TEXT:
            pass
        latency = server.ask(lambda: conn.latency_seconds)
        assert latency is not None
        assert 0.01 < latency < 5


# The loop's end


def test_stop_from_a_handler_ends_run_after_the_turn(backend: Backend) -> None:
    class Stopper(EchoRecorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            reactor.stop()

    recorder = Stopper()
    with pairs(1) as ((ours, peer),), Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
        peer.send(TEXT, b"stop")
        reactor.run()
        assert recorder.of("close") == []
        peer.send(TEXT, b"once more")
        reactor.run()
        reactor.run_once(0)
        assert peer.read_frames(2) == [Frame(TEXT, b"stop"), Frame(TEXT, b"once more")]


def test_drain_from_a_handler_ends_run_when_all_have_ended(backend: Backend) -> None:
    class Drainer(EchoRecorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            reactor.drain(code=4009)

    recorder = Drainer()
    with pairs(3) as made, Reactor(recorder, QUIET, backend=backend) as reactor:
        for ours, _ in made:
            reactor.add_session(ours)
        made[0][1].send(TEXT, b"drain")
        for _, peer in made:
            peer.write(close_frame(4009))
            peer.sock.shutdown(socket.SHUT_WR)
        reactor.run()
        assert made[0][1].read_frame() == Frame(TEXT, b"drain")
        for _, peer in made:
            assert peer.read_close() == 4009
            peer.read_eof()
    assert len(recorder.of("close")) == 3


def test_a_drain_first_sends_the_replies_of_the_turn_before(backend: Backend, recorder: EchoRecorder) -> None:
    with pairs(1) as ((ours, peer),), Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
        peer.send(TEXT, b"hello")
        run_until(reactor, lambda: recorder.of("message"))
        reactor.drain()
        assert peer.read_frame() == Frame(TEXT, b"hello")
        assert peer.read_close() == 1001


def test_a_drain_cuts_peers_that_do_not_leave(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    recorder = EchoRecorder()
    options = Options(close_seconds_max=30)
    with pairs(2) as made, Reactor(recorder, options, backend=backend) as reactor:
        for ours, _ in made:
            reactor.add_session(ours)
        start = time.monotonic()
        reactor.drain(0.2)
        assert 0.1 < time.monotonic() - start < 5
        assert len(recorder.of("close")) == 2
        for _, peer in made:
            assert peer.read_close() == 1001
            peer.read_eof()
    assert "2 sessions" in caplog.text


def test_the_loop_cannot_be_entered_twice(backend: Backend) -> None:
    errors: list[str] = []

    def reenter(conn: Connection, _: Message) -> None:
        for attempt in (reactor.run, lambda: reactor.run_once(0), reactor.close):
            with pytest.raises(ReactorStateError) as raised:
                attempt()
            errors.append(str(raised.value))
        conn.echo()

    with pairs(1) as ((ours, peer),), Reactor(handler_fn(reenter), QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
        peer.send(TEXT, b"hello")
        run_until(reactor, lambda: len(errors) == 3)
        reactor.run_once(0)
        assert peer.read_frame() == Frame(TEXT, b"hello")


def test_an_interrupt_leaves_run_and_loses_no_event(backend: Backend) -> None:
    class Interrupt(EchoRecorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            if bytes(message) == b"interrupt":
                raise KeyboardInterrupt

    recorder = Interrupt()
    with pairs(2) as made, Reactor(recorder, QUIET, backend=backend) as reactor:
        for ours, peer in made:
            peer.write(frame(TEXT, b"interrupt"), frame(TEXT, b"then this"))
            reactor.add_session(ours)
        for _ in made:
            with pytest.raises(KeyboardInterrupt):
                reactor.run()
        run_until(reactor, lambda: len(recorder.of("message")) == 4)
        reactor.run_once(0)
        for _, peer in made:
            assert peer.read_frames(2) == [Frame(TEXT, b"interrupt"), Frame(TEXT, b"then this")]


# References to it


def test_a_weak_set_of_connections_lets_go_of_those_that_ended(backend: Backend) -> None:
    members: weakref.WeakSet[Connection] = weakref.WeakSet()

    class Members(Recorder):
        def on_open(self, conn: Connection) -> None:
            members.add(conn)
            self.record("open", conn.id)

        def on_close(self, conn: Connection, code: int, reason: str) -> None:
            self.record("close", conn.id)

    recorder = Members()
    options = Options(subprotocols=["chat"])
    with ReactorThread(recorder, backend=backend, options=options) as server:
        with Peer.connect(server.address) as first, Peer.dial(server.address) as second:
            second.write(upgrade_request(subprotocols=["chat"]))
            second.read_response()
            recorder.wait_for("open", 2)
            assert server.ask(lambda: sorted(str(member.subprotocol) for member in members)) == ["None", "chat"]
            assert server.ask(lambda: [member.is_open for member in members]) == [True, True]
            first.shake_hands()
            recorder.wait_for("close")
            assert server.ask(lambda: [member.subprotocol for member in members]) == ["chat"]
        recorder.wait_for("close", 2)
        assert server.ask(lambda: len(members)) == 0


def test_an_id_is_written_the_same_everywhere(backend: Backend) -> None:
    """A log line shows the id that `Sender.send` takes."""
    with pairs(1) as ((ours, _),), Reactor(recorder := Recorder(), QUIET, backend=backend) as reactor:
        id_ = reactor.add_session(ours)
        conn = recorder.connections[id_]
        assert repr(conn) == f"<Connection {id_} open>"
        conn.abort()
        with pytest.raises(ConnectionClosed, match=f"send on connection {id_}: "):
            conn.send("late")
        with pytest.raises(ConnectionClosed, match=f"echo on connection {id_}: "):
            conn.echo()
