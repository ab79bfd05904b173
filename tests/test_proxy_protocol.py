"""proxy_protocol.py: both versions, whole and cut anywhere, and bytes that must not be taken for a header."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uringws.errors import ProtocolError
from uringws.proxy_protocol import HEADER_BYTES_MAX, ProxyHeader, parse_proxy_header

SIGNATURE = bytes.fromhex("0D0A0D0A000D0A515549540A")
TCP4 = b"\xc0\0\x02\x01" + b"\xc0\0\x02\x02" + b"\xdc\x04" + b"\x01\xbb"
TCP6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + socket.inet_pton(socket.AF_INET6, "::1") + b"\0\x01\xff\xff"
MAPPED = bytes(10) + b"\xff\xff" + TCP4[:4] + bytes(10) + b"\xff\xff" + TCP4[4:]
UNIX = b"/run/a.sock".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")
TLV = b"\x02\0\x09a.example"


def v2(block: bytes, *, command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(block).to_bytes(2, "big") + block


HEADERS = [
    pytest.param(
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
        ("192.0.2.1", 56324),
        ("192.0.2.2", 443),
        id="v1 TCP4",
    ),
    pytest.param(b"PROXY TCP6 2001:DB8::1 ::1 1 0\r\n", ("2001:db8::1", 1), ("::1", 0), id="v1 TCP6"),
    pytest.param(
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
        id="v1 longest TCP6",
    ),
    pytest.param(
        b"PROXY TCP6 ::ffff:192.0.2.1 ::FFFF:c000:202 56324 443\r\n",
        ("192.0.2.1", 56324),
        ("192.0.2.2", 443),
        id="v1 TCP6 of mapped IPv4",  # HAProxy, bound to :::443 v4v6
    ),
    pytest.param(b"PROXY UNKNOWN\r\n", None, None, id="v1 UNKNOWN"),
    pytest.param(b"PROXY UNKNOWN ffff::1 whatever\0 it says\r\n", None, None, id="v1 UNKNOWN with more"),
    pytest.param(b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None, None, id="v1 of 107 bytes"),
    pytest.param(v2(TCP4), ("192.0.2.1", 56324), ("192.0.2.2", 443), id="v2 TCP4"),
    pytest.param(v2(TCP4 + TLV), ("192.0.2.1", 56324), ("192.0.2.2", 443), id="v2 TCP4 with an extension"),
    pytest.param(v2(TCP6, family=0x21), ("2001:db8::1", 1), ("::1", 65535), id="v2 TCP6"),
    pytest.param(v2(MAPPED, family=0x21), ("192.0.2.1", 56324), ("192.0.2.2", 443), id="v2 TCP6 of mapped IPv4"),
    pytest.param(v2(UNIX, family=0x31), "/run/a.sock", "\0abstract", id="v2 Unix"),
    pytest.param(v2(b"x" * 216, family=0x31), "x" * 108, "x" * 108, id="v2 longest Unix"),
    pytest.param(v2(bytes(216), family=0x31), "", "", id="v2 Unix without names"),
    pytest.param(v2(b"", command=0x20, family=0x00), None, None, id="v2 LOCAL"),
    pytest.param(v2(TCP4, command=0x20), None, None, id="v2 LOCAL with addresses"),
    pytest.param(v2(TLV, command=0x20, family=0xFF), None, None, id="v2 LOCAL of a strange family"),
    pytest.param(v2(b"", family=0x00), None, None, id="v2 UNSPEC"),
    pytest.param(v2(TLV, family=0x00), None, None, id="v2 UNSPEC with an extension"),
    pytest.param(
        v2(TCP4 + bytes(HEADER_BYTES_MAX - 28)), ("192.0.2.1", 56324), ("192.0.2.2", 443), id="v2 of the greatest size"
    ),
]


@pytest.mark.parametrize("rest", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\r\n\0" * 50], ids=["alone", "HTTP", "bytes"])
@pytest.mark.parametrize(("header", "source", "destination"), HEADERS)
def test_headers_taken(header: bytes, source: object, destination: object, rest: bytes) -> None:
    assert parse_proxy_header(header + rest) == ProxyHeader(source, destination, len(header))  # type: ignore[arg-type]


BYTES = [pytest.param(header.values[0], id=header.id) for header in HEADERS]


@pytest.mark.parametrize("header", BYTES)
def test_headers_cut_anywhere_ask_for_more(header: bytes) -> None:
    for length in range(len(header)):
        needed = parse_proxy_header(header[:length])
        assert isinstance(needed, int)
        assert length < needed <= len(header)


@pytest.mark.parametrize("header", BYTES)
def test_asking_for_the_number_of_bytes_needed_ends(header: bytes) -> None:
    rounds, have = 0, 0
    while isinstance(result := parse_proxy_header(header[:have]), int):
        have, rounds = result, rounds + 1
    assert result.header_bytes == have == len(header)
    assert rounds <= 107


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n", id="HTTP"),
        pytest.param(b"\x16\x03\x01", id="TLS"),
        pytest.param(b"\0", id="NUL"),
        pytest.param(b"proxy TCP4", id="lower case"),
        pytest.param(b"PROXYTCP4", id="no space"),
        pytest.param(b"\r\nGET", id="an empty line, then HTTP"),
        pytest.param(b"PROXY \r\n", id="v1 without a family"),
        pytest.param(b"PROXY UNKNOWNX\r\n", id="v1 a longer word"),
        pytest.param(b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n", id="v1 TCP5"),
        pytest.param(b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", id="v1 UDP4"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", id="v1 a port missing"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n", id="v1 a field too many"),
        pytest.param(b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", id="v1 two spaces"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", id="v1 a space at the end"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n\r\n", id="v1 LF at the end"),
        pytest.param(b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", id="v1 a leading zero in an address"),
        pytest.param(b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n", id="v1 an address out of range"),
        pytest.param(b"PROXY TCP4 ::1 ::1 1 2\r\n", id="v1 IPv6 as TCP4"),
        pytest.param(b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", id="v1 IPv4 as TCP6"),
        pytest.param(b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", id="v1 a scope"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", id="v1 a port out of range"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", id="v1 a leading zero in a port"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n", id="v1 a negative port"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \xb2\r\n", id="v1 a digit that is not ASCII"),
        pytest.param(b"PROXY UNKNOWN " + b"x" * 93, id="v1 no end in 107 bytes"),
        pytest.param(b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", id="v1 of 108 bytes"),
        pytest.param(SIGNATURE + b"\x11\x11\0\0", id="v2 version 1"),
        pytest.param(SIGNATURE + b"\x31\x11\0\0", id="v2 version 3"),
        pytest.param(SIGNATURE + b"\x22\x11\0\0", id="v2 command 2"),
        pytest.param(SIGNATURE + b"\x21\x12\0\0", id="v2 UDP4"),
        pytest.param(SIGNATURE + b"\x21\x22\0\0", id="v2 UDP6"),
        pytest.param(SIGNATURE + b"\x21\x32\0\0", id="v2 Unix datagrams"),
        pytest.param(SIGNATURE + b"\x21\x10\0\0", id="v2 IPv4 of no protocol"),
        pytest.param(SIGNATURE + b"\x21\x41\0\0", id="v2 an unknown family"),
        pytest.param(SIGNATURE + b"\x21\x11\x0f\xf1", id="v2 over the greatest size"),
        pytest.param(SIGNATURE + b"\x20\x00\xff\xff", id="v2 LOCAL over the greatest size"),
        pytest.param(v2(TCP4[:-1]), id="v2 TCP4 cut short"),
        pytest.param(v2(b""), id="v2 TCP4 of no bytes"),
        pytest.param(v2(TCP4, family=0x21), id="v2 TCP6 cut short"),
        pytest.param(v2(UNIX[:-1], family=0x31), id="v2 Unix cut short"),
    ],
)
def test_headers_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="PROXY"):
        parse_proxy_header(data)


@pytest.mark.parametrize("wrong", range(12))
def test_a_wrong_byte_in_the_signature_is_refused_at_once(wrong: int) -> None:
    data = bytearray(SIGNATURE[: wrong + 1])
    data[wrong] ^= 0x40
    with pytest.raises(ProtocolError):
        parse_proxy_header(bytes(data))


ports = st.integers(0, 65535)
ip_pairs = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)), st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6))
)


def plain(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


@given(ip_pairs, ports, ports, st.binary(max_size=40))
def test_every_address_in_both_versions(
    pair: tuple[IPv4Address, IPv4Address] | tuple[IPv6Address, IPv6Address], source: int, destination: int, rest: bytes
) -> None:
    line = f"PROXY TCP{pair[0].version} {pair[0]} {pair[1]} {source} {destination}\r\n".encode()
    block = pair[0].packed + pair[1].packed + source.to_bytes(2, "big") + destination.to_bytes(2, "big")
    binary = v2(block, family=0x11 if pair[0].version == 4 else 0x21)
    for header in (line, binary):
        assert parse_proxy_header(header + rest) == (
            (plain(pair[0]), source),
            (plain(pair[1]), destination),
            len(header),
        )


@given(
    st.one_of(
        st.binary(max_size=150),
        st.binary(max_size=150).map(lambda data: b"PROXY " + data),
        st.binary(max_size=110).map(lambda data: b"PROXY TCP4 " + data + b"\r\n"),
        st.binary(max_size=300).map(lambda data: SIGNATURE + data),
        st.binary(max_size=300).map(lambda data: SIGNATURE + b"\x21" + data),
    )
)
def test_any_bytes_are_taken_refused_or_not_enough(data: bytes) -> None:
    try:
        result = parse_proxy_header(data)
    except ProtocolError:
        return
    if isinstance(result, int):
        assert len(data) < result <= HEADER_BYTES_MAX
    else:
        assert 15 <= result.header_bytes <= len(data)
