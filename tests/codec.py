r"""A frame codec in plain Python, written from RFC 6455 section 5.2 alone: the oracle for the C shim.

It shares no code with the library and imports nothing of it. It checks no rules: it also encodes broken frames (any
opcode, any reserved bit, masked or not, a length in a longer form than it needs), and decodes whatever the bytes say.

>>> Frame(TEXT, b"Hello", key=bytes.fromhex("37fa213d")).encode().hex()
'818537fa213d7f9f4d5158'
>>> frames, rest = decode(bytes.fromhex("810548656c6c6f" "8900" "81"))
>>> [(frame.opcode, frame.payload) for frame in frames], rest
([(1, b'Hello'), (9, b'')], b'\x81')
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def mask(data: bytes, key: bytes, offset: int = 0) -> bytes:
    """XOR `data` with the 4-byte `key`, as two large integers; data[0] is byte number `offset` of its payload."""
    keys = (key * (len(data) // 4 + 2))[offset % 4 :][: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(keys)).to_bytes(len(data))


def encode_header(
    opcode: int,
    payload_bytes: int,
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = None,
    length_bytes: int | None = None,
) -> bytes:
    """A header on the wire, for a payload of any size, which need not exist.

    `length_bytes` is the size of the extended length, 0, 2 or 8; None takes the shortest that will do.
    """
    if length_bytes is None:
        length_bytes = 0 if payload_bytes <= 125 else 2 if payload_bytes <= 0xFFFF else 8
    length = {0: payload_bytes, 2: 126, 8: 127}[length_bytes]
    extended = payload_bytes.to_bytes(length_bytes) if length_bytes else b""
    return bytes([fin << 7 | rsv << 4 | opcode, (key is not None) << 7 | length]) + extended + (key or b"")


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame, with its payload unmasked."""

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0  # RSV1 is 4, RSV2 is 2, RSV3 is 1
    key: bytes | None = None  # the masking key on the wire; None: not masked

    def encode(self, length_bytes: int | None = None) -> bytes:
        """The frame on the wire; `length_bytes` as for `encode_header`."""
        header = encode_header(
            self.opcode, len(self.payload), fin=self.fin, rsv=self.rsv, key=self.key, length_bytes=length_bytes
        )
        return header + (self.payload if self.key is None else mask(self.payload, self.key))


def decode(data: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames at the start of `data`, and the bytes that are left: the beginning of a frame, or none."""
    frames = []
    start = 0
    while (found := decode_one(data, start)) is not None:
        frame, start = found
        frames.append(frame)
    return frames, data[start:]


def decode_one(data: bytes, start: int = 0) -> tuple[Frame, int] | None:
    """The frame at data[start] and the position after it, or None if it is not whole."""
    if len(data) < start + 2:
        return None
    first, second = data[start : start + 2]
    length_format = {126: "!H", 127: "!Q"}.get(second & 0x7F, "")
    masked = bool(second & 0x80)
    body = start + 2 + struct.calcsize(length_format) + (4 if masked else 0)
    if len(data) < body:
        return None
    end = body + (struct.unpack_from(length_format, data, start + 2)[0] if length_format else second & 0x7F)
    if len(data) < end:
        return None
    key = data[body - 4 : body] if masked else None
    payload = data[body:end] if key is None else mask(data[body:end], key)
    return Frame(first & 0x0F, payload, bool(first & 0x80), first >> 4 & 0x07, key), end
