"""websockets' asyncio server on uvloop, without compression and keepalive."""

from __future__ import annotations

import uvloop
from command_line import MESSAGE_BYTES_MAX, parse, parser, ready
from websockets.asyncio.server import ServerConnection, serve


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def main(host: str, port: int) -> None:
    options = {"compression": None, "max_size": MESSAGE_BYTES_MAX, "ping_interval": None, "backlog": 1024}
    async with serve(echo, host, port, **options) as server:
        ready(port)
        await server.serve_forever()


if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    uvloop.run(main(arguments.host, arguments.port))
