"""How a reactor ends: by close(), at any moment, or by being collected. Nothing outlives it."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

import uringws.reactor
from servers import ReactorThread, Recorder, Silent, connected, run_until, wait_until
from uringws import Connection, Options, Reactor, ReactorStateError
from uringws.backend import Backend
from uringws.shim import lib
from wire import TEXT, Peer, close_frame, frame, upgrade_request


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_connections_accepted_but_not_seen_are_closed(backend: Backend, turns: int) -> None:
    """A crowd at once: more than one turn takes in, more than the ring holds completions for."""
    before = open_files()
    reactor = Reactor(Silent(), Options(ring_entries=64), backend=backend)
    address = reactor.bind("127.0.0.1", 0)
    reactor.run_once(0)
    crowd = [Peer.dial(address) for _ in range(900)]
    for _ in range(turns):
        reactor.run_once(0)
    reactor.close()
    for peer in crowd:
        peer.sock.settimeout(5)
        with suppress(ConnectionResetError):
            assert peer.sock.recv(1) == b""
        peer.close()
    assert open_files() == before


def duplicate(reactor: Reactor, connection: Connection) -> socket.socket:
    """Another descriptor of the connection's socket, such as a forked child has."""
    descriptor: int = lib.urs_command_descriptor(reactor._core.handle, connection.id)
    return socket.socket(fileno=os.dup(descriptor))


def say_nothing(_reactor: Reactor, _connection: Connection, _peer: Peer) -> None:
    """Leave it open for `close()` of the reactor."""


def close_both(_reactor: Reactor, connection: Connection, peer: Peer) -> None:
    connection.close()
    peer.write(close_frame())


def half_close(_reactor: Reactor, _connection: Connection, peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_WR)


def abort_paused(_reactor: Reactor, connection: Connection, _peer: Peer) -> None:
    connection.pause_reading()
    connection.abort()


WAYS_TO_END: dict[str, Callable[[Reactor, Connection, Peer], object]] = {
    "abort": lambda _reactor, connection, _peer: connection.abort(),
    "abort-paused": abort_paused,
    "close-handshake": close_both,
    "half-closed-peer": half_close,
    "protocol-error": lambda _reactor, _connection, peer: peer.write(b"\xff\xff"),
    "drain": lambda reactor, _connection, _peer: reactor.drain(0),
    "close": say_nothing,
}


@pytest.mark.parametrize("how", WAYS_TO_END)
def test_a_peer_sees_the_end_though_a_forked_child_keeps_the_socket(backend: Backend, how: str) -> None:
    recorder = Recorder()
    options = Options(close_seconds_max=0.2, ping_interval_seconds=None)
    with Reactor(recorder, options, backend=backend) as reactor, ExitStack() as stack:
        peer = stack.enter_context(connected(reactor))
        (connection,) = recorder.connections.values()
        reactor.run_once(0)
        stack.enter_context(duplicate(reactor, connection))
        WAYS_TO_END[how](reactor, connection, peer)
        if how == "close":
            reactor.close()
        else:
            run_until(reactor, lambda: recorder.of("close") and not reactor._core.sessions)
        peer.sock.settimeout(5)
        with suppress(ConnectionResetError):
            while peer.sock.recv(4096):
                pass


def test_a_connection_never_seen_is_ended_though_a_forked_child_keeps_the_socket(backend: Backend) -> None:
    """In a process of its own: pytest's may have threads, and forks badly."""
    program = """
import os, socket, sys
from uringws import Handler, Reactor

class Silent(Handler):
    pass

reactor = Reactor(Silent(), backend=sys.argv[1])
address = reactor.bind("127.0.0.1", 0)
reactor.run_once(0)
peers = [socket.create_connection(address, 5) for _ in range(3)]
reactor.run_once(1)  # takes some or all of them
late = socket.create_connection(address, 5)
end, child_end = socket.socketpair()
if (child := os.fork()) == 0:
    end.close()
    reactor.close()  # leaves the parent's sockets as they are, but keeps none
    os._exit(child_end.recv(1) != b"")
child_end.close()
reactor.close()
for peer in [*peers, late]:
    try:
        assert peer.recv(1) == b""
    except ConnectionResetError:
        pass
try:
    socket.create_connection(address, 5)
except ConnectionRefusedError:
    print("refused")
end.close()
assert os.waitpid(child, 0)[1] == 0
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, backend],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "refused\n"


class ClosesAgain(Recorder):
    """Makes forbidden calls from on_close, while the reactor is being closed."""

    reactor: Reactor

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        super().on_close(conn, code, reason)
        self.reactor.close()
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(ReactorStateError):
            self.reactor.add_session(ours)
        self.record("refused")


def test_on_close_may_close_the_reactor_that_is_being_closed(backend: Backend) -> None:
    handler = ClosesAgain()
    with Reactor(handler, backend=backend) as reactor, ExitStack() as stack:
        handler.reactor = reactor
        for _ in range(3):
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            reactor.add_session(ours)
        reactor.run_once(0)
    assert [event[2] for event in handler.of("close")] == [1006] * 3
    assert len(handler.of("refused")) == 3


@pytest.mark.parametrize("started", [False, True])
def test_a_reactor_that_is_collected_frees_everything_and_warns(backend: Backend, *, started: bool) -> None:
    gc.collect()
    before = open_files()
    ours, theirs = socket.socketpair()
    with theirs:
        reactor = Reactor(Silent(), backend=backend)
        if started:
            reactor.add_session(ours)
            reactor.run_once(0)
        else:
            ours.close()
        del reactor
        with pytest.warns(ResourceWarning, match=f"unclosed <Reactor {backend}, not running>"):
            gc.collect()
        assert theirs.recv(10) == b""
    assert open_files() == before


def test_a_forgotten_reactor_is_freed_also_where_warnings_are_errors(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    gc.collect()
    before = open_files()
    reactor = Reactor(Silent(), backend=backend)
    reactor.run_once(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del reactor
        gc.collect()
    assert [type(raised.exc_value) for raised in unraisable] == [ResourceWarning]
    unraisable.clear()
    assert open_files() == before


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_reactor_that_could_not_be_made_leaves_nothing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(uringws.reactor, "Message", fail)
    before = open_files()
    with pytest.raises(MemoryError):
        Reactor(Silent(), backend=backend)
    gc.collect()
    assert open_files() == before


def test_an_interrupt_of_on_close_does_not_keep_close_from_its_end(backend: Backend) -> None:
    """As Ctrl-C does where a program closes its reactor outside of run."""

    class Interrupted(Recorder):
        def on_close(self, conn: Connection, code: int, reason: str) -> None:
            super().on_close(conn, code, reason)
            raise KeyboardInterrupt

    handler = Interrupted()
    before = open_files()
    with ExitStack() as stack:
        reactor = Reactor(handler, backend=backend)
        address = reactor.bind("127.0.0.1", 0)
        peers = [stack.enter_context(connected(reactor)) for _ in range(3)]
        reactor.run_once(0)
        with pytest.raises(KeyboardInterrupt):
            reactor.close()
        assert {event[1] for event in handler.of("close")} == {event[1] for event in handler.of("open")}
        assert len(handler.of("close")) == 3
        assert repr(reactor).endswith("closed>")
        for peer in peers:
            peer.read_eof()
        with pytest.raises(ConnectionRefusedError):
            Peer.dial(address)
        reactor.close()
    assert open_files() == before


def test_close_in_the_midst_of_everything_leaves_nothing(backend: Backend) -> None:
    """Upgrades begun, messages begun, backlogs, held input, pauses: cut at an arbitrary moment, again and again."""

    class Busy(Recorder):
        def on_message(self, conn: Connection, message: object) -> None:
            conn.send_binary(bytes(500_000))
            conn.pause_reading()

    before = open_files()
    for moment in range(8):
        handler = Busy()
        reactor = Reactor(handler, backend=backend)
        address = reactor.bind("127.0.0.1", 0)
        peers = [Peer.dial(address) for _ in range(12)]
        for number, peer in enumerate(peers):
            request = upgrade_request()
            peer.write(
                (request[: 10 + number * 5], request, request + frame(TEXT, b"a" * 3000) * 5, b"\x16\x03\x01")[
                    number % 4
                ]
            )
        for _ in range(moment):
            reactor.run_once(0.01)
        reactor.close()
        for peer in peers:
            peer.close()
        opened = [event[1] for event in handler.of("open")]
        assert sorted(opened) == sorted(event[1] for event in handler.of("close"))
        assert open_files() == before


EXIT = """
import faulthandler, sys
faulthandler.dump_traceback_later(25, exit=True)
from uringws import Handler, Reactor
reactor = Reactor(Handler(), backend=sys.argv[1])
reactor.bind("127.0.0.1", 0)
reactor.run_once(0)
print("end")
"""


def test_a_program_may_end_without_closing_it(backend: Backend) -> None:
    run = subprocess.run([sys.executable, "-c", EXIT, backend], capture_output=True, text=True, timeout=40, check=True)
    assert run.stdout == "end\n"
    assert run.stderr == ""


def test_a_drain_does_not_wait_for_connections_that_have_asked_for_nothing(backend: Backend) -> None:
    """A browser opens some in advance and keeps them: Ctrl-C would last until a deadline."""
    options = Options(close_seconds_max=60, drain_seconds_max=60, handshake_seconds_max=None)
    with (
        ReactorThread(Silent(), backend=backend, options=options) as server,
        Peer.dial(server.address) as silent,
        Peer.dial(server.address) as begun,
    ):
        begun.write(upgrade_request()[:20])
        wait_until(lambda: server.ask(server.reactor.stats).bytes_in == 20)
        server.sender.call(server.reactor.drain)
        silent.read_eof()
        assert begun.read_response().status == 503
        begun.close()
        server.join()
