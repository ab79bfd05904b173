"""The attributes of a connection, as `websockets` has them. No changes of state here."""

from __future__ import annotations

import uuid
import weakref
from logging import LoggerAdapter
from typing import TYPE_CHECKING, Any, Final

from uringws.asyncio.classes import CLOSED
from uringws.asyncio.facades import ProtocolFacade
from uringws.asyncio.opening import make_request, parse_head, parse_response, plain_answer, to_response
from uringws.errors import ReactorStateError

if TYPE_CHECKING:
    import asyncio

    from uringws.asyncio.classes import Request, Response, State
    from uringws.asyncio.ending import Ending
    from uringws.asyncio.link import Link, Mode
    from uringws.asyncio.server import Server
    from uringws.asyncio.waiters import Waiter
    from uringws.connection import Connection
    from uringws.extensions import DeflateTerms

    Logger = LoggerAdapter[Any]

__all__ = ["Attributes"]

_HEADERS_MAX: Final = 1_000_000  # the head was parsed once already


class Attributes:
    """The base of `ServerConnection`."""

    subprotocol: str | None = None
    """The subprotocol that the opening handshake agreed on; None for none."""
    deflate: DeflateTerms | None = None
    """The terms of permessage-deflate that it agreed on; None if messages are not compressed."""
    username: str
    """The user that `basic_auth` has let in."""
    handler: Any
    handler_kwargs: Any
    """The values that `route` took from the request's path."""
    server: Server
    """The server that the connection belongs to."""

    _link: Link
    _state: State
    _waiter: Waiter
    # Class attributes as defaults: most connections never change them, so the objects need no memory for them.
    _ending: Ending | None = None
    _head: bytes = b""
    _answer: bytes = b""
    _request: Request | None = None
    _response: Response | None = None
    _id: uuid.UUID | None = None
    _logger: Logger | None = None
    _latency: float = 0.0

    @property
    def mode(self) -> Mode:
        """Where the connection's bytes go: "ring" on the loop of `uringws.asyncio`, else "transport"."""
        return self._link.mode

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the connection belongs to."""
        return self._waiter.get_loop()

    @property
    def id(self) -> uuid.UUID:
        """A unique number of the connection, for logs."""
        if self._id is None:
            self._id = uuid.uuid4()
        return self._id

    @property
    def logger(self) -> Logger:
        """The server's logger, whose records have the connection as their attribute `websocket`."""
        if self._logger is None:
            self._logger = LoggerAdapter(self.server.logger, {"websocket": weakref.proxy(self)})
        return self._logger

    @property
    def transport(self) -> Any:
        """The asyncio transport; on the ring an object with those of its methods that make sense there."""
        return self._link.transport

    @property
    def protocol(self) -> ProtocolFacade:
        """The attributes of `websockets`' sans-I/O protocol object: `state`, `extensions`, `close_code` and so on."""
        return ProtocolFacade(self)

    @property
    def ring_connection(self) -> Connection:
        """The connection of the loop's reactor that this one is, for topics: `topic.add(websocket)` takes either.

        Raises ReactorStateError for one whose bytes go over a transport (`mode` says so), or before it is open.
        """
        connection: Connection | None = getattr(self._link, "_conn", None)
        if connection is None:
            raise ReactorStateError(
                "the connection is not on the ring of an event loop of uringws: topics need the loop of "
                "uringws.asyncio.run, and a connection without TLS"
            )
        return connection

    @property
    def local_address(self) -> Any:
        """This side's address as socket.getsockname returns it."""
        return self.transport.get_extra_info("sockname")

    @property
    def remote_address(self) -> Any:
        """The peer's address as socket.getpeername returns it."""
        return self.transport.get_extra_info("peername")

    @property
    def latency(self) -> float:
        """Seconds that the last ping took to its pong; 0.0 before the first pong."""
        return self._latency or self._link.latency

    @property
    def state(self) -> State:
        """CONNECTING, OPEN, CLOSING or CLOSED. It is better to call `recv` or `send` and handle ConnectionClosed."""
        return self._state

    @property
    def close_code(self) -> int | None:
        """The peer's close code (1005: its frame had none; 1006: no frame came); None until all is closed."""
        if self._state is not CLOSED:
            return None
        received = self._ending.received if self._ending is not None else None
        return 1006 if received is None else int(received.code)

    @property
    def close_reason(self) -> str | None:
        """The peer's close reason; None until the connection is closed."""
        if self._state is not CLOSED:
            return None
        received = self._ending.received if self._ending is not None else None
        return "" if received is None else received.reason

    @property
    def request(self) -> Request | None:
        """The opening request; None before it has come."""
        if self._request is None and self._head:
            self._request = make_request(parse_head(self._head, header_count_max=_HEADERS_MAX))
            self._head = b""
        return self._request

    @property
    def response(self) -> Response | None:
        """The answer to the opening request; None before it is made."""
        if self._response is None and self._answer:
            self._response = parse_response(self._answer)
            self._answer = b""
        return self._response

    @response.setter
    def response(self, response: Response | None) -> None:
        self._response = response

    def __repr__(self) -> str:
        """Name it for a log."""
        return f"<{type(self).__name__} {self._link.mode} {self._state.name}>"

    def respond(self, status: int, text: str) -> Response:
        """Return a plain text answer, for `process_request` or `process_response` to return; its headers may change."""
        return to_response(plain_answer(status, text))
