"""Sockets that another HTTP server upgraded: their owner, their kinds, and bytes that the server read too far.

First by hand, with socket pairs and a reactor in the test's own thread; then with aiohttp and uvicorn as they are,
which answer HTTP in one thread while the reactor serves the sessions in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from aiohttp import web

from servers import EchoRecorder, ReactorThread, no_listener, run_until, tcp_pair
from uringws import Connection, Options, Reactor, Sender
from uringws.backend import Backend
from wire import BINARY, PING, PONG, TEXT, Frame, Peer, accept_for, close_frame, cuts, frame, http

QUIET = Options(ping_interval_seconds=None)
SMALL_POOL = Options(
    receive_buffers=4, receive_buffer_bytes=1024, session_turn_bytes_max=4096, ping_interval_seconds=None
)


@pytest.fixture
def reactor(backend: Backend, recorder: EchoRecorder) -> Iterator[Reactor]:
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        yield reactor


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Peer]]:
    """The end to hand over, and the client's."""
    ours, theirs = socket.socketpair()
    with ours, Peer(theirs) as peer:
        yield ours, peer


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def converse(reactor: Reactor, peer: Peer) -> None:
    """One message there and back, then the close handshake, with the reactor turned by hand."""
    answers: Future[tuple[Frame, int | None]] = Future()

    def client() -> None:
        peer.send(TEXT, b"hello")
        answers.set_result((peer.read_frame(), peer.shake_hands()))

    thread = threading.Thread(target=client)
    thread.start()
    run_until(reactor, answers.done)
    thread.join()
    assert answers.result() == (Frame(TEXT, b"hello"), 1000)


# Ownership


def test_a_socket_object_is_detached(
    reactor: Reactor, recorder: EchoRecorder, pair: tuple[socket.socket, Peer]
) -> None:
    ours, peer = pair
    fd = ours.fileno()
    reactor.add_session(ours)
    assert ours.fileno() == -1
    converse(reactor, peer)
    peer.close()
    run_until(reactor, lambda: not is_open(fd))
    assert [event[0] for event in recorder.events] == ["open", "message", "close"]


def test_a_descriptor_is_adopted(reactor: Reactor, pair: tuple[socket.socket, Peer]) -> None:
    ours, peer = pair
    fd = ours.detach()
    reactor.add_session(fd)
    converse(reactor, peer)
    peer.close()
    run_until(reactor, lambda: not is_open(fd))


def test_tcp_and_blocking_sockets_are_as_good(reactor: Reactor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Peer.dial(listener.getsockname()) as peer:
        accepted, _ = listener.accept()
        accepted.settimeout(None)
        reactor.add_session(accepted)
        converse(reactor, peer)


def test_closing_the_reactor_closes_adopted_sockets(
    backend: Backend, recorder: EchoRecorder, pair: tuple[socket.socket, Peer]
) -> None:
    ours, _ = pair
    fd = ours.fileno()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
    assert not is_open(fd)
    assert [event[0] for event in recorder.events] in ([], ["open", "close"])


def tls_socket(stack: ExitStack) -> socket.socket:
    plain, other = socket.socketpair()
    stack.enter_context(other)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname="localhost")


def datagram_socket(stack: ExitStack) -> socket.socket:
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    stack.enter_context(other)
    return ours


def listening_socket(_: ExitStack) -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("make", [tls_socket, datagram_socket, listening_socket])
@pytest.mark.parametrize("through", ["reactor", "sender"])
def test_a_socket_that_cannot_be_a_session_is_refused_and_stays_the_callers(
    reactor: Reactor,
    recorder: EchoRecorder,
    make: Callable[[ExitStack], socket.socket],
    through: str,
) -> None:
    with ExitStack() as stack:
        unfit = stack.enter_context(make(stack))
        fd = unfit.fileno()
        target: Reactor | Sender = reactor if through == "reactor" else stack.enter_context(reactor.sender())
        error, text = (TypeError, "TLS") if make is tls_socket else ((ValueError, OSError), "stream|not connected")
        with pytest.raises(error, match=text):
            target.add_session(unfit)
        assert unfit.fileno() == fd
        assert is_open(fd)
    assert recorder.events == []


def test_a_descriptor_of_another_kind_is_refused_and_stays_the_callers(reactor: Reactor) -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises((OSError, ValueError)):
            reactor.add_session(reading)
        assert is_open(reading)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            with pytest.raises((OSError, ValueError)):
                reactor.add_session(reading)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        with pytest.raises(TypeError):
            reactor.add_session("socket")  # type: ignore[arg-type]
        with pytest.raises((OSError, ValueError)):
            reactor.add_session(-1)
    finally:
        os.close(reading)
        os.close(writing)


# The prefix


def test_on_open_comes_once_with_its_data_and_before_any_message(
    backend: Backend, pair: tuple[socket.socket, Peer]
) -> None:
    class Greeter(EchoRecorder):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            conn.send_text(f"welcome {conn.data}")

    recorder = Greeter()
    ours, peer = pair
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.add_session_with_prefix(ours, frame(TEXT, b"eager"), subprotocol="chat", data="Ada")
        run_until(reactor, lambda: recorder.of("message"))
        reactor.run_once(0)
        assert peer.read_frames(2) == [Frame(TEXT, b"welcome Ada"), Frame(TEXT, b"eager")]
    assert [event[0] for event in recorder.events[:2]] == ["open", "message"]
    assert len(recorder.of("open")) == 1


def test_frames_may_be_cut_anywhere_between_prefix_and_socket(reactor: Reactor, recorder: EchoRecorder) -> None:
    stream = b"".join(
        (
            frame(TEXT, "né".encode(), fin=False),
            frame(PING, b"ping"),
            frame(0, b"!" * 10),
            frame(BINARY, b"x" * 130),
            frame(TEXT, b""),
        )
    )
    answers = [
        Frame(PONG, b"ping"),
        Frame(TEXT, "né".encode() + b"!" * 10),
        Frame(BINARY, b"x" * 130),
        Frame(TEXT, b""),
    ]
    with ExitStack() as stack:
        peers = []
        for prefix, rest in cuts(stream):
            ours, theirs = socket.socketpair()
            peer = stack.enter_context(Peer(theirs))
            reactor.add_session_with_prefix(ours, prefix)
            peer.write(rest)
            peers.append(peer)
        run_until(reactor, lambda: len(recorder.of("message")) == 3 * len(peers))
        reactor.run_once(0)
        for peer in peers:
            assert peer.read_frames(4) == answers
            assert peer.quiet(0)
    assert len(recorder.of("open")) == len(peers) == len(stream) + 1


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_prefix_may_be_larger_than_the_pool(
    backend: Backend, recorder: EchoRecorder, pair: tuple[socket.socket, Peer], kind: Callable[[bytes], Any]
) -> None:
    ours, peer = pair
    payloads = [bytes([number]) * (number * 37) for number in range(100)]
    stream = b"".join(frame(BINARY, payload) for payload in payloads) + frame(BINARY, b"z" * 50_000)
    prefix = kind(stream[:-20])
    with Reactor(recorder, SMALL_POOL, backend=backend) as reactor:
        reactor.add_session_with_prefix(ours, prefix)
        if isinstance(prefix, bytearray):
            prefix[:] = bytes(len(prefix))  # the caller's again as soon as the call returned
        peer.write(stream[-20:])
        received: Future[list[Frame]] = Future()
        thread = threading.Thread(target=lambda: received.set_result(peer.read_frames(101)))
        thread.start()
        run_until(reactor, received.done)
        thread.join()
    assert received.result() == [Frame(BINARY, payload) for payload in payloads] + [Frame(BINARY, b"z" * 50_000)]


def test_a_prefix_that_breaks_the_protocol_closes_the_session(
    reactor: Reactor, recorder: EchoRecorder, pair: tuple[socket.socket, Peer]
) -> None:
    ours, peer = pair
    reactor.add_session_with_prefix(ours, frame(TEXT, b"fine") + frame(TEXT, b"bare", key=None))
    peer.sock.shutdown(socket.SHUT_WR)
    reactor.run()
    assert peer.read_frame() == Frame(TEXT, b"fine")
    assert peer.read_close() == 1002
    peer.read_eof()
    assert [event[0] for event in recorder.events] == ["open", "message", "close"]


def test_a_prefix_may_hold_the_whole_session(
    reactor: Reactor, recorder: EchoRecorder, pair: tuple[socket.socket, Peer]
) -> None:
    ours, peer = pair
    reactor.add_session_with_prefix(ours, frame(TEXT, b"hello") + close_frame(1000, "bye"))
    peer.sock.shutdown(socket.SHUT_WR)
    reactor.run()
    assert peer.read_frame() == Frame(TEXT, b"hello")
    assert peer.read_close() == 1000
    peer.read_eof()
    assert [event[0] for event in recorder.events] == ["open", "message", "close"]


# From other threads


def test_a_sender_hands_over_from_other_threads(backend: Backend, recorder: EchoRecorder) -> None:
    def client(number: int, failures: list[BaseException]) -> None:
        try:
            ours, theirs = socket.socketpair()
            payload = bytes([number]) * 3000
            stream = frame(BINARY, payload)
            with Peer(theirs) as peer:
                server.sender.add_session_with_prefix(ours, stream[:1000])
                assert ours.fileno() == -1
                peer.write(stream[1000:])
                assert peer.read_frame() == Frame(BINARY, payload)
                assert peer.shake_hands() == 1000
        except BaseException as error:  # noqa: BLE001 - asserted on by the test's own thread
            failures.append(error)

    failures: list[BaseException] = []
    with ReactorThread(recorder, backend=backend, prepare=no_listener) as server:
        threads = [threading.Thread(target=client, args=(number, failures)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        recorder.wait_for("close", 20)
    assert failures == []
    assert len(recorder.of("open")) == 20


# Real HTTP servers in the same process


def switching_protocols(key: str) -> bytes:
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    return "\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept_for(key)}", "", ""]).encode()


def hand_over(transport: asyncio.Transport, leftover: Callable[[], bytes], sender: Sender, data: object) -> None:
    """Give the transport's socket to the reactor: asyncio closes its own descriptor, the duplicate lives on."""
    transport.pause_reading()
    fd = os.dup(transport.get_extra_info("socket").fileno())
    try:
        sender.add_session_with_prefix(fd, leftover(), data=data)
    except BaseException:
        os.close(fd)
        raise
    finally:
        transport.abort()


class Leftover:
    """A payload parser for aiohttp: keeps the bytes that its HTTP parser had read past the request."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        pass


@asynccontextmanager
async def aiohttp_server(sender: Sender) -> AsyncIterator[int]:
    async def upgrade(request: web.Request) -> web.Response:
        transport, leftover = request.transport, Leftover()
        assert isinstance(transport, asyncio.Transport)
        transport.write(switching_protocols(request.headers["Sec-WebSocket-Key"]))
        request.protocol.set_parser(leftover)  # type: ignore[arg-type]
        hand_over(transport, lambda: leftover.data, sender, request.path)
        return web.Response()  # written to a transport that is gone

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="plain HTTP")

    app = web.Application()
    app.add_routes([web.get("/ws", upgrade), web.get("/", hello)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def uvicorn_server(sender: Sender) -> AsyncIterator[int]:
    class HandOver(asyncio.Protocol):
        """Takes the place of uvicorn's own WebSocket protocol, which gets the request's bytes again."""

        def __init__(self, **uvicorns: Any) -> None:
            pass

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self._transport = transport

        def data_received(self, data: bytes) -> None:
            head, _, leftover = data.partition(b"\r\n\r\n")
            fields = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:])
            key = next(value for name, value in fields.items() if name.lower() == "sec-websocket-key")
            self._transport.write(switching_protocols(key))
            hand_over(self._transport, lambda: leftover, sender, head.split(b" ")[1].decode())

    async def hello(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"plain HTTP"})

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(hello, ws=HandOver, lifespan="off", log_config=None, http="httptools")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@contextlib.contextmanager
def in_thread(serve: AbstractAsyncContextManager[int]) -> Iterator[int]:
    """Run an asyncio server in a thread of its own; the port it listens on."""
    port: Future[int] = Future()
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def main() -> None:
        try:
            async with serve as number:
                port.set_result(number)
                await done.wait()
        except BaseException as error:
            if port.done():
                raise
            port.set_exception(error)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        thread = threading.Thread(target=lambda: runner.run(main()))
        thread.start()
        try:
            yield port.result(10)
        finally:
            loop.call_soon_threadsafe(done.set)
            thread.join(10)


Serve = Callable[[Sender], AbstractAsyncContextManager[int]]


@pytest.mark.parametrize("serve", [aiohttp_server, uvicorn_server])
def test_an_http_server_upgrades_and_the_reactor_takes_over(
    backend: Backend, recorder: EchoRecorder, serve: Serve
) -> None:
    with (
        ReactorThread(recorder, backend=backend, prepare=no_listener) as server,
        in_thread(serve(server.sender)) as port,
    ):
        for number in range(5):
            with Peer.connect(("127.0.0.1", port), "/ws") as peer:
                recorder.wait_for("open", number + 1)
                for payload in (b"", b"x" * 125, b"y" * 70_000):
                    peer.send(BINARY, payload)
                    assert peer.read_frame() == Frame(BINARY, payload)
                assert peer.shake_hands() == 1000
        response = http(("127.0.0.1", port), b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (response.status, response.body) == (200, b"plain HTTP")
        recorder.wait_for("close", 5)
    assert {conn.data for conn in recorder.connections.values()} == {"/ws"}


def test_bytes_that_the_http_server_read_too_far_are_not_lost(backend: Backend, recorder: EchoRecorder) -> None:
    """With aiohttp; uvicorn drops what came in one segment with the request."""
    stream = frame(TEXT, b"early") + frame(BINARY, b"x" * 200)
    with (
        ReactorThread(recorder, backend=backend, prepare=no_listener) as server,
        in_thread(aiohttp_server(server.sender)) as port,
    ):
        for prefix, rest in list(cuts(stream))[::5]:
            with Peer.connect(("127.0.0.1", port), "/ws", then=prefix) as peer:
                peer.write(rest)
                assert peer.read_frames(2) == [Frame(TEXT, b"early"), Frame(BINARY, b"x" * 200)]
                assert peer.shake_hands() == 1000


def test_the_subprotocol_is_the_connections_and_data_stays_its_own(backend: Backend) -> None:
    ours, theirs = socket.socketpair()
    handler = EchoRecorder()
    with theirs, Reactor(handler, backend=backend) as reactor:
        reactor.add_session(ours, subprotocol="chat")
        (connection,) = handler.connections.values()
        assert (connection.subprotocol, connection.data) == ("chat", None)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_tcp_nodelay_is_set_where_the_options_say_so(backend: Backend, *, wanted: bool, before: bool) -> None:
    """False leaves the socket's options as its first owner set them."""
    ours, theirs = tcp_pair()
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, before)
    options = Options(tcp_nodelay=wanted, ping_interval_seconds=None)
    with theirs, ours.dup() as copy, Reactor(EchoRecorder(), options, backend=backend) as reactor:
        reactor.add_session(ours)
        assert bool(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == (wanted or before)
