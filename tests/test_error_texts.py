"""Mistakes of beginners: each raises one error whose text says what is wrong and what to do.

Covers arguments in the wrong place, paths that cannot be listened on, closed sockets, and calls from another thread.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from servers import EchoRecorder, ReactorThread, Silent
from uringws import Connection, Reactor, WrongThread
from uringws.backend import Backend

SWAPPED: dict[str, Any] = {
    "call_later": lambda reactor: reactor.call_later(print, 1),
    "call_every": lambda reactor: reactor.call_every(print, 1),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_a_timer_with_swapped_arguments_names_their_order(backend: Backend, name: str) -> None:
    with Reactor(Silent(), backend=backend) as reactor, pytest.raises(TypeError, match=r"seconds first.*function"):
        SWAPPED[name](reactor)


def test_an_address_as_a_tuple_is_refused_with_the_way_to_write_it(backend: Backend) -> None:
    address: Any = ("127.0.0.1", 0)
    with Reactor(Silent(), backend=backend) as reactor:
        with pytest.raises(TypeError, match=re.escape("bind(*('127.0.0.1', 0))")):
            reactor.bind(address)
        assert reactor.addresses == []


def test_a_host_without_a_port_is_refused(backend: Backend) -> None:
    with Reactor(Silent(), backend=backend) as reactor, pytest.raises(TypeError, match="a host and a port"):
        reactor.bind("127.0.0.1")


def test_a_closed_socket_cannot_be_listened_on(backend: Backend) -> None:
    closed = socket.socket()
    closed.close()
    with Reactor(Silent(), backend=backend) as reactor, pytest.raises(ValueError, match="closed"):
        reactor.bind_socket(closed)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("directory", "that is a directory: give the path of a socket in it"),
        ("file", "a file of another kind exists there: remove it"),
        ("living", "another program listens there"),
        ("missing/socket", "missing does not exist: create it first"),
        ("file/socket", "file is not a directory"),
    ],
)
def test_a_path_that_cannot_be_bound_names_the_file_there(
    backend: Backend, tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as living, Reactor(Silent(), backend=backend) as reactor:
        living.bind(str(tmp_path / "living"))
        living.listen()
        with pytest.raises(OSError, match=re.escape(str(tmp_path / name))) as caught:
            reactor.bind_unix(tmp_path / name)
    assert says in str(caught.value)
    assert caught.value.errno


def test_a_path_without_permission_names_the_directory(backend: Backend, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with Reactor(Silent(), backend=backend) as reactor:
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65_534)  # root may write anywhere
            with pytest.raises(PermissionError, match=re.escape(f"may not create a file in {locked}")):
                reactor.bind_unix(locked / "socket")
        finally:
            os.seteuid(user)


def test_an_echo_from_another_thread_raises_wrong_thread(backend: Backend) -> None:
    connections: list[Connection] = []
    caught: list[Exception] = []

    class Keeper(EchoRecorder):
        def on_open(self, conn: Connection) -> None:
            connections.append(conn)

    def echo() -> None:
        with pytest.raises(WrongThread) as raised:
            connections[0].echo()
        caught.append(raised.value)

    ours, theirs = socket.socketpair()
    with theirs, Reactor(Keeper(), backend=backend) as reactor:
        reactor.add_session(ours)
        reactor.run_once(0)
        thread = threading.Thread(target=echo)
        thread.start()
        thread.join(10)
    assert str(caught[0]).startswith("echo on connection")
    assert "is_open" not in str(caught[0])


def test_a_sender_calls_a_function_with_arguments(backend: Backend) -> None:
    called = threading.Event()
    seen: list[tuple[object, ...]] = []

    def note(*arguments: object) -> None:
        seen.append(arguments)
        called.set()

    with ReactorThread(Silent(), backend=backend) as server:
        server.sender.call(note, 1, "two", timeout=5)
        assert called.wait(10)
    assert seen == [(1, "two")]
