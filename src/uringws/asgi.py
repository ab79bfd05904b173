"""ASGI's WebSocket messages (asgiref: specs/www.rst, extensions.rst): a request's scope, answers as bytes, and checks.

No I/O and no server: uvicorn.py carries it out.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from uringws.handshake import Accept, encode_accept
from uringws.http import TOKEN, encode_refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uringws.errors import HandshakeError
    from uringws.extensions import DeflateTerms
    from uringws.http import Request

__all__ = [
    "Denial",
    "Event",
    "Fields",
    "check_type",
    "encode_accepted",
    "encode_denied",
    "encode_error",
    "payload_of",
    "scope_of",
]

Event = dict[str, Any]
"""A message of ASGI, which `receive` returns and `send` takes."""

Fields = list[tuple[bytes, bytes]]
"""Field lines, as ASGI has them."""

_VALUE: Final = re.compile(rb"[\t -~\x80-\xff]*")  # RFC 9110 5.5: no CR, LF or NUL, which would break out of the line
_SUBPROTOCOL: Final = b"sec-websocket-protocol"
_OF_THE_UPGRADE: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        _SUBPROTOCOL,
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields of a 101 answer that the server writes."""
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_BODILESS: Final = frozenset({204, 205, 304})  # RFC 9110 15.3.5, 15.3.6, 15.4.5


def scope_of(request: Request, **more: Any) -> Event:
    """Return the scope of an opening request. `more` are the server's keys; `root_path` goes in front of the path."""
    root_path: str = more.get("root_path", "")
    raw_path = request.raw_path
    return {
        "type": "websocket",
        "http_version": request.http_version,
        "path": root_path + (unquote(raw_path) if "%" in raw_path else raw_path),
        "raw_path": (root_path + raw_path).encode(),
        "query_string": request.query.encode("ascii"),
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "subprotocols": list(request.subprotocols),
        "extensions": {"websocket.http.response": {}},
        **more,
    }


def payload_of(message: Event) -> str | bytes:
    """Return the payload of a `websocket.send`.

    Raises RuntimeError unless it has one of text and bytes, TypeError for a text that is not a str and bytes that are.
    """
    text, data = message.get("text"), message.get("bytes")
    if text is not None and data is None:
        if type(text) is str:
            return text
        raise TypeError(f"'text' of a 'websocket.send' message is a str, not {type(text).__name__}")
    if data is not None and text is None:
        if type(data) is not str:
            return data  # type: ignore[no-any-return]
        raise TypeError("'bytes' of a 'websocket.send' message are not a str")
    raise RuntimeError("a 'websocket.send' message has exactly one of 'bytes' and 'text' that is not None")


def check_type(message: Event, *expected: str) -> str:
    """Return the message's type. Raises RuntimeError if it is not one of those that may come now."""
    given: str = message["type"]
    if given not in expected:
        names = [f"'{name}'" for name in expected]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
        raise RuntimeError(f"Expected ASGI message {listed} but got '{given}'.")
    return given


def _encode_fields(fields: Iterable[tuple[bytes, bytes]], refused: frozenset[bytes] = frozenset()) -> bytes:
    lines = []
    for name, value in fields:
        if not TOKEN.fullmatch(name):
            raise RuntimeError(f"header name {name!r} is not a token (RFC 9110 5.1)")
        if name.lower() in refused:
            hint = ": give it as 'subprotocol'" if name.lower() == _SUBPROTOCOL else ""
            raise RuntimeError(f"header {name!r} of a 'websocket.accept' is the server's to write{hint}")
        if not _VALUE.fullmatch(value):
            raise RuntimeError(f"header {name!r}: the value {value!r} has a control character")
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


def encode_accepted(key: bytes, message: Event, default_headers: Fields, deflate: DeflateTerms | None = None) -> bytes:
    """Return the 101 answer that a `websocket.accept` stands for, `default_headers` first.

    Raises RuntimeError for headers that must not be there, or a subprotocol that is not a token.
    """
    lines = _encode_fields(default_headers) + _encode_fields(message.get("headers") or (), _OF_THE_UPGRADE)
    subprotocol = message.get("subprotocol")
    if subprotocol:
        name = subprotocol.encode("latin-1", "replace")
        if not TOKEN.fullmatch(name):
            raise RuntimeError(f"subprotocol {subprotocol!r} is not a token (RFC 6455 4.1)")
        lines += b"Sec-WebSocket-Protocol: %b\r\n" % name
    return encode_accept(key, Accept(), deflate=deflate)[:-2] + lines + b"\r\n"


def encode_denied(status: int, body: bytes, default_headers: Fields) -> bytes:
    """Return a whole answer of plain text, after which the connection is closed."""
    denial = Denial({"status": status, "headers": [(b"content-type", b"text/plain; charset=utf-8")]}, default_headers)
    return denial.add({"body": body})


def encode_error(error: HandshakeError, default_headers: Fields) -> bytes:
    """Return the answer to a request that cannot be upgraded, `default_headers` in the place of its own Date."""
    answer = encode_refusal(error)
    status, _, rest = answer.partition(b"\r\n")
    if _names(default_headers, b"date"):
        rest = re.sub(rb"Date: [^\r]*\r\n", b"", rest, count=1)
    return b"%b\r\n%b%b" % (status, _encode_fields(default_headers), rest)


def _names(fields: Fields, lower_name: bytes) -> bool:
    return any(name.lower() == lower_name for name, _ in fields)


class Denial:
    """A response that an application gives in place of an upgrade (`websocket.http.response`), as it is sent.

    Its head is kept until the first part of the body, or the end: a body that comes in one part gets a Content-Length,
    one in several parts, without a length of the application's own, is chunked (RFC 9112 7.1).
    """

    def __init__(self, message: Event, default_headers: Fields) -> None:
        """Take the `websocket.http.response.start`. Raises RuntimeError for an invalid status or header."""
        status = message["status"]
        if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
            raise RuntimeError(f"Invalid HTTP status code '{status}' in response.")
        self.status = status
        self.is_complete = False
        """Whether the whole response was given."""
        given: Fields = [(bytes(name), bytes(value)) for name, value in message.get("headers") or ()]
        fields = [(name, value) for name, value in given if name.lower() not in (b"connection", b"transfer-encoding")]
        for name, value in default_headers:
            if not _names(fields, name.lower()):
                fields.append((name, value))
        if not _names(fields, b"date"):
            fields.append((b"date", formatdate(time.time(), usegmt=True).encode()))
        self._has_length = _names(fields, b"content-length")
        self._head: bytes | None = _encode_fields(fields)
        self._chunked = False

    def add(self, message: Event) -> bytes:
        """Take a `websocket.http.response.body`; return the bytes to write now."""
        body: bytes = message.get("body", b"")
        return self._encode(body, last=not message.get("more_body", False))

    def finish(self) -> bytes:
        """End a response that the application has left unfinished; return the bytes to write."""
        return self._encode(b"", last=True)

    def _encode(self, body: bytes, *, last: bool) -> bytes:
        self.is_complete = last
        head, self._head = self._head, None
        if self.status in _BODILESS:
            body = b""
        if head is not None:
            return self._begin(head, body, last=last)
        return self._chunk(body, last=last) if self._chunked else body

    def _begin(self, lines: bytes, body: bytes, *, last: bool) -> bytes:
        if not self._has_length and self.status not in _BODILESS:
            if last:
                lines += b"content-length: %d\r\n" % len(body)
            else:
                lines += b"transfer-encoding: chunked\r\n"
                self._chunked = True
                body = self._chunk(body, last=False)
        start = f"HTTP/1.1 {self.status} {_PHRASES.get(self.status, '')}\r\n".encode("ascii")
        return b"%b%bconnection: close\r\n\r\n%b" % (start, lines, body)

    @staticmethod
    def _chunk(body: bytes, *, last: bool) -> bytes:
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return chunk + b"0\r\n\r\n" if last else chunk
