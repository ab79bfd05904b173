"""Between one turn of the loop and the next: no reply is lost or repeated."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, Silent, connected, run_until
from uringws import Connection, Message, Opcode, Options, Reactor
from uringws.backend import Backend
from wire import BINARY, PING, PONG, TEXT, Frame, Peer, frame, server_frame


@pytest.fixture
def reactor(backend: Backend, recorder: EchoRecorder) -> Iterator[Reactor]:
    """A reactor to be turned by hand."""
    with Reactor(recorder, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        yield reactor


def adopted(reactor: Reactor) -> tuple[Peer, int]:
    """A session without a handshake, and its peer."""
    ours, theirs = socket.socketpair()
    return Peer(theirs), reactor.add_session(ours)


def test_an_echo_is_not_repeated_by_a_turn_without_events(reactor: Reactor, recorder: EchoRecorder) -> None:
    peer, identity = adopted(reactor)
    with peer:
        peer.write(*(frame(TEXT, bytes([letter]) * 20) for letter in b"abcde"))
        run_until(reactor, lambda: len(recorder.of("message")) == 5)
        reactor.run_once(0)
        recorder.connections[identity].send(Opcode.BINARY, b"of its own")
        reactor.run_once(0)
        expected = [Frame(TEXT, bytes([letter]) * 20) for letter in b"abcde"] + [Frame(BINARY, b"of its own")]
        assert peer.read_frames(6) == expected
        assert peer.quiet()


def test_run_once_sends_everything_before_it_returns(reactor: Reactor, recorder: EchoRecorder) -> None:
    peer, identity = adopted(reactor)
    with peer:
        peer.write(frame(TEXT, b"echoed"))
        run_until(reactor, lambda: len(recorder.of("message")) == 1)
        assert peer.read_frames(1) == [Frame(TEXT, b"echoed")]
        sent = []
        reactor.call_later(0, lambda: sent.append(recorder.connections[identity].send(Opcode.BINARY, b"by a timer")))
        run_until(reactor, lambda: sent)
        assert peer.read_frames(1) == [Frame(BINARY, b"by a timer")]


def test_an_echo_is_not_repeated_by_an_interrupted_turn(reactor: Reactor, recorder: EchoRecorder) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    peer, identity = adopted(reactor)
    try:
        peer.write(*(frame(TEXT, bytes([letter]) * 20) for letter in b"abcde"))
        run_until(reactor, lambda: len(recorder.of("message")) == 5)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert reactor.run_once(5) == 0
        recorder.connections[identity].send(Opcode.BINARY, b"of its own")
        reactor.run_once(0)
        assert peer.read_frames(6)[5] == Frame(BINARY, b"of its own")
        assert peer.quiet()
    finally:
        signal.signal(signal.SIGALRM, before)
        peer.close()


def test_a_connection_aborted_over_and_over_takes_no_others_end_away(reactor: Reactor, recorder: EchoRecorder) -> None:
    peer, first = adopted(reactor)
    another, second = adopted(reactor)
    with peer, another:
        for _ in range(5000):
            recorder.connections[first].abort()
        recorder.connections[second].abort()
        run_until(reactor, lambda: reactor.stats().sessions == 0)
    assert [event[1:3] for event in recorder.of("close")] == [(first, 1006), (second, 1006)]


def test_run_echo_answers_runs_of_small_messages_up_to_another_frame(backend: Backend) -> None:
    """Consecutive small messages are answered all at once, up to a frame of another kind or a violation."""
    good = [Frame(BINARY, b"one"), Frame(TEXT, "zwölf".encode()), Frame(BINARY, b""), Frame(BINARY, b"x" * 125)]
    sent = [frame(item.opcode, item.payload) for item in good]
    stream = b"".join([*sent, frame(PING, b"?"), *sent, frame(BINARY, b"y" * 126), *sent, frame(TEXT, b"\xff")])
    expected = [*good, Frame(PONG, b"?"), *good, Frame(BINARY, b"y" * 126), *good]
    with ReactorThread(Silent(), backend=backend, run=Reactor.run_echo) as server:
        for chunk_bytes in (len(stream), 1, 7, 100):
            with Peer.connect(server.address) as peer:
                for start in range(0, len(stream), chunk_bytes):
                    peer.write(stream[start : start + chunk_bytes])
                assert peer.read_frames(len(expected)) == expected
                assert peer.read_frame().payload[:2] == (1007).to_bytes(2, "big")
        stats = server.ask(server.reactor.stats)
        assert stats.messages_in == stats.messages_out == 4 * 13


class Reuses(Recorder):
    """From on_close of one session, which may free its slot, takes over another socket at once."""

    reactor: Reactor
    victim = 0
    sockets: list[socket.socket]
    adopted: int | None = None

    def on_drain(self, conn: Connection) -> None:
        self.record("drain", conn.id)

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        super().on_close(conn, code, reason)
        if conn.id == self.victim:
            self.adopted = self.reactor.add_session(self.sockets.pop())


def test_a_late_event_of_a_session_never_reaches_the_next_one_in_its_slot(backend: Backend) -> None:
    """A session ends in the turn in which its backlog drained; before on_drain is called, another session is opened."""

    class Script(Reuses):
        def on_message(self, conn: Connection, message: Message) -> None:
            self.record("message", conn.id)
            self.connections[self.victim].abort()
            for _ in range(40):  # more than a handler's sends are collected before they leave
                self.connections[sink].send_binary(bytes(30_000))

    handler = Script()
    options = Options(backlog_high_bytes=100_000, backlog_bytes_max=4 << 20, ping_interval_seconds=None)
    with Reactor(handler, options, backend=backend) as reactor:
        handler.reactor = reactor
        next_socket, next_peer = socket.socketpair()
        handler.sockets = [next_socket]
        with connected(reactor) as drained, connected(reactor) as other, connected(reactor) as unread, Peer(next_peer):
            peer, handler.victim = adopted(reactor)
            reactor.run_once(0)
            first, _, sink, _ = (event[1] for event in handler.of("open"))
            conn = handler.connections[first]
            sent = 0
            while conn.buffered_amount < 200_000:
                conn.send_binary(bytes(50_000))
                reactor.run_once(0)
                sent += len(server_frame(BINARY, bytes(50_000)))
            waiting = conn.buffered_amount
            other.send(TEXT, b"go")  # first, so that it is handled before the end of the drained session's stream
            drained.read_exactly(sent - waiting)  # the socket is empty now, and the backlog will fit
            drained.sock.shutdown(socket.SHUT_WR)
            run_until(reactor, lambda: handler.adopted, timeout=0)
            for _ in range(5):
                reactor.run_once(0)
            assert handler.adopted is not None
            assert handler.adopted not in [event[1] for event in handler.of("drain")]
            assert (handler.adopted & 0xFFFFFFFF) != (first & 0xFFFFFFFF), "its events had not all been told"
            peer.close()
            unread.close()


def test_the_middle_of_a_large_message_is_taken_in_and_not_put_aside(backend: Backend, recorder: EchoRecorder) -> None:
    """Beyond its session's share of a turn too (`session_turn_bytes_max`): it costs its own size in memory, no more."""
    size = 4 << 20
    options = Options(
        receive_buffer_bytes=16 << 10,
        session_turn_bytes_max=16 << 10,
        message_bytes_max=size,
        ping_interval_seconds=None,
    )
    most = 0
    with Reactor(recorder, options, backend=backend) as reactor, connected(reactor) as peer:
        reactor.run_once(0)
        writer = threading.Thread(target=peer.write, args=(frame(BINARY, bytes(size)),), daemon=True)
        writer.start()
        writer.join(0.1)  # as much as the sockets take before the first turn
        while not recorder.of("message"):
            reactor.run_once(0)
            most = max(most, reactor.stats().memory_bytes)
        writer.join()
    assert size // 2 < most <= size + (64 << 10)
