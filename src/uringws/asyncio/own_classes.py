"""Classes with the names and the meaning of those of `websockets`, for a machine on which it is not installed.

Only the names that a server program uses. classes.py chooses between these and those of `websockets`.
"""

# ruff: noqa: N818  (the names are those of websockets)

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

__all__ = [
    "Close",
    "ConcurrencyError",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "Headers",
    "InvalidHandshake",
    "InvalidHeader",
    "InvalidHeaderValue",
    "InvalidOrigin",
    "InvalidUpgrade",
    "MultipleValuesError",
    "NegotiationError",
    "PayloadTooBig",
    "ProtocolError",
    "Request",
    "Response",
    "State",
    "WebSocketException",
]

_FIELD_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")  # RFC 9110 5.5
_EXPLANATIONS: Final = {
    1000: "OK",
    1001: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    1005: "no status received [internal]",
    1006: "abnormal closure [internal]",
    1007: "invalid frame payload data",
    1008: "policy violation",
    1009: "message too big",
    1010: "mandatory extension",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
    1015: "TLS handshake failure [internal]",
}


class State(IntEnum):
    """The state of a connection, RFC 6455 4.1 and 7.1."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


@dataclass
class Close:
    """The code and the reason of a close frame; 1005 stands for a frame without a code."""

    code: int
    reason: str

    def __str__(self) -> str:
        if 3000 <= self.code < 4000:
            explanation = "registered"
        elif 4000 <= self.code < 5000:
            explanation = "private use"
        else:
            explanation = _EXPLANATIONS.get(self.code, "unknown")
        return f"{self.code} ({explanation}) {self.reason}".rstrip()


class WebSocketException(Exception):
    """The base of all exceptions of this module."""


class ConnectionClosed(WebSocketException):
    """The connection is closed: nothing more can be received or sent.

    `rcvd` and `sent` are the close frames of the peer and of this side, None where there was none. `rcvd_then_sent`
    tells their order, None unless there were both.
    """

    def __init__(self, rcvd: Close | None, sent: Close | None, rcvd_then_sent: bool | None = None) -> None:
        super().__init__(rcvd, sent, rcvd_then_sent)
        self.rcvd = rcvd
        self.sent = sent
        self.rcvd_then_sent = rcvd_then_sent

    def __str__(self) -> str:
        if self.rcvd is None and self.sent is None:
            return "no close frame received or sent"
        if self.rcvd is None:
            return f"sent {self.sent}; no close frame received"
        if self.sent is None:
            return f"received {self.rcvd}; no close frame sent"
        if self.rcvd_then_sent:
            return f"received {self.rcvd}; then sent {self.sent}"
        return f"sent {self.sent}; then received {self.rcvd}"


class ConnectionClosedOK(ConnectionClosed):
    """Both sides sent a close frame, with code 1000, 1001 or none."""


class ConnectionClosedError(ConnectionClosed):
    """The connection was lost, or closed with another code."""


class ConcurrencyError(WebSocketException, RuntimeError):
    """Two tasks use a connection in a way that only one may."""


class ProtocolError(WebSocketException):
    """A frame that RFC 6455 does not allow."""


class PayloadTooBig(WebSocketException):
    """A message or a fragment is larger than `max_size`."""

    def __init__(self, size: int | None, max_size: int | None = None) -> None:
        super().__init__(size, max_size)
        self.size = size
        self.max_size = max_size

    def __str__(self) -> str:
        of = "" if self.size is None else f" of {self.size} bytes"
        return f"frame{of} exceeds limit of {self.max_size} bytes"


class InvalidHandshake(WebSocketException):
    """The base of the exceptions of an opening handshake."""


class InvalidHeader(InvalidHandshake):
    """A header is missing, or its value is not understood."""

    def __init__(self, name: str, value: str | None = None) -> None:
        super().__init__(name, value)
        self.name = name
        self.value = value

    def __str__(self) -> str:
        if self.value is None:
            return f"missing {self.name} header"
        if not self.value:
            return f"empty {self.name} header"
        return f"invalid {self.name} header: {self.value}"


class InvalidHeaderValue(InvalidHeader):
    """A header's value is understood, and not acceptable."""


class InvalidOrigin(InvalidHeader):
    """The Origin of a request is not among `origins`."""

    def __init__(self, origin: str | None) -> None:
        super().__init__("Origin", origin)


class InvalidUpgrade(InvalidHeader):
    """The Upgrade or the Connection header does not ask for a WebSocket."""


class NegotiationError(InvalidHandshake):
    """The two sides have no subprotocol in common."""


class MultipleValuesError(LookupError):
    """`headers[name]` was asked for the one value of a header that has several: `get_all` returns them."""

    def __str__(self) -> str:
        # LookupError would quote its only argument.
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class Headers(MutableMapping[str, str]):
    """The fields of a request or a response, by name in upper or lower case.

    `headers[name] = value` adds a value to those that the name has; `del headers[name]` removes them all.
    `headers[name]` raises KeyError without a value and MultipleValuesError with several. Raises InvalidHeaderValue for
    a value with control characters or beyond Latin-1.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, str] | Iterable[tuple[str, str]] = (), **named: str) -> None:
        self._fields: list[tuple[str, str]] = []
        self.update(fields, **named)

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        if len(values) > 1:
            raise MultipleValuesError(name)
        return values[0]

    def __setitem__(self, name: str, value: str) -> None:
        if not _is_field_value(value):
            raise InvalidHeaderValue(name, value)
        self._fields.append((name, value))

    def __delitem__(self, name: str) -> None:
        kept = [(other, value) for other, value in self._fields if other.lower() != name.lower()]
        if len(kept) == len(self._fields):
            raise KeyError(name)
        self._fields = kept

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(other.lower() == name.lower() for other, _ in self._fields)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.lower() for name, _ in self._fields))

    def __len__(self) -> int:
        return len({name.lower() for name, _ in self._fields})

    def __str__(self) -> str:
        return "".join(f"{name}: {value}\r\n" for name, value in self._fields) + "\r\n"

    def __repr__(self) -> str:
        return f"Headers({self._fields!r})"

    def copy(self) -> Headers:
        """Return another object with the same fields."""
        return Headers(self._fields)

    def clear(self) -> None:
        """Remove all fields."""
        self._fields.clear()

    def update(self, fields: Any = (), /, **named: str) -> None:
        """Add the fields of other Headers, of a mapping, or of pairs."""
        super().update(fields.raw_items() if isinstance(fields, Headers) else fields, **named)

    def get_all(self, name: str) -> list[str]:
        """Return the values of a name, in their order; empty if it has none."""
        return [value for other, value in self._fields if other.lower() == name.lower()]

    def raw_items(self) -> Iterator[tuple[str, str]]:
        """Return all (name, value) pairs, in their order."""
        return iter(self._fields)

    def serialize(self) -> bytes:
        """Return the field lines and the empty line after them."""
        return str(self).encode("latin-1")


def _is_field_value(value: object) -> bool:
    return isinstance(value, str) and all(
        char == "\t" or " " <= char <= "~" or "\x80" <= char <= "\xff" for char in value
    )


@dataclass
class Request:
    """An opening request. `path` is the request target as it came, the query included."""

    path: str
    headers: Headers
    method: str = "GET"
    protocol: str = "HTTP/1.1"

    def serialize(self) -> bytes:
        """Return the bytes of the request's head."""
        return f"{self.method} {self.path} {self.protocol}\r\n".encode("ascii") + self.headers.serialize()


@dataclass
class Response:
    """The answer to an opening request."""

    status_code: int
    reason_phrase: str
    headers: Headers = field(default_factory=Headers)
    body: bytes | bytearray = b""

    def serialize(self) -> bytes:
        """Return the bytes of the answer."""
        line = f"HTTP/1.1 {self.status_code} {self.reason_phrase}\r\n".encode("latin-1")
        return line + self.headers.serialize() + self.body
