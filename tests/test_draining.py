"""A drain from its beginning to its end: no new session, a close frame for all, and an end that no peer can delay."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from servers import ReactorThread, Recorder, ServerProcess, connected, run_until, wait_until
from uringws import Connection, LimitReached, Message, Options, Reactor, ReactorStateError
from uringws.backend import Backend
from wire import BINARY, Address, Peer, close_frame, frame, upgrade_request

PATIENT = Options(drain_seconds_max=60, close_seconds_max=60, ping_interval_seconds=None)
"""A session whose peer does not answer lasts longer than any of these tests."""


def refuses(address: Address) -> bool:
    try:
        Peer.dial(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


def test_a_drain_closes_the_listening_sockets_while_sessions_last(backend: Backend, tmp_path: Path) -> None:
    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.bind_unix(tmp_path / "socket")

    recorder = Recorder()
    with (
        ReactorThread(recorder, backend=backend, options=PATIENT, prepare=prepare) as server,
        Peer.connect(server.address) as peer,
    ):
        recorder.wait_for("open")
        server.ask(server.reactor.drain)
        assert peer.read_close() == 1001
        for address in server.addresses:
            wait_until(lambda address=address: refuses(address))  # type: ignore[misc]
        assert not (tmp_path / "socket").exists()
        assert server.is_running()
        assert recorder.of("close") == [], "the session has not ended meanwhile"
        peer.write(close_frame(1001))
        peer.read_eof()
        peer.close()
        server.join()


STUBBORN = """
import signal, sys
from uringws import Handler, Options, Reactor

signal.signal(signal.SIGINT, signal.default_int_handler)
with Reactor(Handler(), Options(drain_seconds_max=60, close_seconds_max=60), backend=sys.argv[1]) as reactor:
    _, port = reactor.bind("127.0.0.1", 0)
    print(f"listening on ws://127.0.0.1:{port} ({reactor.backend})", flush=True)
    reactor.run()
print("over", flush=True)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_a_drain_at_once(backend: Backend, second: int) -> None:
    with ServerProcess("-c", STUBBORN, backend) as server, Peer.connect(server.address) as peer:
        server.process.send_signal(signal.SIGTERM)
        assert peer.read_close() == 1001
        time.sleep(0.2)
        assert server.process.poll() is None, "one signal waits for the peer"
        assert server.stop(second) == 0
        assert server.lines[-1] == "over\n"


def test_no_socket_is_taken_over_while_draining(backend: Backend) -> None:
    recorder = Recorder()
    ours, theirs = socket.socketpair()
    with (
        ReactorThread(recorder, backend=backend, options=PATIENT) as server,
        Peer.connect(server.address) as peer,
        theirs,
        ours,
    ):
        recorder.wait_for("open")
        server.ask(server.reactor.drain)
        with pytest.raises(LimitReached):
            server.ask(lambda: server.reactor.add_session(ours))
        with pytest.raises(LimitReached):
            server.sender.add_session(ours)
        theirs.sendall(b"still the caller's")
        assert ours.recv(100) == b"still the caller's"
        assert len(recorder.of("open")) == 1
        peer.reset()


def test_connections_accepted_but_not_seen_before_a_drain_are_refused(backend: Backend) -> None:
    """More messages come than a turn takes, and new connections after them: the drain begins before those are seen."""

    class Drains(Recorder):
        reactor: Reactor

        def on_message(self, conn: Connection, message: Message) -> None:
            if not self.of("drain"):
                self.record("drain")
                self.reactor.drain(5)

    recorder = Drains()
    with ExitStack() as stack:
        options = replace(PATIENT, session_turn_messages_max=512)
        reactor = recorder.reactor = stack.enter_context(Reactor(recorder, options, backend=backend))
        address = reactor.bind("127.0.0.1", 0)
        floods = [stack.enter_context(connected(reactor)) for _ in range(12)]
        reactor.run_once(0)
        for flood in floods:
            flood.write(frame(BINARY, b"x") * 1000)
        newcomers = [stack.enter_context(Peer.dial(address)) for _ in range(3)]
        for newcomer in newcomers:
            newcomer.write(upgrade_request())
        run_until(reactor, lambda: recorder.of("drain"))
        for flood in floods:
            flood.write(close_frame(1001))
            flood.sock.shutdown(socket.SHUT_WR)
        run_until(reactor, lambda: not reactor.stats().sessions, timeout=0)
        statuses = set()
        for newcomer in newcomers:
            with suppress(ConnectionResetError, EOFError):  # never accepted at all
                statuses.add(newcomer.read_response().status)
        assert statuses <= {503}
        assert len(recorder.of("open")) == len(floods)


def test_no_address_is_added_to_a_reactor_that_drains(backend: Backend, tmp_path: Path) -> None:
    """The drain would never close a socket that listened after it began."""
    path = tmp_path / "socket"
    with Reactor(Recorder(), PATIENT, backend=backend) as reactor, connected(reactor) as peer:
        reactor.run_once(0)
        reactor.call_later(0, reactor.drain)
        reactor.run_once(5)
        with pytest.raises(ReactorStateError, match="drain"):
            reactor.bind("127.0.0.1", 0)
        with pytest.raises(ReactorStateError, match="drain"):
            reactor.bind_unix(path)
        with socket.socket() as own, pytest.raises(ReactorStateError, match="drain"):
            reactor.bind_socket(own)
        assert reactor.addresses == []
        assert not path.exists()
        peer.reset()


def test_a_drain_cuts_at_its_deadline_also_where_run_once_is_called(backend: Backend) -> None:
    recorder = Recorder()
    with Reactor(recorder, PATIENT, backend=backend) as reactor, connected(reactor) as peer:
        reactor.run_once(0)
        reactor.call_later(0, reactor.drain, 0.1)
        begun = time.monotonic()
        while not recorder.of("close"):
            assert time.monotonic() < begun + 10
            reactor.run_once()  # waits until the deadline, and no longer
        assert recorder.of("close")[0][2] == 1006
        assert time.monotonic() >= begun + 0.1
        peer.reset()
