"""A chat of coroutines with the surface of `websockets`: what one client sends, all clients get.

    python examples/asyncio_serve.py [--host 127.0.0.1] [--port 9004] [--loop uringws]

Install with `pip install 'uringws[websockets]'`. A program written for `websockets` changes the import of `serve` and
`broadcast`, and runs on `uringws.asyncio.run`. Ctrl-C ends it: clients get close code 1001.
"""

import argparse
import asyncio
import sys

from uringws.asyncio import ServerConnection, broadcast, new_event_loop, serve

LOOPS = {"uringws": new_event_loop, "stock": asyncio.new_event_loop}
clients: set[ServerConnection] = set()


async def chat(connection: ServerConnection) -> None:
    """Pass on the messages of one client until it leaves."""
    clients.add(connection)
    try:
        async for message in connection:
            broadcast(clients, message)
    finally:
        clients.discard(connection)


async def main(host: str, port: int) -> None:
    """Serve until cancelled."""
    async with serve(chat, host, port) as server:
        host, port = server.sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"listening on ws://{shown}:{port} ({type(server.get_loop()).__module__.split('.')[0]})", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chat server of coroutines.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9004, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--loop", choices=LOOPS, default="uringws", help="event loop (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        with asyncio.Runner(loop_factory=LOOPS[arguments.loop]) as runner:
            runner.run(main(arguments.host, arguments.port))
    except KeyboardInterrupt:
        pass
    except (OSError, OverflowError) as error:
        print(f"asyncio_serve: cannot listen on {arguments.host}:{arguments.port}: {error}", file=sys.stderr)
        sys.exit(1)
