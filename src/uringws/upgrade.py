"""Decides on opening requests: the PROXY header, the checks of RFC 6455, plain HTTP, and the handler's answer.

Bytes in and out; the dispatch loop carries the decision out.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from uringws.errors import HandshakeError, ProtocolError, RejectReason
from uringws.handshake import Accept, Reject, check_upgrade, encode_accept, refusal, select_subprotocol
from uringws.http import Peer, Request, Response, encode_refusal, encode_response, parse_request
from uringws.metrics import CONTENT_TYPE, prometheus_text
from uringws.proxy_protocol import parse_proxy_header
from uringws.shim import CData, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.callbacks import Callbacks
    from uringws.core import Core
    from uringws.options import Options
    from uringws.stats import Stats

__all__ = ["Decision", "Upgrade", "Upgrader"]

_ACCEPT = Accept()
_ALLOWED = Response(204, {"Allow": "GET, HEAD, OPTIONS"})  # RFC 9110 9.3.7


@dataclass(slots=True)
class Upgrade:
    """A request's head as the shim found it, valid for this turn."""

    identity: int
    item: CData
    peer: Peer
    handler_called: bool = False


@dataclass(slots=True)
class Decision:
    """The bytes to send, and whether they open a session or end the connection."""

    response: bytes
    accepted: bool = False
    subprotocol: str | None = None
    data: object = None
    reason: RejectReason | None = None
    """Under which `stats()` counts a request that opened no session; None for one that asked for none."""


class Upgrader:
    """Decides on opening requests by the options and the handler's callbacks."""

    def __init__(self, core: Core, options: Options, callbacks: Callbacks, read_stats: Callable[[], Stats]) -> None:
        self._core = core
        self._options = options
        self._callbacks = callbacks
        self._read_stats = read_stats

    def decide(self, upgrade: Upgrade) -> tuple[Decision, BaseException | None]:
        """Decide on a request; return the decision, and what is to be raised once it is carried out.

        The handler may raise a KeyboardInterrupt, and a signal handler may raise any exception anywhere. If the handler
        was called before that, the request is answered 500. If not, the request is decided on again: at once, or, if
        this raises, by the next turn. A bug of this library that prevents any answer raises nothing: it must not end
        the server.
        """
        try:
            return self._decide(upgrade), None
        except BaseException as error:
            if upgrade.handler_called:
                return self._internal_error(), error
            if not isinstance(error, Exception):
                raise
            came_from_elsewhere = error
        try:
            return self._decide(upgrade), came_from_elsewhere
        except Exception as error:  # noqa: BLE001 - reported
            self._core.report(error, "an opening request could not be answered; it is answered 500")
            return self._internal_error(), None

    def _internal_error(self) -> Decision:
        response = encode_refusal(refusal("handler"), server_header=self._options.server_header)
        return Decision(response, reason="handler")

    def _decide(self, upgrade: Upgrade) -> Decision:
        """Decide on a request. An error becomes an answer, 500 for those of the handler."""
        options = self._options
        head_only = False
        try:
            head, peer = self._take_head(upgrade)
            request = parse_request(head, header_count_max=options.header_count_max, peer=peer or upgrade.peer)
            head_only = request.method == "HEAD"
            plain = None if request.is_upgrade else self._answer_plain(upgrade, request)
            if plain is not None:
                return Decision(encode_response(plain, head_only=head_only, server_header=options.server_header))
            key = check_upgrade(request, options)
            return self._ask_handler(upgrade, request, key)
        except HandshakeError as error:
            response = encode_refusal(error, head_only=head_only, server_header=options.server_header)
            return Decision(response, reason=error.reason)

    def _take_head(self, upgrade: Upgrade) -> tuple[bytes, Peer]:
        """Return the request's head, and the peer's address if a trusted PROXY header named one."""
        item = upgrade.item
        if item.error == lib.URS_ERROR_TOO_BIG:
            raise HandshakeError(431, f"the request's head is over {self._options.header_bytes_max} bytes")
        if item.error != 0:
            raise refusal("bad_request")
        head = bytes(ffi.buffer(item.payload, item.bytes))
        if not self._options.proxy_protocol_from:
            return head, None
        host = upgrade.peer[0] if isinstance(upgrade.peer, tuple) else None
        if not self._options.takes_proxy_protocol_from(host):
            self._set_proxied_peer(upgrade.identity, None)
            return head, None
        try:
            header = parse_proxy_header(head)
        except ProtocolError as error:
            raise HandshakeError(400, str(error)) from error
        if isinstance(header, int):
            raise HandshakeError(400, "the PROXY header is cut short")
        source = header.source if isinstance(header.source, tuple) else None
        self._set_proxied_peer(upgrade.identity, source)
        return head[header.header_bytes :], source

    def _set_proxied_peer(self, identity: int, source: tuple[str, int] | None) -> None:
        """Tell the shim, which counts sessions by address, the real address of this one."""
        peer = ffi.NULL
        if source is not None:
            address = ip_address(source[0])
            peer = ffi.new("struct urs_peer *", {"port": source[1], "family": address.version})
            ffi.memmove(peer.address, address.packed, len(address.packed))
        if lib.urs_session_settle_peer(self._core.handle, identity, peer) == lib.URS_ERROR_LIMIT:
            raise refusal("sessions_per_ip_max")

    def _answer_plain(self, upgrade: Upgrade, request: Request) -> Response | None:
        options = self._options
        asks_options = request.method == "OPTIONS"
        if options.metrics_path is not None and request.raw_path == options.metrics_path and not asks_options:
            return Response(200, (("Content-Type", CONTENT_TYPE),), prometheus_text(self._read_stats()))
        on_request: Callable[..., object] | None = self._callbacks.on_request
        try:
            upgrade.handler_called = True
            response = None if on_request is None else on_request(request)
            if response is not None and not isinstance(response, Response):
                raise TypeError(f"on_request returns a Response or None, not {type(response).__name__}")
        except Exception as error:
            self._core.report(error, "on_request for %s failed; it is answered 500", request.target)
            raise refusal("handler") from error
        return _ALLOWED if response is None and asks_options else response

    def _ask_handler(self, upgrade: Upgrade, request: Request, key: bytes) -> Decision:
        options = self._options
        on_upgrade: Callable[..., object] | None = self._callbacks.on_upgrade
        try:
            upgrade.handler_called = True
            returned = None if on_upgrade is None else on_upgrade(request)
            if returned is None:
                supported = options.subprotocols
                returned = Accept(select_subprotocol(request.subprotocols, supported)) if supported else _ACCEPT
            if isinstance(returned, Reject):
                response = encode_response(returned, server_header=options.server_header)
                return Decision(response, reason="handler")
            if not isinstance(returned, Accept):
                raise TypeError(f"on_upgrade returns Accept, Reject or None, not {type(returned).__name__}")
            offered = request.subprotocols if returned.subprotocol is not None else ()
            response = encode_accept(key, returned, offered=offered, server_header=options.server_header)
        except Exception as error:
            self._core.report(error, "on_upgrade for %s failed; it is answered 500", request.target)
            raise refusal("handler") from error
        return Decision(response, accepted=True, subprotocol=returned.subprotocol, data=returned.data)
