"""permessage-deflate on the surfaces for asyncio: `serve` and uvicorn, on the ring and over transports."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import websockets

import uringws.asyncio
from asgi_server import Live
from uringws import Deflate, Options
from uringws.asyncio import ServerConnection, serve

SIZES = [0, 1, 125, 126, 1000, 16_384, 70_000]


def payloads() -> list[str | bytes]:
    """Text that compresses well, and noise."""
    source = random.Random(5)
    return [item for size in SIZES for item in (source.randbytes(size), "naïve text " * (size // 11))]


async def exchange(url: str, **settings: Any) -> list[str]:
    """Send everything, pipelined and in fragments, and compare; return the names of the extensions."""
    async with websockets.connect(url, **settings) as client:
        sent = payloads()
        for payload in sent:
            await client.send(payload)
        for payload in sent:
            assert await client.recv() == payload
        await client.send(["in ", "three ", "fragments"])
        assert await client.recv() == "in three fragments"
        return [extension.name for extension in client.protocol.extensions]


@pytest.mark.parametrize("loop", ["uringws", "asyncio"])
@pytest.mark.parametrize("settings", [{}, {"options": Options(deflate=Deflate(bytes_min=0))}])
def test_serve_compresses_as_websockets_does(loop: str, settings: dict[str, Any]) -> None:
    seen = []

    async def echo(connection: ServerConnection) -> None:
        seen.append(connection.deflate)
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        async with serve(echo, "127.0.0.1", 0, **settings) as server:
            url = "ws://{}:{}".format(*server.sockets[0].getsockname())
            assert await exchange(url) == ["permessage-deflate"]
            assert await exchange(url, compression=None) == []
        async with serve(echo, "127.0.0.1", 0, compression=None, **settings) as server:
            assert await exchange("ws://{}:{}".format(*server.sockets[0].getsockname())) == []

    (uringws.asyncio.run if loop == "uringws" else asyncio.run)(main())
    assert seen[0] is not None
    assert seen[0].server_takeover is (settings == {})
    assert seen[1:] == [None, None]


def test_hook_that_takes_the_extension_out_of_the_answer_is_heeded() -> None:
    def take_out(connection: ServerConnection, request: Any, response: Any) -> None:
        del response.headers["Sec-WebSocket-Extensions"]

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        async with serve(echo, "127.0.0.1", 0, process_response=take_out) as server:
            assert await exchange("ws://{}:{}".format(*server.sockets[0].getsockname())) == []

    asyncio.run(main())


async def asgi_echo(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that echoes."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


@pytest.mark.parametrize("loop", ["uringws", "asyncio"])
@pytest.mark.parametrize("compress", [True, False])
def test_uvicorn_compresses_unless_its_setting_forbids_it(loop: str, *, compress: bool) -> None:
    with Live(asgi_echo, loop, ws_per_message_deflate=compress) as server:
        names = asyncio.run(exchange("ws://{}:{}/".format(*server.address)))
    assert names == ["permessage-deflate"] * compress
