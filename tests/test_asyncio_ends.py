"""How connections of `uringws.asyncio` end, and pings, on every event loop.

Expectations come from the documentation of `websockets` (reference/asyncio/server) and RFC 6455 7.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coroutines import Wire, each_loop, first_connection, listen, run_on, until
from uringws.asyncio import (
    ConcurrencyError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ServerConnection,
)
from wire import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame

# ---- the end


@each_loop
def test_the_handler_returns_and_the_connection_closes_with_1000(loop: str) -> None:
    async def main() -> None:
        async def handler(connection: ServerConnection) -> None:
            await connection.send("bye")

        async with listen(handler) as server, await Wire.connect(server) as wire:
            assert (await wire.frame()).payload == b"bye"
            assert (await wire.frame()).close_code == 1000
            wire.leave()
            await wire.eof()

    run_on(loop, main)


@each_loop
def test_the_handler_raises_and_the_connection_closes_with_1011_and_no_reason(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async def handler(_: ServerConnection) -> None:
            raise LookupError("boom")

        async with listen(handler) as server, await Wire.connect(server) as wire:
            assert (await wire.frame()).payload == (1011).to_bytes(2, "big")
            wire.leave(1011)

    run_on(loop, main)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "connection handler failed"
    assert record.name == "websockets.server"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "boom"


@each_loop
def test_the_queue_is_drained_before_recv_raises(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            wire.write(frame(TEXT, b"a"), frame(TEXT, b"b"))
            wire.leave(1000, "done")
            await connection.wait_closed()
            assert [await connection.recv(), await connection.recv()] == ["a", "b"]
            with pytest.raises(ConnectionClosedOK) as raised:
                await connection.recv()
            assert str(raised.value) == "received 1000 (OK) done; then sent 1000 (OK)"  # its code is answered
            assert raised.value.rcvd_then_sent is True
            assert (connection.close_code, connection.close_reason) == (1000, "done")

    run_on(loop, main)


@each_loop
def test_messages_between_our_close_frame_and_the_peers_are_queued(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            closing = asyncio.create_task(connection.close(1001, "moving"))
            assert (await wire.frame()).close_code == 1001
            wire.write(frame(TEXT, b"late"))
            wire.leave(1001)
            await closing
            assert await connection.recv() == "late"
            with pytest.raises(ConnectionClosedOK, match=re.escape("sent 1001 (going away) moving; then received")):
                await connection.recv()

    run_on(loop, main)


@each_loop
def test_the_end_of_async_for_is_silent_after_1001_and_raises_after_4000(loop: str) -> None:
    async def main() -> None:
        ends: list[Any] = []

        async def handler(connection: ServerConnection) -> None:
            try:
                async for _ in connection:
                    pass
                ends.append("end")
            except ConnectionClosedError:
                ends.append(connection.close_code)

        async with listen(handler) as server:
            for code in (1001, 4000, None):
                async with await Wire.connect(server) as wire:
                    wire.leave(code)
                    assert (await wire.frame()).opcode == CLOSE
                    await wire.eof()
            await until(lambda: len(ends) == 3)
        assert ends == ["end", 4000, "end"]

    run_on(loop, main)


@each_loop
def test_send_and_ping_raise_once_the_connection_is_closed(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            wire.leave(4000, "private")
            await connection.wait_closed()
            for attempt in (connection.send("a"), connection.ping(), connection.pong(), connection.recv()):
                with pytest.raises(ConnectionClosedError) as raised:
                    await attempt
                assert raised.value.rcvd is not None
                assert (raised.value.rcvd.code, raised.value.rcvd.reason) == (4000, "private")
            await connection.close()

    run_on(loop, main)


@each_loop
def test_the_exceptions_are_those_that_programs_for_websockets_catch(loop: str) -> None:
    import websockets  # noqa: PLC0415

    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            wire.leave()
            with pytest.raises(websockets.ConnectionClosed):
                await connection.recv()
            with pytest.raises(ConnectionClosed):
                await connection.send("a")

    run_on(loop, main)


@each_loop
def test_a_peer_that_vanishes_is_closed_without_frames(loop: str) -> None:
    async def main() -> None:
        async with listen() as server:
            wire = await Wire.connect(server)
            connection = await first_connection(server)
            wire.peer.close()
            with pytest.raises(ConnectionClosedError, match="no close frame received or sent"):
                await connection.recv()
            assert (connection.close_code, connection.close_reason) == (1006, "")

    run_on(loop, main)


@each_loop
def test_bytes_that_break_the_protocol_close_with_1002_and_the_cause_says_so(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            wire.write(frame(TEXT, b"a", key=None))
            assert (await wire.frame()).close_code == 1002
            await wire.eof()
            wire.peer.close()
            with pytest.raises(ConnectionClosedError) as raised:
                await connection.recv()
            assert raised.value.sent is not None
            assert raised.value.sent.code == 1002

    run_on(loop, main)


@each_loop
def test_close_gives_up_after_close_timeout(loop: str) -> None:
    async def main() -> None:
        async with listen(close_timeout=0.1) as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            await connection.close()  # the peer answers nothing
            with pytest.raises(ConnectionClosedError) as raised:
                await connection.recv()
            assert str(raised.value) == "sent 1000 (OK); no close frame received"
            assert isinstance(raised.value.__cause__, TimeoutError)
            assert (await wire.frame()).close_code == 1000

    run_on(loop, main)


@each_loop
def test_close_in_the_middle_of_a_fragmented_message_fails_with_1011(loop: str) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def pieces() -> AsyncIterator[str]:
            yield "a"
            await gate.wait()
            yield "b"

        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            sending = asyncio.create_task(connection.send(pieces()))
            assert (await wire.frame()).payload == b"a"
            closing = asyncio.create_task(connection.close())
            closed = await wire.frame()
            assert closed.payload[2:] == b"close during fragmented message"
            assert closed.close_code == 1011
            wire.peer.close()
            await closing
            gate.set()
            with pytest.raises(ConnectionClosedError, match=r"sent 1011 .* no close frame received"):
                await sending

    run_on(loop, main)


@each_loop
def test_a_close_code_or_reason_that_cannot_be_sent_raises(loop: str) -> None:
    async def main() -> None:
        from websockets.exceptions import ProtocolError  # noqa: PLC0415

        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            for code, reason in ((1005, ""), (999, ""), (1000, "x" * 124)):
                with pytest.raises(ProtocolError):
                    await connection.close(code, reason)
            wire.leave()

    run_on(loop, main)


@each_loop
def test_a_handler_that_returns_with_a_full_queue_still_closes_in_order(loop: str) -> None:
    async def main() -> None:
        async def handler(connection: ServerConnection) -> None:
            await until(lambda: connection._reads_paused)

        async with listen(handler, max_queue=1) as server, await Wire.connect(server) as wire:
            await wire.do(wire.write, *[frame(BINARY, b"x" * 1000)] * 100, close_frame())
            assert (await wire.frame()).close_code == 1000
            await wire.eof()

    run_on(loop, main)


# ---- pings


@each_loop
def test_pings_are_answered_and_a_later_pong_completes_earlier_pings(loop: str) -> None:
    async def main() -> None:
        async with listen(ping_interval=None) as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            wire.write(frame(PING, b"hi"))
            assert await wire.frame() == frame_of(PONG, b"hi")
            first, second = await connection.ping(), await connection.ping("two")
            pings = await wire.frames(2)
            assert len(pings[0].payload) == 4
            with pytest.raises(ConcurrencyError, match="already waiting"):
                await connection.ping(b"two")
            wire.write(frame(PONG, b"other"), frame(PONG, b"two"))
            assert 0 < await second <= await first
            assert connection.latency > 0
            lonely = await connection.ping()
            wire.leave()
            with pytest.raises(ConnectionClosedOK):
                await lonely

    run_on(loop, main)


def frame_of(opcode: int, payload: bytes) -> Any:
    from wire import Frame  # noqa: PLC0415

    return Frame(opcode, payload)


@each_loop
def test_keepalive_measures_the_latency_without_a_task(loop: str) -> None:
    async def main() -> None:
        async with listen(ping_interval=0.05) as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            tasks = len(asyncio.all_tasks())
            assert connection.latency == 0
            ping = await wire.frame()
            assert ping.opcode == PING
            wire.write(frame(PONG, ping.payload))
            await until(lambda: connection.latency > 0)
            assert len(asyncio.all_tasks()) <= tasks
            wire.leave()

    run_on(loop, main)


@each_loop
def test_keepalive_ends_a_silent_peer_and_no_other(loop: str) -> None:
    async def main() -> None:
        async with listen(ping_interval=0.1, ping_timeout=0.1) as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            for _ in range(10):
                await asyncio.sleep(0.04)
                wire.write(frame(PONG, b"alive"))  # whatever it is, the peer is there
            assert connection.state.name == "OPEN"
            await wire.do(wire.peer.sock.shutdown, socket.SHUT_RD)
            await until(lambda: connection.state.name != "OPEN")

    run_on(loop, main)


@each_loop
def test_a_handler_that_only_sends_ends_when_its_peer_resets_the_connection(loop: str) -> None:
    async def main() -> None:
        peers: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def handler(connection: ServerConnection) -> None:
            (await peers).peer.reset()  # from here on the handler gives the loop no occasion to notice
            try:
                for _ in range(20_000):  # many more than wait for a peer that is there
                    await connection.send(bytes(1000))
            except ConnectionClosedError as error:
                ended.set_result(str(error))
            else:
                ended.set_result("all messages were taken")

        async with listen(handler) as server, await Wire.connect(server) as wire:
            peers.set_result(wire)
            assert await ended == "no close frame received or sent"

    run_on(loop, main)
