"""A connection over an asyncio transport: any event loop, TLS, anything that is no plain socket on our loop.

The transport brings bytes, the shim's engine makes frames of them, and frames to the peer are written as they are: a
server does not mask.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from uringws.asyncio.classes import OPEN, PayloadTooBig, ProtocolError
from uringws.asyncio.decoder import Decoder
from uringws.asyncio.inbox import Fragment
from uringws.asyncio.link import Link, wrong_thread
from uringws.asyncio.opening import encode_answer, is_junk, parse_head, plain_answer
from uringws.errors import HandshakeError
from uringws.frames import Opcode
from uringws.shim import lib

if TYPE_CHECKING:
    from uringws.asyncio.connection import ServerConnection
    from uringws.asyncio.decoder import Frame
    from uringws.asyncio.link import Mode
    from uringws.asyncio.opening import Answer
    from uringws.asyncio.server import Server
    from uringws.frames import AnyBuffer

__all__ = ["TransportLink", "frame_header"]

# Looked up once: an attribute of the module costs as much as a small call.
_running_loop: Final = asyncio.get_running_loop
_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_CLOSE: Final = int(Opcode.CLOSE)
_PING: Final = int(Opcode.PING)
_PONG: Final = int(Opcode.PONG)
_FIN: Final = 0x80
_SHORT_HEADERS: Final = {
    opcode: tuple(bytes((_FIN | opcode, size)) for size in range(126)) for opcode in (_TEXT, _BINARY)
}
"""Of whole messages below 126 bytes, by opcode and size."""
_EARLY_BYTES_MAX: Final = 64 * 1024
"""What a peer may send after its request while a hook of the application still decides on it."""
_JOINED_BYTES_MAX: Final = 16 * 1024
"""Up to this size a copy behind its header costs less than a second write."""
_NO_CODE: Final = 1005
_TOO_BIG: Final = 1009


class _Stage(Enum):
    """What comes in on a link."""

    HEAD = auto()
    """The opening request."""
    HOOKS = auto()
    """Nothing that may be used yet: a hook decides on the request."""
    FRAMES = auto()
    IGNORED = auto()
    """The rest of a stream that has failed, been refused or been closed."""


class TransportLink(Link, asyncio.BufferedProtocol):
    """The asyncio protocol of one connection. See `Link` for what a connection calls."""

    __slots__ = (
        "_connection",
        "_decoder",
        "_early",
        "_handshake",
        "_has_heard",
        "_is_paused",
        "_is_reading_paused",
        "_latency",
        "_missed_ping",
        "_ping_sent",
        "_server",
        "_stage",
        "_transport",
    )

    mode: ClassVar[Mode] = "transport"

    def __init__(self, server: Server, *, is_open: bool = False) -> None:
        """`is_open`: the opening handshake was done elsewhere."""
        self._server = server
        self._connection: ServerConnection = server.new_connection(self)
        self._stage = _Stage.FRAMES if is_open else _Stage.HEAD
        self._decoder: Decoder | None = None
        self._early = bytearray()
        self._handshake: asyncio.Task[None] | None = None
        self._is_paused = False
        self._is_reading_paused = False
        self._has_heard = False
        self._missed_ping: bytes | None = None
        self._ping_sent = 0.0
        self._latency = 0.0

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the opening request, or, where that is done, with frames."""
        self._transport = cast("Any", transport)
        limit = self._connection.write_limit
        high, low = limit if isinstance(limit, tuple) else (limit, None)
        self._transport.set_write_buffer_limits(high, low)
        self._server.links.add(self)
        if self._stage is _Stage.FRAMES:
            self._open()
        elif self._server.open_timeout is not None:
            self._server.clocks.openings.start(self, self._server.open_timeout)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all links of a server share: `buffer_updated` follows at once."""
        return self._server.decoders.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take in what was read."""
        self._has_heard = True
        if self._stage is _Stage.FRAMES:
            self._feed(nbytes)
        elif self._stage is not _Stage.IGNORED:
            self._early += self._server.decoders.buffer[:nbytes]
            if self._stage is _Stage.HEAD:
                self._take_head()
            elif len(self._early) > _EARLY_BYTES_MAX:
                self.pause_reading()

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        """Take in bytes from a caller that knows only this method of asyncio.Protocol."""
        buffer = self._server.decoders.buffer
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
        server.clocks.openings.stop(self)
        server.clocks.pings.stop(self)
        server.clocks.pongs.stop(self)
        if self._stage is _Stage.HEAD:
            self._log_no_request(EOFError("connection closed while reading HTTP request line"))
        self._stage = _Stage.IGNORED
        if self._handshake is not None:
            self._handshake.cancel()
        if self._decoder is not None:
            self._decoder.clear()
        self._connection._lost(exc)

    def pause_writing(self) -> None:
        """More bytes than `write_limit` wait."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Few enough wait."""
        self._is_paused = False
        if self._missed_ping is not None:
            payload, self._missed_ping = self._missed_ping, None
            self.send_frame(_PONG, payload)
        self._connection._drained()

    # ---- the opening handshake

    def _take_head(self) -> None:
        early = self._early
        end = early.find(b"\r\n\r\n")
        if (len(early) if end < 0 else end) > self._server.options.header_bytes_max:
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
            parsed = parse_head(head, header_count_max=self._server.options.header_count_max)
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
        """End the connection without an answer: what came is no HTTP request."""
        self._log_no_request(error)
        self._stage = _Stage.IGNORED
        self._transport.close()

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
        self._transport.write(data)
        if answer.status == 101:
            self._connection.logger.info("connection open")
            self._open()
            return
        self._connection.logger.info("connection rejected (%d %s)", answer.status, answer.phrase)
        self._stage = _Stage.IGNORED
        self._half_close()
        if server.close_timeout is not None:
            server.clocks.openings.start(self, server.close_timeout)

    def _open(self) -> None:
        self._stage = _Stage.FRAMES
        self._decoder = Decoder(self._server.decoders)
        connection = self._connection
        if connection.ping_interval is not None:
            self._server.clocks.pings.start(self, connection.ping_interval)
        self._server.open_connection(connection)
        if self._is_reading_paused:
            self.resume_reading()
        if self._early:
            early, self._early = self._early, bytearray()
            self.data_received(early)

    def open_timed_out(self) -> None:
        """The opening request, or the answer to it, was not there in `open_timeout` seconds."""
        self.abort()

    # ---- frames that come in

    def _feed(self, size: int) -> None:
        assert self._decoder is not None  # noqa: S101 - made with the stage
        for frame in self._decoder.feed(size):
            if frame.kind == lib.URS_ITEM_FRAME:
                self._take_message(frame)
            else:
                self._take_control(frame)
            if self._stage is not _Stage.FRAMES:
                return

    def _take_message(self, frame: Frame) -> None:
        _, opcode, fin, payload, _ = frame
        limit = self._server.fragment_bytes_max
        if limit is not None and len(payload) > limit:
            self._connection._fail(_TOO_BIG, "a fragment is too big", PayloadTooBig(len(payload), limit))
        elif not fin or not opcode:
            self._connection._received(Fragment(opcode, payload, fin))
        else:
            self._connection._received(payload.decode() if opcode == _TEXT else payload)

    def _take_control(self, frame: Frame) -> None:
        connection = self._connection
        if frame.kind == lib.URS_ITEM_PING:
            if self._is_paused:
                self._missed_ping = frame.payload  # RFC 6455 5.5.3: the latest one may stand for all
            elif connection.state is OPEN:
                self.send_frame(_PONG, frame.payload)
        elif frame.kind == lib.URS_ITEM_PONG:
            if self._ping_sent and frame.payload == struct.pack("!d", self._ping_sent):
                self._latency = time.monotonic() - self._ping_sent
                self._ping_sent = 0.0
            connection._ponged(frame.payload)
        elif frame.kind == lib.URS_ITEM_CLOSE:
            if connection._close_received(frame.code, frame.payload.decode()):
                self._write_close(None if frame.code == _NO_CODE else frame.code, frame.payload)
            self.end()
        else:
            text = frame.payload.decode()
            is_too_big = frame.code == _TOO_BIG
            error = PayloadTooBig(None, self._server.message_bytes_max) if is_too_big else ProtocolError(text)
            connection._fail(frame.code, text, error)
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
        if type(message) is bytes:
            payload, opcode = message, _BINARY
        else:
            payload, opcode = message.encode(), _TEXT  # type: ignore[union-attr]
        if _running_loop() is not self._server.loop:
            raise wrong_thread()
        size = len(payload)
        if size < 126:
            self._transport.write(_SHORT_HEADERS[opcode][size] + payload)
        else:
            self._write_long(_FIN | opcode, payload)
        return self._is_paused

    def send_frame(self, opcode: int, payload: AnyBuffer, *, fin: bool = True) -> object:
        """See `Link`."""
        if _running_loop() is not self._server.loop:
            raise wrong_thread()
        self._write_long(opcode | _FIN if fin else opcode, payload)
        return self._is_paused

    def write(self, data: bytes) -> None:
        """Send a frame that is encoded already."""
        self._transport.write(data)

    def _write_long(self, first: int, payload: AnyBuffer) -> None:
        view = memoryview(payload).cast("B")  # type: ignore[arg-type]
        header = frame_header(first, len(view))
        if len(view) <= _JOINED_BYTES_MAX:
            self._transport.write(header + view)
        else:
            self._transport.write(header)
            # A transport keeps what it cannot send at once, and may keep it as it is.
            self._transport.write(view if isinstance(payload, bytes) else bytes(view))

    def is_full(self) -> bool:
        """See `Link`."""
        return self._is_paused

    def close(self, code: int | None, reason: str) -> None:
        """See `Link`."""
        self._write_close(code, reason.encode())

    def _write_close(self, code: int | None, reason: bytes) -> None:
        payload = b"" if code is None else struct.pack("!H", code) + reason
        self._transport.write(frame_header(_FIN | _CLOSE, len(payload)) + payload)
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


def frame_header(first: int, size: int) -> bytes:
    """Return the header of a frame that is not masked (RFC 6455 5.2): its first byte and its payload's size."""
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)
