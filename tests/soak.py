"""The soak: sessions of every kind come and go for a chosen time, and at the end no answer may be missing and nothing
may be leaked.

Each visitor has a script drawn from the seed and its own number: its messages, the pieces in which it sends them, where
it stalls, and how it leaves. The answers that it must get are known beforehand. A round ends when all its visitors have
left; then the server must hold no session, no byte and no descriptor more than before the first round. In the test
suite it runs URINGWS_SOAK_SECONDS on each backend (10 by default); for minutes or hours:

    python tests/soak.py --minutes 60 --backend io_uring
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import os
import random
import selectors
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from servers import BACKENDS, ReactorThread
from uringws import (
    Accept,
    Connection,
    ConnectionClosed,
    Handler,
    Message,
    Opcode,
    Options,
    Reactor,
    Request,
    SendResult,
)
from uringws.backend import Backend
from uringws.stats import Stats
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame, http, upgrade_request

CROWD = 48
ROUND_SECONDS = 2.0
LEAVE_SECONDS_MAX = 60.0
SOCKET_BUFFER_BYTES = 64 * 1024
OWED_BYTES_MAX = 6 << 20
FLOOD_MESSAGES, FLOOD_BYTES = 40, 400_000
PUSHERS = 2
PUSH = b"\xff\xfepush"
RSS_GROWTH_BYTES_MAX = 24 << 20

OPTIONS = Options(
    backlog_bytes_max=12 << 20,
    handshake_seconds_max=LEAVE_SECONDS_MAX,  # a busy machine must not make a soak fail by these two
    close_seconds_max=LEAVE_SECONDS_MAX,
    ping_interval_seconds=0.2,
    ping_timeout_seconds=None,
    metrics_path="/metrics",
)

ORDERLY = {"close": 1000, "close_bare": 1005, "server": 4321, "eof": 1006, "mid_frame": 1006, "violation": 1002}
"""How visitors leave that read to the end, and the code that on_close is given."""
FLOOD = {"flood": 1008}
ABRUPT = ("reset", "leave", "stall_reset")
NO_SESSION = ("half_request", "scrape")
WEIGHTS = {**dict.fromkeys(ORDERLY, 6), **dict.fromkeys(ABRUPT, 5), **dict.fromkeys(NO_SESSION, 2), "flood": 1}


# ---- the server's side


class Host(Handler):
    """Echoes in every possible way, closes and floods on request, and notes the answers that each visitor must get."""

    def __init__(self) -> None:
        self.opened: Counter[int] = Counter()
        self.closed: dict[int, list[int]] = {}
        self.live: dict[int, Connection] = {}
        self.flooded: dict[int, int] = {}
        self.pushed: dict[tuple[int, int], int] = {}
        self.messages = 0

    def forget(self) -> None:
        """Begin a round with empty notes: those of the last round are settled."""
        for book in (self.opened, self.closed, self.flooded, self.pushed):
            book.clear()

    def on_upgrade(self, request: Request) -> Accept:
        return Accept(data=int(request.path[1:]))

    def on_open(self, conn: Connection) -> None:
        self.opened[conn.data] += 1
        self.live[conn.data] = conn

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        self.live.pop(conn.data, None)
        self.closed.setdefault(conn.data, []).append(code)

    def on_message(self, conn: Connection, message: Message) -> None:
        self.messages += 1
        if message.is_text and len(message) and message.data[0] == ord("!"):
            self._command(conn, message.text())
            return
        way = len(message) % 4
        if way == 0:
            conn.send(message.opcode, bytes(message))
        elif way == 1:
            conn.send(message.opcode, message.data)
        else:
            conn.echo()

    def _command(self, conn: Connection, command: str) -> None:
        if command == "!flood":
            with contextlib.suppress(ConnectionClosed):
                for number in range(FLOOD_MESSAGES):
                    if conn.send_binary(flood_payload(number)) is SendResult.DROPPED:
                        break
                    self.flooded[conn.data] = number + 1
        else:
            conn.close(int(command[1:]), "as you wish")


def flood_payload(number: int) -> bytes:
    return b"flood" + bytes([number]) * FLOOD_BYTES


def push_payload(thread: int, number: int) -> bytes:
    return PUSH + struct.pack("!BI", thread, number) + bytes([number & 0xFF]) * (number * 37 % 3000)


class Pusher(threading.Thread):
    """Sends to random sessions through a Sender, and notes how many of these messages each session must get."""

    def __init__(self, server: ReactorThread, host: Host, index: int, seed: int) -> None:
        super().__init__(name=f"pusher-{index}", daemon=True)
        self._server, self._host, self._index = server, host, index
        self._source = random.Random(f"pusher {seed} {index}")
        self._over = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._server.sender.clone() as sender:
                counts: Counter[int] = Counter()
                while not self._over.wait(0.002):
                    live = list(self._host.live.items())
                    if not live:
                        continue
                    visitor, conn = self._source.choice(live)
                    for _ in range(self._source.randrange(1, 5)):
                        payload = push_payload(self._index, counts[visitor])
                        if not sender.send(conn.id, Opcode.BINARY, payload):
                            break
                        counts[visitor] += 1
                    sender.call(self._note, visitor, conn, counts[visitor])
        except BaseException as error:  # noqa: BLE001 - told at the end of the round
            self.error = error

    def _note(self, visitor: int, conn: Connection, count: int) -> None:
        """On the reactor's thread. The connection is still open, so all earlier commands for it have been sent."""
        if conn.is_open:
            self._host.pushed[visitor, self._index] = count

    def stop(self) -> None:
        self._over.set()
        self.join(10)
        if self.error is not None:
            raise self.error


# ---- the visitors' side


@dataclass
class Script:
    """The script of a visitor, drawn from the seed alone."""

    kind: str
    said: deque[bytes] = field(default_factory=deque)
    expected: deque[tuple[int, bytes]] = field(default_factory=deque)
    """Messages."""
    pings: deque[bytes] = field(default_factory=deque)
    """Payloads, no two alike. A server may answer only the latest of those that wait (RFC 6455 5.5.3)."""
    stall_at: int | None = None
    stall_seconds: float = 0.0
    leave_at: int = 0
    """Bytes said after which an abrupt one leaves."""


def draw_size(source: random.Random) -> int:
    return source.choices(
        [
            source.randrange(130),
            source.randrange(3000),
            source.randrange(70_000),
            source.choice([0, 125, 126, 65_535, 65_536, 67_600]),
            source.randrange(300_000, 3_000_000),
        ],
        [50, 30, 12, 5, 1],
    )[0]


def draw_message(script: Script, source: random.Random) -> int:
    """Add a message to the script, and its answer to the expected ones; return its size."""
    opcode = source.choice([TEXT, BINARY])
    size = draw_size(source)
    text = (source.choice("aé漢😀") * size).encode()
    payload = source.randbytes(size) if opcode == BINARY else text[: size // 12 * 12]
    cuts = sorted(source.randrange(len(payload) + 1) for _ in range(source.choice([0, 0, 0, 1, 5])))
    pieces = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    for number, piece in enumerate(pieces):
        if source.random() < 0.1:
            ping = struct.pack("!H", len(script.pings)) + source.randbytes(source.randrange(124))
            script.said.append(frame(PING, ping, key=source.randbytes(4)))
            script.pings.append(ping)
        last = number == len(pieces) - 1
        script.said.append(frame(CONTINUATION if number else opcode, piece, fin=last, key=source.randbytes(4)))
    script.expected.append((opcode, payload))
    return len(payload)


def draw_script(seed: int, number: int) -> Script:
    source = random.Random(f"visitor {seed} {number}")
    script = Script(source.choices(list(WEIGHTS), list(WEIGHTS.values()))[0])
    script.said.append(upgrade_request(f"/{number}"))
    if script.kind == "half_request":
        script.said = deque([script.said[0][: source.randrange(len(script.said[0]))]])
        return script
    size = 0
    for _ in range(source.randrange(1, 60)):
        size += draw_message(script, source)
        if size > OWED_BYTES_MAX:
            break
    whole = sum(map(len, script.said))
    script.leave_at = source.randrange(whole) if script.kind in ABRUPT else whole
    if script.kind == "stall_reset" or source.random() < 0.2:
        script.stall_at = source.randrange(size + 1)
        script.stall_seconds = source.uniform(0.1, 0.8)
    _draw_end(script, source)
    return script


def _draw_end(script: Script, source: random.Random) -> None:
    """The last frames of visitors that close properly, or in a way that the server must answer."""
    kind = script.kind
    if kind == "close":
        script.said.append(close_frame(1000, "bye"))
    elif kind == "close_bare":
        script.said.append(close_frame(None))
    elif kind == "server":
        script.said.append(frame(TEXT, b"!4321"))
        script.said.append(frame(BINARY, b"too late to be answered"))
    elif kind == "flood":
        script.said.append(frame(TEXT, b"!flood"))
    elif kind == "violation":
        script.said.append(frame(BINARY, b"without a mask", key=None))
    elif kind == "mid_frame":
        last = frame(BINARY, source.randbytes(source.randrange(1, 200_000)))
        script.said.append(last[: source.randrange(1, len(last))])


class Visitor:
    """One connection of the crowd, on a non-blocking socket."""

    def __init__(self, address: tuple[str, int], seed: int, number: int) -> None:
        self.number = number
        self.script = draw_script(seed, number)
        self.source = random.Random(f"pieces {seed} {number}")
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        self.sock.connect(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.problems: list[str] = []
        self.pushes = [0] * PUSHERS
        self.floods = 0
        self.messages = 0
        self.said_bytes = self.got_bytes = 0
        self.upgraded = self.closing = self.over = False
        self.close_code: int | None = None
        self._chunk_at = 0
        self._unread = bytearray()
        self._half_closed = False
        self._stalled_until: float | None = None

    def turn(self, events: int) -> None:
        """Send a piece, read a piece, or neither; leave where the script says so."""
        try:
            if events & selectors.EVENT_WRITE and self.source.random() < 0.8:
                self._say()
            if events & selectors.EVENT_READ and not self._stalls() and self.source.random() < 0.8:
                self._hear()
        except BlockingIOError:
            pass
        except OSError as error:
            if self.script.kind in ORDERLY or self.script.kind in FLOOD:
                self.problems.append(f"{self}: {error}")
            self.leave()

    def _say(self) -> None:
        said = self.script.said
        abrupt = self.script.kind in ABRUPT
        for _ in range(8):
            if abrupt and self.said_bytes >= self.script.leave_at and self._stalled_until is None:
                self._go()
                return
            if not said:
                self._half_close()
                return
            size = self.source.choice([1, 30, 3000, 100_000, 1 << 20])
            if abrupt:
                size = min(size, max(1, self.script.leave_at - self.said_bytes))
            count = self.sock.send(memoryview(said[0])[self._chunk_at : self._chunk_at + size])
            self.said_bytes += count
            self._chunk_at += count
            if self._chunk_at == len(said[0]):
                said.popleft()
                self._chunk_at = 0

    def _half_close(self) -> None:
        if self.script.kind == "half_request":
            self.leave()
        elif self.script.kind in ("eof", "mid_frame") and not self._half_closed:
            self._half_closed = True
            self.sock.shutdown(socket.SHUT_WR)

    def _go(self) -> None:
        if self.script.kind == "stall_reset" and self._stalled_until is None:
            self._stalled_until = time.monotonic() + self.script.stall_seconds
        elif self.script.kind == "leave":
            self.leave()
        else:
            self._reset()

    def _reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()

    def _stalls(self) -> bool:
        script = self.script
        if self._stalled_until is None and script.stall_at is not None and self.got_bytes >= script.stall_at:
            script.stall_at = None
            self._stalled_until = time.monotonic() + script.stall_seconds
        if self._stalled_until is None or time.monotonic() < self._stalled_until:
            return self._stalled_until is not None
        self._stalled_until = None
        if script.kind == "stall_reset":
            self._reset()
        return self.over

    def leave(self) -> None:
        """Finish; the selector's owner closes the socket."""
        self.over = True

    def _hear(self) -> None:
        chunk = self.sock.recv(self.source.choice([5, 1000, 20_000, 500_000, 500_000]))
        self.got_bytes += len(chunk)
        if not chunk:
            if self._unread:
                self.problems.append(f"{self}: the stream ends within a frame")
            self.leave()
            return
        self._unread += chunk
        if not self.upgraded:
            head, separator, rest = self._unread.partition(b"\r\n\r\n")
            if not separator:
                return
            self.upgraded = True
            if b" 101 " not in head:
                self.problems.append(f"{self}: {bytes(head)!r}")
            self._unread = rest
        for opcode, payload in self._frames():
            self._take(opcode, payload)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        unread = self._unread
        while len(unread) >= 2:
            length, start = unread[1], 2
            if length == 126:
                start = 4
            elif length == 127:
                start = 10
            if len(unread) < start:
                return
            if start > 2:
                length = int.from_bytes(unread[2:start], "big")
            if len(unread) < start + length:
                return
            payload = bytes(memoryview(unread)[start : start + length])
            opcode = unread[0]
            del unread[: start + length]
            if opcode & 0xF0 != 0x80:
                self.problems.append(f"{self}: a frame begins with {opcode:#x}")
            yield opcode & 0xF, payload

    def _take(self, opcode: int, payload: bytes) -> None:
        if self.close_code is not None:
            self.problems.append(f"{self}: a frame after the close frame")
        elif opcode == CLOSE:
            self.close_code = struct.unpack_from("!H", payload)[0] if payload else 1005
            if self.script.kind in ("server", "flood"):
                self.script.said.append(close_frame(self.close_code))
        elif opcode == PING:
            self._pong(payload)
        elif opcode == PONG:
            self._take_pong(payload)
        elif opcode == BINARY and payload.startswith(PUSH):
            self._take_push(payload)
        elif opcode == BINARY and self.script.kind in FLOOD and not self.script.expected:
            if payload != flood_payload(self.floods):
                self.problems.append(f"{self}: flood {self.floods} is not what was sent")
            self.floods += 1
        elif not self.script.expected or self.script.expected[0] != (opcode, payload):
            self.problems.append(
                f"{self}: got {opcode} of {len(payload)} bytes, {len(self.script.expected)} still expected"
            )
        else:
            self.messages += 1
            self.script.expected.popleft()

    def _take_pong(self, payload: bytes) -> None:
        pings = self.script.pings
        if payload not in pings:
            self.problems.append(f"{self}: a pong of {len(payload)} bytes for no ping that waits")
            return
        while pings.popleft() != payload:
            pass

    def _pong(self, payload: bytes) -> None:
        """Between two frames, and not after the last, which may be an end."""
        said = self.script.said
        if len(said) > 1 and self.script.kind not in ABRUPT:
            said.insert(1, frame(PONG, payload))

    def _take_push(self, payload: bytes) -> None:
        thread, number = struct.unpack_from("!BI", payload, len(PUSH))
        if number != self.pushes[thread] or payload != push_payload(thread, number):
            self.problems.append(f"{self}: push {number} of thread {thread}, {self.pushes[thread]} was next")
        self.pushes[thread] = number + 1
        self.messages += 1

    def settle(self, host: Host) -> int:
        """Compare the answers with the expected ones; return the number of missing bytes."""
        kind = self.script.kind
        closed = host.closed.get(self.number, [])
        if host.opened[self.number] != len(closed) or len(closed) > 1:
            self.problems.append(f"{self}: opened {host.opened[self.number]} times, closed with {closed}")
        if kind in NO_SESSION and closed:
            self.problems.append(f"{self}: on_open without an upgrade")
        if kind in ABRUPT and closed not in ([], [1006]):
            self.problems.append(f"{self}: closed with {closed}")
        return self._missing(host, closed) if kind in ORDERLY or kind in FLOOD else 0

    def _missing(self, host: Host, closed: list[int]) -> int:
        code = (ORDERLY | FLOOD)[self.script.kind]
        if closed != [code]:
            self.problems.append(f"{self}: closed with {closed}, not {code}")
        if self.close_code != (None if code == 1006 else code):
            self.problems.append(f"{self}: its close frame had {self.close_code}, not {code}")
        missing = sum(len(payload) for _, payload in self.script.expected) + len(self.script.expected)
        missing += sum(len(payload) for payload in self.script.pings)
        for number in range(self.floods, host.flooded.get(self.number, 0)):
            missing += len(flood_payload(number))
        for thread in range(PUSHERS):
            for number in range(self.pushes[thread], host.pushed.get((self.number, thread), 0)):
                missing += len(push_payload(thread, number))
        if missing:
            self.problems.append(f"{self}: {missing} bytes are missing")
        return missing

    def __str__(self) -> str:
        return f"visitor {self.number} ({self.script.kind})"


# ---- the whole


@dataclass
class Report:
    """The results of a soak."""

    backend: str
    seconds: float = 0.0
    rounds: int = 0
    visitors: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    bytes_said: int = 0
    bytes_got: int = 0
    bytes_lost: int = 0
    problems: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    """Bytes, at the end of each round."""
    stats: Stats = field(default_factory=Stats)

    @property
    def growth(self) -> int:
        """Bytes by which the second half of the rounds stood above the first, warming up aside. The minimum of each
        half counts: a leak stays, while memory that one round happens to hold for a while longer goes.
        """
        settled = self.resident[max(1, len(self.resident) // 4) :]
        half = len(settled) // 2
        return min(settled[half:]) - min(settled[:half]) if half else 0

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.seconds:.0f} s, {self.rounds} rounds, {self.visitors.total()} visitors, "
            f"{self.stats.accepted} sessions, {self.messages} messages and {self.bytes_got / 2**20:.0f} MiB received, "
            f"{self.bytes_said / 2**20:.0f} MiB sent, bytes lost: {self.bytes_lost}, "
            f"RSS {self.resident[-1] / 2**20:.0f} MiB ({self.growth / 2**20:+.1f})"
        )


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def resident_bytes() -> int:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def listen(reactor: Reactor) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    sock.bind(("127.0.0.1", 0))
    reactor.bind_socket(sock)


@contextlib.contextmanager
def complaints(problems: list[str]) -> Iterator[None]:
    """Every log line of the library is a problem: no visitor does anything that is worth logging."""

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            problems.append(f"logged: {record.getMessage()} {record.exc_info and record.exc_info[1]!r}")

    keeper = Keeper(logging.INFO)
    logger = logging.getLogger("uringws")
    logger.addHandler(keeper)
    try:
        yield
    finally:
        logger.removeHandler(keeper)


class Soak:
    """A server, its crowd, and the books of both."""

    def __init__(self, backend: Backend, seconds: float, seed: int, tell: Callable[[str], object]) -> None:
        self._seconds, self._seed, self._tell = seconds, seed, tell
        self._host = Host()
        self._number = 0
        self.report = Report(backend)
        self._server = ReactorThread(self._host, backend=backend, options=OPTIONS, prepare=listen)

    def run(self) -> Report:
        start = time.monotonic()
        report = self.report
        with self._server, complaints(report.problems):
            address = self._server.address
            assert isinstance(address, tuple)
            files = self._server.ask(open_files)  # between two turns, when its thread has nothing else open
            while time.monotonic() - start < self._seconds and not report.problems:
                self._round(address, min(ROUND_SECONDS, self._seconds))
                self._settle_round(files)
                report.rounds += 1
                report.seconds = time.monotonic() - start
                report.resident.append(resident_bytes())
                self._tell(str(report))
        return report

    def _round(self, address: tuple[str, int], seconds: float) -> None:
        self._host.forget()
        crowd: list[Visitor] = []
        pushers = [Pusher(self._server, self._host, index, self._seed) for index in range(PUSHERS)]
        for pusher in pushers:
            pusher.start()
        over = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            while True:
                now = time.monotonic()
                while now < over and len(selector.get_map()) < CROWD:
                    self._enter(address, selector, crowd)
                if not selector.get_map():
                    break
                if now > over + LEAVE_SECONDS_MAX:
                    self.report.problems += [f"{visitor} does not end" for visitor in crowd if not visitor.over]
                    break
                self._turn(selector)
        for pusher in pushers:
            pusher.stop()
        for visitor in crowd:
            visitor.sock.close()
        self._wait(lambda: not self._host.live, "sessions without on_close")
        for visitor in crowd:
            self._settle(visitor)

    def _enter(self, address: tuple[str, int], selector: selectors.BaseSelector, crowd: list[Visitor]) -> None:
        self._number += 1
        visitor = Visitor(address, self._seed, self._number)
        self.report.visitors[visitor.script.kind] += 1
        crowd.append(visitor)
        if visitor.script.kind == "scrape":
            visitor.over = True
            visitor.sock.close()
            scraped = http(address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if scraped.status != 200 or b"uringws_sessions " not in scraped.body:
                self.report.problems.append(f"{visitor}: {scraped}")
            return
        selector.register(visitor.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, visitor)

    def _turn(self, selector: selectors.BaseSelector) -> None:
        idle = True
        for key, events in selector.select(0.05):
            visitor: Visitor = key.data
            before = visitor.said_bytes + visitor.got_bytes
            visitor.turn(events)
            idle = idle and visitor.said_bytes + visitor.got_bytes == before
            if visitor.over:
                selector.unregister(visitor.sock)
                visitor.sock.close()
        if idle:
            time.sleep(0.001)  # the server's turn: no visitor has anything to write

    def _settle(self, visitor: Visitor) -> None:
        report = self.report
        report.bytes_lost += visitor.settle(self._host)
        report.messages += visitor.messages
        report.bytes_said += visitor.said_bytes
        report.bytes_got += visitor.got_bytes
        report.problems += visitor.problems

    def _settle_round(self, files: int) -> None:
        """All visitors have left: the server may hold nothing."""

        def empty() -> bool:
            stats = self._server.ask(self._server.reactor.stats)
            self.report.stats = stats
            held = (stats.sessions, stats.handshakes, stats.queued_bytes, stats.memory_bytes, stats.pool_in_use)
            return not any(held)

        self._wait(empty, "sessions, bytes or buffers left over")
        self._wait(lambda: open_files() == files, "descriptors left over")
        report, stats = self.report, self.report.stats
        books = {
            "messages_in": stats.messages_in >= self._host.messages,  # some come after our close frame
            "messages_out": stats.messages_out >= report.messages,
            "bytes_in": 0 < stats.bytes_in <= report.bytes_said + 100 * report.visitors["scrape"],
            "bytes_out": stats.bytes_out >= report.bytes_got,
            "accepted": stats.accepted == sum(stats.close_codes.values()),
        }
        report.problems += [f"stats().{name} is wrong: {stats}" for name, right in books.items() if not right]

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            if time.monotonic() > deadline:
                self.report.problems.append(f"{what}: {self.report.stats}")
                return
            time.sleep(0.01)


def soak(backend: Backend, seconds: float, *, seed: int = 1, tell: Callable[[str], object] = lambda _: None) -> Report:
    """Soak a server on that backend; the report has the problems."""
    return Soak(backend, seconds, seed, tell).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each backend (5)")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="both, one after the other, unless given")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    failed = False
    for backend in arguments.backend or BACKENDS:
        report = soak(backend, 60 * arguments.minutes, seed=arguments.seed, tell=lambda line: print(line, flush=True))
        print(*report.problems, report.stats, dict(report.visitors), sep="\n", flush=True)
        failed |= bool(report.problems or report.bytes_lost)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
