"""frames.py: the header as Python sees it, unmasking of any buffer, and the errors for wrong arguments."""

from __future__ import annotations

import array
import mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import codec
from uringws.errors import ProtocolError
from uringws.frames import (
    HEADER_BYTES_MAX,
    CloseCode,
    FrameHeader,
    Incomplete,
    Opcode,
    mask_implementation,
    parse_header,
    unmask,
)
from uringws.shim import ffi, lib

KEY = bytes.fromhex("37fa213d")
HELLO = codec.Frame(codec.TEXT, b"Hello", key=KEY).encode()


# The constants


@pytest.mark.parametrize(
    ("here", "there", "prefix"),
    [(Opcode, "enum urs_opcode", "URS_OPCODE_"), (CloseCode, "enum urs_close_code", "URS_CLOSE_")],
)
def test_the_same_constants_on_both_sides(here: type[Opcode | CloseCode], there: str, prefix: str) -> None:
    assert {prefix + member.name: member.value for member in here} == ffi.typeof(there).relements


def test_control_opcodes() -> None:
    assert [opcode.name for opcode in Opcode if opcode.is_control] == ["CLOSE", "PING", "PONG"]


def test_the_longest_header() -> None:
    assert HEADER_BYTES_MAX == lib.URS_FRAME_HEADER_BYTES_MAX


# parse_header


def test_a_header() -> None:
    header = parse_header(HELLO)
    assert header == FrameHeader(
        fin=True, rsv=0, opcode=Opcode.TEXT, masked=True, masking_key=KEY, payload_bytes=5, header_bytes=6
    )
    assert isinstance(header, FrameHeader)
    assert header.opcode is Opcode.TEXT


def test_a_frame_by_hand() -> None:
    """The typical use."""
    data = bytearray(HELLO + b"more")
    match parse_header(data):
        case FrameHeader(payload_bytes=size, header_bytes=start, masking_key=key):
            payload = memoryview(data)[start : start + size]
            unmask(payload, key)
            assert payload.tobytes() == b"Hello"
        case Incomplete():
            pytest.fail("it is whole")
    assert data.endswith(b"more")


@pytest.mark.parametrize("payload_bytes", [5, 200, 70000])
def test_incomplete_says_how_much_is_needed(payload_bytes: int) -> None:
    header = codec.encode_header(codec.BINARY, payload_bytes, key=KEY)
    for cut in range(len(header)):
        assert parse_header(header[:cut]) == Incomplete(2 if cut < 2 else len(header))
    assert isinstance(parse_header(header), FrameHeader)


def test_masking_is_required_of_clients_and_forbidden_to_servers() -> None:
    masked, bare = HELLO, codec.Frame(codec.TEXT, b"Hello").encode()
    with pytest.raises(ProtocolError, match="not masked"):
        parse_header(bare)
    with pytest.raises(ProtocolError, match="is masked"):
        parse_header(masked, from_client=False)
    for data, from_client in ((masked, None), (bare, None), (bare, False)):
        assert isinstance(parse_header(data, from_client=from_client), FrameHeader)


def test_a_frame_without_mask_has_a_key_that_changes_nothing() -> None:
    header = parse_header(codec.Frame(codec.TEXT, b"Hello").encode(), from_client=False)
    assert isinstance(header, FrameHeader)
    payload = bytearray(b"Hello")
    unmask(payload, header.masking_key)
    assert payload == b"Hello"


def test_rsv1() -> None:
    data = codec.Frame(codec.TEXT, b"Hello", rsv=4, key=KEY).encode()
    header = parse_header(data, rsv1_allowed=True)
    assert isinstance(header, FrameHeader)
    assert header.rsv == 4
    with pytest.raises(ProtocolError, match="reserved bit") as caught:
        parse_header(data)
    assert caught.value.close_code == CloseCode.PROTOCOL_ERROR


def test_broken_before_it_is_whole() -> None:
    with pytest.raises(ProtocolError, match="opcode"):
        parse_header(b"\x83")


def test_the_largest_payload() -> None:
    header = parse_header(codec.encode_header(codec.BINARY, 2**63 - 1, key=KEY))
    assert isinstance(header, FrameHeader)
    assert header.payload_bytes == 2**63 - 1


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_any_buffer_has_a_header(make: Any) -> None:
    assert isinstance(parse_header(make(HELLO)), FrameHeader)


def test_parse_header_raises_for_other_types_than_buffers() -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        parse_header("Hello")  # type: ignore[arg-type]
    with pytest.raises(BufferError, match="not contiguous"):
        parse_header(memoryview(HELLO)[::2])


# unmask


@given(data=st.binary(max_size=300), key=st.binary(min_size=4, max_size=4), offset=st.integers(0, 2**70))
def test_unmask_like_the_codec(data: bytes, key: bytes, offset: int) -> None:
    buffer = bytearray(data)
    unmask(buffer, key, offset)
    assert buffer == codec.mask(data, key, offset)
    unmask(buffer, key, offset)
    assert buffer == data


@pytest.mark.parametrize(
    "buffer",
    [
        bytearray(range(100)),
        memoryview(bytearray(range(100)))[3:60],
        array.array("i", range(25)),
        mmap.mmap(-1, 100),
        np.arange(100, dtype=np.uint8),
        np.arange(100, dtype=np.uint8)[5:50],
        np.arange(24, dtype=">u4").reshape(2, 3, 4),
        np.zeros((0, 4), np.float32),
        np.array(5, np.int64),
        bytearray(),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_any_writable_buffer_in_place(buffer: Any) -> None:
    before = bytes(buffer) if not isinstance(buffer, np.ndarray) else buffer.tobytes()
    unmask(buffer, KEY, 1)
    after = bytes(buffer) if not isinstance(buffer, np.ndarray) else buffer.tobytes()
    assert after == codec.mask(before, KEY, 1)


def test_unmask_holds_on_to_nothing() -> None:
    buffer = bytearray(20)
    unmask(buffer, KEY)
    buffer += b"a bytearray cannot grow while someone looks into it"


def read_only_array() -> np.ndarray[Any, Any]:
    made = np.zeros(8, np.uint8)
    made.flags.writeable = False
    return made


@pytest.mark.parametrize("buffer", [b"Hello", memoryview(b"Hello"), read_only_array()])
def test_read_only(buffer: Any) -> None:
    with pytest.raises(TypeError, match=r"read-only: pass a copy that can be changed, such as bytearray\(data\)"):
        unmask(buffer, KEY)


@pytest.mark.parametrize(
    "buffer",
    [
        memoryview(bytearray(20))[::2],
        memoryview(bytearray(20))[::-1],
        np.zeros((4, 4), np.uint8)[:, ::2],
        np.zeros((4, 3), np.uint8, order="F"),
    ],
)
def test_not_contiguous(buffer: Any) -> None:
    with pytest.raises(BufferError, match=r"not contiguous.*numpy\.ascontiguousarray"):
        unmask(buffer, KEY)


def test_no_buffer() -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        unmask("Hello", KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [b"", b"abc", b"abcde"])
def test_a_key_has_four_bytes(key: bytes) -> None:
    buffer = bytearray(b"Hello")
    with pytest.raises(ValueError, match=f"4 bytes, not {len(key)}"):
        unmask(buffer, key)
    assert buffer == b"Hello"


def test_a_key_of_any_kind() -> None:
    buffer = bytearray(b"Hello")
    unmask(buffer, np.frombuffer(KEY, np.uint8))
    assert buffer == codec.mask(b"Hello", KEY)


def test_an_offset_before_the_payload() -> None:
    with pytest.raises(ValueError, match="before its start"):
        unmask(bytearray(4), KEY, -1)


def test_the_implementation_has_a_name() -> None:
    assert mask_implementation() in {"scalar", "sse2", "avx2", "avx512", "neon"}
