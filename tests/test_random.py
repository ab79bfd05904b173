"""Many sessions at once, in conversations drawn at random from a seed: each must get its answers to the last byte.

The answers of a session are known beforehand, as bytes. The client writes and reads all of them through one selector,
in pieces and with pauses of random length, so that frames are cut, collected and answered slowly in many ways.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from servers import ReactorThread
from uringws import Connection, Message, Options, Reactor, handler_fn
from uringws.backend import Backend
from wire import BINARY, CONTINUATION, PING, PONG, TEXT, Peer, frame, server_frame

SESSIONS = 24
MESSAGES = 60
SECONDS_MAX = 30.0

SMALL_POOL = Options(receive_buffers=4, receive_buffer_bytes=2048, session_turn_bytes_max=8192)


def echo(conn: Connection, _: Message) -> None:
    conn.echo()


def send(conn: Connection, message: Message) -> None:
    conn.send(message.opcode, message.data)


def send_a_copy(conn: Connection, message: Message) -> None:
    conn.send(message.opcode, bytes(message))


def now_and_then(conn: Connection, message: Message) -> None:
    """Take a way of answering that differs from message to message."""
    (echo, send, send_a_copy)[len(message) % 3](conn, message)


SERVERS: dict[str, tuple[Callable[[Connection, Message], None], Callable[[Reactor], None], Options]] = {
    "run_echo": (echo, Reactor.run_echo, Options()),
    "run_echo-small_pool": (echo, Reactor.run_echo, SMALL_POOL),
    "echo": (echo, Reactor.run, Options()),
    "send": (send, Reactor.run, Options()),
    "now_and_then": (now_and_then, Reactor.run, Options()),
    "now_and_then-small_pool": (now_and_then, Reactor.run, SMALL_POOL),
}


def random_size(source: random.Random) -> int:
    """Mostly small, now and then around a limit of the framing, seldom large."""
    return source.choice(
        [
            source.randrange(40),
            source.randrange(40),
            source.randrange(300),
            source.randrange(120, 130),
            source.randrange(20_000),
            source.choice([16_384, 17_400, 65_535, 65_536, 100_000]),
        ]
    )


def random_payload(source: random.Random, opcode: int) -> bytes:
    size = random_size(source)
    if opcode == BINARY:
        return source.randbytes(size)
    return "".join(source.choices("aé漢😀", k=size // 3)).encode()


def random_key(source: random.Random) -> bytes:
    return source.randbytes(4)


def random_conversation(source: random.Random) -> tuple[bytes, bytes]:
    """The bytes that a client sends, and the answers that it must get."""
    said, expected = bytearray(), bytearray()
    for _ in range(MESSAGES):
        opcode = source.choice([TEXT, BINARY])
        payload = random_payload(source, opcode)
        cuts = sorted(source.randrange(len(payload) + 1) for _ in range(source.choice([0, 0, 0, 1, 4])))
        pieces = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for number, piece in enumerate(pieces):
            if source.random() < 0.15:
                ping = source.randbytes(source.randrange(126))
                said += frame(PING, ping, key=random_key(source))
                expected += server_frame(PONG, ping)
            last = number == len(pieces) - 1
            said += frame(CONTINUATION if number else opcode, piece, fin=last, key=random_key(source))
        expected += server_frame(opcode, payload)
    return bytes(said), bytes(expected)


@dataclass
class Talker:
    """One session of the client: how much it has said, and what it got."""

    peer: Peer
    said: bytes
    expected: bytes
    at: int = 0
    got: bytearray = field(default_factory=bytearray)

    def done(self) -> bool:
        return len(self.got) >= len(self.expected)

    def turn(self, source: random.Random, events: int) -> None:
        """Write a piece, read a piece, or let either wait for another time."""
        with contextlib.suppress(BlockingIOError):
            if events & selectors.EVENT_WRITE and self.at < len(self.said) and source.random() < 0.5:
                size = source.choice([1, 7, 100, 4000, 50_000])
                self.at += self.peer.sock.send(self.said[self.at : self.at + size])
            if events & selectors.EVENT_READ and source.random() < 0.3:
                self.got += self.peer.sock.recv(source.choice([10, 1000, 100_000]))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", SERVERS)
def test_random_conversations_are_answered_to_the_last_byte(backend: Backend, name: str, seed: int) -> None:
    handler, run, options = SERVERS[name]
    source = random.Random(f"{name} {seed}")
    deadline = time.monotonic() + SECONDS_MAX
    with (
        ReactorThread(handler_fn(handler), backend=backend, options=options, run=run) as server,
        selectors.DefaultSelector() as selector,
        contextlib.ExitStack() as stack,
    ):
        talkers = [
            Talker(stack.enter_context(Peer.connect(server.address)), *random_conversation(source))
            for _ in range(SESSIONS)
        ]
        for talker in talkers:
            talker.peer.sock.setblocking(False)
            selector.register(talker.peer.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, talker)
        while not all(talker.done() for talker in talkers):
            assert time.monotonic() < deadline, [(len(talker.got), len(talker.expected)) for talker in talkers]
            for key, events in selector.select(0.1):
                key.data.turn(source, events)
    wrong = [number for number, talker in enumerate(talkers) if talker.got != talker.expected]
    assert wrong == []
