"""Watched descriptors: the callback runs while its descriptor is ready, in either direction, and never for another."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from servers import EchoRecorder, ReactorThread, connected, run_until
from uringws import LimitReached, Options, Reactor, ReactorStateError, Watch, WrongThread
from uringws.backend import Backend
from uringws.shim import lib
from wire import TEXT, frame

QUIET = Options(ping_interval_seconds=None)


@pytest.fixture
def reactor(backend: Backend, recorder: EchoRecorder) -> Iterator[Reactor]:
    """A reactor to be turned by hand."""
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        yield reactor


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's reading end and its writing end; a test may close either."""
    ends = os.pipe()
    yield ends
    for descriptor in ends:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def turns(reactor: Reactor, count: int = 3) -> None:
    """Let everything happen that is due, and see that nothing else does."""
    for _ in range(count):
        reactor.run_once(0.01)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_descriptor_is_reported_by_each_turn_until_it_is_read_empty(reactor: Reactor, pipe: tuple[int, int]) -> None:
    read: list[bytes] = []
    watch = reactor.watch(pipe[0], lambda: read.append(os.read(pipe[0], 1)))
    turns(reactor)
    assert read == []
    os.write(pipe[1], b"abc")
    turns(reactor, 6)
    assert read == [b"a", b"b", b"c"]
    os.write(pipe[1], b"d")
    run_until(reactor, lambda: len(read) == 4)
    watch.cancel()
    os.write(pipe[1], b"e")
    turns(reactor)
    assert read[3:] == [b"d"]


def test_a_ready_descriptor_ends_the_wait_of_a_turn(reactor: Reactor, pipe: tuple[int, int]) -> None:
    read: list[bytes] = []
    reactor.watch(pipe[0], lambda: read.append(os.read(pipe[0], 9)))
    reactor.run_once(0)
    threading.Timer(0.05, os.write, (pipe[1], b"x")).start()
    start = time.monotonic()
    while not read:
        assert reactor.run_once(20) == 0
    assert time.monotonic() - start < 15


def test_run_calls_back_beside_messages(backend: Backend, recorder: EchoRecorder, pipe: tuple[int, int]) -> None:
    read: list[bytes] = []
    with ReactorThread(recorder, backend=backend) as server:
        server.ask(lambda: server.reactor.watch(pipe[0], lambda: read.append(os.read(pipe[0], 9))))
        for number in range(3):
            os.write(pipe[1], b"%d" % number)
            deadline = time.monotonic() + 10
            while len(read) <= number:
                assert time.monotonic() < deadline
                time.sleep(0.001)
    assert read == [b"0", b"1", b"2"]


def test_messages_and_descriptors_that_are_ready_together_are_all_handled(
    reactor: Reactor, recorder: EchoRecorder, pipe: tuple[int, int]
) -> None:
    read: list[bytes] = []
    reactor.watch(pipe[0], lambda: read.append(os.read(pipe[0], 9)))
    with connected(reactor) as peer:
        reactor.run_once(0)
        for _ in range(20):
            peer.write(frame(TEXT, b"hello"))
            os.write(pipe[1], b"x")
            reactor.run_once(1)
        run_until(reactor, lambda: len(recorder.of("message")) == 20)
    assert len(read) >= 10


def test_each_direction_of_a_socket_has_a_watch_of_its_own(reactor: Reactor) -> None:
    ours, theirs = socket.socketpair()
    called: list[str] = []
    with ours, theirs:
        readable = reactor.watch(ours, lambda: called.append("readable"))
        writable = reactor.watch(ours, lambda: called.append("writable"), writable=True)
        turns(reactor)
        assert set(called) == {"writable"}
        writable.cancel()
        theirs.send(b"x")
        called.clear()
        turns(reactor)
        assert set(called) == {"readable"}
        readable.cancel()


def test_the_end_of_a_peer_is_reported(reactor: Reactor, pipe: tuple[int, int]) -> None:
    called: list[int] = []
    reactor.watch(pipe[0], lambda: called.append(1))
    reactor.run_once(0)
    os.close(pipe[1])
    run_until(reactor, lambda: called)


def test_a_watch_may_be_cancelled_by_any_callback(reactor: Reactor) -> None:
    called: list[int] = []
    watches: list[Watch] = []

    def cancel_all() -> None:
        called.append(1)
        for watch in watches:
            watch.cancel()
            watch.cancel()

    pipes = [os.pipe() for _ in range(5)]
    for reading, writing in pipes:
        watches.append(reactor.watch(reading, cancel_all))
        os.write(writing, b"x")
    turns(reactor)
    assert len(called) == 1
    assert not any(watch.is_active for watch in watches)
    for ends in pipes:
        for descriptor in ends:
            os.close(descriptor)


def test_a_watch_does_not_pass_to_the_next_descriptor_of_that_number(reactor: Reactor) -> None:
    """Neither if it was cancelled in the turn that reported it, nor if its descriptor was closed before that."""
    called: list[str] = []
    for cancel_first in (True, False):
        reading, writing = os.pipe()
        old = reactor.watch(reading, lambda: called.append("old"))
        reactor.run_once(0)
        if cancel_first:
            os.write(writing, b"x")
            old.cancel()
        os.close(reading)
        os.close(writing)
        turns(reactor)
        called.clear()
        again, other = os.pipe()
        assert {again, other} == {reading, writing}
        os.write(other, b"y")
        new = reactor.watch(again, lambda: called.append("new")) if cancel_first else None
        if not cancel_first:
            old.cancel()
        turns(reactor)
        assert set(called) == ({"new"} if cancel_first else set())
        if new is not None:
            new.cancel()
        os.close(again)
        os.close(other)


def test_a_watch_made_in_a_callback_takes_part_from_the_next_turn_on(reactor: Reactor, pipe: tuple[int, int]) -> None:
    other = os.pipe()
    called: list[str] = []

    def first() -> None:
        os.read(pipe[0], 1)
        called.append("first")
        reactor.watch(other[0], lambda: called.append("second"))

    reactor.watch(pipe[0], first)
    os.write(other[1], b"x")
    os.write(pipe[1], b"x")
    run_until(reactor, lambda: "second" in called)
    assert called[0] == "first"
    for descriptor in other:
        os.close(descriptor)


def test_a_callbacks_error_is_logged_and_stops_no_other_callback(
    reactor: Reactor, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []
    ready = os.pipe()
    os.write(ready[1], b"x")
    os.write(pipe[1], b"x")

    def fail() -> None:
        os.read(pipe[0], 1)
        raise ValueError("of the callback")

    reactor.watch(pipe[0], fail)
    reactor.watch(ready[0], lambda: called.append(1))
    run_until(reactor, lambda: called and caplog.records)
    (record,) = caplog.records
    assert "the callback of a watch failed" in record.message
    assert "of the callback" in (record.exc_text or "")
    for descriptor in ready:
        os.close(descriptor)


def test_keyboard_interrupt_propagates_and_other_watches_run_in_the_next_turn(reactor: Reactor) -> None:
    called: list[int] = []
    pipes = [os.pipe() for _ in range(3)]

    def interrupt(number: int) -> None:
        os.read(pipes[number][0], 1)
        called.append(number)
        raise KeyboardInterrupt

    for number, (reading, writing) in enumerate(pipes):
        reactor.watch(reading, partial(interrupt, number))
        os.write(writing, b"x")
    for _ in pipes:
        with pytest.raises(KeyboardInterrupt):
            run_until(reactor, lambda: False)
    turns(reactor)
    assert sorted(called) == [0, 1, 2]
    for ends in pipes:
        for descriptor in ends:
            os.close(descriptor)


def test_nothing_is_left_of_a_watch_that_was_cancelled(reactor: Reactor) -> None:
    reactor.run_once(0)
    before = open_descriptors()
    for ready in (False, True):
        ours, theirs = socket.socketpair()
        watch = reactor.watch(ours, lambda: None)
        if ready:
            theirs.send(b"x")
        reactor.run_once(0)
        watch.cancel()
        ours.close()
        turns(reactor)
        theirs.settimeout(10)
        try:
            assert theirs.recv(1) == b"", "the socket is still open"
        except ConnectionResetError:
            assert ready  # it was closed with a byte in it
        theirs.close()
    assert open_descriptors() == before


def test_closing_the_reactor_ends_its_watches(backend: Backend, pipe: tuple[int, int]) -> None:
    before = open_descriptors()
    with Reactor(EchoRecorder(), QUIET, backend=backend) as reactor:
        watch = reactor.watch(pipe[0], lambda: None)
        reactor.run_once(0)
        os.write(pipe[1], b"x")
    assert open_descriptors() == before
    assert not watch.is_active
    watch.cancel()
    assert repr(watch) == f"<Watch of descriptor {pipe[0]} (readable), over>"


def test_at_most_the_limit_are_watched(reactor: Reactor, pipe: tuple[int, int]) -> None:
    watches = [reactor.watch(pipe[0], lambda: None) for _ in range(lib.URS_WATCHES_MAX)]
    with pytest.raises(LimitReached, match=r"1024 descriptors .*select\.epoll"):
        reactor.watch(pipe[0], lambda: None)
    watches.pop().cancel()
    turns(reactor, 1)
    called: list[int] = []
    reactor.watch(pipe[0], lambda: called.append(1))
    for watch in watches:
        watch.cancel()
    os.write(pipe[1], b"x")
    run_until(reactor, lambda: called)


def test_other_epolls_can_be_watched(reactor: Reactor, pipe: tuple[int, int]) -> None:
    seen: list[Any] = []
    with select.epoll() as inner:
        watch = reactor.watch(inner, lambda: seen.extend(inner.poll(0)))
        turns(reactor, 2)
        inner.register(pipe[0], select.EPOLLIN)  # while the reactor watches it
        os.write(pipe[1], b"x")
        run_until(reactor, lambda: len(seen) >= 2)  # level-triggered, as that epoll is
        watch.cancel()
    assert set(seen) == {(pipe[0], select.EPOLLIN)}


@pytest.mark.parametrize("name", ["a regular file", "a directory", "/dev/null"])
def test_a_descriptor_that_is_always_ready_is_refused_with_the_remedy(
    reactor: Reactor, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("x")
    paths = {"a regular file": tmp_path / "file", "a directory": tmp_path, "/dev/null": Path("/dev/null")}
    descriptor = os.open(paths[name], os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match="always ready"):
            reactor.watch(descriptor, lambda: None)
    finally:
        os.close(descriptor)


async def coroutine_function() -> None: ...


@pytest.mark.parametrize(
    ("descriptor", "callback", "error", "text"),
    [
        (-1, print, ValueError, "closed"),
        (987_654, print, OSError, "closed"),
        ("0", print, TypeError, "str"),
        (True, print, TypeError, "bool"),
        (None, print, TypeError, "NoneType"),
        ("a pipe", None, TypeError, "NoneType"),
        ("a pipe", coroutine_function, TypeError, "async def"),
    ],
)
def test_a_descriptor_that_cannot_be_watched_is_refused(
    reactor: Reactor, descriptor: Any, callback: Any, error: type[Exception], text: str
) -> None:
    reading, writing = os.pipe()
    with pytest.raises(error, match=text):
        reactor.watch(reading if descriptor == "a pipe" else descriptor, callback)
    os.close(reading)
    os.close(writing)


def test_a_closed_socket_is_refused(reactor: Reactor) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    theirs.close()
    with pytest.raises(ValueError, match="closed"):
        reactor.watch(ours, print)


def raised_in_another_thread(function: Callable[[], object]) -> BaseException | None:
    caught: list[BaseException | None] = [None]

    def run() -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - returned
            caught[0] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught[0]


def test_other_threads_and_closed_reactors_are_refused(reactor: Reactor, pipe: tuple[int, int]) -> None:
    reactor.run_once(0)
    watch = reactor.watch(pipe[0], print)
    assert isinstance(raised_in_another_thread(lambda: reactor.watch(pipe[0], print)), WrongThread)
    assert isinstance(raised_in_another_thread(watch.cancel), WrongThread)
    assert watch.is_active
    reactor.close()
    with pytest.raises(ReactorStateError):
        reactor.watch(pipe[0], print)
