"""The thread that a reactor belongs to: one at any moment, from the first on; any thread may close it after that."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import uringws.core
from conftest import NO_URING
from servers import EchoRecorder, ReactorThread, Recorder, Silent, missing, run_until, wait_until
from uringws import (
    Connection,
    Options,
    Reactor,
    ReactorStateError,
    WrongThread,
)
from uringws.backend import Backend
from uringws.shim import lib
from wire import BINARY, TEXT, Frame, Peer, frame

QUIET = Options(ping_interval_seconds=None)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def in_thread(function: Callable[[], object]) -> None:
    """Run a function in a thread of its own, and raise what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


# Closed by another thread


def test_closing_the_reactor_of_a_thread_that_ended_leaves_others_running(backend: Backend) -> None:
    """A registered ring is a number that means something else in each thread."""
    with Reactor(EchoRecorder(), QUIET, backend=backend) as own:
        address = own.bind("127.0.0.1", 0)
        own.run_once(0)
        for _ in range(3):
            other = Reactor(EchoRecorder(), QUIET, backend=backend)
            other.bind("127.0.0.1", 0)
            in_thread(partial(other.run_once, 0))
            other.close()
        answered: list[Frame] = []

        def converse() -> None:
            with Peer.connect(address) as peer:
                peer.send(TEXT, b"still here")
                answered.append(peer.read_frame())

        thread = threading.Thread(target=converse)
        thread.start()
        run_until(own, lambda: answered)
        thread.join()
        assert answered == [Frame(TEXT, b"still here")]


@pytest.mark.parametrize("context", [False, True], ids=["close", "with"])
def test_once_its_thread_has_ended_any_thread_may_close_it(backend: Backend, *, context: bool) -> None:
    before = open_files()
    recorder = EchoRecorder()
    reactor = Reactor(recorder, QUIET, backend=backend)
    address = reactor.bind("127.0.0.1", 0)
    thread = threading.Thread(target=reactor.run)
    with ExitStack() as stack:
        thread.start()
        peers = [stack.enter_context(Peer.connect(address)) for _ in range(3)]
        for peer in peers:
            peer.send(TEXT, b"hello")
            assert peer.read_frame() == Frame(TEXT, b"hello")
        reactor.stop()
        thread.join()
        if context:
            with reactor:
                pass
        else:
            reactor.close()
        assert [event[2] for event in recorder.of("close")] == [1006] * 3
        for peer in peers:
            peer.sock.settimeout(5)
            with suppress(ConnectionResetError):
                assert peer.sock.recv(1) == b""
    reactor.close()

    def is_free() -> bool:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                other.bind(address)
                return True
        return False

    wait_until(is_free)
    wait_until(lambda: open_files() == before)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_connections_that_an_ended_thread_accepted_but_did_not_see_are_closed(backend: Backend, turns: int) -> None:
    before = open_files()
    reactor = Reactor(Silent(), Options(ring_entries=64), backend=backend)
    address = reactor.bind("127.0.0.1", 0)
    crowd: list[Peer] = []

    def run() -> None:
        reactor.run_once(0)
        crowd.extend(Peer.dial(address) for _ in range(900))
        for _ in range(turns):
            reactor.run_once(0)

    in_thread(run)
    reactor.close()
    for peer in crowd:
        peer.sock.settimeout(5)
        with suppress(ConnectionResetError):
            assert peer.sock.recv(1) == b""
        peer.close()
    wait_until(lambda: open_files() == before)


def test_while_its_thread_lives_no_other_may_close_it(backend: Backend) -> None:
    """Not even between two runs: its connections may be in use there."""
    reactor = Reactor(Silent(), QUIET, backend=backend)
    reactor.bind("127.0.0.1", 0)
    ran, may_end = threading.Event(), threading.Event()

    def run() -> None:
        reactor.run_once(0)
        ran.set()
        may_end.wait(10)

    thread = threading.Thread(target=run)
    thread.start()
    ran.wait(10)
    with pytest.raises(WrongThread):
        reactor.close()
    may_end.set()
    thread.join()
    reactor.close()


def test_on_close_is_called_by_the_thread_that_closes_and_cannot_send(backend: Backend) -> None:
    tried: list[str] = []

    class LastWords(Recorder):
        def on_close(self, conn: Connection, code: int, reason: str) -> None:
            assert not conn.is_open
            tried.append(threading.current_thread().name)

    reactor = Reactor(LastWords(), QUIET, backend=backend)
    ours, theirs = socket.socketpair()
    with theirs:

        def run() -> None:
            reactor.add_session(ours)
            reactor.run_once(0)

        in_thread(run)
        reactor.close()
    assert tried == [threading.current_thread().name]


# Owned by a thread, not by its ident


def test_a_thread_with_the_ident_of_one_that_ended_is_turned_away(backend: Backend) -> None:
    recorder = EchoRecorder()
    reactor = Reactor(recorder, QUIET, backend=backend)
    ours, theirs = socket.socketpair()
    idents: list[int] = []

    def run() -> None:
        idents.append(threading.get_ident())
        reactor.add_session(ours)
        reactor.run_once(0)

    with theirs:
        in_thread(run)
        (conn,) = recorder.connections.values()
        refused: list[str] = []

        def intrude() -> None:
            if threading.get_ident() != idents[0]:
                return
            attempts: dict[str, Callable[[], object]] = {
                "send": lambda: conn.send("x"),
                "is_open": lambda: conn.is_open,
                "pause": conn.pause_reading,
                "run_once": lambda: reactor.run_once(0),
                "stats": reactor.stats,
                "bind": lambda: reactor.bind("127.0.0.1", 0),
                "call_later": lambda: reactor.call_later(1, print),
            }
            for name, attempt in attempts.items():
                with pytest.raises(WrongThread):
                    attempt()
                refused.append(name)

        for _ in range(1000):
            in_thread(intrude)
            if refused:
                break
        else:
            pytest.skip("no thread was given the ident again")
        assert len(refused) == 7
        reactor.close()


@pytest.mark.parametrize("name", ["is_open", "latency_seconds", "peer", "buffered_amount"])
def test_another_thread_cannot_read_a_connections_state(echo: ReactorThread, recorder: EchoRecorder, name: str) -> None:
    with Peer.connect(echo.address):
        ((_, id_),) = recorder.wait_for("open")
        conn = recorder.connections[id_]
        with pytest.raises(WrongThread):
            getattr(conn, name)
        assert repr(conn) == f"<Connection {id_}>"  # for a log, from anywhere


# Owned from the first moment on


def test_sockets_handed_over_while_run_begins_are_all_served(backend: Backend) -> None:
    """By threads that begin before, with and after it: on_open comes in the reactor's thread, and nothing is lost."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(10):
            _hand_over_while_run_begins(backend)
    finally:
        sys.setswitchinterval(interval)


def _hand_over_while_run_begins(backend: Backend) -> None:
    threads_of_open: set[str] = set()
    wrong: list[BaseException] = []

    class Books(EchoRecorder):
        def on_open(self, conn: Connection) -> None:
            threads_of_open.add(threading.current_thread().name)
            super().on_open(conn)

    reactor = Reactor(Books(), QUIET, backend=backend)
    sender = reactor.sender()

    def hand_over(number: int) -> None:
        try:
            for round_ in range(4):
                ours, theirs = socket.socketpair()
                payload = b"%d-%d" % (number, round_)
                with Peer(theirs) as peer:
                    sender.add_session_with_prefix(ours, frame(BINARY, payload))
                    peer.send(TEXT, payload)
                    assert peer.read_frames(2) == [Frame(BINARY, payload), Frame(TEXT, payload)]
        except BaseException as error:  # noqa: BLE001 - asserted on by the test's own thread
            wrong.append(error)

    threads = [threading.Thread(target=hand_over, args=(number,)) for number in range(6)]
    runner = threading.Thread(target=reactor.run, name="runner")
    for thread in (*threads[:3], runner, *threads[3:]):
        thread.start()
    for thread in threads:
        thread.join()
    sender.release()
    reactor.stop()
    runner.join()
    reactor.close()
    assert wrong == []
    assert threads_of_open == {"runner"}


def test_a_thread_alone_is_not_left_to_wait_for_itself(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # objects of other tests
    ours, theirs = socket.socketpair()
    with ours, theirs, Reactor(Silent(), QUIET, backend=backend) as reactor, reactor.sender() as sender:
        with pytest.raises(ReactorStateError, match="add_session"):
            sender.add_session(ours)
        assert ours.fileno() >= 0


def test_a_thread_that_waits_to_hand_over_gets_an_error_when_the_reactor_ends(backend: Backend) -> None:
    """The thread that ran the reactor ends, or it closes the reactor, while the command waits."""
    for ends_by_close in (False, True):
        reactor = Reactor(Silent(), QUIET, backend=backend)
        reactor.bind("127.0.0.1", 0)
        ran, end = threading.Event(), threading.Event()

        def run(reactor: Reactor, ran: threading.Event, end: threading.Event, *, close: bool) -> None:
            reactor.run_once(0)
            ran.set()
            end.wait(10)
            if close:
                reactor.close()

        thread = threading.Thread(target=partial(run, reactor, ran, end, close=ends_by_close))
        thread.start()
        assert ran.wait(10)
        ours, theirs = socket.socketpair()
        with ours, theirs, reactor.sender() as sender:
            threading.Timer(0.1, end.set).start()
            with pytest.raises(ReactorStateError, match=r"ended|closed"):
                sender.add_session(ours)
            assert ours.fileno() >= 0
        thread.join()
        reactor.close()


def test_a_sender_says_that_the_reactors_thread_has_ended(backend: Backend) -> None:
    """Otherwise it would take commands that no thread runs, and then wait for ever for room."""
    with Reactor(Silent(), QUIET, backend=backend) as reactor, reactor.sender() as sender:
        handed_over, peer = socket.socketpair()
        id_ = reactor.add_session(handed_over)
        in_thread(partial(reactor.run_once, 0))
        ours, theirs = socket.socketpair()
        with ours, theirs, peer:
            for command in (
                partial(sender.send, id_, b"lost"),
                partial(sender.close_connection, id_),
                partial(sender.call, print),
                partial(sender.add_session, ours),
                sender.clone,
            ):
                with pytest.raises(ReactorStateError, match="ended"):
                    command()
            assert ours.fileno() >= 0


def test_a_thread_that_waits_for_room_gets_an_error_when_the_reactors_thread_ends(backend: Backend) -> None:
    """No command runs any more that could wake it."""
    options = Options(sender_commands_max=1, ping_interval_seconds=None)
    with Reactor(Silent(), options, backend=backend) as reactor, reactor.sender() as sender:
        ran, end = threading.Event(), threading.Event()

        def run() -> None:
            reactor.run_once(0)
            ran.set()
            end.wait(10)

        thread = threading.Thread(target=run)
        thread.start()
        assert ran.wait(10)
        sender.call(print)
        threading.Timer(0.1, end.set).start()
        with pytest.raises(ReactorStateError, match="ended"):
            sender.call(print)
        thread.join()


def test_an_interrupted_handover_leaves_the_socket_to_the_caller(backend: Backend) -> None:
    """As Ctrl-C does in a main thread that waits: the reactor must not take a socket that its caller still owns."""

    def interrupt(*_: object) -> None:
        raise InterruptedError

    recorder, go = Recorder(), threading.Event()
    ours, theirs = socket.socketpair()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with ours, theirs, ReactorThread(recorder, backend=backend, options=QUIET) as server:
            server.sender.call(lambda: go.wait(10))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(InterruptedError):
                server.sender.add_session(ours)
            go.set()
            server.ask(lambda: None)
            assert ours.fileno() >= 0
            assert recorder.events == []
            theirs.sendall(b"still the caller's")
            assert ours.recv(100) == b"still the caller's"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("prefix", [None, 5, "text"])
def test_a_prefix_other_than_a_buffer_is_refused_before_it_is_queued(echo: ReactorThread, prefix: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TypeError):
        echo.sender.add_session_with_prefix(ours, prefix)


# A start that fails


class FailingStart:
    """The shim, whose first start fails."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.starts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def urs_reactor_start(self, core: Any) -> int:
        self.starts += 1
        return -12 if self.starts == 1 else int(self._lib.urs_reactor_start(core))


def test_a_start_that_failed_is_tried_again(
    backend: Backend, recorder: EchoRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uringws.core, "lib", FailingStart(lib))
    ours, theirs = socket.socketpair()
    with Peer(theirs) as peer, Reactor(recorder, QUIET, backend=backend) as reactor:
        with pytest.raises(OSError, match="start"):
            reactor.run_once(0)
        reactor.add_session(ours)
        peer.send(TEXT, b"hello")
        run_until(reactor, lambda: recorder.of("message"))
        reactor.run_once(0)
        assert peer.read_frame() == Frame(TEXT, b"hello")


FAILING_START = """
import errno, socket, sys
sys.path.insert(0, sys.argv[1])
from uringws import Handler, Reactor
from uringws.shim import lib

class Echo(Handler):
    def on_message(self, conn, message):
        conn.echo()

reactor = Reactor(Echo(), backend="io_uring")
refused = 0
for point in (lib.URS_FAULT_SETUP, lib.URS_FAULT_ARM):
    assert lib.urs_fault_plan(point, 1, 1, -errno.ENOMEM) == 0
    try:
        reactor.run_once(0)
    except OSError as error:
        assert error.errno == errno.ENOMEM
        refused += 1
assert refused == 1, "only the ring is needed at once"
ours, theirs = socket.socketpair()
reactor.add_session(ours)
theirs.sendall(b"\\x81\\x82\\0\\0\\0\\0ok")
theirs.settimeout(0)
for _ in range(1000):
    reactor.run_once(0.01)
    try:
        assert theirs.recv(10) == b"\\x81\\x02ok"
        break
    except BlockingIOError:
        pass
else:
    sys.exit("never served")
reactor.close()
"""


def test_a_ring_that_could_not_be_enabled_is_enabled_by_the_next_run(faulty_build: Path) -> None:
    if NO_URING is not None:
        missing(NO_URING)
    subprocess.run([sys.executable, "-c", FAILING_START, faulty_build], timeout=30, check=True)
