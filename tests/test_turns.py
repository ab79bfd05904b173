"""Where one turn of the loop meets the next: what one owes is not owed by another, and nothing is lost between them."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from servers import EchoRecorder, ReactorThread, Silent, run_until
from uringws import Opcode, Reactor
from uringws.backend import Backend
from wire import BINARY, PING, PONG, TEXT, Frame, Peer, frame


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


def test_what_was_echoed_is_not_echoed_again_by_a_turn_without_events(reactor: Reactor, recorder: EchoRecorder) -> None:
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


def test_what_was_echoed_is_not_echoed_again_by_an_interrupted_turn(reactor: Reactor, recorder: EchoRecorder) -> None:
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


def test_run_echo_answers_what_came_before_what_it_cannot_echo(backend: Backend) -> None:
    """Small messages that lie one behind the other are answered all at once: up to what is none, or is a bad one."""
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
