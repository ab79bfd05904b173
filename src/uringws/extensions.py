"""Extensions of the opening handshake (RFC 6455 9.1): offers parsed, permessage-deflate (RFC 7692 7.1) negotiated.

Pure functions and declarations; deflate.c compresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from uringws.errors import HandshakeError, OptionsError

__all__ = ["Deflate", "DeflateTerms", "Extension", "negotiate", "parse_extensions"]

_NAME: Final = "permessage-deflate"
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 5.6.2
_SPACE: Final = re.compile(rb"[ \t]*")
_BITS: Final = {str(bits): bits for bits in range(8, 16)}  # RFC 7692 7.1.2: decimal, no leading zero
_BITS_MAX: Final = 15
_BITS_MIN: Final = 9
"""zlib cannot compress with a window of 8 bits, and many clients' zlib uses 9 where 8 was agreed."""
_CACHED_BYTES_MAX: Final = 256
# Safari 15.0 to 15.3 cannot read compressed messages of some sizes (WebKit bug 228296).
_BROKEN_SAFARI: Final = re.compile(rb" Version/15\.[0-3](?:\.[0-9]+)* (?:Mobile/[0-9A-Za-z]+ )?Safari/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deflate:
    """The settings of permessage-deflate (RFC 7692), for `Options.deflate`. Clients that do not offer it get none.

    Raises `OptionsError`, a ValueError, that names the field, its value and what is allowed.
    """

    level: int = 6
    """The effort of the compressor: 1 (fast) to 9 (small). Level 1 takes half the time of 6 and a quarter more
    bytes."""

    bytes_min: int | None = None
    """Smaller messages are sent uncompressed. Empty ones always are. None: 512, or 32 with `takeover`."""

    takeover: bool = False
    """Whether both sides keep their window from one message to the next, if the client agrees. Small messages that
    resemble each other then take a fraction of the bytes; but each connection that compresses or is compressed to has
    memory of its own: 38 and 12 KiB with the default window. It counts in `Options.memory_bytes_max`."""

    window_bits: int | None = None
    """The base-2 logarithm of the largest window in bytes: 9 to 15. With `takeover` the client is asked for the same.
    None: 15, or 12 with `takeover`."""

    memory_level: int | None = None
    """The compressor's memory for its search, 1 to 9: it takes 2 to the power of 9 plus this. None: 8, or 5 with
    `takeover`."""

    def __post_init__(self) -> None:
        _check("level", self.level, 1, 9)
        _check("bytes_min", self.bytes_min, 0, 2**31 - 1)
        _check("window_bits", self.window_bits, _BITS_MIN, _BITS_MAX)
        _check("memory_level", self.memory_level, 1, 9)
        if not isinstance(self.takeover, bool):
            raise OptionsError("deflate.takeover", self.takeover, "True or False")

    def effective(self) -> tuple[int, int, int]:
        """Return `bytes_min`, `window_bits` and `memory_level` with the defaults filled in."""
        defaults = (32, 12, 5) if self.takeover else (512, _BITS_MAX, 8)
        own = (self.bytes_min, self.window_bits, self.memory_level)
        bytes_min, window_bits, memory_level = (
            default if value is None else value for value, default in zip(own, defaults, strict=True)
        )
        return bytes_min, window_bits, memory_level


def _check(name: str, value: object, low: int, high: int) -> None:
    if value is None and name != "level":
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        none = "" if name == "level" else "None or "
        raise OptionsError(f"deflate.{name}", value, f"{none}a whole number from {low} to {high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeflateTerms:
    """The parameters of permessage-deflate that a connection has agreed on (RFC 7692 7.1).

    The defaults are those of the extension without a parameter. Raises ValueError for a window that this library cannot
    use.
    """

    server_window_bits: int = _BITS_MAX
    """The base-2 logarithm of the window of the server's messages, 9 to 15."""

    client_window_bits: int = _BITS_MAX
    """The same for those of the client, 8 to 15."""

    server_takeover: bool = True
    """Whether the server keeps its window from one message to the next."""

    client_takeover: bool = True
    """Whether the client does."""

    response: str = field(default=_NAME, compare=False)
    """The value of Sec-WebSocket-Extensions in the 101 answer that says so."""

    def __post_init__(self) -> None:
        if not _BITS_MIN <= self.server_window_bits <= _BITS_MAX or not 8 <= self.client_window_bits <= _BITS_MAX:
            raise ValueError(
                f"the server's window has 9 to 15 bits, the client's 8 to 15, "
                f"not {self.server_window_bits} and {self.client_window_bits}"
            )

    @property
    def number(self) -> int:
        """Everything in one number, as the shim takes it (`enum urs_deflate_term`)."""
        takeover = 0x100 * self.server_takeover + 0x200 * self.client_takeover
        return takeover | self.client_window_bits << 4 | self.server_window_bits

    @classmethod
    def from_response(cls, value: str) -> DeflateTerms | None:
        """Return the terms of a 101 answer's Sec-WebSocket-Extensions, None if it does not name permessage-deflate.

        For connections whose opening handshake another library has done. Raises ValueError for terms that this library
        cannot keep.
        """
        for extension in parse_extensions([value.encode("latin-1")]):
            if extension.name == _NAME:
                parameters = _read_parameters(extension)
                bits = None if parameters is None else parameters.client_max_window_bits
                if parameters is None or bits == 0:
                    raise ValueError(f"malformed answer to permessage-deflate: {value!r}")
                return cls(
                    server_window_bits=parameters.server_max_window_bits or _BITS_MAX,
                    client_window_bits=bits or _BITS_MAX,
                    server_takeover=not parameters.server_no_context_takeover,
                    client_takeover=not parameters.client_no_context_takeover,
                    response=value,
                )
        return None


class Extension(NamedTuple):
    """One element of Sec-WebSocket-Extensions."""

    name: str
    parameters: list[tuple[str, str | None]]
    """In their order; None for a parameter without a value."""


class _Scanner:
    """Reads a field value from its front to its end, each byte once."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self._skip()

    def _skip(self) -> None:
        found = _SPACE.match(self.data, self.at)
        assert found is not None  # noqa: S101 - it matches no bytes too
        self.at = found.end()

    def take(self, separator: bytes) -> bool:
        """Take a separator and the spaces after it, if it comes next."""
        if self.data[self.at : self.at + 1] != separator:
            return False
        self.at += 1
        self._skip()
        return True

    def token(self) -> str:
        found = _TOKEN.match(self.data, self.at)
        if found is None:
            raise ValueError("a token is missing")
        self.at = found.end()
        self._skip()
        return found[0].decode("ascii")

    def value(self) -> str:
        """Take a token, or a quoted string that holds one: RFC 6455 9.1."""
        if self.data[self.at : self.at + 1] != b'"':
            return self.token()
        at, unescaped = self.at + 1, bytearray()
        while True:
            byte = self.data[at : at + 1]
            at += 1
            if byte == b'"':
                break
            if byte == b"\\":
                byte = self.data[at : at + 1]
                at += 1
            if not byte:
                raise ValueError("a quoted string does not end")
            unescaped += byte
        self.at = at
        self._skip()
        if not _TOKEN.fullmatch(unescaped):
            raise ValueError("a quoted value is no token")
        return unescaped.decode("ascii")


def parse_extensions(values: Iterable[bytes]) -> list[Extension]:
    """Return the elements of the Sec-WebSocket-Extensions fields of a request or answer, in order.

    Empty elements are skipped (RFC 9110 5.6.1.2). The time is linear in the size. Raises ValueError for a field that
    breaks the grammar of RFC 6455 9.1.
    """
    found: list[Extension] = []
    for value in values:
        scanner = _Scanner(value)
        while scanner.at < len(value):
            if scanner.take(b","):
                continue
            extension = Extension(scanner.token(), [])
            while scanner.take(b";"):
                name = scanner.token()
                extension.parameters.append((name, scanner.value() if scanner.take(b"=") else None))
            found.append(extension)
            if scanner.at < len(value) and not scanner.take(b","):
                raise ValueError("a comma or a semicolon is missing")
    return found


class _Parameters(NamedTuple):
    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None
    """0: offered without a value."""


def _read_parameters(extension: Extension) -> _Parameters | None:
    """Return the parameters of permessage-deflate; None for unknown or repeated ones, and for bad values: RFC 7692 7.1.

    Such an offer must be declined.
    """
    given = dict(extension.parameters)
    if len(given) != len(extension.parameters) or not given.keys() <= set(_Parameters._fields):
        return None
    found: dict[str, int | bool] = {}
    for name, value in given.items():
        if name.endswith("takeover"):
            if value is not None:
                return None
            found[name] = True
        elif value is None:
            if name == "server_max_window_bits":
                return None
            found[name] = 0
        elif value in _BITS:
            found[name] = _BITS[value]
        else:
            return None
    return _Parameters(**found)  # type: ignore[arg-type]


def _accept(offered: _Parameters, deflate: Deflate) -> DeflateTerms | None:
    """Return the terms that answer an offer; None for one that this server cannot accept."""
    _, window_bits, _ = deflate.effective()
    parts = [_NAME]
    server_takeover = deflate.takeover and not offered.server_no_context_takeover
    if not server_takeover:
        parts.append("server_no_context_takeover")
    client_takeover = deflate.takeover and not offered.client_no_context_takeover
    if not client_takeover:
        parts.append("client_no_context_takeover")
    wanted = offered.server_max_window_bits
    if wanted is not None and wanted < _BITS_MIN:
        return None
    server_bits = min(window_bits, wanted or _BITS_MAX)
    if wanted is not None or server_bits < _BITS_MAX:
        parts.append(f"server_max_window_bits={server_bits}")
    client_bits = _BITS_MAX
    if offered.client_max_window_bits is not None and client_takeover:
        bits = min(window_bits, offered.client_max_window_bits or _BITS_MAX)
        if bits >= _BITS_MIN:
            client_bits = bits
            parts.append(f"client_max_window_bits={bits}")
    return DeflateTerms(
        server_window_bits=server_bits,
        client_window_bits=client_bits,
        server_takeover=server_takeover,
        client_takeover=client_takeover,
        response="; ".join(parts),
    )


def _choose(values: Sequence[bytes], deflate: Deflate) -> DeflateTerms | None:
    try:
        offers = parse_extensions(values)
    except ValueError as error:
        raise HandshakeError(400, f"malformed Sec-WebSocket-Extensions: {error}") from None
    for offer in offers:
        parameters = _read_parameters(offer) if offer.name == _NAME else None
        terms = None if parameters is None else _accept(parameters, deflate)
        if terms is not None:
            return terms
    return None


_choose_again: Final = lru_cache(maxsize=256)(_choose)  # all clients of a kind make the same offer


def negotiate(values: Sequence[bytes], deflate: Deflate, user_agent: bytes = b"") -> DeflateTerms | None:
    """Return the terms of permessage-deflate for a request with these values of Sec-WebSocket-Extensions.

    The first of the client's offers that can be accepted is. None: there is no such offer, and the 101 answer names no
    extension. Raises HandshakeError (400) for values that break the grammar.
    """
    if not values or (user_agent and _BROKEN_SAFARI.search(user_agent) is not None):
        return None
    if sum(map(len, values)) <= _CACHED_BYTES_MAX:
        return _choose_again(tuple(values), deflate)
    return _choose(values, deflate)
