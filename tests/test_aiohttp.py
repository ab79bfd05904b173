"""`uringws.aiohttp.WebSocketResponse` over sockets: aiohttp's interface, on the ring of our loop and beside it.

aiohttp's own tests are run by peers/test_aiohttp_suite.py.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Self

import pytest
from aiohttp import WSMsgType, web

from asgi_server import WAIT_SECONDS, loop, loop_factory
from uringws.aiohttp import WebSocketResponse
from wire import BINARY, CLOSE, PING, PONG, TEXT, Peer, close_frame, frame

__all__ = ["loop"]

Application = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Live:
    """An aiohttp application in a thread; its handlers' results in the order of the connections."""

    def __init__(self, handle: Callable[[WebSocketResponse], Awaitable[Any]], loop: str, **options: Any) -> None:
        self._handle, self._loop_name, self._options = handle, loop, options
        self.modes: list[str | None] = []
        self.result: Future[Any] = Future()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        session = WebSocketResponse(**self._options)
        await session.prepare(request)
        self.modes.append(session.mode)
        try:
            self.result.set_result(await self._handle(session))
        except BaseException as error:
            self.result.set_exception(error)
            raise
        return session

    async def _serve(self, started: Future[None]) -> None:
        app = web.Application()
        app.add_routes([web.get("/", self._answer)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = runner.addresses[0][:2]
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        started.set_result(None)
        await self._stop.wait()
        await runner.cleanup()

    def __enter__(self) -> Self:
        started: Future[None] = Future()

        def run() -> None:
            with asyncio.Runner(loop_factory=loop_factory(self._loop_name)) as runner:
                runner.run(self._serve(started))

        self._thread = threading.Thread(target=run)
        self._thread.start()
        started.result(WAIT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "aiohttp has not ended"


async def echo(session: WebSocketResponse) -> tuple[int | None, bool]:
    async for message in session:
        if message.type is WSMsgType.TEXT:
            await session.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await session.send_bytes(message.data)
    return session.close_code, session.closed


def test_messages_are_echoed_until_the_peer_closes(loop: str) -> None:
    with Live(echo, loop) as live, Peer.connect(live.address) as peer:
        for size in (0, 125, 126, 65_536, 300_000):
            peer.write(frame(TEXT, b"t" * size), frame(BINARY, b"\xff" * size))
            assert [answer.payload for answer in peer.read_frames(2)] == [b"t" * size, b"\xff" * size]
        peer.send(PING, b"?")
        assert peer.read_frame().opcode == PONG
        assert peer.shake_hands(4001, "bye") == (4001 if loop == "uringws" else 1000)  # aiohttp always answers 1000
        assert live.result.result(WAIT_SECONDS) == (4001, True)
        assert live.modes == ["ring" if loop == "uringws" else "transport"]


@pytest.mark.parametrize("option", [{"autoping": False}, {"decode_text": False}])
def test_options_that_the_ring_lacks_leave_the_connection_with_aiohttp(option: dict[str, bool]) -> None:
    with Live(echo, "uringws", **option) as live, Peer.connect(live.address) as peer:
        assert peer.shake_hands() == 1000
        assert live.modes == ["transport"]


def test_compression_is_agreed_on_only_where_asked_for() -> None:
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    for compress, mode in ((False, "ring"), (True, "transport")):
        with Live(echo, "uringws", compress=compress) as live, Peer.connect(live.address, headers=offer) as peer:
            assert ("sec-websocket-extensions" in peer.response.headers) == compress
            assert peer.shake_hands() == 1000
            assert live.modes == [mode]


def test_the_server_closes(loop: str) -> None:
    async def handle(session: WebSocketResponse) -> object:
        await session.send_str("last")
        await session.close(code=4000, message=b"enough")
        with pytest.raises(ConnectionResetError):
            await session.send_str("late")
        return session.close_code

    with Live(handle, loop) as live, Peer.connect(live.address) as peer:
        assert peer.read_frame().payload == b"last"
        closed = peer.read_frame()
        assert (closed.opcode, closed.payload) == (CLOSE, b"\x0f\xa0enough")
        peer.write(close_frame(4000))
        assert live.result.result(WAIT_SECONDS) == 4000


@pytest.mark.parametrize("leave", [lambda peer: peer.reset(), lambda peer: peer.close()])
def test_a_peer_that_leaves_ends_the_iteration(loop: str, leave: Callable[[Peer], None]) -> None:
    with Live(echo, loop) as live, Peer.connect(live.address) as peer:
        peer.send(TEXT, b"here")
        peer.read_frame()
        leave(peer)
        assert live.result.result(WAIT_SECONDS)[1]


@pytest.mark.parametrize(("violation", "code"), [(frame(TEXT, b"\xff"), 1007), (frame(BINARY, b"x" * 1001), 1009)])
def test_a_violation_is_an_error_with_its_code(loop: str, violation: bytes, code: int) -> None:
    async def handle(session: WebSocketResponse) -> object:
        message = await session.receive()
        return message.type, message.data.code, session.close_code

    with Live(handle, loop, max_msg_size=1000) as live, Peer.connect(live.address) as peer:
        peer.write(violation)
        assert peer.read_close() == code
        assert live.result.result(WAIT_SECONDS)[:2] == (WSMsgType.ERROR, code)


def test_send_waits_for_a_peer_that_does_not_read(loop: str) -> None:
    sent = 0

    async def handle(session: WebSocketResponse) -> None:
        nonlocal sent
        for _ in range(200):
            await session.send_bytes(bytes(100_000))
            sent += 1

    with Live(handle, loop) as live, Peer.connect(live.address) as peer:
        peer.read_exactly(1000)
        assert sent < 150
        peer.read_exactly(200 * 100_010 - 1000)
        live.result.result(WAIT_SECONDS)


def test_a_silent_peer_is_noticed_by_the_heartbeat(loop: str) -> None:
    with Live(echo, loop, heartbeat=0.1) as live, Peer.connect(live.address) as peer:
        assert peer.read_frame().opcode == PING
        assert live.result.result(WAIT_SECONDS) == (1006, True)


def test_frames_in_the_segment_of_the_request_are_kept(loop: str) -> None:
    with Live(echo, loop) as live:
        stream = frame(TEXT, b"eager") + frame(BINARY, b"x" * 1000)
        with Peer.connect(live.address, then=stream[:20]) as peer:
            peer.write(stream[20:])
            assert [answer.payload for answer in peer.read_frames(2)] == [b"eager", b"x" * 1000]


def test_the_response_gives_the_socket(loop: str) -> None:
    async def handle(session: WebSocketResponse) -> tuple[object, object]:
        sock = session.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        return sock.getpeername(), sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)

    with Live(handle, loop) as live, Peer.connect(live.address) as peer:
        assert live.result.result(WAIT_SECONDS) == (peer.sock.getsockname(), 77)
