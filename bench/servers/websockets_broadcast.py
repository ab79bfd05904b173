"""The asyncio server of websockets, or picows' copy of its surface, that publishes by broadcast().

On uvloop, without compression and keepalive.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import uvloop

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready
from roles import AUDIENCE, AUDIENCES

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

members: dict[str, set[ServerConnection]] = {audience: set() for audience in AUDIENCES}


library: Any = None


async def rooms(connection: ServerConnection) -> None:
    role = connection.request.path if connection.request is not None else ""
    mine = members.get(role, set())
    mine.add(connection)
    try:
        async for message in connection:
            if role in AUDIENCE:
                library.broadcast(members[AUDIENCE[role]], message)
            else:
                await connection.send(message)
    finally:
        mine.discard(connection)


async def main(host: str, port: int) -> None:
    async with library.serve(
        rooms, host, port, compression=None, ping_interval=None, max_size=MESSAGE_BYTES_MAX, backlog=1024
    ) as server:
        ready(port)
        await server.serve_forever()


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--library", choices=("websockets", "picows.websockets"), default="websockets")
    arguments = parse(options)
    library = import_module(f"{arguments.library}.asyncio.server")
    uvloop.run(main(arguments.host, arguments.port))
