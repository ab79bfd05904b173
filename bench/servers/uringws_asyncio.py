"""uringws.asyncio's coroutine echo, on its own event loop, uvloop or the stock one: the surface of websockets."""

import asyncio
from collections.abc import Callable

import uvloop

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready
from uringws.asyncio import ServerConnection, new_event_loop, serve

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uringws": new_event_loop,
    "uvloop": uvloop.new_event_loop,
    "stock": asyncio.SelectorEventLoop,
}


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def main(host: str, port: int) -> None:
    async with serve(echo, host, port, ping_interval=None, max_size=MESSAGE_BYTES_MAX, backlog=1024) as server:
        ready(port)
        await server.serve_forever()


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--loop", choices=LOOPS, default="uringws", help="event loop (%(default)s)")
    arguments = parse(options)
    with asyncio.Runner(loop_factory=LOOPS[arguments.loop]) as runner:
        runner.run(main(arguments.host, arguments.port))
