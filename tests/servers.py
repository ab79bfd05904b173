"""Servers under test, in the two forms tests need: a process as a user starts it, a reactor in a thread to be asked."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import pytest

from uringws import Connection, Handler, HandlerProtocol, Message, Options, Reactor, Sender, Stats
from uringws.backend import Backend
from wire import Address, Peer

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
BACKENDS: tuple[Backend, ...] = ("io_uring", "epoll")
MODES = ("c", "handler")

START_SECONDS = 10.0
STOP_SECONDS = 10.0


def missing(what: str) -> NoReturn:
    """Skip because a tool or io_uring is missing; fail instead if URINGWS_TESTS_SKIP_NOTHING=1 is set."""
    if os.environ.get("URINGWS_TESTS_SKIP_NOTHING") == "1":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def require_tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not installed")
    return path


class ServerProcess:
    """A server in a process of its own, ready when it has printed ``listening on ws://host:port (backend)``.

    Leaving the context interrupts it as Ctrl-C would, and holds it to what every program of this project promises:
    it exits with 0 and prints no traceback.
    """

    def __init__(self, *arguments: str | Path, **options: Any) -> None:
        self.arguments = [sys.executable, *map(str, arguments)]
        self._options = options
        self.lines: list[str] = []
        self.url = self.backend = ""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self.arguments,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            **self._options,
        )
        listening = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(listening,), daemon=True)
        self._reader.start()
        if not listening.wait(START_SECONDS) or not self.url:
            self._kill()
            raise AssertionError(f"no server came up:\n{self.output}")
        return self

    def _read(self, listening: threading.Event) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if not self.url and (found := re.search(r"listening on (wss?://\S+) \((\w+)", line)):
                self.url, self.backend = found.groups()
                listening.set()
        listening.set()

    def __exit__(self, exc_type: object, *exc: object) -> None:
        status = self.stop()
        if exc_type is None:
            assert status == 0, f"exit status {status}:\n{self.output}"
            assert "Traceback" not in self.output, self.output

    def stop(self, number: int = signal.SIGINT) -> int:
        """Signal it, wait for its end, and return its exit status; killing it is a failure."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            raise AssertionError(
                f"still running {STOP_SECONDS:.0f} s after {signal.Signals(number).name}:\n{self.output}"
            ) from None
        self._reader.join(STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_for_line(self, start: str) -> str:
        """The line that begins so, waited for."""
        deadline = time.monotonic() + START_SECONDS
        while not (found := [line for line in self.lines if line.startswith(start)]):
            assert time.monotonic() < deadline, f"no line begins with {start!r}:\n{self.output}"
            time.sleep(0.01)
        return found[0]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.partition("://")[2].rstrip("/").rpartition(":")
        return host.strip("[]"), int(port)


def echo_process(backend: Backend, mode: str) -> ServerProcess:
    """The echo example as the README starts it, on a port of the kernel's choice."""
    return ServerProcess("examples/echo_uring.py", "--port", "0", "--backend", backend, "--mode", mode)


class ReactorThread:
    """A reactor running in its own thread, because a ring belongs to the thread that made it.

    ``prepare`` runs there before the loop, in place of binding to a port of the kernel's choice; ``run`` replaces
    ``Reactor.run``. Leaving the context stops the reactor and raises whatever ended its thread.
    """

    def __init__(
        self,
        handler: HandlerProtocol,
        *,
        backend: Backend,
        options: Options | None = None,
        prepare: Callable[[Reactor], object] = lambda reactor: reactor.bind("127.0.0.1", 0),
        run: Callable[[Reactor], object] = Reactor.run,
    ) -> None:
        self._handler, self._backend, self._options = handler, backend, options
        self._prepare, self._run = prepare, run
        self._ready: Future[tuple[Reactor, Sender]] = Future()
        self._thread = threading.Thread(target=self._main, name=f"reactor-{backend}", daemon=True)
        self.ended: BaseException | None = None

    def _main(self) -> None:
        try:
            options = self._options or Options()
            with Reactor(self._handler, options, backend=self._backend) as reactor:
                self._prepare(reactor)
                self._ready.set_result((reactor, reactor.sender()))
                self._run(reactor)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asks
            if self._ready.done():
                self.ended = error
            else:
                self._ready.set_exception(error)

    def __enter__(self) -> Self:
        self._thread.start()
        self.reactor, self.sender = self._ready.result(START_SECONDS)
        self.addresses = list(self.reactor.addresses)
        return self

    def __exit__(self, exc_type: object, *exc: object) -> None:
        self.sender.release()
        self.reactor.stop()
        self.join()
        if exc_type is None and self.ended is not None:
            raise self.ended

    def join(self) -> None:
        self._thread.join(STOP_SECONDS)
        assert not self._thread.is_alive(), "the reactor did not stop"

    def is_running(self) -> bool:
        return self._thread.is_alive()

    @property
    def address(self) -> Address:
        return self.addresses[0]

    def ask(self, function: Callable[[], T]) -> T:
        """Run ``function`` on the reactor's thread and return what it returned.

        It runs one turn later than the command arrives, because only the next turn releases the memory of a turn's
        messages.
        """
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised again by result()
                answer.set_exception(error)

        self.sender.call(lambda: self.sender.call(run))
        return answer.result(STOP_SECONDS)


def settle(server: ReactorThread) -> Stats:
    """Wait until no session is left in any state, and check that the reactor holds nothing for them."""
    deadline = time.monotonic() + STOP_SECONDS
    while (stats := server.ask(server.reactor.stats)).sessions or stats.handshakes:
        assert time.monotonic() < deadline, stats
        time.sleep(0.002)
    assert stats.pool_in_use == stats.memory_bytes == stats.queued_bytes == 0
    return stats


def no_listener(_: Reactor) -> None:
    """For ``ReactorThread.prepare``: the sessions are to be handed over."""


def run_until(reactor: Reactor, condition: Callable[[], object], *, timeout: float = 0.05) -> None:
    """Turn a reactor in the caller's own thread until ``condition`` holds; ``timeout`` is that of each turn."""
    deadline = time.monotonic() + STOP_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        reactor.run_once(timeout)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        return listener.accept()[0], theirs


def connected(reactor: Reactor, **settings: Any) -> Peer:
    """The peer of a session over TCP that the reactor, in the caller's thread, has just taken over."""
    ours, theirs = tcp_pair()
    reactor.add_session(ours, **settings)
    return Peer(theirs)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a condition that no event announces, such as the kernel's or the reactor's last cleanup."""
    deadline = time.monotonic() + STOP_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class Silent(Handler):
    """A handler that does nothing."""


class Recorder(Handler):
    """A handler that keeps what happened, in order, as tuples that begin with the event's name; it answers nothing."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.connections: dict[int, Connection] = {}
        self._happened = threading.Condition()

    def record(self, *event: Any) -> None:
        with self._happened:
            self.events.append(event)
            self._happened.notify_all()

    def on_open(self, conn: Connection) -> None:
        self.connections[conn.id] = conn
        self.record("open", conn.id)

    def on_message(self, conn: Connection, message: Message) -> None:
        self.record("message", conn.id, message.opcode, bytes(message))

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        self.record("close", conn.id, code, reason)

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The events of that name."""
        return [event for event in self.events if event[0] == name]

    def wait_for(self, name: str, count: int = 1) -> list[tuple[Any, ...]]:
        """The first ``count`` events of that name, waited for."""
        with self._happened:
            enough = self._happened.wait_for(lambda: len(self.of(name)) >= count, STOP_SECONDS)
            assert enough, f"waited for {count} of {name!r}, got {self.events}"
            return self.of(name)[:count]


class EchoRecorder(Recorder):
    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        conn.echo()
