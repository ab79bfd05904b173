"""Decides on opening requests: the PROXY header, the checks of RFC 6455, plain HTTP, and the handler's answer.

Bytes in and out; the dispatch loop carries the decision out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal

from uringws.errors import HandshakeError, ProtocolError, RejectReason
from uringws.extensions import DeflateTerms, negotiate
from uringws.handshake import (
    LATER,
    Accept,
    Later,
    RawAnswer,
    Reject,
    RequestHead,
    check_upgrade,
    encode_accept,
    refusal,
    select_subprotocol,
)
from uringws.http import Peer, Request, Response, encode_refusal, encode_response, parse_request
from uringws.metrics import CONTENT_TYPE, prometheus_text
from uringws.proxy_protocol import parse_proxy_header
from uringws.shim import CData, ffi, lib

if TYPE_CHECKING:
    from uringws.callbacks import Callbacks
    from uringws.core import Core
    from uringws.options import Options
    from uringws.stats import Stats

__all__ = ["Decision", "Upgrade", "Upgrader"]

_ACCEPT = Accept()
_UNREADABLE = frozenset({400, 431})  # with these a head that cannot be parsed is refused
_ALLOWED = Response(204, {"Allow": "GET, HEAD, OPTIONS"})  # RFC 9110 9.3.7


@dataclass(slots=True)
class Upgrade:
    """An opening request on its way to a decision."""

    identity: int
    item: CData | None
    """Its head as the shim found it, valid for the turn of its event."""
    peer: Peer
    handler_called: bool = False
    is_readable: bool = False
    """Whether it is an HTTP request, even one that is refused."""
    head_only: bool = False
    """Whether the answer has no body: the request is a HEAD."""
    asked: Request | RequestHead | None = None
    """The argument of the callback that was called last."""
    settle: Callable[[object], Decision | Later] | None = None
    """Continues with the value that the callback returned. Raises HandshakeError, and TypeError or ValueError for an
    invalid value."""
    is_asked: bool = False
    """Whether that callback runs."""
    early: list[object] | None = None
    """The answer, if it was given while the callback ran."""


@dataclass(slots=True)
class Decision:
    """The bytes to send, and whether they open a session or end the connection."""

    response: bytes
    accepted: bool = False
    subprotocol: str | None = None
    data: object = None
    deflate: DeflateTerms | None = None
    reason: RejectReason | None = None
    """Under which `stats()` counts a request that opened no session; None for one that asked for none."""


class Upgrader:
    """Decides on opening requests by the options and the handler's callbacks."""

    def __init__(self, core: Core, options: Options, callbacks: Callbacks, read_stats: Callable[[], Stats]) -> None:
        self._core = core
        self._options = options
        self._callbacks = callbacks
        self._read_stats = read_stats

    def decide(self, upgrade: Upgrade) -> tuple[Decision | Later, BaseException | None]:
        """Decide on a request; return the decision (or LATER), and what is to be raised once it is carried out.

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
            raised = error
        try:
            return self._decide(upgrade), raised
        except Exception as error:  # noqa: BLE001 - reported
            self._core.report(error, "an opening request could not be answered; it is answered 500")
            return self._internal_error(), None

    def _internal_error(self) -> Decision:
        response = encode_refusal(refusal("handler"), server_header=self._options.server_header)
        return Decision(response, reason="handler")

    def _decide(self, upgrade: Upgrade) -> Decision | Later:
        """Decide on a request. An error becomes an answer, 500 for those of the handler."""
        try:
            head, peer = self._take_head(upgrade)
            upgrade.peer = peer or upgrade.peer
            if self._callbacks.on_head is None:
                return self._after_head(upgrade, head, None)
            request = RequestHead(upgrade.identity, head, upgrade.peer)
            return self._ask(upgrade, "on_head", request, lambda returned: self._after_head(upgrade, head, returned))
        except HandshakeError as error:
            return self._refuse(upgrade, error)

    def _refuse(self, upgrade: Upgrade, error: HandshakeError) -> Decision:
        if self._options.refuse_silently and not upgrade.is_readable and error.status in _UNREADABLE:
            return Decision(b"", reason=error.reason)
        response = encode_refusal(error, head_only=upgrade.head_only, server_header=self._options.server_header)
        return Decision(response, reason=error.reason)

    def _take_head(self, upgrade: Upgrade) -> tuple[bytes, Peer]:
        """Return the request's head, and the peer's address if a trusted PROXY header named one."""
        item = upgrade.item
        assert item is not None  # noqa: S101 - this is its turn
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
        if lib.urs_command_set_proxied_peer(self._core.handle, identity, peer) == lib.URS_ERROR_LIMIT:
            raise refusal("sessions_per_ip_max")

    # ---- the callbacks, and how a request goes on after each

    def _ask(
        self,
        upgrade: Upgrade,
        name: Literal["on_head", "on_request", "on_upgrade"],
        asked: Request | RequestHead,
        settle: Callable[[object], Decision | Later],
    ) -> Decision | Later:
        """Call a callback and go on with what it returns; `settle` does that, now or when the request is answered."""
        callback: Callable[..., object] | None = getattr(self._callbacks, name)
        if callback is None:
            return settle(None)
        upgrade.asked, upgrade.settle = asked, settle
        upgrade.is_asked = True
        try:
            upgrade.handler_called = True  # no call from here to the callback, in which a signal handler could raise
            returned = callback(asked)
            if upgrade.early:
                returned = _early_answer(upgrade.early, name, returned)
            if returned is LATER:
                upgrade.item = None  # valid for this turn only
                return LATER
        except Exception as error:
            raise self._failure(name, asked, error) from error
        finally:
            upgrade.is_asked = False
        try:
            return settle(returned)
        except (TypeError, ValueError) as error:
            raise self._failure(name, asked, error) from error

    def _failure(self, name: str, asked: Request | RequestHead, error: Exception) -> HandshakeError:
        target = asked.target if isinstance(asked, Request) else asked.data.partition(b"\r\n")[0].decode("latin-1")
        self._core.report(error, f"{name} for %s failed; it is answered 500", target)
        return refusal("handler")

    def _after_head(self, upgrade: Upgrade, head: bytes, returned: object) -> Decision | Later:
        options = self._options
        if isinstance(returned, RawAnswer):
            return Decision(returned.response, returned.opens, returned.subprotocol, returned.data, returned.deflate)
        if returned is not None:
            raise TypeError(f"on_head is answered by a RawAnswer or None, not {type(returned).__name__}")
        request = parse_request(head, header_count_max=options.header_count_max, peer=upgrade.peer)
        request.id = upgrade.identity
        upgrade.is_readable, upgrade.head_only = True, request.method == "HEAD"
        if request.is_upgrade:
            return self._check(upgrade, request)
        if (
            options.metrics_path is not None
            and request.raw_path == options.metrics_path
            and request.method != "OPTIONS"
        ):
            figures = Response(200, (("Content-Type", CONTENT_TYPE),), prometheus_text(self._read_stats()))
            return self._answer_plain(upgrade, figures)
        return self._ask(
            upgrade, "on_request", request, lambda returned: self._after_request(upgrade, request, returned)
        )

    def _after_request(self, upgrade: Upgrade, request: Request, returned: object) -> Decision | Later:
        if returned is None:
            return (
                self._answer_plain(upgrade, _ALLOWED) if request.method == "OPTIONS" else self._check(upgrade, request)
            )
        if not isinstance(returned, Response):
            raise TypeError(f"on_request is answered by a Response or None, not {type(returned).__name__}")
        return self._answer_plain(upgrade, returned)

    def _answer_plain(self, upgrade: Upgrade, response: Response) -> Decision:
        server_header = self._options.server_header
        return Decision(encode_response(response, head_only=upgrade.head_only, server_header=server_header))

    def _check(self, upgrade: Upgrade, request: Request) -> Decision | Later:
        """Check a request against RFC 6455 and the options; if it passes, let the handler decide."""
        key = check_upgrade(request, self._options)
        terms = None
        if self._options.deflate is not None:
            values_of = request.headers.values_of
            agent = values_of(b"user-agent")
            extensions = values_of(b"sec-websocket-extensions")
            terms = negotiate(extensions, self._options.deflate, agent[0] if agent else b"")
        return self._ask(
            upgrade, "on_upgrade", request, lambda returned: self._after_upgrade(request, key, terms, returned)
        )

    def _after_upgrade(self, request: Request, key: bytes, terms: DeflateTerms | None, returned: object) -> Decision:
        options = self._options
        if returned is None:
            supported = options.subprotocols
            returned = Accept(select_subprotocol(request.subprotocols, supported)) if supported else _ACCEPT
        if isinstance(returned, Reject):
            return Decision(encode_response(returned, server_header=options.server_header), reason="handler")
        if not isinstance(returned, Accept):
            raise TypeError(f"on_upgrade is answered by Accept, Reject or None, not {type(returned).__name__}")
        offered = request.subprotocols if returned.subprotocol is not None else ()
        response = encode_accept(key, returned, offered=offered, server_header=options.server_header, deflate=terms)
        return Decision(response, accepted=True, subprotocol=returned.subprotocol, data=returned.data, deflate=terms)

    # ---- answers that come later

    def check_answer(self, upgrade: Upgrade, returned: object) -> None:
        """Raise TypeError or ValueError for a value that is not an answer. From any thread."""
        assert upgrade.settle is not None  # noqa: S101 - it was asked
        if returned is LATER:
            raise TypeError("LATER is no answer: return it from the callback, and answer when you can")
        if returned is not None:
            upgrade.settle(returned)

    def answer(self, upgrade: Upgrade, returned: object) -> Decision | Later:
        """Go on with a request as if its callback had returned that; LATER if another callback leaves it for later.

        Raises as `check_answer`.
        """
        self.check_answer(upgrade, returned)
        assert upgrade.settle is not None  # noqa: S101 - it was asked
        try:
            return upgrade.settle(returned)
        except HandshakeError as error:
            return self._refuse(upgrade, error)

    def abandon(self, upgrade: Upgrade) -> None:
        """Tell the handler of a request that awaits no answer any more."""
        callback = self._callbacks.on_upgrade_abandoned
        if callback is None:
            return
        try:
            callback(upgrade.asked)
        except Exception as error:  # noqa: BLE001 - reported
            self._core.report(error, "on_upgrade_abandoned of %r failed", upgrade.asked)


def _early_answer(early: list[object], name: str, returned: object) -> object:
    """Return the answer that was given while the callback ran, which must have returned LATER."""
    if returned is not LATER:
        raise TypeError(f"the request was answered while {name} ran, which returned {returned!r}: return LATER")
    return early.pop()
