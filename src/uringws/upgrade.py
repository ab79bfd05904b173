"""How an opening request is answered: limits, the PROXY header, plain HTTP, the handler's verdict.

Bytes in and out; the reactor carries the answer out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from uringws.errors import HandshakeError, ProtocolError, RejectReason
from uringws.handshake import Accept, Reject, check_upgrade, encode_accept, refusal, select_subprotocol
from uringws.http import Peer, Request, Response, encode_refusal, encode_response, parse_request
from uringws.metrics import CONTENT_TYPE, prometheus_text
from uringws.proxy_protocol import parse_proxy_header
from uringws.shim import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.reactor import Reactor

__all__ = ["Answer", "Upgrade", "answer_or_500"]

logger = logging.getLogger("uringws")

_ACCEPT = Accept()
_ALLOWED = Response(204, {"Allow": "GET, HEAD, OPTIONS"})  # RFC 9110 9.3.7


@dataclass(slots=True)
class Upgrade:
    """A request's head as the shim found it, valid for this turn."""

    identity: int
    item: Any
    peer: Peer
    asked: bool = False
    """Whether the handler was asked."""


@dataclass(slots=True)
class Answer:
    """The bytes to send, and whether they open a session or end the connection."""

    response: bytes
    accepted: bool = False
    subprotocol: str | None = None
    data: object = None
    reason: RejectReason | None = None
    """Under which `stats()` counts a request that opened no session; None for one that asked for none."""


def answer_or_500(reactor: Reactor, upgrade: Upgrade) -> tuple[Answer, BaseException | None]:
    """Decide on a request, and return what is to be raised once it is answered.

    What is no error (KeyboardInterrupt) may come out of the handler, and a signal handler may raise anything anywhere.
    A request whose handler was asked is answered 500 then; one whose handler was not is as good as before, and is
    answered as ever, or handed over again by the exception that gets out of here. A request that cannot be answered at
    all, for a fault of this library's, raises nothing: it must not end the server.
    """
    try:
        return answer_upgrade(reactor, upgrade), None
    except BaseException as error:
        if upgrade.asked:
            return _internal_error(reactor), error
        if not isinstance(error, Exception):
            raise
        came_from_elsewhere = error
    try:
        return answer_upgrade(reactor, upgrade), came_from_elsewhere
    except Exception:
        logger.exception("an opening request could not be answered; it is answered 500")
        return _internal_error(reactor), None


def _internal_error(reactor: Reactor) -> Answer:
    return Answer(encode_refusal(refusal("handler"), server_header=reactor.options.server_header), reason="handler")


def answer_upgrade(reactor: Reactor, upgrade: Upgrade) -> Answer:
    """Decide on a request. Errors are answers too, 500 for those of the handler."""
    options = reactor.options
    head_only = False
    try:
        head, peer = _take_head(reactor, upgrade)
        request = parse_request(head, header_count_max=options.header_count_max, peer=peer or upgrade.peer)
        head_only = request.method == "HEAD"
        plain = None if request.is_upgrade else _answer_plain(reactor, upgrade, request)
        if plain is not None:
            return Answer(encode_response(plain, head_only=head_only, server_header=options.server_header))
        key = check_upgrade(request, options)
        return _ask_handler(reactor, upgrade, request, key)
    except HandshakeError as error:
        response = encode_refusal(error, head_only=head_only, server_header=options.server_header)
        return Answer(response, reason=error.reason)


def _take_head(reactor: Reactor, upgrade: Upgrade) -> tuple[bytes, Peer]:
    """Return the request's head, and the peer's address if a trusted PROXY header named one."""
    item = upgrade.item
    if item.error == lib.URS_ERROR_TOO_BIG:
        raise HandshakeError(431, f"the request's head is over {reactor.options.header_bytes_max} bytes")
    if item.error != 0:
        raise refusal("bad_request")
    head = bytes(ffi.buffer(item.payload, item.bytes))
    if not reactor.options.proxy_protocol_from:
        return head, None
    host = upgrade.peer[0] if isinstance(upgrade.peer, tuple) else None
    if not reactor.options.takes_proxy_protocol_from(host):
        _settle_peer(reactor, upgrade.identity, None)
        return head, None
    try:
        header = parse_proxy_header(head)
    except ProtocolError as error:
        raise HandshakeError(400, str(error)) from error
    if isinstance(header, int):
        raise HandshakeError(400, "the PROXY header is cut short")
    source = header.source if isinstance(header.source, tuple) else None
    _settle_peer(reactor, upgrade.identity, source)
    return head[header.header_bytes :], source


def _settle_peer(reactor: Reactor, identity: int, source: tuple[str, int] | None) -> None:
    """Tell the shim, which counts sessions by address, where this one really comes from."""
    peer = ffi.NULL
    if source is not None:
        address = ip_address(source[0])
        peer = ffi.new("struct urs_peer *", {"port": source[1], "family": address.version})
        ffi.memmove(peer.address, address.packed, len(address.packed))
    if lib.urs_session_settle_peer(reactor._core, identity, peer) == lib.URS_ERROR_LIMIT:
        raise refusal("sessions_per_ip_max")


def _answer_plain(reactor: Reactor, upgrade: Upgrade, request: Request) -> Response | None:
    options = reactor.options
    asks_options = request.method == "OPTIONS"
    if options.metrics_path is not None and request.raw_path == options.metrics_path and not asks_options:
        return Response(200, (("Content-Type", CONTENT_TYPE),), prometheus_text(reactor.stats()))
    on_request: Callable[..., Any] | None = reactor._callbacks.on_request
    try:
        upgrade.asked = True
        response = None if on_request is None else on_request(request)
        if response is not None and not isinstance(response, Response):
            raise TypeError(f"on_request returns a Response or None, not {type(response).__name__}")
    except Exception as error:
        logger.exception("on_request for %s failed; it is answered 500", request.target)
        raise refusal("handler") from error
    return _ALLOWED if response is None and asks_options else response


def _ask_handler(reactor: Reactor, upgrade: Upgrade, request: Request, key: bytes) -> Answer:
    options = reactor.options
    on_upgrade: Callable[..., Any] | None = reactor._callbacks.on_upgrade
    try:
        upgrade.asked = True
        verdict = None if on_upgrade is None else on_upgrade(request)
        if verdict is None:
            supported = options.subprotocols
            verdict = Accept(select_subprotocol(request.subprotocols, supported)) if supported else _ACCEPT
        if isinstance(verdict, Reject):
            response = encode_response(verdict, server_header=options.server_header)
            return Answer(response, reason="handler")
        if not isinstance(verdict, Accept):
            raise TypeError(f"on_upgrade returns Accept, Reject or None, not {type(verdict).__name__}")
        offered = request.subprotocols if verdict.subprotocol is not None else ()
        response = encode_accept(key, verdict, offered=offered, server_header=options.server_header)
    except Exception as error:
        logger.exception("on_upgrade for %s failed; it is answered 500", request.target)
        raise refusal("handler") from error
    return Answer(response, accepted=True, subprotocol=verdict.subprotocol, data=verdict.data)
