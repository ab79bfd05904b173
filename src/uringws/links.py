"""Moves the frames of an asyncio server's connection after its upgrade: over its transport, or on the ring.

A link moves messages; its owner knows their meaning. Nothing here knows ASGI or a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from uringws.connection import SendResult
from uringws.engine import ServerEngine
from uringws.errors import ConnectionClosed
from uringws.extensions import Deflate
from uringws.frames import CloseCode, Opcode
from uringws.handler import Handler
from uringws.reactor import Reactor
from uringws.socket_view import SocketView

if TYPE_CHECKING:
    from uringws.connection import Connection
    from uringws.extensions import DeflateTerms
    from uringws.frames import AnyBuffer
    from uringws.message import Message
    from uringws.options import Options

__all__ = ["DEFLATE", "LinkOwner", "Mode", "RingLink", "RingRules", "TransportLink", "reactor_for", "ring_rules"]

Mode = Literal["ring", "transport"]

DEFLATE: Final = Deflate(takeover=True, bytes_min=0)
"""The settings of permessage-deflate in uvicorn, which are those of websockets."""

_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_PING: Final = int(Opcode.PING)
_PONG: Final = int(Opcode.PONG)
_CLOSE: Final = int(Opcode.CLOSE)
_EVENTS_MAX: Final = 256
_HIGH_BYTES: Final = 64 * 1024  # asyncio's own high-water mark
_LARGE_BYTES: Final = 64 * 1024
_SEND_BYTES_MAX: Final = 2**31 - 1
_FLUSH_SECONDS: Final = 0.01


class LinkOwner(Protocol):
    """The callbacks of a link."""

    def on_text(self, text: str) -> None:
        """Take a text message."""

    def on_bytes(self, data: bytes) -> None:
        """Take a binary message."""

    def on_pong(self, payload: bytes) -> None:
        """Take a pong."""

    def on_closed(self, code: int, reason: str, *, failed: bool) -> None:
        """No more messages follow: the peer's close frame came, or the peer broke the protocol (`failed`).

        The close frame that answers it has been written.
        """

    def waiting_count(self) -> int:
        """Return how many messages wait until the application takes them."""

    def pause_writing(self) -> None:
        """The peer does not read: stop sending."""

    def resume_writing(self) -> None:
        """The peer has read the bytes that waited: continue sending."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""


class TransportLink:
    """Carries a connection over an asyncio transport of any kind. Its owner passes on what `data_received` brings."""

    mode: Final[Mode] = "transport"

    __slots__ = ("_engine", "_is_ending", "_is_paused", "_owner", "_transport")

    def __init__(
        self,
        owner: LinkOwner,
        transport: asyncio.Transport,
        *,
        message_bytes_max: int,
        deflate: DeflateTerms | None = None,
    ) -> None:
        self._owner = owner
        self._transport = transport
        self._engine = ServerEngine(message_bytes_max=message_bytes_max, deflate=deflate, deflate_settings=DEFLATE)
        self._is_paused = False
        self._is_ending = False

    def feed(self, data: Any) -> None:
        """Take bytes of the peer, and give its messages to the owner until some wait."""
        owner, engine = self._owner, self._engine
        while not self._is_ending:
            columns = engine.feed(data, _EVENTS_MAX)
            if columns.reply and not self._transport.is_closing():
                self._transport.write(columns.reply)
            for opcode, payload in zip(columns.opcodes, columns.payloads, strict=True):
                if opcode == _TEXT:
                    owner.on_text(payload)
                elif opcode == _BINARY:
                    owner.on_bytes(payload)
                elif opcode == _PONG:
                    owner.on_pong(payload)
                elif opcode == _CLOSE:
                    owner.on_closed(engine.close_code or 0, payload, failed=engine.has_failed)
            if owner.waiting_count():
                self._pause()
                return
            if not columns.held_len:
                return
            data = b""

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Deliver messages again: first those in the bytes that were received before the pause."""
        if self._is_paused:
            if self._engine.held_len:
                self.feed(b"")
                if self._owner.waiting_count():
                    return
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def take_rest(self) -> None:
        """Give the messages of all bytes that were taken, paused or not: the transport is lost."""
        while self._engine.held_len and not self._is_ending:
            self.feed(b"")

    def send(self, message: str | AnyBuffer) -> None:
        """Write a message: str as text, all else as binary. Raises TypeError, ValueError, ConnectionClosed."""
        self._transport.write(self._engine.encode(_TEXT if type(message) is str else _BINARY, message))

    def ping(self, payload: bytes) -> None:
        """Write a ping. Raises ConnectionClosed."""
        self._transport.write(self._engine.encode(_PING, payload))

    def send_close(self, code: int | None, reason: str) -> None:
        """Write a close frame. Raises TypeError, ValueError, ConnectionClosed."""
        self._transport.write(self._engine.encode_close(code, reason))

    def end_after_peer(self) -> bool:
        """Shut down our side of the stream, and continue to read. Return False if that is impossible.

        Closing a socket with unread input resets the connection, which destroys what the peer has not read yet.
        """
        transport = self._transport
        can_write_eof = getattr(transport, "can_write_eof", None)
        if transport.is_closing() or can_write_eof is None or not can_write_eof():
            return False
        self._is_ending = True
        with contextlib.suppress(OSError, RuntimeError):  # uvloop raises RuntimeError where the peer has left
            transport.write_eof()
        if self._is_paused:
            self._is_paused = False
            transport.resume_reading()
        return True


class RingLink(asyncio.Transport):
    """Carries a connection on the ring, and stands for its transport. Made by `take`."""

    mode: Final[Mode] = "ring"

    def __init__(self, owner: LinkOwner, transport: asyncio.Transport, *, waiting_max: int) -> None:
        """`waiting_max`: reading stops when so many messages wait."""
        super().__init__({name: transport.get_extra_info(name) for name in ("sockname", "peername")})
        self._owner = owner
        self._socket: SocketView | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting_max = waiting_max
        self._connection: Connection | None = None
        self._is_paused = False
        self._is_full = False
        self._is_ending = False
        self._awaits_peer = False

    def take(
        self,
        reactor: Reactor,
        transport: asyncio.Transport,
        prefix: bytes,
        rules: RingRules,
        *,
        deflate: DeflateTerms | None = None,
    ) -> None:
        """Move the socket of a transport that has written everything. `prefix` was read from it already.

        Raises OSError, LimitReached: the socket is closed then.
        """
        with _take_socket(transport) as sock:  # which does nothing once the reactor has it
            reactor.add_session_with_prefix(
                sock, prefix, handler=rules.handler, options=rules.options, deflate=deflate, data=self
            )

    # ---- what the handler calls

    def opened(self, connection: Connection) -> None:
        """Keep the connection."""
        self._connection = connection
        self._socket = SocketView(connection, self.get_extra_info("sockname"))

    def received(self, message: Message) -> None:
        """Give a message to the owner."""
        owner = self._owner
        if message.opcode == _TEXT:
            owner.on_text(message.text())
        else:
            owner.on_bytes(bytes(message))
        count = owner.waiting_count()
        if count >= self._waiting_max or (count and len(message) >= _LARGE_BYTES):
            self.pause_reading()

    def ponged(self, payload: bytes) -> None:
        """Tell the owner."""
        self._owner.on_pong(payload)

    def drained(self) -> None:
        """Let the owner send again."""
        if self._is_full:
            self._is_full = False
            self._owner.resume_writing()

    def closed(self, code: int, reason: str) -> None:
        """Tell the owner that the connection has ended."""
        connection, self._connection = self._connection, None
        closing = None if connection is None else connection.closing
        if code != CloseCode.ABNORMAL:
            self._owner.on_closed(code, reason, failed=closing is not None and closing.received is None)
        self._owner.connection_lost(None)

    # ---- what the owner calls

    def resume(self) -> None:
        """Read again."""
        self.resume_reading()

    def take_rest(self) -> None:
        """Do nothing: the reactor has given everything."""

    def send(self, message: str | AnyBuffer) -> None:
        """Send a message: str as text, all else as binary. Raises TypeError, ValueError, ConnectionClosed."""
        connection = self._open_connection()
        if connection.send(message) is not SendResult.SENT:
            self._note_backlog(connection)

    def send_frame(self, opcode: int, payload: AnyBuffer) -> None:
        """Send a message, a ping or a pong in one frame. Raises TypeError, ValueError, ConnectionClosed."""
        connection = self._open_connection()
        if connection.send(opcode, payload) is not SendResult.SENT:
            self._note_backlog(connection)

    def _note_backlog(self, connection: Connection) -> None:
        if not self._is_full and connection.buffered_amount >= _HIGH_BYTES:
            self._is_full = True
            self._owner.pause_writing()

    def _open_connection(self) -> Connection:
        if self._connection is None:
            raise ConnectionClosed("the connection is gone")
        return self._connection

    def ping(self, payload: bytes) -> None:
        """Send a ping. Raises ConnectionClosed."""
        self._open_connection().ping(payload)

    def send_close(self, code: int | None, reason: str) -> None:
        """Send a close frame. Raises TypeError, ValueError, ConnectionClosed."""
        self._open_connection().close(code, reason)

    def end_after_peer(self) -> bool:
        """Shut down our side of the stream once what was sent has left, and continue to read. Return False if it ends.

        Closing a socket with unread input resets the connection, which destroys what the peer has not read yet.
        """
        if self.is_closing():
            return False
        self._is_ending = self._awaits_peer = True
        self.resume_reading()
        self._shut_down_when_flushed()
        return True

    def _shut_down_when_flushed(self) -> None:
        if self._connection is None or self._socket is None:
            return
        if self._connection.buffered_amount:
            self._loop.call_later(_FLUSH_SECONDS, self._shut_down_when_flushed)
            return
        with contextlib.suppress(OSError):  # the peer has left
            self._socket.shutdown(socket.SHUT_WR)

    # ---- asyncio.Transport, as far as it makes sense

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return "peername", "sockname" or "socket" (a `SocketView`); `default` for all else: there is no TLS here."""
        return self._socket if name == "socket" else super().get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Read nothing for a while."""
        if not self._is_paused and self._connection is not None:
            self._is_paused = True
            with contextlib.suppress(ConnectionClosed):
                self._connection.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._is_paused:
            self._is_paused = False
            with contextlib.suppress(ConnectionClosed):
                if self._connection is not None:
                    self._connection.resume_reading()

    def is_closing(self) -> bool:
        """Return whether the connection has ended, or is to end."""
        return self._connection is None or self._is_ending

    def close(self) -> None:
        """End the connection without a close frame, once what was sent has left; at once after `end_after_peer`."""
        if self._awaits_peer:
            self.abort()
        elif not self._is_ending:
            self._is_ending = True
            self._end_when_flushed()

    def _end_when_flushed(self) -> None:
        if self._connection is not None:
            if self._connection.buffered_amount:
                self._loop.call_later(_FLUSH_SECONDS, self._end_when_flushed)
            else:
                self.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self._is_ending = True
        with contextlib.suppress(ConnectionClosed):
            if self._connection is not None:
                self._connection.abort()


class RingHandler(Handler):
    """Passes the events of each connection to its link."""

    def on_open(self, conn: Connection, /) -> None:
        """See `RingLink.opened`."""
        conn.data.opened(conn)

    def on_message(self, conn: Connection, message: Message, /) -> None:
        """See `RingLink.received`."""
        conn.data.received(message)

    def on_pong(self, conn: Connection, payload: bytes, /) -> None:
        """See `RingLink.ponged`."""
        conn.data.ponged(payload)

    def on_drain(self, conn: Connection, /) -> None:
        """See `RingLink.drained`."""
        conn.data.drained()

    def on_close(self, conn: Connection, code: int, reason: str, /) -> None:
        """See `RingLink.closed`."""
        conn.data.closed(code, reason)


@dataclasses.dataclass(frozen=True, slots=True)
class RingRules:
    """The handler and options of one server's connections on the ring, made once: they share one set of rules."""

    handler: Handler
    options: Options


def ring_rules(reactor: Reactor, *, message_bytes_max: int, close_seconds: float) -> RingRules:
    """Return the rules for a server's connections: its limits, no pings, and sends that its owner holds back."""
    options = dataclasses.replace(
        reactor.options,
        message_bytes_max=min(message_bytes_max, _SEND_BYTES_MAX),
        deflate=DEFLATE,
        close_seconds_max=min(max(close_seconds, 0.001), 86400.0),  # the range of Options
        ping_interval_seconds=None,
        backlog_bytes_max=_SEND_BYTES_MAX,
        backlog_high_bytes=_HIGH_BYTES,
        backlog_low_bytes=_HIGH_BYTES // 4,
        on_full="close",
    )
    return RingRules(RingHandler(), options)


def reactor_for(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> Reactor | None:
    """Return the reactor that can take over a transport's socket: a plain stream with nothing left to write, on our
    event loop. None if there is no such.
    """
    reactor = getattr(loop, "reactor", None)
    if not isinstance(reactor, Reactor) or transport.get_extra_info("sslcontext") is not None:
        return None
    sock = transport.get_extra_info("socket")
    if sock is None or transport.is_closing() or transport.get_write_buffer_size():
        return None
    is_stream = sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    return reactor if is_stream else None


def _take_socket(transport: asyncio.Transport) -> socket.socket:
    """Take the connection away from a transport. Later input stays in the socket."""
    transport.pause_reading()
    sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    transport.set_protocol(asyncio.Protocol())
    transport.abort()  # closes the transport's descriptor; the connection lives on in ours
    return sock
