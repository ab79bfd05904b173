"""A bare ASGI application in uvicorn with websockets (its sans-I/O half, which uvicorn recommends) and uvloop."""

from __future__ import annotations

import socket

import uvicorn
from command_line import MESSAGE_BYTES_MAX, parse, parser, ready
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope


async def echo(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    await receive()  # websocket.connect
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": event.get("bytes"), "text": event.get("text")})


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        ready(self.config.port)


if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    Server(
        uvicorn.Config(
            echo,
            arguments.host,
            arguments.port,
            loop="uvloop",
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_ping_interval=None,
            ws_max_size=MESSAGE_BYTES_MAX,
            lifespan="off",
            access_log=False,
            log_level="warning",
            backlog=1024,
        )
    ).run()
