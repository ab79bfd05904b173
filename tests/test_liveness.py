"""Deadlines and pings, each alone: the sessions that it ends, those that it leaves alone, and when its clock
restarts.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, Silent, connected, wait_until
from uringws import Connection, ConnectionClosed, Options, Reactor, SendResult
from uringws.backend import Backend
from wire import BINARY, CLOSE, PING, PONG, TEXT, Frame, Peer, frame, upgrade_request

SHORT_SECONDS = 0.2
LONG_SECONDS = 1.0
"""Without a deadline, nothing may end a session within this time."""


def only(**limits: float | None) -> Options:
    """Options with no deadline and no ping but those named."""
    none: dict[str, float | None] = dict.fromkeys(
        (
            "handshake_seconds_max",
            "close_seconds_max",
            "idle_seconds_max",
            "ping_interval_seconds",
            "ping_timeout_seconds",
            "session_seconds_max",
        )
    )
    return Options(**{**none, **limits})  # type: ignore[arg-type]


@contextmanager
def serving(backend: Backend, options: Options, recorder: Recorder | None = None) -> Iterator[ReactorThread]:
    with ReactorThread(recorder or EchoRecorder(), backend=backend, options=options) as server:
        yield server


class Stopwatch:
    def __init__(self) -> None:
        self._start = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start


def assert_struck(seconds: float, after: float) -> None:
    """A deadline is never early, except for the millisecond of rounding, and not much late."""
    assert after - 0.005 <= seconds < after + LONG_SECONDS * 4


def answer_pings(peer: Peer, seconds: float) -> int:
    """Answer every ping for that long; return how many there were."""
    watch, pings = Stopwatch(), 0
    while watch.seconds() < seconds:
        if peer.quiet(0.02):
            continue
        ping = peer.read_frame()
        assert ping.opcode == PING
        peer.send(PONG, ping.payload)
        pings += 1
    return pings


# Each deadline alone


def test_without_deadlines_nothing_ends(backend: Backend, recorder: EchoRecorder) -> None:
    with serving(backend, only(), recorder) as server, Peer.dial(server.address) as unfinished:
        unfinished.write(upgrade_request()[:20])
        with Peer.connect(server.address) as idle, Peer.connect(server.address) as closing:
            identity = recorder.wait_for("open", 2)[1][1]
            server.ask(recorder.connections[identity].close)
            assert closing.read_close() == 1000
            before = server.ask(server.reactor.stats)
            assert idle.quiet(LONG_SECONDS)
            assert unfinished.quiet()
            after = server.ask(server.reactor.stats)
            assert (after.sessions, after.handshakes, after.pings_sent) == (2, 1, 0)
            assert after.turns - before.turns <= 3, "and nothing is looked at meanwhile"
            assert recorder.of("close") == []
            closing.send(CLOSE, struct.pack("!H", 1000))
            closing.read_eof()


def test_idle_seconds_max_counts_from_the_last_byte_that_came(backend: Backend, recorder: EchoRecorder) -> None:
    with serving(backend, only(idle_seconds_max=0.6), recorder) as server, Peer.connect(server.address) as peer:
        watch = Stopwatch()
        for byte in frame(TEXT, b"drop by drop"):  # longer than the deadline in all, and no message until the end
            peer.write(bytes([byte]))
            time.sleep(0.05)
        assert watch.seconds() > 0.6
        assert peer.read_frame() == Frame(TEXT, b"drop by drop")
        watch = Stopwatch()
        close = peer.read_frame()
        assert (close.opcode, close.close_code) == (CLOSE, 1001)
        assert 0.4 <= watch.seconds() < 4
        peer.send(CLOSE, close.payload)
        peer.read_eof()
        assert recorder.wait_for("close")[0][2] == 1001


def test_sending_to_a_session_does_not_keep_it_from_being_idle(backend: Backend) -> None:
    recorder = Recorder()
    with serving(backend, only(idle_seconds_max=0.3), recorder) as server, Peer.connect(server.address) as peer:
        watch = Stopwatch()
        conn = recorder.connections[recorder.wait_for("open")[0][1]]
        sent = 0
        with pytest.raises(ConnectionClosed):  # noqa: PT012 - which of them raises is up to the clock
            while server.ask(lambda: conn.send_text("still there?")) is SendResult.SENT:
                sent += 1
                time.sleep(0.02)
        assert peer.read_frames(sent) == [Frame(TEXT, b"still there?")] * sent
        assert peer.read_close() == 1001
        assert_struck(watch.seconds(), 0.3)
        assert sent >= 5


def test_pings_that_are_not_answered_do_not_keep_a_session_from_being_idle(backend: Backend) -> None:
    recorder = Recorder()
    options = only(idle_seconds_max=0.5, ping_interval_seconds=0.1, close_seconds_max=SHORT_SECONDS)
    with serving(backend, options, recorder) as server, Peer.connect(server.address):
        watch = Stopwatch()
        assert recorder.wait_for("close")[0][2] == 1001
        assert_struck(watch.seconds(), 0.5)


def test_a_pong_keeps_a_session_from_being_idle(backend: Backend, recorder: EchoRecorder) -> None:
    options = only(idle_seconds_max=0.3, ping_interval_seconds=0.1)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        assert answer_pings(peer, 0.8) >= 4
        assert recorder.of("close") == []


def test_ping_timeout_cuts_a_peer_that_does_not_answer(backend: Backend, recorder: EchoRecorder) -> None:
    options = only(ping_interval_seconds=SHORT_SECONDS, ping_timeout_seconds=SHORT_SECONDS)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        watch = Stopwatch()
        assert peer.read_frame().opcode == PING
        assert_struck(watch.seconds(), SHORT_SECONDS - 0.05)
        assert recorder.wait_for("close")[0][2] == 1006
        assert_struck(watch.seconds(), 2 * SHORT_SECONDS - 0.05)


def test_another_ping_gives_a_silent_peer_no_more_time(backend: Backend) -> None:
    """If a pong decides, only one ping is under way: a second one would have a clock of its own."""
    recorder = Recorder()
    options = only(ping_interval_seconds=0.1, ping_timeout_seconds=0.45)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        watch = Stopwatch()
        assert peer.read_frame().opcode == PING
        assert recorder.wait_for("close")[0][2] == 1006
        assert_struck(watch.seconds(), 0.4)
        peer.read_eof()
        assert server.ask(server.reactor.stats).pings_sent == 1


def test_a_message_after_the_ping_is_a_sign_of_life_too(backend: Backend, recorder: EchoRecorder) -> None:
    """A peer that answers late because it is sending is not taken for dead."""
    options = only(ping_interval_seconds=0.1, ping_timeout_seconds=0.3)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        watch = Stopwatch()
        while watch.seconds() < LONG_SECONDS:
            peer.send(TEXT, b"busy")
            while peer.read_frame().opcode != TEXT:
                pass
            time.sleep(0.05)
        assert recorder.of("close") == []


def paused(server: ReactorThread, recorder: Recorder) -> Connection:
    conn = recorder.connections[recorder.wait_for("open")[0][1]]
    server.ask(conn.pause_reading)
    return conn


def test_a_peer_that_is_not_listened_to_is_not_silent(backend: Backend) -> None:
    recorder = Recorder()
    options = only(idle_seconds_max=0.3, ping_interval_seconds=0.1, ping_timeout_seconds=0.2)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        conn = paused(server, recorder)
        peer.send(TEXT, b"to be kept")
        time.sleep(LONG_SECONDS)
        assert recorder.of("close") == []
        server.ask(conn.resume_reading)
        assert recorder.wait_for("message")[0][3] == b"to be kept"
        assert answer_pings(peer, 0.8) >= 4
        assert recorder.of("close") == []


@pytest.mark.parametrize(
    ("limits", "code"),
    [({"idle_seconds_max": 0.3}, 1001), ({"ping_interval_seconds": 0.1, "ping_timeout_seconds": 0.2}, 1006)],
    ids=["idle", "ping"],
)
def test_deadlines_count_again_after_a_pause(backend: Backend, limits: dict[str, float], code: int) -> None:
    recorder = Recorder()
    options = only(**limits, close_seconds_max=SHORT_SECONDS)
    with serving(backend, options, recorder) as server, Peer.connect(server.address):
        conn = paused(server, recorder)
        time.sleep(0.5)
        watch = Stopwatch()
        server.ask(conn.resume_reading)
        assert recorder.wait_for("close")[0][2] == code
        assert_struck(watch.seconds(), 0.2)


def test_session_seconds_max_ends_a_paused_session_too(backend: Backend) -> None:
    recorder = Recorder()
    options = only(session_seconds_max=0.4, close_seconds_max=SHORT_SECONDS)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        paused(server, recorder)
        assert peer.read_close() == 1001


def test_without_a_time_out_pings_go_on_unanswered(backend: Backend, recorder: EchoRecorder) -> None:
    options = only(ping_interval_seconds=0.1)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        watch = Stopwatch()
        assert {peer.read_frame().opcode for _ in range(5)} == {PING}
        assert 0.4 <= watch.seconds() < 3
        assert recorder.of("close") == []


def test_without_an_interval_no_pings_are_sent(backend: Backend, recorder: EchoRecorder) -> None:
    with serving(backend, only(ping_timeout_seconds=0.1), recorder) as server, Peer.connect(server.address) as peer:
        assert peer.quiet(0.5)
        assert server.ask(server.reactor.stats).pings_sent == 0
        assert recorder.of("close") == []


def test_handshake_seconds_max_is_for_the_whole_request(backend: Backend) -> None:
    with serving(backend, only(handshake_seconds_max=0.3)) as server, Peer.dial(server.address) as peer:
        watch = Stopwatch()
        for byte in upgrade_request():
            if not peer.quiet(0.03):
                break
            peer.write(bytes([byte]))
        assert peer.read_response().status == 408
        assert_struck(watch.seconds(), 0.3)
        stats = server.ask(server.reactor.stats)
        assert stats.rejected == {"timeout": 1}
        peer.close()
        wait_until(lambda: server.ask(server.reactor.stats).handshakes == 0)


def test_handshake_seconds_max_ends_with_the_handshake(backend: Backend) -> None:
    with serving(backend, only(handshake_seconds_max=0.2)) as server, Peer.connect(server.address) as peer:
        assert peer.quiet(0.5)
        peer.send(TEXT, b"still here")
        assert peer.read_frame() == Frame(TEXT, b"still here")


def test_close_seconds_max_cuts_a_peer_that_does_not_answer_a_close_frame(backend: Backend) -> None:
    recorder = Recorder()
    options = only(close_seconds_max=SHORT_SECONDS)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        conn = recorder.connections[recorder.wait_for("open")[0][1]]
        watch = Stopwatch()
        server.ask(lambda: conn.close(4000))
        assert peer.read_close() == 4000
        for _ in range(5):
            peer.send(TEXT, b"sorry, what?")  # sending more gains no time
        assert recorder.wait_for("close")[0][2] == 1006
        assert_struck(watch.seconds(), SHORT_SECONDS)
        wait_until(lambda: server.ask(server.reactor.stats).sessions == 0)


def test_close_seconds_max_is_not_put_off_by_bytes_that_wait_at_every_look(backend: Backend) -> None:
    """Bytes that have arrived are read before a deadline is applied, but not without end."""
    recorder = Recorder()
    with (
        Reactor(recorder, only(close_seconds_max=SHORT_SECONDS), backend=backend) as reactor,
        connected(reactor) as peer,
    ):
        (conn,) = recorder.connections.values()
        reactor.run_once(0)
        conn.close(4000)
        reactor.run_once(0)
        watch = Stopwatch()
        while not recorder.of("close"):
            assert watch.seconds() < 2 * SHORT_SECONDS + LONG_SECONDS * 4
            with contextlib.suppress(ConnectionError):
                peer.send(TEXT, b"not yet")
            reactor.run_once(0)
        assert recorder.of("close")[0][2] == 1006


def test_close_seconds_max_bounds_the_wait_for_the_end_of_the_stream(backend: Backend) -> None:
    """The close frames are exchanged, but the peer keeps its side of the TCP connection open."""
    recorder = Recorder()
    options = only(close_seconds_max=SHORT_SECONDS)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        peer.send(CLOSE, struct.pack("!H", 1000))
        assert peer.read_close() == 1000
        assert recorder.wait_for("close")[0][2] == 1000
        wait_until(lambda: server.ask(server.reactor.stats).sessions == 0)


def test_close_seconds_max_bounds_the_wait_for_a_backlog(backend: Backend) -> None:
    """A peer that does not read never gets to our close frame."""
    recorder = Recorder()
    options = only(close_seconds_max=SHORT_SECONDS)
    with serving(backend, options, recorder) as server, Peer.connect(server.address):
        conn = recorder.connections[recorder.wait_for("open")[0][1]]
        server.ask(lambda: [conn.send_binary(bytes(1 << 20)) for _ in range(16)])
        server.ask(conn.close)
        assert recorder.wait_for("close")[0][2] == 1006
        wait_until(lambda: server.ask(server.reactor.stats).memory_bytes == 0)


@pytest.mark.parametrize("manner", ["busy", "silent"])
def test_session_seconds_max_ends_any_session_with_1001(backend: Backend, recorder: EchoRecorder, manner: str) -> None:
    options = only(session_seconds_max=0.4)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        watch = Stopwatch()
        if manner == "busy":
            received = Frame(TEXT, b"busy")
            while received.opcode == TEXT:
                peer.send(TEXT, b"busy")
                received = peer.read_frame()
            assert received.close_code == 1001
        else:
            assert peer.read_close() == 1001
        assert_struck(watch.seconds(), 0.35)
        peer.send(CLOSE, struct.pack("!H", 1001))
        peer.read_eof()
        assert recorder.wait_for("close")[0][2] == 1001


def test_sessions_of_different_ages_end_in_turn(backend: Backend, recorder: EchoRecorder) -> None:
    with serving(backend, only(session_seconds_max=0.5, close_seconds_max=1.0), recorder) as server:
        peers = []
        for _ in range(4):
            peers.append(Peer.connect(server.address))
            time.sleep(0.1)
        opened = [event[1] for event in recorder.wait_for("open", 4)]
        for peer in peers:
            assert peer.read_close() == 1001
            peer.send(CLOSE, struct.pack("!H", 1001))
            peer.read_eof()
            peer.close()
        assert [event[1] for event in recorder.wait_for("close", 4)] == opened


# Latency


def test_latency_is_known_after_the_first_pong_and_measures_the_peer(backend: Backend) -> None:
    recorder = Recorder()
    options = only(ping_interval_seconds=0.1)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        conn = recorder.connections[recorder.wait_for("open")[0][1]]
        assert server.ask(lambda: conn.latency_seconds) is None
        ping = peer.read_frame()
        peer.send(PONG, b"not what was asked")
        peer.send(PONG, ping.payload[:-1] + bytes([ping.payload[-1] ^ 1]))
        assert server.ask(lambda: conn.latency_seconds) is None
        time.sleep(0.15)
        peer.send(PONG, ping.payload)
        wait_until(lambda: server.ask(lambda: conn.latency_seconds) is not None)
        latency = server.ask(lambda: conn.latency_seconds)
        assert latency is not None
        assert 0.15 <= latency < 1

        def answered_at_once() -> bool:
            answer_pings(peer, 0.15)
            now = server.ask(lambda: conn.latency_seconds)
            return now is not None and 0 <= now < 0.1

        wait_until(answered_at_once)
        assert recorder.of("message") == []


def test_many_sessions_are_pinged_each_at_its_own_time(backend: Backend) -> None:
    """And the pings cost the neighbours nothing: a busy session's deadlines do not disturb the others'."""
    options = only(ping_interval_seconds=0.2, ping_timeout_seconds=2.0)
    with serving(backend, options, Recorder()) as server:
        peers = [Peer.connect(server.address) for _ in range(50)]
        try:
            for peer in peers:
                ping = peer.read_frame()
                assert (ping.opcode, len(ping.payload)) == (PING, 8)
                peer.send(PONG, ping.payload)
            wait_until(lambda: server.ask(server.reactor.stats).pongs_received == 50)
        finally:
            for peer in peers:
                peer.close()


def test_pings_find_their_way_between_the_parts_of_a_large_message(backend: Backend) -> None:
    """A message that is still arriving is a sign of life, and pings do not wait for its end."""
    recorder = EchoRecorder()
    options = only(ping_interval_seconds=0.1, ping_timeout_seconds=0.5)
    with serving(backend, options, recorder) as server, Peer.connect(server.address) as peer:
        payload = bytes(100_000)
        whole = frame(BINARY, payload)
        for part in range(0, len(whole), 10_000):
            peer.write(whole[part : part + 10_000])
            time.sleep(0.07)
        pings = 0
        while (received := peer.read_frame()).opcode == PING:
            pings += 1
        assert pings >= 1
        assert received == Frame(BINARY, payload)
        assert recorder.of("close") == []


def test_timers_of_an_idle_server_cost_no_turns(backend: Backend) -> None:
    options = Options(idle_seconds_max=60.0)
    with ReactorThread(Silent(), backend=backend, options=options) as server:
        peers = [Peer.connect(server.address) for _ in range(20)]
        time.sleep(0.3)  # the first look at new sessions
        before = server.ask(server.reactor.stats).turns
        threading.Event().wait(LONG_SECONDS)
        assert server.ask(server.reactor.stats).turns - before <= 3
        for peer in peers:
            peer.close()
