"""Topics against a model: sessions, topics with every policy, and random calls in any order, with slow readers.

The model is a list for each session: the messages that it was addressed, in the order of the calls. A session must
read that list, byte for byte, less what the policies allow to be left out; and the counters of the topics must
say exactly how much that was. Covers: order across topics, sends, broadcasts and kept frames; short sends at any byte;
members that leave, close, are cut or reset their connection. Builds with faults also cut sends short on command.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import random
import socket
import typing
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from servers import Silent, run_until, tcp_pair
from uringws import Connection, ConnectionClosed, Options, Reactor, SendResult, Topic
from uringws.backend import Backend
from uringws.shim import lib
from uringws.topics import OnFull
from wire import BINARY, CLOSE, PING, TEXT, Peer, frame, server_frame

POLICIES: tuple[OnFull, ...] = typing.get_args(OnFull)
SESSIONS = 6
BACKLOG_MAX = 60_000
SIZES = (6, 20, 125, 126, 255, 256, 4096, 10_000, 40_000)
"""Of payloads: at the limits of the framing, and of what is kept by reference."""
CAN_FAIL = lib.urs_fault_plan(lib.URS_FAULT_SEND, 0, 0, 0) != -errno.ENOTSUP

OPTIONS = Options(
    receive_buffers=4,
    receive_buffer_bytes=2048,
    backlog_bytes_max=BACKLOG_MAX,
    backlog_high_bytes=40_000,
    backlog_low_bytes=10_000,
    on_full="drop",
    close_seconds_max=1.0,
)


@dataclass(eq=False)
class Session:
    """A session with the frames that the model expects, and the bytes that its peer has read."""

    conn: Connection
    peer: Peer
    expected: list[tuple[Topic | None, bytes]] = field(default_factory=list)
    """The frames, each with the topic that may leave it out; None: it must come."""
    got: bytearray = field(default_factory=bytearray)
    has_ended: bool = False
    """The peer has reset the connection, or the server has cut or closed it: the last frames may be missing."""

    def read(self, count: int) -> bool:
        """Read what is there, up to so many bytes; return whether there was anything."""
        with contextlib.suppress(OSError):
            chunk = self.peer.sock.recv(count)
            self.got += chunk
            return bool(chunk)
        return False


class Bench:
    """A reactor with its sessions and topics, in the thread of the test, and the model beside it."""

    def __init__(self, reactor: Reactor, stack: contextlib.ExitStack) -> None:
        self.reactor = reactor
        self.topics = [reactor.topic(f"{policy} {number}", on_full=policy) for policy in POLICIES for number in (1, 2)]
        self.members: dict[Topic, list[Session]] = {topic: [] for topic in self.topics}
        self.addressed: Counter[Topic] = Counter()
        self.numbers = itertools.count(1)
        self.sender = stack.enter_context(reactor.sender())
        self.sessions = [self._session(number, stack) for number in range(SESSIONS)]

    def _session(self, number: int, stack: contextlib.ExitStack) -> Session:
        ours, theirs = tcp_pair() if number % 3 == 0 else socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        opened: list[Connection] = []
        handler = Silent()
        handler.on_open = opened.append  # type: ignore[method-assign]
        self.reactor.add_session(ours, handler=handler)
        peer = stack.enter_context(Peer(theirs))
        theirs.setblocking(False)
        return Session(opened[0], peer)

    # ---- messages

    def payload(self, size: int) -> bytes:
        """A payload that differs from every other one in its first bytes."""
        number = next(self.numbers)
        return b"%06d" % number + random.Random(number).randbytes(size - 6)

    def note(self, session: Session, topic: Topic | None, opcode: int, payload: bytes) -> None:
        session.expected.append((topic, server_frame(opcode, payload)))

    def publish(self, topic: Topic, size: int, opcode: int, skip: Session | None) -> None:
        payload = self.payload(size)
        to = [session for session in self.members[topic] if session is not skip]
        for session in to:
            self.note(session, topic, opcode, payload)
        self.addressed[topic] += len(to)
        given: Any = self.reactor.frame(opcode, payload) if size % 3 == 0 else payload
        assert topic.publish(given, opcode, skip=None if skip is None else skip.conn) == len(to)
        self.look()

    def send(self, session: Session, size: int) -> None:
        payload = self.payload(size)
        try:
            if size % 3 == 0:
                result = session.conn.send(self.reactor.frame(payload))
            else:
                result = session.conn.send(BINARY, payload)
        except ConnectionClosed:
            assert session.has_ended
            return
        if result is not SendResult.DROPPED:
            self.note(session, None, BINARY, payload)

    def look(self) -> None:
        """Check what must be true between any two calls; take notice of members that the topics have closed."""
        for session in self.sessions:
            if not session.conn.is_open:
                session.has_ended = True
            elif not session.has_ended:
                assert session.conn.buffered_amount <= BACKLOG_MAX + 20  # a frame's header is not counted in advance
        for topic in self.topics:
            self.members[topic] = [session for session in self.members[topic] if not session.has_ended]
            assert len(topic) == len(self.members[topic])
            assert all(session.conn in topic for session in self.members[topic])
            stats = topic.stats()
            assert stats.addressed == self.addressed[topic]
            assert stats.addressed == stats.sent + stats.queued + stats.dropped + stats.conflated + stats.closed
        for session in self.sessions:
            joined = {topic for topic in self.topics if session in self.members[topic]}
            assert set(session.conn.topics) == joined

    # ---- operations

    def do(self, operation: str, first: int, second: int) -> None:
        session = self.sessions[first % SESSIONS]
        topic = self.topics[second % len(self.topics)]
        size = SIZES[first % len(SIZES)]
        getattr(self, f"do_{operation}")(session, topic, size, first)
        self.look()

    def do_add(self, session: Session, topic: Topic, _size: int, _number: int) -> None:
        if session.has_ended:
            return
        topic.add(session.conn)
        if session not in self.members[topic]:
            self.members[topic].append(session)

    def do_remove(self, session: Session, topic: Topic, _size: int, _number: int) -> None:
        was = session in self.members[topic]
        assert topic.remove(session.conn) is was
        if was:
            self.members[topic].remove(session)

    def do_publish(self, session: Session, topic: Topic, size: int, number: int) -> None:
        self.publish(topic, size, (TEXT, BINARY)[number % 2], None if number % 3 else session)

    def do_burst(self, _session: Session, topic: Topic, _size: int, number: int) -> None:
        for place in range(number % 30):
            self.publish(topic, SIZES[(number + place) % len(SIZES)], BINARY, None)

    def do_command(self, _session: Session, topic: Topic, size: int, _number: int) -> None:
        """Publish from another thread's point of view: it is carried out in the next turn, so take one."""
        self.reactor.run_once(0)
        self.look()
        payload = self.payload(size)
        for each in self.members[topic]:
            self.note(each, topic, TEXT, payload)
        self.addressed[topic] += len(self.members[topic])
        self.sender.publish(topic.name, payload, TEXT)
        self.reactor.run_once(0)

    def do_send(self, session: Session, _topic: Topic, size: int, _number: int) -> None:
        self.send(session, size)

    def do_broadcast(self, _session: Session, _topic: Topic, size: int, number: int) -> None:
        """Send to sessions with room only, so that none drops it."""
        open_sessions = [each for each in self.sessions if not each.has_ended]
        to = [each for each in open_sessions if each.conn.buffered_amount + size + 20 < BACKLOG_MAX]
        payload = self.payload(size)
        everybody = len(to) == len(open_sessions) and number % 2
        given: Any = None if everybody else [each.conn for each in to]
        assert self.reactor.broadcast(payload, to=given) == len(to)
        for each in to:
            self.note(each, None, BINARY, payload)

    def do_turn(self, _session: Session, _topic: Topic, _size: int, _number: int) -> None:
        self.reactor.run_once(0)

    def do_read(self, session: Session, _topic: Topic, _size: int, number: int) -> None:
        session.read((1, 100, 5000, 100_000)[number % 4])

    def do_say(self, session: Session, _topic: Topic, _size: int, number: int) -> None:
        """Let the peer send: an answer comes among the rest."""
        if session.has_ended:
            return
        payload = self.payload(20)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            session.peer.write(frame(PING, payload))

    def do_close(self, session: Session, topic: Topic, _size: int, number: int) -> None:
        """Seldom, so that sessions are left."""
        if number % 4 or session.has_ended:
            return
        if number % 8:
            session.conn.close()
        else:
            session.conn.abort()
        session.has_ended = True

    def do_reset(self, session: Session, _topic: Topic, _size: int, number: int) -> None:
        if number % 8:
            return
        session.peer.reset()
        session.has_ended = True
        run_until(self.reactor, lambda: not session.conn.is_open, timeout=0.001)

    def do_cut(self, _session: Session, _topic: Topic, _size: int, number: int) -> None:
        """The next sends take a few bytes only."""
        if CAN_FAIL:
            lib.urs_fault_plan(lib.URS_FAULT_SEND, 1, number % 5 + 1, number % 300 + 1)

    # ---- the end

    def is_empty(self, session: Session) -> bool:
        """Read what has come; return whether nothing waits for the session."""
        session.read(1 << 20)
        return not session.conn.buffered_amount

    def is_all_read(self) -> bool:
        """Read what has come; return whether every session that lasted has its last frame."""
        for session in self.sessions:
            session.read(1 << 20)
        return all(session.has_ended or session.expected[-1][1] in session.got for session in self.sessions)

    def finish(self) -> None:
        """Read all that is left, then compare."""
        if CAN_FAIL:
            lib.urs_fault_plan(lib.URS_FAULT_SEND, 0, 0, 0)

        for session in self.sessions:
            run_until(self.reactor, functools.partial(self.is_empty, session), timeout=0.001)
            self.send(session, 20)
        run_until(self.reactor, self.is_all_read, timeout=0.001)
        self.look()
        missing: Counter[Topic] = Counter()
        for session in self.sessions:
            for topic in check(session):
                missing[topic] += 1
        for topic in self.topics:
            stats = topic.stats()
            left_out = stats.dropped + stats.conflated + stats.closed
            if any(session.has_ended for session in self.sessions):
                assert left_out <= stats.addressed
            else:
                assert missing[topic] == left_out, topic


def check(session: Session) -> list[Topic]:
    """Compare what a session read with what the model expects; return the topics of the frames that were left out."""
    got, at, left_out = bytes(session.got), 0, []
    for topic, expected in session.expected:
        at = skip_pongs(got, at)
        if got.startswith(expected, at):
            at += len(expected)
        elif topic is not None and topic.on_full != "close":
            left_out.append(topic)
        else:
            assert session.has_ended, f"{expected[:20]!r} did not come"
            break
    rest = got[skip_pongs(got, at) :]
    if session.has_ended:
        # A close frame, or the beginning of a frame that was cut.
        whole = rest[:1] == bytes([0x80 | CLOSE]) or not rest
        assert whole or any(expected.startswith(rest) for _, expected in session.expected), rest[:40]
    else:
        assert (b"\x8a\x14" + rest[2:])[: len(rest)] == rest, rest[:40]
        assert len(rest) < 22, "more than the beginning of a pong"
    return left_out


def skip_pongs(got: bytes, at: int) -> int:
    """The place after the pongs that are at a place. They are 22 bytes."""
    while got[at : at + 2] == b"\x8a\x14":
        at += 22
    return at


OPERATIONS = [name.removeprefix("do_") for name in vars(Bench) if name.startswith("do_")]
OFTEN = ["add"] * 6 + ["publish"] * 6 + ["burst"] * 2 + ["turn"] * 4 + ["read"] * 3


@settings(max_examples=40)
@given(
    calls=st.lists(
        st.tuples(st.sampled_from(OFTEN + OPERATIONS), st.integers(0, 240), st.integers(0, 240)), max_size=80
    )
)
def test_random_calls_give_each_session_what_the_model_says(
    backend: Backend, calls: list[tuple[str, int, int]]
) -> None:
    with Reactor(Silent(), OPTIONS, backend=backend) as reactor, contextlib.ExitStack() as stack:
        bench = Bench(reactor, stack)
        for topic in bench.topics:
            for session in bench.sessions[:3]:
                bench.do_add(session, topic, 0, 0)
        for call in calls:
            bench.do(*call)
        bench.finish()
