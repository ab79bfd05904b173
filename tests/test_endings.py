"""How a reactor ends: by close(), whatever it was in the midst of, or by being forgotten. Nothing outlives it."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from servers import Recorder, Silent
from uringws import Connection, Options, Reactor, ReactorStateError
from uringws.backend import Backend
from wire import TEXT, Peer, frame, upgrade_request


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


class ClosesAgain(Recorder):
    """Calls what it may not from on_close, while the reactor is being closed."""

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
def test_a_reactor_that_is_forgotten_frees_everything_and_says_so(backend: Backend, *, started: bool) -> None:
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
