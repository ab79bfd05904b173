"""picows.websockets on uvloop: the coroutine surface of websockets, as picows has it."""

import uvloop
from picows.websockets.asyncio.server import ServerConnection, serve

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def main(host: str, port: int) -> None:
    async with serve(
        echo, host, port, compression=None, ping_interval=None, max_size=MESSAGE_BYTES_MAX, backlog=1024
    ) as server:
        ready(port)
        await server.serve_forever()


if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    uvloop.run(main(arguments.host, arguments.port))
