"""Topics: membership, the messages of members, and their order among everything else that a member is sent."""

from __future__ import annotations

import gc
import random
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pytest

from servers import ReactorThread, Recorder, Silent, connected, run_until, settle
from test_connections import pairs
from uringws import (
    Connection,
    ConnectionClosed,
    Handler,
    Message,
    Opcode,
    Options,
    Reactor,
    ReactorStateError,
    SendResult,
    Topic,
    WrongThread,
)
from uringws.backend import Backend
from uringws.driver import Driver
from wire import BINARY, CLOSE, PING, PONG, TEXT, Frame, Peer, frame, server_frame


class Room:
    """Sessions of a reactor in the test's own thread; all are members of `topic`."""

    def __init__(self, reactor: Reactor, recorder: Recorder, members: int) -> None:
        self.reactor, self.recorder = reactor, recorder
        self.topic = reactor.topic("room")
        self.peers: list[Peer] = []
        self.conns: list[Connection] = []
        for _ in range(members):
            self.join()

    def join(self) -> None:
        self.peers.append(connected(self.reactor))
        self.conns.append(self.recorder.connections[self.recorder.of("open")[-1][1]])
        self.topic.add(self.conns[-1])

    def turn(self) -> None:
        self.reactor.run_once(0)

    def until(self, condition: Callable[[], object]) -> None:
        run_until(self.reactor, condition)

    def expect(self, *frames: Frame) -> None:
        """All that has been sent to each peer."""
        self.turn()
        for peer in self.peers:
            assert peer.read_frames(len(frames)) == list(frames)


@contextmanager
def room(backend: Backend, members: int = 3, recorder: Recorder | None = None, **options: object) -> Iterator[Room]:
    recorder = recorder or Recorder()
    with Reactor(recorder, Options(**options), backend=backend) as reactor:  # type: ignore[arg-type]
        it = Room(reactor, recorder, members)
        try:
            yield it
        finally:
            for peer in it.peers:
                peer.close()


# Members


def test_a_topic_knows_its_members_and_a_connection_its_topics(backend: Backend) -> None:
    with room(backend) as it:
        first, second, _ = it.conns
        other = it.reactor.topic("other")
        other.add(second)
        assert (len(it.topic), len(other)) == (3, 1)
        assert first in it.topic
        assert first not in other
        assert set(second.topics) == {it.topic, other}
        assert it.topic.remove(second)
        assert not it.topic.remove(second)
        assert second.topics == [other]
        assert (second in it.topic, len(it.topic)) == (False, 2)
        it.topic.add(first)  # it is one already
        assert len(it.topic) == 2


def test_a_name_means_the_same_topic_while_it_is_used(backend: Backend) -> None:
    with room(backend, 1) as it:
        assert it.reactor.topic("room") is it.topic
        conn = it.conns[0]
        it.reactor.topic("kept").add(conn)
        gc.collect()
        kept = it.reactor.topic("kept")
        assert conn in kept
        assert (kept.name, kept.on_full, repr(kept)) == ("kept", "close", "<Topic 'kept'>")
        assert kept in conn.topics


def test_topics_without_members_are_forgotten(backend: Backend) -> None:
    with room(backend, 1) as it:
        count = it.reactor._topics
        for number in range(1000):
            topic = it.reactor.topic(f"passing {number}", on_full="drop_new")
            topic.add(it.conns[0])
            topic.remove(it.conns[0])
            it.turn()
        assert len(count._identities) < 200
        assert it.reactor.topic("passing 1").on_full == "close"  # a new one


def test_every_membership_can_end_in_any_order(backend: Backend) -> None:
    """Against sets: members move within the shim's tables when others leave."""
    with room(backend, 12) as it:
        topics = [it.reactor.topic(f"topic {number}") for number in range(9)]
        members: list[set[Connection]] = [set() for _ in topics]
        state = 1
        for _ in range(1500):
            state = state * 1103515245 + 12345 & 0x7FFFFFFF
            topic, conn = state // 7 % len(topics), it.conns[state // 97 % len(it.conns)]
            if state // 1013 % 2:
                topics[topic].add(conn)
                members[topic].add(conn)
            else:
                assert topics[topic].remove(conn) == (conn in members[topic])
                members[topic].discard(conn)
            assert len(topics[topic]) == len(members[topic])
        for conn in it.conns:
            expected = {topic for topic, there in zip(topics, members, strict=True) if conn in there}
            assert set(conn.topics) - {it.topic} == expected
            assert {topic for topic in topics if conn in topic} == expected
        assert [topic.publish("x") for topic in topics] == [len(there) for there in members]


class Leaves(Recorder):
    """Records how many topics the connection has, in on_close."""

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        self.record("close", code, len(conn.topics))


@pytest.mark.parametrize("end", ["close", "abort", "peer closes", "peer is gone", "drain"])
def test_a_connection_that_begins_to_end_leaves_all_its_topics(backend: Backend, end: str) -> None:
    recorder = Leaves()
    with room(backend, 3, recorder) as it:
        topics = [it.reactor.topic(f"{number}") for number in range(20)]
        for topic in topics:
            topic.add(it.conns[1])
        if end == "close":
            it.conns[1].close()
        elif end == "abort":
            it.conns[1].abort()
        elif end == "peer closes":
            it.peers[1].send(CLOSE, b"\x03\xe8")
            it.until(lambda: recorder.of("close"))
        elif end == "peer is gone":
            it.peers[1].close()
            it.until(lambda: recorder.of("close"))
        else:
            it.reactor.drain(0)
        assert it.conns[1].topics == []
        assert [len(topic) for topic in topics] == [0] * 20
        assert len(it.topic) == (0 if end == "drain" else 2)
        with pytest.raises(ConnectionClosed):
            topics[0].add(it.conns[1])
        assert not topics[0].remove(it.conns[1])
        assert {event[2] for event in recorder.of("close")} <= {0}


# Messages


def test_a_message_goes_to_all_members_but_the_skipped_one(backend: Backend) -> None:
    with room(backend) as it:
        stranger = Room(it.reactor, it.recorder, 0)
        stranger.join()
        it.topic.remove(stranger.conns[0])
        assert it.topic.publish("text") == 3
        assert it.topic.publish(b"binary", skip=it.conns[0]) == 2
        assert it.topic.publish(bytearray(b"text"), TEXT) == 3
        assert it.topic.publish("skip is no member", skip=stranger.conns[0]) == 3
        it.topic.publish(np.arange(3, dtype="u1"))
        it.turn()
        text, binary = Frame(TEXT, b"text"), Frame(BINARY, b"binary")
        rest = [text, Frame(TEXT, b"skip is no member"), Frame(BINARY, b"\0\1\2")]
        assert it.peers[0].read_frames(4) == [text, *rest]
        assert it.peers[1].read_frames(5) == it.peers[2].read_frames(5) == [text, binary, *rest]
        stranger.conns[0].send("only this")
        it.turn()
        assert stranger.peers[0].read_frame() == Frame(TEXT, b"only this")
        stranger.peers[0].close()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 3_000_000])
def test_messages_of_all_sizes_arrive_whole(backend: Backend, size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    recorder = Recorder()
    with ReactorThread(recorder, backend=backend) as server:
        peers = [Peer.connect(server.address) for _ in range(4)]
        recorder.wait_for("open", 4)

        def publish() -> int:
            topic = server.reactor.topic("all")
            for conn in recorder.connections.values():
                topic.add(conn)
            return topic.publish(payload[:size]) + topic.publish(bytearray(payload[:size]))

        assert server.ask(publish) == 8
        for peer in peers:
            assert peer.read_frames(2) == [Frame(BINARY, payload[:size])] * 2
            peer.close()
        settle(server)


def test_each_member_sees_the_order_of_the_calls(backend: Backend) -> None:
    with room(backend) as it:
        other = it.reactor.topic("other")
        for conn in it.conns:
            other.add(conn)
        expected = []
        for number in range(40):
            text = f"{number}"
            if number % 3 == 0:
                it.topic.publish(text)
            elif number % 3 == 1:
                other.publish(text)
            else:
                for conn in it.conns:
                    conn.send(text)
            expected.append(Frame(TEXT, text.encode()))
        it.expect(*expected)


class Publisher(Recorder):
    """Publishes each message that is not "echo", which it echoes."""

    topic: Topic

    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        if bytes(message) == b"echo":
            conn.echo()
        else:
            self.topic.publish(message)


def test_publishes_keep_their_place_among_echoes_and_pongs(backend: Backend) -> None:
    publisher = Publisher()
    with room(backend, 2, publisher) as it:
        publisher.topic = it.topic
        peer = it.peers[0]
        messages = [(TEXT, b"1"), (TEXT, b"echo"), (PING, b"p"), (BINARY, b"2"), (TEXT, b"echo")]
        peer.sock.sendall(b"".join(frame(opcode, payload) for opcode, payload in messages))
        it.until(lambda: len(publisher.of("message")) == 4)
        it.turn()
        one, two, echo = Frame(TEXT, b"1"), Frame(BINARY, b"2"), Frame(TEXT, b"echo")
        assert peer.read_frames(5) == [one, echo, Frame(PONG, b"p"), two, echo]
        assert it.peers[1].read_frames(2) == [one, two]


def test_the_payload_of_a_large_message_can_be_published(backend: Backend) -> None:
    """It lies in a block, not in a receive buffer."""
    publisher = Publisher()
    with ReactorThread(publisher, backend=backend) as server, Peer.connect(server.address) as peer:
        publisher.wait_for("open")

        def join() -> None:
            publisher.topic = server.reactor.topic("t")
            publisher.topic.add(next(iter(publisher.connections.values())))

        server.ask(join)
        payload = bytes(range(256)) * 2000
        peer.send(BINARY, payload)
        assert peer.read_frame() == Frame(BINARY, payload)


class Speaks(Handler):
    """Publishes from every callback."""

    topic: Topic
    said: list[int]

    def on_open(self, conn: Connection) -> None:
        self.topic.add(conn)
        self.topic.publish("open")

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        self.topic.publish("close")


def test_callbacks_may_publish_to_the_topic_that_their_connection_enters_or_leaves(backend: Backend) -> None:
    handler = Speaks()
    with Reactor(handler, backend=backend) as reactor:
        handler.topic = reactor.topic("t")
        first, second = connected(reactor), connected(reactor)
        reactor.run_once(0)
        assert first.read_frames(2) == [Frame(TEXT, b"open")] * 2
        second.close()
        run_until(reactor, lambda: len(handler.topic) == 1)
        reactor.run_once(0)
        assert first.read_frame() == Frame(TEXT, b"close")
        first.close()
    # close() of the reactor calls on_close, whose publish reaches no connection and raises nothing.


def test_a_turn_of_many_publishes_arrives_in_order(backend: Backend) -> None:
    with room(backend, 5) as it:
        expected = []
        for number in range(300):
            payload = b"%d" % number * (number % 50 + 1)
            it.topic.publish(payload)
            expected.append(Frame(BINARY, payload))
        it.expect(*expected)
        assert it.topic.stats()[:3] == (300, 1500, 1500)


def test_more_than_a_turns_memory_may_be_published_at_once(backend: Backend) -> None:
    """The shim flushes in between; the members' sockets take a part, their backlogs the rest."""
    recorder = Recorder()
    with ReactorThread(recorder, backend=backend) as server:
        peers = [Peer.connect(server.address) for _ in range(3)]
        recorder.wait_for("open", 3)

        def publish() -> None:
            topic = server.reactor.topic("all")
            for conn in recorder.connections.values():
                topic.add(conn)
            for number in range(400):
                assert topic.publish(number.to_bytes(2, "big") * 5000) == 3

        server.ask(publish)
        for peer in peers:
            for number in range(400):
                assert peer.read_frame() == Frame(BINARY, number.to_bytes(2, "big") * 5000)
            peer.close()
        settle(server)


# Members that cannot take it


def stalled(it: Room, place: int = 0) -> SendResult:
    """Fill the socket and the backlog of a member."""
    result = SendResult.SENT
    while result is not SendResult.DROPPED:
        result = it.conns[place].send(bytes(60_000))
        it.turn()
    return result


def test_a_full_backlog_closes_the_member_and_only_it(backend: Backend) -> None:
    with room(backend, 3, backlog_bytes_max=1 << 20, on_full="drop") as it:
        stalled(it)
        assert it.topic.publish(bytes(100_000)) == 3
        assert len(it.topic) == 2
        it.turn()
        assert it.peers[1].read_frame() == it.peers[2].read_frame() == Frame(BINARY, bytes(100_000))
        stats = it.topic.stats()
        assert (stats.addressed, stats.sent, stats.closed) == (3, 2, 1)
        assert it.conns[0].closing is not None
        assert it.conns[0].closing.sent is not None
        assert it.conns[0].closing.sent.code == 1008


def test_every_member_may_be_closed_by_one_publish(backend: Backend) -> None:
    recorder = Leaves()
    with room(backend, 40, recorder, backlog_bytes_max=1000) as it:
        assert it.topic.publish(bytes(1001)) == 40
        assert len(it.topic) == 0
        it.turn()
        for peer in it.peers:
            assert peer.read_frame().opcode == CLOSE
            peer.close()
        it.until(lambda: len(recorder.of("close")) == 40)
        assert it.topic.stats().closed == 40


def test_drop_new_leaves_the_message_out(backend: Backend) -> None:
    with room(backend, 2, backlog_bytes_max=1000) as it:
        topic = it.reactor.topic("small", on_full="drop_new")
        for conn in it.conns:
            topic.add(conn)
        assert topic.publish(bytes(1001)) == 2
        assert topic.publish(b"fits") == 2
        it.expect(Frame(BINARY, b"fits"))
        stats = topic.stats()
        assert (stats.addressed, stats.sent, stats.dropped) == (4, 2, 2)
        assert it.reactor.stats().drops == 2


def test_no_message_is_published_into_a_fragmented_one(backend: Backend) -> None:
    with room(backend, 2) as it:
        lossy = it.reactor.topic("lossy", on_full="drop_new")
        lossy.add(it.conns[0])
        it.conns[0].send(Opcode.TEXT, b"begin", fin=False)
        assert lossy.publish("x") == 1
        assert lossy.stats().dropped == 1
        it.conns[0].send(Opcode.CONTINUATION, b"end")
        it.turn()
        assert it.peers[0].read_frames(2) == [Frame(TEXT, b"begin", fin=False), Frame(0, b"end")]
        it.conns[0].send(Opcode.TEXT, b"begin", fin=False)
        assert it.topic.publish("x") == 2
        assert it.conns[0] not in it.topic
        it.turn()
        begun, close = it.peers[0].read_frames(2)
        assert (begun, close.opcode, close.payload[:2]) == (Frame(TEXT, b"begin", fin=False), CLOSE, b"\x03\xf3")
        assert it.peers[1].read_frame() == Frame(TEXT, b"x")


# Without a topic


def test_a_broadcast_goes_to_all_open_connections(backend: Backend) -> None:
    with room(backend, 4) as it:
        it.conns[3].close()
        assert it.reactor.broadcast("news") == 3
        it.turn()
        for peer in it.peers[:3]:
            assert peer.read_frame() == Frame(TEXT, b"news")
        assert it.peers[3].read_frame().opcode == CLOSE


def test_a_broadcast_goes_to_connections_or_ids_that_are_named(backend: Backend) -> None:
    with room(backend, 4) as it:
        first, second, third, last = it.conns
        last.close()
        assert it.reactor.broadcast(b"set", to={first, second, last}) == 2
        assert it.reactor.broadcast(b"twice", to=[first, first]) == 2
        assert it.reactor.broadcast("ids", to=np.array([third.id, first.id, 12345, last.id], dtype="u8")) == 2
        assert it.reactor.broadcast("none", to=[]) == it.reactor.broadcast("none", to=np.array([], dtype="u8")) == 0
        it.turn()
        chosen, twice, ids = Frame(BINARY, b"set"), Frame(BINARY, b"twice"), Frame(TEXT, b"ids")
        assert it.peers[0].read_frames(4) == [chosen, twice, twice, ids]
        assert it.peers[1].read_frame() == chosen
        assert it.peers[2].read_frame() == ids


# Mistakes


def test_wrong_arguments_are_refused(backend: Backend) -> None:
    with room(backend, 1) as it, Reactor(Silent(), backend=backend) as other:
        for name, error in [(1, TypeError), ("", ValueError), ("x" * 1025, ValueError)]:
            with pytest.raises(error, match="name of a topic"):
                it.reactor.topic(name)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="on_full='never'"):
            it.reactor.topic("x", on_full="never")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="made with 'close'"):
            it.reactor.topic("room", on_full="drop_new")
        for opcode in (Opcode.PING, Opcode.CONTINUATION, Opcode.CLOSE, 3):
            with pytest.raises(ValueError, match="cannot be sent to many"):
                it.topic.publish(b"", opcode)
        for wrong in (TEXT, None, 1.5, object()):
            with pytest.raises(TypeError):
                it.topic.publish(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="encode it"):
            it.topic.publish("text", BINARY)
        with pytest.raises(ValueError, match="another reactor"):
            other.topic("room").add(it.conns[0])
        with pytest.raises(ValueError, match="another reactor"):
            other.broadcast("x", to=it.conns)
        assert it.conns[0] not in other.topic("room")
        with pytest.raises(TypeError, match="not str"):
            it.topic.add("conn")  # type: ignore[arg-type]
        for to in ([1, 2], np.array([1.0]), np.array([[1]], dtype="u8"), b"12345678"):
            with pytest.raises(TypeError):
                it.reactor.broadcast("x", to=to)  # type: ignore[arg-type]


def test_topics_belong_to_the_reactors_thread(backend: Backend) -> None:
    with pairs(1), ReactorThread(Silent(), backend=backend) as server:
        topic = server.ask(lambda: server.reactor.topic("t"))
        for call in (
            lambda: server.reactor.topic("t"),
            lambda: topic.publish("x"),
            lambda: len(topic),
            topic.stats,
            lambda: server.reactor.broadcast("x"),
        ):
            with pytest.raises(WrongThread):
                call()
        collected = threading.Thread(target=gc.collect)
        topic = server.ask(lambda: server.reactor.topic("another"))
        collected.start()
        collected.join()
        assert len(server.ask(lambda: server.reactor.topic("t"))._released) == 0


def test_a_topic_of_a_closed_reactor_says_so() -> None:
    with Reactor(Silent(), backend="epoll") as reactor:
        topic = reactor.topic("t")
    for call in (lambda: reactor.topic("t"), lambda: topic.publish("x"), lambda: len(topic), topic.stats):
        with pytest.raises(ReactorStateError, match="closed"):
            call()


def test_a_turn_sends_once_per_member(backend: Backend) -> None:
    with room(backend, 2) as it:
        for _ in range(64):
            it.topic.publish(b"x" * 20)
        it.turn()
        expected = server_frame(BINARY, b"x" * 20) * 64
        assert it.peers[0].sock.recv(1 << 16) == expected  # all of them in one segment


# Publishes that directly follow one another


def test_members_may_be_skipped_in_any_order(backend: Backend) -> None:
    """Frames that follow one another are added to the members' lists in one go: each skipped one has a gap."""
    with room(backend, 4) as it:
        expected: list[list[Frame]] = [[] for _ in it.conns]
        for number, skipped in enumerate([None, 0, 0, 1, None, 2, 3, 3, 0, None, 1, 1, 2]):
            payload = b"%d" % number
            assert it.topic.publish(payload, skip=None if skipped is None else it.conns[skipped]) == 4 - (
                skipped is not None
            )
            for place, frames in enumerate(expected):
                if place != skipped:
                    frames.append(Frame(BINARY, payload))
        it.turn()
        for peer, frames in zip(it.peers, expected, strict=True):
            assert peer.read_frames(len(frames)) == frames
            assert peer.quiet(0.01)
        assert it.topic.stats().sent == sum(map(len, expected))


def test_a_member_that_is_skipped_by_every_publish_gets_nothing(backend: Backend) -> None:
    with room(backend, 2) as it:
        for number in range(20):
            assert it.topic.publish(b"%d" % number, skip=it.conns[0]) == 1
        it.turn()
        assert it.peers[0].quiet()
        assert it.peers[1].read_frames(20) == [Frame(BINARY, b"%d" % number) for number in range(20)]


class Model:
    """A room, and lists of the frames that its peers must get. Each method does one thing to both, by chance."""

    CALLS: ClassVar = {
        "publish": 40,
        "send": 4,
        "ping": 2,
        "broadcast": 2,
        "add": 3,
        "remove": 3,
        "turn": 4,
        "ask": 2,
        "close": 0.3,
    }

    def __init__(self, it: Room, seed: int) -> None:
        self.it, self.chance = it, random.Random(seed)
        self.topics = [it.topic, it.reactor.topic("other")]
        self.members = [set(range(6)), set[int]()]
        self.expected: list[list[Frame]] = [[] for _ in it.conns]
        self.open = set(range(6))

    def step(self, number: int) -> None:
        call = self.chance.choices(list(self.CALLS), list(self.CALLS.values()))[0]
        self.payload = b"%d" % number * self.chance.choice([1, 1, 1, 40, 400])
        self.which, self.place = self.chance.randrange(2), self.chance.choice(sorted(self.open))
        self.topic, self.conn = self.topics[self.which], self.it.conns[self.place]
        getattr(self, call)()
        assert [len(topic) for topic in self.topics] == [len(there) for there in self.members]

    def expect(self, opcode: int, payload: bytes, places: set[int]) -> None:
        for place in places:
            self.expected[place].append(Frame(opcode, payload))

    def publish(self) -> None:
        skip = self.chance.choice([None, self.place])
        got = self.members[self.which] - {skip}
        assert self.topic.publish(self.payload, skip=None if skip is None else self.conn) == len(got)
        self.expect(BINARY, self.payload, got)

    def broadcast(self) -> None:
        assert self.it.reactor.broadcast(self.payload) == len(self.open)
        self.expect(BINARY, self.payload, self.open)

    def send(self) -> None:
        self.conn.send(self.payload)
        self.expect(BINARY, self.payload, {self.place})

    def ping(self) -> None:
        self.conn.ping(self.payload[:10])
        self.expect(PING, self.payload[:10], {self.place})

    def add(self) -> None:
        self.topic.add(self.conn)
        self.members[self.which].add(self.place)

    def remove(self) -> None:
        assert self.topic.remove(self.conn) == (self.place in self.members[self.which])
        self.members[self.which].discard(self.place)

    def turn(self) -> None:
        self.it.turn()

    def ask(self) -> None:
        assert (self.conn in self.topic) == (self.place in self.members[self.which])
        assert self.conn.buffered_amount >= 0

    def close(self) -> None:
        if len(self.open) == 2:
            return
        self.conn.close()
        self.expect(CLOSE, b"\x03\xe8", {self.place})
        self.open.discard(self.place)
        for there in self.members:
            there.discard(self.place)


class SlicedModel(Model):
    """Its turns serve one or two members of a topic: the frames of several turns wait at the same time."""

    def turn(self) -> None:
        driver = Driver(self.it.reactor)
        with driver.driving():
            driver.take_turn(0, 1)


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_calls_reaches_each_peer_in_order(backend: Backend, seed: int) -> None:
    with room(backend, 6, fanout_turn_max=1 + seed % 2) as it, ThreadPoolExecutor(6) as pool:
        model = (SlicedModel if seed >= 3 else Model)(it, seed)
        for number in range(800):
            model.step(number)
        for peer, frames in zip(it.peers, model.expected, strict=True):
            reading = pool.submit(peer.read_frames, len(frames))
            run_until(it.reactor, reading.done)
            assert reading.result() == frames
        for topic in model.topics:
            stats = topic.stats()
            assert stats.addressed == stats.sent + stats.queued


# Large topics


class Lively(Publisher):
    """Publishes what the first connection sends; notes how many members had it when another one was answered."""

    peers: list[Peer]
    served: int | None = None

    def on_message(self, conn: Connection, message: Message) -> None:
        if bytes(message) == b"publish":
            self.topic.publish(b"to all")
            self.peers[-1].send(TEXT, b"echo")  # it is there when the next turn looks for input
        else:
            conn.echo()
            self.served = len(select.select([peer.sock for peer in self.peers[:-1]], [], [], 0)[0])


def test_others_are_answered_while_a_large_topic_is_served(backend: Backend) -> None:
    lively = Lively()
    with room(backend, 31, lively, fanout_turn_max=5) as it:
        lively.topic, lively.peers = it.topic, it.peers
        it.topic.remove(it.conns[-1])
        it.turn()
        it.peers[0].send(TEXT, b"publish")
        driver = Driver(it.reactor)
        with driver.driving():
            for _ in range(20):
                driver.take_turn(0.01, 1)
        assert lively.served is not None
        assert 5 <= lively.served <= 10
        assert it.peers[-1].read_frame() == Frame(TEXT, b"echo")
        for peer in it.peers[:-1]:
            assert peer.read_frame() == Frame(BINARY, b"to all")


def test_connections_may_end_while_they_wait_for_their_slice(backend: Backend) -> None:
    with room(backend, 12, fanout_turn_max=1) as it:
        driver = Driver(it.reactor)
        it.turn()
        for number in range(3):
            it.topic.publish(b"%d" % number)
            with driver.driving():
                driver.take_turn(0, 1)
        it.conns[0].abort()
        it.conns[1].close()
        it.peers[2].close()
        it.reactor.drain(1)
        frames = [Frame(BINARY, b"%d" % number) for number in range(3)]
        for peer in [*it.peers[3:], it.peers[1]]:
            assert peer.read_frames(3) == frames
            assert peer.read_frame().opcode == CLOSE
        assert it.topic.stats().addressed == 36
