"""The wire as a test sees it: frames made and read by hand, and a client that does nothing by itself.

Written from RFC 6455 alone and sharing no code with the library, so that the two can disagree.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

Address = tuple[str, int] | str
"""A host and port, or the path of a unix socket."""

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Frame:
    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0
    masked: bool = False

    @property
    def close_code(self) -> int | None:
        assert self.opcode == CLOSE, self
        return struct.unpack_from("!H", self.payload)[0] if self.payload else None


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def xor(payload: bytes, key: bytes) -> bytes:
    """RFC 6455 section 5.3, on one big integer: exact and fast enough for the largest payload of these tests."""
    length = len(payload)
    stream = (key * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(length, "big")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = b"\x37\xfa\x21\x3d",
) -> bytes:
    """One frame as a client sends it; ``key=None`` leaves out the masking that RFC 6455 demands."""
    head = bytearray([fin << 7 | rsv << 4 | opcode])
    mask_bit = 0 if key is None else 0x80
    if len(payload) < 126:
        head.append(mask_bit | len(payload))
    elif len(payload) < 65536:
        head += struct.pack("!BH", mask_bit | 126, len(payload))
    else:
        head += struct.pack("!BQ", mask_bit | 127, len(payload))
    return bytes(head) + (payload if key is None else key + xor(payload, key))


def close_frame(code: int | None = 1000, reason: str = "") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())


def upgrade_request(
    path: str = "/",
    *,
    key: str = "dGhlIHNhbXBsZSBub25jZQ==",
    subprotocols: Sequence[str] = (),
    headers: Iterable[tuple[str, str]] = (),
) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    ]
    if subprotocols:
        lines.append("Sec-WebSocket-Protocol: " + ", ".join(subprotocols))
    lines += (f"{name}: {value}" for name, value in headers)
    return "\r\n".join([*lines, "", ""]).encode()


def accept_for(key: str) -> str:
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest).decode()


class Peer:
    """The other end of a session, on a blocking socket. It reads only on request, and answers nothing."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(TIMEOUT_SECONDS)
        self._unread = bytearray()

    @classmethod
    def dial(cls, address: Address) -> Self:
        """Connect, and send nothing yet."""
        if isinstance(address, str):
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(address)
            except BaseException:
                sock.close()
                raise
        else:
            sock = socket.create_connection(address, TIMEOUT_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(sock)

    @classmethod
    def connect(
        cls,
        address: Address,
        path: str = "/",
        *,
        subprotocols: Sequence[str] = (),
        headers: Iterable[tuple[str, str]] = (),
        then: bytes = b"",
    ) -> Self:
        """Upgrade; ``then`` leaves in one segment with the request."""
        peer = cls.dial(address)
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            peer.write(upgrade_request(path, key=key, subprotocols=subprotocols, headers=headers) + then)
            peer.response = peer.read_response()
            assert peer.response.status == 101, peer.response
            assert peer.response.headers["sec-websocket-accept"] == accept_for(key)
        except BaseException:
            peer.close()
            raise
        return peer

    response: Response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Leave without a FIN: the server's next read or write fails with ECONNRESET."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def write(self, *chunks: bytes) -> None:
        self.sock.sendall(b"".join(chunks))

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        self.write(frame(opcode, payload, fin=fin))

    def read_exactly(self, count: int) -> bytes:
        while len(self._unread) < count:
            chunk = self.sock.recv(max(65536, count - len(self._unread)))
            if not chunk:
                raise EOFError(f"{len(self._unread)} of {count} bytes, then the end: {bytes(self._unread[:64])!r}")
            self._unread += chunk
        taken = bytes(memoryview(self._unread)[:count])
        del self._unread[:count]
        return taken

    def read_frame(self) -> Frame:
        first, second = self.read_exactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self.read_exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.read_exactly(8))
        masked = bool(second & 0x80)
        key = self.read_exactly(4) if masked else b"\0\0\0\0"
        payload = self.read_exactly(length)
        return Frame(first & 0xF, xor(payload, key) if masked else payload, bool(first & 0x80), first >> 4 & 7, masked)

    def read_frames(self, count: int) -> list[Frame]:
        return [self.read_frame() for _ in range(count)]

    def read_close(self) -> int | None:
        """The close code of the next frame, which must be a Close."""
        return self.read_frame().close_code

    def read_eof(self) -> None:
        """Nothing more may come, and the server must close the connection itself, in order."""
        rest = bytes(self._unread) + b"".join(iter(lambda: self.sock.recv(65536), b""))
        assert rest == b"", f"unexpected bytes before the end: {rest[:64]!r}"

    def read_response(self) -> Response:
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):
            head += self.read_exactly(1)
        status_line, *lines = head.decode("ascii").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = self.read_exactly(int(headers.get("content-length", 0)))
        return Response(int(status_line.split()[1]), headers, body)

    def quiet(self, seconds: float = 0.05) -> bool:
        """Whether nothing at all arrives for that long."""
        self.sock.settimeout(seconds)
        try:
            chunk = self.sock.recv(65536)
        except (TimeoutError, BlockingIOError):
            return not self._unread
        finally:
            self.sock.settimeout(TIMEOUT_SECONDS)
        self._unread += chunk
        return False

    def shake_hands(self, code: int | None = 1000, reason: str = "") -> int | None:
        """The whole close handshake from this side; the code that the server answered."""
        self.write(close_frame(code, reason))
        answer = self.read_close()
        self.read_eof()
        return answer


def http(address: Address, raw: bytes) -> Response:
    """Send a request of any kind, read one response and the end of the connection."""
    with Peer.dial(address) as peer:
        peer.write(raw)
        response = peer.read_response()
        peer.read_eof()
        return response


def cuts(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Every way to cut ``data`` in two, both ends included."""
    return ((data[:at], data[at:]) for at in range(len(data) + 1))


def distinct_payloads(count: int, size: int = 20) -> list[bytes]:
    """Payloads that differ from each other and from shifted copies; the same ones each time."""
    source = random.Random(size)
    return [source.randbytes(size) for _ in range(count)]


def server_frame(opcode: int, payload: bytes = b"") -> bytes:
    """One frame as a server sends it."""
    return frame(opcode, payload, key=None)
