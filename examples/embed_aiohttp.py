"""An aiohttp application whose WebSocket connections a reactor serves, in a thread beside the event loop.

    python examples/embed_aiohttp.py [--host 127.0.0.1] [--port 9004] [--backend auto|io_uring|epoll]

aiohttp answers HTTP. A request for a WebSocket at / is answered with 101, and then its socket moves to the reactor,
with the bytes that aiohttp had read too far. `curl --data hello http://127.0.0.1:9004/say` reaches all sessions through
a `Sender`. Ctrl-C ends it.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading

try:
    from aiohttp import web
except ModuleNotFoundError:
    sys.exit("embed_aiohttp: aiohttp is not installed: run pip install aiohttp")

from uringws import (
    Accept,
    Connection,
    Handler,
    HandshakeError,
    Headers,
    Message,
    Options,
    Reactor,
    Request,
    Sender,
    check_upgrade,
    encode_accept,
)

OPTIONS = Options()


class Room(Handler):
    """Echoes, and can be told things."""

    def __init__(self) -> None:
        self._members: dict[int, Connection] = {}

    def on_open(self, conn: Connection) -> None:
        """Called for an adopted connection as for any other, before its first message."""
        self._members[conn.id] = conn

    def on_message(self, conn: Connection, message: Message) -> None:
        """Send it back."""
        conn.echo()

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        """Forget it."""
        del self._members[conn.id]

    def tell(self, text: str) -> None:
        """Send to every member."""
        for member in self._members.values():
            if member.is_open:
                member.send_text(text)


class ReactorThread(threading.Thread):
    """A reactor without a listening socket: its Sender keeps it running, and brings its sessions."""

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(name="reactor")
        self.reactor = reactor
        self.sender = reactor.sender()

    def run(self) -> None:
        """Serve: the thread that runs a reactor is the one that closes it."""
        with self.reactor:
            self.reactor.run()

    def end(self) -> None:
        """Close all sessions with 1001 and wait for the thread."""
        with self.sender:
            self.sender.call(self.reactor.drain)
        self.join()


ROOM = web.AppKey("room", Room)
SENDER = web.AppKey("sender", Sender)


class Leftover(bytearray):
    """Stands where aiohttp expects a parser of frames, and keeps what it is fed."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes that aiohttp read past the request. False: more may come."""
        self.extend(data)
        return False, b""

    def feed_eof(self) -> None:
        """Do nothing: the reactor will see the end of the stream for itself."""


async def take_socket(request: web.Request, answer: bytes) -> tuple[socket.socket, bytes]:
    """Send the answer and take the connection away from aiohttp: its socket, and what was read past the request."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has left")
    transport.set_write_buffer_limits(0)
    transport.write(answer)
    await request.writer.drain()  # to the last byte: bytes that the transport still held would be lost with it
    leftover = Leftover()
    request.protocol.set_parser(leftover)  # type: ignore[arg-type]  # as aiohttp's own WebSocketResponse does
    transport.pause_reading()  # later bytes stay in the socket
    ours = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    transport.abort()  # closes aiohttp's descriptor; the connection lives on in ours
    return ours, bytes(leftover)


async def root(request: web.Request) -> web.Response:
    """Answer plain HTTP, and move what asks for a WebSocket to the reactor."""
    version = f"{request.version.major}.{request.version.minor}"
    url, headers = request.rel_url, Headers(request.raw_headers)
    asked = Request(request.method, request.raw_path, url.raw_path, url.raw_query_string, headers, version, None)
    if not asked.is_upgrade:
        return web.Response(text="This is aiohttp; a WebSocket at this address is served by uringws.\n")
    if request.transport is not None and request.transport.get_extra_info("sslcontext") is not None:
        # The bytes of a TLS connection are readable in this process only: see echo_asyncio.py for such.
        return web.Response(status=501, text="not over TLS\n")
    try:
        key = check_upgrade(asked, OPTIONS)
    except HandshakeError as error:
        return web.Response(status=error.status, text=f"{error.body}\n", headers=dict(error.headers))
    ours, leftover = await take_socket(request, encode_accept(key, Accept()))
    with ours:  # closes it if the reactor does not take it, and does nothing if it does
        adopt = request.app[SENDER].add_session_with_prefix
        await asyncio.to_thread(adopt, ours, leftover, data=request.remote)
    return web.Response(status=101)  # for the log alone: its connection is gone


async def say(request: web.Request) -> web.Response:
    """Send the request's body to all sessions. A Sender may be used from any thread, the event loop's too."""
    text, room = await request.text(), request.app[ROOM]
    request.app[SENDER].call(lambda: room.tell(text), timeout=0)
    return web.Response(text="said\n")


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app = web.Application()
    app.add_routes([web.get("/", root), web.post("/say", say)])
    app[ROOM] = room = Room()
    thread = ReactorThread(Reactor(room, OPTIONS, backend=arguments.backend))
    app[SENDER] = thread.sender
    thread.start()
    runner = web.AppRunner(app)
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, arguments.host, arguments.port).start()
        except (OSError, OverflowError) as error:
            # asyncio puts the address in front of the reason; the text below has it already.
            reason = (getattr(error, "strerror", None) or str(error)).rpartition(": ")[2]
            where = f"{arguments.host}:{arguments.port}"
            raise OSError(f"cannot listen on {where}: {reason}") from None
        host, port = runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"listening on ws://{shown}:{port} ({thread.reactor.backend}, and aiohttp for HTTP)", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()
        await asyncio.to_thread(thread.end)


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="An aiohttp server whose WebSockets are served on io_uring.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9004, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--backend", choices=("auto", "io_uring", "epoll"), default="auto")
    arguments = parser.parse_args()
    try:
        asyncio.run(serve(arguments))
    except KeyboardInterrupt:
        pass  # before it listened
    except OSError as error:  # UringUnavailable is an OSError
        print(f"embed_aiohttp: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
