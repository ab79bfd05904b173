"""`uringws.asyncio.listen`: handlers in an asyncio program, beside its tasks and timers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from servers import EchoRecorder, Recorder
from uringws import Accept, Connection, Handler, Message, Options, OptionsError, ReactorStateError, Request, handler_fn
from uringws.asyncio import EventLoop, Listening, listen, new_event_loop
from uringws.backend import Backend
from wire import BINARY, TEXT, Frame, Peer, close_frame, frame, upgrade_request

T = TypeVar("T")


@pytest.fixture
def loop(backend: Backend) -> Iterator[EventLoop]:
    """A loop that is closed afterwards."""
    loop = new_event_loop(backend=backend)
    yield loop
    loop.close()


async def beside(function: Callable[..., T], *arguments: Any) -> T:
    """Run what blocks (a Peer) in a thread."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


PEERS: list[Peer] = []


@pytest.fixture(autouse=True)
def _closed_peers() -> Iterator[None]:
    """Close what `connect` opened."""
    yield
    while PEERS:
        PEERS.pop().close()


async def connect(listening: Listening, path: str = "/") -> Peer:
    (address,) = listening.addresses
    PEERS.append(await beside(lambda: Peer.connect(address, path)))
    return PEERS[-1]


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


def test_a_handler_is_called_in_the_loops_thread_outside_of_tasks(loop: EventLoop) -> None:
    seen: list[tuple[object, object, int]] = []

    class Echo(EchoRecorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            seen.append((asyncio.get_running_loop(), asyncio.current_task(), threading.get_ident()))
            conn.echo()

    async def main() -> None:
        recorder = Echo()
        async with await listen(recorder, "127.0.0.1", 0) as listening:
            peer = await connect(listening)
            peer.write(frame(TEXT, b"hello"), frame(BINARY, b"there"))
            assert await beside(peer.read_frames, 2) == [Frame(TEXT, b"hello"), Frame(BINARY, b"there")]
            assert await beside(peer.shake_hands) == 1000
            await until(lambda: recorder.of("close"))
        assert seen == [(loop, None, threading.get_ident())] * 2

    loop.run_until_complete(main())


def test_a_callback_wakes_a_task_that_sends(loop: EventLoop) -> None:
    """The way of a coroutine server: a message completes a future, and the task that awaits it answers."""
    queue: asyncio.Queue[tuple[Connection, bytes]] = asyncio.Queue()

    async def answer() -> None:
        while True:
            conn, payload = await queue.get()
            conn.send_binary(payload[::-1])

    async def main() -> None:
        task = asyncio.create_task(answer())
        handler = handler_fn(lambda conn, message: queue.put_nowait((conn, bytes(message))))
        async with await listen(handler, "127.0.0.1", 0) as listening:
            peer = await connect(listening)
            for number in range(50):
                peer.write(frame(BINARY, b"abc %d" % number))
                assert await beside(peer.read_frame) == Frame(BINARY, (b"abc %d" % number)[::-1])
            peer.close()
        task.cancel()

    loop.run_until_complete(main())


def test_two_handlers_with_options_of_their_own_share_a_loop(loop: EventLoop) -> None:
    async def main() -> None:
        small = replace(loop.reactor.options, message_bytes_max=10)
        async with (
            await listen(EchoRecorder(), "127.0.0.1", 0) as first,
            await listen(handler_fn(lambda conn, _: conn.send_text("second")), "127.0.0.1", 0, options=small) as second,
        ):
            one, two = await connect(first), await connect(second)
            one.write(frame(BINARY, bytes(100)))
            two.write(frame(BINARY, bytes(5)), frame(BINARY, bytes(100)))
            assert await beside(one.read_frame) == Frame(BINARY, bytes(100))
            assert await beside(two.read_frame) == Frame(TEXT, b"second")
            assert (await beside(two.read_frame)).payload[:2] == (1009).to_bytes(2, "big")
            one.close()
            two.close()

    loop.run_until_complete(main())


def test_close_ends_this_server_and_no_other(loop: EventLoop) -> None:
    async def main() -> None:
        recorder, other = EchoRecorder(), EchoRecorder()
        async with await listen(other, "127.0.0.1", 0) as stays:
            listening = await listen(recorder, "127.0.0.1", 0)
            (address,) = listening.addresses
            peer, bystander = await connect(listening), await connect(stays)
            with Peer.dial(address) as waiting:
                waiting.write(upgrade_request()[:20])
                await until(lambda: loop.reactor.stats().handshakes == 1)
                assert len(listening.connections) == 1
                listening.close(1012, "restart")
                listening.close()
                with pytest.raises(OSError, match="refused"):
                    await beside(Peer.dial, address)
                waiting.write(upgrade_request()[20:])
                assert (await beside(waiting.read_response)).status == 503
            assert not listening._closed.done()
            assert (await beside(peer.read_frame)).payload == (1012).to_bytes(2, "big") + b"restart"
            peer.write(close_frame(1012))
            await beside(peer.read_eof)
            await asyncio.wait_for(listening.wait_closed(), 10)
            assert recorder.of("close")
            bystander.write(frame(TEXT, b"still there"))
            assert await beside(bystander.read_frame) == Frame(TEXT, b"still there")
            again = await listen(recorder, *address)
            again.close()
            await again.wait_closed()
            bystander.close()

    loop.run_until_complete(main())


def test_failures_of_a_handler_reach_the_exception_handler_with_the_connection(loop: EventLoop) -> None:
    contexts: list[dict[str, Any]] = []

    class Fails(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            raise LookupError(bytes(message).decode())

    async def main() -> None:
        recorder = Fails()
        async with await listen(recorder, "127.0.0.1", 0) as listening:
            peer = await connect(listening)
            peer.write(frame(TEXT, b"of the callback"))
            assert (await beside(peer.read_frame)).payload[:2] == (1011).to_bytes(2, "big")
            peer.close()
        (context,) = contexts
        assert str(context["exception"]) == "of the callback"
        assert context["connection"] in recorder.connections.values()

    loop.set_exception_handler(lambda _, context: contexts.append(context))
    loop.run_until_complete(main())


def test_all_callbacks_of_a_handler_are_called(loop: EventLoop) -> None:
    class Full(Recorder):
        def on_upgrade(self, request: Request) -> Accept:
            self.record("upgrade", request.path)
            return Accept(data=request.path)

        def on_frame(self, conn: Connection, frame: Message) -> None:
            self.record("frame", conn.data, frame.fin)

    async def main() -> None:
        recorder = Full()
        async with await listen(recorder, "127.0.0.1", 0) as listening:
            peer = await connect(listening, "/room")
            peer.write(frame(TEXT, b"a", fin=False), frame(0, b"b"))
            await beside(peer.shake_hands)
            await until(lambda: recorder.of("close"))
        names = [event[:2] for event in recorder.events if event[0] in ("upgrade", "frame")]
        assert names == [("upgrade", "/room"), ("frame", "/room"), ("frame", "/room")]

    loop.run_until_complete(main())


class Slow(Handler):
    """A handler whose every message takes a while, which a flood makes into one long turn."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.count = 0

    def on_message(self, conn: Connection, message: Message) -> None:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        self.count += 1
        conn.send(message)


def test_timers_tasks_and_descriptors_get_their_turn_in_the_middle_of_a_flood(loop: EventLoop) -> None:
    """A turn that brings half a second's work is handed out in parts, and answers leave after each of them."""
    count, handler = 500, Slow(0.001)

    async def main() -> None:
        async with await listen(handler, "127.0.0.1", 0) as listening:
            peers = [await connect(listening) for _ in range(10)]
            for peer in peers:
                peer.write(*(frame(TEXT, b"x") for _ in range(count // len(peers))))
            ticks: list[int] = []
            rung: list[int] = []
            ours, theirs = socket.socketpair()
            loop.add_reader(ours, lambda: rung.append(len(ours.recv(1))))
            while handler.count < count:
                if len(ticks) == 5:
                    theirs.send(b"x")
                await asyncio.sleep(0)
                ticks.append(handler.count)
                if len(ticks) == 10:
                    assert rung == [1], "the descriptor waits for the end of the flood"
                    assert loop.reactor.stats().messages_out >= 1
                    assert any(peer.sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) for peer in peers[:1])
            assert len(ticks) > 20
            loop.remove_reader(ours)
            ours.close()
            theirs.close()
            for peer in peers:
                peer.close()

    loop.run_until_complete(main())


# ---- misuse


def test_another_loop_is_refused_with_the_remedy() -> None:
    async def main() -> None:
        await listen(EchoRecorder(), "127.0.0.1", 0)

    with pytest.raises(ReactorStateError, match=r"listen\(\) .*uringws\.asyncio\.run.*new_event_loop"):
        asyncio.run(main())


async def coroutine_function(conn: object, message: object) -> None: ...


class Asynchronous(Handler):
    async def on_message(self, conn: Connection, message: Message) -> None:  # type: ignore[override]
        """Never called."""


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "text"),
    [
        ((Asynchronous(), "127.0.0.1", 0), {}, TypeError, "async def"),
        ((None, "127.0.0.1", 0), {}, TypeError, "NoneType"),
        ((EchoRecorder(),), {}, TypeError, "port"),
        ((EchoRecorder(), "127.0.0.1", 70_000), {}, ValueError, "70000"),
        ((EchoRecorder(), 5, 0), {}, TypeError, "5"),
        ((EchoRecorder(), "no-such-host.invalid", 0), {}, OSError, "."),
        ((EchoRecorder(), "192.0.2.1", 0), {}, OSError, "no interface"),
        ((EchoRecorder(), "127.0.0.1", 0), {"sock": socket.socket()}, ValueError, "not both"),
        ((EchoRecorder(), "127.0.0.1", 0), {"options": Options(receive_buffers=16)}, OptionsError, "receive_buffers"),
    ],
)
def test_wrong_arguments_of_listen_are_refused(
    loop: EventLoop, arguments: Any, keywords: Any, error: type[Exception], text: str
) -> None:
    async def main() -> None:
        with pytest.raises(error, match=text):
            await listen(*arguments, **keywords)
        assert loop.reactor.addresses == []

    loop.run_until_complete(main())
    if "sock" in keywords:
        keywords["sock"].close()


def test_a_port_in_use_is_refused_and_no_host_is_all_interfaces(loop: EventLoop) -> None:
    async def main() -> None:
        async with await listen(EchoRecorder(), None, 0) as listening:
            port = listening.addresses[0][1]
            assert listening.addresses[0][0] == "0.0.0.0"
            assert all(address[1] == port for address in listening.addresses)
            with pytest.raises(OSError, match="another program listens there"):
                await listen(EchoRecorder(), "127.0.0.1", port)  # type: ignore[arg-type]
            with await beside(Peer.connect, ("127.0.0.1", port)):
                pass

    loop.run_until_complete(main())


def test_a_socket_may_be_given(loop: EventLoop) -> None:
    async def main() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        async with await listen(EchoRecorder(), sock=sock) as listening:
            with await connect(listening):
                pass
        assert sock.fileno() == -1

    loop.run_until_complete(main())


def test_the_loop_may_be_closed_while_it_serves(loop: EventLoop) -> None:
    recorder = EchoRecorder()
    peers: list[Peer] = []

    async def main() -> None:
        peers.append(await connect(await listen(recorder, "127.0.0.1", 0)))

    loop.run_until_complete(main())
    loop.close()
    assert [event[2] for event in recorder.of("close")] == [1006]
    with peers[0] as peer:
        peer.read_eof()
