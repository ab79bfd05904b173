"""Tasks that a reactor's turn resumes: messages that come together, and tasks that are interrupted or cancelled."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import pytest

from coroutines import Wire, first_connection, listen, run_on, until
from uringws.asyncio import ServerConnection, new_event_loop
from uringws.backend import Backend
from wire import BINARY, CONTINUATION, TEXT, frame

each_ring = pytest.mark.parametrize("backend", ["io_uring", "epoll"])


@each_ring
def test_an_interrupt_in_one_handler_keeps_no_message_from_the_others(backend: Backend) -> None:
    loop = new_event_loop(backend=backend)
    got: list[str] = []

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            got.append(str(message))
            raise KeyboardInterrupt

    async def begin(stack: AsyncExitStack) -> list[Wire]:
        server = await stack.enter_async_context(listen(handler))
        wires = [await Wire.connect(server) for _ in range(3)]
        await until(lambda: len(server.connections) == len(wires))
        await asyncio.sleep(0.05)  # all handlers wait
        return wires

    stack = AsyncExitStack()
    try:
        wires = loop.run_until_complete(begin(stack))
        for number, wire in enumerate(wires):
            wire.write(frame(TEXT, str(number).encode()))
        for _ in wires:  # all have come when the first turn begins
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(asyncio.sleep(10))
        assert sorted(got) == ["0", "1", "2"]
        for wire in wires:
            wire.peer.close()
        loop.run_until_complete(stack.aclose())
    finally:
        loop.close()


@each_ring
def test_an_interrupt_after_a_message_does_not_delay_its_handler(backend: Backend) -> None:
    loop = new_event_loop(backend=backend)

    def interrupt() -> None:
        watch.cancel()
        raise KeyboardInterrupt

    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        loop.stop()

    async def begin(stack: AsyncExitStack) -> Wire:
        wire = await Wire.connect(await stack.enter_async_context(listen(handler)))
        await asyncio.sleep(0.05)  # the handler waits
        return wire

    stack = AsyncExitStack()
    reading, writing = os.pipe()
    try:
        wire = loop.run_until_complete(begin(stack))
        watch = loop.reactor.watch(reading, interrupt)
        wire.write(frame(TEXT, b"x"))
        os.write(writing, b"x")
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        resumed = loop.time() + 5
        give_up = loop.call_later(10, loop.stop)
        loop.run_forever()
        give_up.cancel()
        assert loop.time() < resumed
        wire.peer.close()
        loop.run_until_complete(stack.aclose())
    finally:
        loop.close()
        os.close(reading)
        os.close(writing)


@each_ring
def test_messages_that_come_together_reach_their_handlers_in_order(backend: str) -> None:
    async def main() -> None:
        got: dict[ServerConnection, list[str]] = {}

        async def handler(connection: ServerConnection) -> None:
            mine = got.setdefault(connection, [])
            async for message in connection:
                mine.append(str(message))
                if len(mine) % 3 == 0:
                    await asyncio.sleep(0)  # messages also come while the handler does not wait for one

        async with listen(handler) as server:
            wires = [await Wire.connect(server) for _ in range(5)]
            for first in range(0, 100, 5):
                for wire in wires:
                    wire.write(*(frame(TEXT, str(number).encode()) for number in range(first, first + 5)))
            await until(lambda: len(got) == len(wires) and all(len(mine) == 100 for mine in got.values()))
            assert all(mine == [str(number) for number in range(100)] for mine in got.values())
            for wire in wires:
                wire.peer.close()

    run_on(backend, main)


@each_ring
def test_a_message_that_is_cancelled_as_it_comes_is_received_by_the_next_call(backend: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            for number in range(20):
                task = asyncio.create_task(connection.recv())
                await asyncio.sleep(0)
                wire.write(frame(TEXT, f"{number}".encode()))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await connection.recv() == f"{number}"
            wire.write(frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"b"), frame(BINARY, b"c" * 70_000))
            assert [await connection.recv(), await connection.recv()] == ["ab", b"c" * 70_000]

    run_on(backend, main)
