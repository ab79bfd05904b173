"""A bare ASGI application in uvicorn with websockets (its sans-I/O half, which uvicorn recommends) and uvloop."""

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready

Event = dict[str, Any]


async def echo(_: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]) -> None:
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
