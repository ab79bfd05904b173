"""The limits of `Options` on the connections of `serve`, on every event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coroutines import Wire, each_loop, echo, listen, run_on, until
from uringws import Options, OptionsError
from uringws.asyncio import Server, ServerConnection, new_event_loop
from wire import Peer, close_frame, upgrade_request


async def answer(server: Server) -> int:
    """The status of one more connection's answer. A refused one is reset if its request comes too late."""
    async with await Wire.dial(server) as wire:
        return (await wire.do(wire.peer.read_response)).status


async def left(server: Server, wire: Wire) -> None:
    """Close a connection, and wait until the server has seen that."""
    count = len(server.connections)
    wire.write(close_frame(1000))
    await wire.frame()
    wire.peer.close()
    await until(lambda: len(server.connections) < count)


@each_loop
@pytest.mark.parametrize(("field", "status"), [("sessions_max", 503), ("sessions_per_ip_max", 429)])
def test_a_connection_over_a_limit_is_refused_until_another_has_left(loop: str, field: str, status: int) -> None:
    options: Any = {field: 2}

    async def main() -> None:
        async with listen(echo, options=Options(**options)) as server:
            wires = [await Wire.connect(server) for _ in range(2)]
            await until(lambda: len(server.connections) == 2)
            for _ in range(2):
                assert await answer(server) == status
            await left(server, wires[0])
            await left(server, await Wire.connect(server))
            await left(server, wires[1])

    run_on(loop, main)


@each_loop
def test_silent_connections_make_room_and_those_that_sent_something_do_not(loop: str) -> None:
    options = Options(handshakes_max=2, silent_seconds_max=0.05)

    async def main() -> None:
        async with listen(echo, options=options) as server:
            silent, talking = await Wire.dial(server), await Wire.dial(server)
            talking.write(b"GET / HTTP/1.1\r\n")
            await asyncio.sleep(0.1)
            async with await Wire.connect(server) as wire:  # in the place of the silent one
                assert await silent.do(silent.peer.sock.recv, 1) == b""
                talking.write(b"Host: a\r\n")
                await asyncio.sleep(0.05)
                second = await Wire.dial(server)
                second.write(b"GET")
                await asyncio.sleep(0.1)
                assert await answer(server) == 503
                wire.leave()
                await wire.frame()
            for other in (silent, talking, second):
                other.peer.close()

    run_on(loop, main)


@each_loop
def test_requests_that_await_a_hook_count_until_they_are_answered(loop: str) -> None:
    async def main() -> None:
        decision = asyncio.Event()

        async def process_request(_: ServerConnection, __: Any) -> None:
            await decision.wait()

        server = listen(echo, options=Options(handshakes_max=1), process_request=process_request)
        async with server, await Wire.dial(server) as first:
            first.write(upgrade_request())
            await asyncio.sleep(0.05)
            assert await answer(server) == 503
            decision.set()
            assert (await first.do(first.peer.read_response)).status == 101
            async with await Wire.connect(server) as second:
                second.leave()
                await second.frame()
            first.leave()
            await first.frame()

    run_on(loop, main)


def test_the_limit_of_the_loop_holds_for_all_of_its_servers() -> None:
    async def main() -> None:
        async with listen(echo) as first, listen(echo) as second, await Wire.connect(first) as wire:
            await until(lambda: first.connections)
            assert await answer(second) == 503
            wire.leave()
            await wire.frame()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(options=Options(sessions_max=1))) as runner:
        runner.run(asyncio.wait_for(main(), 20))


def test_options_that_all_of_a_ring_shares_are_refused_by_serve() -> None:
    async def main() -> None:
        with pytest.raises(OptionsError, match="receive_buffers"):
            listen(echo, options=Options(receive_buffers=16))

    run_on("epoll", main)


@each_loop
def test_a_head_that_drips_is_cut_after_open_timeout(loop: str) -> None:
    """However often a byte comes, so that slow clients cannot keep what they hold."""

    async def main() -> None:
        async with listen(echo, open_timeout=0.3) as server, await Wire.dial(server) as wire:

            def drip(peer: Peer) -> bytes:
                peer.sock.settimeout(0.02)
                peer.write(b"GET / HTTP/1.1\r\nX: ")
                for _ in range(200):
                    try:
                        peer.write(b"x")
                        if peer.sock.recv(1) == b"":
                            return b"end"
                    except TimeoutError:
                        continue
                    except OSError:
                        return b"reset"
                return b"still there"

            assert await wire.do(drip, wire.peer) in (b"end", b"reset")

    run_on(loop, main)
