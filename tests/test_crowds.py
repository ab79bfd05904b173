"""Many large senders, and many sessions that speak at once, over few receive buffers: every session is served soon.

Covers the order in which sessions receive while buffers are short. The peers' bytes wait in the kernel before the
server reads, so that only the server's order decides the outcome.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from conftest import NO_URING
from faulty import ALWAYS, TASK_WORK, FaultyServer
from servers import ReactorThread, missing, wait_until
from uringws import Connection, Handler, Message, Options
from uringws.backend import Backend
from wire import BINARY, Peer, frame

BUFFER_BYTES = 1024
FEW_BUFFERS = Options(
    receive_buffers=8, receive_buffer_bytes=BUFFER_BYTES, session_turn_bytes_max=4096, ping_interval_seconds=None
)
LARGE_BYTES = 100_000
SMALL = b"twenty bytes of text"
ENOUGH = 100


class Counting(Handler):
    """Notes after how many bytes of all peers each small message came, and what all have when one has `ENOUGH`.

    A talkative peer sends its small message again as soon as it has arrived, `rounds` times.
    """

    def __init__(self) -> None:
        self.server: ReactorThread
        self.messages: Counter[int] = Counter()
        self.small_after_bytes: defaultdict[int, list[int]] = defaultdict(list)
        self.large = 0
        self.when_one_had_enough: list[int] = []
        self.talkative: list[Peer] = []
        self.rounds = 0

    def on_message(self, conn: Connection, message: Message) -> None:
        self.messages[conn.id] += 1
        if self.messages[conn.id] == ENOUGH and not self.when_one_had_enough:
            self.when_one_had_enough = list(self.messages.values())
        if len(message.data) > len(SMALL):
            self.large += 1
            return
        self.small_after_bytes[conn.id].append(self.server.reactor.stats().bytes_in)
        if self.messages[conn.id] < self.rounds:
            self.talkative[message.data[0]].send(BINARY, bytes(message))


@pytest.fixture
def handler() -> Counting:
    return Counting()


@pytest.fixture
def server(handler: Counting, backend: Backend) -> Iterator[ReactorThread]:
    with ReactorThread(handler, backend=backend, options=FEW_BUFFERS) as server:
        handler.server = server
        yield server


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(server: ReactorThread, count: int, stack: ExitStack) -> list[Peer]:
    return [stack.enter_context(Peer.connect(server.address)) for _ in range(count)]


def send_while_held(server: ReactorThread, peers: list[Peer], data: list[bytes]) -> None:
    """Send the peers' data while the reactor's thread is blocked, so that it finds all of it at once."""
    released = False

    def hold() -> None:
        while not released:
            time.sleep(0.01)

    server.sender.call(hold)
    try:
        for peer, bytes_ in zip(peers, data, strict=True):
            peer.sock.setblocking(False)
            assert peer.sock.send(bytes_) == len(bytes_), "the kernel's buffers are too small for this test"
    finally:
        released = True


def test_small_messages_do_not_wait_for_large_ones(server: ReactorThread, handler: Counting, stack: ExitStack) -> None:
    """100 peers with a large message each, 10 with a small one: the small ones come first, near enough."""
    peers = connect(server, 110, stack)
    large = frame(BINARY, bytes(LARGE_BYTES))
    before = server.ask(server.reactor.stats).bytes_in
    send_while_held(server, peers, [frame(BINARY, SMALL) if index % 11 == 5 else large for index in range(110)])
    wait_until(lambda: handler.large == 100)
    assert len(handler.small_after_bytes) == 10
    # A receive of each large sender shows that it is one; then the small ones are served.
    assert max(max(handler.small_after_bytes.values())) - before <= 3 * 110 * BUFFER_BYTES


def test_a_lively_session_waits_for_few_of_the_large_senders(
    server: ReactorThread, handler: Counting, stack: ExitStack
) -> None:
    peers = connect(server, 110, stack)
    handler.talkative, handler.rounds = peers[:10], 30
    small = [frame(BINARY, bytes([index]) + SMALL[1:]) for index in range(10)]
    send_while_held(server, peers, [*small, *[frame(BINARY, bytes(LARGE_BYTES))] * 100])
    wait_until(lambda: handler.large == 100)
    for after_bytes in handler.small_after_bytes.values():
        assert len(after_bytes) == 30
        gaps = [after - before for before, after in pairwise(after_bytes)]
        # The first receive of each large sender shows that it is one.
        assert max(gaps[3:]) <= 30 * BUFFER_BYTES


def test_large_senders_share_the_buffers(server: ReactorThread, handler: Counting, stack: ExitStack) -> None:
    """60 peers with many messages each: when the first one is through, all others have at least half as many.

    On epoll a socket that becomes readable during a round may be served at its end, and then in the next round too.
    """
    peers = connect(server, 60, stack)
    send_while_held(server, peers, [frame(BINARY, bytes(BUFFER_BYTES - 8)) * ENOUGH] * 60)
    wait_until(lambda: handler.large == 60 * ENOUGH)
    assert len(handler.when_one_had_enough) == 60
    assert min(handler.when_one_had_enough) >= ENOUGH // 2 - 2  # the first rounds begin with few of them


def test_large_senders_have_a_share_beside_talkative_ones(
    server: ReactorThread, handler: Counting, stack: ExitStack
) -> None:
    """40 peers that send a small message whenever the last one has arrived leave buffers to 10 large senders."""
    peers = connect(server, 50, stack)
    handler.talkative, handler.rounds = peers[:40], 500
    small = [frame(BINARY, bytes([index]) + SMALL[1:]) for index in range(40)]
    large = frame(BINARY, bytes(BUFFER_BYTES - 8)) * ENOUGH
    send_while_held(server, peers, [*small, *[large] * 10])
    wait_until(
        lambda: len(handler.small_after_bytes) == 40 and max(map(len, handler.small_after_bytes.values())) == 500
    )
    assert handler.large == 10 * ENOUGH


@pytest.mark.parametrize("sessions", [100, 400])
def test_a_kernel_before_6_13_costs_each_message_one_more_receive(
    faulty_build: Path, tmp_path: Path, sessions: int
) -> None:
    """There all sessions that send at once need a buffer at once. A session that finds none must not try again in
    vain.
    """
    if NO_URING is not None:
        missing(NO_URING)
    with FaultyServer(faulty_build, tmp_path, "io_uring", "c") as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(server.address)) for _ in range(sessions)]
        server.plan(TASK_WORK, 1, count=ALWAYS)
        waves = 3
        before = server.look()["stats"]["enobufs_parks"]
        for _ in range(waves):
            server.hold(0.2)
            for peer in peers:
                peer.send(BINARY, SMALL)
            for peer in peers:
                assert peer.read_frame().payload == SMALL
        parks = server.look()["stats"]["enobufs_parks"] - before
        assert (
            sessions / 2 <= parks <= 1.5 * waves * sessions
        )  # at least one attempt in vain, otherwise the fault point does nothing
        server.clear()
