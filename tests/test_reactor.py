"""The loop itself: threads and signals; how it starts, waits and ends; where it listens; its figures and leaks."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from servers import EchoRecorder, ReactorThread, Silent, echo_process, run_until, wait_until
from uringws import Connection, Options, Reactor, ReactorStateError, WrongThread
from uringws.backend import Backend
from wire import BINARY, TEXT, Address, Frame, Peer, close_frame, frame, http, upgrade_request

QUIET = Options(ping_interval_seconds=None)


FOREIGN_CALLS: dict[str, Callable[[Reactor, Connection], object]] = {
    "send": lambda _, conn: conn.send_text("elsewhere"),
    "ping": lambda _, conn: conn.ping(),
    "close": lambda _, conn: conn.close(),
    "abort": lambda _, conn: conn.abort(),
    "pause_reading": lambda _, conn: conn.pause_reading(),
    "run_once": lambda reactor, _: reactor.run_once(0),
    "run": lambda reactor, _: reactor.run(),
    "bind": lambda reactor, _: reactor.bind("127.0.0.1", 0),
    "drain": lambda reactor, _: reactor.drain(),
    "stats": lambda reactor, _: reactor.stats(),
    "reactor.close": lambda reactor, _: reactor.close(),
}


@pytest.mark.parametrize("name", FOREIGN_CALLS)
def test_another_thread_is_turned_away(echo: ReactorThread, recorder: EchoRecorder, name: str) -> None:
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        with pytest.raises(WrongThread):
            FOREIGN_CALLS[name](echo.reactor, recorder.connections[id_])
        peer.send(TEXT, b"unharmed")
        assert peer.read_frame() == Frame(TEXT, b"unharmed")


def test_run_once_waits_at_most_its_timeout(backend: Backend) -> None:
    with Reactor(Silent(), QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        for timeout, least, most in ((0, 0.0, 0.1), (0.2, 0.19, 2.0)):
            start = time.monotonic()
            reactor.run_once(timeout)
            assert least <= time.monotonic() - start < most


def test_run_once_returns_when_something_happened(backend: Backend, recorder: EchoRecorder) -> None:
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        with Peer.dial(reactor.addresses[0]) as peer:
            peer.write(upgrade_request(), frame(TEXT, b"hello"))
            start = time.monotonic()
            run_until(reactor, lambda: recorder.of("message"), timeout=30)
            assert time.monotonic() - start < 5
            assert peer.read_response().status == 101
            reactor.run_once(0)  # the handler's messages leave with the next turn
            assert peer.read_frame() == Frame(TEXT, b"hello")


@pytest.mark.parametrize("method", ["run", "run_echo"])
def test_stop_ends_the_loop_from_another_thread(backend: Backend, recorder: EchoRecorder, method: str) -> None:
    with (
        ReactorThread(recorder, backend=backend, run=getattr(Reactor, method)) as server,
        Peer.connect(server.address) as peer,
    ):
        peer.write(frame(TEXT, b"running"))
        assert peer.read_frame() == Frame(TEXT, b"running")
        server.reactor.stop()
        server.join()
        assert server.ended is None


def test_stop_ends_the_loop_from_a_signal_handler(backend: Backend) -> None:
    with Reactor(Silent(), QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        before = signal.signal(signal.SIGALRM, lambda *_: reactor.stop())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            start = time.monotonic()
            reactor.run()
            assert 0.1 < time.monotonic() - start < 5
        finally:
            signal.signal(signal.SIGALRM, before)


def test_an_exception_of_a_signal_handler_comes_out_of_run(backend: Backend) -> None:
    class AlarmError(Exception):
        pass

    def ring(*_: object) -> None:
        raise AlarmError

    with Reactor(Silent(), QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        before = signal.signal(signal.SIGALRM, ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(AlarmError):
                reactor.run()
        finally:
            signal.signal(signal.SIGALRM, before)


def test_run_ends_when_nothing_is_left_to_wait_for(backend: Backend, recorder: EchoRecorder) -> None:
    ours, theirs = socket.socketpair()
    with Reactor(recorder, QUIET, backend=backend) as reactor, Peer(theirs) as peer:
        reactor.add_session(ours)
        peer.write(frame(TEXT, b"only one"), close_frame())
        peer.sock.shutdown(socket.SHUT_WR)
        reactor.run()
        assert peer.read_frame() == Frame(TEXT, b"only one")
        assert peer.read_close() == 1000
        peer.read_eof()
    assert [event[0] for event in recorder.events] == ["open", "message", "close"]


def test_run_without_anything_to_wait_for_returns(backend: Backend) -> None:
    with Reactor(Silent(), backend=backend) as reactor:
        reactor.run()


def test_leaving_the_context_closes_open_sessions(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend) as server:
        peer = Peer.connect(server.address)
        recorder.wait_for("open")
    with peer:
        assert peer.sock.recv(4096)[:1] in (b"", b"\x88")
    with pytest.raises(ConnectionRefusedError):
        Peer.dial(server.address)
    assert [event[0] for event in recorder.events] == ["open", "close"]


def test_every_call_of_a_closed_reactor_raises(backend: Backend) -> None:
    reactor = Reactor(Silent(), backend=backend)
    reactor.close()
    reactor.close()
    for attempt in (reactor.run, lambda: reactor.run_once(0), lambda: reactor.bind("127.0.0.1", 0)):
        with pytest.raises(ReactorStateError):
            attempt()


FORK = """
import os, sys
from uringws import Reactor, ReactorStateError

with Reactor(object(), backend=sys.argv[1]) as reactor:
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        reactor.run_once(0)
        sys.exit(status)
    try:
        reactor.run_once(0)
    except ReactorStateError:
        os._exit(0)
    os._exit(1)
"""


def test_a_fork_cannot_use_its_parents_reactor(backend: Backend) -> None:
    """In a process of its own: pytest's may have threads, and forks badly."""
    subprocess.run([sys.executable, "-c", FORK, backend], timeout=10, check=True)


BUSY_FORK = """
import os, signal, sys, threading, warnings
from uringws import Reactor, ReactorStateError

warnings.simplefilter("ignore")  # Python's, of forking beside threads
sys.setswitchinterval(1e-5)
with Reactor(object(), backend=sys.argv[1]) as reactor:
    reactor.run_once(0)
    going = True

    def push():
        with reactor.sender() as sender:
            while going:
                sender.call(lambda: None)

    threads = [threading.Thread(target=push) for _ in range(3)]
    for thread in threads:
        thread.start()
    failed = 0
    for _ in range(40):
        child = os.fork()
        if not child:
            signal.alarm(5)
            try:
                reactor.stop()
                reactor.sender()
            except ReactorStateError:
                reactor.close()
                os._exit(0)
            os._exit(1)
        while True:
            reactor.run_once(0)
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
        failed += status != 0
    going = False
    while any(thread.is_alive() for thread in threads):
        reactor.run_once(0.01)
    print("failed", failed)
"""


def test_a_fork_does_not_hang_on_locks_of_other_threads(backend: Backend) -> None:
    """Threads wake the reactor and queue commands at the moment of the fork; in the child no thread finishes that."""
    run = subprocess.run([sys.executable, "-c", BUSY_FORK, backend], timeout=50, check=True, capture_output=True)
    assert run.stdout == b"failed 0\n"


def refuses(address: Address) -> bool:
    try:
        Peer.dial(address).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_closes_all_with_1001_and_drains(backend: Backend, number: int) -> None:
    with echo_process(backend, "handler") as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(server.address)) for _ in range(3)]
        server.process.send_signal(number)
        for peer in peers:
            assert peer.read_close() == 1001
        # A ring releases its listening socket a moment later.
        wait_until(lambda: refuses(server.address))
        for peer in peers:
            peer.write(close_frame(1001))
            peer.read_eof()
            peer.close()
        assert server.process.wait(5) == 0


# Listening


def test_unix_sockets(backend: Backend, recorder: EchoRecorder, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with ReactorThread(recorder, backend=backend, prepare=lambda reactor: reactor.bind_unix(path)):
        with Peer.connect(path) as peer:
            peer.send(TEXT, b"x" * 100_000)
            assert peer.read_frame() == Frame(TEXT, b"x" * 100_000)
            peer.shake_hands()
        recorder.wait_for("close")


def test_ipv6(backend: Backend, recorder: EchoRecorder) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with (
        ReactorThread(recorder, backend=backend, prepare=lambda reactor: reactor.bind("::1", 0)) as server,
        Peer.connect(server.address) as peer,
    ):
        peer.send(TEXT, b"six")
        assert peer.read_frame() == Frame(TEXT, b"six")


def test_several_listeners_and_a_socket_of_the_callers(backend: Backend, recorder: EchoRecorder) -> None:
    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.bind("127.0.0.1", 0)
        reactor.bind_socket(socket.create_server(("127.0.0.1", 0)))

    with ReactorThread(recorder, backend=backend, prepare=prepare) as server:
        assert len(set(server.addresses)) == 3
        for address in server.addresses:
            with Peer.connect(address) as peer:
                assert peer.shake_hands() == 1000


def test_reuse_port_shares_one_port_among_reactors(backend: Backend) -> None:
    recorders = [EchoRecorder(), EchoRecorder()]
    with ReactorThread(
        recorders[0], backend=backend, prepare=lambda reactor: reactor.bind("127.0.0.1", 0, reuse_port=True)
    ) as first:
        port = first.address[1]
        assert isinstance(port, int)
        with ReactorThread(
            recorders[1], backend=backend, prepare=lambda reactor: reactor.bind("127.0.0.1", port, reuse_port=True)
        ):
            for _ in range(64):
                with Peer.connect(("127.0.0.1", port)) as peer:
                    assert peer.shake_hands() == 1000
    assert all(recorder.of("open") for recorder in recorders)


def test_a_port_in_use_is_refused_with_its_name(backend: Backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Reactor(Silent(), backend=backend) as reactor:
        host, port = taken.getsockname()
        with pytest.raises(OSError, match=str(port)):
            reactor.bind(host, port)


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
def test_a_port_out_of_range_is_refused_not_wrapped_round(port: int) -> None:
    with Reactor(Silent(), backend="epoll") as reactor:
        with pytest.raises(ValueError, match=str(port)):
            reactor.bind("127.0.0.1", port)
        assert reactor.addresses == []


def test_a_name_that_leads_nowhere_is_named() -> None:
    with Reactor(Silent(), backend="epoll") as reactor, pytest.raises(OSError, match=r"no\.such\.host\.invalid"):
        reactor.bind("no.such.host.invalid", 0)


def test_a_sender_does_not_hold_up_a_drain(backend: Backend) -> None:
    with Reactor(Silent(), QUIET, backend=backend) as reactor, reactor.sender():
        reactor.bind("127.0.0.1", 0)
        start = time.monotonic()
        reactor.drain(30)
        assert time.monotonic() - start < 5


def test_stats_add_up(echo: ReactorThread, recorder: EchoRecorder) -> None:
    payload = b"x" * 1000
    with Peer.connect(echo.address) as staying:
        with Peer.connect(echo.address) as leaving:
            for peer in (staying, leaving):
                peer.write(frame(BINARY, payload), frame(BINARY, payload))
                peer.read_frames(2)
            leaving.shake_hands()
        wait_until(lambda: echo.ask(echo.reactor.stats).sessions == 1)
        http(echo.address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: echo.ask(echo.reactor.stats).sessions == 1)
        stats = echo.ask(echo.reactor.stats)
    assert stats.backend == echo.reactor.backend
    assert (stats.sessions, stats.sessions_peak, stats.accepted, stats.handshakes) == (1, 2, 2, 0)
    assert stats.close_codes == {1000: 1}
    assert sum(stats.rejected.values()) == 1
    assert (stats.messages_in, stats.messages_out) == (4, 4)
    assert stats.bytes_in > 4000  # HTTP heads and frame headers included
    assert stats.bytes_out > 4000
    assert stats.queued_bytes == stats.drops == 0
    assert 0 <= stats.pool_in_use <= stats.pool_buffers


def test_a_reset_in_the_middle_of_everything_leaks_no_descriptor(echo: ReactorThread, recorder: EchoRecorder) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = echo.ask(open_files)  # between two turns, when its thread has nothing else open
    for number in range(50):
        peer = Peer.connect(echo.address)
        peer.write(frame(BINARY, b"x" * 200_000)[: 4000 * number])
        peer.reset()
    recorder.wait_for("close", 50)
    wait_until(lambda: open_files() == before)
    assert len(recorder.of("open")) == len(recorder.of("close")) == 50
