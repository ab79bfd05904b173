"""The PROXY protocol, versions 1 and 2: it names the client of a connection that comes through a load balancer.

Pure parsing of the first bytes of a stream, after HAProxy's proxy-protocol.txt (2020/03/05). upgrade.py decides whose
headers to trust: a header from any other peer is a forgery.
"""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from uringws.errors import ProtocolError

__all__ = ["HEADER_BYTES_MAX", "Endpoint", "ProxyHeader", "parse_proxy_header"]

Endpoint = tuple[str, int] | str
"""An IP address and port, or the path of a Unix socket ("" if it has none). An IPv4 address always has its plain form,
also where the proxy writes it as IPv6 (::ffff:192.0.2.1, RFC 4291 2.5.5.2)."""

HEADER_BYTES_MAX: Final = 4096
"""The longest header taken. Version 2 could announce 65,551 bytes; extensions in use stay far below this."""

_V1_PREFIX: Final = b"PROXY "
_V1_BYTES_MIN: Final = len(b"PROXY UNKNOWN\r\n")
_V1_BYTES_MAX: Final = 107  # section 2.1, the CRLF included
_V1_LINE: Final = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})")
_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN( .*)?", re.DOTALL)
_PORT_MAX: Final = 65_535

_V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_START_BYTES: Final = 16  # the signature, version and command, family, length of the rest
_V2_VERSION: Final = 2
_V2_LOCAL: Final = 0
_V2_PROXY: Final = 1
_V2_UNSPEC: Final = 0x00
_V2_TCP4: Final = 0x11
_V2_TCP6: Final = 0x21
_V2_UNIX_STREAM: Final = 0x31
_V2_ADDRESS_BYTES: Final = {_V2_TCP4: 4, _V2_TCP6: 16, _V2_UNIX_STREAM: 108}


class ProxyHeader(NamedTuple):
    """The content of a PROXY header."""

    source: Endpoint | None
    """The client. None if the proxy made the connection itself (a health check) or does not know the client: then the
    connection's own peer address counts."""
    destination: Endpoint | None
    """The address that the client connected to; None as for `source`."""
    header_bytes: int
    """The header's size: the client's own bytes follow."""


def parse_proxy_header(data: bytes) -> ProxyHeader | int:
    """Parse the PROXY header at the start of a stream.

    Returns the header. If `data` is only the beginning of one, returns the least number of bytes with which to try
    again (always more than `len(data)`, never more than HEADER_BYTES_MAX). Raises ProtocolError as soon as the bytes
    cannot begin a header, and for one longer than HEADER_BYTES_MAX.
    """
    if _V2_SIGNATURE.startswith(data[: len(_V2_SIGNATURE)]) and data:
        return _parse_v2(data)
    if _V1_PREFIX.startswith(data[: len(_V1_PREFIX)]):
        return _parse_v1(data)
    raise ProtocolError("a PROXY protocol header is required, and this is none")


def _parse_v1(data: bytes) -> ProxyHeader | int:
    end = data.find(b"\r\n", 0, _V1_BYTES_MAX)
    if end < 0:
        if len(data) >= _V1_BYTES_MAX:
            raise ProtocolError("PROXY v1: no end of line within 107 bytes")
        return max(_V1_BYTES_MIN, len(data) + 1)
    line, header_bytes = data[:end], end + 2
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(None, None, header_bytes)
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError("PROXY v1: malformed line")
    family, *fields = (field.decode("ascii") for field in match.groups())
    address = IPv4Address if family == "4" else IPv6Address
    try:
        source, destination = _plain(address(fields[0])), _plain(address(fields[1]))
    except ValueError as error:
        raise ProtocolError(f"PROXY v1: {error}") from error
    return ProxyHeader((source, _v1_port(fields[2])), (destination, _v1_port(fields[3])), header_bytes)


def _plain(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(address if mapped is None else mapped)


def _v1_port(text: str) -> int:
    port = int(text)
    if port > _PORT_MAX or str(port) != text:
        raise ProtocolError(f"PROXY v1: {text} is not a port")
    return port


def _parse_v2(data: bytes) -> ProxyHeader | int:
    if len(data) < _V2_START_BYTES:
        return _V2_START_BYTES
    version, command = divmod(data[12], 16)
    family = data[13]
    header_bytes = _V2_START_BYTES + int.from_bytes(data[14:16], "big")
    if version != _V2_VERSION:
        raise ProtocolError(f"PROXY v2: version {version} is unknown")
    if command not in (_V2_LOCAL, _V2_PROXY):
        raise ProtocolError(f"PROXY v2: command {command} is unknown")
    if header_bytes > HEADER_BYTES_MAX:
        raise ProtocolError(f"PROXY v2: {header_bytes} bytes of header, over {HEADER_BYTES_MAX}")
    ignored = command == _V2_LOCAL or family == _V2_UNSPEC  # section 2.2: whatever the rest says
    if not ignored and family not in _V2_ADDRESS_BYTES:
        raise ProtocolError(f"PROXY v2: family and protocol 0x{family:02x} is not of a stream")
    if len(data) < header_bytes:
        return header_bytes
    if ignored:
        return ProxyHeader(None, None, header_bytes)
    source, destination = _v2_endpoints(family, data[_V2_START_BYTES:header_bytes])
    return ProxyHeader(source, destination, header_bytes)


def _v2_endpoints(family: int, block: bytes) -> tuple[Endpoint, Endpoint]:
    """Return both ends from the address block; type-length-value extensions after it are skipped."""
    size = _V2_ADDRESS_BYTES[family]
    ports_bytes = 0 if family == _V2_UNIX_STREAM else 4
    if len(block) < 2 * size + ports_bytes:
        raise ProtocolError("PROXY v2: the address block is cut short")
    source, destination = block[:size], block[size : 2 * size]
    if family == _V2_UNIX_STREAM:
        return _v2_path(source), _v2_path(destination)
    ports = block[2 * size : 2 * size + ports_bytes]
    address = IPv4Address if family == _V2_TCP4 else IPv6Address
    return (
        (_plain(address(source)), int.from_bytes(ports[:2], "big")),
        (_plain(address(destination)), int.from_bytes(ports[2:], "big")),
    )


def _v2_path(field: bytes) -> str:
    # An abstract name begins with NUL; a path ends at one, unix(7).
    path = field.rstrip(b"\0") if field.startswith(b"\0") else field.partition(b"\0")[0]
    return os.fsdecode(path)
