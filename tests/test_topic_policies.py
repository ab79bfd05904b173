"""Topics with members that read slowly: the policies, their counters, and the memory that a slow reader costs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from servers import Recorder, run_until
from test_topics import Room, room
from uringws import Connection, Topic
from uringws.backend import Backend
from uringws.topics import OnFull
from wire import BINARY, PING, PONG, Frame, frame

KIB, MIB = 1 << 10, 1 << 20


class Drops(Recorder):
    def on_drop(self, conn: Connection, topic: Topic, count: int) -> None:
        self.record("drop", conn.id, topic.name, count)


def numbered(number: int, size: int = KIB) -> bytes:
    """A payload that tells which one it is."""
    return number.to_bytes(4, "big") * (size // 4)


def stall(it: Room, place: int = 0) -> int:
    """Fill the socket of a member, and a part of its backlog; return how many messages that took."""
    count = 0
    while it.conns[place].buffered_amount < 200_000:  # the sockets take a little more in the next turns
        it.conns[place].send(numbered(count, 60_000))
        it.reactor.run_once(0.002)
        count += 1
    return count


def balances(topic: Topic) -> bool:
    stats = topic.stats()
    return stats.addressed == stats.sent + stats.queued + stats.dropped + stats.conflated + stats.closed


def read_frames(it: Room, place: int = 0) -> list[Frame]:
    """Read all that a member has been sent; a ping marks the end."""
    it.conns[place].ping(b"end")
    found: list[Frame] = []

    def read() -> None:
        while not found or found[-1] != Frame(PING, b"end"):
            found.append(it.peers[place].read_frame())

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        run_until(it.reactor, reading.done)
        reading.result()
    return found[:-1]


def read_all(it: Room, before: int, place: int = 0) -> list[int]:
    """Read all messages that a stalled member was sent; return the numbers of those that were published."""
    messages = read_frames(it, place)
    numbers = [int.from_bytes(message.payload[:4], "big") for message in messages]
    assert messages == [
        Frame(BINARY, numbered(number, len(message.payload))) for number, message in zip(numbers, messages, strict=True)
    ]
    assert numbers[:before] == list(range(before))
    return numbers[before:]


def test_a_slow_reader_gets_everything_in_order(backend: Backend) -> None:
    with room(backend, 3) as it:
        before = stall(it)
        for number in range(200):
            it.topic.publish(numbered(number, 100 + number))
            if number % 7 == 0:
                it.turn()
        it.turn()
        stats = it.topic.stats()
        assert (stats.addressed, stats.sent, stats.queued) == (600, 400, 200)
        assert read_all(it, before) == list(range(200))
        assert [int.from_bytes(it.peers[1].read_frame().payload[:4], "big") for _ in range(200)] == list(range(200))


def test_memory_grows_with_messages_and_not_with_slow_readers(backend: Backend) -> None:
    with room(backend, 8) as it:
        for place in range(8):
            stall(it, place)
        before = it.reactor.stats().memory_bytes
        for number in range(500):
            it.topic.publish(numbered(number))
            it.turn()
        grown = it.reactor.stats().memory_bytes - before
        assert 500 * KIB < grown < 1.3 * 500 * KIB  # 8 copies would be 4,000 KiB
        assert it.topic.stats().queued == 8 * 500
        for conn in it.conns:
            conn.abort()
        it.turn()
        it.turn()
        assert it.reactor.stats().memory_bytes == 0


@pytest.mark.parametrize("on_full", ["drop_new", "drop_old", "conflate"])
def test_whole_messages_are_left_out_as_the_policy_says(backend: Backend, on_full: OnFull) -> None:
    drops = Drops()
    with room(backend, 2, drops, backlog_bytes_max=MIB) as it:
        topic = it.reactor.topic(on_full, on_full=on_full)
        for conn in it.conns:
            it.topic.remove(conn)
            topic.add(conn)
        before = stall(it)
        expected = 0
        for number in range(2000):
            assert topic.publish(numbered(number)) == 2
            if number % 100 == 99:
                it.turn()
                assert [int.from_bytes(it.peers[1].read_frame().payload[:4], "big") for _ in range(100)] == list(
                    range(number - 99, number + 1)
                )
            assert balances(topic)
        it.turn()
        found = read_all(it, before)
        stats = topic.stats()
        assert (stats.sent, stats.queued) == (2000, len(found))
        if on_full == "drop_new":
            assert found == list(range(len(found)))
            assert 500 < len(found) < 1100
        elif on_full == "drop_old":
            assert found == list(range(2000 - len(found), 2000))
            assert 500 < len(found) < 1100
        else:
            assert found == [1999]
            assert stats.conflated == 1999
        expected = 0 if on_full == "conflate" else 2000 - len(found)
        assert stats.dropped == expected == sum(event[3] for event in drops.of("drop"))
        assert {event[1:3] for event in drops.of("drop")} <= {(it.conns[0].id, on_full)}
        assert len(drops.of("drop")) <= 21  # at most one per turn


def test_a_message_that_has_begun_is_neither_conflated_nor_dropped(backend: Backend) -> None:
    """The messages are so large that the socket takes the first one in part."""
    with room(backend, 1) as it:
        topic = it.reactor.topic("large", on_full="conflate")
        topic.add(it.conns[0])
        size = 8 * MIB
        for number in range(5):
            topic.publish(numbered(number, size))
            it.turn()
        assert topic.stats()[:6] == (5, 5, 0, 2, 0, 3)
        assert read_all(it, 0) == [0, 4]


def test_conflated_topics_keep_the_order_of_the_calls(backend: Backend) -> None:
    with room(backend, 1) as it:
        topics = [it.reactor.topic(f"{number}", on_full="conflate") for number in range(3)]
        for topic in topics:
            topic.add(it.conns[0])
        it.topic.remove(it.conns[0])
        before = stall(it)
        calls: list[tuple[int, int]] = []  # of each message: its topic (3: none) and its number
        state = 7
        for number in range(600):
            state = state * 1103515245 + 12345 & 0x7FFFFFFF
            chosen = state // 1000 % 4
            if chosen < 3:
                topics[chosen].publish(numbered(number))
                calls = [call for call in calls if call[0] != chosen]
            elif number % 10 == 0:
                it.conns[0].send(numbered(number))
            else:
                continue
            calls.append((chosen, number))
            if state // 77 % 3 == 0:
                it.turn()
        it.turn()
        assert read_all(it, before) == [number for _, number in calls]
        assert all(balances(topic) for topic in topics)


def test_pongs_keep_their_place_among_conflated_messages(backend: Backend) -> None:
    with room(backend, 1) as it:
        topic = it.reactor.topic("t", on_full="conflate")
        topic.add(it.conns[0])
        before = stall(it)
        for number in range(60):
            it.peers[0].sock.sendall(frame(PING, b"%d" % number))
            it.turn()
            topic.publish(numbered(number))
            it.turn()
        frames = read_frames(it)[before:]
        assert frames[-1] == Frame(BINARY, numbered(59))
        pongs = [int(found.payload) for found in frames if found.opcode == PONG]
        assert pongs == sorted(set(pongs))
        assert pongs[-1] == 59
        assert [found.opcode for found in frames].count(BINARY) == 1


def test_a_connection_that_is_lost_counts_as_closed(backend: Backend) -> None:
    with room(backend, 2) as it:
        it.topic.publish("never sent to the first")
        it.conns[0].abort()
        it.turn()
        assert it.topic.stats()[1:] == (2, 1, 0, 0, 0, 1)


def test_members_that_leave_still_get_what_waits(backend: Backend) -> None:
    with room(backend, 2) as it:
        topic = it.reactor.topic("t", on_full="conflate")
        topic.add(it.conns[0])
        before = stall(it)
        topic.publish(numbered(1))
        it.turn()
        topic.remove(it.conns[0])
        topic.add(it.conns[0])
        topic.publish(numbered(2))
        it.turn()
        found = read_all(it, before)
        assert found[-1] == 2
        assert balances(topic)
