"""Frames: a message framed once, and sent any number of times by any reactor.

Covers: every way to send one, sizes at the limits of the framing, slow readers, other threads, the memory of a frame,
and what cannot be a frame.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from typing import Any

import pytest

from servers import Recorder, Silent, connected, run_until, tcp_pair
from uringws import Connection, Frame, Message, Opcode, Options, Reactor, SendResult, handler_fn
from uringws.backend import Backend
from wire import BINARY, TEXT, Peer, frame
from wire import Frame as WireFrame

SIZES = (0, 1, 125, 126, 65_535, 65_536, 300_000)


@pytest.fixture
def joined(backend: Backend) -> Any:
    """A reactor with two sessions in this thread: it, their connections and their peers."""
    recorder = Recorder()
    with Reactor(recorder, backend=backend) as reactor, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connected(reactor)) for _ in range(2)]
        yield reactor, list(recorder.connections.values()), peers


def read(reactor: Reactor, peer: Peer, count: int) -> list[WireFrame]:
    """Read so many frames in a thread while the reactor turns."""
    frames: list[WireFrame] = []
    thread = threading.Thread(target=lambda: frames.extend(peer.read_frames(count)))
    thread.start()
    run_until(reactor, lambda: not thread.is_alive(), timeout=0.001)
    return frames


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_is_sent_by_every_call_that_sends(joined: Any, size: int) -> None:
    reactor, (one, two), peers = joined
    payload = bytes(range(256)) * (size // 256 + 1)
    kept = reactor.frame(payload[:size])
    topic = reactor.topic("all")
    topic.add(one)
    topic.add(two)
    sender = reactor.sender()
    for conn in (one, two):
        assert conn.send(kept) in (SendResult.SENT, SendResult.QUEUED)
    assert topic.publish(kept) == reactor.broadcast(kept) == reactor.broadcast(kept, to=[one, two]) == 2
    sender.publish("all", kept)
    sender.broadcast(kept)
    assert sender.send(one.id, kept)
    assert sender.send(two.id, kept)
    sender.release()
    for peer in peers:
        assert read(reactor, peer, 7) == [WireFrame(BINARY, payload[:size])] * 7


def test_a_frame_keeps_its_place_among_other_messages(joined: Any) -> None:
    reactor, (conn, _), (peer, _) = joined
    kept = reactor.frame("kept")
    conn.send("first")
    conn.send(kept)
    conn.send("second")
    conn.send(kept)
    conn.send(kept)
    assert [each.payload for each in read(reactor, peer, 5)] == [b"first", b"kept", b"second", b"kept", b"kept"]


def test_a_frame_is_a_message_with_opcode_and_payload(joined: Any) -> None:
    reactor, *_ = joined
    text, binary = reactor.frame("héllo"), reactor.frame(Opcode.BINARY, bytearray(b"\x00\x01"))
    assert (text.opcode, text.text(), bytes(text), len(text)) == (TEXT, "héllo", "héllo".encode(), 6)
    assert (binary.opcode, bytes(binary.data), len(binary)) == (BINARY, b"\x00\x01", 2)
    assert reactor.frame(Opcode.TEXT, b"encoded").opcode == TEXT
    assert bytes(reactor.frame(Opcode.BINARY, text)) == bytes(text)
    assert reactor.frame(b"")
    assert text.data.readonly


def test_a_frame_of_the_message_being_handled_outlives_it(backend: Backend) -> None:
    kept: list[Frame] = []

    def keep(conn: Connection, message: Message) -> None:
        kept.append(reactor.frame(message))

    with Reactor(handler_fn(keep), backend=backend) as reactor, connected(reactor) as peer:
        peer.write(frame(TEXT, b"one") + frame(BINARY, b"two" * 50_000))
        run_until(reactor, lambda: len(kept) == 2)
    assert [(each.opcode, bytes(each)) for each in kept] == [(TEXT, b"one"), (BINARY, b"two" * 50_000)]


def test_a_frame_belongs_to_no_reactor_and_outlives_the_one_that_made_it(backend: Backend) -> None:
    with Reactor(Silent(), backend=backend) as first:
        kept = first.frame("kept")
    for _ in range(2):
        recorder = Recorder()
        with Reactor(recorder, backend=backend) as reactor, connected(reactor) as peer:
            assert reactor.broadcast(kept) == 1
            assert read(reactor, peer, 1) == [WireFrame(TEXT, b"kept")]
    assert bytes(kept) == b"kept"


def test_a_frame_that_is_dropped_before_it_has_left_is_sent_whole(joined: Any) -> None:
    reactor, (one, two), peers = joined
    payload = bytes(3) * 1_000_000
    reactor.broadcast(reactor.frame(payload))
    one.send(reactor.frame(payload))
    two.send(reactor.frame(payload))
    gc.collect()
    for peer in peers:
        assert read(reactor, peer, 2) == [WireFrame(BINARY, payload)] * 2


def test_threads_may_let_go_of_a_frame_while_the_reactor_sends_it(joined: Any) -> None:
    reactor, (one, _), (peer, _) = joined
    expected = []
    for number in range(50):
        box = [reactor.frame(b"%d" % number * 1000)]
        expected.append(bytes(box[0]))
        one.send(box[0])
        thread = threading.Thread(target=box.clear)
        thread.start()
        reactor.run_once(0)
        thread.join()
    assert [each.payload for each in read(reactor, peer, 50)] == expected


def test_bytes_that_wait_for_slow_readers_are_charged_until_they_have_left(backend: Backend) -> None:
    recorder = Recorder()
    options = Options(backlog_bytes_max=1 << 24)
    with Reactor(recorder, options, backend=backend) as reactor, connected(reactor) as peer:
        kept = reactor.frame(bytes(1 << 20))
        assert reactor.stats().memory_bytes == 0
        for _ in range(12):
            reactor.broadcast(kept)
        reactor.run_once(0)
        assert reactor.stats().memory_bytes > 1 << 20
        assert len(read(reactor, peer, 12)) == 12
        reactor.run_once(0)
        assert reactor.stats().memory_bytes == 0


def test_a_frame_that_does_not_fit_a_backlog_is_refused_as_any_message(backend: Backend) -> None:
    recorder = Recorder()
    options = Options(backlog_bytes_max=1000, backlog_high_bytes=500, backlog_low_bytes=100, on_full="drop")
    with Reactor(recorder, options, backend=backend) as reactor, connected(reactor) as peer:
        (conn,) = recorder.connections.values()
        kept = reactor.frame(bytes(400))
        assert [conn.send(kept) for _ in range(3)][-1] is SendResult.DROPPED
        assert len(read(reactor, peer, 2)) == 2


def test_a_fragmented_message_lets_no_frame_in(joined: Any) -> None:
    reactor, (conn, _), _ = joined
    conn.send(Opcode.TEXT, "begun", fin=False)
    with pytest.raises(ValueError, match="unfinished"):
        conn.send(reactor.frame("whole"))


def test_the_memory_of_a_frame_is_freed_with_it(backend: Backend) -> None:
    with Reactor(Silent(), backend=backend) as reactor:
        kept = reactor.frame(bytes(100_000))
        assert kept.__sizeof__() > 100_000
        view, gone = kept.data[5:9], weakref.ref(kept)
        del kept
        gc.collect()
        assert gone() is None
        assert bytes(view) == bytes(4), "a view keeps the memory"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((Opcode.PING, b""), ValueError),
        ((Opcode.CONTINUATION, b""), ValueError),
        ((3, b""), ValueError),
        ((Opcode.BINARY, "text"), TypeError),
        ((Opcode.TEXT, None), TypeError),
        ((None,), TypeError),
        ((1,), TypeError),
    ],
    ids=repr,
)
def test_a_frame_refuses_all_that_cannot_be_published(
    backend: Backend, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    with Reactor(Silent(), backend=backend) as reactor, pytest.raises(error):
        reactor.frame(*arguments)


def test_peers_with_different_progress_see_the_same_bytes(backend: Backend) -> None:
    """One reads while the other does not: neither's progress moves the other's."""
    recorder = Recorder()
    with Reactor(recorder, backend=backend) as reactor:
        ours, theirs = tcp_pair()
        reactor.add_session(ours)
        with connected(reactor) as quick, Peer(theirs) as slow:
            kept = [reactor.frame(bytes([number]) * 200_000) for number in range(10)]
            for each in kept:
                reactor.broadcast(each)
            for peer in (quick, slow):
                assert [each.payload for each in read(reactor, peer, 10)] == [bytes(each) for each in kept]
