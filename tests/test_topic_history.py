"""Topics that keep their last messages: a connection that comes back gets those that it has missed, or a Gap."""

from __future__ import annotations

import time

import pytest

from servers import Silent, connected
from test_topics import Room, room
from uringws import BacklogFull, ConnectionClosed, Gap, History, Options, Reactor, Topic
from uringws.backend import Backend
from wire import BINARY, Frame

KIB = 1 << 10


def comes_back(it: Room, topic: Topic, since: int) -> int:
    """A new connection joins; return how many messages it was sent."""
    it.peers.append(connected(it.reactor))
    it.conns.append(it.recorder.connections[it.recorder.of("open")[-1][1]])
    return topic.add(it.conns[-1], since)


def messages(numbers: range, size: int = 10) -> list[Frame]:
    return [Frame(BINARY, b"%0*d" % (size, number)) for number in numbers]


def publish(topic: Topic, numbers: range, size: int = 10) -> None:
    for frame in messages(numbers, size):
        topic.publish(frame.payload)


@pytest.mark.parametrize("size", [10, 3000, 50_000], ids=["small", "medium", "blocks"])
def test_a_connection_that_comes_back_misses_nothing_and_gets_nothing_twice(backend: Backend, size: int) -> None:
    with room(backend, 1) as it:
        topic = it.reactor.topic("kept", history=History(100))
        topic.add(it.conns[0])
        begin = topic.position
        publish(topic, range(10), size)
        it.turn()
        assert comes_back(it, topic, begin + 4) == 6
        publish(topic, range(10, 12), size)  # in the same turn
        it.conns[1].send("and this")
        assert topic.position == begin + 12
        assert comes_back(it, topic, begin + 12) == 0
        publish(topic, range(12, 13), size)
        it.turn()
        for peer, first in zip(it.peers, (0, 4, 12), strict=True):
            got = peer.read_frames(14 - first if peer is it.peers[1] else 13 - first)
            assert [frame for frame in got if frame.opcode == BINARY] == messages(range(first, 13), size)
        stats = topic.stats()
        assert stats.addressed == stats.sent == 13 + 9 + 1


def test_a_history_that_does_not_reach_back_is_a_gap(backend: Backend) -> None:
    with room(backend, 1) as it:
        topic = it.reactor.topic("kept", history=History(5))
        begin = topic.position
        publish(topic, range(8))
        for since in (begin, begin + 2, begin + 9, begin + (1 << 32), 0, -1, 1 << 60):
            with pytest.raises(Gap) as gap:
                topic.add(it.conns[0], since)
            assert (gap.value.since, gap.value.oldest, gap.value.newest) == (since, begin + 3, begin + 8)
        assert it.conns[0] not in topic
        assert topic.add(it.conns[0], begin + 3) == 5
        it.turn()
        assert it.peers[0].read_frames(5) == messages(range(3, 8))
        with pytest.raises(ValueError, match="already"):
            topic.add(it.conns[0], begin + 8)


def test_a_topic_without_a_history_can_only_go_on_from_its_position(backend: Backend) -> None:
    with room(backend, 1) as it:
        topic = it.reactor.topic("other")
        it.topic.publish("x")
        topic.publish("x")
        with pytest.raises(Gap):
            topic.add(it.conns[0], topic.position - 1)
        assert topic.add(it.conns[0], topic.position) == 0
        assert it.conns[0] in topic


def test_a_history_is_bounded_by_bytes_and_by_age(backend: Backend) -> None:
    with room(backend, 1) as it:
        small = it.reactor.topic("bytes", history=History(100, bytes=4 * KIB))
        publish(small, range(20), KIB - 4)  # with their headers 1 KiB each
        with pytest.raises(Gap):
            small.add(it.conns[0], small.position - 5)
        assert small.add(it.conns[0], small.position - 4) == 4
        small.publish(bytes(5 * KIB))  # larger than all that may be kept
        with pytest.raises(Gap):
            comes_back(it, small, small.position - 1)
        young = it.reactor.topic("age", history=History(100, seconds=0.05))
        young.publish("x")
        time.sleep(0.08)
        with pytest.raises(Gap):
            young.add(it.conns[0], young.position - 1)


def test_positions_of_another_process_are_gaps() -> None:
    """They begin at random, and JavaScript's numbers hold them."""
    begins = set()
    for _ in range(20):
        with Reactor(Silent()) as reactor:
            begins.add(reactor.topic("t").position)
    assert len(begins) > 15
    assert max(begins) < 2**53


def test_a_topic_with_a_history_outlives_its_members_and_its_handle(backend: Backend) -> None:
    with room(backend, 1) as it:
        topic = it.reactor.topic("kept", history=History(5))
        begin = topic.position
        publish(topic, range(3))
        del topic
        for _ in range(3):
            it.reactor.topic("other")
            it.turn()
        topic = it.reactor.topic("kept")
        assert topic.history == History(5)
        assert topic.add(it.conns[0], begin) == 3
        with pytest.raises(ValueError, match="made with"):
            it.reactor.topic("kept", history=History(6))


def test_topics_whose_history_is_too_old_are_freed(backend: Backend) -> None:
    with room(backend, 1) as it:
        for number in range(600):
            it.reactor.topic(f"{number}", history=History(5, seconds=0.001)).publish("x")
            if number % 50 == 0:
                time.sleep(0.003)
                it.turn()
        time.sleep(0.003)
        for number in range(1500):
            it.reactor.topic(f"later {number}")
            if number % 20 == 0:
                it.turn()
        assert it.reactor.stats().memory_bytes < 10 * KIB
        assert len(it.reactor._topics._identities) < 1500
        assert it.reactor.topic("1").history is None  # a new one


def test_a_replay_that_does_not_fit_is_refused_whole(backend: Backend) -> None:
    with room(backend, 1, backlog_bytes_max=10_000) as it:
        topic = it.reactor.topic("kept", history=History(100))
        begin = topic.position
        publish(topic, range(12), 1000)
        with pytest.raises(BacklogFull):
            topic.add(it.conns[0], begin)
        assert it.conns[0] not in topic
        assert it.conns[0].buffered_amount == 0
        assert topic.add(it.conns[0], begin + 4) == 8


def test_a_history_counts_for_the_memory_budget(backend: Backend) -> None:
    """A message for which there is no memory is published, and the history begins after it."""
    options = Options(message_bytes_max=1000)
    pool = options.receive_buffers * options.receive_buffer_bytes
    with room(backend, 1, message_bytes_max=1000, memory_bytes_max=pool + 300 * KIB) as it:
        topic = it.reactor.topic("kept", history=History(1000, bytes=1 << 30))
        topic.add(it.conns[0])
        for number in range(40):
            topic.publish(b"%05d" % number * 2000)
            it.turn()
        assert it.peers[0].read_frames(40)[-1].payload == b"00039" * 2000
        assert it.reactor.stats().memory_bytes <= 300 * KIB
        with pytest.raises(Gap):
            comes_back(it, topic, topic.position - 40)


def test_wrong_histories_are_refused() -> None:
    for wrong in ({"messages": 0}, {"messages": 1, "bytes": 0}, {"messages": 1, "seconds": -1.0}):
        with pytest.raises(ValueError, match=r"History|seconds"):
            History(**wrong)
    for mistyped in ({"messages": 1.5}, {"messages": True}, {"messages": 1, "seconds": "1"}):
        with pytest.raises(TypeError):
            History(**mistyped)


def test_a_connection_that_has_ended_cannot_come_back(backend: Backend) -> None:
    with room(backend, 1) as it:
        topic = it.reactor.topic("kept", history=History(5))
        it.conns[0].close()
        with pytest.raises(ConnectionClosed):
            topic.add(it.conns[0], topic.position)
