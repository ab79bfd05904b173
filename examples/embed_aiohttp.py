"""An aiohttp application whose WebSockets are served on io_uring: pip install 'uringws[aiohttp]'.

    python examples/embed_aiohttp.py [--host 127.0.0.1] [--port 9004] [--backend auto|io_uring|epoll]

The WebSocket at / echoes; `curl --data hello http://127.0.0.1:9004/say` reaches all sessions. Ctrl-C ends it.
"""

import argparse
import asyncio
import socket
import sys

try:
    from aiohttp import WSMsgType, web
except ModuleNotFoundError:
    sys.exit("embed_aiohttp: aiohttp is not installed: run pip install aiohttp")
from uringws.aiohttp import WebSocketResponse
from uringws.asyncio import new_event_loop

sessions: set[WebSocketResponse] = set()


async def root(request: web.Request) -> web.StreamResponse:
    """Echo on a WebSocket; say what this is to others."""
    if "upgrade" not in request.headers:
        return web.Response(text="This is aiohttp; a WebSocket at this address is served by uringws.\n")
    await (session := WebSocketResponse()).prepare(request)
    sessions.add(session)
    async for message in session:
        await (session.send_str if message.type is WSMsgType.TEXT else session.send_bytes)(message.data)
    sessions.discard(session)
    return session


async def say(request: web.Request) -> web.Response:
    """Send the request's body to all sessions."""
    await asyncio.gather(*map(WebSocketResponse.send_str, sessions, [await request.text()] * len(sessions)))
    return web.Response(text="said\n")


async def close_all(_: web.Application) -> None:
    """Close the sessions with 1001 as the server ends."""
    await asyncio.gather(*(session.close(code=1001) for session in sessions))


parser = argparse.ArgumentParser(description="An aiohttp server whose WebSockets are served on io_uring.")
parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
parser.add_argument("--port", type=int, default=9004, help="0 takes a free one (default: %(default)s)")
parser.add_argument("--backend", choices=("auto", "io_uring", "epoll"), default="auto")
arguments = parser.parse_args()
try:
    listener = socket.create_server((arguments.host, arguments.port))
except (OSError, OverflowError) as error:
    sys.exit(f"embed_aiohttp: cannot listen on {arguments.host}:{arguments.port}: {error}")
app, loop = web.Application(), new_event_loop(backend=arguments.backend)
app.add_routes([web.get("/", root), web.post("/say", say)])
app.on_shutdown.append(close_all)
where = "listening on ws://{}:{} ({}, aiohttp)".format(*listener.getsockname(), loop.reactor.backend)
web.run_app(app, sock=listener, loop=loop, print=lambda _: print(where, flush=True))
