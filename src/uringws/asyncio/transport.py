"""A connection over an asyncio transport: any event loop, TLS, anything that is no plain socket on our loop.

The transport delivers bytes, and the engine of the shim turns them into frames. Frames to the peer are written
unchanged, because a server does not mask.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from uringws.asyncio.classes import OPEN, PayloadTooBig, ProtocolError
from uringws.asyncio.inbox import Fragment
from uringws.asyncio.link import Link, wrong_thread
from uringws.asyncio.opening import encode_answer, is_junk, parse_head, plain_answer
from uringws.engine import ServerEngine
from uringws.errors import ConnectionClosed as LinkClosed
from uringws.errors import HandshakeError
from uringws.frames import Opcode
from uringws.shim import fast_frame

if TYPE_CHECKING:
    from uringws.asyncio.connection import ServerConnection
    from uringws.asyncio.link import Mode
    from uringws.asyncio.opening import Answer
    from uringws.asyncio.ring import Ring
    from uringws.asyncio.server import Server
    from uringws.frames import AnyBuffer

__all__ = ["TransportLink"]

# Looked up once: an attribute of the module costs as much as a small call.
_running_loop: Final = asyncio.get_running_loop
_make_frame: Final = fast_frame
_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_CLOSE: Final = int(Opcode.CLOSE)
_PING: Final = int(Opcode.PING)
_PONG: Final = int(Opcode.PONG)
_EARLY_BYTES_MAX: Final = 64 * 1024
"""The most bytes that a peer may send after its request while a hook of the application still decides on it."""
_REPLIES_BYTES_MAX: Final = 256 * 1024
"""The bytes that may wait for a peer that does not read before nothing more is read from it: pongs would pile up."""
_BYTES_MAX: Final = 2**63 - 1
_MARK_MAX: Final = 2**31 - 1  # the most that uvloop takes
_TOO_BIG: Final = 1009


class _Stage(Enum):
    """The input of a link."""

    HEAD = auto()
    """The opening request."""
    HOOKS = auto()
    """Bytes that must wait: a hook still decides on the request."""
    FRAMES = auto()
    IGNORED = auto()
    """The rest of a stream after a failure, a refusal or a close: it is ignored."""


class TransportLink(Link, asyncio.BufferedProtocol):
    """The asyncio protocol of one connection. See `Link` for what a connection calls."""

    __slots__ = (
        "_connection",
        "_early",
        "_engine",
        "_handshake",
        "_has_heard",
        "_is_paused",
        "_is_reading_paused",
        "_latency",
        "_ping_sent",
        "_server",
        "_stage",
        "_transport",
        "_waits_for_peer",
    )

    mode: ClassVar[Mode] = "transport"

    def __init__(self, server: Server, *, is_open: bool = False) -> None:
        """`is_open`: the opening handshake was done elsewhere."""
        self._server = server
        self._connection: ServerConnection = server.new_connection(self)
        self._stage = _Stage.FRAMES if is_open else _Stage.HEAD
        self._engine: ServerEngine
        self._early = bytearray()
        self._handshake: asyncio.Task[None] | None = None
        self._is_paused = False
        self._is_reading_paused = False
        self._has_heard = False
        self._waits_for_peer = False
        self._ping_sent = 0.0
        self._latency = 0.0

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the opening request, or, where that is done, with frames."""
        self._transport = cast("Any", transport)
        limit = self._connection.write_limit
        high, low = limit if isinstance(limit, tuple) else (limit, None)
        self._transport.set_write_buffer_limits(min(high, _MARK_MAX), None if low is None else min(low, _MARK_MAX))
        peername = transport.get_extra_info("peername")
        if self._stage is _Stage.FRAMES:
            self._server.admission.enter_open(self._connection, peername)
            self._server.links.add(self)
            self._open()
        elif refusal := self._server.admission.enter(self, self._connection, peername):
            self._refuse(refusal)
        else:
            self._server.links.add(self)
            if self._server.open_timeout is not None:
                self._server.clocks.openings.start(self, self._server.open_timeout)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all links of a server share: `buffer_updated` follows at once."""
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take in what was read."""
        self._has_heard = True
        if self._stage is _Stage.FRAMES:
            self._feed(self._server.buffer[:nbytes])
        elif self._stage is not _Stage.IGNORED:
            self._early += self._server.buffer[:nbytes]
            if self._stage is _Stage.HEAD:
                self._server.admission.note_heard(self)
                self._take_head()
            elif len(self._early) > _EARLY_BYTES_MAX:
                self.pause_reading()

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        """Take in bytes from a caller that knows only this method of asyncio.Protocol."""
        buffer = self._server.buffer
        view = memoryview(data)
        for start in range(0, len(view), len(buffer)):
            part = view[start : start + len(buffer)]
            buffer[: len(part)] = part
            self.buffer_updated(len(part))

    def eof_received(self) -> bool:
        """The peer sends no more: let the transport close."""
        if self._stage is _Stage.HEAD:
            self._log_no_request(EOFError("connection closed while reading HTTP request line"))
        elif self._connection.state is OPEN:
            self._connection._note_cause(EOFError("unexpected end of stream"))
        self._stage = _Stage.IGNORED
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed."""
        server = self._server
        server.links.discard(self)
        server.admission.end_opening(self)
        server.clocks.openings.stop(self)
        server.clocks.pings.stop(self)
        server.clocks.pongs.stop(self)
        if self._stage is _Stage.HEAD:
            self._log_no_request(EOFError("connection closed while reading HTTP request line"))
        self._stage = _Stage.IGNORED
        if self._handshake is not None:
            self._handshake.cancel()
        self._connection._lost(exc)

    def pause_writing(self) -> None:
        """More bytes than `write_limit` wait."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Few enough wait."""
        self._is_paused = False
        if self._waits_for_peer:
            self._waits_for_peer = False
            if not self._connection._reads_paused:
                self.resume_reading()
        self._connection._drained()

    # ---- the opening handshake

    def _refuse(self, refusal: HandshakeError) -> None:
        """Refuse a connection that exceeds a limit: send the answer once, without waiting, and close it."""
        self._stage = _Stage.IGNORED
        answer = plain_answer(refusal.status, f"{refusal.body}.\n")
        self._log("connection refused (%d %s: %s)", answer.status, answer.phrase, refusal.reason)
        self._transport.set_protocol(asyncio.Protocol())
        self._transport.write(encode_answer(answer))
        self._transport.close()

    def _take_head(self) -> None:
        early = self._early
        end = early.find(b"\r\n\r\n")
        if (len(early) if end < 0 else end) > self._server.limits.header_bytes_max:
            self._answer(plain_answer(431, "The request's head is too large.\n"))
            return
        if end < 0:
            line, crlf, _ = early.partition(b"\r\n")
            if crlf and is_junk(bytes(line)):
                self._refuse_junk(ValueError("invalid HTTP request line: " + line.decode(errors="backslashreplace")))
            return
        head = bytes(early[: end + 4])
        del early[: end + 4]
        try:
            parsed = parse_head(head, header_count_max=self._server.limits.header_count_max)
        except HandshakeError as error:
            self._answer(plain_answer(error.status, f"{error.body}.\n"))
            return
        except ValueError as error:
            self._refuse_junk(error)
            return
        self._connection._head = head
        rules = self._server.opening
        if rules.has_hooks:
            self._stage = _Stage.HOOKS
            self._handshake = self._server.create_task(self._run_hooks())
        else:
            self._answer(rules.answer(self._connection, parsed), head_only=parsed.method == "HEAD")

    async def _run_hooks(self) -> None:
        answer = await self._server.opening.answer_with_hooks(self._connection)
        self._handshake = None
        if self._stage is _Stage.HOOKS:  # else the peer has left
            request = self._connection.request
            self._answer(answer, head_only=getattr(request, "method", "GET") == "HEAD")

    def _refuse_junk(self, error: ValueError) -> None:
        """End the connection without an answer: its bytes are not an HTTP request."""
        self._log_no_request(error)
        self._stage = _Stage.IGNORED
        self._transport.close()

    def _log(self, text: str, *arguments: object) -> None:
        """Log for the server's operator. A logger of the connection takes 500 bytes: it is not made in vain."""
        if self._server.logger.isEnabledFor(logging.INFO):
            self._connection.logger.info(text, *arguments)

    def _log_no_request(self, error: Exception) -> None:
        if self._server.logger.isEnabledFor(logging.DEBUG):
            self._connection.logger.debug("! no valid HTTP request", exc_info=error)

    def _answer(self, answer: Answer, *, head_only: bool = False) -> None:
        """Send the answer to a request, and go on with frames if it is 101."""
        server = self._server
        server.clocks.openings.stop(self)
        if answer.status == 101 and not server.is_serving():
            answer = plain_answer(503, "Server is shutting down.\n")
        try:
            data = encode_answer(answer, head_only=head_only)
        except ValueError:
            self._connection.logger.exception("the answer to a request cannot be sent")
            answer = plain_answer(500, "Failed to open a WebSocket connection.\n")
            data = encode_answer(answer, head_only=head_only)
        self._connection._answer = data
        if self._connection.deflate is not None and not any(
            name.lower() == "sec-websocket-extensions" for name, _ in answer.fields
        ):
            self._connection.deflate = None  # a hook of the application has taken it out of the answer
        self._transport.write(data)
        if answer.status == 101:
            server.admission.end_opening(self)
            self._log("connection open")
            self._open()
            return
        self._log("connection rejected (%d %s)", answer.status, answer.phrase)
        self._stage = _Stage.IGNORED
        self._half_close()
        if server.close_timeout is not None:
            server.clocks.openings.start(self, server.close_timeout)

    def _open(self) -> None:
        if self._server.ring is not None and self._move(self._server.ring):
            return
        self._stage = _Stage.FRAMES
        connection = self._connection
        self._engine = ServerEngine(
            message_bytes_max=self._server.message_bytes_max or _BYTES_MAX,
            frames=True,
            deflate=connection.deflate,
            deflate_settings=self._server.opening.deflate,
        )
        if connection.ping_interval is not None:
            self._server.clocks.pings.start(self, connection.ping_interval)
        self._server.open_connection(connection)
        if self._is_reading_paused:
            self.resume_reading()
        if self._early:
            early, self._early = self._early, bytearray()
            self.data_received(early)

    def _move(self, ring: Ring) -> bool:
        """Give the connection to the ring; return whether that was possible."""
        transport = self._transport
        if transport.is_closing():
            return False
        transport.pause_reading()
        link = ring.take_over(self._connection, transport, bytes(self._early))
        if link is None:
            transport.resume_reading()
            return False
        self._stage = _Stage.IGNORED
        server, connection = self._server, self._connection
        server.links.discard(self)
        transport.set_protocol(asyncio.Protocol())
        transport.abort()
        connection._link = link
        server.open_connection(connection)
        return True

    def open_timed_out(self) -> None:
        """The opening handshake was not complete within `open_timeout` seconds."""
        self.abort()

    # ---- frames that come in

    def _feed(self, data: AnyBuffer) -> None:
        """Take in bytes, which are overwritten, and deliver the frames that they complete."""
        engine = self._engine
        received = self._connection._received
        fragment_max = self._server.fragment_bytes_max
        while True:
            opcodes, payloads, fins, reply, held = engine.feed(data)
            if reply:
                self._reply(reply)
            for opcode, payload, fin in zip(opcodes, payloads, fins, strict=True):
                if fragment_max is not None and len(payload) > fragment_max and opcode < _CLOSE:
                    self._connection._fail(_TOO_BIG, "a fragment is too big", PayloadTooBig(len(payload), fragment_max))
                    return
                if opcode == _BINARY and fin:
                    received(payload)
                elif opcode == _TEXT and fin:
                    received(payload.decode())
                elif opcode < _CLOSE:
                    received(Fragment(opcode, payload, bool(fin)))
                else:
                    self._take_control(opcode, payload)
            if not held or self._stage is not _Stage.FRAMES:
                return
            data = b""

    def _reply(self, reply: bytes) -> None:
        """Send pongs, or the close frame that answers the peer's. A peer that does not read them is not read from
        either.
        """
        self._transport.write(reply)
        if self._is_paused and self._transport.get_write_buffer_size() > _REPLIES_BYTES_MAX:
            self._waits_for_peer = True
            self.pause_reading()

    def _take_control(self, opcode: int, payload: Any) -> None:
        if opcode == _PONG:
            self._take_pong(payload)
        elif opcode == _CLOSE:
            self._take_close(payload)

    def _take_pong(self, payload: bytes) -> None:
        if self._ping_sent and payload == struct.pack("!d", self._ping_sent):
            self._latency = time.monotonic() - self._ping_sent
            self._ping_sent = 0.0
        self._connection._ponged(payload)

    def _take_close(self, reason: str) -> None:
        """The peer's close frame has come, or it broke the protocol; the engine has answered."""
        engine, connection = self._engine, self._connection
        closing = engine.closing
        assert closing is not None  # noqa: S101 - it has just been told
        if closing.received is not None:
            connection._close_received(closing.received.code, reason)
        else:
            code = engine.close_code or 0
            is_too_big = code == _TOO_BIG
            error = PayloadTooBig(None, self._server.message_bytes_max) if is_too_big else ProtocolError(reason)
            connection._failed(code, reason, error)
        self.end()

    # ---- what a connection calls

    @property
    def transport(self) -> Any:
        """The asyncio transport."""
        return self._transport

    @property
    def latency(self) -> float:
        """Seconds that the last keepalive ping took."""
        return self._latency

    def send(self, message: str | bytes) -> object:
        """See `Link`."""
        if _running_loop() is not self._server.loop:
            raise wrong_thread()
        if self._transport.is_closing():
            raise _peer_lost()
        opcode = _BINARY if type(message) is bytes else _TEXT
        is_plain = self._connection.deflate is None
        self._transport.write(_make_frame(opcode, True, message) if is_plain else self._engine.encode(opcode, message))
        return self._is_paused

    def send_frame(self, opcode: int, payload: AnyBuffer, *, fin: bool = True) -> object:
        """See `Link`."""
        if _running_loop() is not self._server.loop:
            raise wrong_thread()
        if self._transport.is_closing():
            raise _peer_lost()
        is_plain = self._connection.deflate is None or not fin or (opcode != _TEXT and opcode != _BINARY)
        self._transport.write(_make_frame(opcode, fin, payload) if is_plain else self._engine.encode(opcode, payload))
        return self._is_paused

    def is_full(self) -> bool:
        """See `Link`."""
        return self._is_paused

    def close(self, code: int | None, reason: str) -> None:
        """See `Link`."""
        self._transport.write(self._engine.encode_close(code, reason))
        self._server.clocks.pings.stop(self)
        self._server.clocks.pongs.stop(self)

    def end(self) -> None:
        """See `Link`."""
        if self._stage is not _Stage.IGNORED:
            self._stage = _Stage.IGNORED
            self._half_close()

    def _half_close(self) -> None:
        if self._is_reading_paused:
            self.resume_reading()  # to the end of the peer's stream
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
                return
        except (OSError, RuntimeError):  # uvloop raises RuntimeError for a transport that has lost its peer
            pass
        self._transport.close()

    def abort(self) -> None:
        """See `Link`."""
        self._transport.abort()

    def pause_reading(self) -> None:
        """See `Link`."""
        if not self._is_reading_paused and not self._transport.is_closing():
            self._is_reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See `Link`."""
        if self._is_reading_paused:
            self._is_reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # ---- keepalive

    def ping_due(self) -> None:
        """`ping_interval` has passed since the last ping."""
        connection = self._connection
        if connection.state is not OPEN or connection.ping_interval is None:
            return
        self._server.clocks.pings.start(self, connection.ping_interval)
        if self._ping_sent:
            return  # that one's pong is still awaited
        self._ping_sent = time.monotonic()
        self._has_heard = False
        if connection.ping_timeout is not None:
            self._server.clocks.pongs.start(self, connection.ping_timeout)
        try:
            self.send_frame(_PING, struct.pack("!d", self._ping_sent))
        except LinkClosed:
            return
        except (OSError, RuntimeError) as error:
            connection._note_cause(error)
            self.abort()

    def pong_due(self) -> None:
        """`ping_timeout` has passed since a ping. Any byte since then shows that the peer is there."""
        connection = self._connection
        if connection.state is not OPEN or not self._ping_sent:
            return
        if self._has_heard or self._is_reading_paused:
            self._ping_sent = 0.0
            return
        connection._fail(1011, "keepalive ping timeout", TimeoutError("timed out while waiting for keepalive pong"))


def _peer_lost() -> LinkClosed:
    """Return the error of a send on a transport that has lost its peer, and whose `connection_lost` is due.

    Such a transport drops what is written and never pauses: a handler that only sends would never let it be called.
    """
    return LinkClosed("the peer has left")
