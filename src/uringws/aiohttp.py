"""WebSockets for aiohttp: `WebSocketResponse` in the place of aiohttp's own. aiohttp goes on to serve HTTP.

links.py moves the bytes; everything that the application sees is aiohttp's own class.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import ClientConnectionResetError, WebSocketError, WSMessage, WSMsgType, web
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.helpers import set_exception

from uringws.errors import ConnectionClosed, LimitReached
from uringws.links import RingLink, RingRules, reactor_for, ring_rules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import WebSocketWriter
    from aiohttp.web_protocol import RequestHandler

    from uringws.links import Mode
    from uringws.reactor import Reactor

__all__ = ["WebSocketResponse"]

_QUEUE_BYTES: Final = 64 * 1024  # aiohttp's own limit: the queue takes twice as much before reading stops
_CLOSED_SECONDS_MAX: Final = 10.0
_NO_LIMIT: Final = 2**31 - 1
_rules: Final[weakref.WeakKeyDictionary[Reactor, dict[tuple[int, float], RingRules]]] = weakref.WeakKeyDictionary()


class WebSocketResponse(web.WebSocketResponse):
    """aiohttp's `WebSocketResponse`, whose connection moves onto the ring of our event loop.

    Its methods, messages, exceptions and close codes are those of aiohttp. A connection stays with aiohttp's transport
    (`mode` says so) on any other event loop, under TLS, and where `compress=True`, `autoping=False` or
    `decode_text=False` asks for what the ring does not have. Unlike aiohttp's, `compress` is False unless given.
    """

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        receive_timeout: float | None = None,
        autoclose: bool = True,
        autoping: bool = True,
        heartbeat: float | None = None,
        protocols: Iterable[str] = (),
        compress: bool = False,
        max_msg_size: int = 4 * 1024 * 1024,
        **more: Any,
    ) -> None:
        """Take the arguments of aiohttp's class."""
        super().__init__(
            timeout=timeout,
            receive_timeout=receive_timeout,
            autoclose=autoclose,
            autoping=autoping,
            heartbeat=heartbeat,
            protocols=protocols,
            compress=compress,
            max_msg_size=max_msg_size,
            **more,
        )
        self._mode: Mode | None = None

    @property
    def mode(self) -> Mode | None:
        """Whether the connection is "ring" or "transport"; None before `prepare`."""
        return self._mode

    def _post_start(self, request: web.BaseRequest, protocol: str | None, writer: WebSocketWriter) -> None:
        """Called by `prepare` once the 101 answer is written: begin to take frames."""
        handler = request.protocol
        transport = handler.transport
        reactor = None
        if transport is not None and self._autoping and self._decode_text and not self._compress:
            reactor = reactor_for(asyncio.get_running_loop(), transport)
        if reactor is None or transport is None:
            self._mode = "transport"
            super()._post_start(request, protocol, writer)
            return
        self._mode = "ring"
        self._ws_protocol = protocol
        self._reader = WebSocketDataQueue(handler, _QUEUE_BYTES, loop=asyncio.get_running_loop())
        link = _Link(_Owner(self, handler, self._reader), transport)
        self._writer = cast("WebSocketWriter", _Writer(handler, request.writer, link))
        leftover = _Leftover()
        handler.set_parser(cast("Any", leftover))
        handler.keep_alive(False)
        handler.transport = link
        try:
            link.take(reactor, transport, bytes(leftover), self._ring_rules(reactor))
        except (OSError, LimitReached) as error:
            handler.connection_lost(error)
            raise ClientConnectionResetError("the connection cannot be moved onto the ring") from error
        self._reset_heartbeat()

    def _ring_rules(self, reactor: Reactor) -> RingRules:
        known = _rules.setdefault(reactor, {})
        key = (self._max_msg_size or _NO_LIMIT, self._timeout)
        if key not in known:
            known[key] = ring_rules(reactor, message_bytes_max=key[0], close_seconds=key[1])
        return known[key]

    def _note_input(self) -> None:
        """Any message or pong of the peer shows that it is alive."""
        if self._heartbeat is not None:
            self._on_data_received()


class _Leftover(bytearray):
    """Takes the place of aiohttp's parser of frames, and keeps the bytes that were read after the request."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Keep bytes. False: more may come."""
        self.extend(data)
        return False, b""

    def feed_eof(self) -> None:
        """Do nothing: the link reports the end."""


class _Link(RingLink):
    """The link, which tells its owner when aiohttp closes it."""

    def __init__(self, owner: _Owner, transport: asyncio.Transport) -> None:
        super().__init__(owner, transport, waiting_max=1)
        self._end_handler = owner.end_handler

    def close(self) -> None:
        """End the connection after the queued bytes have been sent."""
        super().close()
        self._end_handler()


class _Owner:
    """Puts the messages of a link into the queue from which the response reads."""

    __slots__ = ("_handler", "_is_closed", "_is_lost", "_queue", "_response")

    def __init__(self, response: WebSocketResponse, handler: RequestHandler, queue: WebSocketDataQueue) -> None:
        self._response = response
        self._handler = handler
        self._queue = queue
        self._is_closed = False
        self._is_lost = False

    def on_text(self, text: str) -> None:
        """Take a text message."""
        self._queue.feed_data(WSMessage(WSMsgType.TEXT, text, ""), len(text))
        self._response._note_input()

    def on_bytes(self, data: bytes) -> None:
        """Take a binary message."""
        self._queue.feed_data(WSMessage(WSMsgType.BINARY, data, ""), len(data))
        self._response._note_input()

    def on_pong(self, payload: bytes) -> None:
        """Take a pong: aiohttp gives none to the application."""
        self._response._note_input()

    def on_closed(self, code: int, reason: str, *, failed: bool) -> None:
        """Take the peer's close frame, or its violation."""
        self._is_closed = True
        if failed:
            set_exception(cast("Any", self._queue), WebSocketError(code, reason))
        else:
            self._queue.feed_data(WSMessage(WSMsgType.CLOSE, code, reason), 0)

    def waiting_count(self) -> int:
        """Return 0: the queue itself pauses reading, by its bytes."""
        return 0

    def pause_writing(self) -> None:
        """Hold back senders."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Let senders continue."""
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the queue, and tell aiohttp's server: after a close frame, once the application has seen that.

        The server may cancel the application when it is told.
        """
        self._is_lost = True
        if self._queue.exception() is None:
            self._queue.feed_eof()
        if self._is_closed:
            asyncio.get_running_loop().call_later(_CLOSED_SECONDS_MAX, self._handler.connection_lost, exc)
        else:
            self._handler.connection_lost(exc)

    def end_handler(self) -> None:
        """Tell aiohttp's server that the connection is lost: aiohttp has closed its transport."""
        if self._is_lost:
            asyncio.get_running_loop().call_soon(self._handler.connection_lost, None)


class _Writer:
    """The part of aiohttp's `WebSocketWriter` that a response uses, on a link."""

    def __init__(self, protocol: RequestHandler, payload_writer: AbstractStreamWriter, link: RingLink) -> None:
        self.protocol = protocol
        self._payload_writer = payload_writer
        self.transport = link
        self.compress = 0
        self._is_closing = False

    async def send_frame(self, message: bytes, opcode: int, compress: int | None = None) -> None:
        """Send a frame, and wait while the peer does not read. Nothing is compressed."""
        if self._is_closing:
            raise ClientConnectionResetError("Cannot write to closing transport")
        try:
            self.transport.send_frame(opcode, message)
        except ConnectionClosed:
            raise ClientConnectionResetError("Cannot write to closing transport") from None
        if self.protocol.writing_paused:
            await self._payload_writer.drain()

    async def close(self, code: int = 1000, message: bytes | str = b"") -> None:
        """Send a close frame, unless the peer's has been answered."""
        if self._is_closing:
            return
        self._is_closing = True
        reason = message if isinstance(message, str) else message.decode(errors="replace")
        with contextlib.suppress(ConnectionClosed):
            self.transport.send_close(code, reason)
