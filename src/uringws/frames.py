"""Frames as RFC 6455 defines them: opcodes, close codes, the header's parser, and unmasking.

Pure functions over bytes. The engine decides what a frame means for its connection.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from uringws.errors import check
from uringws.shim import ffi, lib

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    AnyBuffer: TypeAlias = Buffer | NDArray[Any]  # an array is a buffer, but type checkers learn it only from 3.12 on

__all__ = [
    "HEADER_BYTES_MAX",
    "CloseCode",
    "FrameHeader",
    "Incomplete",
    "Opcode",
    "mask_implementation",
    "parse_header",
    "unmask",
]

HEADER_BYTES_MAX: Final = 14
"""The longest header: a 64-bit length and a masking key."""

_KEY_BYTES: Final = 4


class Opcode(IntEnum):
    """The type of a frame, RFC 6455 section 5.2. The other ten values are reserved."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA

    @property
    def is_control(self) -> bool:
        """Whether frames of this kind are limited to 125 bytes and never fragmented (section 5.5)."""
        return self >= Opcode.CLOSE


class CloseCode(IntEnum):
    """Why a connection closes: RFC 6455 section 7.4.1 and the IANA registry.

    An application may also send numbers of its own, 4000 to 4999, and those registered by libraries, 3000 to 3999.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    """The server shuts down, or the browser leaves the page."""
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    """Text where only binary is understood, or the other way round."""
    NO_STATUS = 1005
    """The close frame held no code. Reported, never sent."""
    ABNORMAL = 1006
    """The connection ended without a close frame. Reported, never sent."""
    INVALID_PAYLOAD = 1007
    """The payload is not what its type says: text that is not UTF-8."""
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    """Sent by a client that misses an extension in the server's answer."""
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014


class FrameHeader(NamedTuple):
    """A frame's header."""

    fin: bool
    """Whether this is a message's last frame."""
    rsv: int
    """The reserved bits as a number, RSV1 being 4. Not 0 only where `parse_header` was told to allow RSV1."""
    opcode: Opcode
    masked: bool
    masking_key: bytes
    """Four bytes; zeros, which leave a payload as it is, where the frame is not masked."""
    payload_bytes: int
    """The size of the payload, 0 to 2**63 - 1."""
    header_bytes: int
    """The size of the header, 2 to HEADER_BYTES_MAX: the payload begins there."""


class Incomplete(NamedTuple):
    """The bytes given are only the beginning of a header."""

    at_least: int
    """The least size of the whole header in bytes: with fewer, parsing it again gives the same result."""


_OPCODES: Final = {opcode.value: opcode for opcode in Opcode}
_MASK_RULES: Final = {True: lib.URS_FRAME_FROM_CLIENT, False: lib.URS_FRAME_FROM_SERVER, None: 0}


def parse_header(
    data: AnyBuffer, *, from_client: bool | None = True, rsv1_allowed: bool = False
) -> FrameHeader | Incomplete:
    """Parse the frame header at the start of `data`, any contiguous buffer; bytes after the header are ignored.

    `from_client` says whose frame it is: a client's must be masked, a server's must not be, and None takes either.
    `rsv1_allowed` is for a connection whose extension gave RSV1 a meaning (RFC 7692: the first frame of a compressed
    message).

    Raises ProtocolError as soon as the bytes break a rule of RFC 6455 section 5, even if the header is incomplete.
    Raises TypeError or BufferError if `data` is not a contiguous buffer, TypeError for any other `from_client`.
    """
    if from_client not in (True, False, None):
        raise TypeError(f"from_client is True, False or None, not {from_client!r}")
    rules = _MASK_RULES[from_client] | (lib.URS_FRAME_RSV1_ALLOWED if rsv1_allowed else 0)
    header = ffi.new("struct urs_frame_header *")
    with ffi.from_buffer("uint8_t[]", _contiguous(_view(data))) as start:
        size = check(lib.urs_frame_parse(start, len(start), rules, header), "frame header")
    if size == 0:
        return Incomplete(header.header_bytes)
    return FrameHeader(
        fin=header.fin,
        rsv=header.rsv,
        opcode=_OPCODES[header.opcode],
        masked=header.masked,
        masking_key=bytes(header.masking_key),
        payload_bytes=header.payload_bytes,
        header_bytes=size,
    )


def unmask(buffer: AnyBuffer, key: AnyBuffer, offset: int = 0) -> None:
    """Mask or unmask `buffer` in place, RFC 6455 section 5.3: the same operation does both.

    `buffer` is any writable contiguous buffer: a bytearray, a memoryview, a numpy array of any shape and item size
    (its bytes count, in the order in which they lie in memory). `key` is the frame's 4-byte masking key. `offset` is
    the position of the buffer's first byte in the frame's payload, for a payload that comes in pieces.

    Raises TypeError for a read-only buffer or for none at all, BufferError for one that is not contiguous, and
    ValueError for a key of another size or a negative offset.
    """
    view = _view(buffer)
    if view.readonly:
        raise TypeError(
            f"unmask() writes to its buffer, and this {type(buffer).__name__} is read-only: "
            "pass a copy that can be changed, such as bytearray(data) or array.copy()"
        )
    key_bytes = bytes(_view(key))
    if len(key_bytes) != _KEY_BYTES:
        raise ValueError(f"a masking key has {_KEY_BYTES} bytes, not {len(key_bytes)}")
    if offset < 0:
        raise ValueError(f"offset is a position in the payload, and {offset} is before its start")
    with ffi.from_buffer("uint8_t[]", _contiguous(view), require_writable=True) as start:
        lib.urs_mask_move(start, start, len(start), key_bytes, offset % _KEY_BYTES)


def mask_implementation() -> str:
    """The name of the unmasking in use, chosen by what the CPU can do: "avx2", "sse2", "neon" or "scalar"."""
    return str(ffi.string(lib.urs_mask_selected()), "ascii")


def _view(buffer: AnyBuffer) -> memoryview:
    return memoryview(cast("Buffer", buffer))


def _contiguous(view: memoryview) -> memoryview:
    if not view.c_contiguous:
        raise BufferError(
            f"the buffer is not contiguous in C order (shape {view.shape}, strides {view.strides}): "
            "pass a contiguous copy, such as bytearray(view) or numpy.ascontiguousarray(array)"
        )
    return view
