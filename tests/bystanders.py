"""Clients of a server under attack: neighbours, whose echoes are timed, and witnesses, which check every byte.

Each kind runs in its own process, so that other work does not delay it. Those processes run the functions at the end.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

from attacks import Attack, Crowd
from wire import BINARY, CONTINUATION, PING, PONG, TEXT, Peer, frame

Address = tuple[str, int]

PERIOD_SECONDS = 0.05
NEIGHBOURS = 4
"""Per server; together they take a sample every eightieth of a second."""
LATE_SECONDS_MAX = 10.0
"""The time to wait for echoes after the attack."""
WITNESS_BYTES_MAX = 65_536
WITNESS_LARGE_BYTES = 300_000
WITNESS_PAUSE_SECONDS_MAX = 0.03
WITNESS_PIECES_MAX = 4


@dataclass
class Timings:
    """Seconds that a server's neighbours waited for their echoes."""

    seconds: list[float] = field(default_factory=list)
    missing: int = 0
    """Echoes that never came; the time until the end is among the seconds."""
    wrong_bytes: int = 0
    cut: int = 0
    """Sessions that the server ended."""


@dataclass
class Findings:
    """The findings of the witnesses."""

    verified_bytes: int = 0
    wrong_bytes: int = 0
    missing_bytes: int = 0
    cut: int = 0


class Stream:
    """A session on a socket that does not block: frames in, frames out, pings answered."""

    def __init__(self, address: Address) -> None:
        peer = Peer.connect(address)
        self.sock = peer.sock
        self.sock.setblocking(False)
        self.cut = False
        self._unread = bytearray()
        self._unsent = bytearray()

    def write(self, data: bytes) -> None:
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._unsent and not self.cut:
                try:
                    del self._unsent[: self.sock.send(self._unsent)]
                except (BrokenPipeError, ConnectionResetError):
                    self.cut = True

    @property
    def wants(self) -> int:
        return select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN

    def read(self) -> Iterator[tuple[int, bytes]]:
        """The complete messages that have come; each is one frame, because the server sends its echoes so."""
        try:
            part = self.sock.recv(1 << 20)
            self.cut = not part
            self._unread += part
        except BlockingIOError:
            return
        except ConnectionResetError:
            self.cut = True
        while (found := self._take()) is not None:
            opcode, payload = found
            if opcode == PING:
                self.write(frame(PONG, payload))
            else:
                yield opcode, payload

    def _take(self) -> tuple[int, bytes] | None:
        data = self._unread
        if len(data) < 2:
            return None
        length, start = data[1] & 0x7F, 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start], "big")
        if len(data) < start + length:
            return None
        opcode, payload = data[0] & 0x0F, bytes(data[start : start + length])
        del data[: start + length]
        return opcode, payload


def differing(expected: bytes, got: bytes) -> int:
    """Bytes of an answer that are wrong, missing or superfluous."""
    same = sum(one == other for one, other in zip(expected, got, strict=False)) if expected != got else len(got)
    return max(len(expected), len(got)) - same


# ---- the neighbours


class Neighbour:
    """20 bytes, twenty times per second, even if the last echo has not come."""

    def __init__(self, address: Address, timings: Timings, due: float, rng: random.Random) -> None:
        self.stream = Stream(address)
        self.due = due
        self._timings, self._rng = timings, rng
        self._waiting: deque[tuple[float, bytes]] = deque()

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting) and not self.stream.cut

    def send(self) -> None:
        self.due += PERIOD_SECONDS
        if self.stream.cut:
            return
        payload = self._rng.randbytes(20)
        self._waiting.append((time.perf_counter(), payload))
        self.stream.write(frame(BINARY, payload))

    def read(self) -> None:
        for _, payload in self.stream.read():
            now = time.perf_counter()
            began, expected = self._waiting.popleft() if self._waiting else (now, b"")
            self._timings.seconds.append(now - began)
            self._timings.wrong_bytes += differing(expected, payload)

    def leave(self) -> None:
        now = time.perf_counter()
        self._timings.seconds += [now - began for began, _ in self._waiting]
        self._timings.missing += len(self._waiting)
        self._timings.cut += self.stream.cut
        self.stream.sock.close()


def _exchange(neighbours: list[Neighbour], until: float) -> None:
    start = time.monotonic()
    poll = select.poll()
    by_descriptor = {neighbour.stream.sock.fileno(): neighbour for neighbour in neighbours}
    for descriptor, neighbour in by_descriptor.items():
        poll.register(descriptor, select.POLLIN)
        neighbour.due += start
    while (now := time.monotonic()) < until + LATE_SECONDS_MAX:
        if now >= until and not any(neighbour.is_waiting for neighbour in neighbours):
            return
        for neighbour in neighbours:
            if neighbour.due <= now < until:
                neighbour.send()
        due = min(neighbour.due for neighbour in neighbours) if now < until else now + PERIOD_SECONDS
        for descriptor, _ in poll.poll(1000 * max(0.0, due - time.monotonic())):
            by_descriptor[descriptor].read()
            if by_descriptor[descriptor].stream.cut:
                poll.unregister(descriptor)


def time_echoes(pipe: Pipe, core: int, addresses: list[Address], seed: int) -> None:
    """The process of the neighbours: receive the end time, time the echoes of all servers, and send the Timings of
    each.
    """
    os.sched_setaffinity(0, {core})
    # With a higher priority than the attackers on the same CPU, so that only the server's delay is measured.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    rng = random.Random(seed)
    all_timings = [Timings() for _ in addresses]
    neighbours = [
        Neighbour(address, timings, number * PERIOD_SECONDS / NEIGHBOURS, rng)
        for address, timings in zip(addresses, all_timings, strict=True)
        for number in range(NEIGHBOURS)
    ]
    pipe.send("ready")
    _exchange(neighbours, pipe.recv())
    for neighbour in neighbours:
        neighbour.leave()
    pipe.send(all_timings)


# ---- the witnesses


class Witness:
    """A session that sends a seeded stream of messages, in fragments and pieces, and compares what comes back."""

    def __init__(self, address: Address, seed: int, findings: Findings) -> None:
        self.stream = Stream(address)
        self.due = 0.0
        self._rng, self._findings = random.Random(seed), findings
        self._expected: deque[tuple[int, bytes]] = deque()

    @property
    def is_waiting(self) -> bool:
        return bool(self._expected) and not self.stream.cut

    def send(self) -> None:
        """Send up to three messages and wait for their echoes."""
        rng = self._rng
        self.due = float("inf")
        for _ in range(rng.randint(1, 3)):
            size = WITNESS_LARGE_BYTES if rng.random() < 0.02 else int(WITNESS_BYTES_MAX ** rng.random()) - 1
            opcode = rng.choice((TEXT, BINARY))
            payload = rng.randbytes(size)
            if opcode == TEXT:
                payload = payload.hex()[:size].encode()
            self._expected.append((opcode, payload))
            self.stream.write(self._fragments(opcode, payload))

    def _fragments(self, opcode: int, payload: bytes) -> bytes:
        rng = self._rng
        cuts = sorted(rng.randint(0, len(payload)) for _ in range(rng.randrange(WITNESS_PIECES_MAX)))
        pieces = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        last = len(pieces) - 1
        return b"".join(
            frame(CONTINUATION if number else opcode, piece, fin=number == last, key=rng.randbytes(4))
            for number, piece in enumerate(pieces)
        )

    def read(self) -> None:
        for opcode, payload in self.stream.read():
            wanted, expected = self._expected.popleft() if self._expected else (opcode, b"")
            wrong = differing(expected, payload) + (wanted != opcode)
            self._findings.wrong_bytes += wrong
            self._findings.verified_bytes += len(payload) if not wrong else 0
        if not self._expected and self.due == float("inf"):
            self.due = time.monotonic() + self._rng.uniform(0.0, WITNESS_PAUSE_SECONDS_MAX)

    def leave(self) -> None:
        self._findings.missing_bytes += sum(len(payload) for _, payload in self._expected)
        self._findings.cut += self.stream.cut
        self.stream.sock.close()


def _verify(witnesses: list[Witness], until: float) -> None:
    by_descriptor = {witness.stream.sock.fileno(): witness for witness in witnesses}
    while (now := time.monotonic()) < until + LATE_SECONDS_MAX:
        live = [witness for witness in witnesses if not witness.stream.cut]
        if now >= until and not any(witness.is_waiting for witness in live):
            return
        poll = select.poll()
        for witness in live:
            if witness.due <= now < until:
                witness.send()
            poll.register(witness.stream.sock, witness.stream.wants)
        wait = min([now + PERIOD_SECONDS, *(witness.due for witness in live if now < until)]) - time.monotonic()
        for descriptor, events in poll.poll(1000 * max(0.0, wait)):
            if events & select.POLLOUT:
                by_descriptor[descriptor].stream.flush()
            if events & ~select.POLLOUT:
                by_descriptor[descriptor].read()


def verify_echoes(pipe: Pipe, core: int, address: Address, witnesses: int, seed: int) -> None:
    """The process of the witnesses: receive the end time, exchange messages in the sessions, and send the Findings."""
    os.sched_setaffinity(0, {core})
    findings = Findings()
    all_witnesses = [Witness(address, seed + number, findings) for number in range(witnesses)]
    pipe.send("ready")
    _verify(all_witnesses, pipe.recv())
    for witness in all_witnesses:
        witness.leave()
    pipe.send(findings)


# ---- the attackers


def attack(pipe: Pipe, core: int, plan: tuple[Attack, int], address: Address, seed: int) -> None:
    """The process of the attackers: receive the end time, play an attack, and send its Tally."""
    os.sched_setaffinity(0, {core})
    crowd = Crowd(*plan, address, seed)
    pipe.send("ready")
    pipe.send(crowd.play(pipe.recv()))
