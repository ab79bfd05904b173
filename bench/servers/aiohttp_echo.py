"""aiohttp's WebSocket server on uvloop, without compression."""

import asyncio

import uvloop
from aiohttp import WSMsgType, web

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready


async def echo(request: web.Request) -> web.WebSocketResponse:
    session = web.WebSocketResponse(compress=False, max_msg_size=MESSAGE_BYTES_MAX)
    await session.prepare(request)
    async for message in session:
        if message.type is WSMsgType.BINARY:
            await session.send_bytes(message.data)
        elif message.type is WSMsgType.TEXT:
            await session.send_str(message.data)
    return session


async def main(host: str, port: int) -> None:
    application = web.Application()
    application.router.add_get("/", echo)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=1024).start()
    ready(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    uvloop.run(main(arguments.host, arguments.port))
