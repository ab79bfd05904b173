"""Messages of `uringws.asyncio`: received and sent by coroutines that may be cancelled, on every event loop.

Expectations come from the documentation of `websockets` (reference/asyncio/server).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coroutines import Wire, each_loop, echo, first_connection, listen, run_on, until
from uringws import Handler, Reactor, ReactorStateError
from uringws.asyncio import (
    ConcurrencyError,
    ConnectionClosedError,
    ServerConnection,
    broadcast,
)
from wire import BINARY, CONTINUATION, TEXT, frame

# ---- messages


@each_loop
def test_text_comes_as_str_and_binary_as_bytes(loop: str) -> None:
    async def main() -> None:
        got: list[Any] = []

        async def handler(connection: ServerConnection) -> None:
            got.extend([await connection.recv(), await connection.recv()])
            await connection.send("grüße")
            await connection.send(b"\x00\xff")

        async with listen(handler) as server, await Wire.connect(server) as wire:
            wire.write(frame(TEXT, "héllo".encode()), frame(BINARY, b"\xff\x00"))
            first, second = await wire.frames(2)
            assert (first.opcode, first.payload) == (TEXT, "grüße".encode())
            assert (second.opcode, second.payload) == (BINARY, b"\x00\xff")
            wire.leave()
        assert got == ["héllo", b"\xff\x00"]

    run_on(loop, main)


@each_loop
@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 300_000])
def test_messages_of_every_size_are_echoed(loop: str, size: int) -> None:
    async def main() -> None:
        payload = os.urandom(size)
        async with listen(echo) as server, await Wire.connect(server) as wire:
            await wire.do(wire.write, frame(BINARY, payload))
            assert (await wire.frame()).payload == payload
            wire.leave()

    run_on(loop, main)


@each_loop
def test_bytes_like_objects_are_sent_as_binary_and_as_text_where_asked(loop: str) -> None:
    async def main() -> None:
        async def handler(connection: ServerConnection) -> None:
            await connection.send(bytearray(b"a"))
            await connection.send(memoryview(b"b"))
            await connection.send(b"c", text=True)
            await connection.send("d", text=False)

        async with listen(handler) as server, await Wire.connect(server) as wire:
            got = [(frame.opcode, frame.payload) for frame in await wire.frames(4)]
            assert got == [(BINARY, b"a"), (BINARY, b"b"), (TEXT, b"c"), (BINARY, b"d")]
            wire.leave()

    run_on(loop, main)


@each_loop
def test_recv_decodes_or_encodes_where_asked(loop: str) -> None:
    async def main() -> None:
        got: list[Any] = []

        async def handler(connection: ServerConnection) -> None:
            got.extend([await connection.recv(decode=False), await connection.recv(decode=True)])

        async with listen(handler) as server, await Wire.connect(server) as wire:
            wire.write(frame(TEXT, b"text"), frame(BINARY, b"binary"))
            await wire.frame()
            wire.leave()
        assert got == [b"text", "binary"]

    run_on(loop, main)


@each_loop
def test_binary_that_is_not_utf8_closes_with_1007_where_text_is_asked_for(loop: str) -> None:
    async def main() -> None:
        raised: list[BaseException] = []

        async def handler(connection: ServerConnection) -> None:
            try:
                await connection.recv(decode=True)
            except ConnectionClosedError as error:
                raised.append(error)

        async with listen(handler) as server, await Wire.connect(server) as wire:
            wire.write(frame(BINARY, b"\xff"))
            assert (await wire.frame()).close_code == 1007
        assert isinstance(raised[0].__cause__, UnicodeDecodeError)

    run_on(loop, main)


# ---- recv and send are coroutines that may be cancelled


@each_loop
def test_recv_and_send_run_in_tasks(loop: str) -> None:
    async def main() -> None:
        async def handler(connection: ServerConnection) -> None:
            message = await asyncio.create_task(connection.recv())
            await asyncio.wait_for(asyncio.create_task(connection.send(message)), 10)

        async with listen(handler) as server, await Wire.connect(server) as wire:
            wire.write(frame(TEXT, b"a"))
            assert (await wire.frame()).payload == b"a"
            wire.leave()

    run_on(loop, main)


@each_loop
def test_a_cancelled_recv_loses_no_message(loop: str) -> None:
    async def main() -> None:
        got: list[Any] = []

        async def handler(connection: ServerConnection) -> None:
            while len(got) < 200:
                # The message often comes in the very iteration in which the time is over.
                try:
                    got.append(await asyncio.wait_for(connection.recv(), 0.0005))
                except TimeoutError:
                    continue

        async with listen(handler) as server, await Wire.connect(server) as wire:
            for number in range(200):
                wire.write(frame(TEXT, b"%d" % number))
                await asyncio.sleep(0.0005)
            await wire.frame()
            wire.leave()
        assert got == [str(number) for number in range(200)]

    run_on(loop, main)


@each_loop
def test_a_task_cancelled_while_it_is_being_woken_leaves_the_message(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            receiving = asyncio.create_task(connection.recv())
            await asyncio.sleep(0)
            wire.write(frame(TEXT, b"a"))
            await until(lambda: receiving.done() or connection._frames)
            receiving.cancel("now")
            result = (await asyncio.gather(receiving, return_exceptions=True))[0]
            if isinstance(result, asyncio.CancelledError):
                result = await connection.recv()
            assert result == "a"
            wire.leave()

    run_on(loop, main)


@each_loop
def test_a_cancelled_recv_puts_fragments_back(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            receiving = asyncio.create_task(connection.recv())
            wire.write(frame(TEXT, b"a", fin=False))
            await asyncio.sleep(0.05)
            receiving.cancel()
            wire.write(frame(CONTINUATION, b"b"), frame(TEXT, b"c"))
            with pytest.raises(asyncio.CancelledError):
                await receiving
            assert [await connection.recv(), await connection.recv()] == ["ab", "c"]
            wire.leave()

    run_on(loop, main)


@each_loop
def test_a_second_recv_raises_concurrency_error(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            receiving = asyncio.create_task(connection.recv())
            await asyncio.sleep(0)
            with pytest.raises(ConcurrencyError, match="cannot call recv while another"):
                await connection.recv()
            with pytest.raises(ConcurrencyError, match="cannot call recv_streaming while another"):
                await anext(aiter(connection.recv_streaming()))
            wire.write(frame(TEXT, b"a"))
            wire.leave()
            assert await receiving == "a"

    run_on(loop, main)


# ---- fragments


@each_loop
def test_fragments_are_put_together_or_streamed_with_split_characters(loop: str) -> None:
    async def main() -> None:
        euro = "€".encode()
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            fragments = [frame(TEXT, euro[:1], fin=False), frame(CONTINUATION, euro[1:], fin=False)]
            wire.write(*fragments, frame(CONTINUATION, b"!"), *fragments, frame(CONTINUATION, b"!"))
            assert await connection.recv() == "€!"
            assert [part async for part in connection.recv_streaming()] == ["", "€", "!"]
            wire.write(frame(BINARY, b"whole"))
            assert [part async for part in connection.recv_streaming()] == [b"whole"]
            wire.leave()

    run_on(loop, main)


@each_loop
def test_an_iterable_is_sent_in_fragments_with_an_empty_one_at_the_end(loop: str) -> None:
    async def main() -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.sleep(0)
            yield b"y"

        async def handler(connection: ServerConnection) -> None:
            await connection.send(["a", "b"])
            await connection.send(pieces())
            await connection.send([])

        async with listen(handler) as server, await Wire.connect(server) as wire:
            got = [(frame.opcode, frame.payload, frame.fin) for frame in await wire.frames(6)]
            assert got[:3] == [(TEXT, b"a", False), (CONTINUATION, b"b", False), (CONTINUATION, b"", True)]
            assert got[3:] == [(BINARY, b"x", False), (CONTINUATION, b"y", False), (CONTINUATION, b"", True)]
            assert (await wire.frame()).close_code == 1000
            wire.leave()

    run_on(loop, main)


@each_loop
def test_a_message_waits_for_a_fragmented_one_that_is_being_sent(loop: str) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def pieces() -> AsyncIterator[str]:
            yield "a"
            await gate.wait()
            yield "b"

        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            tasks = [asyncio.create_task(connection.send(pieces())), asyncio.create_task(connection.send("later"))]
            await asyncio.sleep(0.02)
            gate.set()
            assert [frame.payload for frame in await wire.frames(4)] == [b"a", b"b", b"", b"later"]
            await asyncio.gather(*tasks)
            wire.leave()

    run_on(loop, main)


@each_loop
def test_mixed_fragments_raise_type_error_and_fail_the_connection(loop: str) -> None:
    async def main() -> None:
        raised: list[BaseException] = []

        async def handler(connection: ServerConnection) -> None:
            try:
                await connection.send(["a", b"b"])
            except TypeError as error:
                raised.append(error)

        async with listen(handler) as server, await Wire.connect(server) as wire:
            first, second = await wire.frames(2)
            assert (first.payload, second.close_code) == (b"a", 1011)
        assert len(raised) == 1

    run_on(loop, main)


@pytest.mark.parametrize("message", [None, 1, {"a": 1}, [None]])
def test_a_payload_of_a_wrong_type_raises_type_error(message: Any) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            with pytest.raises(TypeError):
                await (await first_connection(server)).send(message)
            wire.leave()

    run_on("stock", main)


@each_loop
def test_any_number_of_fragments_makes_one_message(loop: str) -> None:
    async def main() -> None:
        async with listen(echo) as server, await Wire.connect(server) as wire:
            fragments = [frame(CONTINUATION, b"ab", fin=False)] * 10_000
            await wire.do(wire.write, frame(TEXT, b"", fin=False), *fragments, frame(CONTINUATION, b"!"))
            assert (await wire.frame()).payload == b"ab" * 10_000 + b"!"
            wire.leave()

    run_on(loop, main)


# ---- limits


@each_loop
def test_a_larger_message_closes_with_1009(loop: str) -> None:
    async def main() -> None:
        async with listen(echo, max_size=10) as server, await Wire.connect(server) as wire:
            wire.write(frame(BINARY, b"x" * 10))
            assert (await wire.frame()).payload == b"x" * 10
            wire.write(frame(BINARY, b"x" * 11))
            assert (await wire.frame()).close_code == 1009

    run_on(loop, main)


@each_loop
def test_a_larger_fragment_closes_with_1009(loop: str) -> None:
    async def main() -> None:
        async with listen(echo, max_size=(100, 10)) as server, await Wire.connect(server) as wire:
            wire.write(frame(BINARY, b"x" * 10, fin=False), frame(CONTINUATION, b"x" * 10))
            assert (await wire.frame()).payload == b"x" * 20
            wire.write(frame(BINARY, b"x" * 11))
            assert (await wire.frame()).close_code == 1009

    run_on(loop, main)


@each_loop
def test_a_full_queue_stops_reading_until_it_has_fallen_to_the_low_mark(loop: str) -> None:
    async def main() -> None:
        async with listen(max_queue=(4, 1)) as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            block = frame(BINARY, b"x" * 100_000)
            writing = asyncio.create_task(wire.do(wire.write, *[block] * 400))
            await until(lambda: connection._reads_paused)
            held = len(connection._frames)
            await asyncio.sleep(0.1)
            assert not writing.done()  # the peer cannot send 40 MB
            assert 4 < len(connection._frames) == held < 100
            for _ in range(400):
                assert len(await connection.recv()) == 100_000
            await writing
            wire.leave()

    run_on(loop, main)


@each_loop
def test_a_long_queue_keeps_its_order(loop: str) -> None:
    async def main() -> None:
        async with listen(max_queue=None) as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            await wire.do(wire.write, *(frame(TEXT, b"%d" % number) for number in range(5000)))
            await until(lambda: len(connection._frames) == 5000)
            assert [await connection.recv() for _ in range(5000)] == [str(number) for number in range(5000)]
            wire.leave()

    run_on(loop, main)


@pytest.mark.parametrize(("max_queue", "text"), [((1, 2), "greater than or equal"), ((1, -1), "positive or equal")])
def test_marks_of_the_queue_that_make_no_sense_are_refused(max_queue: Any, text: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=text):
            listen(max_queue=max_queue)
        with pytest.raises(TypeError, match="max_queue is an int"):
            listen(max_queue="16")

    run_on("stock", main)


@each_loop
def test_send_waits_for_a_peer_that_does_not_read_and_broadcast_does_not(loop: str) -> None:
    async def main() -> None:
        sent = 0

        async def handler(connection: ServerConnection) -> None:
            nonlocal sent
            for _ in range(1000):
                await connection.send(b"x" * 65536)
                sent += 1

        async with listen(handler) as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            await asyncio.sleep(0.3)
            assert 0 < sent < 1000
            before = sent
            broadcast([connection], "news")
            assert sent == before
            frames = await wire.frames(1001)
            assert sum(frame.payload == b"news" for frame in frames) == 1
            assert (await wire.frame()).close_code == 1000
            wire.leave()
        assert sent == 1000

    run_on(loop, main)


@pytest.mark.parametrize("loop", ["io_uring", "epoll"])
def test_a_sender_in_a_loop_is_held_back_within_the_documented_bytes(loop: str) -> None:
    bursts: list[int] = [0]  # bytes that were sent between two iterations of the event loop

    def next_burst() -> None:
        bursts.append(0)
        asyncio.get_running_loop().call_soon(next_burst)

    async def handler(connection: ServerConnection) -> None:
        for _ in range(10_000):
            await connection.send(bytes(1000))
            bursts[-1] += 1004

    async def main() -> None:
        next_burst()  # before the handler can begin
        async with listen(handler, write_limit=2**15) as server, await Wire.connect(server) as wire:
            await wire.frames(10_000)
            assert 2**15 < max(bursts) <= 2**18 + 1004
            await wire.frame()
            wire.leave()

    run_on(loop, main)


@each_loop
def test_send_raises_when_the_peer_leaves_while_it_waits(loop: str) -> None:
    async def main() -> None:
        raised: list[BaseException] = []

        async def handler(connection: ServerConnection) -> None:
            try:
                while True:
                    await connection.send(b"x" * 65536)
            except ConnectionClosedError as error:
                raised.append(error)

        async with listen(handler) as server:
            wire = await Wire.connect(server)
            await asyncio.sleep(0.1)
            wire.peer.reset()
            await until(lambda: raised)
        assert str(raised[0]) == "no close frame received or sent"

    run_on(loop, main)


@pytest.mark.parametrize("loop", ["io_uring", "epoll"])
def test_coroutines_join_topics_and_broadcast_to_the_ring_is_one_call(loop: str) -> None:
    async def main() -> None:
        reactor = asyncio.get_running_loop().reactor  # type: ignore[attr-defined]
        topic = reactor.topic("room")

        async def handler(connection: ServerConnection) -> None:
            topic.add(connection)
            async for message in connection:
                topic.publish(message, skip=connection)

        async with listen(handler) as server, contextlib.AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(await Wire.connect(server)) for _ in range(3)]
            await until(lambda: len(topic) == 3)
            assert all(connection in topic for connection in server.connections)
            wires[0].write(frame(TEXT, b"hello"))
            assert [(await wire.frame()).payload for wire in wires[1:]] == [b"hello"] * 2
            before = reactor.stats().messages_out
            broadcast(server.connections, "to all")
            assert reactor.stats().messages_out == before + 3
            assert [(await wire.frame()).payload for wire in wires] == [b"to all"] * 3
            topic.remove(next(iter(server.connections)))
            assert len(topic) == 2
            for wire in wires:
                wire.leave()
            await until(lambda: len(topic) == 0)

    run_on(loop, main)


def test_a_connection_on_a_transport_joins_no_topic_and_says_why() -> None:
    async def main() -> None:
        with Reactor(Handler()) as reactor:
            async with listen(echo) as server, await Wire.connect(server) as wire:
                connection = await first_connection(server)
                with pytest.raises(ReactorStateError, match="not on the ring"):
                    reactor.topic("room").add(connection)
                wire.leave()

    run_on("stock", main)
