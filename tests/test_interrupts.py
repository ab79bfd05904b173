"""Exceptions at the worst moment: no event of a turn is lost, wherever a signal handler raises.

CPython runs signal handlers at a few points only: where a Python function begins, where a loop goes back, and where a
call of C returns. A profile function is called at the first and the last of these, and its exceptions propagate like
those of a signal handler: so each point can be tried in turn. A timer of the system tries them at random.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import uringws
from servers import Recorder, run_until
from uringws import Accept, Batch, Connection, Handler, Message, Options, Reactor, Request
from uringws.backend import Backend
from wire import BINARY, TEXT, Frame, Peer, close_frame, frame, upgrade_request

QUIET = Options(ping_interval_seconds=None)
PACKAGE = str(Path(uringws.__file__).parent)


class StopError(Exception):
    """An exception that an application's signal handler might raise."""


class Alarm(BaseException):
    """The same, as an exception that is not an Exception."""


class Books(Recorder):
    """Echoes, and counts each callback of each connection."""

    def on_upgrade(self, request: Request) -> Accept:
        self.record("upgrade", request.path)
        return Accept(data=request.path)

    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        conn.echo()

    def of_path(self, path: str) -> Counter[str]:
        """How often each callback was called for the connection that asked for a path."""
        ids = {conn.id for conn in self.connections.values() if conn.data == path}
        return Counter(event[0] for event in self.events if event[1] == path or event[1] in ids)


class BatchBooks(Books):
    """The same, with the messages in batches."""

    def on_batch(self, batch: Batch) -> None:
        for conn, message in batch.each():
            self.record("message", conn.id, message.opcode, bytes(message))
        batch.echo()


def in_callback(frame: FrameType | None) -> bool:
    """Whether a frame belongs to a callback of the handler, or to what that called."""
    while frame is not None:
        if frame.f_code.co_name.startswith("on_") and not frame.f_code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


@contextmanager
def raised_at(point: int, error: type[BaseException]) -> Iterator[list[str]]:
    """Raise an exception at the `point`-th moment at which a signal handler may run outside of callbacks."""
    seen = 0
    raised: list[str] = []

    def profile(where: FrameType, event: str, _: Any) -> None:
        nonlocal seen
        if event not in ("call", "c_return") or raised or not where.f_code.co_filename.startswith(PACKAGE):
            return
        if in_callback(where):
            return
        seen += 1
        if seen == point:
            raised.append(f"{event} {where.f_code.co_name}:{where.f_lineno}")
            raise error

    sys.setprofile(profile)
    try:
        yield raised
    finally:
        sys.setprofile(None)


def turn(reactor: Reactor, point: int, error: type[BaseException], done: Callable[[], object]) -> list[str]:
    """Turn the reactor until something is done, raising once; return where."""
    raised: list[str] = []
    try:
        with raised_at(point, error) as raised:
            deadline = time.monotonic() + 10
            while not done():
                assert time.monotonic() < deadline, "waited in vain"
                reactor.run_once(0.01)
    except error:
        assert raised, "an exception that nobody raised"
    return raised


def is_settled(reactor: Reactor, count: int) -> bool:
    """Whether so many connections have come, and all have gone."""
    stats = reactor.stats()
    return stats.accepted + sum(stats.rejected.values()) == count and stats.sessions == stats.handshakes == 0


@pytest.mark.parametrize(
    ("kinds", "errors"),
    [
        pytest.param((Books,), (StopError,), id="one-exception"),
        pytest.param((Books,), (Alarm,), id="one-alarm"),
        pytest.param((Books, Books), (StopError, Alarm), id="two"),
        pytest.param((BatchBooks,), (StopError, Alarm), id="batches"),
    ],
)
def test_an_exception_anywhere_loses_no_event(
    backend: Backend, kinds: tuple[type[Books], ...], errors: tuple[type[BaseException], ...]
) -> None:
    """A whole session, and one that is cut: the request, messages, the close frame, the end of the stream.

    With two handlers each session has its own. Where there are two errors they alternate from point to point.
    """
    gc.collect()  # reactors of earlier tests: an exception in their __del__ would not propagate
    books_of = [kind() for kind in kinds] * (3 - len(kinds))
    places: list[str] = []
    with Reactor(books_of[0], QUIET, backend=backend) as reactor:
        addresses = [reactor.bind("127.0.0.1", 0, handler=books) for books in books_of]
        reactor.run_once(0)
        point = refused = 0
        while point == len(places):
            point += 1
            error = errors[point % len(errors)]
            names = (f"/whole{point}", f"/cut{point}")
            with Peer.dial(addresses[0]) as whole, Peer.dial(addresses[1]) as cut:
                for peer, path in zip((whole, cut), names, strict=True):
                    peer.write(upgrade_request(path), frame(TEXT, b"one"), frame(BINARY, b"two"))
                whole.write(close_frame())
                for peer in (whole, cut):
                    peer.sock.shutdown(socket.SHUT_WR)

                def done(count: int = 2 * point) -> bool:
                    return is_settled(reactor, count)

                places += turn(reactor, point, error, done)
                first = {name: books.of_path(name) for name, books in zip(names, books_of, strict=True)}
                run_until(reactor, done)
                for peer, path, books in zip((whole, cut), names, books_of, strict=True):
                    where = (places[-1:], path, first[path], books.of_path(path))
                    assert books.of_path(path)["upgrade"] == 1, where
                    status = peer.read_response().status
                    if status == 500:  # the handler had been asked
                        refused += 1
                        assert books.of_path(path) == {"upgrade": 1}, where
                        continue
                    assert status == 101, where
                    assert books.of_path(path) == {"upgrade": 1, "open": 1, "message": 2, "close": 1}, where
                    assert peer.read_frames(2) == [Frame(TEXT, b"one"), Frame(BINARY, b"two")], where
            for books in books_of:
                books.events.clear()
                books.connections.clear()
    assert len(places) > 50
    assert 0 < refused < len(places) / 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["on_upgrade", "on_request"])
def test_an_interrupt_while_a_request_is_decided_on_is_answered_500(
    backend: Backend, name: str, error: type[BaseException]
) -> None:
    asked: list[str] = []

    class Interrupted(Handler):
        def on_upgrade(self, request: Request) -> None:
            self.ask(request)

        def on_request(self, request: Request) -> None:
            self.ask(request)

        def ask(self, request: Request) -> None:
            asked.append(request.path)
            if request.path == "/first":
                raise error

    with Reactor(Interrupted(), QUIET, backend=backend) as reactor:
        address = reactor.bind("127.0.0.1", 0)
        with Peer.dial(address) as first, Peer.dial(address) as second:
            for peer, path in ((first, "/first"), (second, "/second")):
                plain = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                peer.write(upgrade_request(path) if name == "on_upgrade" else plain)
            with pytest.raises(error):
                run_until(reactor, lambda: len(asked) == 3)
            run_until(reactor, lambda: len(asked) == 2)
            reactor.run_once(0)
            assert first.read_response().status == 500
            assert second.read_response().status == (101 if name == "on_upgrade" else 426)
        assert sorted(asked) == ["/first", "/second"]
        assert reactor.stats().rejected["handler"] == 1


def test_exceptions_of_a_signal_handler_lose_nothing_however_often_they_come(backend: Backend) -> None:
    """The system's timer, again and again, while sessions come and go."""
    count = 60
    raised = 0
    books = Books()

    def ring(*_: object) -> None:
        where = sys._getframe(1)
        if where.f_code.co_filename.startswith(PACKAGE) and not in_callback(where):
            raise Alarm

    with Reactor(books, QUIET, backend=backend) as reactor:
        address = reactor.bind("127.0.0.1", 0)
        reactor.run_once(0)
        peers = [Peer.dial(address) for _ in range(count)]
        for number, peer in enumerate(peers):
            peer.write(upgrade_request(f"/{number}"), frame(TEXT, b"one"), frame(BINARY, b"two"), close_frame())
            peer.sock.shutdown(socket.SHUT_WR)
        before = signal.signal(signal.SIGALRM, ring)
        try:
            for attempt in range(300):
                signal.setitimer(signal.ITIMER_REAL, 0.00002 * (attempt % 30 + 1))
                try:
                    reactor.run_once(0.001)
                except Alarm:
                    raised += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        run_until(reactor, lambda: is_settled(reactor, count))
        for number, peer in enumerate(peers):
            with peer:
                if peer.read_response().status == 500:
                    continue
                assert books.of_path(f"/{number}") == {"upgrade": 1, "open": 1, "message": 2, "close": 1}
                assert peer.read_frames(2) == [Frame(TEXT, b"one"), Frame(BINARY, b"two")]
    assert raised > 0
