"""Deadlines under difficult conditions: a backlog in front of a ping or close frame, a server that stalls, a pause.

Each clock of docs/deadlines.md is tested with a peer that is slow but alive, with one that is dead, and with a server
whose thread did not run. test_liveness.py tests each deadline without such disturbance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, ServerProcess, connected, run_until, settle, wait_until
from test_liveness import assert_struck, only, paused
from uringws import Connection, ConnectionClosed, Message, Options, Reactor, Request, Response, SendResult
from uringws.backend import Backend
from wire import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Address,
    Frame,
    Peer,
    close_frame,
    frame,
    server_frame,
    upgrade_request,
)

PERIOD_SECONDS = 0.6
"""Of the deadline under test."""
STALL_SECONDS = 1.0
"""Longer than that."""
PAYLOAD = bytes(range(256)) * 6_000
"""Much more than a small socket buffer takes: the slow peer below reads this in three periods."""
CHUNK_BYTES, CHUNK_SECONDS = 16_384, 0.02
PEERS = 40
"""More sessions than one wait of either backend brings input of."""


def narrow(reactor: Reactor) -> None:
    """Listen with a small send buffer: bytes that a peer does not read are in the backlog, and leave in small steps."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
    reactor.bind_socket(listener)


@contextmanager
def serving(
    backend: Backend,
    options: Options,
    recorder: Recorder,
    *,
    prepare: Callable[[Reactor], object] = narrow,
    run: Callable[[Reactor], object] = Reactor.run,
) -> Iterator[ReactorThread]:
    with ReactorThread(recorder, backend=backend, options=options, prepare=prepare, run=run) as server:
        yield server


class SlowPeer(Peer):
    """A peer that reads steadily, but slowly; it answers pings and close frames when it comes to them."""

    chunk_bytes = CHUNK_BYTES

    @classmethod
    def dial(cls, address: Address) -> Self:
        """Connect with a small receive buffer: in a large one much is acknowledged long before it is read."""
        assert isinstance(address, tuple)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        sock.connect(address)
        return cls(sock)

    def read_exactly(self, count: int) -> bytes:
        while len(self._unread) < count:
            time.sleep(CHUNK_SECONDS)
            chunk = self.sock.recv(self.chunk_bytes)
            if not chunk:
                raise EOFError(f"{len(self._unread)} of {count} bytes, then the end")
            self._unread += chunk
        return super().read_exactly(count)

    def read_message(self) -> Frame:
        return read_message(self)

    def read_close_and_answer(self) -> int | None:
        received = self.read_message()
        self.send(CLOSE, received.payload)
        return received.close_code


def read_message(peer: Peer) -> Frame:
    """The next frame other than a ping; pings are answered."""
    while (received := peer.read_frame()).opcode == PING:
        peer.send(PONG, received.payload)
    return received


def opened(recorder: Recorder, count: int = 1) -> list[Connection]:
    return [recorder.connections[event[1]] for event in recorder.wait_for("open", count)]


def stall(server: ReactorThread, seconds: float = STALL_SECONDS) -> None:
    """Block the reactor's thread, as a slow handler does; return once it is blocked."""
    blocked = threading.Event()

    def block() -> None:
        blocked.set()
        time.sleep(seconds)

    server.sender.call(block)
    assert blocked.wait(10)


def send_and_close(conn: Connection) -> None:
    conn.send_binary(PAYLOAD)
    conn.close(4000)


# A peer that is slow, but alive


@pytest.mark.parametrize(
    "limits",
    [
        {"ping_interval_seconds": 0.2, "ping_timeout_seconds": PERIOD_SECONDS},
        {"idle_seconds_max": PERIOD_SECONDS},
        {"ping_interval_seconds": 0.2, "ping_timeout_seconds": PERIOD_SECONDS, "idle_seconds_max": PERIOD_SECONDS},
    ],
    ids=["ping", "idle", "both"],
)
def test_a_peer_that_takes_its_backlog_is_alive(backend: Backend, limits: dict[str, float]) -> None:
    recorder = Recorder()
    with serving(backend, only(**limits), recorder) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_binary(PAYLOAD))
        assert peer.read_message() == Frame(BINARY, PAYLOAD)
        peer.write(close_frame(1000))
        assert peer.read_message().close_code == 1000


def test_a_peer_that_took_its_backlog_since_the_last_look_is_not_idle(backend: Backend) -> None:
    """The look comes when only the kernel holds the rest: the backlog is empty, but the peer was reading."""
    recorder = Recorder()
    with (
        serving(backend, only(idle_seconds_max=PERIOD_SECONDS), recorder) as server,
        SlowPeer.connect(server.address) as peer,
    ):
        (conn,) = opened(recorder)
        start = time.monotonic()
        server.ask(lambda: conn.send_binary(PAYLOAD[: 2**18]))
        while server.ask(lambda: conn.buffered_amount) > 0:
            peer._unread += peer.sock.recv(CHUNK_BYTES)
        time.sleep(max(0, start + 1.5 * PERIOD_SECONDS - time.monotonic()))
        assert peer.read_message() == Frame(BINARY, PAYLOAD[: 2**18])
        peer.write(close_frame(1000))
        assert peer.read_message().close_code == 1000


def test_a_peer_that_reads_too_little_to_make_room_in_the_socket_is_not_idle(backend: Backend) -> None:
    """The kernel reports a socket as writable once a third of its buffer is free: acknowledged bytes count before."""

    def roomy(reactor: Reactor) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        reactor.bind_socket(listener)

    recorder = Recorder()
    options = only(idle_seconds_max=PERIOD_SECONDS)
    with serving(backend, options, recorder, prepare=roomy) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_binary(PAYLOAD))
        waiting = server.ask(lambda: conn.buffered_amount)
        for _ in range(15):
            time.sleep(PERIOD_SECONDS / 6)
            peer._unread += peer.sock.recv(6000)
        assert server.ask(lambda: conn.buffered_amount) == waiting > 0
        while len(peer._unread) < len(PAYLOAD):
            peer._unread += peer.sock.recv(len(PAYLOAD))
        assert peer.read_message() == Frame(BINARY, PAYLOAD)
        peer.write(close_frame(1000))
        assert peer.read_message().close_code == 1000


def test_a_ping_in_the_socket_after_a_large_message_has_not_reached_the_peer(backend: Backend) -> None:
    """The socket takes everything at once, so that there is no backlog; still the ping comes after all of it."""
    recorder = Recorder()
    options = only(ping_interval_seconds=0.2, ping_timeout_seconds=PERIOD_SECONDS)

    def wide(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)

    payload = bytes(2_000_000)
    with serving(backend, options, recorder, prepare=wide) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_binary(payload))
        assert peer.read_message() == Frame(BINARY, payload)
        assert recorder.of("close") == []


def test_a_peer_that_stops_taking_its_backlog_is_cut_off(backend: Backend) -> None:
    recorder = Recorder()
    options = only(ping_interval_seconds=0.1, ping_timeout_seconds=0.3)
    with serving(backend, options, recorder) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_binary(PAYLOAD))
        peer.sock.recv(CHUNK_BYTES)
        start = time.monotonic()
        assert recorder.wait_for("close")[0][2] == 1006
        assert time.monotonic() - start < 4
        settle(server)


def test_a_peer_that_stops_taking_its_backlog_is_idle(backend: Backend) -> None:
    recorder = Recorder()
    options = only(idle_seconds_max=0.3, close_seconds_max=0.3)
    with serving(backend, options, recorder) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_binary(PAYLOAD))
        peer.sock.recv(8 * CHUNK_BYTES)
        start = time.monotonic()
        assert recorder.wait_for("close")[0][2] == 1001
        assert time.monotonic() - start < 6
        settle(server)


@pytest.mark.parametrize("manner", ["at once", "behind a backlog"])
def test_a_peer_that_hangs_is_cut_while_its_kernel_takes_our_bytes(backend: Backend, manner: str) -> None:
    """Taking the bytes after the ping proves nothing: only the peer's kernel takes them."""
    recorder = Recorder()
    options = only(ping_interval_seconds=0.2, ping_timeout_seconds=0.6)
    with serving(backend, options, recorder) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        if manner == "behind a backlog":
            peer.chunk_bytes = 4 * CHUNK_BYTES
            server.ask(lambda: conn.send_binary(PAYLOAD))
            assert peer.read_frame() == Frame(BINARY, PAYLOAD)
        assert peer.read_frame().opcode == PING
        start = time.monotonic()
        while not recorder.of("close"):
            server.ask(lambda: conn.is_open and conn.send_text("news"))
            time.sleep(0.005)
            assert time.monotonic() - start < 4
        assert recorder.of("close")[0][2] == 1006


def test_the_clock_of_a_close_frame_starts_when_it_has_left(backend: Backend) -> None:
    recorder = Recorder()
    options = only(close_seconds_max=PERIOD_SECONDS)
    with serving(backend, options, recorder) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: send_and_close(conn))
        assert peer.read_message() == Frame(BINARY, PAYLOAD)
        assert peer.read_close_and_answer() == 4000
        peer.read_eof()
        assert recorder.wait_for("close")[0][2] == 4000


def test_the_answer_to_a_peers_close_frame_comes_after_the_backlog(backend: Backend) -> None:
    recorder = Recorder()
    options = only(close_seconds_max=PERIOD_SECONDS)
    with serving(backend, options, recorder) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_binary(PAYLOAD))
        peer.write(close_frame(1000))
        assert peer.read_message() == Frame(BINARY, PAYLOAD)
        assert peer.read_frame().close_code == 1000
        peer.read_eof()
        assert recorder.wait_for("close")[0][2] == 1000


def test_a_drain_that_has_time_delivers_the_backlogs(backend: Backend) -> None:
    recorder = Recorder()
    options = only(close_seconds_max=PERIOD_SECONDS)
    with serving(backend, options, recorder) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_binary(PAYLOAD))
        server.sender.call(lambda: server.reactor.drain(60))
        assert peer.read_message() == Frame(BINARY, PAYLOAD)
        assert peer.read_close_and_answer() == 1001
        peer.read_eof()
        assert recorder.wait_for("close")[0][2] == 1001


def test_a_backlog_does_not_extend_the_wait_after_a_close_frame_was_sent(backend: Backend) -> None:
    """The peer's kernel took everything, and the peer reads nothing more and does not answer: the ordinary deadline
    holds.
    """
    recorder = Recorder()
    options = only(close_seconds_max=0.3)
    with serving(backend, options, recorder) as server, SlowPeer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: send_and_close(conn))
        peer.chunk_bytes = 1 << 20
        assert peer.read_message() == Frame(BINARY, PAYLOAD)
        assert peer.read_close() == 4000
        start = time.monotonic()
        assert recorder.wait_for("close")[0][2] == 1006
        assert time.monotonic() - start < 4


class Page(Recorder):
    """Answers a plain GET with a large body."""

    def on_request(self, request: Request) -> Response:
        return Response(200, {}, PAYLOAD)


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_a_page_comes_whole_at_any_reading_speed(backend: Backend) -> None:
    options = only(close_seconds_max=PERIOD_SECONDS)
    with serving(backend, options, Page()) as server, SlowPeer.dial(server.address) as peer:
        peer.write(GET)
        response = peer.read_response()
        assert (response.status, response.body) == (200, PAYLOAD)
        peer.read_eof()


def read_to_the_end(peer: Peer) -> int:
    """How many bytes come before an end of the stream; raises ConnectionResetError for a reset."""
    total = 0
    while chunk := peer.sock.recv(1 << 20):
        total += len(chunk)
    return total


def test_a_page_that_cannot_be_finished_is_reset_and_never_ended_as_if_it_were_whole(backend: Backend) -> None:
    with serving(backend, only(close_seconds_max=0.3), Page()) as server, Peer.dial(server.address) as peer:
        peer.write(GET)
        wait_until(lambda: server.ask(server.reactor.stats).queued_bytes > 0)
        settle(server)
        with pytest.raises(ConnectionResetError):
            read_to_the_end(peer)


def test_a_page_that_the_socket_holds_and_no_peer_reads_is_reset_too(backend: Backend) -> None:
    """The server has sent everything, its end of the stream included; its kernel would keep it for minutes."""

    class Small(Recorder):
        def on_request(self, request: Request) -> Response:
            return Response(200, body=bytes(200_000))

    with (
        ReactorThread(Small(), backend=backend, options=only(close_seconds_max=0.3)) as server,
        socket.socket() as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(server.address)
        peer = Peer(sock)
        peer.write(GET)
        wait_until(lambda: server.ask(server.reactor.stats).bytes_out > 200_000)
        settle(server)
        with pytest.raises(ConnectionResetError):
            read_to_the_end(peer)


@pytest.mark.parametrize("manner", ["abort", "time-out", "backlog full"])
def test_a_stream_that_is_cut_is_reset(backend: Backend, manner: str) -> None:
    recorder = Recorder()
    options = Options(close_seconds_max=0.3, backlog_bytes_max=2_000_000)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_binary(PAYLOAD))
        act = {
            "abort": conn.abort,
            "time-out": conn.close,
            "backlog full": lambda: [conn.send_binary(PAYLOAD) for _ in range(2) if conn.is_open],
        }[manner]
        server.ask(act)
        settle(server)
        with pytest.raises(ConnectionResetError):
            read_to_the_end(peer)


def test_a_reactor_that_is_closed_resets_the_streams_it_cuts(backend: Backend) -> None:
    recorder = Recorder()
    with serving(backend, only(), recorder) as server, Peer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_binary(PAYLOAD))
        server.reactor.stop()
        server.join()
        with pytest.raises(ConnectionResetError):
            read_to_the_end(peer)


def test_an_abort_just_before_the_reactor_is_closed_resets_the_stream_too(backend: Backend) -> None:
    recorder = Recorder()
    with Reactor(recorder, only(), backend=backend) as reactor, connected(reactor) as peer:
        (conn,) = opened(recorder)
        conn.send_binary(bytes(16_000_000))
        reactor.run_once(0)
        conn.abort()
        reactor.close()
        with pytest.raises(ConnectionResetError):
            read_to_the_end(peer)


def test_a_stream_is_reset_if_there_is_no_memory_for_its_rest(backend: Backend) -> None:
    """A part of the message has left when the budget turns out to be too small for the rest of it."""
    recorder = Recorder()
    pool_bytes = 16 * 4096
    options = only(
        receive_buffers=16, receive_buffer_bytes=4096, message_bytes_max=65536, memory_bytes_max=pool_bytes + 1_000_000
    )
    with Reactor(recorder, options, backend=backend) as reactor, connected(reactor) as peer:
        (conn,) = opened(recorder)
        with pytest.raises(ConnectionClosed):
            conn.send_binary(bytes(16_000_000))
        run_until(reactor, lambda: recorder.of("close") and not reactor.stats().sessions)
        with pytest.raises(ConnectionResetError):
            read_to_the_end(peer)


def test_bytes_that_the_socket_took_are_delivered_after_an_abort(backend: Backend) -> None:
    """Nothing was thrown away, so that there is no reason to reset."""
    recorder = Recorder()
    with serving(backend, only(), recorder) as server, Peer.connect(server.address) as peer:
        (conn,) = opened(recorder)
        server.ask(lambda: conn.send_text("the last word"))
        server.ask(conn.abort)
        assert peer.read_frame() == Frame(TEXT, b"the last word")
        peer.read_eof()


# run_echo does not read from a peer whose answers wait


ECHO_LIMITS = pytest.mark.parametrize(
    "limits",
    [
        {"ping_interval_seconds": 0.2, "ping_timeout_seconds": PERIOD_SECONDS},
        {"idle_seconds_max": PERIOD_SECONDS},
    ],
    ids=["ping", "idle"],
)


@ECHO_LIMITS
def test_a_peer_that_run_echo_does_not_read_from_is_not_silent(backend: Backend, limits: dict[str, float]) -> None:
    options = dataclasses.replace(only(**limits), backlog_high_bytes=1_000_000)  # a second to the low mark
    with (
        serving(backend, options, Recorder(), run=Reactor.run_echo) as server,
        SlowPeer.connect(server.address) as peer,
    ):
        parts = [PAYLOAD[at : at + 8_192] for at in range(0, len(PAYLOAD), 8_192)]
        writer = threading.Thread(target=peer.write, args=[frame(BINARY, part) for part in parts], daemon=True)
        writer.start()
        assert [peer.read_message().payload for _ in parts] == parts
        writer.join()
        peer.write(close_frame(1000))
        assert peer.read_message().close_code == 1000


@ECHO_LIMITS
def test_run_echo_cuts_a_peer_that_reads_nothing(backend: Backend, limits: dict[str, float]) -> None:
    options = only(**limits, close_seconds_max=0.2)
    with serving(backend, options, Recorder(), run=Reactor.run_echo) as server, Peer.connect(server.address) as peer:
        peer.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            peer.write(frame(BINARY, bytes(8_192)) * 10_000)
        wait_until(lambda: server.ask(server.reactor.stats).sessions == 0)


# A server whose thread did not run


def connect_all(stack: ExitStack, server: ReactorThread) -> list[Peer]:
    return [stack.enter_context(Peer.connect(server.address)) for _ in range(PEERS)]


def test_input_that_came_while_the_server_stalled_counts_against_idleness(
    backend: Backend, recorder: EchoRecorder
) -> None:
    with serving(backend, only(idle_seconds_max=PERIOD_SECONDS), recorder) as server, ExitStack() as stack:
        peers = connect_all(stack, server)
        stall(server)
        for peer in peers:
            peer.send(TEXT, b"here I am")
        for peer in peers:
            assert peer.read_frame() == Frame(TEXT, b"here I am")
        assert recorder.of("close") == []


def test_pongs_that_came_while_the_server_stalled_count(backend: Backend) -> None:
    recorder = Recorder()
    options = only(ping_interval_seconds=0.2, ping_timeout_seconds=PERIOD_SECONDS)
    with serving(backend, options, recorder) as server, ExitStack() as stack:
        peers = connect_all(stack, server)
        pings = [peer.read_frame() for peer in peers]
        assert {ping.opcode for ping in pings} == {PING}
        stall(server)
        for peer, ping in zip(peers, pings, strict=True):
            peer.send(PONG, ping.payload)
        wait_until(lambda: server.ask(server.reactor.stats).pongs_received >= PEERS)
        assert recorder.of("close") == []


def test_a_close_answered_while_the_server_stalled_is_in_order(backend: Backend) -> None:
    recorder = Recorder()
    with serving(backend, only(close_seconds_max=PERIOD_SECONDS), recorder) as server, ExitStack() as stack:
        peers = connect_all(stack, server)
        conns = opened(recorder, PEERS)

        def close_all() -> None:
            for conn in conns:
                conn.close(4000)

        server.ask(close_all)
        for peer in peers:
            assert peer.read_close() == 4000
        stall(server)
        for peer in peers:
            # Much lies in front of the answer: it is not in the first bytes that are read.
            peer.write(frame(BINARY, bytes(100_000)), close_frame(4000))
        assert {event[2] for event in recorder.wait_for("close", PEERS)} == {4000}


def test_a_close_frame_that_a_stall_keeps_back_is_waited_for_afterwards(backend: Backend) -> None:
    """close() and then something slow, in one handler."""
    recorder = Recorder()
    with (
        serving(backend, only(close_seconds_max=PERIOD_SECONDS), recorder) as server,
        SlowPeer.connect(server.address) as peer,
    ):
        (conn,) = opened(recorder)

        def slow_handler() -> None:
            conn.close(4000)
            time.sleep(STALL_SECONDS)

        server.ask(slow_handler)
        assert peer.read_close_and_answer() == 4000
        assert recorder.wait_for("close")[0][2] == 4000


def test_a_ping_that_a_stall_keeps_back_is_waited_for_afterwards(backend: Backend) -> None:
    """The ping is made at the beginning of a turn whose handler stalls, and leaves after it."""

    class Stalling(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            time.sleep(0.4)

    recorder = Stalling()
    options = only(ping_interval_seconds=0.1, ping_timeout_seconds=0.3)
    with Reactor(recorder, options, backend=backend) as reactor, ExitStack() as stack:
        address = reactor.bind("127.0.0.1", 0)
        peer = stack.enter_context(Peer.dial(address))
        peer.write(upgrade_request())
        run_until(reactor, lambda: recorder.of("open"), timeout=0)
        peer.read_response()
        time.sleep(0.15)
        peer.send(TEXT, b"stall")
        reactor.run_once(0)
        assert reactor.stats().pings_sent == 1
        for _ in range(3):
            reactor.run_once(0)
        peer.send(PONG, peer.read_frame().payload)
        run_until(reactor, lambda: reactor.stats().pongs_received == 1)
        assert recorder.of("close") == []


def test_a_request_that_came_while_the_server_stalled_is_answered(backend: Backend) -> None:
    recorder = Recorder()
    with serving(backend, only(handshake_seconds_max=PERIOD_SECONDS), recorder) as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer.dial(server.address)) for _ in range(PEERS)]
        wait_until(lambda: server.ask(server.reactor.stats).handshakes == PEERS)
        stall(server)
        for peer in peers:
            peer.write(upgrade_request())
        assert [peer.read_response().status for peer in peers] == [101] * PEERS


def test_a_drain_reads_input_that_came_while_the_server_stalled_before_it_cuts(backend: Backend) -> None:
    recorder = Recorder()
    with serving(backend, only(), recorder) as server, ExitStack() as stack:
        peers = connect_all(stack, server)
        opened(recorder, PEERS)
        server.sender.call(lambda: server.reactor.drain(PERIOD_SECONDS))
        for peer in peers:
            assert peer.read_close() == 1001
        stall(server)
        for peer in peers:
            peer.write(close_frame(1001))
        assert {event[2] for event in recorder.wait_for("close", PEERS)} == {1001}


STOPPED_SERVER = """
import sys
from uringws import Handler, Options, Reactor

class Echo(Handler):
    def on_message(self, conn, message):
        conn.echo()

options = Options(idle_seconds_max=0.5, ping_interval_seconds=0.1, ping_timeout_seconds=0.5)
with Reactor(Echo(), options, backend=sys.argv[1]) as reactor:
    host, port = reactor.bind("127.0.0.1", 0)
    print(f"listening on ws://{host}:{port} ({reactor.backend})", flush=True)
    reactor.run()
"""


def test_a_process_that_was_stopped_cuts_no_peer_that_has_answered(backend: Backend) -> None:
    with ServerProcess("-c", STOPPED_SERVER, backend) as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(server.address)) for _ in range(20)]
        pings = [peer.read_frame() for peer in peers]
        server.process.send_signal(signal.SIGSTOP)
        for peer, ping in zip(peers, pings, strict=True):
            peer.send(PONG, ping.payload)
            peer.send(TEXT, b"still here")
        time.sleep(STALL_SECONDS)
        server.process.send_signal(signal.SIGCONT)
        for peer in peers:
            assert read_message(peer) == Frame(TEXT, b"still here")


# Peers that abuse deadlines


def test_a_request_that_trickles_is_not_given_more_time_for_it(backend: Backend) -> None:
    with serving(backend, only(handshake_seconds_max=0.3), Recorder()) as server, Peer.dial(server.address) as peer:
        start = time.monotonic()
        peer.write(b"GET / HTTP/1.1\r\n")
        while peer.quiet(0.001):
            peer.write(b"a: b\r\n")
        assert peer.read_response().status == 408
        assert_struck(time.monotonic() - start, 0.3)


def test_a_peer_that_keeps_sending_after_our_close_frame_is_cut_too(backend: Backend) -> None:
    """Also where the server is so busy that something waits to be read whenever it looks."""
    recorder = Recorder()
    with serving(backend, only(close_seconds_max=0.3), recorder) as server, Peer.connect(server.address) as peer:
        (conn,) = opened(recorder)

        def keep_busy() -> None:
            time.sleep(0.02)
            if not recorder.of("close") and time.monotonic() - start < 6:
                server.sender.call(keep_busy)

        start = time.monotonic()
        server.ask(conn.close)
        server.sender.call(keep_busy)
        flood = frame(BINARY, bytes(60_000)) * 200

        def talk() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer.write(flood)

        talker = threading.Thread(target=talk, daemon=True)
        talker.start()
        try:
            assert recorder.wait_for("close")[0][2] == 1006
            assert time.monotonic() - start < 4
        finally:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
            talker.join()


def test_a_peer_that_reads_the_rest_in_small_pieces_is_cut_too(tmp_path: Path) -> None:
    """On a Unix socket, whose queue shows each small message that was taken: about 800 bytes in each look."""
    recorder = Recorder()
    path = str(tmp_path / "socket")
    options = only(close_seconds_max=4.0)  # a look per second, which wants 1,000 bytes
    with (
        serving("epoll", options, recorder, prepare=lambda reactor: reactor.bind_unix(path)) as server,
        Peer.connect(path) as peer,
    ):
        (conn,) = opened(recorder)
        while server.ask(lambda: conn.send_text("x")) is SendResult.SENT:
            pass
        server.ask(conn.close)
        start = time.monotonic()
        while not recorder.of("close"):
            assert peer.sock.recv(3) == server_frame(TEXT, b"x")
            time.sleep(1.05)
            assert time.monotonic() - start < 7
        assert recorder.of("close")[0][2] == 1006


# Connections that send nothing


def test_a_connection_that_sent_nothing_is_closed_without_an_answer(backend: Backend) -> None:
    with serving(backend, only(handshake_seconds_max=0.3), Recorder()) as server, Peer.dial(server.address) as peer:
        start = time.monotonic()
        peer.read_eof()
        assert_struck(time.monotonic() - start, 0.25)
        assert server.ask(server.reactor.stats).rejected == {"timeout": 1}
        settle(server)


def test_the_oldest_silent_connection_gives_way_to_a_newcomer(backend: Backend) -> None:
    options = Options(handshakes_max=3, silent_seconds_max=0.3)
    with serving(backend, options, Recorder()) as server, ExitStack() as stack:
        speaking, oldest, younger = (stack.enter_context(Peer.dial(server.address)) for _ in range(3))
        speaking.write(upgrade_request()[:20])
        wait_until(lambda: server.ask(server.reactor.stats).handshakes == 3)
        time.sleep(0.5)
        with Peer.connect(server.address), Peer.dial(server.address) as second:
            oldest.read_eof()
            assert younger.quiet()
            wait_until(lambda: server.ask(server.reactor.stats).handshakes == 3)
            second.write(upgrade_request())
            assert second.read_response().status == 101
        speaking.write(upgrade_request()[20:])
        assert speaking.read_response().status == 101
        younger.write(upgrade_request())
        assert younger.read_response().status == 101
        assert server.ask(server.reactor.stats).rejected == {"handshakes_max": 1}


def test_connections_that_are_silent_for_a_moment_keep_their_place(backend: Backend) -> None:
    options = Options(handshakes_max=2, silent_seconds_max=60.0)
    with serving(backend, options, Recorder()) as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer.dial(server.address)) for _ in range(2)]
        with Peer.dial(server.address) as newcomer:
            assert newcomer.read_response().status == 503
        for peer in peers:
            peer.write(upgrade_request())
            assert peer.read_response().status == 101


def test_without_silent_seconds_max_no_connection_is_closed_for_another(backend: Backend) -> None:
    options = Options(handshakes_max=1, silent_seconds_max=None)
    with serving(backend, options, Recorder()) as server, Peer.dial(server.address) as first:
        time.sleep(0.2)
        with Peer.dial(server.address) as newcomer:
            assert newcomer.read_response().status == 503
        assert first.quiet()


def test_a_request_that_waits_to_be_read_does_not_give_way(backend: Backend) -> None:
    options = Options(handshakes_max=PEERS, silent_seconds_max=0.2)
    with serving(backend, options, Recorder()) as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer.dial(server.address)) for _ in range(PEERS)]
        wait_until(lambda: server.ask(server.reactor.stats).handshakes == PEERS)
        stall(server, 0.5)
        for _ in range(PEERS):
            stack.enter_context(Peer.dial(server.address))
        for peer in peers:
            peer.write(upgrade_request())
        assert [peer.read_response().status for peer in peers] == [101] * PEERS


def test_a_flood_of_silent_connections_keeps_no_honest_one_out(backend: Backend) -> None:
    options = Options(handshakes_max=8, silent_seconds_max=0.001)
    with serving(backend, options, Recorder()) as server, ExitStack() as stack:

        def silent_seen() -> int:
            stats = server.ask(server.reactor.stats)
            assert stats.handshakes <= 8
            return stats.handshakes + stats.rejected.get("handshakes_max", 0)

        for silent in range(10, 101, 10):
            for _ in range(10):
                stack.enter_context(Peer.dial(server.address))
            while silent_seen() < silent:
                time.sleep(0.001)
            time.sleep(0.005)  # longer than silent_seconds_max
            stack.enter_context(Peer.connect(server.address))
            assert silent_seen() == silent


# When timers run


def ping_times(peers: list[Peer], start: float) -> list[float]:
    """When the next ping comes to each peer, in seconds from `start`; all are answered."""
    times: list[float] = [0.0] * len(peers)

    def wait_for_one(index: int) -> None:
        ping = peers[index].read_frame()
        assert ping.opcode == PING
        times[index] = time.monotonic() - start
        peers[index].send(PONG, ping.payload)

    threads = [threading.Thread(target=wait_for_one, args=(index,)) for index in range(len(peers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def test_sessions_that_came_together_are_pinged_apart_also_after_a_stall(backend: Backend) -> None:
    options = only(ping_interval_seconds=1.2, ping_timeout_seconds=60.0)
    with serving(backend, options, Recorder()) as server, ExitStack() as stack:
        start = time.monotonic()
        peers = connect_all(stack, server)
        first = ping_times(peers, start)
        assert max(first) - min(first) > 0.3
        assert max(first) < 1.2 + 3
        stall(server, 1.3)  # all pings are overdue now, and sent at once
        ping_times(peers, start)
        again = ping_times(peers, time.monotonic())
        assert max(again) - min(again) > 0.3


def test_busy_polling_ends_in_time_for_timers_and_for_the_caller(backend: Backend) -> None:
    options = Options(
        busy_poll_microseconds=1_000_000,
        ping_interval_seconds=0.1,
        ping_timeout_seconds=None,
    )
    recorder = Recorder()
    with Reactor(recorder, options, backend=backend) as reactor, ExitStack() as stack:
        address = reactor.bind("127.0.0.1", 0)
        start = time.monotonic()
        reactor.run_once(0.05)
        assert time.monotonic() - start < 0.7
        peer = stack.enter_context(Peer.dial(address))
        peer.write(upgrade_request())
        run_until(reactor, lambda: recorder.of("open"), timeout=0.01)
        start = time.monotonic()
        reactor.run_once(0.9)
        assert reactor.stats().pings_sent >= 3
        assert time.monotonic() - start < 1.7


def test_session_seconds_max_holds_for_a_busy_poller_too(backend: Backend) -> None:
    recorder = Recorder()
    options = Options(busy_poll_microseconds=1_000_000, session_seconds_max=0.2)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        start = time.monotonic()
        assert peer.read_close() == 1001
        assert time.monotonic() - start < 0.9


# A pause


@pytest.mark.parametrize("manner", ["paused", "resumed"])
def test_a_pause_with_a_backlog_ends_no_session(backend: Backend, manner: str) -> None:
    """Neither clock runs while the handler does not read, and both start again when it does."""
    recorder = Recorder()
    options = only(idle_seconds_max=0.4, ping_interval_seconds=0.1, ping_timeout_seconds=0.4)
    with serving(backend, options, recorder) as server, SlowPeer.connect(server.address) as peer:
        conn = paused(server, recorder)
        server.ask(lambda: conn.send_binary(PAYLOAD))
        if manner == "resumed":
            server.ask(conn.resume_reading)
        assert peer.read_message() == Frame(BINARY, PAYLOAD)
        assert recorder.of("close") == []


def test_a_pause_does_not_stop_the_clock_of_a_close(backend: Backend) -> None:
    recorder = Recorder()
    with serving(backend, only(close_seconds_max=0.2), recorder) as server, Peer.connect(server.address):
        conn = paused(server, recorder)
        server.ask(conn.close)
        assert recorder.wait_for("close")[0][2] == 1006
        settle(server)
