"""The opening handshake (RFC 6455 4.2): a request's WebSocket fields checked, the 101 answer's bytes, and refusals.

No I/O and no clock: other modules collect the head and bound the time for it. HTTP without WebSocket is in http.py.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha1
from typing import TYPE_CHECKING, Final

from uringws.errors import HandshakeError, RejectReason
from uringws.http import (
    TOKEN,
    HeaderFields,
    Peer,
    Request,
    Response,
    check_status,
    encode_fields,
    encode_server,
    has_token,
    list_elements,
)

if TYPE_CHECKING:
    from uringws.extensions import DeflateTerms
    from uringws.options import Options

__all__ = [
    "LATER",
    "Accept",
    "Later",
    "RawAnswer",
    "Reject",
    "RequestHead",
    "check_upgrade",
    "encode_accept",
    "refusal",
    "select_subprotocol",
]

_KEY: Final = re.compile(rb"[0-9A-Za-z+/]{22}==")  # 16 bytes in base64, RFC 6455 4.2.1
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
_ACCEPT_START: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)


@dataclass(frozen=True, slots=True)
class Accept:
    """The answer of `on_upgrade` that makes a session.

    `subprotocol` is one that the client offered, or None. `headers` are further field lines of the 101 answer. `data`
    becomes `conn.data`. Raises ValueError for a header that is malformed or managed by the library, TypeError for one
    that is not of str.
    """

    subprotocol: str | None = None
    headers: HeaderFields = ()
    data: object = None
    field_lines: bytes = field(init=False, repr=False, compare=False, default=b"")
    """The headers as they go out, encoded once."""

    def __post_init__(self) -> None:
        if self.subprotocol is not None and not isinstance(self.subprotocol, str):
            raise TypeError(f"subprotocol is a str or None, not {type(self.subprotocol).__name__}")
        if self.headers:
            object.__setattr__(self, "field_lines", encode_fields(self.headers))


@dataclass(frozen=True, slots=True)
class Reject(Response):
    """The answer of `on_upgrade` that makes no session: as `Response`, with a status of 300 to 599."""

    status: int = 403

    def __post_init__(self) -> None:
        check_status(self.status, 300)
        Response.__post_init__(self)  # super() alone does not work in a dataclass with slots


class Later(Enum):
    """The type of `LATER`."""

    LATER = "LATER"

    def __repr__(self) -> str:
        return "uringws.LATER"


LATER: Final = Later.LATER
"""Returned by `on_upgrade`, `on_request` or `on_head`: the request is answered by `Reactor.answer` later."""


@dataclass(slots=True, eq=False)
class RequestHead:
    """An opening request as `on_head` sees it: nothing of it is parsed, and nothing is checked."""

    id: int
    """The id of the connection that it may become."""
    data: bytes
    """All bytes up to and including the empty line, of any method and version, without a PROXY protocol header."""
    peer: Peer
    """The address that the request comes from: the one that a PROXY protocol header named, if there was one."""
    is_answered: bool = field(init=False, repr=False, default=False)
    """Whether `Reactor.answer` has answered it."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """The answer of `on_head` in the very bytes that are sent. Nothing is added and nothing is checked but its frame.

    With `opens`, `response` is a 101 answer, and the connection is open after it; `subprotocol` and `data` are as
    in `Accept`, and `deflate` has the terms of compression that the response names. Otherwise the connection is
    closed once the response is sent; an empty one closes it silently. Raises ValueError for an opening response
    that is no whole 101 answer, TypeError for one that is not bytes.
    """

    response: bytes
    opens: bool = False
    subprotocol: str | None = None
    data: object = None
    deflate: DeflateTerms | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.response, bytes):
            raise TypeError(f"response is bytes, not {type(self.response).__name__}")
        if self.opens and not (self.response.startswith(b"HTTP/1.1 101 ") and self.response.endswith(b"\r\n\r\n")):
            raise ValueError("a response that opens begins with HTTP/1.1 101 and ends with an empty line")


def check_upgrade(request: Request, options: Options) -> bytes:
    """Check a request against RFC 6455 4.2.1 and `options.origins`; return its Sec-WebSocket-Key.

    Raises HandshakeError: 405 for a method other than GET, 426 for a plain request or another version of the protocol,
    400 for a malformed one, 403 for an Origin that is not allowed.
    """
    values_of = request.headers.values_of
    if request.method != "GET":
        raise HandshakeError(405, "a WebSocket opens with GET", (("Allow", "GET"),))
    if not request.is_upgrade:
        raise _upgrade_required("this is a WebSocket server: Upgrade: websocket over HTTP/1.1 is required")
    if not has_token(values_of(b"connection"), b"upgrade"):
        raise HandshakeError(400, "Connection: Upgrade is required (does a proxy remove it?)")
    versions = values_of(b"sec-websocket-version")
    if len(versions) > 1:
        raise HandshakeError(400, "more than one Sec-WebSocket-Version")
    if versions != (b"13",):
        raise _upgrade_required("Sec-WebSocket-Version: 13 is required")
    keys = values_of(b"sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise HandshakeError(400, "one Sec-WebSocket-Key of 16 bytes in base64 is required")
    offers = values_of(b"sec-websocket-protocol")
    if offers and not all(map(TOKEN.fullmatch, list_elements(offers))):
        raise HandshakeError(400, "malformed Sec-WebSocket-Protocol")
    if options.origins is not None:
        _check_origin(request.headers.get_all("origin"), options.origins)
    return keys[0]


def _upgrade_required(body: str) -> HandshakeError:
    return HandshakeError(426, body, (("Sec-WebSocket-Version", "13"),))  # RFC 6455 4.4


def _check_origin(origins: Sequence[str], allowed: Sequence[str | re.Pattern[str] | None]) -> None:
    if len(origins) > 1:
        raise HandshakeError(400, "more than one Origin")
    origin = origins[0] if origins else None
    for rule in allowed:
        if isinstance(rule, re.Pattern):
            if origin is not None and rule.fullmatch(origin):
                return
        elif rule == origin:
            return
    raise HandshakeError(403, "this origin is not allowed", reason="origin")


def select_subprotocol(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """Return the first of `supported`, in the server's order of preference, that the client offers; else None."""
    for subprotocol in supported:
        if subprotocol in offered:
            return subprotocol
    return None


_REFUSALS: Final[Mapping[RejectReason, tuple[int, str]]] = {
    "bad_request": (400, "not an HTTP request"),
    "origin": (403, "this origin is not allowed"),
    "handler": (500, "the server failed to answer"),
    "timeout": (408, "the request took too long"),
    "sessions_max": (503, "too many sessions"),
    "sessions_per_ip_max": (429, "too many sessions from this address"),
    "handshakes_max": (503, "too many handshakes in progress"),
    "memory": (503, "no memory left for another session"),
    "draining": (503, "the server is shutting down"),
}


def refusal(reason: RejectReason) -> HandshakeError:
    """Return the refusal for a reason outside of the request: a limit, a deadline, a shutdown, a fault."""
    status, body = _REFUSALS[reason]
    return HandshakeError(status, body, reason=reason)


def encode_accept(
    key: bytes,
    accept: Accept,
    *,
    offered: Sequence[str] = (),
    server_header: str | None = None,
    deflate: DeflateTerms | None = None,
) -> bytes:
    """Return the 101 answer to a request with that Sec-WebSocket-Key, RFC 6455 4.2.2.

    `offered` are the request's subprotocols, `deflate` the terms of compression that it names. Raises ValueError if
    `accept.subprotocol` is not among them: a client would have to fail the connection.
    """
    proof = b2a_base64(sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)
    lines = accept.field_lines
    if accept.subprotocol is not None:
        if accept.subprotocol not in offered:
            raise ValueError(
                f"subprotocol {accept.subprotocol!r} was not offered by the client, which offered {list(offered)!r}"
            )
        lines += b"Sec-WebSocket-Protocol: %b\r\n" % accept.subprotocol.encode("ascii")
    if deflate is not None:
        lines += b"Sec-WebSocket-Extensions: %b\r\n" % deflate.response.encode("ascii")
    lines += encode_server(server_header)
    return b"%b%b\r\n%b\r\n" % (_ACCEPT_START, proof, lines)
