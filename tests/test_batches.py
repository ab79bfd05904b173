"""Batches: which messages `on_batch` is given together, its columns, its answers, and how long all that lasts."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faulty import ALWAYS, MIN_WAIT, FaultyServer
from servers import ReactorThread, Recorder, connected, run_until, tcp_pair
from uringws import (
    BacklogFull,
    Batch,
    BatchHandler,
    BatchSent,
    CloseCode,
    Connection,
    Handler,
    LimitReached,
    Message,
    Opcode,
    Options,
    OptionsError,
    Reactor,
)
from uringws.backend import Backend
from wire import BINARY, CONTINUATION, PING, PONG, TEXT, Frame, Peer, close_frame, frame

QUIET = Options(ping_interval_seconds=None)
LARGE = 200_000  # more than a receive buffer holds: the payload lies in a block


class Batches(Recorder):
    """Keeps each batch as a list of (opcode, payload), among the other events, and hands it to `act`."""

    def __init__(self, act: Callable[[Batch], object] = bool) -> None:
        super().__init__()
        self._act = act

    def on_batch(self, batch: Batch) -> None:
        self.record("batch", [(message.opcode, bytes(message)) for _, message in batch.each()])
        self._act(batch)

    def on_drain(self, conn: Connection) -> None:
        self.record("drain", conn.id)

    def payloads(self) -> list[bytes]:
        return [payload for event in self.of("batch") for _, payload in event[1]]


@contextmanager
def peers(reactor: Reactor, count: int = 1) -> Iterator[list[Peer]]:
    """Peers of sessions of a reactor in this thread, which has opened them in their order."""
    with ExitStack() as stack:
        yield [stack.enter_context(connected(reactor)) for _ in range(count)]


def one_batch(reactor: Reactor, handler: Batches) -> None:
    """Turn until a batch has come, and its answers have left."""
    before = len(handler.of("batch"))
    run_until(reactor, lambda: len(handler.of("batch")) > before)
    reactor.run_once(0)


def gathered(batch: Batch) -> list[bytes]:
    offsets, data = batch.gather()
    return [data[begin:end].tobytes() for begin, end in pairwise(offsets)]


# ---- which messages, and when


def test_a_batch_holds_the_messages_of_all_connections_in_their_order(backend: Backend) -> None:
    handler = Batches(lambda batch: seen.append((batch.slots.tolist(), gathered(batch))))
    seen: list[tuple[list[int], list[bytes]]] = []
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor, 2) as (first, second):
        first.write(*(frame(BINARY, b"a%d" % number) for number in range(3)))
        second.write(*(frame(TEXT, b"b%d" % number) for number in range(3)))
        one_batch(reactor, handler)
        slots = [connection.slot for connection in handler.connections.values()]
    (given,) = seen
    assert sorted(given[0]) == sorted(slots * 3)
    for slot, letter in zip(slots, (b"a", b"b"), strict=True):
        mine = [payload for where, payload in zip(*given, strict=True) if where == slot]
        assert mine == [letter + b"%d" % number for number in range(3)]


def test_opens_and_closes_come_between_batches_and_pings_do_not_cut_them(backend: Backend) -> None:
    handler = Batches(lambda batch: batch.echo())
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        identity = next(iter(handler.connections))
        peer.write(frame(TEXT, b"1"), frame(PING, b"p"), frame(TEXT, b"2"), frame(TEXT, b"3"), close_frame(1001, "bye"))
        run_until(reactor, lambda: handler.of("close"))
        assert handler.events == [
            ("open", identity),
            ("batch", [(TEXT, b"1"), (TEXT, b"2"), (TEXT, b"3")]),
            ("close", identity, 1001, "bye"),
        ]
        reactor.run_once(0)
        assert peer.read_frames(4) == [Frame(TEXT, b"1"), Frame(PONG, b"p"), Frame(TEXT, b"2"), Frame(TEXT, b"3")]


def test_messages_that_came_whole_before_a_violation_or_a_loss_are_given(backend: Backend) -> None:
    handler = Batches(lambda batch: batch.echo())
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor, 2) as (bad, gone):
        bad.write(frame(TEXT, b"before"), b"\xff" * 20)
        gone.write(frame(TEXT, b"last words"))
        gone.sock.shutdown(socket.SHUT_WR)
        run_until(reactor, lambda: len(handler.of("close")) == 2)
        reactor.run_once(0)
        assert sorted(handler.payloads()) == [b"before", b"last words"]
        assert bad.read_frame() == Frame(TEXT, b"before")
        assert bad.read_close() == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("most", [1, 3, 4096])
def test_batch_messages_max_is_the_size_of_the_largest_batch(backend: Backend, most: int) -> None:
    handler = Batches(lambda batch: batch.echo())
    options = replace(QUIET, batch_messages_max=most)
    with Reactor(handler, options, backend=backend) as reactor, peers(reactor) as (peer,):
        payloads = [b"%d" % number for number in range(8)]
        peer.write(*(frame(BINARY, payload) for payload in payloads))
        run_until(reactor, lambda: len(handler.payloads()) == 8)
        reactor.run_once(0)
        assert handler.payloads() == payloads
        assert [len(event[1]) for event in handler.of("batch")] == {1: [1] * 8, 3: [3, 3, 2], 4096: [8]}[most]
        assert [got.payload for got in peer.read_frames(8)] == payloads


def test_a_turn_of_the_most_messages_is_one_batch(backend: Backend) -> None:
    handler = Batches(lambda batch: counts.append(batch.count) or batch.echo())  # type: ignore[func-returns-value]
    counts: list[int] = []
    options = replace(QUIET, session_turn_messages_max=4096)
    with Reactor(handler, options, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.write(frame(BINARY, b"") * 5000)
        run_until(reactor, lambda: sum(counts) == 5000)
        reactor.run_once(0)
        assert max(counts) > 2048
        assert peer.read_frames(5000) == [Frame(BINARY, b"")] * 5000


def test_two_handlers_are_each_given_their_own_messages(backend: Backend) -> None:
    """One takes batches, the other single messages; a third takes batches too, with options of its own."""

    class Single(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            conn.echo()

    batches, single, others = Batches(lambda batch: batch.echo()), Single(), Batches(lambda batch: batch.echo())
    with Reactor(batches, QUIET, backend=backend) as reactor, ExitStack() as stack:
        of: list[Peer] = []
        for handler, options in (
            (batches, None),
            (single, None),
            (others, None),
            (others, replace(QUIET, on_full="drop")),
        ):
            ours, theirs = tcp_pair()
            reactor.add_session(ours, handler=handler, options=options)
            of.append(stack.enter_context(Peer(theirs)))
        for number, peer in enumerate(of):
            peer.write(*(frame(TEXT, b"%d%d" % (number, index)) for index in range(4)))
        run_until(reactor, lambda: len(batches.payloads() + single.of("message") + others.payloads()) == 16)
        reactor.run_once(0)
        for number, peer in enumerate(of):
            assert [got.payload for got in peer.read_frames(4)] == [b"%d%d" % (number, index) for index in range(4)]
    assert batches.payloads() == [b"0%d" % index for index in range(4)]
    assert [event[3] for event in single.of("message")] == [b"1%d" % index for index in range(4)]
    assert sorted(others.payloads()) == [b"%d%d" % (number, index) for number in (2, 3) for index in range(4)]
    assert len(others.of("batch")) == 1, "two listeners of one handler share its batches"


def test_a_slot_that_is_used_again_names_another_connection(backend: Backend) -> None:
    seen: list[tuple[int, int]] = []
    handler = Batches(lambda batch: seen.append((int(batch.slots[0]), int(batch.ids[0]))))
    with Reactor(handler, QUIET, backend=backend) as reactor:
        for _ in range(2):
            with peers(reactor) as (peer,):
                peer.send(TEXT, b"here")
                one_batch(reactor, handler)
                peer.reset()
                run_until(reactor, lambda: not reactor.stats().sessions)
    (slot, first), (again, second) = seen
    assert slot == again
    assert first != second
    assert [first, second] == list(handler.connections)


# ---- columns and payloads


def test_the_columns_describe_each_message(backend: Backend) -> None:
    """Small ones, an empty one, one in fragments, and a large one, whose payloads lie in blocks."""
    seen: dict[str, Any] = {}

    def look(batch: Batch) -> None:
        for name in ("slots", "ids", "opcodes", "lengths", "offsets"):
            seen.setdefault(name, []).extend(getattr(batch, name).tolist())
        for row in range(len(batch)):
            seen.setdefault("data", []).append(bytes(batch.data(row)))
            seen.setdefault("connections", []).append(batch.connection(row))
            if batch.offsets[row] >= 0:
                begin = int(batch.offsets[row])
                assert batch.pool[begin : begin + int(batch.lengths[row])] == seen["data"][-1]
        seen.setdefault("gathered", []).extend(gathered(batch))
        assert batch.data(-1) == batch.data(batch.count - 1)

    handler = Batches(look)
    sent = [(TEXT, b"text"), (BINARY, b""), (BINARY, b"fragments"), (BINARY, bytes(range(256)) * (LARGE // 256))]
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.write(frame(*sent[0]), frame(*sent[1]), frame(BINARY, b"frag", fin=False), frame(CONTINUATION, b"ments"))
        peer.write(frame(*sent[3]))
        run_until(reactor, lambda: len(handler.payloads()) == 4)
    ((identity, connection),) = handler.connections.items()
    assert seen["opcodes"] == [opcode for opcode, _ in sent]
    assert seen["data"] == seen["gathered"] == [payload for _, payload in sent]
    assert seen["lengths"] == [len(payload) for _, payload in sent]
    assert seen["ids"] == [identity] * 4
    assert seen["slots"] == [connection.slot] * 4 == [identity & 0xFFFFFFFF] * 4
    assert seen["connections"] == [connection] * 4
    assert seen["offsets"][2] == seen["offsets"][3] == -1
    assert min(seen["offsets"][:2]) >= 0


def test_records_are_the_binary_messages_of_the_right_size(backend: Backend) -> None:
    kind = np.dtype([("number", "<u4"), ("value", "<f8")])
    seen: list[tuple[list[Any], list[bool]]] = []
    handler = Batches(lambda batch: seen.append(tuple(array.tolist() for array in batch.records(kind))))
    rows = np.array([(1, 0.5), (2, -1.0)], kind)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.write(
            frame(BINARY, rows[0].tobytes()),
            frame(BINARY, b"short"),
            frame(TEXT, b"twelve bytes"),
            frame(BINARY, rows[1].tobytes()[:5], fin=False) + frame(CONTINUATION, rows[1].tobytes()[5:]),
            frame(BINARY, bytes(13)),
        )
        one_batch(reactor, handler)
    assert seen == [([(1, 0.5), (0, 0.0), (0, 0.0), (2, -1.0), (0, 0.0)], [True, False, False, True, False])]


def test_records_and_gather_refuse_what_cannot_be(backend: Backend) -> None:
    refused: list[str] = []

    def ask(batch: Batch) -> None:
        for call in (
            lambda: batch.records(object),
            lambda: batch.records(np.dtype([])),
            lambda: batch.records(f"V{2**31 - 1}"),
            lambda: batch.select([0] * 140_000).gather(),
            lambda: batch.data(2),
            lambda: batch.data(-3),
            lambda: batch.connection(2),
            lambda: batch.select([2]),
            lambda: batch.select([True]),
            lambda: batch.echo([2]),
        ):
            with pytest.raises((TypeError, ValueError, IndexError)) as raised:
                call()
            refused.append(f"{raised.type.__name__}: {raised.value}")

    handler = Batches(ask)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.write(frame(BINARY, bytes(16_000)), frame(BINARY, b""))
        one_batch(reactor, handler)
    assert len(refused) == 10
    assert refused[0].startswith("TypeError: a record of object holds Python objects")
    assert refused[1].startswith("ValueError: a record of")
    assert "2 GiB or more" in refused[2]
    assert "2 GiB or more" in refused[3]
    assert all(text.startswith("IndexError") for text in refused[4:])


def test_a_selection_is_a_batch_of_its_own(backend: Backend) -> None:
    def sort(batch: Batch) -> None:
        texts = batch.select(batch.opcodes == Opcode.TEXT)
        assert texts.count == len(texts) == 2
        assert gathered(texts) == [b"one", b"two"]
        assert texts.lengths.tolist() == [3, 3]
        assert texts.slots.tolist() == batch.slots[[0, 2]].tolist()
        assert bytes(texts.data(1)) == b"two"
        texts.select([1]).echo()
        assert texts.reply(np.array([[65], [66]], np.uint8)) == BatchSent(2, 0, 0, 0)
        assert gathered(batch.select((2, 0))) == [b"two", b"one"]
        assert gathered(batch.select(slice(1, 2))) == [b"\x00"]
        assert not batch.select([])
        assert [message.text() for _, message in batch.each(batch.opcodes == Opcode.TEXT)] == ["one", "two"]

    handler = Batches(sort)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.write(frame(TEXT, b"one"), frame(BINARY, b"\x00"), frame(TEXT, b"two"))
        one_batch(reactor, handler)
        assert peer.read_frames(3) == [Frame(BINARY, b"A"), Frame(BINARY, b"B"), Frame(TEXT, b"two")]


# ---- answers


@pytest.mark.parametrize("size", [5, LARGE])
def test_replies_leave_before_the_echoes_whatever_came_first(backend: Backend, size: int) -> None:
    def answer(batch: Batch) -> None:
        batch.echo(0)
        batch.data(0)[:1] = b"!"
        batch.reply("reply")
        batch.echo([True] + [False] * (batch.count - 1))

    handler = Batches(answer)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.send(BINARY, b"m" * size)
        run_until(reactor, lambda: handler.payloads() == [b"m" * size])
        reactor.run_once(0)
        assert peer.read_frames(2) == [Frame(TEXT, b"reply"), Frame(BINARY, b"!" + b"m" * (size - 1))]


def test_every_form_of_a_reply(backend: Backend) -> None:
    def answer(batch: Batch) -> None:
        rows = np.array([[1, 2], [3, 4]], "<u2")
        batch.reply(rows)
        batch.reply(rows[:, 0])  # not contiguous
        batch.reply(b"abc", offsets=[0, 1, 3])
        batch.reply("xyz", offsets=[1, 1, 3])
        batch.reply(["eins", "zwei"])
        batch.reply([b"un", bytearray(b"deux")], opcode=Opcode.TEXT)
        batch.reply(memoryview(b"all"))
        batch.reply("alle")
        batch.reply(batch.gather()[1], offsets=batch.gather()[0])
        batch.reply(np.arange(1, dtype=np.uint8), where=1)
        batch.send(batch.ids[::-1], [b"first", b"second"])
        for _, message in batch.each([1]):
            batch.reply(message)

    handler = Batches(answer)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.write(frame(TEXT, b"one"), frame(TEXT, b"two"))
        one_batch(reactor, handler)
        assert [(got.opcode, got.payload) for got in peer.read_frames(23)] == [
            *((BINARY, payload) for payload in (b"\1\0\2\0", b"\3\0\4\0", b"\1\0", b"\3\0", b"a", b"bc")),
            *((TEXT, payload) for payload in (b"", b"yz", b"eins", b"zwei", b"un", b"deux")),
            *((BINARY, payload) for payload in (b"all", b"all")),
            *((TEXT, payload) for payload in (b"alle", b"alle")),
            *((BINARY, payload) for payload in (b"one", b"two", b"\0", b"first", b"second")),
            *((TEXT, payload) for payload in (b"two", b"two")),
        ]


def test_replies_that_cannot_be_are_refused_whole(backend: Backend) -> None:
    refused: list[str] = []

    def answer(batch: Batch) -> None:
        calls: tuple[Callable[[], object], ...] = (
            lambda: batch.reply(np.zeros(3, np.uint8)),
            lambda: batch.reply([b"one"]),
            lambda: batch.reply(["text", b"binary"]),
            lambda: batch.reply(np.array(["object", "array"], object)),
            lambda: batch.reply(b"abc", offsets=[0, 1]),
            lambda: batch.reply(b"abc", offsets=[0, 2, 1]),
            lambda: batch.reply(b"abc", offsets=[0, 1, 4]),
            lambda: batch.reply(b"abc", offsets=[-1, 1, 2]),
            lambda: batch.reply(b"abc", opcode=Opcode.PING),
            lambda: batch.reply(7),  # type: ignore[arg-type]
            lambda: batch.send([[1, 2]], b"abc"),
        )
        for call in calls:
            with pytest.raises((TypeError, ValueError)) as raised:
                call()
            refused.append(str(raised.value))
        batch.reply(b"end", where=0)

    handler = Batches(answer)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.write(frame(TEXT, b"one"), frame(TEXT, b"two"))
        one_batch(reactor, handler)
        assert peer.read_frame() == Frame(BINARY, b"end")
    assert refused[0] == "an array of 3 rows for 2 messages: it needs a row per message"
    assert len(refused) == 11


def test_replies_to_connections_that_have_closed_are_skipped_and_counted(backend: Backend) -> None:
    counts: list[BatchSent] = []

    def answer(batch: Batch) -> None:
        by_payload = {bytes(message): conn for conn, message in batch.each()}
        by_payload[b"abort"].abort()
        assert batch.close(np.array(gathered(batch)) == b"close", 4000, "enough") == 1
        assert batch.close(np.array(gathered(batch)) == b"close") == 0
        counts.append(batch.reply(b"reply"))
        counts.append(batch.send([1, 1 << 40], b"nobody"))
        batch.echo()

    handler = Batches(answer)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor, 3) as (stays, closed, aborted):
        for peer, payload in ((stays, b"stay"), (closed, b"close"), (aborted, b"abort")):
            peer.send(TEXT, payload)
        one_batch(reactor, handler)
        assert stays.read_frames(2) == [Frame(BINARY, b"reply"), Frame(TEXT, b"stay")]
        assert closed.read_close() == 4000
        run_until(reactor, lambda: handler.of("close"))
    assert counts == [BatchSent(1, 0, 0, 2), BatchSent(0, 0, 0, 2)]


@pytest.mark.parametrize("size", [6, LARGE])
@pytest.mark.parametrize("how", ["close", "conn.close", "drain"])
def test_a_close_comes_after_the_echoes_so_far_and_payloads_stay_readable(
    backend: Backend, how: str, size: int
) -> None:
    """And nothing of the batch is echoed after it."""

    def answer(batch: Batch) -> None:
        batch.echo(0)
        if how == "close":
            batch.close()
        elif how == "drain":
            reactor.drain()
        else:
            batch.connection(0).close()
        assert gathered(batch) == [b"m" * size] * batch.count
        batch.data(0)[:] = b"x" * size  # too late
        batch.echo()

    handler = Batches(answer)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.write(frame(BINARY, b"m" * size))
        run_until(reactor, lambda: handler.of("batch"))
        reactor.run_once(0)
        assert [got.opcode for got in (peer.read_frame(), peer.read_frame())] == [BINARY, 8]


@pytest.mark.parametrize("on_full", ["close", "drop", "error"])
def test_a_full_backlog_is_treated_as_on_full_says(backend: Backend, on_full: Any) -> None:
    seen: list[object] = []

    def answer(batch: Batch) -> None:
        try:
            seen.append(batch.reply(bytes(3_000), where=[0, 0, 0]))
        except BacklogFull as error:
            seen.append(str(error))

    handler = Batches(answer)
    options = replace(QUIET, on_full=on_full, backlog_bytes_max=7_000)
    with Reactor(handler, options, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.send(TEXT, b"go")
        one_batch(reactor, handler)
        assert peer.read_frames(2) == [Frame(BINARY, bytes(3_000))] * 2
        if on_full == "close":
            assert peer.read_close() == CloseCode.POLICY_VIOLATION
    expected: object = BatchSent(2, 0, 1, 0)
    if on_full == "error":
        expected = "1 of 3 messages would exceed backlog_bytes_max; the others are sent"
    assert seen == [expected]


def test_on_drain_comes_between_batches(backend: Backend) -> None:
    waiting: list[int] = []

    def answer(batch: Batch) -> None:
        batch.reply(bytes(4_000), where=[0] * 3)
        waiting.append(batch.connection(0).buffered_amount)

    handler = Batches(answer)
    options = replace(QUIET, backlog_high_bytes=10_000)
    with Reactor(handler, options, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.send(TEXT, b"go")
        run_until(reactor, lambda: handler.of("drain"))
        assert waiting[0] > 10_000
        assert peer.read_frames(3) == [Frame(BINARY, bytes(4_000))] * 3


def test_an_unfinished_fragmented_message_refuses_replies_to_its_connection_alone(backend: Backend) -> None:
    refused: list[str] = []

    def answer(batch: Batch) -> None:
        batch.connection(0).send(Opcode.TEXT, b"begun", fin=False)
        with pytest.raises(
            ValueError, match="1 of 2 messages were not sent: a fragmented message is unfinished"
        ) as error:
            batch.send([batch.ids[0], other], b"whole")
        refused.append(str(error.value))
        batch.connection(0).send(Opcode.CONTINUATION, b" and done")

    handler = Batches(answer)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor, 2) as (first, second):
        other = list(handler.connections)[1]
        first.send(TEXT, b"go")
        one_batch(reactor, handler)
        assert first.read_frames(2)[1] == Frame(CONTINUATION, b" and done")
        assert second.read_frame() == Frame(BINARY, b"whole")
    assert refused


# ---- one by one


def test_on_message_handles_the_batch_where_on_batch_is_not_written(backend: Backend) -> None:
    class Plain(BatchHandler):
        def on_message(self, conn: Connection, message: Message) -> None:
            assert (message.opcode, message.is_text, message.fin) == (Opcode.TEXT, True, True)
            assert message.copy_whole() == message.text() == bytes(message).decode()
            conn.send(message)
            message.data[:] = bytes(message).upper()
            conn.echo()

    with ReactorThread(Plain(), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.write(frame(TEXT, b"quiet please"))
        assert peer.read_frames(2) == [Frame(TEXT, b"quiet please"), Frame(TEXT, b"QUIET PLEASE")]


def test_echo_is_for_the_message_that_the_loop_has_come_to(backend: Backend) -> None:
    refused: list[str] = []

    def answer(batch: Batch) -> None:
        one, two = (batch.connection(row) for row in range(2))
        for conn, _ in batch.each([0]):
            conn.echo()
            with pytest.raises(RuntimeError) as error:
                (two if conn is one else one).echo()
            refused.append(str(error.value))
        with pytest.raises(RuntimeError) as error:
            one.echo()
        refused.append(str(error.value))

    handler = Batches(answer)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor, 2) as (first, second):
        first.send(TEXT, b"one")
        second.send(TEXT, b"two")
        run_until(reactor, lambda: len(handler.payloads()) == 2)
        reactor.run_once(0)
        first_of_batch = {b"one": first, b"two": second}[handler.payloads()[0]]
        assert first_of_batch.read_frame().payload == handler.payloads()[0]
    assert refused == ["echo() is for the connection whose message is being handled, while it is"] * 2


# ---- how long it lasts


@pytest.mark.parametrize("size", [5, LARGE])
def test_a_batch_and_its_views_end_with_the_handler_and_its_arrays_do_not(backend: Backend, size: int) -> None:
    kept: list[Any] = []

    def keep(batch: Batch) -> None:
        part = batch.select([0])
        ((_, message),) = part.each()
        kept.append((batch, part, message, batch.data(0), batch.pool, part.data(0)))
        kept.append((batch.slots, batch.ids, batch.opcodes, batch.lengths, batch.offsets, *batch.gather()))
        kept.append([array.tolist() for array in kept[1]])

    handler = Batches(keep)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.send(BINARY, b"k" * size)
        run_until(reactor, lambda: kept)
        peer.send(BINARY, b"later")
        one_batch(reactor, handler)
    (batch, part, message, *views), arrays, values = kept[:3]
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view[0]
    for call in (
        lambda: batch.slots,
        lambda: batch.ids,
        lambda: part.lengths,
        lambda: batch.data(0),
        lambda: batch.pool,
        batch.gather,
        part.echo,
        lambda: batch.reply(b""),
        batch.close,
        lambda: batch.select([0]),
        lambda: batch.connection(0),
        lambda: list(batch.each()),
        lambda: message.data,
        lambda: message.opcode,
    ):
        with pytest.raises(RuntimeError, match="until on_batch returns"):
            call()
    assert repr(batch) == "<Batch, no longer valid>"
    assert repr(message) == "<BatchMessage, no longer valid>"
    assert [array.tolist() for array in arrays] == values


def test_an_array_of_a_payload_that_is_kept_never_shows_freed_memory(backend: Backend) -> None:
    kept: list[Any] = []
    handler = Batches(lambda batch: kept.append(np.frombuffer(batch.data(0), np.uint8)))
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        for payload in (b"small", b"b" * LARGE):
            peer.send(BINARY, payload)
            one_batch(reactor, handler)
    assert kept[0].sum() >= 0  # later bytes of the pool
    assert kept[1].tobytes() == b"b" * LARGE  # a block of its own, which nothing else uses


# ---- failures


def test_an_exception_closes_all_connections_of_the_batch_and_is_logged_once(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(batch: Batch) -> None:
        batch.echo(0)
        batch.reply("sorry")
        raise LookupError("a bug")

    handler = Batches(fail)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor, 3) as (first, second, other):
        first.write(frame(TEXT, b"1"), frame(TEXT, b"2"))
        second.write(frame(TEXT, b"3"))
        run_until(reactor, lambda: len(handler.payloads()) == 3)
        reactor.run_once(0)
        for peer in (first, second):
            got: list[Frame] = []
            while not got or got[-1].opcode != 8:
                got.append(peer.read_frame())
            assert got[0] == Frame(TEXT, b"sorry")
            assert got[-1].close_code == CloseCode.INTERNAL_ERROR
        assert reactor.stats().sessions == 3
        handler._act = lambda batch: batch.echo()
        other.send(TEXT, b"still here")
        assert_echo(reactor, other, b"still here")
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == len(handler.of("batch")) - 1
    assert "connections are closed with 1011" in records[0].getMessage()
    assert records[0].exc_info is not None


def assert_echo(reactor: Reactor, peer: Peer, payload: bytes) -> None:
    for _ in range(3):
        reactor.run_once(0.05)
    assert peer.read_frame().payload == payload


def test_an_interrupt_gives_the_batch_again_and_forgets_its_echoes(backend: Backend) -> None:
    def interrupt(batch: Batch) -> None:
        if len(handler.of("batch")) == 1:
            batch.echo()
            raise KeyboardInterrupt
        batch.echo(where=[1])

    handler = Batches(interrupt)
    with Reactor(handler, QUIET, backend=backend) as reactor, peers(reactor) as (peer,):
        peer.write(frame(TEXT, b"1"), frame(TEXT, b"2"), close_frame(1000))
        with pytest.raises(KeyboardInterrupt):
            run_until(reactor, lambda: handler.of("close"))
        run_until(reactor, lambda: handler.of("close"))
        reactor.run_once(0)
        assert [event[0] for event in handler.events] == ["open", "batch", "batch", "close"]
        assert handler.payloads() == [b"1", b"2"] * 2
        assert peer.read_frames(2) == [Frame(TEXT, b"2"), Frame(8, (1000).to_bytes(2, "big"))]


@pytest.mark.parametrize("late", [False, True])
def test_messages_after_a_close_are_given_only_if_asked_for_and_after_an_abort_never(
    backend: Backend,
    late: bool,  # noqa: FBT001 - pytest passes by name
) -> None:
    def end(batch: Batch) -> None:
        for conn, message in batch.each():
            if bytes(message) == b"close":
                conn.close()
            elif bytes(message) == b"abort":
                conn.abort()

    handler = Batches(end)
    options = replace(QUIET, batch_messages_max=1, deliver_while_closing=late)
    with Reactor(handler, options, backend=backend) as reactor, peers(reactor, 2) as (closed, aborted):
        for peer, first in ((closed, b"close"), (aborted, b"abort")):
            peer.write(frame(TEXT, first), frame(TEXT, b"late"), close_frame())
        run_until(reactor, lambda: len(handler.of("close")) == 2)
    assert sorted(handler.payloads()) == ([b"abort", b"close", b"late"] if late else [b"abort", b"close"])


# ---- waiting for more


def attempts(holds: Callable[[], bool]) -> bool:
    """Whether something holds at least once: a busy machine may spoil some attempts."""
    return any(holds() for _ in range(10))


@pytest.mark.parametrize("wait", [0, 100_000])
def test_input_gathers_for_batch_wait_microseconds(backend: Backend, wait: int) -> None:
    handler = Batches()
    options = replace(QUIET, batch_wait_microseconds=wait)

    def write_twice() -> None:
        time.sleep(0.02)
        first.send(TEXT, b"1")
        time.sleep(0.02)
        second.send(TEXT, b"2")

    def is_one_batch() -> bool:
        before = len(handler.payloads())
        writer = threading.Thread(target=write_twice)
        writer.start()
        run_until(reactor, lambda: len(handler.payloads()) > before, timeout=5)
        together = len(handler.payloads()) == before + 2
        writer.join()
        run_until(reactor, lambda: len(handler.payloads()) == before + 2)
        return together

    with Reactor(handler, options, backend=backend) as reactor, peers(reactor, 2) as (first, second):
        reactor.run_once(0)
        if wait:
            assert attempts(is_one_batch)
        else:
            assert not all(is_one_batch() for _ in range(3))


@pytest.mark.parametrize("what", ["enough", "time-out"])
def test_the_wait_for_more_ends_early(backend: Backend, what: str) -> None:
    """When `batch_messages_max` receives have come, and when the caller's own time is over."""
    handler = Batches()
    options = replace(QUIET, batch_wait_microseconds=100_000, batch_messages_max=2)

    def is_early() -> bool:
        for peer in both if what == "enough" else ():
            peer.send(TEXT, b"here")
        start = time.monotonic()
        reactor.run_once(5 if what == "enough" else 0.01)
        return time.monotonic() - start < 0.08

    with Reactor(handler, options, backend=backend) as reactor, peers(reactor, 2) as both:
        reactor.run_once(0)
        assert attempts(is_early)
    assert not handler.payloads() or handler.payloads() == [b"here"] * len(handler.payloads())


def test_a_kernel_that_cannot_wait_for_several_serves_all_the_same(
    backend: Backend, faulty_build: Path, tmp_path: Path
) -> None:
    with FaultyServer(faulty_build, tmp_path, backend, batch_wait_microseconds=2_000) as server:
        server.plan(MIN_WAIT, -1, count=ALWAYS)
        with Peer.connect(server.address) as one, Peer.connect(server.address) as two:
            for pause in (0.0, 0.01):
                one.send(BINARY, b"one")
                time.sleep(pause)
                two.send(BINARY, b"two")
                assert one.read_frame().payload == b"one"
                assert two.read_frame().payload == b"two"
        server.clear()


def test_waiting_for_more_excludes_busy_polling() -> None:
    with pytest.raises(OptionsError, match="busy_poll_microseconds"):
        Options(batch_wait_microseconds=1, busy_poll_microseconds=1)


# ---- set-up


def test_run_echo_needs_no_batch(backend: Backend) -> None:
    handler = Batches()
    with ReactorThread(handler, backend=backend, run=Reactor.run_echo) as server, Peer.connect(server.address) as peer:
        peer.write(frame(TEXT, b"one"), frame(TEXT, b"two"))
        assert peer.read_frames(2) == [Frame(TEXT, b"one"), Frame(TEXT, b"two")]
    assert not handler.of("batch")


def test_whole_messages_and_fragments_exclude_each_other() -> None:
    class Both(BatchHandler):
        def on_frame(self, conn: Connection, frame: Message) -> None: ...

    with pytest.raises(TypeError, match="on_batch, which is given whole messages, and on_frame"):
        Reactor(Both())


def test_at_most_255_batch_handlers_at_a_time(backend: Backend) -> None:
    with Reactor(Handler(), QUIET, backend=backend) as reactor:
        services = [reactor._services.get(BatchHandler(), None) for _ in range(255)]
        assert len({service.batch for service in services}) == 255
        with pytest.raises(LimitReached, match="255 handlers with on_batch"):
            reactor._services.get(BatchHandler(), None)
        number = services.pop().batch
        assert reactor._services.get(BatchHandler(), None).batch == number


def test_numpy_is_imported_by_the_first_batch_handler_and_not_before() -> None:
    program = """
import sys
import uringws
assert "numpy" not in sys.modules
with uringws.Reactor(uringws.Handler()): pass
assert "numpy" not in sys.modules
with uringws.Reactor(uringws.BatchHandler()): pass
assert "numpy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_a_missing_numpy_is_named_with_its_remedy() -> None:
    program = """
import sys
sys.modules["numpy"] = None
import uringws
with uringws.Reactor(uringws.Handler()) as reactor:
    try:
        reactor.bind("127.0.0.1", 0, handler=uringws.BatchHandler())
    except ImportError as error:
        first = str(error)
try:
    uringws.Reactor(uringws.BatchHandler())
except ImportError as error:
    assert str(error) == first
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], check=True, timeout=30, capture_output=True, text=True)
    assert 'pip install "uringws[batch]"' in result.stdout
