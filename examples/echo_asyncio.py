"""An echo server with one asyncio task per connection around `ServerEngine`.

This is the way where the reactor cannot go: TLS, other event loops, streams that are no sockets.

    python examples/echo_asyncio.py [--host 127.0.0.1] [--port 9003] [--certificate PEM]

The engine does no I/O: it takes the bytes that came and returns the bytes to send. Ctrl-C ends it.
"""

import argparse
import asyncio
import contextlib
import signal
import ssl
import sys

from uringws import (
    Accept,
    CloseCode,
    EngineMessage,
    HandshakeError,
    Options,
    ServerEngine,
    check_upgrade,
    encode_accept,
    encode_refusal,
    parse_request,
)

OPTIONS = Options()  # of the reactor's settings the engine and the handshake take these
READ_BYTES = 64 * 1024


class Session:
    """One connection: two streams, an engine, and the task that runs between them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._engine: ServerEngine | None = None

    async def run(self) -> None:
        """Serve the connection until it ends, and close it."""
        try:
            async with asyncio.timeout(OPTIONS.handshake_seconds_max):
                accepted = await self._shake_hands()
            if accepted:
                self._engine = ServerEngine(message_bytes_max=OPTIONS.message_bytes_max)
                await self._echo(self._engine)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the peer left, or was too slow, or sent no request
        finally:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _shake_hands(self) -> bool:
        head = await self._reader.readuntil(b"\r\n\r\n")  # bytes after the head stay in the reader
        try:
            request = parse_request(head, header_count_max=OPTIONS.header_count_max)
            key = check_upgrade(request, OPTIONS)
        except HandshakeError as error:
            self._writer.write(encode_refusal(error))
            return False
        self._writer.write(encode_accept(key, Accept()))
        return True

    async def _echo(self, engine: ServerEngine) -> None:
        while not engine.is_closed:
            data = await self._reader.read(READ_BYTES)
            if not data:
                return  # lost without a close frame
            engine.process(data, self._writer.write, EngineMessage.echo)
            await self._writer.drain()  # a peer that does not read is not read from

    def close(self, code: CloseCode) -> None:
        """Begin the close handshake; `run` ends when the peer has answered."""
        if self._engine is None:
            self._writer.close()
        elif not self._engine.is_closed:
            self._engine.close(code)
            self._writer.write(self._engine.outbound_local())
            self._engine.clear_outbound()

    def abort(self) -> None:
        """End the connection at once: its peer does not read, or does not answer."""
        self._writer.transport.abort()


async def serve(host: str, port: int, tls: ssl.SSLContext | None) -> None:
    """Accept connections until SIGINT or SIGTERM, then close them all with a close frame."""
    sessions: dict[asyncio.Task[None], Session] = {}

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(reader, writer)
        task = asyncio.create_task(session.run())
        sessions[task] = session
        task.add_done_callback(sessions.pop)

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        server = await asyncio.start_server(connected, host, port, ssl=tls, limit=OPTIONS.header_bytes_max)
    except (OSError, OverflowError) as error:
        # asyncio puts the address in front of the reason; the text below has it already.
        reason = (getattr(error, "strerror", None) or str(error)).rpartition(": ")[2]
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from None
    host, port = server.sockets[0].getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"listening on {'wss' if tls else 'ws'}://{shown}:{port} (asyncio)", flush=True)
    await stop.wait()
    server.close()
    for session in sessions.values():
        session.close(CloseCode.GOING_AWAY)
    if sessions:
        await asyncio.wait(sessions, timeout=OPTIONS.close_seconds_max)
    for session in sessions.values():
        session.abort()


def tls_context(certificate: str) -> ssl.SSLContext:
    """Return the server's side of TLS. Raises OSError that names the file, which those of `ssl` do not."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate)
    except OSError as error:
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) else error
        raise OSError(f"{certificate}: {reason}; it must be a PEM file with a certificate and its key") from None
    return context


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="A WebSocket echo server on asyncio, around the sans-IO engine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9003, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--certificate", metavar="PEM", help="file with certificate and key: serve wss://")
    arguments = parser.parse_args()
    try:
        tls = tls_context(arguments.certificate) if arguments.certificate else None
        asyncio.run(serve(arguments.host, arguments.port, tls))
    except KeyboardInterrupt:
        pass  # before it listened
    except OSError as error:
        print(f"echo_asyncio: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
