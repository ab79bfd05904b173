"""A room of 1,000 members in which one member pipelines 500 messages: others are answered between two slices.

Counted in members and turns, not in time.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket

from uringws import Connection, Handler, Message, Options, Reactor, Topic
from uringws.backend import Backend
from uringws.driver import Driver
from wire import TEXT, Frame, Peer, frame

MEMBERS, MESSAGES, SLICE = 1000, 500, 256
DESCRIPTORS = 2 * MEMBERS + 300


class Chat(Handler):
    """Publishes all that the first member says, and answers all others; counts the members that were served before."""

    topic: Topic

    def __init__(self) -> None:
        self.conns: list[Connection] = []
        self.peers: list[Peer] = []
        self.heard = 0
        self.served_before_answer: int | None = None

    def on_open(self, conn: Connection) -> None:
        self.conns.append(conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        if conn is self.conns[0]:
            self.heard += 1
            self.topic.publish(message)
            if self.heard == 1:  # from here on the other one waits
                self.peers[-1].send(TEXT, b"a question")
        else:
            conn.echo()
            self.served_before_answer = count_readable(self.peers[:-1])


def count_readable(peers: list[Peer]) -> int:
    """How many have something to read."""
    poll = select.poll()
    for peer in peers:
        poll.register(peer.sock, select.POLLIN)
    return len(poll.poll(0))


def raise_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


def test_a_member_who_pipelines_delays_the_others_by_no_more_than_a_slice(backend: Backend) -> None:
    raise_descriptors()
    chat = Chat()
    options = Options(fanout_turn_max=SLICE)
    with Reactor(chat, options, backend=backend) as reactor, contextlib.ExitStack() as stack:
        for _ in range(MEMBERS + 1):
            ours, theirs = socket.socketpair()
            chat.peers.append(stack.enter_context(Peer(theirs)))
            reactor.add_session(ours)
        chat.topic = reactor.topic("room")
        for conn in chat.conns[:-1]:
            chat.topic.add(conn)
        for _ in range(5):  # the openings are over
            reactor.run_once(0)
        said = [frame(TEXT, b"%d" % number) for number in range(MESSAGES)]
        chat.peers[0].write(*said)
        driver, turns = Driver(reactor), 0
        with driver.driving():
            while chat.served_before_answer is None:
                driver.take_turn(0.01, 1)
                turns += 1
                assert turns < 100
            assert 0 < chat.served_before_answer <= SLICE
            while chat.heard < MESSAGES:
                driver.take_turn(0.01, 1)
            for _ in range(MEMBERS // SLICE + 2):
                driver.take_turn(0.01, 1)
        assert chat.peers[-1].read_frame() == Frame(TEXT, b"a question")
        for peer in chat.peers[:MEMBERS:111]:
            assert peer.read_frames(MESSAGES) == [Frame(TEXT, b"%d" % number) for number in range(MESSAGES)]
        stats = chat.topic.stats()
        assert (stats.published, stats.addressed) == (MESSAGES, MESSAGES * MEMBERS)
        assert stats.addressed == stats.sent + stats.queued
