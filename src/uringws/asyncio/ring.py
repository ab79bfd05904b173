"""A connection on the ring of our event loop: its frames are events of the loop's reactor.

The opening handshake is done by transport.py. Then the socket moves: the reactor adopts a duplicate of it, and the
transport is given up.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Any, ClassVar, Final

from uringws.asyncio.admission import LIMITS
from uringws.asyncio.classes import PayloadTooBig
from uringws.asyncio.inbox import Fragment
from uringws.asyncio.link import Link, wrong_thread
from uringws.asyncio.loop import EventLoop
from uringws.errors import ConnectionClosed, LimitReached, WrongThread
from uringws.handler import Handler
from uringws.options import Options, check_shared
from uringws.socket_view import SocketView

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.asyncio.connection import ServerConnection
    from uringws.asyncio.link import Mode
    from uringws.asyncio.server import Server
    from uringws.connection import Connection
    from uringws.frames import AnyBuffer
    from uringws.message import Message
    from uringws.reactor import Reactor

__all__ = ["Ring", "RingLink"]

_TOO_BIG: Final = 1009
_BYTES_MAX: Final = 2**31 - 1
"""The most that `Options` takes for a message and a backlog."""
_SECONDS_MIN, _SECONDS_MAX = 0.001, 24 * 86400.0  # the range of `Options`
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


class Ring:
    """The common part of one server's connections on the ring: the handler and the options."""

    def __init__(self, server: Server, reactor: Reactor) -> None:
        self._reactor = reactor
        self._server = server
        self._handler = _RingHandler(server)
        self.options: Final = reactor.options if server.options is None else server.options
        """Of the connections of the server."""
        self._base = dataclasses.replace(self.options, **{name: getattr(reactor.options, name) for name in LIMITS})
        check_shared(self._base, reactor.options)
        self._options: dict[tuple[Any, ...], Options] = {}
        self._unreleased: list[Connection] = []

    def take_over(self, connection: ServerConnection, transport: Any, early: bytes) -> RingLink | None:
        """Move a connection to the ring, with the bytes that came after its request; None where that is not possible.

        The transport must have written everything and must not call its protocol again, because the connection leaves
        it.
        """
        sock = transport.get_extra_info("socket")
        if sock is None or transport.get_extra_info("sslcontext") is not None or sock.family not in _FAMILIES:
            return None
        if transport.get_write_buffer_size():
            return None
        link = RingLink(self, connection, transport.get_extra_info("sockname"))
        options = self._options_of(connection)  # before there is a descriptor that an error would leave open
        descriptor = os.dup(sock.fileno())
        try:
            self._reactor.add_session_with_prefix(
                descriptor, early, handler=self._handler, options=options, deflate=connection.deflate, data=link
            )
        except (OSError, LimitReached):  # the peer has left, or sessions_max is reached: the transport handles both
            os.close(descriptor)
            return None
        return link

    def is_full(self, beside: int) -> bool:
        """Whether the reactor has no room for so many more sessions."""
        sessions_max = self._reactor.options.sessions_max
        return sessions_max is not None and self._reactor.stats().sessions + beside >= sessions_max

    def _options_of(self, connection: ServerConnection) -> Options:
        """Return the options for a connection: its own attributes, those of `serve`, and the rest of the loop's."""
        limit = connection.write_limit
        high, low = limit if isinstance(limit, tuple) else (limit, None)
        key = (connection.ping_interval, connection.ping_timeout, connection.close_timeout, high, low)
        options = self._options.get(key)
        if options is None:
            high_bytes = min(max(1, high), _BYTES_MAX)
            options = self._options[key] = dataclasses.replace(
                self._base,
                message_bytes_max=min(self._server.message_bytes_max or _BYTES_MAX, _BYTES_MAX),
                deflate=self._server.opening.deflate,
                backlog_bytes_max=_BYTES_MAX,
                backlog_high_bytes=high_bytes,
                backlog_low_bytes=min(high_bytes // 4 if low is None else low, high_bytes - 1),
                ping_interval_seconds=_seconds(connection.ping_interval),
                ping_timeout_seconds=_seconds(connection.ping_timeout),
                close_seconds_max=_seconds(connection.close_timeout),
                deliver_while_closing=True,
            )
        return options

    def note_closed(self, connection: Connection) -> None:
        """Keep a connection whose socket may still await the end of the peer's stream."""
        unreleased = self._unreleased
        if len(unreleased) >= 2 * self._handler.open_count + 64:
            unreleased[:] = [other for other in unreleased if not other.is_released]
        unreleased.append(connection)

    async def wait_released(self) -> None:
        """Wait until the sockets of all connections are closed."""
        while self._unreleased:
            if self._unreleased[-1].is_released:
                self._unreleased.pop()
            else:
                await asyncio.sleep(0.005)


class RingLink(Link):
    """One connection's way to its peer through the reactor. See `Link` for what a connection calls."""

    __slots__ = ("_conn", "_connection", "_is_aborted", "_peername", "_ring", "_sockname")

    mode: ClassVar[Mode] = "ring"

    def __init__(self, ring: Ring, connection: ServerConnection, sockname: Any) -> None:
        self._ring = ring
        self._connection = connection
        self._sockname = sockname
        self._peername: Any = None  # kept once the connection has ended
        self._is_aborted = False
        self._conn: Connection

    @property
    def send(self) -> Callable[[Any], object]:
        """See `Link`. This is the function of the reactor itself: no call in between."""
        return self._conn.send

    def send_frame(self, opcode: int, payload: AnyBuffer, *, fin: bool = True) -> object:
        """See `Link`."""
        try:
            return self._conn.send(opcode, payload, fin=fin)
        except WrongThread:
            raise wrong_thread() from None

    def is_full(self) -> bool:
        """See `Link`."""
        connection = self._connection
        limit = connection.write_limit
        return self._conn.buffered_amount >= max(1, limit if isinstance(limit, int) else limit[0])

    def close(self, code: int | None, reason: str) -> None:
        """See `Link`."""
        self._conn.close(code, reason)

    def end(self) -> None:
        """See `Link`. The reactor goes on until the peer has answered the close frame, or `close_timeout`."""

    def abort(self) -> None:
        """See `Link`."""
        self._is_aborted = True
        try:
            self._conn.abort()
        except ConnectionClosed:
            return  # gone already

    def pause_reading(self) -> None:
        """See `Link`."""
        try:
            self._conn.pause_reading()
        except ConnectionClosed:
            return  # nothing more comes

    def resume_reading(self) -> None:
        """See `Link`."""
        try:
            self._conn.resume_reading()
        except ConnectionClosed:
            return

    @property
    def transport(self) -> RingTransport:
        """An object with the methods of a transport that make sense here."""
        return RingTransport(self)

    @property
    def latency(self) -> float:
        """Seconds that the last keepalive ping took."""
        return self._conn.latency_seconds or 0.0

    @property
    def peername(self) -> Any:
        """The peer's address, as socket.getpeername returns it."""
        if self._peername is None:
            peer = self._conn.peer
            if peer is None:
                return ""  # a Unix socket
            return peer if len(self._sockname) == 2 else (*peer[:2], 0, 0)
        return self._peername


class RingTransport:
    """The value of `connection.transport` on the ring: the part of asyncio.Transport that applications use."""

    __slots__ = ("_link",)

    def __init__(self, link: RingLink) -> None:
        self._link = link

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return "peername", "sockname" or "socket" (a `SocketView`); `default` for all else: there is no TLS here."""
        link = self._link
        if name == "peername":
            return link.peername
        if name == "sockname":
            return link._sockname
        return SocketView(link._conn, link._sockname) if name == "socket" else default

    def is_closing(self) -> bool:
        """Whether the connection is closing or closed."""
        return not self._link._conn.is_open

    def close(self) -> None:
        """End the connection without a close frame, as with any transport. Prefer to close the connection."""
        self._link.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self._link.abort()

    def pause_reading(self) -> None:
        """Take in nothing for a while."""
        self._link.pause_reading()

    def resume_reading(self) -> None:
        """Take in frames again."""
        self._link.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for the peer."""
        return self._link._conn.buffered_amount

    def write(self, data: object) -> None:
        """Raise RuntimeError: bytes between frames would break the protocol."""
        raise RuntimeError("a connection on the ring has no raw writes: use connection.send")


class _RingHandler(Handler):
    """The reactor's callbacks for the connections of one server. The data of each is its link."""

    def __init__(self, server: Server) -> None:
        self.open_count = 0
        fragment_max = server.fragment_bytes_max
        # A function of the instance: the reactor calls it directly.
        self.on_frame = _take_frame if fragment_max is None else _limited(fragment_max)

    def on_open(self, conn: Connection) -> None:
        """Note the reactor's connection."""
        self.open_count += 1
        link: RingLink = conn.data
        link._conn = conn
        conn.data = link._connection

    def on_pong(self, conn: Connection, payload: bytes) -> None:
        """Complete pings."""
        conn.data._ponged(payload)

    def on_drain(self, conn: Connection) -> None:
        """Resume those that wait in `send`."""
        conn.data._drained()

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        """Tell the connection how it ended."""
        self.open_count -= 1
        connection: ServerConnection = conn.data
        conn.data = None
        link: Any = connection._link
        link._peername = link.peername
        link._ring.note_closed(conn)
        closing = conn.closing
        if closing is not None:
            error = None if link._is_aborted else closing.error
            connection._ended(closing.sent, closing.received, closing.received_first, error)
        else:
            connection._lost(None)


def _take_frame(conn: Connection, frame: Message) -> None:
    """Queue a message or a fragment. `ServerConnection._received`, written out: a call costs as much as the rest."""
    connection = conn.data
    frames = connection._frames
    item = frame.copy_whole()
    frames.append(Fragment(frame.opcode, bytes(frame), frame.fin) if item is None else item)
    if len(frames) > connection._high:
        connection._pause_reading()
    if connection._is_reading:
        connection._waiter.wake_in_turn()


def _limited(fragment_max: int) -> Callable[[Connection, Message], None]:
    """Return the same for a server with a limit on fragments."""

    def take_frame(conn: Connection, frame: Message) -> None:
        """Fail the connection if the fragment is too big."""
        if len(frame) <= fragment_max:
            _take_frame(conn, frame)
        else:
            conn.data._fail(_TOO_BIG, "a fragment is too big", PayloadTooBig(len(frame), fragment_max))

    return take_frame


def _seconds(wanted: float | None) -> float | None:
    """Return the nearest time that `Options` takes."""
    return None if wanted is None else min(max(wanted, _SECONDS_MIN), _SECONDS_MAX)


def ring_of(server: Server) -> Ring | None:
    """Return the ring of a server whose event loop is ours."""
    return Ring(server, server.loop.reactor) if isinstance(server.loop, EventLoop) else None
