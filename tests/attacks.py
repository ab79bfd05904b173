"""Attacks on a server, by name: scripts of hostile clients, and the loop that plays a crowd of them.

They are seeded and share no code with the library. They cost little CPU of their own: floods are sent from a file in
memory by sendfile(2), and what comes back is dropped by the kernel (MSG_TRUNC, tcp(7)).
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache, partial

from wire import BINARY, CLOSE, CONTINUATION, PING, TEXT, close_frame, frame, upgrade_request

READ, WRITE, BOTH = select.EPOLLIN, select.EPOLLOUT, select.EPOLLIN | select.EPOLLOUT

Script = Generator[int | float, None, None]
"""The steps of a client between its waits: for events (an int, as of epoll) or for so many seconds (a float).

It ends when the script returns or its socket fails; another client takes its place.
"""

KIB, MIB = 1 << 10, 1 << 20
DISCARD_BYTES = MIB
ADMITTED_AT_ONCE = 64
SOURCES = 8
"""Addresses that connections come from, so that their ports suffice."""
REQUEST = upgrade_request()

_discarded = bytearray(DISCARD_BYTES)


@dataclass
class Tally:
    """The counts of one attack."""

    connections: int = 0
    sessions: int = 0
    refused: int = 0
    """Connections that were not accepted, or were answered something else than 101."""
    bytes_out: int = 0
    bytes_in: int = 0

    def __str__(self) -> str:
        return (
            f"{self.connections:,} connections, {self.sessions:,} sessions, "
            f"{self.bytes_out / 1e6:,.0f} MB out, {self.bytes_in / 1e6:,.0f} MB in"
        )


class Client:
    """A socket and what its script needs: every method that may wait is a part of a script."""

    def __init__(self, address: tuple[str, int], rng: random.Random, tally: Tally, receive_bytes: int | None) -> None:
        self.rng, self.tally = rng, tally
        self.sleep = 0
        """The number of the sleep that it is in, or 0."""
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: connect() chooses it, ip(7)
        self.sock.bind((f"127.0.0.{rng.randrange(2, 2 + SOURCES)}", 0))
        status = self.sock.connect_ex(address)
        tally.connections += 1
        if status not in (0, errno.EINPROGRESS):
            self.sock.close()
            tally.refused += 1
            raise OSError(status, os.strerror(status))

    def send(self, data: bytes) -> Script:
        view = memoryview(data)
        while view:
            try:
                sent = self.sock.send(view)
            except BlockingIOError:
                yield WRITE
            else:
                self.tally.bytes_out += sent
                view = view[sent:]

    def upgrade(self, then: bytes = b"") -> Script:
        """Open a session; ``then`` is sent together with the request."""
        yield WRITE
        yield from self.send(REQUEST + then)
        head = b""
        while b"\r\n\r\n" not in head:
            yield READ
            part = self.sock.recv(4 * KIB)
            head += part
            if not part or not head.startswith(b"HTTP/1.1 101"[: len(head)]):
                self.tally.refused += 1
                raise ConnectionError
        self.tally.sessions += 1

    def discard(self) -> bool:
        """Discard the bytes that have come; return whether the stream has ended."""
        try:
            while count := self.sock.recv_into(_discarded, DISCARD_BYTES, socket.MSG_TRUNC):
                self.tally.bytes_in += count
                if count < DISCARD_BYTES:
                    return False
        except BlockingIOError:
            return False
        return True

    def read_to_end(self) -> Script:
        while not self.discard():
            yield READ

    def flood(self, data: bytes, *, read: bool = True) -> Script:
        """Send the data again and again, without end."""
        file, at = memory_file(data), 0
        while True:
            try:
                sent = os.sendfile(self.sock.fileno(), file, at, len(data) - at)
            except BlockingIOError:
                pass
            else:
                self.tally.bytes_out += sent
                at = (at + sent) % len(data)
            if read and self.discard():
                return
            yield BOTH if read else WRITE

    def trickle(self, data: bytes, seconds: float) -> Script:
        """Send byte by byte, so far apart."""
        for byte in data:
            yield from self.send(bytes([byte]))
            yield seconds

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@cache
def memory_file(data: bytes) -> int:
    file = os.memfd_create("flood")
    os.write(file, data)
    return file


@cache
def noise(size: int) -> bytes:
    """Bytes without repeated pieces; the same bytes each time."""
    return random.Random(size).randbytes(size)


# ---- the scripts


def send_without_end(size: int, client: Client) -> Script:
    """Messages of that size, sent as fast as the server reads them; their echoes are read."""
    yield from client.upgrade()
    yield from client.flood(_message(size))


@cache
def _message(size: int) -> bytes:
    return frame(BINARY, noise(size))


@cache
def _run_of(data: bytes, size: int = 64 * KIB) -> bytes:
    return data * max(1, size // len(data))


def send_tiny(client: Client) -> Script:
    yield from client.upgrade()
    yield from client.flood(_run_of(frame(TEXT, b"x")))


def ping_without_reading(client: Client) -> Script:
    yield from client.upgrade()
    yield from client.flood(_run_of(frame(PING, noise(125))), read=False)


def ping_small(client: Client) -> Script:
    yield from client.upgrade()
    yield from client.flood(_run_of(frame(PING)))


def send_fragments(client: Client) -> Script:
    """Messages in ten thousand fragments of a byte each."""
    pieces = frame(BINARY, b"a", fin=False) + 10_000 * frame(CONTINUATION, b"b", fin=False) + frame(CONTINUATION, b"c")
    yield from client.upgrade()
    yield from client.flood(pieces)


def send_empty_fragments(client: Client) -> Script:
    """One message that never ends, in fragments without a byte."""
    yield from client.upgrade(frame(TEXT, b"", fin=False))
    yield from client.flood(_run_of(frame(CONTINUATION, b"", fin=False)))


def order_and_stall(client: Client) -> Script:
    """8 MiB of messages whose echoes are not read; then the client leaves."""
    yield from client.upgrade()
    for _ in range(8):
        yield from client.send(_message(MIB))
    yield client.rng.uniform(1.0, 4.0)
    if client.rng.random() < 0.5:
        client.reset()


def sip(client: Client) -> Script:
    """Two hundred messages of 100 KB; their echoes are read 4 KiB at a time."""
    yield from client.upgrade()
    view = memoryview(200 * _message(100_000))
    while True:
        with contextlib.suppress(BlockingIOError):
            sent = client.sock.send(view[:MIB]) if view else 0
            client.tally.bytes_out += sent
            view = view[sent:]
        yield 0.02
        with contextlib.suppress(BlockingIOError):
            part = client.sock.recv(4 * KIB)
            client.tally.bytes_in += len(part)
            if not part:
                return


def say_goodbye(client: Client) -> Script:
    """A whole session in one segment."""
    yield from client.upgrade(frame(TEXT, b"hello") + close_frame())
    yield from client.read_to_end()


def leave_together(client: Client) -> Script:
    """All clients leave at the full second, half of them by a reset."""
    yield from client.upgrade()
    yield 1.0 - time.monotonic() % 1.0
    if client.rng.random() < 0.5:
        client.reset()
        return
    yield from client.send(close_frame())
    yield from client.read_to_end()


@cache
def _conversation() -> bytes:
    return REQUEST + frame(TEXT, b"one") + frame(BINARY, noise(3000)) + frame(PING) + close_frame()


def reset_anywhere(client: Client) -> Script:
    """A reset at any byte of a session, read or not."""
    yield WRITE
    yield from client.send(_conversation()[: client.rng.randrange(len(_conversation()) + 1)])
    if client.rng.random() < 0.5:
        yield client.rng.uniform(0.0, 0.01)
    client.reset()


def half_close(client: Client) -> Script:
    """Everything said at once, then the end of the stream, at any byte."""
    yield WRITE
    yield from client.send(_conversation()[: client.rng.randrange(len(_conversation()) + 1)])
    client.sock.shutdown(socket.SHUT_WR)
    if client.rng.random() < 0.9:
        yield from client.read_to_end()
    else:
        yield 1.0


def connect_and_go(client: Client) -> Script:
    yield WRITE
    client.reset()


def stay_silent(client: Client) -> Script:
    yield from client.read_to_end()


def trickle_head(client: Client) -> Script:
    yield WRITE
    yield from client.trickle(REQUEST[:-1], client.rng.uniform(0.02, 0.08))


def trickle_frames(client: Client) -> Script:
    yield from client.upgrade()
    while not client.discard():
        yield from client.trickle(frame(BINARY, noise(100)), client.rng.uniform(0.02, 0.08))


def shake_hands_slowly(client: Client) -> Script:
    """The request in four pieces, a second or two apart."""
    yield WRITE
    step = len(REQUEST) // 4 + 1
    for at in range(0, len(REQUEST), step):
        yield from client.send(REQUEST[at : at + step])
        yield client.rng.uniform(0.5, 2.0)


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise(508),  # a TLS ClientHello
    b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    bytes(4096),
    noise(2000),
    b"GET / HTTP/1.1\r\n" + 20_000 * b"a: b\r\n",
    b"GET /" + 100_000 * b"a",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    100 * b"\r\n",
    REQUEST.replace(b"Key: ", b"Key: x"),
)


def talk_garbage(client: Client) -> Script:
    yield WRITE
    yield from client.send(client.rng.choice(GARBAGE))
    yield from client.read_to_end()


VIOLATIONS = (
    frame(TEXT, b"bare", key=None),
    frame(0x3, b"reserved"),
    frame(0xB, b"reserved"),
    frame(TEXT, b"rsv", rsv=4),
    frame(TEXT, b"\xff\xfe"),
    frame(PING, b"in two", fin=False),
    b"\x89\xfe\x00\x7e" + noise(130),  # a ping of 126 bytes
    b"\x82\xff" + b"\xff" * 12,  # a length with its highest bit set
    b"\x82\xff\x00\x00\x01" + noise(9),  # the header of a frame of one tebibyte
    b"\x82\xfe\x00\x05" + noise(9),  # a length that is not in its shortest form
    frame(CONTINUATION, b"of nothing"),
    frame(TEXT, b"begun", fin=False) + frame(TEXT, b"again"),
    frame(CLOSE, b"x"),
    close_frame(1005),
    frame(CLOSE, b"\x03\xe8\xff"),
)


def violate(client: Client) -> Script:
    """Break a rule after a few good messages; a third of them then stays and answers nothing."""
    said = frame(BINARY, noise(500)) + frame(TEXT, b"good") + client.rng.choice(VIOLATIONS)
    yield from client.upgrade(said)
    if client.rng.random() < 0.3:
        yield 2.0
        client.reset()
        return
    yield from client.read_to_end()


@dataclass(frozen=True)
class Attack:
    """How many clients play which script at a time."""

    clients: int
    script: Callable[[Client], Script]
    receive_bytes: int | None = None
    """The size of their receive buffers; None is the system's default."""
    wait_seconds_max: float | None = None
    """The most time by which the neighbour's slowest echo may exceed that of the control."""


ATTACKS: dict[str, Attack] = {
    "large-senders": Attack(300, partial(send_without_end, 4_000_000), wait_seconds_max=0.15),
    "medium-senders": Attack(1000, partial(send_without_end, 100_000), wait_seconds_max=0.15),
    "tiny-messages": Attack(200, send_tiny),
    "ping-flood": Attack(100, ping_without_reading),
    "empty-pings": Attack(100, ping_small),
    "fragment-storm": Attack(100, send_fragments),
    "empty-fragments": Attack(100, send_empty_fragments),
    "stalled-readers": Attack(80, order_and_stall, receive_bytes=4 * KIB),
    "sipping-readers": Attack(100, sip, receive_bytes=4 * KIB),
    "close-storm": Attack(200, say_goodbye),
    "mass-departures": Attack(500, leave_together),
    "resets": Attack(200, reset_anywhere),
    "half-closes": Attack(200, half_close),
    "connection-flood": Attack(200, connect_and_go),
    "silent-connections": Attack(1500, stay_silent),
    "trickled-heads": Attack(500, trickle_head),
    "trickled-frames": Attack(500, trickle_frames),
    "slow-handshakes": Attack(1200, shake_hands_slowly),
    "garbage-heads": Attack(100, talk_garbage),
    "violations": Attack(100, violate),
}


def play_any(client: Client) -> Script:
    script = client.rng.choice([attack.script for attack in ATTACKS.values() if attack.script is not play_any])
    yield from script(client)


ATTACKS["everything"] = Attack(200, play_any)


# ---- the crowd


class Crowd:
    """Plays an attack: as many clients as it wants, each by its script, in one thread."""

    def __init__(self, attack: Attack, clients: int, address: tuple[str, int], seed: int) -> None:
        self._attack, self._count, self._address = attack, clients, address
        self._seeds = random.Random(seed)
        self._epoll = select.epoll()
        self._playing: dict[int, tuple[Client, Script]] = {}  # by descriptor
        self._asleep: list[tuple[float, int, Client]] = []
        self._sleeps = 0
        self.tally = Tally()

    def play(self, until: float) -> Tally:
        """Play until that time of the monotonic clock, then leave by resets."""
        while (now := time.monotonic()) < until:
            self._admit()
            wake = min(until, self._asleep[0][0]) if self._asleep else until
            idle = len(self._playing) < self._count
            for descriptor, _ in self._epoll.poll(0.001 if idle else max(0.0, wake - now), 256):
                self._step(descriptor)
            for client in self._due():
                self._step(client.sock.fileno())
        for client, script in list(self._playing.values()):
            script.close()
            client.reset()
            client.sock.close()
        return self.tally

    def _admit(self) -> None:
        for _ in range(min(ADMITTED_AT_ONCE, self._count - len(self._playing))):
            rng = random.Random(self._seeds.getrandbits(64))
            try:
                client = Client(self._address, rng, self.tally, self._attack.receive_bytes)
            except OSError:
                return
            self._playing[client.sock.fileno()] = client, self._attack.script(client)
            self._epoll.register(client.sock, 0)
            self._step(client.sock.fileno())

    def _due(self) -> Iterator[Client]:
        while self._asleep and self._asleep[0][0] <= time.monotonic():
            _, number, client = heapq.heappop(self._asleep)
            if client.sleep == number:  # otherwise the end of the peer's stream has woken it
                yield client

    def _step(self, descriptor: int) -> None:
        client, script = self._playing[descriptor]
        client.sleep = 0
        try:
            wait = next(script)
        except (StopIteration, OSError):
            del self._playing[descriptor]
            client.sock.close()
            return
        if isinstance(wait, float):
            self._sleeps += 1
            client.sleep = self._sleeps
            heapq.heappush(self._asleep, (time.monotonic() + wait, self._sleeps, client))
            self._epoll.modify(client.sock, 0)
        else:
            self._epoll.modify(client.sock, wait)
