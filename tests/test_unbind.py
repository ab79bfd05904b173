"""`Reactor.unbind`: one address stops listening; the others, and the connections that came there, stay."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import EchoRecorder, ReactorThread, run_until
from uringws import Options, Reactor, ReactorStateError, WrongThread
from uringws.backend import Backend
from wire import TEXT, Address, Frame, Peer, frame

QUIET = Options(ping_interval_seconds=None)


@pytest.fixture
def reactor(backend: Backend, recorder: EchoRecorder) -> Iterator[Reactor]:
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        yield reactor


def refuses(address: Address) -> bool:
    try:
        Peer.dial(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


def test_connections_and_other_addresses_stay(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend) as server:
        (first,) = server.addresses
        second = server.ask(lambda: server.reactor.bind("127.0.0.1", 0))
        with Peer.connect(first) as peer:
            server.ask(lambda: server.reactor.unbind(first))
            assert refuses(first)
            assert server.ask(lambda: server.reactor.addresses) == [second]
            with Peer.connect(second) as other:
                for each in (peer, other):
                    each.write(frame(TEXT, b"still there"))
                    assert each.read_frame() == Frame(TEXT, b"still there")
                    assert each.shake_hands() == 1000
        assert server.ask(lambda: server.reactor.bind(*first)) == first
        with Peer.connect(first) as peer:
            assert peer.shake_hands() == 1000


@pytest.mark.parametrize("started", [False, True])
def test_the_file_of_a_unix_socket_goes_too(reactor: Reactor, tmp_path: Path, *, started: bool) -> None:
    if started:
        reactor.run_once(0)
    for name in (str(tmp_path / "socket"), f"\0{tmp_path}"):
        address = reactor.bind_unix(name)
        reactor.unbind(address)
        assert refuses(address)
        assert reactor.addresses == []
    assert list(tmp_path.iterdir()) == []


def test_the_listening_socket_is_closed(reactor: Reactor) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    address = reactor.bind_socket(sock)
    reactor.run_once(0)
    reactor.unbind(address)
    assert sock.fileno() == -1
    run_until(reactor, lambda: refuses(address))


def test_unbinding_another_address_is_refused(reactor: Reactor) -> None:
    address = reactor.bind("127.0.0.1", 0)
    with pytest.raises(ValueError, match="does not listen on"):
        reactor.unbind(("127.0.0.1", 1))
    reactor.run_once(0)
    caught: list[Exception] = []

    def elsewhere() -> None:
        try:
            reactor.unbind(address)
        except WrongThread as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert caught
    reactor.close()
    with pytest.raises(ReactorStateError):
        reactor.unbind(address)
