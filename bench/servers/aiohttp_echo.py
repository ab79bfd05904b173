"""aiohttp's WebSocket server on uvloop, or uringws.aiohttp on its own event loop, without compression."""

import asyncio
from collections.abc import Awaitable, Callable

import uvloop
from aiohttp import WSMsgType, web

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready


def echo_of(response: type[web.WebSocketResponse]) -> Callable[[web.Request], Awaitable[web.WebSocketResponse]]:
    """The handler that answers through this class."""

    async def echo(request: web.Request) -> web.WebSocketResponse:
        session = response(compress=False, max_msg_size=MESSAGE_BYTES_MAX)
        await session.prepare(request)
        async for message in session:
            if message.type is WSMsgType.BINARY:
                await session.send_bytes(message.data)
            elif message.type is WSMsgType.TEXT:
                await session.send_str(message.data)
        return session

    return echo


async def main(host: str, port: int, response: type[web.WebSocketResponse]) -> None:
    application = web.Application()
    application.router.add_get("/", echo_of(response))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=1024).start()
    ready(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--uringws", action="store_true", help="uringws's class and event loop in place of the usual")
    arguments = parse(options)
    if arguments.uringws:
        import uringws.asyncio
        from uringws.aiohttp import WebSocketResponse

        uringws.asyncio.run(main(arguments.host, arguments.port, WebSocketResponse))
    else:
        uvloop.run(main(arguments.host, arguments.port, web.WebSocketResponse))
