"""picows.websockets on uvloop that publishes by broadcast(), without compression and keepalive."""

import uvloop
from picows.websockets.asyncio.server import ServerConnection, broadcast, serve

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready
from roles import AUDIENCE, AUDIENCES

members: dict[str, set[ServerConnection]] = {audience: set() for audience in AUDIENCES}


async def rooms(connection: ServerConnection) -> None:
    role = connection.request.path if connection.request is not None else ""
    mine = members.get(role, set())
    mine.add(connection)
    try:
        async for message in connection:
            if role in AUDIENCE:
                broadcast(members[AUDIENCE[role]], message)
            else:
                await connection.send(message)
    finally:
        mine.discard(connection)


async def main(host: str, port: int) -> None:
    async with serve(
        rooms, host, port, compression=None, ping_interval=None, max_size=MESSAGE_BYTES_MAX, backlog=1024
    ) as server:
        ready(port)
        await server.serve_forever()


if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    uvloop.run(main(arguments.host, arguments.port))
