"""Peers that read too slowly, are too many, or take too long: each held to a limit, none at the cost of another."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, wait_until
from uringws import (
    BacklogFull,
    CloseCode,
    Connection,
    ConnectionClosed,
    Message,
    Opcode,
    Options,
    OptionsError,
    Reactor,
    SendResult,
)
from uringws.backend import Backend
from wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    Peer,
    close_frame,
    distinct_payloads,
    frame,
    http,
    upgrade_request,
)

# Slow readers


def test_a_slow_reader_does_not_hold_up_another(backend: Backend, recorder: EchoRecorder) -> None:
    with (
        ReactorThread(recorder, backend=backend, options=Options(on_full="drop")) as server,
        Peer.connect(server.address) as slow,
        Peer.connect(server.address) as quick,
    ):
        for _ in range(200):
            slow.send(BINARY, b"x" * 60_000)
        for payload in distinct_payloads(100, 5000):
            quick.send(BINARY, payload)
            assert quick.read_frame() == Frame(BINARY, payload)


def test_a_peer_that_half_closes_and_stops_reading_costs_no_turns(backend: Backend) -> None:
    """Its end of stream is there for as long as the socket is full: a poll that reports it comes back at once."""

    class Flood(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            for _ in range(100):
                conn.send_binary(bytes(100_000))

    recorder = Flood()
    options = Options(close_seconds_max=30, ping_interval_seconds=None)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"flood me")
        peer.sock.shutdown(socket.SHUT_WR)
        recorder.wait_for("close")
        before = server.ask(server.reactor.stats)
        assert before.queued_bytes > 0
        time.sleep(0.3)
        assert server.ask(server.reactor.stats).turns - before.turns < 50
        assert peer.read_frames(100) == [Frame(BINARY, bytes(100_000))] * 100
        peer.read_eof()


def test_on_drain_follows_a_backlog_and_loses_no_byte(backend: Backend) -> None:
    class Flood(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            for number in range(64):
                conn.send_binary(bytes([number]) * 100_000)
            self.record("buffered", conn.buffered_amount)

        def on_drain(self, conn: Connection) -> None:
            self.record("drain", conn.buffered_amount)

    options = Options(backlog_bytes_max=16 << 20, backlog_high_bytes=1 << 20, backlog_low_bytes=1 << 18)
    recorder = Flood()
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"flood me")
        ((_, buffered),) = recorder.wait_for("buffered")
        assert 1 << 20 < buffered <= 64 * 100_010
        assert recorder.of("drain") == []
        for number in range(64):
            assert peer.read_frame() == Frame(BINARY, bytes([number]) * 100_000)
        ((_, left),) = recorder.wait_for("drain")
        assert left <= 1 << 18
    assert len(recorder.of("drain")) == 1


@pytest.mark.parametrize("size", [20, 8_000, 300_000])
def test_a_sender_that_stops_at_the_high_mark_always_gets_on_drain(backend: Backend, size: int) -> None:
    """Also where the flush after the handler sends all at once, and no backlog ever came of it."""
    count = 8 * (1 << 20) // size // 20

    class Pump(Recorder):
        def on_open(self, conn: Connection) -> None:
            conn.data = iter(range(count))
            self.on_drain(conn)

        def on_drain(self, conn: Connection) -> None:
            while conn.buffered_amount < 16 << 10:
                number = next(conn.data, None)
                if number is None:
                    return
                conn.send_binary(number.to_bytes(4, "big") * (size // 4))

    options = Options(backlog_high_bytes=16 << 10)
    with ReactorThread(Pump(), backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        for number in range(count):
            assert peer.read_frame() == Frame(BINARY, number.to_bytes(4, "big") * (size // 4))


class Overflow(Recorder):
    """Sends more than any backlog here takes, and keeps the results of ``send``."""

    def on_message(self, conn: Connection, message: Message) -> None:
        for _ in range(200):
            try:
                self.record("sent", conn.send(Opcode.BINARY, bytes(100_000)))
            except BacklogFull as error:
                self.record("raised", error)
                break
            except ConnectionClosed:
                self.record("closed")
                break


@pytest.mark.parametrize("policy", ["close", "drop", "error"])
def test_a_full_backlog_closes_drops_or_raises(backend: Backend, policy: str) -> None:
    options = Options(backlog_bytes_max=1 << 20, on_full=policy, close_seconds_max=0.2)  # type: ignore[arg-type]
    recorder = Overflow()
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"go")
        if policy == "close":
            ((_, _, code, _),) = recorder.wait_for("close")
            assert code == CloseCode.POLICY_VIOLATION
            return
        recorder.wait_for("sent" if policy == "drop" else "raised", 200 if policy == "drop" else 1)
        kept = sum(1 for event in recorder.of("sent") if event[1] is not SendResult.DROPPED)
        assert 10 <= kept < 200
        assert peer.read_frames(kept) == [Frame(BINARY, bytes(100_000))] * kept
        assert peer.shake_hands() == 1000


def test_a_full_backlog_leaves_room_for_pongs(backend: Backend) -> None:
    options = Options(backlog_bytes_max=1 << 20, on_full="drop")
    with ReactorThread(Overflow(), backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        peer.write(frame(TEXT, b"go"), frame(PING, b"alive?"))
        while (received := peer.read_frame()).opcode == BINARY:
            pass
        assert received == Frame(PONG, b"alive?")


def test_run_echo_reads_only_as_fast_as_its_peer(backend: Backend, recorder: EchoRecorder) -> None:
    """In run_echo no handler can stop such a peer, so the reactor does: the rest waits in the sockets, and nothing is
    lost.
    """
    size, count = 500_000, 60
    options = Options(backlog_bytes_max=2 << 20)
    with (
        ReactorThread(recorder, backend=backend, options=options, run=Reactor.run_echo) as server,
        Peer.connect(server.address) as peer,
    ):
        payloads = [bytes([number]) * size for number in range(count)]
        writer = threading.Thread(target=peer.write, args=[frame(BINARY, payload) for payload in payloads])
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        assert server.ask(server.reactor.stats).queued_bytes < 4 << 20
        for payload in payloads:
            assert peer.read_frame() == Frame(BINARY, payload)
        writer.join()


@pytest.mark.parametrize("size", [1000, 100_000])
def test_the_greediest_are_closed_when_all_memory_is_spoken_for(backend: Backend, size: int) -> None:
    """No session exceeds its own limit here, but together they exceed that of all."""
    each, budget = 1_500_000, 6 << 20
    options = Options(
        receive_buffers=16,
        receive_buffer_bytes=16_384,
        message_bytes_max=1 << 20,
        backlog_bytes_max=2 << 20,
        memory_bytes_max=budget,
    )

    class Hoard(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            if bytes(message) == b"modest":
                conn.echo()
                return
            with contextlib.suppress(ConnectionClosed):
                while conn.buffered_amount < each:
                    conn.send_binary(bytes(size))

    recorder = Hoard()
    with ReactorThread(recorder, backend=backend, options=options) as server, contextlib.ExitStack() as stack:
        modest = stack.enter_context(Peer.connect(server.address))
        for _ in range(8):
            stack.enter_context(Peer.connect(server.address)).send(TEXT, b"greedy")
        recorder.wait_for("close", 4)
        assert server.ask(server.reactor.stats).memory_bytes <= budget
        modest.send(TEXT, b"modest")
        assert modest.read_frame() == Frame(TEXT, b"modest")
        assert all("memory" in event[3] for event in recorder.of("close"))


# Too many, too slow


def test_a_request_that_never_ends_is_cut_off(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(handshake_seconds_max=0.2)
    with ReactorThread(recorder, backend=backend, options=options) as server:
        silent, trickling = Peer.dial(server.address), Peer.dial(server.address)
        with silent, trickling, Peer.connect(server.address) as upgraded:
            start = time.monotonic()
            trickling.write(upgrade_request()[:30])
            assert trickling.read_response().status == 408
            trickling.read_eof()
            silent.sock.recv(4096)
            assert 0.1 < time.monotonic() - start < 5
            upgraded.send(TEXT, b"unharmed")
            assert upgraded.read_frame() == Frame(TEXT, b"unharmed")


def padded_request(size: int) -> bytes:
    """An opening request whose head, the empty line included, has that many bytes."""
    bare = len(upgrade_request(headers=[("X-Padding", "")]))
    return upgrade_request(headers=[("X-Padding", "p" * (size - bare))])


@pytest.mark.parametrize("at", [None, 10, 1023], ids=["whole", "cut", "cut-before-the-last-byte"])
def test_header_bytes_max_is_the_size_of_the_largest_head(
    backend: Backend, recorder: EchoRecorder, at: int | None
) -> None:
    options = Options(header_bytes_max=1024)
    with ReactorThread(recorder, backend=backend, options=options) as server:
        for size, status in ((1024, 101), (1025, 431)):
            with Peer.dial(server.address) as peer:
                request = padded_request(size)
                assert len(request) == size
                peer.write(request[:at])
                if at is not None:
                    assert peer.quiet()
                    peer.write(request[at:])
                assert peer.read_response().status == status
        # Bytes after the head are not part of it.
        with Peer.dial(server.address) as peer:
            peer.write(padded_request(1024), frame(BINARY, bytes(2000)))
            assert peer.read_response().status == 101
            assert peer.read_frame() == Frame(BINARY, bytes(2000))


def test_sessions_over_the_limit_are_answered_503(backend: Backend, recorder: EchoRecorder) -> None:
    with (
        ReactorThread(recorder, backend=backend, options=Options(sessions_max=2)) as server,
        Peer.connect(server.address),
        Peer.connect(server.address) as second,
    ):
        assert http(server.address, upgrade_request()).status == 503
        second.shake_hands()
        second.close()
        wait_until(lambda: server.ask(server.reactor.stats).sessions == 1)
        with Peer.connect(server.address) as third:
            third.send(TEXT, b"room again")
            assert third.read_frame() == Frame(TEXT, b"room again")


def test_sessions_of_one_address_over_its_limit_are_answered_429(backend: Backend, recorder: EchoRecorder) -> None:
    with (
        ReactorThread(recorder, backend=backend, options=Options(sessions_per_ip_max=2)) as server,
        Peer.connect(server.address),
        Peer.connect(server.address),
    ):
        assert http(server.address, upgrade_request()).status == 429
        with socket.socket() as other:
            other.bind(("127.0.0.2", 0))
            other.connect(server.address)
            with Peer(other) as peer:
                peer.write(upgrade_request())
                assert peer.read_response().status == 101


def test_upgrades_in_progress_over_their_limit_are_answered_503(backend: Backend, recorder: EchoRecorder) -> None:
    with (
        ReactorThread(recorder, backend=backend, options=Options(handshakes_max=2)) as server,
        Peer.dial(server.address) as slow,
        Peer.dial(server.address),
    ):
        wait_until(lambda: server.ask(server.reactor.stats).handshakes == 2)
        assert http(server.address, upgrade_request()).status == 503
        slow.write(upgrade_request())
        assert slow.read_response().status == 101
        with Peer.connect(server.address) as next_one:
            assert next_one.shake_hands() == 1000


RUNS = pytest.mark.parametrize("run", [Reactor.run, Reactor.run_echo], ids=["handler", "c"])


@RUNS
@pytest.mark.parametrize("size", [4, 1000], ids=["small", "large"])
@pytest.mark.parametrize("field", ["refuse_text", "refuse_binary"])
def test_a_type_of_message_may_be_refused(
    backend: Backend, field: str, size: int, run: Callable[[Reactor], None]
) -> None:
    options = Options(**{field: True})  # type: ignore[arg-type]
    refused, taken = (TEXT, BINARY) if field == "refuse_text" else (BINARY, TEXT)
    with (
        ReactorThread(EchoRecorder(), backend=backend, options=options, run=run) as server,
        Peer.connect(server.address) as peer,
    ):
        peer.write(frame(taken, b"f" * size), frame(refused, b"n" * size))
        assert peer.read_frame() == Frame(taken, b"f" * size)
        assert peer.read_close() == CloseCode.UNSUPPORTED_DATA


@RUNS
@pytest.mark.parametrize("largest", [1, 100, 125, 126, 65_535, 65_536, 100_000])
def test_message_bytes_max_is_the_size_of_the_largest_message(
    backend: Backend, largest: int, run: Callable[[Reactor], None]
) -> None:
    options = Options(message_bytes_max=largest)
    payload = bytes(largest)
    with ReactorThread(EchoRecorder(), backend=backend, options=options, run=run) as server:
        for opcode in (TEXT, BINARY):
            with Peer.connect(server.address) as peer:
                peer.write(frame(opcode, payload), frame(opcode, payload + b"x"))
                assert peer.read_frame() == Frame(opcode, payload)
                assert peer.read_close() == CloseCode.MESSAGE_TOO_BIG


HEADER_BYTES = 8  # of a frame with 126 to 65,535 bytes of payload and a masking key


def test_the_announced_length_is_refused_before_its_bytes_come(backend: Backend) -> None:
    options = Options(message_bytes_max=1000)
    with ReactorThread(EchoRecorder(), backend=backend, options=options) as server:
        with Peer.connect(server.address) as peer:
            peer.write(frame(BINARY, bytes(1000)), frame(BINARY, bytes(1001))[:HEADER_BYTES])
            assert peer.read_frame() == Frame(BINARY, bytes(1000))
            assert peer.read_close() == CloseCode.MESSAGE_TOO_BIG
        with Peer.connect(server.address) as peer:
            peer.write(frame(BINARY, bytes(600), fin=False), frame(CONTINUATION, bytes(401))[:HEADER_BYTES])
            assert peer.read_close() == CloseCode.MESSAGE_TOO_BIG


def test_an_old_session_is_sent_away(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(session_seconds_max=0.2)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        start = time.monotonic()
        assert peer.read_close() == CloseCode.GOING_AWAY
        assert 0.1 < time.monotonic() - start < 5
        peer.write(close_frame(1001))
        peer.read_eof()


def test_the_longest_deadlines_are_far_away(backend: Backend, recorder: EchoRecorder) -> None:
    """The shim's clock wraps round every 49 days; a time in the future must not seem to be past."""
    names = ["handshake", "close", "idle", "session"]
    longest: dict[str, Any] = {f"{name}_seconds_max": 24 * 86400 for name in names}
    options = Options(**longest, ping_interval_seconds=24 * 86400, ping_timeout_seconds=24 * 86400)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        assert peer.quiet(0.2)
        peer.send(TEXT, b"still here")
        assert peer.read_frame() == Frame(TEXT, b"still here")
        assert peer.shake_hands() == 1000
    with pytest.raises(OptionsError):
        Options(session_seconds_max=25 * 86400)


def test_a_peer_that_does_not_answer_our_close_is_cut_off(backend: Backend) -> None:
    class Closer(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            conn.close(CloseCode.GOING_AWAY)

    recorder = Closer()
    options = Options(close_seconds_max=0.2)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"close me")
        assert peer.read_close() == 1001
        start = time.monotonic()
        recorder.wait_for("close")
        assert 0.1 < time.monotonic() - start < 5
        peer.read_eof()


def test_an_idle_session_is_closed(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(idle_seconds_max=0.3, close_seconds_max=0.2, ping_interval_seconds=None)
    with (
        ReactorThread(recorder, backend=backend, options=options) as server,
        Peer.connect(server.address) as busy,
        Peer.connect(server.address) as idle,
    ):
        for _ in range(8):
            busy.send(TEXT, b"busy")
            busy.read_frame()
            time.sleep(0.1)
        assert [event[1] for event in recorder.wait_for("close")] == [recorder.of("open")[1][1]]
        assert idle.read_frame().opcode == CLOSE


def test_the_server_pings_and_cuts_a_peer_that_does_not_answer(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(ping_interval_seconds=0.1, ping_timeout_seconds=0.3)
    with (
        ReactorThread(recorder, backend=backend, options=options) as server,
        Peer.connect(server.address) as alive,
        Peer.connect(server.address),
    ):
        dead = recorder.wait_for("open", 2)[1][1]
        deadline = time.monotonic() + 0.8
        while time.monotonic() < deadline:
            ping = alive.read_frame()
            assert ping.opcode == PING
            alive.send(PONG, ping.payload)
        assert [event[1] for event in recorder.wait_for("close")] == [dead]
