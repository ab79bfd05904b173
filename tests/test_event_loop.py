"""The event loop of uringws.asyncio: everything of asyncio works on it, beside sessions and in one thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import uringws.asyncio
from coroutines import address_of, hold
from servers import missing
from uringws import Options, ReactorStateError, WrongThread
from uringws.asyncio import EventLoop, Server, new_event_loop, serve
from uringws.asyncio.classes import CLOSED
from uringws.backend import Backend
from wire import Peer


@pytest.fixture
def loop(backend: Backend) -> Iterator[EventLoop]:
    """A loop that is closed afterwards."""
    loop = new_event_loop(backend=backend)
    yield loop
    loop.close()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# ---- asyncio


def test_run_returns_the_coroutines_result_and_raises_its_exception() -> None:
    async def main() -> str:
        assert isinstance(asyncio.get_running_loop(), EventLoop)
        await asyncio.sleep(0.01)
        return "result"

    async def fail() -> None:
        raise LookupError("of main")

    assert uringws.asyncio.run(main()) == "result"
    with pytest.raises(LookupError, match="of main"):
        uringws.asyncio.run(fail(), debug=True)


def test_timers_are_never_early_and_come_in_order(loop: EventLoop) -> None:
    moments: list[tuple[float, float]] = []

    def note(due: float) -> None:
        moments.append((due, loop.time()))

    async def main() -> None:
        start = loop.time()
        for seconds in (0.05, 0.0004, 0.02, 0, 0.0301):
            loop.call_later(seconds, note, start + seconds)
        await asyncio.sleep(0.1)

    loop.run_until_complete(main())
    assert [due for due, _ in moments] == sorted(due for due, _ in moments)
    assert len(moments) == 5
    assert all(moment >= due for due, moment in moments)


def test_a_waiting_loop_does_not_spin(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    take_turn = loop._driver.take_turn

    def counted(*arguments: Any) -> Any:
        nonlocal turns
        turns += 1
        return take_turn(*arguments)

    monkeypatch.setattr(loop._driver, "take_turn", counted)
    loop.run_until_complete(asyncio.sleep(0.2))
    assert turns <= 5


def test_subprocesses_signals_threads_and_names_work(loop: EventLoop) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input()[::-1])", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate(b"stressed\n")
        assert output == b"desserts\n"
        assert process.returncode == 0
        rung = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, rung.set)
        loop.call_later(0.01, os.kill, os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(rung.wait(), 10)
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()
        found = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        assert found[0][4][1] == 80

    loop.run_until_complete(main())


def test_servers_and_clients_of_asyncio_work_with_more_than_a_buffer_of_bytes(loop: EventLoop) -> None:
    size = 3 << 20

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(size))
        await writer.drain()
        writer.close()

    async def main() -> bytes:
        async with await asyncio.start_server(echo, "127.0.0.1", 0, limit=2 * size) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=2 * size)
            writer.write(bytes(range(256)) * (size // 256))
            answer = await reader.read(-1)
            writer.close()
            return answer

    assert loop.run_until_complete(main()) == bytes(range(256)) * (size // 256)


def test_the_client_of_aiohttp_works(loop: EventLoop) -> None:
    try:
        import aiohttp  # noqa: PLC0415 - optional
        from aiohttp import web  # noqa: PLC0415
    except ImportError:
        missing("aiohttp is not installed")

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=(await request.text())[::-1])

    async def main() -> list[str]:
        application = web.Application()
        application.router.add_post("/", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        async with aiohttp.ClientSession() as session:

            async def ask(text: str) -> str:
                async with session.post(f"http://{host}:{port}/", data=text) as response:
                    return await response.text()

            answers = await asyncio.gather(*(ask(f"text {number}") for number in range(20)))
        await runner.cleanup()
        return list(answers)

    assert loop.run_until_complete(main()) == [f"text {number}"[::-1] for number in range(20)]


def test_other_threads_wake_a_waiting_loop(loop: EventLoop) -> None:
    async def main() -> float:
        woken: asyncio.Future[None] = loop.create_future()
        threading.Timer(0.05, loop.call_soon_threadsafe, (woken.set_result, None)).start()
        start = loop.time()
        await asyncio.wait_for(woken, 20)
        return loop.time() - start

    assert 0.03 < loop.run_until_complete(main()) < 15


def test_stop_ends_run_forever_and_the_loop_runs_again(loop: EventLoop) -> None:
    for _ in range(3):
        loop.call_later(0.01, loop.stop)
        loop.run_forever()
    assert loop.run_until_complete(asyncio.sleep(0, "again")) == "again"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_propagates_out_of_the_loop(loop: EventLoop, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    reading, writing = os.pipe()
    os.write(writing, b"x")
    watch = loop.reactor.watch(reading, fail)
    with pytest.raises(error):
        loop.run_forever()
    assert not loop.is_running()
    watch.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    os.close(reading)
    os.close(writing)


def test_ctrl_c_cancels_the_main_task(backend: Backend) -> None:
    program = f"""
import asyncio, os, signal, threading
import uringws.asyncio

async def main():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise

try:
    with asyncio.Runner(loop_factory=lambda: uringws.asyncio.new_event_loop(backend={backend!r})) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=25, check=False)
    assert run.stdout.split() == ["cancelled", "interrupted"], run.stderr
    assert run.stderr == ""


# ---- the loop's reactor


def test_failures_of_callbacks_go_to_the_exception_handler(loop: EventLoop) -> None:
    contexts: list[dict[str, Any]] = []

    def fail() -> None:
        raise ValueError("of the callback")

    async def main() -> None:
        loop.reactor.call_later(0, fail)
        reading, writing = os.pipe()
        os.write(writing, b"x")
        watch = loop.reactor.watch(reading, fail)
        with loop.reactor.sender() as sender:
            sender.call(fail)
            while len(contexts) < 3:
                await asyncio.sleep(0.001)
        watch.cancel()
        os.close(reading)
        os.close(writing)

    loop.set_exception_handler(lambda _, context: contexts.append(context))
    loop.run_until_complete(main())
    assert all(str(context["exception"]) == "of the callback" for context in contexts)
    messages = " ".join(context["message"] for context in contexts)
    assert all(what in messages for what in ("timer", "watch", "command"))


def test_the_loop_takes_the_turns_of_its_reactor(loop: EventLoop) -> None:
    async def main() -> None:
        for function in (loop.reactor.run, loop.reactor.run_once, loop.reactor.close):
            with pytest.raises(ReactorStateError):
                function()

    loop.run_until_complete(main())
    assert loop.run_until_complete(asyncio.sleep(0, 1)) == 1


def test_to_stop_the_reactor_stops_the_loop(loop: EventLoop) -> None:
    threading.Timer(0.05, loop.reactor.stop).start()
    loop.run_forever()
    loop.call_soon(loop.reactor.stop)
    loop.run_forever()
    run_for_a_moment(loop)


def test_options_are_those_of_the_reactor(backend: Backend) -> None:
    loop = new_event_loop(backend=backend, options=Options(receive_buffers=16))
    assert loop.reactor.options.receive_buffers == 16
    assert loop.reactor.backend == backend
    loop.close()
    with pytest.raises(ValueError, match="backend"):
        new_event_loop(backend="poll")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Options"):
        new_event_loop(options={})  # type: ignore[arg-type]


def test_close_gives_everything_back(backend: Backend) -> None:
    before = open_descriptors()
    for used in (False, True):
        loop = new_event_loop(backend=backend)
        assert open_descriptors() > before
        if used:
            loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        loop.close()
        assert loop.is_closed()
        assert open_descriptors() == before
        with pytest.raises(RuntimeError, match="closed"):
            loop.run_forever()


def test_close_ends_connections_that_coroutines_wait_for_without_a_word(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    loop = new_event_loop(backend=backend)
    waits: list[asyncio.Task[Any]] = []

    async def begin() -> tuple[Server, Peer]:
        server = await serve(hold, "127.0.0.1", 0)
        peer = await loop.run_in_executor(None, Peer.connect, address_of(server))
        while not server.connections:
            await asyncio.sleep(0.001)
        (connection,) = server.connections
        waits.append(loop.create_task(connection.recv()))
        server.server.close()  # its socket; the connection stays
        await asyncio.sleep(0.001)
        return server, peer

    server, peer = loop.run_until_complete(begin())
    (connection,) = server.connections
    loop.close()
    with peer:
        assert connection.state is CLOSED
        assert not caplog.records
        with contextlib.suppress(ConnectionResetError):
            assert peer.sock.recv(1) == b""


def test_an_unclosed_loop_is_reported_and_freed(backend: Backend) -> None:
    before = open_descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        new_event_loop(backend=backend)
        gc.collect()
    assert any("unclosed event loop" in str(warning.message) for warning in caught)
    assert open_descriptors() == before


def in_a_thread(function: Callable[[], object]) -> BaseException | None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - returned
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught[0] if caught else None


def run_for_a_moment(loop: EventLoop) -> None:
    moment = asyncio.sleep(0.001)
    try:
        loop.run_until_complete(moment)
    finally:
        moment.close()


def test_a_loop_belongs_to_the_thread_that_first_ran_it(loop: EventLoop) -> None:
    run_for_a_moment(loop)
    assert isinstance(in_a_thread(lambda: loop.run_forever()), WrongThread)  # noqa: PLW0108 - no bound method
    assert isinstance(in_a_thread(loop.close), WrongThread)
    assert not loop.is_closed()
    run_for_a_moment(loop)


def test_a_loop_may_be_made_in_one_thread_run_in_another_and_closed_in_the_first(loop: EventLoop) -> None:
    assert in_a_thread(lambda: run_for_a_moment(loop)) is None
    loop.close()
    assert loop.is_closed()


def test_a_forked_child_gets_an_error_with_the_remedy(loop: EventLoop) -> None:
    run_for_a_moment(loop)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        text = "nothing was raised"
        try:
            loop.run_forever()
        except BaseException as error:  # noqa: BLE001 - reported to the parent
            text = str(error)
        os.write(writing, text.encode())
        os._exit(0)
    assert os.read(reading, 1000) == b"the reactor belongs to the parent process: make one after the fork"
    os.waitpid(child, 0)
    run_for_a_moment(loop)
    os.close(reading)
    os.close(writing)


def test_new_loops_work_in_a_forked_child(backend: Backend) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            loop = new_event_loop(backend=backend)
            run_for_a_moment(loop)
            loop.close()
            status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
