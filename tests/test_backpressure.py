"""Peers that read slowly, and peers that write fast: each uses only its own backlog or its own socket's buffer."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, Silent, connected, run_until, wait_until
from uringws import (
    BacklogFull,
    Connection,
    ConnectionClosed,
    Handler,
    Message,
    Opcode,
    Options,
    Reactor,
    SendResult,
    Stats,
)
from uringws.backend import Backend
from wire import BINARY, CLOSE, PING, PONG, TEXT, Frame, Peer, frame, server_frame

KIB, MIB = 1 << 10, 1 << 20
CHUNK = bytes(range(256)) * 400
"""Large enough to leave at once, and to be copied to the backlog where the socket takes only a part of it."""
CONTROL_RESERVE_BYTES = 4096
HEADER_BYTES_MAX = 10
PONG_BYTES_MAX = 127
POOL_BYTES = Options().receive_buffers * Options().receive_buffer_bytes


class Drains(Recorder):
    def on_drain(self, conn: Connection) -> None:
        self.record("drain", conn.id, conn.buffered_amount)


class Session:
    """One open session of a server in a thread, seen from both ends."""

    def __init__(self, server: ReactorThread, recorder: Recorder, peer: Peer) -> None:
        self.server, self.recorder, self.peer = server, recorder, peer
        identity = recorder.wait_for("open")[0][1]
        self.conn = recorder.connections[identity]

    def send(self, payload: bytes) -> SendResult:
        return self.server.ask(lambda: self.conn.send_binary(payload))

    def send_until(self, outcome: SendResult) -> list[SendResult]:
        """Send chunks until `send` returns that result; return all results."""
        results = [self.send(CHUNK)]
        while results[-1] is not outcome:
            assert len(results) < 1000
            results.append(self.send(CHUNK))
        return results

    def buffered(self) -> int:
        return self.server.ask(lambda: self.conn.buffered_amount)

    def stats(self) -> Stats:
        return self.server.ask(self.server.reactor.stats)


@contextmanager
def session(backend: Backend, options: Options, recorder: Recorder | None = None) -> Iterator[Session]:
    recorder = recorder or Drains()
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        yield Session(server, recorder, peer)


# Results of send


def test_a_message_is_sent_then_queued_then_dropped(backend: Backend) -> None:
    with session(backend, Options(backlog_bytes_max=MIB, on_full="drop")) as it:
        results = it.send_until(SendResult.DROPPED)
        assert results == sorted(results), "sent, then queued, then dropped: in this order only"
        assert set(results) == set(SendResult)
        buffered = it.buffered()
        assert MIB - len(CHUNK) < buffered <= MIB + HEADER_BYTES_MAX
        assert it.stats().queued_bytes == buffered
        assert it.stats().drops == 1

        kept = len(results) - 1
        assert it.peer.read_frames(kept) == [Frame(BINARY, CHUNK)] * kept
        wait_until(lambda: it.buffered() == 0)
        assert it.stats().queued_bytes == 0
        assert it.send(b"next") is SendResult.SENT
        assert it.peer.read_frame() == Frame(BINARY, b"next")


def test_the_backlog_counts_the_message_that_is_to_join_it(backend: Backend) -> None:
    with session(backend, Options(backlog_bytes_max=MIB, on_full="drop")) as it:
        assert it.send(bytes(MIB + 1)) is SendResult.DROPPED
        assert it.buffered() == 0
        chunks = len(it.send_until(SendResult.QUEUED))
        room = MIB - it.buffered()
        assert it.send(bytes(room + 1)) is SendResult.DROPPED
        assert it.send(bytes(room)) is SendResult.QUEUED
        assert MIB < it.buffered() <= MIB + HEADER_BYTES_MAX
        assert it.send(b"") is SendResult.DROPPED
        it.peer.read_frames(chunks)
        assert it.peer.read_frame() == Frame(BINARY, bytes(room))


def test_on_full_error_raises_and_leaves_the_connection_as_it_was(backend: Backend) -> None:
    with session(backend, Options(backlog_bytes_max=MIB, on_full="error")) as it:
        chunks = 0
        with pytest.raises(BacklogFull):  # noqa: PT012 - which of them raises is up to the socket
            while chunks < 1000:
                it.send(CHUNK)
                chunks += 1
        buffered = it.buffered()
        with pytest.raises(BacklogFull):
            it.send(CHUNK)
        assert it.buffered() == buffered
        assert it.server.ask(lambda: it.conn.is_open)
        assert it.peer.read_frames(chunks) == [Frame(BINARY, CHUNK)] * chunks
        assert it.peer.shake_hands() == 1000


def test_on_full_close_delivers_the_backlog_and_then_1008(backend: Backend) -> None:
    with session(backend, Options(backlog_bytes_max=MIB, on_full="close")) as it:
        kept = len(it.send_until(SendResult.DROPPED)) - 1
        assert it.peer.read_frames(kept) == [Frame(BINARY, CHUNK)] * kept
        assert it.peer.read_close() == 1008
        it.peer.send(CLOSE, struct.pack("!H", 1008))
        it.peer.read_eof()
        assert it.recorder.wait_for("close")[0][2] == 1008


def test_on_full_close_delivers_no_more_messages(backend: Backend) -> None:
    """Later messages call no handler: its answer could only raise."""
    with session(backend, Options(backlog_bytes_max=MIB, on_full="close")) as it:
        assert it.send(bytes(MIB + 1)) is SendResult.DROPPED
        with pytest.raises(ConnectionClosed):
            it.send(b"late")
        it.peer.send(TEXT, b"unheard")
        assert it.peer.shake_hands(1008) == 1008
        assert [event[0] for event in it.recorder.events] == ["open", "close"]


def test_on_full_close_delivers_no_more_messages_of_the_same_turn_either(backend: Backend) -> None:
    class TooMuch(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            self.record("message", bytes(message))
            self.record("sent", conn.send_binary(bytes(MIB + 1)), conn.is_open)

    with session(backend, Options(backlog_bytes_max=MIB, on_full="close"), TooMuch()) as it:
        it.peer.write(frame(TEXT, b"one"), frame(TEXT, b"two"), frame(TEXT, b"three"))
        assert it.peer.shake_hands(1008) == 1008
        assert it.recorder.events[1:3] == [("message", b"one"), ("sent", SendResult.DROPPED, False)]
        assert [event[0] for event in it.recorder.events] == ["open", "message", "sent", "close"]


def test_a_backlog_of_many_messages_leaves_as_the_socket_takes_it(backend: Backend) -> None:
    """More of them than one system call can name. `sends_short` counts sends that the socket did not take in full."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200 * KIB)
    recorder = Recorder()
    with (
        Reactor(recorder, Options(ping_interval_seconds=None), backend=backend) as reactor,
        Peer(theirs) as peer,
    ):
        conn = recorder.connections[reactor.add_session(ours)]
        reactor.run_once(0)
        sent = b""
        while not conn.buffered_amount:  # until the socket is full
            sent += send_alone(reactor, conn, bytes(20_000))
        for number in range(75):
            sent += send_alone(reactor, conn, number.to_bytes(4, "big") * 1024)
        waiting = conn.buffered_amount
        assert waiting > 74 * 4096
        before = reactor.stats().sends_short
        in_socket = len(sent) - waiting
        assert peer.read_exactly(in_socket) == sent[:in_socket]
        run_until(reactor, lambda: conn.buffered_amount < waiting)
        assert conn.buffered_amount == 0
        assert reactor.stats().sends_short == before
        assert peer.read_exactly(waiting) == sent[in_socket:]


def send_alone(reactor: Reactor, conn: Connection, payload: bytes) -> bytes:
    """Send a message in a turn of its own; return its bytes on the wire."""
    conn.send_binary(payload)
    reactor.run_once(0)
    return server_frame(BINARY, payload)


# Water marks


def test_on_drain_comes_once_for_each_time_the_high_mark_was_reached(backend: Backend) -> None:
    options = Options(backlog_high_bytes=MIB, backlog_low_bytes=100 * KIB)
    with session(backend, options) as it:
        for crossing in range(1, 4):
            chunks = 0
            while it.buffered() < MIB:
                it.send(CHUNK)
                chunks += 1
            for _ in range(5):  # still further above the mark: this is one crossing
                it.send(CHUNK)
                chunks += 1
            assert len(it.recorder.of("drain")) == crossing - 1
            assert it.peer.read_frames(chunks) == [Frame(BINARY, CHUNK)] * chunks
            drains = it.recorder.wait_for("drain", crossing)
            assert drains[-1][2] <= 100 * KIB
            wait_until(lambda: it.buffered() == 0)
            assert len(it.recorder.of("drain")) == crossing


def test_on_drain_is_not_called_for_a_backlog_below_the_high_mark(backend: Backend) -> None:
    options = Options(backlog_high_bytes=MIB, backlog_low_bytes=10 * KIB)
    with session(backend, options) as it:
        chunks = len(it.send_until(SendResult.QUEUED))
        while it.buffered() < 200 * KIB:
            it.send(CHUNK)
            chunks += 1
        it.peer.read_frames(chunks)
        wait_until(lambda: it.buffered() == 0)
        assert it.recorder.of("drain") == []


def test_a_handler_may_fill_the_backlog_again_from_on_drain(backend: Backend) -> None:
    class Refill(Recorder):
        def on_drain(self, conn: Connection) -> None:
            self.record("drain")
            if len(self.of("drain")) < 5:
                self.fill(conn)

        def fill(self, conn: Connection) -> None:
            while conn.buffered_amount < 4 * MIB:
                conn.send_binary(CHUNK)
                self.record("sent")
            self.record("filled")

    recorder = Refill()
    with session(backend, Options(backlog_high_bytes=MIB), recorder) as it:
        it.server.ask(lambda: recorder.fill(it.conn))
        read = 0
        for crossing in range(1, 6):
            recorder.wait_for("filled", crossing)  # a peer that reads meanwhile may keep it from ever being full
            unread = len(recorder.of("sent")) - read
            assert it.peer.read_frames(unread) == [Frame(BINARY, CHUNK)] * unread
            read += unread
            recorder.wait_for("drain", crossing)
        assert len(recorder.of("sent")) == read
        wait_until(lambda: it.buffered() == 0)


# Control frames


def test_a_full_backlog_has_a_reserve_for_pings_that_ends_too(backend: Backend) -> None:
    with session(backend, Options(backlog_bytes_max=MIB, on_full="drop")) as it:
        chunks = len(it.send_until(SendResult.QUEUED))
        filler = bytes(MIB - it.buffered())
        assert it.send(filler) is SendResult.QUEUED
        assert it.send(b"x") is SendResult.DROPPED
        results = [it.server.ask(lambda: it.conn.ping(b"p" * 125)) for _ in range(64)]
        pings = results.count(SendResult.QUEUED)
        assert results == [SendResult.QUEUED] * pings + [SendResult.DROPPED] * (64 - pings)
        assert 25 <= pings <= 40
        assert it.buffered() <= MIB + CONTROL_RESERVE_BYTES
        it.server.ask(lambda: it.conn.close(4000, "full"))
        it.peer.read_frames(chunks)
        assert it.peer.read_frame() == Frame(BINARY, filler)
        assert it.peer.read_frames(pings) == [Frame(PING, b"p" * 125)] * pings
        assert it.peer.read_close() == 4000


def filled(it: Session, limit: int) -> list[Frame]:
    """Fill the backlog to its limit, to the byte; return all that was sent."""
    sent = [Frame(BINARY, CHUNK)] * len(it.send_until(SendResult.QUEUED))
    filler = bytes(limit - it.buffered())
    assert it.send(filler) is SendResult.QUEUED
    assert limit <= it.buffered() <= limit + HEADER_BYTES_MAX
    return [*sent, Frame(BINARY, filler)]


def test_a_full_backlog_still_takes_a_pong(backend: Backend) -> None:
    with session(backend, Options(backlog_bytes_max=MIB, on_full="drop")) as it:
        sent = filled(it, MIB)
        full = it.buffered()
        it.peer.send(PING, b"alive?")
        wait_until(lambda: it.buffered() > full)
        assert it.send(b"") is SendResult.DROPPED, "the reserve is for control frames alone"
        assert it.peer.read_frames(len(sent)) == sent
        assert it.peer.read_frame() == Frame(PONG, b"alive?")


def test_a_flood_of_pings_from_a_peer_that_does_not_read_is_bounded(backend: Backend) -> None:
    options = Options(backlog_bytes_max=MIB, on_full="drop", ping_interval_seconds=None)
    with session(backend, options) as it:
        sent = filled(it, MIB)
        pings = 80_000
        before = it.stats().events
        it.peer.write(frame(PING, b"?" * 125) * pings)
        wait_until(lambda: it.stats().events >= before + pings)
        stats = it.stats()
        assert MIB <= stats.queued_bytes <= MIB + CONTROL_RESERVE_BYTES
        assert stats.memory_bytes <= 2 * MIB
        assert stats.pool_in_use == 0
        assert it.server.ask(lambda: it.conn.is_open)
        assert it.peer.read_frames(len(sent)) == sent
        pongs = (stats.queued_bytes - MIB) // PONG_BYTES_MAX
        assert pongs > 0
        assert it.peer.read_frames(pongs) == [Frame(PONG, b"?" * 125)] * pongs


# Echoes for a slow reader


def write_in_background(peer: Peer, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=peer.write, args=(data,), daemon=True)
    thread.start()
    return thread


def numbered(count: int, size: int) -> list[bytes]:
    return [number.to_bytes(4, "big") * (size // 4) for number in range(count)]


def settled(stats: ReactorThread) -> Stats:
    """The figures once no more bytes come in or go out."""
    last, same = stats.ask(stats.reactor.stats), 0

    def quiet() -> bool:
        nonlocal last, same
        now = stats.ask(stats.reactor.stats)
        same = same + 1 if (now.bytes_in, now.bytes_out) == (last.bytes_in, last.bytes_out) else 0
        last = now
        return same >= 20

    wait_until(quiet)
    return last


def test_echoes_by_a_handler_are_dropped_whole_and_counted(backend: Backend) -> None:
    payloads = numbered(800, 40_000)
    recorder = EchoRecorder()
    with session(backend, Options(backlog_bytes_max=MIB, on_full="drop"), recorder) as it:
        it.peer.write(*(frame(BINARY, payload) for payload in payloads))
        recorder.wait_for("message", len(payloads))
        stats = settled(it.server)
        assert stats.drops > 0
        assert stats.queued_bytes <= MIB + HEADER_BYTES_MAX
        assert stats.pool_in_use == 0
        echoed = [it.peer.read_frame().payload for _ in range(len(payloads) - stats.drops)]
        numbers = [int.from_bytes(payload[:4], "big") for payload in echoed]
        assert numbers == sorted(set(numbers))
        assert echoed == [payloads[number] for number in numbers]
        it.peer.send(TEXT, b"after")
        assert it.peer.read_frame() == Frame(TEXT, b"after")


@pytest.mark.parametrize("size", [20, 125, 5000, 70_000])
def test_an_echo_may_fill_the_backlog_but_not_exceed_it(backend: Backend, size: int) -> None:
    recorder = EchoRecorder()
    with session(backend, Options(backlog_bytes_max=MIB, on_full="drop"), recorder) as it:
        sent = [Frame(BINARY, CHUNK)] * len(it.send_until(SendResult.QUEUED))
        filler = bytes(MIB - it.buffered() - HEADER_BYTES_MAX - size)
        assert it.send(filler) is SendResult.QUEUED
        room = MIB - it.buffered()
        it.peer.send(BINARY, b"!" * (room + 1))
        recorder.wait_for("message")
        assert (it.buffered(), it.stats().drops) == (MIB - room, 1)
        it.peer.send(BINARY, b"." * room)
        recorder.wait_for("message", 2)
        wait_until(lambda: it.buffered() >= MIB)
        assert it.stats().drops == 1
        assert it.peer.read_frames(len(sent) + 2) == [*sent, Frame(BINARY, filler), Frame(BINARY, b"." * room)]


def test_echoes_by_a_handler_close_a_peer_that_does_not_read_them(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(backlog_bytes_max=MIB, on_full="close", close_seconds_max=0.2)
    with session(backend, options, recorder) as it:
        writer = write_in_background_until_cut(it.peer, frame(BINARY, bytes(40_000)) * 1000)
        assert recorder.wait_for("close")[0][2] == 1008
        wait_until(lambda: it.stats().memory_bytes == 0)
        it.peer.close()
        writer.join()


def write_in_background_until_cut(peer: Peer, data: bytes) -> threading.Thread:
    def write() -> None:
        with contextlib.suppress(OSError):  # the server has ended the session, as it should
            peer.write(data)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_run_echo_reads_at_most_the_high_mark_and_loses_nothing(backend: Backend) -> None:
    payloads = numbered(400, 60_000)
    options = Options(backlog_bytes_max=2 * MIB, backlog_high_bytes=512 * KIB)
    recorder = Recorder()
    with (
        ReactorThread(recorder, backend=backend, options=options, run=Reactor.run_echo) as server,
        Peer.connect(server.address) as peer,
        Peer.connect(server.address) as other,
    ):
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        writer = write_in_background(peer, b"".join(frame(BINARY, payload) for payload in payloads))
        stats = settled(server)
        assert writer.is_alive(), "the peer itself is held up"
        assert 512 * KIB <= stats.queued_bytes <= 512 * KIB + options.session_turn_bytes_max + POOL_BYTES
        assert stats.memory_bytes <= 4 * MIB
        assert stats.pool_in_use == 0
        other.send(TEXT, b"unharmed")
        assert other.read_frame() == Frame(TEXT, b"unharmed")
        for payload in payloads:
            assert peer.read_frame() == Frame(BINARY, payload)
        writer.join()
        assert server.ask(server.reactor.stats).drops == 0
        assert peer.shake_hands() == 1000


# Reading that is paused


def test_a_pause_loses_nothing_and_bounds_memory(backend: Backend) -> None:
    payloads = numbered(600, 50_000)
    recorder = Recorder()
    with session(backend, Options(), recorder) as it:
        it.server.ask(it.conn.pause_reading)
        writer = write_in_background(it.peer, b"".join(frame(BINARY, payload) for payload in payloads))
        stats = settled(it.server)
        assert writer.is_alive(), "the peer itself is held up"
        assert recorder.of("message") == []
        assert stats.memory_bytes <= POOL_BYTES
        assert stats.pool_in_use == 0
        it.server.ask(it.conn.resume_reading)
        messages = recorder.wait_for("message", len(payloads))
        assert [message[3] for message in messages] == payloads
        writer.join()


def test_pauses_in_the_middle_of_a_stream_lose_nothing(backend: Backend) -> None:
    payloads = numbered(300, 30_000)
    recorder = Recorder()
    with session(backend, Options(), recorder) as it:
        writer = write_in_background(it.peer, b"".join(frame(BINARY, payload) for payload in payloads))
        while len(recorder.of("message")) < len(payloads):
            it.server.ask(it.conn.pause_reading)
            stats = it.stats()
            assert stats.memory_bytes <= 2 * POOL_BYTES
            it.server.ask(it.conn.resume_reading)
        assert [message[3] for message in recorder.of("message")] == payloads
        writer.join()


def test_the_end_of_the_stream_is_seen_after_a_pause(backend: Backend) -> None:
    recorder = Recorder()
    with session(backend, Options(ping_interval_seconds=None), recorder) as it:
        it.server.ask(it.conn.pause_reading)
        for number in range(50):
            it.peer.send(TEXT, b"%d" % number)
        it.peer.sock.shutdown(socket.SHUT_WR)
        it.stats()
        assert recorder.of("message") == []
        it.server.ask(it.conn.resume_reading)
        assert recorder.wait_for("close")[0][2] == 1006
        assert [message[3] for message in recorder.of("message")] == [b"%d" % number for number in range(50)]


def test_a_close_frame_is_read_after_a_pause(backend: Backend) -> None:
    recorder = Recorder()
    with session(backend, Options(), recorder) as it:
        it.server.ask(it.conn.pause_reading)
        it.peer.write(frame(TEXT, b"last words"), frame(CLOSE, struct.pack("!H", 4001)))
        assert it.peer.quiet()
        it.server.ask(it.conn.resume_reading)
        assert it.peer.read_close() == 4001
        it.peer.read_eof()
        assert [event[0] for event in recorder.events] == ["open", "message", "close"]


def test_a_session_that_is_closing_cannot_be_paused(backend: Backend) -> None:
    """Its peer's close frame would not be seen."""
    with session(backend, Options()) as it:
        it.server.ask(it.conn.close)
        for call in (it.conn.pause_reading, it.conn.resume_reading):
            with pytest.raises(ConnectionClosed):
                it.server.ask(call)
        assert it.peer.shake_hands() == 1000


def test_a_paused_session_can_be_closed_and_gets_the_peers_close_frame(backend: Backend) -> None:
    recorder = Recorder()
    with session(backend, Options(close_seconds_max=5.0), recorder) as it:
        it.server.ask(it.conn.pause_reading)
        it.peer.write(*(frame(BINARY, bytes(50_000)) for _ in range(20)))
        it.server.ask(lambda: it.conn.close(4002))
        assert it.peer.read_close() == 4002
        it.peer.send(CLOSE, struct.pack("!H", 4002))
        it.peer.read_eof()
        assert recorder.wait_for("close")[0][2] == 4002
        assert recorder.of("message") == []


def test_a_paused_session_can_be_aborted(backend: Backend) -> None:
    recorder = Recorder()
    with session(backend, Options(), recorder) as it:
        it.server.ask(it.conn.pause_reading)
        it.peer.send(TEXT, b"unheard")
        it.server.ask(it.conn.abort)
        assert recorder.wait_for("close")[0][2] == 1006
        assert recorder.of("message") == []
        wait_until(lambda: it.stats().sessions == 0)
        assert it.stats().memory_bytes == 0


def test_a_paused_session_still_sends(backend: Backend) -> None:
    with session(backend, Options(backlog_high_bytes=MIB)) as it:
        it.server.ask(it.conn.pause_reading)
        chunks = 0
        while it.buffered() < MIB:
            it.send(CHUNK)
            chunks += 1
        it.peer.read_frames(chunks)
        it.recorder.wait_for("drain")


# A flood beside others


class Turns(Handler):
    """Counts the bytes that each turn brings, by connection."""

    def __init__(self) -> None:
        self.turns: list[dict[int, int]] = []
        self.opened: list[int] = []

    def on_open(self, conn: Connection) -> None:
        self.opened.append(conn.id)

    def of(self, identity: int) -> list[int]:
        return [turn.get(identity, 0) for turn in self.turns]

    def on_message(self, conn: Connection, message: Message) -> None:
        bytes_by_id = self.turns[-1]
        bytes_by_id[conn.id] = bytes_by_id.get(conn.id, 0) + len(message.data)


def test_a_flood_gets_at_most_its_share_of_each_turn(backend: Backend) -> None:
    options = Options(receive_buffer_bytes=16 * KIB, session_turn_bytes_max=32 * KIB)
    share = 32 * KIB + 16 * KIB + 4000  # the buffer that passes the limit, and a message begun before
    handler = Turns()
    with ExitStack() as stack:
        reactor = stack.enter_context(Reactor(handler, options, backend=backend))
        peers = [stack.enter_context(connected(reactor)) for _ in range(3)]
        message = frame(BINARY, bytes(4000))
        writer = write_in_background(peers[0], message * 500)
        writer.join(0.1)  # as much as the socket takes before the first turn
        for lively in peers[1:]:
            lively.write(message)

        def turned() -> bool:
            handler.turns.append({})
            return sum(handler.of(handler.opened[0])) == 500 * 4000

        run_until(reactor, turned, timeout=0.01)
        writer.join()
        assert max(handler.of(handler.opened[0])) <= share
        for identity in handler.opened[1:]:
            first = handler.of(identity).index(4000)
            flooded = sum(handler.of(handler.opened[0])[: first + 1])
            assert flooded <= 2 * share, "a neighbour waits for the flood's share, not for the flood"


# Many that do not read


@pytest.mark.parametrize("zero_copy", ["auto", "always"])
def test_stalled_readers_hold_no_pool_buffer_and_no_neighbour_up(backend: Backend, zero_copy: str) -> None:
    class OnDemand(Silent):
        def on_message(self, conn: Connection, message: Message) -> None:
            if message.opcode == Opcode.TEXT:
                for _ in range(int(bytes(message.data))):
                    conn.send_binary(CHUNK)
            else:
                conn.echo()

    options = Options(backlog_bytes_max=MIB, on_full="drop", zero_copy=zero_copy)  # type: ignore[arg-type]
    with ExitStack() as stack:
        server = stack.enter_context(ReactorThread(OnDemand(), backend=backend, options=options))
        lively = stack.enter_context(Peer.connect(server.address))
        for _ in range(40):
            stalled = stack.enter_context(Peer.connect(server.address))
            stalled.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
            stalled.send(TEXT, b"80")
            for _ in range(3):
                stalled.send(BINARY, CHUNK[:40_000])
        stats = settled(server)
        assert stats.pool_in_use == 0
        assert stats.queued_bytes > 20 * MIB // 2
        for number in range(50):
            payload = bytes([number]) * 20_000
            lively.send(BINARY, payload)
            assert lively.read_frame() == Frame(BINARY, payload)
        wait_until(lambda: server.ask(server.reactor.stats).pool_in_use == 0)


def test_a_peer_that_reads_gets_its_pongs_in_spite_of_its_backlog(backend: Backend) -> None:
    with session(backend, Options(backlog_bytes_max=8 * MIB)) as it:
        chunks = len(it.send_until(SendResult.QUEUED))
        it.peer.send(PING, b"alive?")
        it.peer.read_frames(chunks)
        assert it.peer.read_frame() == Frame(PONG, b"alive?")
