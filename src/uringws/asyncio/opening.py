"""The opening handshake of `serve`: the head of a request in, the answer's bytes out, hooks of the application between.

The order is that of `websockets`: `process_request` sees the request before it is checked, whatever its method, and
`process_response` sees the answer before it leaves. No I/O: transport.py and ring.py collect the head and send the
answer.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import time
from binascii import b2a_base64
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from hashlib import sha1
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from uringws.asyncio.classes import Headers, InvalidHandshake, NegotiationError, Request, Response
from uringws.errors import HandshakeError
from uringws.extensions import Deflate, DeflateTerms, negotiate
from uringws.http import parse_fields
from uringws.version import __version__

if TYPE_CHECKING:
    from uringws.asyncio.connection import ServerConnection

    Hook = Callable[..., Awaitable[Response | None] | Response | None]

__all__ = [
    "SERVER",
    "Answer",
    "Fields",
    "Head",
    "OpeningRules",
    "encode_answer",
    "is_junk",
    "make_request",
    "parse_head",
    "parse_response",
    "plain_answer",
    "to_response",
]

SERVER: Final = "Python/{}.{} uringws/{}".format(*sys.version_info[:2], __version__)
"""The value of Server in answers, unless `serve` is given another."""

Fields = Sequence[tuple[str, str]]

_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) (HTTP/1\.[01])")
_FIELD_LINE: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t -~\x80-\xff]*")
_KEY: Final = re.compile(r"[0-9A-Za-z+/]{22}==")  # 16 bytes in base64, RFC 6455 4.2.1
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
_FAILED_TEXT: Final = "Failed to open a WebSocket connection"
_SEE_LOG: Final = f"{_FAILED_TEXT}.\nSee server log for more information.\n"


class Head(NamedTuple):
    """A parsed request head."""

    method: str
    target: str
    protocol: str
    fields: list[tuple[str, str]]

    def get_all(self, name: str) -> list[str]:
        """Return the values of a field, its name given in lower case."""
        return [value for other, value in self.fields if other.lower() == name]


class Answer(NamedTuple):
    """An answer before it is encoded."""

    status: int
    phrase: str
    fields: Fields
    body: bytes = b""


def is_junk(line: bytes) -> bool:
    """Whether a first line, without its line end, cannot be that of an HTTP/1 request."""
    return _REQUEST_LINE.fullmatch(line) is None


def parse_head(head: bytes, *, header_count_max: int) -> Head:
    """Parse the head of a request: all bytes up to and including its empty line.

    Any method is taken, HTTP/1.1 and HTTP/1.0. Raises ValueError for anything else, and for a request with a body;
    HandshakeError (431) for too many field lines.
    """
    end = head.find(b"\r\n")
    line = _REQUEST_LINE.fullmatch(head, 0, end)
    if line is None:
        raise ValueError("invalid HTTP request line: " + head[:end].decode(errors="backslashreplace"))
    if head.count(b"\n") - 2 > header_count_max:
        raise HandshakeError(431, "too many header fields")
    try:
        raw = parse_fields(head)
    except HandshakeError as error:
        raise ValueError(error.body) from error
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
    parsed = Head(line[1].decode(), line[2].decode(), line[3].decode(), fields)
    # Nothing reads a body here: its bytes would be taken for frames.
    if parsed.get_all("transfer-encoding") or any(value.strip("0") for value in parsed.get_all("content-length")):
        raise ValueError("a request with a body is not supported")
    return parsed


def make_request(head: Head) -> Request:
    """Return the request as `websockets` shows it."""
    headers = Headers()
    for name, value in head.fields:
        headers[name] = value
    return Request(head.target, headers, head.method, head.protocol)


def to_response(answer: Answer) -> Response:
    """Return the answer as `websockets` shows it."""
    headers = Headers()
    for name, value in answer.fields:
        headers[name] = value
    return Response(answer.status, answer.phrase, headers, answer.body)


def parse_response(data: bytes) -> Response:
    """Return the answer that `encode_answer` has encoded."""
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    _, status, phrase = line.split(" ", 2)
    fields = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    return to_response(Answer(int(status), phrase, fields, body))


def encode_answer(answer: Answer, *, head_only: bool = False) -> bytes:
    """Return the answer's bytes. Raises ValueError for a field that would break out of its line."""
    lines = [f"{name}: {value}" for name, value in answer.fields]
    for line in lines:
        if not _FIELD_LINE.fullmatch(line):
            raise ValueError(f"malformed header in an answer: {line!r}")
    if not answer.phrase.isprintable():
        raise ValueError(f"malformed reason phrase in an answer: {answer.phrase!r}")
    head = "\r\n".join([f"HTTP/1.1 {answer.status} {answer.phrase}", *lines, "", ""])
    return head.encode("latin-1") + (b"" if head_only else bytes(answer.body))


def plain_answer(status: int, text: str, fields: Iterable[tuple[str, str]] = ()) -> Answer:
    """Return an answer of one text, after which the connection is closed."""
    known = HTTPStatus(status)
    body = text.encode()
    common = [
        ("Date", _date(int(time.time()))),
        ("Connection", "close"),
        ("Content-Length", str(len(body))),
        ("Content-Type", "text/plain; charset=utf-8"),
    ]
    return Answer(known.value, known.phrase, [*common, *fields], body)


@functools.lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningRules:
    """A server's requirements of a request, and the fields of its answer. The fields are arguments of `serve`."""

    origins: Sequence[str | re.Pattern[str] | None] | None = None
    subprotocols: Sequence[str] | None = None
    select_subprotocol: Callable[..., str | None] | None = None
    process_request: Hook | None = None
    process_response: Hook | None = None
    server_header: str | None = SERVER
    deflate: Deflate | None = None

    @property
    def has_hooks(self) -> bool:
        """Whether the application wants to see the request or the answer: then a task must run `answer_with_hooks`."""
        return self.process_request is not None or self.process_response is not None

    def answer(self, connection: ServerConnection, head: Head) -> Answer:
        """Return the answer where there are no hooks."""
        method, _, protocol, _ = head
        answer = self._check(connection, method, protocol, head.get_all)
        if self.server_header is None:
            return answer
        return answer._replace(fields=[*answer.fields, ("Server", self.server_header)])

    async def answer_with_hooks(self, connection: ServerConnection) -> Answer:
        """Return the answer, with the hooks called on the way. Both may be functions or coroutine functions."""
        request = connection.request
        assert request is not None  # noqa: S101 - the head has been read
        response = await self._call("process_request", self.process_request, connection, request)
        if response is None:
            protocol = getattr(request, "protocol", "HTTP/1.1")
            method = getattr(request, "method", "GET")
            response = to_response(self._check(connection, method, protocol, request.headers.get_all))
        if self.server_header is not None and "Server" not in response.headers:
            response.headers["Server"] = self.server_header
        connection.response = response
        replaced = await self._call("process_response", self.process_response, connection, request, response)
        if replaced is not None:
            connection.response = response = replaced
        fields = list(response.headers.raw_items())
        return Answer(response.status_code, response.reason_phrase, fields, bytes(response.body))

    async def _call(
        self, name: str, hook: Hook | None, connection: ServerConnection, *arguments: Any
    ) -> Response | None:
        if hook is None:
            return None
        try:
            response = hook(connection, *arguments)
            if inspect.isawaitable(response):
                response = await response
            if response is not None and not isinstance(response, Response):
                raise TypeError(f"{name} returns a Response or None, not {type(response).__name__}")
        except Exception:
            connection.logger.exception("%s failed", name)
            return to_response(plain_answer(500, _SEE_LOG))
        return response

    def _check(
        self, connection: ServerConnection, method: str, protocol: str, get_all: Callable[[str], list[str]]
    ) -> Answer:
        """Check a request against RFC 6455 4.2.1 and the rules; return the answer: 101 or a refusal."""
        try:
            key = _check_upgrade(method, protocol, get_all)
            self._check_origin(get_all("origin"))
            subprotocol = self._select_subprotocol(connection, get_all("sec-websocket-protocol"))
            terms = None
            if self.deflate is not None:
                offers = [value.encode("latin-1") for value in get_all("sec-websocket-extensions")]
                terms = negotiate(offers, self.deflate)
        except HandshakeError as error:
            return plain_answer(error.status, f"{_FAILED_TEXT}: {error.body}.\n", error.headers)
        except InvalidHandshake as error:
            return plain_answer(400, f"{_FAILED_TEXT}: {error}.\n")
        except Exception:
            connection.logger.exception("opening handshake failed")
            return plain_answer(500, _SEE_LOG)
        connection.subprotocol = subprotocol
        if terms is not None:
            connection.deflate = terms
        return _switching_protocols(key, subprotocol, terms)

    def _check_origin(self, values: Sequence[str]) -> None:
        if self.origins is None:
            return
        if len(values) > 1:
            raise HandshakeError(400, "more than one Origin header")
        origin = values[0] if values else None
        for allowed in self.origins:
            if isinstance(allowed, re.Pattern):
                if origin is not None and allowed.fullmatch(origin):
                    return
            elif allowed == origin:
                return
        raise HandshakeError(403, "missing Origin header" if origin is None else f"invalid Origin header: {origin}")

    def _select_subprotocol(self, connection: ServerConnection, values: Iterable[str]) -> str | None:
        offered = [element for value in values for element in map(str.strip, value.split(",")) if element]
        if self.select_subprotocol is not None:
            return self.select_subprotocol(connection, offered)
        if not self.subprotocols:
            return None
        if not offered:
            raise NegotiationError("missing subprotocol")
        for subprotocol in self.subprotocols:
            if subprotocol in offered:
                return subprotocol
        raise NegotiationError("invalid subprotocol; expected one of " + ", ".join(self.subprotocols))


def _check_upgrade(method: str, protocol: str, get_all: Callable[[str], list[str]]) -> str:
    """Return the request's Sec-WebSocket-Key. Raises HandshakeError."""
    if method != "GET":
        raise HandshakeError(405, f"unsupported HTTP method: {method}", (("Allow", "GET"),))
    if protocol != "HTTP/1.1":
        raise HandshakeError(505, f"unsupported HTTP version: {protocol}")
    if len(get_all("host")) != 1:  # RFC 9112 3.2
        raise HandshakeError(400, "exactly one Host header is required")
    if "upgrade" not in _tokens(get_all("connection")):
        raise _upgrade_required("Connection", get_all("connection"))
    if _tokens(get_all("upgrade")) != ["websocket"]:
        raise _upgrade_required("Upgrade", get_all("upgrade"))
    keys = get_all("sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise HandshakeError(400, _complaint("Sec-WebSocket-Key", keys))
    if get_all("sec-websocket-version") != ["13"]:
        body = _complaint("Sec-WebSocket-Version", get_all("sec-websocket-version"))
        raise HandshakeError(400, body, (("Sec-WebSocket-Version", "13"),))
    return keys[0]


def _tokens(values: Iterable[str]) -> list[str]:
    return [token for value in values for token in map(str.strip, value.lower().split(",")) if token]


def _complaint(name: str, values: Sequence[str]) -> str:
    if len(values) > 1:
        return f"invalid {name} header: multiple values"
    return f"invalid {name} header: {values[0]}" if values else f"missing {name} header"


def _upgrade_required(name: str, values: Sequence[str]) -> HandshakeError:
    body = (
        f"{_complaint(name, values)}.\n\n"
        "You cannot access a WebSocket server directly with a browser. You need a WebSocket client"
    )
    return HandshakeError(426, body, (("Upgrade", "websocket"),))


def _switching_protocols(key: str, subprotocol: str | None, terms: DeflateTerms | None) -> Answer:
    proof = b2a_base64(sha1(key.encode() + _GUID, usedforsecurity=False).digest(), newline=False).decode()
    fields = [
        ("Date", _date(int(time.time()))),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", proof),
    ]
    if subprotocol is not None:
        fields.append(("Sec-WebSocket-Protocol", subprotocol))
    if terms is not None:
        fields.append(("Sec-WebSocket-Extensions", terms.response))
    return Answer(101, "Switching Protocols", fields)
