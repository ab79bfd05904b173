"""memory_bytes_max: the memory of all sessions together, and which sessions are closed near the limit."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, connected, run_until, wait_until
from uringws import Close, Closing, Connection, ConnectionClosed, LimitReached, Options, Reactor, Stats
from uringws.backend import Backend
from wire import BINARY, CLOSE, CONTINUATION, TEXT, Frame, Peer, frame

KIB, MIB = 1 << 10, 1 << 20
POOL_BYTES = 64 * 4 * KIB
BUDGET_BYTES = 13 * MIB
"""Of the sessions; the pool comes on top."""


class Pushing(EchoRecorder):
    """Echoes binary messages; a text asks for that many KiB."""

    def on_message(self, conn: Connection, message: object) -> None:
        data = bytes(message)  # type: ignore[call-overload]
        if data[:1] == b"#":
            for _ in range(int(data[1:]) // 64):
                if conn.is_open:
                    conn.send_binary(bytes(64 * KIB))
        else:
            conn.echo()


@contextmanager
def serving(backend: Backend, recorder: EchoRecorder, **more: object) -> Iterator[ReactorThread]:
    options = Options(
        receive_buffers=64,
        receive_buffer_bytes=4 * KIB,
        message_bytes_max=4 * MIB,
        memory_bytes_max=POOL_BYTES + BUDGET_BYTES,
        close_seconds_max=1.0,
        **more,  # type: ignore[arg-type]
    )
    with ReactorThread(recorder, backend=backend, options=options) as server:
        yield server


def stats(server: ReactorThread) -> Stats:
    return server.ask(server.reactor.stats)


def assert_alive(server: ReactorThread, peer: Peer) -> None:
    peer.send(TEXT, b"unharmed")
    assert peer.read_frame() == Frame(TEXT, b"unharmed")
    assert stats(server).memory_bytes <= BUDGET_BYTES


def begin_message(peer: Peer, bytes_: int, announced: int) -> None:
    """Send that much of a message that will never end."""
    whole = frame(BINARY, bytes(announced))
    with contextlib.suppress(OSError):  # the session may have been cut already, which this test is about
        peer.write(whole[:bytes_])


def read_until_end(peer: Peer) -> int | None:
    """The close code that ended it; None where the stream just ended."""
    try:
        while (received := peer.read_frame()).opcode != CLOSE:
            pass
    except (EOFError, ConnectionError):
        return None
    return received.close_code


def test_a_budget_smaller_than_one_message_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_bytes_max"):
        Options(memory_bytes_max=MIB, message_bytes_max=16 * MIB)


@pytest.mark.parametrize("size", [1, 66_000, 300_000, MIB, 3 * MIB])
@pytest.mark.parametrize("first", ["one byte", "a 65th", "half"])
@pytest.mark.parametrize("fragmented", [False, True])
def test_the_least_budget_takes_the_largest_message_however_it_comes(
    backend: Backend, size: int, first: str, *, fragmented: bool
) -> None:
    """A growing message is moved to larger memory, so that it takes more than its size for a while."""
    needed = POOL_BYTES + 3 * size + 256 * KIB
    options = Options(
        receive_buffers=64,
        receive_buffer_bytes=4 * KIB,
        session_turn_bytes_max=64 * KIB,
        message_bytes_max=size,
        memory_bytes_max=needed,
    )
    recorder, payload = Recorder(), bytes(range(256)) * (size // 256) + bytes(size % 256)
    begun = {"one byte": 1, "a 65th": size // 65, "half": size // 2}[first]
    cut = max(1, size * 7 // 10)
    wire = frame(BINARY, payload)
    if fragmented:
        wire = frame(BINARY, payload[:cut], fin=False) + frame(CONTINUATION, payload[cut:])
    with Reactor(recorder, options, backend=backend) as reactor, connected(reactor) as peer:
        peer.write(wire[: 14 + begun])
        reactor.run_once(0.01)
        writer = threading.Thread(target=peer.write, args=(wire[14 + begun :],))
        writer.start()
        run_until(reactor, lambda: recorder.of("message") or recorder.of("close"))
        writer.join()
        assert [event[3] == payload for event in recorder.of("message")] == [True]
        assert recorder.of("close") == []
        peer.reset()


def test_the_greediest_partial_message_is_closed_with_1009(backend: Backend) -> None:
    recorder = Pushing()
    with serving(backend, recorder) as server, ExitStack() as stack:
        lively = stack.enter_context(Peer.connect(server.address))
        greedy = stack.enter_context(Peer.connect(server.address))
        begin_message(greedy, 3 * MIB, 4 * MIB)
        modest: list[Peer] = []
        while not recorder.of("close"):
            assert len(modest) < 40
            modest.append(stack.enter_context(Peer.connect(server.address)))
            begin_message(modest[-1], 200 * KIB, 300 * KIB)
            stats(server)
        assert recorder.of("close")[0][1:3] == (recorder.of("open")[1][1], 1009)
        closed = recorder.connections[recorder.of("close")[0][1]]
        assert closed.closing == Closing(sent=Close(1009, "server out of memory"), received_first=False)
        assert read_until_end(greedy) == 1009
        assert_alive(server, lively)
        assert len(recorder.of("close")) == 1, "and nobody else"
        assert stats(server).close_codes == {1009: 1}


def test_a_peer_closed_for_memory_that_keeps_sending_still_reads_the_reason(backend: Backend) -> None:
    """The rest of the message is on its way; a reset would make the next write fail, and destroy the close frame."""
    recorder = Pushing()
    with serving(backend, recorder) as server, ExitStack() as stack:
        greedy = stack.enter_context(Peer.connect(server.address))
        begin_message(greedy, 3 * MIB, 4 * MIB)
        for _ in range(40):
            if not recorder.of("close"):
                begin_message(stack.enter_context(Peer.connect(server.address)), 200 * KIB, 300 * KIB)
                stats(server)
        recorder.wait_for("close")
        for _ in range(5):
            time.sleep(0.03)
            greedy.write(bytes(20_000))
        assert read_until_end(greedy) == 1009
        greedy.read_eof()
        assert len(recorder.of("close")) == 1


def test_the_greediest_backlog_is_cut_off(backend: Backend) -> None:
    recorder = Pushing()
    with serving(backend, recorder, backlog_bytes_max=7 * MIB) as server, ExitStack() as stack:
        lively = stack.enter_context(Peer.connect(server.address))
        stalled = []
        for kib in (9 * 1024, 6 * 1024, 6 * 1024, 6 * 1024):
            stalled.append(stack.enter_context(Peer.connect(server.address)))
            for _ in range(kib // 512):
                stalled[-1].send(TEXT, b"#512")
            stats(server)
        recorder.wait_for("close")
        first = recorder.of("close")[0]
        assert first[1] == recorder.of("open")[1][1], "the one that was asked the most of"
        closing = recorder.connections[first[1]].closing
        assert closing is not None
        assert isinstance(closing.error, LimitReached)
        assert first[2] == 1006, "bytes are missing from its stream: a close frame would be read as payload"
        assert_alive(server, lively)
        assert read_until_end(stalled[0]) is None


def test_a_large_send_beyond_the_budget_ends_its_connection_alone(backend: Backend) -> None:
    """`send` raises ConnectionClosed, as for every connection that is lost, and `on_close` is told why."""
    recorder = Pushing()
    with serving(backend, recorder) as server, ExitStack() as stack:
        lively = stack.enter_context(Peer.connect(server.address))
        assert_alive(server, lively)
        stack.enter_context(Peer.connect(server.address))
        recorder.wait_for("open", 2)
        stalled = recorder.connections[recorder.of("open")[1][1]]
        with pytest.raises(ConnectionClosed):
            server.ask(lambda: stalled.send_binary(bytes(20 * MIB)))
        assert recorder.wait_for("close")[0][1:3] == (stalled.id, 1006)
        closing = stalled.closing
        assert closing is not None
        assert isinstance(closing.error, LimitReached)
        assert_alive(server, lively)


def test_many_partial_messages_stay_within_the_budget(backend: Backend) -> None:
    recorder = Pushing()
    with serving(backend, recorder) as server, ExitStack() as stack:
        lively = stack.enter_context(Peer.connect(server.address))
        greedy = [stack.enter_context(Peer.connect(server.address)) for _ in range(30)]
        most = 0
        for peer in greedy:
            begin_message(peer, MIB, 2 * MIB)
            most = max(most, stats(server).memory_bytes)
        assert_alive(server, lively)
        assert most <= BUDGET_BYTES
        codes = {event[2] for event in recorder.wait_for("close", 20)}
        assert codes <= {1009, 1013}
        for peer in greedy:
            peer.close()
        wait_until(lambda: stats(server).memory_bytes == 0)
        with Peer.connect(server.address) as late:
            payload = bytes(range(256)) * 4096 * 3
            late.send(BINARY, payload)
            assert late.read_frame() == Frame(BINARY, payload)


def test_fragments_count_as_the_type_of_their_message(backend: Backend) -> None:
    recorder = Pushing()
    with serving(backend, recorder) as server, ExitStack() as stack:
        lively = stack.enter_context(Peer.connect(server.address))
        peers = [stack.enter_context(Peer.connect(server.address)) for _ in range(8)]
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.send(BINARY, bytes(100 * KIB), fin=False)
                for _ in range(19):
                    peer.send(CONTINUATION, bytes(100 * KIB), fin=False)
        codes = {event[2] for event in recorder.wait_for("close", 4)}
        assert codes <= {1009, 1013}
        assert_alive(server, lively)


def test_held_input_of_paused_sessions_counts_too(backend: Backend) -> None:
    recorder = Pushing()
    with serving(backend, recorder) as server, ExitStack() as stack:
        lively = stack.enter_context(Peer.connect(server.address))
        recorder.wait_for("open")
        peers = [stack.enter_context(Peer.connect(server.address)) for _ in range(20)]
        for event in recorder.wait_for("open", 21)[1:]:
            server.ask(recorder.connections[event[1]].pause_reading)
        for peer in peers:
            begin_message(peer, 100 * KIB, MIB)
        assert_alive(server, lively)
        assert stats(server).memory_bytes <= BUDGET_BYTES


def test_a_storm_of_everything_stays_within_the_budget(backend: Backend) -> None:
    """Partial messages, backlogs and echoes of many sessions at once, for a second."""
    recorder = Pushing()
    with serving(backend, recorder, backlog_bytes_max=2 * MIB, ping_interval_seconds=None) as server:
        end = threading.Event()

        def partial() -> None:
            while not end.is_set():
                with contextlib.suppress(OSError, EOFError), Peer.connect(server.address) as peer:
                    begin_message(peer, 2 * MIB, 3 * MIB)
                    end.wait(0.02)

        def stalled() -> None:
            while not end.is_set():
                with contextlib.suppress(OSError, EOFError), Peer.connect(server.address) as peer:
                    for _ in range(10):
                        peer.send(TEXT, b"#1024")
                    end.wait(0.05)

        threads = [threading.Thread(target=target, daemon=True) for target in [partial, stalled] * 4]
        with Peer.connect(server.address) as lively:
            for thread in threads:
                thread.start()
            most = 0
            answered = 0
            timer = threading.Timer(1.0, end.set)
            timer.start()
            while not end.is_set():
                most = max(most, stats(server).memory_bytes)
                lively.send(TEXT, b"%d" % answered)
                assert lively.read_frame() == Frame(TEXT, b"%d" % answered)
                answered += 1
            for thread in threads:
                thread.join(10)
            assert BUDGET_BYTES // 4 < most <= BUDGET_BYTES
            assert_alive(server, lively)
            wait_until(lambda: stats(server).sessions == 1)
            wait_until(lambda: stats(server).memory_bytes == 0)
            assert set(stats(server).close_codes) <= {1006, 1008, 1009, 1013}
