"""`listen`: the callback API (`uringws.Handler`) inside an asyncio program, on its loop's ring."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final, Self

from uringws.asyncio.loop import ring_loop
from uringws.callbacks import look_up
from uringws.errors import ConnectionClosed
from uringws.frames import CloseCode
from uringws.handshake import Reject
from uringws.sending import check_close

if TYPE_CHECKING:
    from types import TracebackType

    from uringws.asyncio.loop import EventLoop
    from uringws.callbacks import Callbacks
    from uringws.connection import Connection
    from uringws.handler import HandlerProtocol
    from uringws.http import Request
    from uringws.options import Options
    from uringws.sockets import Address

__all__ = ["Listening", "listen"]

_ANY_HOSTS: Final = ("0.0.0.0", "::")  # noqa: S104 - asked for by no host, as in loop.create_server


class Listening:
    """The object that `listen` returns: one server of a handler on the loop. `async with` closes it and waits for its
    end.
    """

    def __init__(self, loop: EventLoop, callbacks: Callbacks) -> None:
        """Only `listen` makes it."""
        self._loop = loop
        self._callbacks = callbacks
        self._addresses: list[Address] = []
        self._connections: dict[int, Connection] = {}
        self._is_closing = False
        self._closed: asyncio.Future[None] = loop.create_future()

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, or did until `close`: (host, port), or the path of a Unix socket."""
        return list(self._addresses)

    @property
    def connections(self) -> list[Connection]:
        """The connections for which `on_close` has not been called yet."""
        return list(self._connections.values())

    def close(self, code: int = CloseCode.GOING_AWAY, reason: str = "") -> None:
        """Stop listening, and begin the close handshake of every connection. May be called twice.

        Opening requests that have begun are answered 503. A peer that does not answer is cut after
        `Options.close_seconds_max`. Raises TypeError or ValueError for an invalid close code or reason.
        """
        check_close(code, reason)
        if self._is_closing:
            return
        self._is_closing = True
        for address in self._addresses:
            self._loop.reactor.unbind(address)
        for connection in self.connections:
            with contextlib.suppress(ConnectionClosed):
                connection.close(code, reason)
        self._look_whether_closed()

    async def wait_closed(self) -> None:
        """Wait until `close` was called and every connection has ended."""
        await asyncio.shield(self._closed)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it, and wait for its end."""
        self.close()
        await self.wait_closed()

    def __repr__(self) -> str:
        """Name it for a log."""
        state = "closing, " if self._is_closing else ""
        return f"<Listening on {self._addresses}, {state}{len(self._connections)} connections>"

    # ---- what the reactor calls

    def _decide(self, request: Request) -> Any:
        if self._is_closing:
            return Reject(503)
        return None if self._callbacks.on_upgrade is None else self._callbacks.on_upgrade(request)

    def _opened(self, connection: Connection) -> None:
        self._connections[connection.id] = connection
        if self._is_closing:  # its request was accepted before
            connection.close(CloseCode.GOING_AWAY)
        elif self._callbacks.on_open is not None:
            self._callbacks.on_open(connection)

    def _ended(self, connection: Connection, code: int, reason: str) -> None:
        try:
            if self._callbacks.on_close is not None:
                self._callbacks.on_close(connection, code, reason)
        finally:
            self._connections.pop(connection.id, None)
            self._look_whether_closed()

    def _look_whether_closed(self) -> None:
        if self._is_closing and not self._connections and not self._closed.done():
            self._closed.set_result(None)


class _Service:
    """The handler that the reactor is given: it counts connections, and hands everything else to the handler itself."""

    def __init__(self, callbacks: Callbacks, listening: Listening) -> None:
        for name, callback in callbacks._asdict().items():
            if callback is not None:
                setattr(self, name, callback)
        self.on_upgrade = listening._decide
        self.on_open = listening._opened
        self.on_close = listening._ended


async def listen(
    handler: HandlerProtocol,
    host: str | None = None,
    port: int | None = None,
    *,
    sock: socket.socket | None = None,
    options: Options | None = None,
) -> Listening:
    """Serve WebSocket connections with callbacks, in the loop's thread and on its ring.

    `handler` is as for `uringws.Reactor`; `EventLoop` says when its callbacks are called. `host` and `port` are as for
    `Reactor.bind`, a host of None stands for all interfaces (IPv4 and IPv6). `sock` is a socket that is bound already;
    the reactor owns it from then on. `options` hold for these connections (None: those of the loop); options that all
    connections of a reactor share must equal those of the loop.

    Raises ReactorStateError, with the remedy, on a loop that is not `new_event_loop`'s, and what `Reactor.bind` raises.
    """
    loop = ring_loop("listen()")
    listening = Listening(loop, look_up(handler))
    service: Any = _Service(listening._callbacks, listening)
    if sock is not None:
        if host is not None or port is not None:
            raise ValueError("listen() takes host and port, or sock, not both")
        listening._addresses.append(loop.reactor.bind_socket(sock, handler=service, options=options))
        return listening
    if port is None:
        raise TypeError("listen() takes a port, for example 0 for a free one, or sock")
    for name in _ANY_HOSTS if host is None else (host,):
        try:
            numeric = await _resolve(loop, name, port)
            address = loop.reactor.bind(numeric, port, handler=service, options=options)
        except OSError as error:
            if host is None and listening._addresses and _is_without_family(error):
                break  # this machine has no IPv6
            for bound in listening._addresses:
                loop.reactor.unbind(bound)
            raise
        listening._addresses.append(address)
        port = address[1]
    return listening


def _is_without_family(error: OSError) -> bool:
    return isinstance(error, socket.gaierror) or error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


async def _resolve(loop: EventLoop, host: str, port: int) -> str:
    """Return the first address of a host, without blocking the loop."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if isinstance(host, str) and host:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return str(found[0][4][0])
    return host
