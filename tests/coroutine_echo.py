"""An echo server of coroutines, for the protocol's case suite: `python tests/coroutine_echo.py --loop uvloop`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib

import uvloop

from uringws.asyncio import ConnectionClosed, ServerConnection, new_event_loop, serve

MESSAGE_BYTES_MAX = 64 << 20


async def echo(connection: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def main(name: str) -> None:
    async with serve(echo, "127.0.0.1", 0, max_size=MESSAGE_BYTES_MAX) as server:
        host, port = server.sockets[0].getsockname()
        print(f"listening on ws://{host}:{port} ({name})", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=["uringws", "uvloop"], default="uringws")
    arguments = parser.parse_args()
    factory = new_event_loop if arguments.loop == "uringws" else uvloop.new_event_loop
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(arguments.loop))
