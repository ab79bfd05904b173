"""A FastAPI application in one process of uvicorn, with a WebSocket implementation and an event loop of choice."""

import contextlib
import socket

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready

IMPLEMENTATIONS = {
    "auto": "auto",
    "websockets-sansio": "websockets-sansio",
    "uringws": "uringws.uvicorn:WebSocketProtocol",
}
LOOPS = {"uvloop": "uvloop", "uringws": "uringws.asyncio:new_event_loop"}

application = FastAPI()


@application.websocket("/")
async def echo(session: WebSocket) -> None:
    await session.accept()
    with contextlib.suppress(WebSocketDisconnect):  # a peer that leaves may be noticed by a send
        while (event := await session.receive())["type"] == "websocket.receive":
            if (text := event.get("text")) is not None:
                await session.send_text(text)
            else:
                await session.send_bytes(event["bytes"])


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        ready(self.config.port)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--ws", choices=IMPLEMENTATIONS, default="auto", help="implementation (%(default)s)")
    options.add_argument("--loop", choices=LOOPS, default="uvloop", help="event loop (%(default)s)")
    arguments = parse(options)
    Server(
        uvicorn.Config(
            application,
            arguments.host,
            arguments.port,
            loop=LOOPS[arguments.loop],
            ws=IMPLEMENTATIONS[arguments.ws],
            ws_per_message_deflate=False,
            ws_ping_interval=None,
            ws_max_size=MESSAGE_BYTES_MAX,
            lifespan="off",
            access_log=False,
            log_level="warning",
            backlog=1024,
        )
    ).run()
