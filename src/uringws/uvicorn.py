"""WebSockets for uvicorn: `uvicorn app:app --ws uringws.uvicorn:WebSocketProtocol`. uvicorn goes on to serve HTTP.

asgi.py has the messages of ASGI, links.py moves the bytes.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
import weakref
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.logging import TRACE_LOG_LEVEL
from uvicorn.protocols.utils import (
    ClientDisconnected,
    get_client_addr,
    get_local_addr,
    get_path_with_query_string,
    get_remote_addr,
    is_ssl,
)

from uringws.asgi import (
    Denial,
    Event,
    check_type,
    encode_accepted,
    encode_denied,
    encode_error,
    payload_of,
    scope_of,
)
from uringws.errors import ConnectionClosed, HandshakeError, LimitReached
from uringws.extensions import negotiate
from uringws.frames import CloseCode
from uringws.handshake import check_upgrade
from uringws.http import parse_request
from uringws.links import DEFLATE, RingLink, RingRules, TransportLink, reactor_for, ring_rules
from uringws.options import Options

if TYPE_CHECKING:
    from asyncio.transports import BaseTransport

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from uringws.extensions import DeflateTerms
    from uringws.links import Mode
    from uringws.reactor import Reactor

__all__ = ["WebSocketProtocol"]

_EARLY_BYTES_MAX: Final = 64 * 1024
"""The most bytes that are kept from a client that sends before it is accepted, which RFC 6455 4.1 forbids."""
_OPTIONS: Final = Options()
_rules: Final[weakref.WeakKeyDictionary[Reactor, weakref.WeakKeyDictionary[Config, RingRules]]] = (
    weakref.WeakKeyDictionary()
)


class _Phase(Enum):
    """Where a connection is, named by what it awaits."""

    REQUEST = auto()
    """The opening request, which uvicorn hands over."""
    DECISION = auto()
    """The application's accept, close or denial."""
    DENIAL = auto()
    """The rest of a denial response."""
    OPEN = auto()
    """Messages."""
    CLOSE = auto()
    """The peer's close frame, which answers ours."""
    END = auto()
    """The end of the transport: no more frames are sent."""
    LOST = auto()
    """Nothing: the transport is gone."""


class WebSocketProtocol(asyncio.Protocol):
    """The WebSocket side of a uvicorn connection, in the place of uvicorn's own.

    It keeps ASGI 2.4 (specs/www.rst, and the extension `websocket.http.response`) and heeds uvicorn's settings
    `ws_max_size`, `ws_max_queue`, `ws_ping_interval`, `ws_ping_timeout`, `root_path`, `reset_contextvars` and those of
    headers and logs, and `ws_per_message_deflate`. `send` waits while the peer does not read, and raises an
    OSError once it has left. Reading stops while the application does not take its messages.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Only uvicorn makes them, one for each connection that asks for a WebSocket."""
        if not config.loaded:
            config.load()
        self.config = config
        self.loop = _loop or asyncio.get_event_loop()
        self.logger = logging.getLogger("uvicorn.error")
        self.connections: set[Any] = server_state.connections
        self.tasks = server_state.tasks
        self.default_headers = server_state.default_headers
        self.app_state = app_state
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.server: tuple[str, int | None] | None = None
        self.client: tuple[str, int] | None = None
        self.scope: Event = {}
        self.close_timeout = 10.0
        self.close_timer: asyncio.TimerHandle | None = None
        self.ping_timer: asyncio.TimerHandle | None = None
        self.ping_sent_at = 0.0

        self._phase = _Phase.REQUEST
        self._key = b""
        self._deflate: DeflateTerms | None = None
        self._early = bytearray()  # came before the application had accepted
        self._link: TransportLink | RingLink = cast("TransportLink", None)  # from the accept on
        self._denial: Denial | None = None
        self._ping_payload: bytes | None = None  # of the ping whose pong is awaited
        self._events: deque[Event] = deque()
        self._disconnect: Event | None = None
        self._disconnect_delivered = False  # the application has taken the disconnect
        self._closed_by_app = False
        self._receivers: deque[asyncio.Future[Event]] = deque()
        self._senders: list[asyncio.Future[None]] = []
        self._write_paused = False

    @property
    def mode(self) -> Mode | None:
        """Whether the connection is "ring" or "transport"; None before the application has accepted it."""
        return None if self._link is None else self._link.mode

    # ---- what uvicorn and the transport call

    def connection_made(self, transport: BaseTransport) -> None:
        """Take over the transport of an HTTP connection."""
        self.transport = cast("asyncio.Transport", transport)
        self.server = get_local_addr(self.transport)
        self.client = get_remote_addr(self.transport)
        self.connections.add(self)
        self._trace("WebSocket connection made")

    def data_received(self, data: bytes) -> None:
        """Take the head of the opening request, and then what the peer sends."""
        link = self._link
        if type(link) is TransportLink:
            link.feed(data)
        elif self._phase is _Phase.REQUEST:
            self._take_request(data)
        elif self._phase is _Phase.DECISION:
            self._early += data
            if len(self._early) > _EARLY_BYTES_MAX:
                self.transport.pause_reading()

    def eof_received(self) -> None:
        """Let the transport close itself: a peer that half-closes has left."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, unless it knows, and free those that wait."""
        self._stop_timers()
        if self._link is not None:
            self._link.take_rest()
        self._phase = _Phase.LOST
        self._end_events(CloseCode.ABNORMAL)
        self.connections.discard(self)
        self._trace("WebSocket connection lost")
        self.resume_writing()
        if exc is None:
            self.transport.close()

    def pause_writing(self) -> None:
        """Make senders wait: the peer does not read."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Let senders continue."""
        self._write_paused = False
        senders, self._senders = self._senders, []
        for sender in senders:
            if not sender.done():
                sender.set_result(None)

    def shutdown(self) -> None:
        """End the connection, since the server ends: 1012, or 500 where the application has not accepted yet."""
        if self._phase is _Phase.OPEN:
            self._end_events(CloseCode.SERVICE_RESTART)
            self._close(CloseCode.SERVICE_RESTART, "")
            return
        self._stop_timers()
        if self._phase is _Phase.DECISION:
            self.transport.write(encode_denied(500, b"Internal Server Error", self.default_headers))
        if self._phase is not _Phase.LOST:
            self._phase = _Phase.END
            self.transport.close()

    # ---- the opening

    def _take_request(self, data: bytes) -> None:
        head, separator, early = data.partition(b"\r\n\r\n")
        head, self._early = head + separator, bytearray(early)
        try:
            request = parse_request(head, header_count_max=head.count(b"\n"))
            self._key = check_upgrade(request, _OPTIONS)
            if self.config.ws_per_message_deflate:
                self._deflate = negotiate(request.headers.values_of(b"sec-websocket-extensions"), DEFLATE)
        except HandshakeError as error:
            self._phase = _Phase.END
            self.transport.write(encode_error(error, self.default_headers))
            self.transport.close()
            return
        self._phase = _Phase.DECISION
        self.scope = scope_of(
            request,
            asgi={"version": self.config.asgi_version, "spec_version": "2.4"},
            scheme="wss" if is_ssl(self.transport) else "ws",
            server=self.server,
            client=self.client,
            root_path=self.config.root_path,
            state=self.app_state.copy(),
        )
        self._add_event({"type": "websocket.connect"})
        context = contextvars.Context() if getattr(self.config, "reset_contextvars", False) else None
        task = self.loop.create_task(self._run_app(), context=context)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    async def _run_app(self) -> None:
        try:
            result = await self.config.loaded_app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException:  # a cancelled application has failed, too
            self.logger.exception("Exception in ASGI application\n")
        else:
            if self._phase is _Phase.DECISION:
                self.logger.error("ASGI callable returned without completing handshake.")
            elif result is not None:
                self.logger.error("ASGI callable should return None, but returned '%s'.", result)
        self._app_ended()

    def _app_ended(self) -> None:
        """Finish what the application has left open."""
        if self._phase is _Phase.DECISION:
            self.transport.write(encode_denied(500, b"Internal Server Error", self.default_headers))
        elif self._phase is _Phase.DENIAL and self._denial is not None:
            self.transport.write(self._denial.finish())
        elif self._phase is not _Phase.OPEN:
            return  # it ends already
        self._end(lingers=self._phase is _Phase.OPEN)

    def _accept(self, message: Event) -> None:
        answer = encode_accepted(self._key, message, self.default_headers, self._deflate)
        self._log("[accepted]")
        if self.transport.is_closing():
            return
        self.transport.write(answer)
        self._phase = _Phase.OPEN
        reactor = reactor_for(self.loop, self.transport)
        if reactor is None:
            self._open_on_transport()
        else:
            self._open_on_ring(reactor)
        if self._phase is _Phase.OPEN:
            self._start_keepalive()

    def _open_on_transport(self) -> None:
        message_bytes_max = self.config.ws_max_size
        self._link = TransportLink(self, self.transport, message_bytes_max=message_bytes_max, deflate=self._deflate)
        early, self._early = self._early, bytearray()
        if early:
            if len(early) > _EARLY_BYTES_MAX:
                self.transport.resume_reading()
            self._link.feed(early)

    def _open_on_ring(self, reactor: Reactor) -> None:
        known = _rules.setdefault(reactor, weakref.WeakKeyDictionary())
        rules = known.get(self.config)
        if rules is None:
            rules = known[self.config] = ring_rules(
                reactor, message_bytes_max=self.config.ws_max_size, close_seconds=self.close_timeout
            )
        transport = self.transport
        self._link = self.transport = RingLink(self, transport, waiting_max=self.config.ws_max_queue)
        try:
            self._link.take(reactor, transport, bytes(self._early), rules, deflate=self._deflate)
        except (OSError, LimitReached) as error:
            self.connection_lost(error)
        self._early.clear()

    def _deny(self, message: Event) -> None:
        """Begin a denial response, or send the one that a close stands for."""
        if message["type"] == "websocket.http.response.start":
            self._denial = Denial(message, self.default_headers)
            self._log(str(self._denial.status))
            self._phase = _Phase.DENIAL
            return
        self._log("403")
        self._end_events(CloseCode.ABNORMAL)
        self.transport.write(encode_denied(403, b"", self.default_headers))
        self._end()

    def _go_on_denying(self, message: Event) -> None:
        check_type(message, "websocket.http.response.body")
        denial = cast("Denial", self._denial)
        self.transport.write(denial.add(message))
        if denial.is_complete:
            self._end_events(CloseCode.ABNORMAL)
            self._end()

    # ---- what the application calls

    async def receive(self) -> Event:
        """Return the next event, waiting for it; once the connection has ended, its disconnect, each time."""
        if self._events:
            event = self._events.popleft()
            if not self._events and self._link is not None:
                self._link.resume()
        else:
            event = self._disconnect or await self._next_event()
        if event is self._disconnect:
            self._disconnect_delivered = True
        return event

    async def _next_event(self) -> Event:
        receiver: asyncio.Future[Event] = self.loop.create_future()
        self._receivers.append(receiver)
        try:
            return await receiver
        except asyncio.CancelledError:
            if not receiver.cancelled() and receiver.result() is not self._disconnect:
                self._events.appendleft(receiver.result())  # it was given an event, which must not be lost
                self._hand_over()
            raise

    async def send(self, message: Event) -> None:
        """Carry out a message of the application, waiting while the peer does not read.

        Raises ClientDisconnected (an OSError) once the peer has left, RuntimeError for what may not come now.
        """
        while self._write_paused or (self._phase is _Phase.OPEN and self.transport.is_closing()):
            await self._until_writable()  # where the transport is closing, until it is lost
        if self._phase is _Phase.OPEN and message["type"] == "websocket.send":
            payload = payload_of(message)
            try:
                self._link.send(payload)
            except ConnectionClosed:  # the peer's close frame has come in, and is not handled yet
                raise ClientDisconnected("the client has left") from None
        else:
            self._carry_out(message)

    async def _until_writable(self) -> None:
        sender = self.loop.create_future()
        self._senders.append(sender)
        try:
            await sender
        finally:
            if sender in self._senders:
                self._senders.remove(sender)

    def _carry_out(self, message: Event) -> None:
        """Carry out all but a message on an open connection."""
        if self._phase is _Phase.LOST or self._phase is _Phase.END:
            self._refuse(message)
        elif self._phase is _Phase.DECISION:
            expected = ("websocket.accept", "websocket.close", "websocket.http.response.start")
            if check_type(message, *expected) == "websocket.accept":
                self._accept(message)
            else:
                self._deny(message)
        elif self._phase is _Phase.DENIAL:
            self._go_on_denying(message)
        elif self._phase is _Phase.OPEN:
            check_type(message, "websocket.send", "websocket.close")
            code, reason = message.get("code", CloseCode.NORMAL), message.get("reason") or ""
            self._close(code, reason)
            self._end_events(code, reason)
            self._closed_by_app = True
        elif not self._closed_by_app:
            self._refuse(message)
        else:
            raise RuntimeError(f"Unexpected ASGI message '{message['type']}', after sending 'websocket.close'.")

    def _refuse(self, message: Event) -> None:
        """Raise, since the peer has left. A close that crosses the close of the peer is not an error: the connection is
        closed, as requested.
        """
        if message["type"] == "websocket.close" and not self._disconnect_delivered:
            return
        raise ClientDisconnected("the client has left")

    # ---- what the link calls

    def on_text(self, text: str) -> None:
        """Queue a text message for the application."""
        if self._phase is _Phase.OPEN:
            self._add_event({"type": "websocket.receive", "text": text})

    def on_bytes(self, data: bytes) -> None:
        """Queue a binary message for the application."""
        if self._phase is _Phase.OPEN:
            self._add_event({"type": "websocket.receive", "bytes": data})

    def waiting_count(self) -> int:
        """Return how many events wait for the application, on a connection that is open."""
        return len(self._events) if self._phase is _Phase.OPEN else 0

    def on_closed(self, code: int, reason: str, *, failed: bool) -> None:
        """Tell the application, and close the transport."""
        self._end_events(code, reason)
        self._end(lingers=failed)

    def _add_event(self, event: Event) -> None:
        self._events.append(event)
        if self._receivers:
            self._hand_over()

    def _hand_over(self) -> None:
        """Give events to those that wait for one; a receiver that was cancelled may still stand among them."""
        while self._events and self._receivers:
            receiver = self._receivers.popleft()
            if not receiver.done():
                receiver.set_result(self._events.popleft())

    def _end_events(self, code: int, reason: str | None = None) -> None:
        """Make the disconnect the last event, once. Without a reason there is no such key."""
        if self._disconnect is not None:
            return
        self._disconnect = {"type": "websocket.disconnect", "code": int(code)}
        if reason is not None:
            self._disconnect["reason"] = reason
        for receiver in self._receivers:
            if not receiver.done():
                receiver.set_result(self._disconnect)
        self._receivers.clear()

    # ---- the end

    def _close(self, code: int, reason: str) -> None:
        """Send a close frame, and wait for the peer's for at most `close_timeout` seconds."""
        link = self._link
        try:
            link.send_close(code, reason)
        except ConnectionClosed:
            return
        self._stop_timers()
        self._phase = _Phase.CLOSE
        self.close_timer = self.loop.call_later(self.close_timeout, self._end)
        link.resume()  # the peer's close frame comes after the messages that the application does not take

    def _end(self, *, lingers: bool = False) -> None:
        """Close the transport; `lingers` waits until the peer has, so that it reads all that was sent."""
        self._stop_timers()
        if self._phase is _Phase.LOST:
            return
        self._phase = _Phase.END
        if lingers and self._link.end_after_peer():
            self.close_timer = self.loop.call_later(self.close_timeout, self._end)
        else:
            self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self.close_timer, self.ping_timer):
            if timer is not None:
                timer.cancel()
        self.close_timer = self.ping_timer = None
        self._ping_payload = None

    # ---- keepalive

    def _start_keepalive(self) -> None:
        if self.config.ws_ping_interval:
            self.ping_timer = self.loop.call_later(self.config.ws_ping_interval, self._ping)

    def _ping(self) -> None:
        self._ping_payload = secrets.token_bytes(4)
        self.ping_sent_at = self.loop.time()
        try:
            self._link.ping(self._ping_payload)
        except ConnectionClosed:
            return
        if self.config.ws_ping_timeout is None:
            self._start_keepalive()
        else:
            self.ping_timer = self.loop.call_later(self.config.ws_ping_timeout, self._ping_unanswered)

    def on_pong(self, payload: bytes) -> None:
        """Send the next ping an interval after the one that this answers."""
        if payload == self._ping_payload and self.config.ws_ping_timeout is not None and self.ping_timer is not None:
            self._ping_payload = None
            self.ping_timer.cancel()
            due = self.ping_sent_at + (self.config.ws_ping_interval or 0.0)
            self.ping_timer = self.loop.call_at(due, self._ping)

    def _ping_unanswered(self) -> None:
        self.ping_timer = None
        self._trace("WebSocket keepalive ping timeout")
        self._end_events(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
        self._close(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
        self._end()  # a peer that does not answer a ping does not answer a close frame either

    # ---- logs

    def _trace(self, text: str) -> None:
        if self.logger.level <= TRACE_LOG_LEVEL:
            client = self.client
            self.logger.log(TRACE_LOG_LEVEL, "%s%s", f"{client[0]}:{client[1]} - " if client else "", text)

    def _log(self, outcome: str) -> None:
        scope = cast("Any", self.scope)
        self.logger.info('%s - "WebSocket %s" %s', get_client_addr(scope), get_path_with_query_string(scope), outcome)
