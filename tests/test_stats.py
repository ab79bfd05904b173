"""stats() and the metrics on the same port: the figures are right, and reading them costs little."""

from __future__ import annotations

import re
import socket
import time
import tracemalloc
from contextlib import ExitStack

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, Silent, no_listener, wait_until
from test_connections import QUIET, pairs
from uringws import CloseCode, Connection, Message, Options, Reactor, Request, Response, Stats
from uringws.backend import Backend
from uringws.metrics import CONTENT_TYPE
from wire import BINARY, CONTINUATION, PING, PONG, TEXT, Frame, Peer, close_frame, frame, http, upgrade_request

METRICS = Options(ping_interval_seconds=None, metrics_path="/metrics")
ASKED_SECONDS_MAX = 0.002
SESSIONS = 400


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def samples(text: bytes) -> dict[str, int]:
    """Every sample of the text, by its name and labels as they stand there."""
    return {
        name: int(value) for name, value in re.findall(r"^([a-z_]+(?:\{.*\})?) (\d+)$", text.decode(), re.MULTILINE)
    }


# The figures of stats()


def test_a_new_reactor_has_done_nothing(backend: Backend) -> None:
    with Reactor(Silent(), backend=backend) as reactor:
        stats = reactor.stats()
    assert stats == Stats(backend=backend, pool_buffers=Options().receive_buffers)


def test_messages_bytes_and_pings_are_counted_once_each(backend: Backend, recorder: EchoRecorder) -> None:
    said = [
        frame(TEXT, b"one"),
        frame(BINARY, b"t", fin=False) + frame(PING, b"?") + frame(CONTINUATION, b"wo"),
        frame(PONG, b"unasked"),
        frame(BINARY, bytes(100_000)),
    ]
    with (
        pairs(1) as ((ours, peer),),
        ReactorThread(recorder, backend=backend, options=QUIET, prepare=no_listener) as server,
    ):

        def ask() -> Stats:
            return server.ask(server.reactor.stats)

        id_ = server.sender.add_session(ours)
        server.ask(lambda: recorder.connections[id_].ping(b"!"))
        before = ask()
        assert (before.sessions, before.sessions_peak, before.accepted, before.handshakes) == (1, 1, 1, 0)
        peer.write(*said)
        replies = [Frame(PING, b"!"), Frame(TEXT, b"one"), Frame(PONG, b"?"), Frame(BINARY, b"two")]
        assert peer.read_frames(5) == [*replies, Frame(BINARY, bytes(100_000))]
        assert peer.shake_hands(4000, "bye") == 4000
        peer.close()
        wait_until(lambda: ask().sessions == 0)
        stats = ask()
    assert (stats.messages_in, stats.messages_out) == (3, 3)
    assert (stats.pings_sent, stats.pongs_received) == (1, 1)
    assert stats.bytes_in == sum(map(len, said)) + len(close_frame(4000, "bye"))
    answers = sum(len(frame(answer.opcode, answer.payload, key=None)) for answer in replies)
    assert stats.bytes_out == answers + 100_010 + 4
    assert stats.close_codes == {4000: 1}
    assert (stats.queued_bytes, stats.memory_bytes, stats.drops) == (0, 0, 0)
    assert stats.turns >= 2
    assert stats.events >= 4
    assert stats.events_per_turn == stats.events / stats.turns


def test_a_backlog_and_its_drops_are_counted(backend: Backend) -> None:
    options = Options(ping_interval_seconds=None, backlog_bytes_max=1 << 20, on_full="drop")
    with pairs(1) as ((ours, peer),), Reactor(Recorder(), options, backend=backend) as reactor:
        handler = reactor.handler
        assert isinstance(handler, Recorder)
        conn = handler.connections[reactor.add_session(ours)]
        sent = [conn.send_binary(bytes(50_000)).name for _ in range(100)]
        reactor.run_once(0)
        stats = reactor.stats()
        kept = 100 - stats.drops
        assert stats.drops == sent.count("DROPPED") > 0
        assert stats.messages_out == kept
        assert stats.queued_bytes == conn.buffered_amount > 0
        assert stats.memory_bytes >= stats.queued_bytes
        assert stats.bytes_out + stats.queued_bytes == kept * 50_004
        assert stats.sends_short > 0
        for _ in range(kept):
            reactor.run_once(0)
            assert len(peer_frame(reactor, peer).payload) == 50_000
        reactor.run_once(0)
        stats = reactor.stats()
        assert (stats.queued_bytes, stats.memory_bytes, stats.bytes_out) == (0, 0, kept * 50_004)


def peer_frame(reactor: Reactor, peer: Peer) -> Frame:
    """The next frame, with turns between the reads for the reactor to go on."""
    peer.sock.settimeout(0.001)
    received = bytearray()
    while len(received) < 50_004:
        try:
            received += peer.sock.recv(50_004 - len(received))
        except TimeoutError:
            reactor.run_once(0)
    return Frame(received[0] & 0xF, bytes(received[4:]))


def test_every_ending_and_every_rejection_is_counted_once(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(ping_interval_seconds=None, origins=["https://example.org", None], message_bytes_max=100)
    with ReactorThread(recorder, backend=backend, options=options) as server:
        endings = {1000: close_frame(), 1005: close_frame(None), 1002: b"\x00", 1007: frame(TEXT, b"\xff")}
        endings[1009] = frame(BINARY, bytes(101))
        for said in endings.values():
            with Peer.connect(server.address) as peer:
                peer.write(said.ljust(2, b"\0"))
                peer.read_frame()
                peer.read_eof()
        Peer.connect(server.address).reset()
        recorder.wait_for("close", 6)
        assert http(server.address, get("/")).status == 426
        assert http(server.address, upgrade_request(headers=[("Origin", "https://evil.example")])).status == 403
        wait_until(lambda: server.ask(server.reactor.stats).sessions == 0)
        stats = server.ask(server.reactor.stats)
    assert stats.close_codes == dict.fromkeys([*endings, 1006], 1)
    assert stats.accepted == 6
    assert stats.rejected == {"bad_request": 1, "origin": 1}
    assert stats.handshakes == 0


def test_a_deadline_that_passes_is_counted(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(ping_interval_seconds=None, idle_seconds_max=0.05)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        assert peer.read_close() == CloseCode.GOING_AWAY
        peer.write(close_frame(CloseCode.GOING_AWAY))
        peer.read_eof()
        assert server.ask(server.reactor.stats).timeouts == 1


def test_sessions_closed_for_the_memory_budget_are_counted(backend: Backend) -> None:
    options = Options(
        ping_interval_seconds=None,
        receive_buffers=2,
        receive_buffer_bytes=4096,
        message_bytes_max=1 << 18,
        memory_bytes_max=2 * 4096 + (2 << 20),
    )
    with pairs(1) as ((ours, _),), Reactor(Recorder(), options, backend=backend) as reactor:
        handler = reactor.handler
        assert isinstance(handler, Recorder)
        conn = handler.connections[reactor.add_session(ours)]
        for _ in range(40):  # more than the socket and the budget together hold
            if conn.is_open:
                assert reactor.stats().evictions == 0
                conn.send_binary(bytes(1 << 16))
                reactor.run_once(0)
        assert not conn.is_open
        assert reactor.stats().evictions == 1


def test_a_large_message_that_is_sent_at_once_is_counted(backend: Backend) -> None:
    with pairs(1) as ((ours, peer),), Reactor(Recorder(), QUIET, backend=backend) as reactor:
        handler = reactor.handler
        assert isinstance(handler, Recorder)
        conn = handler.connections[reactor.add_session(ours)]
        conn.send_binary(bytes(1000))
        reactor.run_once(0)
        assert reactor.stats().sends_direct == 0
        conn.send_binary(bytes(100_000))
        assert reactor.stats().sends_direct == 1
        assert len(peer.read_frame().payload) == 1000


def test_waits_and_the_buffers_that_were_lent_are_counted(backend: Backend) -> None:
    with pairs(2) as ((one, peer), (other, another)), Reactor(Recorder(), QUIET, backend=backend) as reactor:
        reactor.add_session(one)
        reactor.add_session(other)
        reactor.run_once(0)
        before = reactor.stats()
        assert before.enters > 0
        peer.send(TEXT, b"one")
        another.send(TEXT, b"two")
        while reactor.stats().messages_in < 2:
            reactor.run_once(0.05)
        reactor.run_once(0)
        stats = reactor.stats()
        assert stats.enters > before.enters
        assert stats.pool_in_use == 0
        assert 1 <= stats.pool_in_use_peak <= stats.pool_buffers


# Costs


def test_stats_can_be_read_in_a_handler(backend: Backend) -> None:
    seen: list[Stats] = []

    class Reader(Recorder):
        def on_open(self, conn: Connection) -> None:
            seen.append(server.reactor.stats())

        def on_message(self, conn: Connection, message: Message) -> None:
            seen.append(server.reactor.stats())
            conn.echo()

        def on_close(self, conn: Connection, code: int, reason: str) -> None:
            seen.append(server.reactor.stats())
            super().on_close(conn, code, reason)

    handler = Reader()
    with ReactorThread(handler, backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"how much?")
        assert peer.read_frame() == Frame(TEXT, b"how much?")
        peer.shake_hands()
        handler.wait_for("close")
    assert [stats.accepted for stats in seen] == [1, 1, 1]
    assert [stats.messages_in for stats in seen] == [0, 1, 1]
    assert [stats.close_codes for stats in seen] == [{}, {}, {CloseCode.NORMAL: 1}]


def test_stats_are_cheap_with_many_sessions(backend: Backend) -> None:
    with Reactor(Silent(), QUIET, backend=backend) as reactor, ExitStack() as stack:

        def cost() -> tuple[float, int]:
            """The seconds of the quickest of some calls, and the bytes that one left allocated at its peak."""
            quickest = min(_timed(reactor) for _ in range(50))
            tracemalloc.start()
            reactor.stats()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return quickest, peak

        few_seconds, few_bytes = cost()
        for _ in range(SESSIONS):
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            reactor.add_session(ours)
        many_seconds, many_bytes = cost()
        assert reactor.stats().sessions == SESSIONS
    print(f"{backend}: {1e6 * few_seconds:.0f} us without, {1e6 * many_seconds:.0f} us with {SESSIONS} sessions")
    assert many_bytes < few_bytes + 1024
    assert many_seconds < ASKED_SECONDS_MAX


def _timed(reactor: Reactor) -> float:
    start = time.perf_counter()
    reactor.stats()
    return time.perf_counter() - start


# On the same port


def test_metrics_are_served_beside_sessions(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend, options=METRICS) as server, Peer.connect(server.address) as peer:
        peer.send(BINARY, b"counted")
        peer.read_frame()
        response = http(server.address, get("/metrics"))
        assert response.status == 200
        assert response.headers["content-type"] == CONTENT_TYPE
        found = samples(response.body)
        stats = server.ask(server.reactor.stats)
        peer.send(TEXT, b"unharmed")
        assert peer.read_frame() == Frame(TEXT, b"unharmed")
    assert found[f'uringws_info{{backend="{backend}"}}'] == 1
    assert found["uringws_sessions"] == found["uringws_sessions_accepted_total"] == 1
    assert found["uringws_messages_received_total"] == found["uringws_messages_sent_total"] == 1
    assert 0 < found["uringws_received_bytes_total"] <= stats.bytes_in
    assert stats.rejected == {}
    assert stats.accepted == 1


def test_a_head_request_gets_the_head_alone(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend, options=METRICS) as server, Peer.dial(server.address) as peer:
        peer.write(get("/metrics", "HEAD"))
        answer = b"".join(iter(lambda: peer.sock.recv(65_536), b""))
    head, end, body = answer.partition(b"\r\n\r\n")
    assert (end, body) == (b"\r\n\r\n", b"")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert int(re.findall(rb"(?i)content-length: (\d+)", head)[0]) > 1000


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metric", "/METRICS"])
def test_other_paths_ask_for_an_upgrade(backend: Backend, recorder: EchoRecorder, path: str) -> None:
    with ReactorThread(recorder, backend=backend, options=METRICS) as server:
        response = http(server.address, get(path))
    assert response.status == 426
    assert response.headers["upgrade"].lower() == "websocket"
    assert b"uringws_" not in response.body


def test_a_query_does_not_hide_the_metrics(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend, options=METRICS) as server:
        assert http(server.address, get("/metrics?format=text")).status == 200


def test_without_a_path_nothing_is_served(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend) as server:
        assert http(server.address, get("/metrics")).status == 426


def test_the_handler_answers_the_other_paths(backend: Backend) -> None:
    class Pages(Recorder):
        def on_request(self, request: Request) -> Response | None:
            return None if request.path == "/ws" else Response(404, body=b"no such page\n")

    with ReactorThread(Pages(), backend=backend, options=METRICS) as server:
        assert http(server.address, get("/metrics")).status == 200
        missing = http(server.address, get("/nowhere"))
        assert (missing.status, missing.body) == (404, b"no such page\n")
        assert http(server.address, get("/ws")).status == 426


def test_the_path_of_the_metrics_can_be_upgraded_all_the_same(backend: Backend, recorder: EchoRecorder) -> None:
    with (
        ReactorThread(recorder, backend=backend, options=METRICS) as server,
        Peer.connect(server.address, "/metrics") as peer,
    ):
        assert peer.shake_hands() == 1000


def test_a_post_to_the_metrics_is_refused(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend, options=METRICS) as server:
        assert http(server.address, get("/metrics", "POST")).status == 405
