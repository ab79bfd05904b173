"""frame.c against the codec: headers are read and written as it does, and a broken one is refused at the first byte
that proves it broken.
"""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import codec
from fenced import fenced_memory
from uringws.shim import ffi, lib

CLIENT, SERVER, RSV1 = lib.URS_FRAME_FROM_CLIENT, lib.URS_FRAME_FROM_SERVER, lib.URS_FRAME_RSV1_ALLOWED
EVERY_RULE = [0, CLIENT, SERVER, RSV1, CLIENT | RSV1, SERVER | RSV1]
ERRORS = {getattr(lib, name): name.removeprefix("URS_ERROR_") for name in dir(lib) if name.startswith("URS_ERROR_")}

KEY = bytes.fromhex("37fa213d")
SIZES = (0, 1, 125, 126, 127, 65535, 65536, 2**31, 2**32, 2**63 - 1)
KNOWN = (codec.CONTINUATION, codec.TEXT, codec.BINARY, codec.CLOSE, codec.PING, codec.PONG)

Parsed = dict[str, Any] | str | int


def parse(data: bytes, rules: int) -> Parsed:
    """The header's fields; or the name of the error; or, for the beginning of a header, its least size."""
    header = ffi.new("struct urs_frame_header *")
    ffi.memmove(header, b"\xee" * ffi.sizeof("struct urs_frame_header"), ffi.sizeof("struct urs_frame_header"))
    size = lib.urs_frame_parse(data, len(data), rules, header)
    if size < 0:
        return ERRORS[size]
    if size == 0:
        return int(header.header_bytes)
    assert size == header.header_bytes
    fields = {name: getattr(header, name) for name in ("fin", "rsv", "opcode", "masked", "payload_bytes")}
    return fields | {"key": bytes(header.masking_key), "size": size}


# The oracle for broken headers


def first_byte_error(byte: int, rules: int) -> str | None:
    fin, rsv, opcode = byte >> 7, byte >> 4 & 7, byte & 0xF
    begins_a_message = opcode in (codec.TEXT, codec.BINARY)
    if rsv and not (rsv == 4 and rules & RSV1 and (begins_a_message or opcode in range(3, 8))):
        return "RSV"
    if opcode not in KNOWN:
        return "OPCODE"
    return "CONTROL_FRAGMENTED" if opcode >= 8 and not fin else None


def second_byte_error(byte: int, opcode: int, rules: int) -> str | None:
    masked, length = byte >> 7, byte & 0x7F
    if rules & CLIENT and not masked:
        return "UNMASKED"
    if rules & SERVER and masked:
        return "MASKED"
    return "CONTROL_LENGTH" if opcode >= 8 and length > 125 else None


def length_error(length: int, known: bytes) -> str | None:
    """An extended length of which only the bytes `known` are there can still have any value from `least` to `most`."""
    size = {126: 2, 127: 8}.get(length, 0)
    least = int.from_bytes(known[:size].ljust(size, b"\x00"))
    most = int.from_bytes(known[:size].ljust(size, b"\xff"))
    if size == 8 and least > 2**63 - 1:
        return "LENGTH_TOP_BIT"
    return "LENGTH_NOT_MINIMAL" if most < {0: 0, 2: 126, 8: 65536}[size] else None


def expected(data: bytes, rules: int) -> Parsed:
    """The expected result of parse()."""
    if not data:
        return 2
    if error := first_byte_error(data[0], rules):
        return error
    if len(data) < 2:
        return 2
    masked, length = data[1] & 0x80, data[1] & 0x7F
    if error := second_byte_error(data[1], data[0] & 0xF, rules) or length_error(length, data[2:]):
        return error
    extended = {126: 2, 127: 8}.get(length, 0)
    size = 2 + extended + (4 if masked else 0)
    if len(data) < size:
        return size
    return {
        "fin": bool(data[0] & 0x80),
        "rsv": data[0] >> 4 & 7,
        "opcode": data[0] & 0xF,
        "masked": bool(masked),
        "payload_bytes": int.from_bytes(data[2 : 2 + extended]) if extended else length,
        "key": data[size - 4 : size] if masked else bytes(4),
        "size": size,
    }


# The oracles themselves


def test_the_codecs_examples() -> None:
    assert doctest.testmod(codec) == (0, 3)


@pytest.mark.parametrize(
    ("wire", "frame"),
    [
        ("810548656c6c6f", codec.Frame(codec.TEXT, b"Hello")),
        ("818537fa213d7f9f4d5158", codec.Frame(codec.TEXT, b"Hello", key=KEY)),
        ("010348656c", codec.Frame(codec.TEXT, b"Hel", fin=False)),
        ("80026c6f", codec.Frame(codec.CONTINUATION, b"lo")),
        ("890548656c6c6f", codec.Frame(codec.PING, b"Hello")),
        ("8a8537fa213d7f9f4d5158", codec.Frame(codec.PONG, b"Hello", key=KEY)),
        ("827e0100" + "ab" * 256, codec.Frame(codec.BINARY, b"\xab" * 256)),
        ("827f0000000000010000" + "ab" * 65536, codec.Frame(codec.BINARY, b"\xab" * 65536)),
    ],
)
def test_the_rfcs_examples(wire: str, frame: codec.Frame) -> None:
    """RFC 6455 section 5.7, word for word."""
    assert frame.encode() == bytes.fromhex(wire)
    assert codec.decode(bytes.fromhex(wire)) == ([frame], b"")
    for cut in range(min(len(wire) // 2, 20)):
        assert codec.decode(bytes.fromhex(wire)[:cut]) == ([], bytes.fromhex(wire)[:cut])


# Reading


@pytest.mark.parametrize("rules", EVERY_RULE)
def test_every_first_two_bytes(rules: int) -> None:
    for first in range(256):
        assert parse(bytes([first]), rules) == expected(bytes([first]), rules), first
        for second in range(256):
            data = bytes([first, second])
            assert parse(data, rules) == expected(data, rules), data.hex()


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("payload_bytes", SIZES)
def test_every_cut_of_every_length(payload_bytes: int, key: bytes | None) -> None:
    for length_bytes in (0, 2, 8):
        if payload_bytes >= {0: 126, 2: 2**16, 8: 2**64}[length_bytes]:
            continue
        header = codec.encode_header(codec.BINARY, payload_bytes, key=key, length_bytes=length_bytes)
        for cut in range(len(header) + 1):
            assert parse(header[:cut], 0) == expected(header[:cut], 0), header[:cut].hex()
        # The payload after the header changes nothing.
        assert parse(header + b"\xff" * 20, 0) == parse(header, 0)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("c2", "RSV"),
        ("a2", "RSV"),
        ("92", "RSV"),
        ("83", "OPCODE"),
        ("8b", "OPCODE"),
        ("08", "CONTROL_FRAGMENTED"),
        ("8205", "UNMASKED"),
        ("89fe", "CONTROL_LENGTH"),
        ("88ff", "CONTROL_LENGTH"),
        ("82fe007d", "LENGTH_NOT_MINIMAL"),
        ("82ff80", "LENGTH_TOP_BIT"),
        ("82ff000000000000", "LENGTH_NOT_MINIMAL"),
    ],
)
def test_refused_at_the_byte_that_proves_it(data: str, error: str) -> None:
    broken = bytes.fromhex(data)
    assert parse(broken, CLIENT) == error
    assert isinstance(parse(broken[:-1], CLIENT), int)


def test_a_servers_frame_with_a_mask_is_refused() -> None:
    assert parse(bytes.fromhex("8280"), SERVER) == "MASKED"


def test_rsv1_only_where_a_compressed_message_begins() -> None:
    rules = CLIENT | RSV1
    for opcode in KNOWN:
        result = parse(codec.encode_header(opcode, 5, rsv=4, key=KEY), rules)
        if opcode in (codec.TEXT, codec.BINARY):
            assert isinstance(result, dict)
            assert result["rsv"] == 4
        else:
            assert result == "RSV"
    for rsv in (1, 2, 3, 5, 6, 7):
        assert parse(codec.encode_header(codec.TEXT, 5, rsv=rsv, key=KEY), rules) == "RSV"


@given(data=st.binary(max_size=20), rules=st.sampled_from(EVERY_RULE))
def test_noise(data: bytes, rules: int) -> None:
    assert parse(data, rules) == expected(data, rules)


@given(
    opcode=st.sampled_from(KNOWN),
    payload_bytes=st.integers(0, 2**63 - 1) | st.sampled_from(SIZES),
    fin=st.booleans(),
    key=st.none() | st.binary(min_size=4, max_size=4),
    length_bytes=st.sampled_from([None, 8]),
    cut=st.integers(0, 14),
    rules=st.sampled_from(EVERY_RULE),
)
def test_headers_of_the_codec(
    *,
    opcode: int,
    payload_bytes: int,
    fin: bool,
    key: bytes | None,
    length_bytes: int | None,
    cut: int,
    rules: int,
) -> None:
    header = codec.encode_header(opcode, payload_bytes, fin=fin, key=key, length_bytes=length_bytes)
    assert parse(header, rules) == expected(header, rules)
    assert parse(header[:cut], rules) == expected(header[:cut], rules)


def test_nothing_is_read_beyond_the_bytes_given() -> None:
    memory = fenced_memory(1)
    first = ffi.from_buffer("uint8_t[]", memory)
    header = ffi.new("struct urs_frame_header *")
    for payload_bytes in (5, 1000, 100000):
        whole = codec.encode_header(codec.TEXT, payload_bytes, key=KEY)
        for cut in range(len(whole) + 1):
            start = len(memory) - cut
            memory[start:] = whole[:cut]
            size = lib.urs_frame_parse(first + start, cut, CLIENT, header)
            assert size == (len(whole) if cut == len(whole) else 0)


# Writing


@pytest.mark.parametrize("payload_bytes", SIZES)
@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("opcode", KNOWN)
def test_written_as_the_codec_does(opcode: int, payload_bytes: int, *, fin: bool) -> None:
    header = codec.encode_header(opcode, payload_bytes, fin=fin)
    target = bytearray(b"\xee" * 16)
    size = lib.urs_frame_write(ffi.from_buffer("uint8_t[]", target), opcode, fin, payload_bytes)
    assert target == header + b"\xee" * (16 - len(header))
    assert size == len(header) == lib.urs_frame_answer_bytes(payload_bytes)


def test_the_limits_hold() -> None:
    most = 2**63 - 1
    assert len(codec.encode_header(codec.TEXT, most, key=KEY)) == lib.URS_FRAME_HEADER_BYTES_MAX
    assert len(codec.encode_header(codec.TEXT, most)) == lib.URS_FRAME_ANSWER_BYTES_MAX


# Close codes


def test_close_codes_that_may_be_sent() -> None:
    allowed = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    assert {code for code in range(70000) if lib.urs_frame_close_code_ok(code)} == allowed
