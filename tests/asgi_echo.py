"""An ASGI echo application under uvicorn with our WebSocket class, for the protocol's case suite:
`python tests/asgi_echo.py --loop uvloop`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib

import uvicorn

from asgi_server import LOOPS, Event, Receive, Send, loop_factory

MESSAGE_BYTES_MAX = 64 << 20


async def echo(scope: Event, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        with contextlib.suppress(OSError):  # the client has left: its disconnect comes next
            await send({**event, "type": "websocket.send"})


async def main(name: str) -> None:
    config = uvicorn.Config(
        echo,
        port=0,
        ws="uringws.uvicorn:WebSocketProtocol",
        ws_max_size=MESSAGE_BYTES_MAX,
        lifespan="off",
        interface="asgi3",
        log_level="warning",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    print(f"listening on ws://{host}:{port} ({name})", flush=True)
    await serving


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=LOOPS, default="uringws")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory(arguments.loop)) as runner:
        runner.run(main(arguments.loop))
