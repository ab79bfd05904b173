"""`ReactorThread`: a reactor beside an application: called into through futures, drained, and what ends it is told."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

from servers import EchoRecorder, Silent
from uringws import (
    Connection,
    Handler,
    Message,
    Options,
    ReactorStateError,
    ReactorThread,
    SenderFull,
    handler_fn,
)
from uringws.backend import Backend
from wire import TEXT, Frame, Peer, frame

WAIT = 10.0


@pytest.fixture
def server(backend: Backend, recorder: EchoRecorder) -> Iterator[ReactorThread]:
    """A started one, which listens."""
    with ReactorThread(recorder, backend=backend) as server:
        server.call(server.reactor.bind, "127.0.0.1", 0).result(WAIT)
        yield server


def address_of(server: ReactorThread) -> Any:
    return server.call(lambda: server.reactor.addresses[0]).result(WAIT)


def test_it_serves_and_drains_at_the_end(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend, name="chat") as server:
        host, port = server.call(server.reactor.bind, "127.0.0.1", 0).result(WAIT)
        peer = Peer.connect((host, port))
        peer.write(frame(TEXT, b"hello"))
        assert peer.read_frame() == Frame(TEXT, b"hello")
        assert server.call(threading.current_thread).result(WAIT).name == "chat"
        threading.Timer(0.05, peer.close).start()
    assert not server.is_alive
    assert recorder.of("close")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))


def test_the_reactor_may_be_bound_before_the_start(backend: Backend, recorder: EchoRecorder) -> None:
    server = ReactorThread(recorder, backend=backend)
    address = server.reactor.bind("127.0.0.1", 0)
    early = server.call(lambda: "called once it runs")
    assert not early.done()
    assert server.start() is server
    assert early.result(WAIT) == "called once it runs"
    with Peer.connect(address) as peer:
        assert peer.shake_hands() == 1000
    server.drain()
    server.join(WAIT)
    server.join()


def test_a_call_returns_and_raises_through_its_future_in_the_order_of_the_calls(server: ReactorThread) -> None:
    called: list[int] = []
    futures: list[Future[int]] = [server.call(lambda number: called.append(number) or number, n) for n in range(50)]  # type: ignore[func-returns-value]
    assert [future.result(WAIT) for future in futures] == called == list(range(50))

    def fail() -> None:
        raise LookupError("of the call")

    with pytest.raises(LookupError, match="of the call"):
        server.call(fail).result(WAIT)
    assert server.is_alive


def test_a_cancelled_call_is_not_made(server: ReactorThread) -> None:
    may_go_on = threading.Event()
    called: list[int] = []
    blocking = server.call(may_go_on.wait, WAIT)
    waiting = server.call(called.append, 1)
    assert waiting.cancel()
    may_go_on.set()
    assert blocking.result(WAIT)
    server.call(called.append, 2).result(WAIT)
    assert called == [2]
    with pytest.raises(CancelledError):
        waiting.result(0)


def test_a_call_from_the_reactors_own_thread_is_made_at_once(server: ReactorThread) -> None:
    def outer() -> tuple[int, str]:
        inner = server.call(threading.get_ident)
        failing = server.call(int, "no number")
        return inner.result(0), str(failing.exception(0))

    ident, error = server.call(outer).result(WAIT)
    assert ident != threading.get_ident()
    assert "no number" in error


def test_a_coroutine_may_await_a_call(server: ReactorThread) -> None:
    async def main() -> int:
        return await asyncio.wrap_future(server.call(lambda: 42))

    assert asyncio.run(main()) == 42


def test_a_socket_may_be_handed_over(server: ReactorThread, recorder: EchoRecorder) -> None:
    ours, theirs = socket.socketpair()
    identity = server.call(server.reactor.add_session, ours).result(WAIT)
    with Peer(theirs) as peer:
        peer.write(frame(TEXT, b"adopted"))
        assert peer.read_frame() == Frame(TEXT, b"adopted")
        assert recorder.of("message")[0][1] == identity
        assert peer.shake_hands() == 1000


def test_a_full_queue_refuses_calls_at_once(backend: Backend) -> None:
    with ReactorThread(Silent(), Options(sender_commands_max=3), backend=backend) as server:
        may_go_on, began = threading.Event(), threading.Event()

        def block() -> None:
            began.set()
            may_go_on.wait(WAIT)

        server.call(block)
        assert began.wait(WAIT)
        for _ in range(3):
            server.call(int)
        with pytest.raises(SenderFull, match="3 commands wait"):
            server.call(int)
        may_go_on.set()


class Exits(Handler):
    def on_message(self, conn: Connection, message: Message) -> None:
        raise SystemExit(3)


def test_an_exception_that_ends_the_reactor_reaches_the_caller(backend: Backend) -> None:
    server = ReactorThread(Exits(), backend=backend)
    address = server.reactor.bind("127.0.0.1", 0)
    server.start()
    with Peer.connect(address) as peer:
        peer.write(frame(TEXT, b"exit"))
        for _ in range(2):
            with pytest.raises(SystemExit) as caught:
                server.join(WAIT)
            assert caught.value.code == 3
    with pytest.raises(ReactorStateError) as refused:
        server.call(int)
    assert refused.value.__cause__ is caught.value
    server.drain()


def test_calls_that_are_not_made_any_more_fail(backend: Backend) -> None:
    server = ReactorThread(Silent(), backend=backend).start()
    may_go_on, began = threading.Event(), threading.Event()

    def block() -> None:
        began.set()
        may_go_on.wait(WAIT)
        server.stop()
        raise SystemExit

    server.call(block)
    assert began.wait(WAIT)
    waiting = server.call(int)
    may_go_on.set()
    with pytest.raises(ReactorStateError):
        waiting.result(WAIT)
    with pytest.raises(SystemExit):
        server.join(WAIT)


def test_start_raises_the_error_that_prevents_the_start(backend: Backend) -> None:
    server = ReactorThread(Silent(), backend=backend)
    server.reactor.close()
    with pytest.raises(ReactorStateError):
        server.start()
    with pytest.raises(ReactorStateError):
        server.join(WAIT)


def test_an_exception_in_the_block_cuts_the_connections(backend: Backend, recorder: EchoRecorder) -> None:
    peers: list[Peer] = []

    def serve() -> None:
        with ReactorThread(recorder, backend=backend) as server:
            peers.append(Peer.connect(server.call(server.reactor.bind, "127.0.0.1", 0).result(WAIT)))
            raise LookupError("of the block")

    with pytest.raises(LookupError, match="of the block"):
        serve()
    assert recorder.of("close")[0][2] == 1006
    peers[0].close()


def test_join_is_bounded(server: ReactorThread) -> None:
    with pytest.raises(TimeoutError, match=r"drain\(\) or stop\(\)"):
        server.join(0.01)


async def coroutine_function() -> None: ...


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda server: server.call(None), TypeError, "NoneType"),
        (lambda server: server.call(coroutine_function), TypeError, "async def"),
        (lambda server: server.start(), ReactorStateError, "once"),
        (lambda server: server.drain(-1), ValueError, "-1"),
        (lambda server: server.drain(code=7), ValueError, "7"),
        (lambda server: server.join("soon"), TypeError, "str"),
    ],
)
def test_misuse_is_refused(
    server: ReactorThread, act: Callable[[ReactorThread], object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        act(server)
    assert server.call(int).result(WAIT) == 0


def test_a_thread_that_was_never_started_cannot_be_joined(backend: Backend) -> None:
    server = ReactorThread(Silent(), backend=backend)
    with pytest.raises(ReactorStateError, match="never started"):
        server.join()
    server.reactor.close()


async def coroutine_on_message(conn: Connection, message: Message) -> None: ...


def test_a_handler_of_the_wrong_shape_is_refused_at_once(backend: Backend) -> None:
    with pytest.raises(TypeError, match="async def"):
        ReactorThread(handler_fn(coroutine_on_message), backend=backend)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_nothing_is_left_at_the_end(backend: Backend) -> None:
    threads, descriptors = threading.active_count(), open_descriptors()
    for _ in range(3):
        with ReactorThread(Silent(), backend=backend) as server:
            server.call(server.reactor.bind, "127.0.0.1", 0).result(WAIT)
    assert threading.active_count() == threads
    gc.collect()
    assert open_descriptors() == descriptors
