"""Echo servers for lateness.py, each beside a task that sleeps: a text message is answered with how late it woke.

The lateness is counted from the last such message.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import uvloop

from command_line import parse, parser, ready
from uringws import Connection, Handler, Message
from uringws.asyncio import ServerConnection, listen, new_event_loop, serve

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uringws": new_event_loop,
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.SelectorEventLoop,
}
SLEEP_SECONDS = 0.01

late_seconds: list[float] = []
"""By how much the task woke late, each time."""


async def tick() -> None:
    while True:
        due = asyncio.get_running_loop().time() + SLEEP_SECONDS
        await asyncio.sleep(SLEEP_SECONDS)
        late_seconds.append(asyncio.get_running_loop().time() - due)


def take_figures() -> str:
    """The answer to a text message; begins again."""
    text = json.dumps(late_seconds)
    late_seconds.clear()
    return text


class Callbacks(Handler):
    def on_message(self, conn: Connection, message: Message) -> None:
        if message.is_text:
            conn.send_text(take_figures())
        else:
            conn.send(message)


async def listen_with_callbacks(host: str, port: int) -> None:
    async with await listen(Callbacks(), host, port) as listening:
        ready(port)
        await listening.wait_closed()


async def serve_coroutines(host: str, port: int) -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(take_figures() if isinstance(message, str) else message)

    async with serve(echo, host, port, ping_interval=None) as server:
        ready(port)
        await server.serve_forever()


async def serve_websockets(host: str, port: int) -> None:
    import websockets.asyncio.server as websockets_server  # noqa: PLC0415 - only where it is asked for

    async def echo(connection: websockets_server.ServerConnection) -> None:
        async for message in connection:
            await connection.send(take_figures() if isinstance(message, str) else message)

    async with websockets_server.serve(echo, host, port, ping_interval=None, compression=None) as server:
        ready(port)
        await server.serve_forever()


async def serve_picows(host: str, port: int) -> None:
    import picows  # noqa: PLC0415 - only where it is asked for

    class Echo(picows.WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == picows.WSMsgType.TEXT:
                transport.send(picows.WSMsgType.TEXT, take_figures().encode())
            elif frame.msg_type == picows.WSMsgType.BINARY:
                transport.send(picows.WSMsgType.BINARY, frame.get_payload_as_memoryview())

    server = await picows.ws_create_server(lambda _: Echo(), host, port)
    ready(port)
    await server.serve_forever()


SERVERS = {
    "listen": listen_with_callbacks,
    "serve": serve_coroutines,
    "websockets": serve_websockets,
    "picows": serve_picows,
}


async def main(server: str, host: str, port: int) -> None:
    ticking = asyncio.create_task(tick())
    try:
        await SERVERS[server](host, port)
    finally:
        ticking.cancel()


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--loop", choices=LOOPS, default="uringws", help="event loop (%(default)s)")
    options.add_argument("--server", choices=SERVERS, default="listen", help="what echoes (%(default)s)")
    arguments = parse(options)
    with asyncio.Runner(loop_factory=LOOPS[arguments.loop]) as runner:
        runner.run(main(arguments.server, arguments.host, arguments.port))
