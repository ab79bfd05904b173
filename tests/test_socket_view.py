"""The socket that `get_extra_info("socket")` gives, as asyncio has it. uvloop has a class of its own."""

from __future__ import annotations

import asyncio
import errno
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest

from coroutines import Wire, first_connection, hold, listen, run_on, until
from uringws.asyncio import unix_serve

each = pytest.mark.parametrize("loop", ["stock", "io_uring", "epoll"])


def use(sock: Any, name: Any, peer_name: Any) -> None:
    """Do with it what programs do with it."""
    for wanted in (1, 0):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, wanted)
        assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == wanted
    assert len(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)) == 64
    assert (sock.getsockname(), sock.getpeername()) == (name, peer_name)
    assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    assert sock.fileno() >= 0
    assert not sock.get_inheritable()
    assert sock.gettimeout() == 0
    sock.setblocking(False)
    with pytest.raises(ValueError, match="timeout"):
        sock.settimeout(1)
    with sock.dup() as duplicate:
        assert duplicate.getpeername() == peer_name
    with pytest.raises(TypeError, match="serialize"):
        pickle.dumps(sock)


@each
def test_options_and_addresses_of_the_socket_are_at_hand(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            transport = connection.transport
            use(transport.get_extra_info("socket"), wire.peer.sock.getpeername(), wire.peer.sock.getsockname())
            assert transport.get_extra_info("ssl_object") is None
            wire.leave()

    run_on(loop, main)


@each
def test_the_socket_of_a_closed_connection_raises_os_error(loop: str) -> None:
    async def main() -> None:
        async with listen() as server:
            async with await Wire.connect(server) as wire:
                connection = await first_connection(server)
                sock = connection.transport.get_extra_info("socket")
                wire.leave()
                await wire.frame()
                await wire.eof()
            await until(lambda: connection.close_code is not None and sock.fileno() < 0)
            for later in (sock, connection.transport.get_extra_info("socket")):
                assert later.fileno() == -1
                assert later.family == socket.AF_INET
                with pytest.raises(OSError, match="Bad file descriptor") as raised:
                    later.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                assert raised.value.errno == errno.EBADF

    run_on(loop, main)


@each
def test_a_shut_down_socket_ends_the_connection(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            connection.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            await connection.wait_closed()
            assert connection.close_code == 1006
            await wire.do(wire.peer.sock.recv, 1)

    run_on(loop, main)


def test_a_unix_socket_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        async with unix_serve(hold, path) as server, await Wire.connect(server) as wire:
            sock = (await first_connection(server)).transport.get_extra_info("socket")
            assert (sock.family, sock.proto) == (socket.AF_UNIX, 0)
            assert sock.getsockname() == path
            wire.leave()

    run_on("io_uring", main)


def test_the_socket_is_for_the_thread_of_its_loop() -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            sock = (await first_connection(server)).transport.get_extra_info("socket")
            with pytest.raises(RuntimeError, match="thread"):
                await asyncio.to_thread(sock.fileno)
            wire.leave()

    run_on("epoll", main)
