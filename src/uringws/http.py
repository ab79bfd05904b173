"""HTTP/1.1 for a server that closes after each answer (RFC 9110, RFC 9112): a request's head in, an answer's bytes out.

No I/O, no clock except for Date, and nothing of WebSocket except that a request may ask for it: handshake.py has the
rest. Parsing is strict where lenient parsers made request smuggling possible (docs/http.md lists what is refused).
Every answer but a 101 closes the connection, so that no byte after a refused head is taken for a request.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import IPv6Address
from typing import Final, TypeVar, overload
from urllib.parse import parse_qs, unquote

import httptools

from uringws.errors import HandshakeError
from uringws.field_docs import document_fields

__all__ = [
    "TOKEN",
    "HeaderFields",
    "Headers",
    "Peer",
    "Request",
    "Response",
    "check_status",
    "encode_fields",
    "encode_refusal",
    "encode_response",
    "has_token",
    "list_elements",
    "parse_fields",
    "parse_request",
]

Peer = tuple[str, int] | tuple[str, int, int, int] | str | None
"""A peer's address as `socket.getpeername` gives it, or None where it is not known. The reactor gives (host, port), or
None for a peer on a Unix socket; an IPv4 host always in its plain form, also on a socket that takes IPv6 too."""

HeaderFields = Mapping[str, str] | Sequence[tuple[str, str]]
"""Field lines of an answer; a sequence of pairs where a name comes more than once (Set-Cookie)."""

_Default = TypeVar("_Default")

_TOKEN_TEXT: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 5.6.2
TOKEN: Final = re.compile(_TOKEN_TEXT)
# RFC 9112 section 3, one space between the parts. No fragment: RFC 9112 3.2 has none in a target.
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN_TEXT + rb') ([!"$-~]+) HTTP/([0-9]\.[0-9])')
_ABSOLUTE_FORM: Final = re.compile(r"(https?|wss?)://([^/?@]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)
# RFC 3986 3.2.2 and 3.2.3, with the zone of RFC 6874, which most clients write after a bare "%".
_AUTHORITY: Final = re.compile(
    rb"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)(?P<zone>%[0-9A-Za-z\-._~%]+)?\]|(?P<name>[0-9A-Za-z\-._~%!$&'()*+,;=]+))"
    rb"(?::(?P<port>[0-9]*))?"
)
_DEFAULT_PORTS: Final = {"http": b"80", "ws": b"80", "https": b"443", "wss": b"443"}
_FIELD_NAME: Final = re.compile(_TOKEN_TEXT.decode("ascii"))
_FIELD_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")  # RFC 9110 5.5; no CR, LF, NUL

_PLAIN_TEXT: Final = b"Content-Type: text/plain; charset=utf-8\r\n"
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_STATUS_MAX: Final = 599  # RFC 9110 15
_BODILESS: Final = frozenset({204, 205, 304})  # RFC 9110 15.3.5, 15.3.6, 15.4.5
_LENGTHLESS: Final = frozenset({204, 304})  # RFC 9110 8.6: no Content-Length, or one of a body that is not known here
_METHODS: Final = ("GET", "HEAD", "OPTIONS")
_DATED: Final = re.compile(rb"^date:", re.IGNORECASE | re.MULTILINE)
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_MANAGED: Final = frozenset(
    {
        "connection",
        "content-length",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "server",
        "transfer-encoding",
        "upgrade",
    }
)
"""Field names that an answer's other settings decide, so that they cannot be given among its headers."""


class Headers(Mapping[str, str]):
    """The field lines of a request: immutable, names without regard to case, values decoded as Latin-1.

    `headers[name]` joins the values of a repeated name with ", " (RFC 9110 5.3), those of Cookie with "; " (RFC 9113
    8.2.3); `get_all` keeps them apart. Iteration gives each name once, in lower case. `raw` is what came, in its order,
    as pairs of bytes.
    """

    __slots__ = ("_index", "raw")

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self.raw: Final = tuple(raw)
        index: dict[bytes, tuple[bytes, ...]] = {}
        for name, value in self.raw:
            key = name.lower()
            index[key] = (*index[key], value) if key in index else (value,)
        self._index = index

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        return _joined(name, values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self._index

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"Headers({list(self.raw)!r})"

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str | _Default) -> str | _Default: ...
    def get(self, name: str, /, default: str | _Default | None = None) -> str | _Default | None:
        """Return the value of a name, repeated ones joined as by `headers[name]`, or `default`."""
        values = self.get_all(name)
        return _joined(name, values) if values else default

    def get_all(self, name: str) -> list[str]:
        """Return the values of a name, one per field line, in their order; empty if it is not there."""
        return [value.decode("latin-1") for value in self._index.get(_key(name), ())]

    def values_of(self, name: bytes) -> tuple[bytes, ...]:
        """Return the values of a name that is given in lower case, undecoded."""
        return self._index.get(name, ())


def _joined(name: str, values: list[str]) -> str:
    # A cookie's value may hold a comma: joined with ", " the cookies would be parsed differently.
    return ("; " if name.lower() == "cookie" else ", ").join(values)


def _key(name: str) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"the name of a field is a str, not {type(name).__name__}")
    # A name that Latin-1 cannot encode is not a field's name. Its "?" is not valid in a name either: nothing is found.
    return name.lower().encode("latin-1", "replace")


@document_fields
@dataclass(slots=True, eq=False)
class Request:
    """An opening request, or a plain HTTP one, as `on_upgrade` and `on_request` see it."""

    method: str
    """GET, HEAD or OPTIONS."""
    target: str
    """The request target as it came."""
    raw_path: str
    """The target's path, percent-encoded, beginning with "/"; "*" where OPTIONS asks about the server as a whole."""
    query: str
    """The part of the target after the first "?", percent-encoded; "" if there is none."""
    headers: Headers
    """The field lines, by name in upper or lower case.

    The zone of an IPv6 address in Host is left out, because it has a meaning only on the client."""
    http_version: str
    """1.1 or 1.0."""
    peer: Peer
    """The address that the request comes from: the one that a PROXY protocol header named, if there was one."""
    id: int = 0
    """The id of the connection that it becomes if it is accepted; 0 for a request that no reactor has read."""
    is_answered: bool = field(init=False, repr=False, default=False)
    """Whether `Reactor.answer` has answered it."""

    @property
    def path(self) -> str:
        """The path, percent-decoded as UTF-8, invalid bytes replaced.

        "%2F" and "/" become the same here: decide on `raw_path` where that matters.
        """
        return unquote(self.raw_path) if "%" in self.raw_path else self.raw_path

    @property
    def origin(self) -> str | None:
        """The value of Origin: the site of the page from which a browser sends the request."""
        return self.headers.get("origin")

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """The subprotocols offered, the client's preference first, without duplicates."""
        offers = list_elements(self.headers.values_of(b"sec-websocket-protocol"))
        return tuple(dict.fromkeys(offer.decode("latin-1") for offer in offers))

    @property
    def is_upgrade(self) -> bool:
        """Whether it asks for a WebSocket. In HTTP/1.0 an Upgrade field says nothing (RFC 9110 7.8)."""
        return self.http_version != "1.0" and has_token(self.headers.values_of(b"upgrade"), b"websocket")

    def query_params(self) -> dict[str, list[str]]:
        """Return the query's parameters, decoded, blank values kept; each name with all its values."""
        return parse_qs(self.query, keep_blank_values=True)


@dataclass(frozen=True, slots=True)
class Response:
    """A plain HTTP answer, after which the connection is closed.

    `status` is 200 to 599. A `body` of str is sent as UTF-8, as text/plain unless `headers` say otherwise. Raises
    ValueError for a status out of range, a header that is malformed or managed by the library, or a body where the
    status has none (204, 205, 304); TypeError for the wrong types.
    """

    status: int = 200
    headers: HeaderFields = ()
    body: bytes | str = b""
    field_lines: bytes = field(init=False, repr=False, compare=False, default=b"")
    """The headers as they go out, encoded once."""
    body_bytes: bytes = field(init=False, repr=False, compare=False, default=b"")
    """The body as it goes out."""

    def __post_init__(self) -> None:
        check_status(self.status, 200)
        if not isinstance(self.body, (bytes, str)):
            raise TypeError(f"body must be bytes or str, not {type(self.body).__name__}")
        if self.body and self.status in _BODILESS:
            raise ValueError(f"status {self.status} has no body")
        lines = encode_fields(self.headers) if self.headers else b""
        if self.body and isinstance(self.body, str) and not _names_field(self.headers, "content-type"):
            lines += _PLAIN_TEXT
        object.__setattr__(self, "field_lines", lines)
        object.__setattr__(self, "body_bytes", self.body.encode() if isinstance(self.body, str) else self.body)


class _Collector:
    """Receives the callbacks of httptools: keeps the field lines of one request."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves the optional whitespace after a value in it, RFC 9112 5.1 does not.
        self.fields.append((name, value.rstrip(b" \t")))


def parse_request(head: bytes, *, header_count_max: int, peer: Peer = None) -> Request:
    """Parse a request's head: all bytes up to and including its blank line, and none after it.

    Raises HandshakeError: 400 for bytes that are not HTTP or are ambiguous, 405 for methods other than GET, HEAD and
    OPTIONS, 413 for a request with a body, 431 for more than `header_count_max` field lines, 505 for versions other
    than 1.0 and 1.1. Raises TypeError for a head that is not bytes. It says nothing yet about WebSocket: that is
    `check_upgrade`.
    """
    if not isinstance(head, bytes):
        raise TypeError(f"the head of a request is bytes, not {type(head).__name__}")
    # RFC 9112 2.2: one empty line before the request line is ignored.
    head = head.removeprefix(b"\r\n")
    end = head.find(b"\r\n\r\n")
    if end < 0 or end + 4 != len(head):
        raise HandshakeError(400, "not an HTTP request")
    # Counted before any is parsed, so that a head full of them costs nothing.
    if head.count(b"\n") - 2 > header_count_max:
        raise HandshakeError(431, "too many header fields")
    method, target, version = _parse_request_line(head)
    fields = parse_fields(head)
    headers = Headers(fields)
    _refuse_body(headers)
    host = _parse_host(headers, version)
    raw_path, query = ("*", "") if (method, target) == ("OPTIONS", "*") else _split_target(target, host)
    return Request(method, target, raw_path, query, headers, version, peer)


def _parse_request_line(head: bytes) -> tuple[str, str, str]:
    # httptools accepts more than one space, and HTTP/0.9, HTTP/2.0, RTSP and ICE.
    line = _REQUEST_LINE.fullmatch(head, 0, head.find(b"\r\n"))
    if line is None:
        raise HandshakeError(400, "malformed request line")
    method, target, version = line[1].decode("ascii"), line[2].decode("ascii"), line[3].decode("ascii")
    if version not in ("1.1", "1.0"):
        raise HandshakeError(505, "only HTTP/1.1 is spoken here")
    if method not in _METHODS:
        raise HandshakeError(405, "only GET, HEAD and OPTIONS are allowed", (("Allow", ", ".join(_METHODS)),))
    return method, target, version


def parse_fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """Return the field lines of a whole head, in their order. Raises HandshakeError (400) for a malformed one."""
    collector = _Collector()
    try:
        httptools.HttpRequestParser(collector).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # httptools raises this when a request asks for an upgrade.
    except httptools.HttpParserCallbackError as error:
        # Not caused by the peer: a signal handler raised while the callback ran.
        raise (error.__context__ or error) from None
    except httptools.HttpParserError as error:
        raise HandshakeError(400, f"malformed request: {error}") from error
    return collector.fields


def _refuse_body(headers: Headers) -> None:
    """Refuse a request that announces a body: it is not read here, so its bytes would be taken for frames."""
    index = headers._index  # looked up by itself: most requests have neither
    if b"transfer-encoding" in index:
        raise HandshakeError(413, "a request body is not allowed")
    for length in index.get(b"content-length", ()):
        if length.strip(b"0"):
            raise HandshakeError(413, "a request body is not allowed")


def _parse_host(headers: Headers, version: str) -> re.Match[bytes] | None:
    """Return the Host, without a zone, which is also removed from `headers`.

    RFC 9112 3.2: exactly one valid Host is required; HTTP/1.0 may leave it out.
    """
    hosts = headers.values_of(b"host")
    if not hosts and version == "1.0":
        return None
    host = _AUTHORITY.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if host is None:
        raise HandshakeError(400, "exactly one valid Host field is required")
    if host["zone"] is not None:
        headers._index[b"host"] = (host.string[: host.start("zone")] + host.string[host.end("zone") :],)
    return host


def _split_target(target: str, host: re.Match[bytes] | None) -> tuple[str, str]:
    """Return path and query of the origin form or, as RFC 9112 3.2.2 requires, of the absolute form.

    The absolute form must name the same authority as Host: if the two differ, some servers and proxies believe one and
    some the other.
    """
    if target[0] != "/":
        absolute = _ABSOLUTE_FORM.fullmatch(target)
        authority = None if absolute is None else _AUTHORITY.fullmatch(absolute[2].encode("ascii"))
        if absolute is None or authority is None:
            raise HandshakeError(400, "the request target must be a path")
        port = _DEFAULT_PORTS[absolute[1].lower()]
        if host is not None and _normalised(authority, port) != _normalised(host, port):
            raise HandshakeError(400, "the request target and Host differ")
        target = (absolute[3] or "/") + (absolute[4] or "")
    raw_path, _, query = target.partition("?")
    return raw_path, query


def _normalised(authority: re.Match[bytes], default_port: bytes) -> tuple[bytes | IPv6Address, bytes]:
    """Return host and port in a form that is equal for equivalent authorities (RFC 9110 4.2.3)."""
    port = (authority["port"] or default_port).lstrip(b"0")
    if authority["ipv6"] is None:
        return authority["name"].lower(), port
    try:
        return IPv6Address(authority["ipv6"].decode("ascii")), port
    except ValueError:
        return authority["ipv6"].lower(), port


def encode_response(response: Response, *, head_only: bool = False, server_header: str | None = None) -> bytes:
    """Return the bytes of a plain answer; close the connection after it. Date is added if it has none.

    `head_only` answers HEAD: the body is left out. `server_header` is the value of Server, None for none:
    printable ASCII, else TypeError or ValueError is raised.
    """
    return _encode_answer(
        response.status, response.field_lines, response.body_bytes, head_only=head_only, server_header=server_header
    )


def encode_refusal(error: HandshakeError, *, head_only: bool = False, server_header: str | None = None) -> bytes:
    """Return the bytes of the answer that a HandshakeError stands for; close the connection after it.

    `head_only` answers HEAD: the body is left out. `server_header` is the value of Server, None for none:
    printable ASCII, else TypeError or ValueError is raised, as for the error's headers (see `Response`).
    """
    body = f"{error.body}\n".encode()
    lines = encode_fields(error.headers) + _PLAIN_TEXT
    return _encode_answer(error.status, lines, body, head_only=head_only, server_header=server_header)


def _encode_answer(status: int, lines: bytes, body: bytes, *, head_only: bool, server_header: str | None) -> bytes:
    start = f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode("ascii")
    lines += encode_server(server_header)
    if not _DATED.search(lines):
        lines += _date_line(int(time.time()))
    if status not in _LENGTHLESS:
        lines += b"Content-Length: %d\r\n" % len(body)
    # RFC 9110 15.5.22 wants Upgrade with a 426, and 7.8 wants it named in Connection.
    lines += (
        b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n"
        if status == HTTPStatus.UPGRADE_REQUIRED
        else b"Connection: close\r\n"
    )
    return b"%b%b\r\n%b" % (start, lines, b"" if head_only else body)


def encode_server(server_header: str | None) -> bytes:
    """Return the field line of Server, empty for None. Raises TypeError or ValueError for an invalid value."""
    if server_header is None:
        return b""
    if not isinstance(server_header, str):
        raise TypeError(f"server_header is a str or None, not {type(server_header).__name__}")
    return _server_line(server_header)


@functools.lru_cache(maxsize=8)
def _server_line(value: str) -> bytes:
    if not _FIELD_VALUE.fullmatch(value) or not value.isascii():
        raise ValueError(f"server_header {value!r} is not printable ASCII")
    return f"Server: {value}\r\n".encode("ascii")


@functools.lru_cache(maxsize=1)
def _date_line(seconds: int) -> bytes:
    """Return the Date of RFC 9110 6.6.1, in the form of 5.6.7, for a moment of the Unix clock."""
    at = time.gmtime(seconds)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    return f"Date: {day}, {time.strftime(f'%d {month} %Y %H:%M:%S', at)} GMT\r\n".encode("ascii")


def check_status(status: int, low: int) -> None:
    """Raise TypeError or ValueError unless `status` is an int from `low` to 599."""
    if isinstance(status, bool) or not isinstance(status, int):
        raise TypeError(f"status must be an int, not {type(status).__name__}")
    if not low <= status <= _STATUS_MAX:
        raise ValueError(f"status {status} is not in {low} to {_STATUS_MAX}")


def _pairs(headers: HeaderFields) -> Iterable[tuple[str, str]]:
    if isinstance(headers, Mapping):
        return headers.items()
    given: object = headers
    if isinstance(given, str | bytes):
        kind = type(given).__name__
        raise TypeError(f"headers are a mapping or pairs, not {kind}: Response and Reject take a text as body=")
    return headers


def _names_field(headers: HeaderFields, lower_name: str) -> bool:
    return any(name.lower() == lower_name for name, _ in _pairs(headers))


def encode_fields(headers: HeaderFields) -> bytes:
    """Encode an answer's field lines. Refuse a value that would begin a new line (response splitting).

    Raises as `Response` does for its headers.
    """
    lines = []
    for name, value in _pairs(headers):
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"header {name!r}: name and value must be str")
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"header name {name!r} is not a token (RFC 9110 5.1)")
        if name.lower() in _MANAGED:
            raise ValueError(f"header {name!r} is managed by the library")
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"header {name!r}: value {value!r} has a control or a non-Latin-1 character")
        lines.append(f"{name}: {value}\r\n".encode("latin-1"))
    return b"".join(lines)


def list_elements(values: Iterable[bytes]) -> list[bytes]:
    """Return the elements of a comma-separated field over all its lines, without empty ones (RFC 9110 5.6.1)."""
    elements = (element.strip(b" \t") for value in values for element in value.split(b","))
    return [element for element in elements if element]


def has_token(values: tuple[bytes, ...], token: bytes) -> bool:
    """Return whether a list field names `token`, given in lower case, without regard to case."""
    if len(values) == 1 and values[0].lower() == token:
        return True
    return any(element.lower() == token for element in list_elements(values))
