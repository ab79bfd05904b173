"""Who sends faster than its peer reads, and who is sent more than it takes: told so, bounded, and no burden to others.

What a full backlog does as a whole is in test_limits.py; here are its exact edges.
"""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, settle, wait_until
from uringws import (
    BacklogFull,
    CloseCode,
    Connection,
    ConnectionClosed,
    Message,
    Opcode,
    Options,
    Reactor,
    SendResult,
)
from wire import BINARY, PING, TEXT, Address, Frame, Peer, close_frame, distinct_payloads, frame, upgrade_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uringws.backend import Backend

SENT, QUEUED, DROPPED = SendResult.SENT, SendResult.QUEUED, SendResult.DROPPED
MIB = 1 << 20
UPGRADE = upgrade_request()


class Stalled:
    """A session whose peer does not read, with its socket full: from here on every byte goes into the backlog."""

    def __init__(self, server: ReactorThread, recorder: Recorder) -> None:
        self._server = server
        self.peer = Peer.connect(server.address)
        opened = len(recorder.of("open"))
        self.conn = recorder.connections[recorder.wait_for("open", max(1, opened))[-1][1]]
        self.filling = 0
        while self.buffered == 0:
            assert self.send(bytes(100_000)) in (SENT, QUEUED)
            self.filling += 1

    def send(self, payload: bytes, opcode: int = BINARY) -> SendResult:
        return self._server.ask(lambda: self.conn.send(opcode, payload))

    @property
    def buffered(self) -> int:
        return self._server.ask(lambda: self.conn.buffered_amount)

    def read_filling(self) -> None:
        assert self.peer.read_frames(self.filling) == [Frame(BINARY, bytes(100_000))] * self.filling


# send(), buffered_amount


def test_send_says_sent_queued_or_dropped(backend: Backend) -> None:
    recorder = Recorder()
    with ReactorThread(recorder, backend=backend, options=Options(backlog_bytes_max=MIB, on_full="drop")) as server:
        with Peer.connect(server.address) as reading:
            recorder.wait_for("open")
            (conn,) = recorder.connections.values()
            assert server.ask(lambda: conn.send_text("read at once")) is SENT
            assert server.ask(lambda: conn.buffered_amount) == 0
            assert reading.read_frame() == Frame(TEXT, b"read at once")
            stalled = Stalled(server, recorder)
            waiting = stalled.buffered
            assert 0 < waiting <= 100_010
            for number in itertools.count(1):
                result = stalled.send(number.to_bytes(2, "big") * 500)
                if result is DROPPED:
                    break
                assert result is QUEUED
                waiting += 1004
                assert stalled.buffered == waiting
            assert server.ask(server.reactor.stats).drops == 1
            stalled.read_filling()
            queued = [Frame(BINARY, kept.to_bytes(2, "big") * 500) for kept in range(1, number)]
            assert stalled.peer.read_frames(len(queued)) == queued
            assert stalled.buffered == 0
            assert stalled.send(b"after it") is SENT
            assert stalled.peer.read_frame() == Frame(BINARY, b"after it")
            stalled.peer.close()
        settle(server)


def test_the_limit_counts_the_new_message(backend: Backend) -> None:
    """To the byte: what fits exactly is taken, one byte more is not, even where the socket would take it."""
    recorder = Recorder()
    options = Options(backlog_bytes_max=MIB, on_full="error")
    with ReactorThread(recorder, backend=backend, options=options) as server:
        stalled = Stalled(server, recorder)
        with stalled.peer:
            room = MIB - stalled.buffered
            with pytest.raises(BacklogFull):
                stalled.send(bytes(room + 1))
            assert stalled.send(bytes(room)) is QUEUED
            with pytest.raises(BacklogFull):
                stalled.send(b"")
            assert server.ask(lambda: stalled.conn.is_open)
        with Peer.connect(server.address) as reading:
            ((_, _), (_, id_)) = recorder.wait_for("open", 2)
            conn = recorder.connections[id_]
            with pytest.raises(BacklogFull):
                server.ask(lambda: conn.send_binary(bytes(MIB + 1)))
            assert server.ask(lambda: conn.send_binary(bytes(MIB))) in (SENT, QUEUED)
            assert reading.read_frame() == Frame(BINARY, bytes(MIB))


def test_control_frames_have_a_small_reserve(backend: Backend) -> None:
    recorder = Recorder()
    options = Options(backlog_bytes_max=MIB, on_full="drop")
    with ReactorThread(recorder, backend=backend, options=options) as server:
        stalled = Stalled(server, recorder)
        with stalled.peer:
            assert stalled.send(bytes(MIB - stalled.buffered)) is QUEUED
            assert stalled.send(b"x") is DROPPED
            pings = 0
            while stalled.send(bytes(125), PING) is QUEUED:
                pings += 1
            assert 20 <= pings <= 4096 // 127
            server.ask(lambda: stalled.conn.close(CloseCode.GOING_AWAY, "and still a close frame"))
            stalled.read_filling()
            assert stalled.peer.read_frame().opcode == BINARY
            assert stalled.peer.read_frames(pings) == [Frame(PING, bytes(125))] * pings
            assert stalled.peer.read_close() == 1001


def test_a_full_backlog_closes_behind_what_is_queued(backend: Backend) -> None:
    """Under "close" a peer that reads again gets all that was queued, then the close frame, then nothing."""
    recorder = Recorder()
    options = Options(backlog_bytes_max=MIB, on_full="close")
    with ReactorThread(recorder, backend=backend, options=options) as server:
        stalled = Stalled(server, recorder)
        with stalled.peer:
            assert stalled.send(bytes(MIB)) is DROPPED
            with pytest.raises(ConnectionClosed):
                stalled.send(b"late")
            stalled.peer.send(TEXT, b"unheard")
            stalled.read_filling()
            assert stalled.peer.read_close() == CloseCode.POLICY_VIOLATION
            stalled.peer.write(close_frame(1008))
            stalled.peer.read_eof()
        ((_, _, code, _),) = recorder.wait_for("close")
        assert code == CloseCode.POLICY_VIOLATION
        assert recorder.of("message") == []
        settle(server)


# The water marks


class Drained(Recorder):
    def on_drain(self, conn: Connection) -> None:
        self.record("drain", conn.id, conn.buffered_amount)


def test_on_drain_comes_once_for_each_crossing(backend: Backend) -> None:
    recorder = Drained()
    options = Options(backlog_bytes_max=8 * MIB, backlog_high_bytes=2 * MIB, backlog_low_bytes=MIB)
    with ReactorThread(recorder, backend=backend, options=options) as server:
        stalled = Stalled(server, recorder)
        with stalled.peer:
            stalled.read_filling()
            assert recorder.of("drain") == []
            for crossing in range(1, 4):
                sent = 0
                while stalled.buffered < 2 * MIB:
                    stalled.send(bytes(100_000))
                    sent += 1
                assert len(recorder.of("drain")) == crossing - 1
                stalled.peer.read_frames(sent)
                assert len(recorder.wait_for("drain", crossing)) == crossing
            # Up to a byte below the high mark and back again is no crossing.
            sent = 0
            while (room := 2 * MIB - 1 - stalled.buffered) > 14:
                stalled.send(bytes(min(100_000, room - 14)))
                sent += 1
            stalled.peer.read_frames(sent)
            assert stalled.buffered == 0
            assert len(recorder.of("drain")) == 3
    assert all(waiting <= MIB for _, _, waiting in recorder.of("drain"))


def test_on_drain_may_send_on(backend: Backend) -> None:
    """The usual producer: it sends while it may, stops at the high mark and goes on when it is drained."""
    count = 3000

    class Producer(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.next = 0
            self.most = 0

        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            self.produce(conn)

        def produce(self, conn: Connection) -> None:
            while self.next < count and conn.buffered_amount < 256 << 10:
                conn.send_binary(self.next.to_bytes(4, "big") * 2500)
                self.next += 1
            self.most = max(self.most, conn.buffered_amount)

        def on_drain(self, conn: Connection) -> None:
            self.record("drain", conn.id)
            self.produce(conn)

    producer = Producer()
    with ReactorThread(producer, backend=backend) as server, Peer.connect(server.address) as peer:
        for number in range(count):
            assert peer.read_frame() == Frame(BINARY, number.to_bytes(4, "big") * 2500)
        assert peer.shake_hands() == 1000
    assert producer.most < (256 << 10) + 10_010
    assert len(producer.of("drain")) > 2


# Echo


def test_an_echo_that_does_not_fit_is_dropped_or_closes(backend: Backend) -> None:
    for policy in ("drop", "close", "error"):
        recorder = EchoRecorder()
        options = Options(backlog_bytes_max=MIB, on_full=policy, message_bytes_max=MIB)
        with ReactorThread(recorder, backend=backend, options=options) as server:
            stalled = Stalled(server, recorder)
            with stalled.peer:
                stalled.send(bytes(MIB - stalled.buffered - 2000))
                for number in range(4):
                    stalled.peer.send(BINARY, bytes([number]) * 900)
                    recorder.wait_for("message", number + 1)
                    if policy != "drop" and number == 2:
                        break
                stalled.read_filling()
                assert stalled.peer.read_frame().opcode == BINARY
                assert stalled.peer.read_frames(2) == [Frame(BINARY, bytes([number]) * 900) for number in (0, 1)]
                if policy == "drop":
                    stalled.peer.send(BINARY, b"fits again")
                    assert stalled.peer.read_frame() == Frame(BINARY, b"fits again")
                    assert server.ask(server.reactor.stats).drops == 2
                else:  # there is nobody to raise it to
                    assert stalled.peer.read_close() == CloseCode.POLICY_VIOLATION


@pytest.mark.parametrize("size", [20, 3_000, 70_000])
@pytest.mark.parametrize("run", [Reactor.run, Reactor.run_echo], ids=["handler", "c"])
def test_a_slow_reader_gets_every_echo(backend: Backend, run: Callable[[Reactor], None], size: int) -> None:
    """It writes without reading for a while, then reads in sips."""
    count = 24 * MIB // (size + 30) if run is Reactor.run_echo else 8 * MIB // (size + 30)
    count = min(count, 40_000)
    options = Options(backlog_high_bytes=128 << 10)
    sizes = random.Random(size)
    with ReactorThread(EchoRecorderOfNothing(), backend=backend, options=options, run=run) as server:
        with Peer.connect(server.address) as peer:
            payloads = [number.to_bytes(4, "big") * (size // 4) for number in range(count)]
            writer = threading.Thread(target=peer.write, args=[frame(BINARY, payload) for payload in payloads])
            writer.start()
            writer.join(0.3)
            for number, payload in enumerate(payloads):
                if number % 1000 == 0:
                    time.sleep(sizes.random() / 100)
                assert peer.read_frame() == Frame(BINARY, payload)
            writer.join()
            assert peer.shake_hands() == 1000
        stats = settle(server)
        assert stats.messages_in == stats.messages_out == count
        assert stats.drops == 0


class EchoRecorderOfNothing(Recorder):
    def on_message(self, conn: Connection, message: Message) -> None:
        conn.echo()


# Stalled readers beside lively ones


@pytest.mark.parametrize("run", [Reactor.run, Reactor.run_echo], ids=["handler", "c"])
def test_stalled_readers_hold_no_receive_buffer(backend: Backend, run: Callable[[Reactor], None]) -> None:
    """More of them than there are buffers; the lively ones are served, and the stalled ones once they read again."""

    def listen(reactor: Reactor) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # inherited by what it accepts
        listener.bind(("127.0.0.1", 0))
        reactor.bind_socket(listener)

    options = Options(receive_buffers=16)
    with (
        ReactorThread(EchoRecorderOfNothing(), backend=backend, options=options, run=run, prepare=listen) as server,
        ExitStack() as stack,
    ):
        stalled = [stack.enter_context(small_window(server.address)) for _ in range(60)]
        messages = [bytes([number]) * 10_000 for number in range(60)]
        for peer in stalled:
            peer.sock.setblocking(False)
        unsent = {peer: b"".join(frame(BINARY, message) for message in messages) for peer in stalled}
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            for peer in stalled:
                try:
                    unsent[peer] = unsent[peer][peer.sock.send(unsent[peer]) :] if unsent[peer] else b""
                except BlockingIOError:
                    continue
        wait_until(lambda: server.ask(server.reactor.stats).pool_in_use == 0)
        assert server.ask(server.reactor.stats).queued_bytes > 60 * 50_000

        with Peer.connect(server.address) as lively:
            for payload in distinct_payloads(200, 12_000):
                lively.send(BINARY, payload)
                assert lively.read_frame() == Frame(BINARY, payload)
        for peer in stalled:
            peer.sock.settimeout(10)
            writer = threading.Thread(target=peer.write, args=[unsent[peer]])
            writer.start()
            assert peer.read_frames(60) == [Frame(BINARY, message) for message in messages]
            writer.join()
            peer.close()
        stats = settle(server)
        assert stats.drops == 0


def small_window(address: Address) -> Peer:
    """A peer whose kernel takes little, so that it stalls early."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(address)
    peer = Peer(sock)
    peer.write(UPGRADE)
    assert peer.read_response().status == 101
    return peer


# Flow control of what comes in


def test_a_paused_session_costs_no_more_than_its_buffers_bring(backend: Backend) -> None:
    """It is flooded meanwhile; what was read before the pause took hold is all that is kept."""
    recorder = EchoRecorder()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        conn = recorder.connections[id_]
        payloads = [bytes([number]) * 100_000 for number in range(200)]
        server.ask(conn.pause_reading)
        writer = threading.Thread(target=peer.write, args=[frame(BINARY, payload) for payload in payloads])
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        stats = server.ask(server.reactor.stats)
        assert stats.memory_bytes <= 3 * stats.pool_buffers * 17 * 1024
        assert stats.pool_in_use == 0
        assert recorder.of("message") == []
        server.ask(conn.resume_reading)
        assert peer.read_frames(len(payloads)) == [Frame(BINARY, payload) for payload in payloads]
        writer.join()


def test_pausing_and_resuming_at_random_loses_nothing(backend: Backend) -> None:
    count, size = 4000, 3000

    class Fickle(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.random = random.Random(17)
            self.got = 0

        def on_message(self, conn: Connection, message: Message) -> None:
            assert bytes(message) == self.got.to_bytes(4, "big") * (size // 4)
            self.got += 1
            conn.echo()
            if self.random.random() < 0.02:
                conn.pause_reading()
                self.record("paused", conn)

    recorder = Fickle()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        payloads = [number.to_bytes(4, "big") * (size // 4) for number in range(count)]
        writer = threading.Thread(target=peer.write, args=[frame(BINARY, payload) for payload in payloads])
        writer.start()

        def resume() -> None:
            for pause in range(1, count):
                while len(recorder.of("paused")) < pause:
                    if recorder.got == count:
                        return
                    time.sleep(0.0005)
                server.ask(recorder.of("paused")[pause - 1][1].resume_reading)

        resumer = threading.Thread(target=resume)
        resumer.start()
        assert peer.read_frames(count) == [Frame(BINARY, payload) for payload in payloads]
        writer.join()
        resumer.join()
        assert len(recorder.of("paused")) > 20


def test_what_came_before_the_end_is_delivered_after_a_pause(backend: Backend) -> None:
    recorder = EchoRecorder()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        conn = recorder.connections[id_]
        server.ask(conn.pause_reading)
        payloads = distinct_payloads(30, 2000)
        peer.write(*(frame(BINARY, payload) for payload in payloads))
        peer.sock.shutdown(socket.SHUT_WR)
        time.sleep(0.05)
        server.ask(conn.resume_reading)
        assert peer.read_frames(30) == [Frame(BINARY, payload) for payload in payloads]
        peer.read_eof()
        ((_, _, code, _),) = recorder.wait_for("close")
        assert code == CloseCode.ABNORMAL


def test_pausing_a_session_that_is_closing_raises(backend: Backend) -> None:
    recorder = Recorder()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        conn = recorder.connections[id_]
        server.ask(conn.close)
        for call in (conn.pause_reading, conn.resume_reading):
            with pytest.raises(ConnectionClosed):
                server.ask(call)
        assert peer.shake_hands() == 1000


# Fairness


def test_a_flood_brings_no_more_a_turn_than_it_may(backend: Backend) -> None:
    """One session with megabytes in its socket, others with a message each: all have had theirs within a few turns."""
    options = Options(
        receive_buffers=512, receive_buffer_bytes=17 << 10, session_turn_bytes_max=64 << 10, ping_interval_seconds=None
    )
    recorder = Recorder()
    with Reactor(recorder, options, backend=backend) as reactor, ExitStack() as stack:
        address = reactor.bind("127.0.0.1", 0)
        assert not isinstance(address, str)
        peers = [stack.enter_context(Peer.dial(address)) for _ in range(21)]
        for peer in peers:
            peer.write(UPGRADE)
        while len(recorder.of("open")) < len(peers):
            reactor.run_once(1)
        reactor.run_once(0)
        flood, *others = peers
        flood.sock.setblocking(False)
        flooded = 0
        chunk = frame(BINARY, bytes(4000)) * 50
        for _ in range(50):
            try:
                flooded += flood.sock.send(chunk)
            except BlockingIOError:
                break
        assert flooded > MIB
        for peer in others:
            peer.send(TEXT, b"me too")
        turns = list(by_turn(reactor, recorder, until=len(others)))
        # The last receive of a turn may overshoot by a buffer.
        assert max(turns) <= (64 << 10) + 17 * 1024
        assert len(turns) <= 5


def by_turn(reactor: Reactor, recorder: Recorder, *, until: int) -> Iterator[int]:
    """Take turns until so many text messages came; give the bytes of binary ones that each turn brought."""
    while len([event for event in recorder.of("message") if event[2] == Opcode.TEXT]) < until:
        seen = len(recorder.of("message"))
        reactor.run_once(1)
        yield sum(len(event[3]) for event in recorder.of("message")[seen:] if event[2] == Opcode.BINARY)
