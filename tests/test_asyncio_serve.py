"""`uringws.asyncio.serve` keeps what programs written for `websockets` rely on, on every event loop.

Expectations come from the documentation of `websockets` (reference/asyncio/server) and from docs/guides/websockets.md.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import socket
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coroutines import Wire, address_of, ask, each_loop, first_connection, run_on, until
from uringws.asyncio import (
    ConcurrencyError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    NegotiationError,
    Server,
    ServerConnection,
    basic_auth,
    broadcast,
    serve,
    unix_serve,
)
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, close_frame, frame, upgrade_request


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def hold(connection: ServerConnection) -> None:
    await connection.wait_closed()


def listen(handler: Any = hold, **settings: Any) -> Server:
    return serve(handler, "127.0.0.1", 0, **settings)


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
                await connection.send(["a", b"b"])  # type: ignore[list-item]
            except TypeError as error:
                raised.append(error)

        async with listen(handler) as server, await Wire.connect(server) as wire:
            first, second = await wire.frames(2)
            assert (first.payload, second.close_code) == (b"a", 1011)
        assert len(raised) == 1

    run_on(loop, main)


@pytest.mark.parametrize("message", [None, 1, {"a": 1}, [None]])
def test_what_is_no_message_raises_type_error(message: Any) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            with pytest.raises(TypeError):
                await (await first_connection(server)).send(message)
            wire.leave()

    run_on("stock", main)


@each_loop
def test_too_many_fragments_of_one_message_close_with_1009(loop: str) -> None:
    async def main() -> None:
        async with listen(echo, max_queue=None) as server, await Wire.connect(server) as wire:
            await wire.do(wire.write, frame(TEXT, b"", fin=False), *[frame(CONTINUATION, b"", fin=False)] * 4096)
            assert (await wire.frame()).close_code == 1009

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
            assert str(raised.value) == "received 1000 (OK) done; then sent 1000 (OK) done"
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
            except ConnectionClosedError as error:
                assert error.rcvd is not None
                ends.append(error.rcvd.code)

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
            with pytest.raises(ConnectionClosedError, match="sent 1011 .* no close frame received"):
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
        async with listen(ping_interval=0.1, ping_timeout=0.1) as server:
            async with await Wire.connect(server) as wire:
                connection = await first_connection(server)
                for _ in range(10):
                    await asyncio.sleep(0.04)
                    wire.write(frame(PONG, b"alive"))  # whatever it is, the peer is there
                assert connection.state.name == "OPEN"
                await wire.do(wire.peer.sock.shutdown, socket.SHUT_RD)
                await until(lambda: connection.state.name != "OPEN")

    run_on(loop, main)


# ---- the opening handshake


@each_loop
def test_request_and_response_can_be_read(loop: str) -> None:
    async def main() -> None:
        async with listen(subprotocols=["a", "b"]) as server:
            async with await Wire.connect(server, "/path?x=1", subprotocols=["b", "c"]) as wire:
                connection = await first_connection(server)
                assert connection.request is not None
                assert connection.response is not None
                assert (connection.request.path, connection.request.method) == ("/path?x=1", "GET")
                assert connection.request.headers["Sec-WebSocket-Protocol"] == "b, c"
                assert connection.request is connection.request
                assert connection.response.status_code == 101
                assert connection.response.headers["Server"].startswith("Python/")
                assert connection.subprotocol == wire.peer.response.headers["sec-websocket-protocol"] == "b"
                wire.leave()

    run_on(loop, main)


@each_loop
def test_process_request_sees_any_method_and_may_answer_it(loop: str) -> None:
    async def main() -> None:
        async def process_request(connection: ServerConnection, request: Any) -> Any:
            await asyncio.sleep(0)
            return connection.respond(200, f"{request.method} {request.protocol}\n")

        async with listen(process_request=process_request) as server:
            assert (await ask(server, b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n"))[2] == b"POST HTTP/1.0\n"
            status, headers, _ = await ask(server, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" * 1)
            assert (status, headers["connection"]) == (200, "close")

    # HEAD is answered without its body, so that `ask` would wait for it: only GET is compared there.
    with pytest.raises(EOFError):
        run_on(loop, main)


@each_loop
def test_the_request_is_checked_after_process_request_has_changed_it(loop: str) -> None:
    async def main() -> None:
        def process_request(_: ServerConnection, request: Any) -> None:
            del request.headers["Sec-WebSocket-Key"]

        async with listen(process_request=process_request) as server:
            status, _, body = await ask(server)
            assert status == 400
            assert b"missing Sec-WebSocket-Key header" in body

    run_on(loop, main)


REFUSED = {
    "method": (upgrade_request().replace(b"GET", b"PUT"), 405),
    "version": (upgrade_request().replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
    "no-upgrade": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426),
    "connection": (upgrade_request().replace(b"Connection: Upgrade", b"Connection: close"), 426),
    "key": (upgrade_request(key="short"), 400),
    "protocol-version": (upgrade_request().replace(b"Version: 13", b"Version: 8"), 400),
    "host": (upgrade_request().replace(b"Host: localhost\r\n", b""), 400),
    "head": (upgrade_request(headers=[("X", "y" * 20_000)]), 431),
    "fields": (upgrade_request(headers=[("X", "y")] * 200), 431),
}


@each_loop
@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_opens_no_websocket_is_refused(loop: str, name: str) -> None:
    request, status = REFUSED[name]

    async def main() -> None:
        async with listen() as server:
            assert (await ask(server, request))[0] == status

    run_on(loop, main)


@each_loop
def test_origins_are_checked(loop: str) -> None:
    async def main() -> None:
        async with listen(origins=["https://a.example", re.compile(r"https://.*\.b\.example")]) as server:
            for origin, status in (("https://a.example", 101), ("https://x.b.example", 101), ("https://c", 403)):
                assert (await ask(server, upgrade_request(headers=[("Origin", origin)])))[0] == status
            assert (await ask(server))[0] == 403

    run_on(loop, main)


@each_loop
def test_subprotocols_are_required_once_there_are_any(loop: str) -> None:
    async def main() -> None:
        async with listen(subprotocols=["a"]) as server:
            assert (await ask(server))[0] == 400
            assert (await ask(server, upgrade_request(subprotocols=["z"])))[0] == 400

        def select(connection: ServerConnection, offered: Any) -> str | None:
            connection.offered = offered  # type: ignore[attr-defined]
            if not offered:
                raise NegotiationError("none offered")
            return None

        async with listen(select_subprotocol=select) as server:
            assert (await ask(server))[0] == 400
            assert (await ask(server, upgrade_request(subprotocols=["z"])))[0] == 101

    run_on(loop, main)


@each_loop
def test_hooks_that_raise_are_answered_500_and_logged(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        def hook(*_: Any) -> None:
            raise LookupError("boom")

        for name in ("process_request", "process_response", "select_subprotocol"):
            async with listen(**{name: hook}) as server:
                assert (await ask(server))[0] == 500

    run_on(loop, main)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "process_request failed",
        "process_response failed",
        "opening handshake failed",
    ]


@each_loop
def test_a_header_that_would_split_the_answer_is_not_sent(loop: str) -> None:
    async def main() -> None:
        def process_response(_: ServerConnection, __: Any, response: Any) -> None:
            response.headers["X"] = "ok"
            response.headers._list.append(("Y", "a\r\nEvil: yes"))

        async with listen(process_response=process_response) as server:
            status, headers, _ = await ask(server)
            assert (status, "evil" in headers) == (500, False)

    run_on(loop, main)


@each_loop
def test_frames_that_follow_the_request_at_once_are_not_lost(loop: str) -> None:
    async def main() -> None:
        async def process_request(_: ServerConnection, __: Any) -> None:
            await asyncio.sleep(0.05)

        for settings in ({}, {"process_request": process_request}):
            async with listen(echo, **settings) as server:
                async with await Wire.connect(server, then=frame(TEXT, b"early")) as wire:
                    assert (await wire.frame()).payload == b"early"
                    wire.leave()

    run_on(loop, main)


@each_loop
def test_junk_is_not_answered(loop: str) -> None:
    async def main() -> None:
        async with listen() as server:
            for junk in (b"HELO relay.invalid\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"):
                async with await Wire.dial(server) as wire:
                    wire.write(junk)
                    await wire.do(_read_to_end, wire.peer)

    run_on(loop, main)


def _read_to_end(peer: Peer) -> None:
    try:
        assert peer.sock.recv(100) == b""
    except ConnectionResetError:
        pass  # what it sent was not read


@each_loop
def test_a_silent_client_is_left_after_open_timeout(loop: str) -> None:
    async def main() -> None:
        async with listen(open_timeout=0.1) as server, await Wire.dial(server) as wire:
            await wire.do(_read_to_end, wire.peer)

    run_on(loop, main)


@each_loop
def test_a_hook_is_cancelled_when_its_client_leaves(loop: str) -> None:
    async def main() -> None:
        ends: list[str] = []

        async def process_request(_: ServerConnection, __: Any) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        async with listen(process_request=process_request) as server:
            wire = await Wire.dial(server)
            wire.write(upgrade_request())
            await asyncio.sleep(0.05)
            wire.peer.close()
            await until(lambda: ends)

    run_on(loop, main)


@each_loop
def test_basic_auth_lets_in_who_knows_the_password(loop: str) -> None:
    async def main() -> None:
        async with listen(process_request=basic_auth("home", ("user", "secret"))) as server:
            status, headers, _ = await ask(server)
            assert (status, headers["www-authenticate"]) == (401, 'Basic realm="home", charset="UTF-8"')
            for credentials in ("dXNlcjp3cm9uZw==", "b3RoZXI6c2VjcmV0", "%%%", "dXNlcg=="):
                headers_of = [("Authorization", f"Basic {credentials}")]
                assert (await ask(server, upgrade_request(headers=headers_of)))[0] == 401
            right = [("Authorization", "Basic dXNlcjpzZWNyZXQ=")]
            async with await Wire.connect(server, headers=right) as wire:
                assert (await first_connection(server)).username == "user"
                wire.leave()

    run_on(loop, main)


# ---- the server


@each_loop
def test_close_answers_503_closes_with_1001_and_waits_for_handlers(loop: str) -> None:
    async def main() -> None:
        ended: list[Any] = []
        asked = asyncio.Event()

        async def process_request(connection: ServerConnection, request: Any) -> None:
            if request.path == "/slow":
                asked.set()
                await until(lambda: not connection.server.is_serving())

        async def handler(connection: ServerConnection) -> None:
            with pytest.raises(ConnectionClosedOK):
                await connection.recv()
            await asyncio.sleep(0.05)
            ended.append(connection)

        server = await listen(handler, process_request=process_request)
        wire = await Wire.connect(server)
        waiting = asyncio.create_task(ask(server, upgrade_request("/slow")))
        await asked.wait()
        server.close()
        server.close()
        assert not server.is_serving()
        assert (await waiting)[0] == 503
        assert (await wire.frame()).close_code == 1001
        assert not ended
        wire.leave(1001)
        await server.wait_closed()
        assert len(ended) == 1
        assert server.sockets == ()
        wire.peer.close()

    run_on(loop, main)


@each_loop
def test_close_may_leave_connections_open(loop: str) -> None:
    async def main() -> None:
        server = await listen(echo)
        async with await Wire.connect(server) as wire:
            server.close(close_connections=False)
            wire.write(frame(TEXT, b"still here"))
            assert (await wire.frame()).payload == b"still here"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 0.05)
            wire.leave()
            await server.wait_closed()

    run_on(loop, main)


@each_loop
def test_a_cancelled_server_leaves_no_socket_task_or_descriptor(loop: str) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def main() -> None:
        async with listen(echo) as server, await Wire.connect(server) as wire:  # threads and caches come first
            wire.leave()
        gc.collect()
        before = descriptors()
        server = await listen(echo)
        address = address_of(server)
        serving = asyncio.create_task(server.serve_forever())
        wires = [await Wire.connect(server) for _ in range(5)]
        serving.cancel()
        for wire in wires:
            assert (await wire.frame()).close_code == 1001
            wire.leave(1001)
            await wire.eof()
            wire.peer.close()
        with pytest.raises(asyncio.CancelledError):
            await serving
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(Peer.dial, address)
        await until(lambda: descriptors() <= before)

    run_on(loop, main)


@each_loop
def test_a_cancelled_handler_closes_its_connection(loop: str) -> None:
    async def main() -> None:
        tasks: list[Any] = []

        async def handler(connection: ServerConnection) -> None:
            tasks.append(asyncio.current_task())
            await connection.recv()

        async with listen(handler) as server, await Wire.connect(server) as wire:
            await until(lambda: tasks)
            tasks[0].cancel()
            assert (await wire.frame()).close_code == 1011
            wire.leave(1011)
            await wire.eof()

    run_on(loop, main)


@each_loop
def test_connections_are_hashable_take_attributes_and_are_let_go(loop: str) -> None:
    async def main() -> None:
        known: set[ServerConnection] = set()
        references: list[Any] = []

        async def handler(connection: ServerConnection) -> None:
            known.add(connection)
            connection.user = "me"  # type: ignore[attr-defined]
            references.append(weakref.ref(connection))
            await connection.wait_closed()
            known.discard(connection)

        async with listen(handler) as server:
            async with await Wire.connect(server) as wire:
                await until(lambda: known)
                assert known == server.connections
                assert connection_of(known).user == "me"  # type: ignore[attr-defined]
                assert len({connection_of(known).id}) == 1
                await wire.do(wire.peer.shake_hands)
            await until(lambda: not known)
            await asyncio.sleep(0.05)
            gc.collect()
            assert references[0]() is None
            assert server.connections == set()

    run_on(loop, main)


def connection_of(connections: set[ServerConnection]) -> ServerConnection:
    (connection,) = connections
    return connection


@each_loop
def test_a_connection_says_who_and_where(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            assert connection.remote_address[:2] == wire.peer.sock.getsockname()
            assert connection.local_address[:2] == wire.peer.sock.getpeername()
            assert connection.transport.get_extra_info("peername")[:2] == wire.peer.sock.getsockname()
            assert connection.mode in {"ring", "transport"}
            assert connection.protocol.state is connection.state
            assert connection.protocol.extensions == []
            assert connection.server is server
            assert connection.mode in repr(connection)
            wire.leave()

    run_on(loop, main)


@each_loop
def test_unix_sockets_are_served(loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        async with unix_serve(echo, path) as server, await Wire.connect(server) as wire:
            wire.write(frame(TEXT, b"local"))
            assert (await wire.frame()).payload == b"local"
            wire.leave()

    run_on(loop, main)


@each_loop
def test_a_subclass_may_be_made_for_each_connection(loop: str) -> None:
    class Mine(ServerConnection):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.mine = True

    async def main() -> None:
        async with listen(create_connection=Mine) as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            assert isinstance(connection, Mine)
            assert connection.mine
            wire.leave()

    run_on(loop, main)


@each_loop
def test_two_servers_in_one_loop_have_their_own_limits(loop: str) -> None:
    async def main() -> None:
        async with listen(echo, max_size=10) as small, listen(echo, max_size=1000) as large:
            async with await Wire.connect(small) as one, await Wire.connect(large) as two:
                for wire in (one, two):
                    wire.write(frame(BINARY, b"x" * 100))
                assert (await one.frame()).close_code == 1009
                assert (await two.frame()).payload == b"x" * 100
                two.leave()

    run_on(loop, main)


@each_loop
def test_broadcast_leaves_out_who_is_closing_or_in_the_middle_of_a_message(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def pieces() -> AsyncIterator[str]:
            yield "a"
            await gate.wait()

        async with listen() as server:
            wires = [await Wire.connect(server) for _ in range(3)]
            await until(lambda: len(server.connections) == 3)
            connections = list(server.connections)
            sending = asyncio.create_task(connections[0].send(pieces()))
            closing = asyncio.create_task(connections[1].close())
            await asyncio.sleep(0.02)
            broadcast(connections, b"news")
            with pytest.raises(ExceptionGroup, match="skipped broadcast"):
                broadcast(connections[:2], "news", raise_exceptions=True)
            gate.set()
            await sending
            got = []
            for wire in wires:
                opened = await wire.frame()
                got.append((opened.opcode, opened.payload))
                wire.leave()
            assert sorted(got) == sorted([(TEXT, b"a"), (CLOSE, b"\x03\xe8"), (BINARY, b"news")])
            await closing
            for wire in wires:
                wire.peer.close()
        with pytest.raises(TypeError, match="data must be str or bytes"):
            broadcast([], ["a"])  # type: ignore[arg-type]

    run_on(loop, main)
    assert "skipped broadcast: sending a fragmented message" in caplog.messages


# ---- misuse


def test_serve_outside_of_a_loop_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="needs a running event loop"):
        serve(echo, "127.0.0.1", 0)


def test_a_server_awaited_in_another_loop_says_so() -> None:
    servers: list[Server] = []

    async def make() -> None:
        servers.append(listen())

    async def wait() -> None:
        with pytest.raises(RuntimeError, match="awaited in another"):
            await servers[0]

    run_on("stock", make)
    run_on("stock", wait)


@each_loop
def test_a_port_in_use_is_an_os_error(loop: str) -> None:
    async def main() -> None:
        async with listen() as server:
            with pytest.raises(OSError, match="address already in use"):
                await serve(echo, *address_of(server))  # type: ignore[arg-type]

    run_on(loop, main)


def _plain(_: ServerConnection) -> None: ...


async def _two(_: ServerConnection, path: str) -> None: ...


async def _yields(_: ServerConnection) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (None, "must be a coroutine function"),
        ("name", "must be a coroutine function"),
        (_two, "the request's path is connection.request.path"),
        (_yields, "has a `yield`"),
    ],
)
def test_a_handler_of_the_wrong_shape_is_refused(handler: Any, text: str) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=re.escape(text)):
            listen(handler)

    run_on("stock", main)


def test_a_handler_that_is_no_coroutine_function_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with listen(_plain) as server, await Wire.connect(server) as wire:
            assert (await wire.frame()).close_code == 1011
            wire.leave(1011)

    run_on("stock", main)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "must be a coroutine function (async def)" in str(record.exc_info[1])


@each_loop
def test_a_connection_used_from_another_thread_says_so(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)

            def elsewhere() -> None:
                asyncio.run(connection.send("a"))

            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                await asyncio.to_thread(elsewhere)
            wire.leave()

    run_on(loop, main)


def test_arguments_that_make_no_sense_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="unsupported compression"):
            listen(compression="gzip")
        with pytest.raises(TypeError, match="not a str"):
            listen(subprotocols="chat")
        with pytest.raises(ValueError, match="invalid subprotocol"):
            listen(subprotocols=["a b"])
        with pytest.raises(TypeError):
            await listen(no_such_argument=1)

    run_on("stock", main)
