"""Servers of coroutines under test: the event loops they run on, and a peer that a coroutine can wait for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

import pytest
import uvloop

from uringws.asyncio import Server, ServerConnection, new_event_loop, serve
from wire import Address, Frame, Peer, close_frame, upgrade_request

T = TypeVar("T")

LOOPS = ("stock", "uvloop", "io_uring", "epoll")
WAIT_SECONDS = 10.0


def new_loop(name: Any) -> asyncio.AbstractEventLoop:
    """An event loop by its name in `LOOPS`."""
    if name == "uvloop":
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    if name == "stock":
        return asyncio.SelectorEventLoop()
    return new_event_loop(backend=name)


def run_on(name: str, main: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function on a loop, and check that no task is left."""

    async def watched() -> T:
        async with asyncio.timeout(5 * WAIT_SECONDS):
            result = await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    with asyncio.Runner(loop_factory=lambda: new_loop(name)) as runner:
        return runner.run(watched())


def address_of(server: Server) -> Address:
    """Where a server listens."""
    name: Any = server.sockets[0].getsockname()
    return name if isinstance(name, str) else (name[0], name[1])


class Wire:
    """A `Peer` whose methods are awaited, each in a thread: it blocks, and the server must go on meanwhile."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    @classmethod
    async def connect(cls, server: Server, path: str = "/", **settings: Any) -> Self:
        """Upgrade."""
        return cls(await asyncio.to_thread(Peer.connect, address_of(server), path, **settings))

    @classmethod
    async def dial(cls, server: Server) -> Self:
        """Connect, and send nothing."""
        return cls(await asyncio.to_thread(Peer.dial, address_of(server)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.peer.close()

    async def do(self, method: Callable[..., T], *arguments: Any, **settings: Any) -> T:
        """Run a method of the peer."""
        return await asyncio.to_thread(method, *arguments, **settings)

    def write(self, *chunks: bytes) -> None:
        """Send bytes, few enough for the socket to take at once."""
        self.peer.write(*chunks)

    def leave(self, code: int | None = 1000, reason: str = "") -> None:
        """Send a close frame and the end of the stream; the server's bytes can still be read."""
        self.peer.write(close_frame(code, reason))
        self.peer.sock.shutdown(socket.SHUT_WR)

    async def frame(self) -> Frame:
        """The next frame."""
        return await self.do(self.peer.read_frame)

    async def frames(self, count: int) -> Sequence[Frame]:
        """The next frames."""
        return await self.do(self.peer.read_frames, count)

    async def eof(self) -> None:
        """The end of the stream, in order."""
        await self.do(self.peer.read_eof)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that no event announces."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def first_connection(server: Server) -> ServerConnection:
    """The one connection of a server, once it is open."""
    await until(lambda: server.connections)
    (connection,) = server.connections
    return connection


async def ask(server: Server, request: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    """The answer to a request, after which the server closes: status, headers and body."""
    async with await Wire.dial(server) as wire:
        wire.write(upgrade_request() if request is None else request)
        response = await wire.do(wire.peer.read_response)
        if response.status != 101:
            await wire.eof()
        return response.status, response.headers, response.body


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def hold(connection: ServerConnection) -> None:
    await connection.wait_closed()


def listen(handler: Any = hold, **settings: Any) -> Server:
    return serve(handler, "127.0.0.1", 0, **settings)


each_loop = pytest.mark.parametrize("loop", LOOPS)
