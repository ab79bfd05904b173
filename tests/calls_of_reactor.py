"""Random sequences of calls on a Reactor and its objects, from every place where a caller may be. See
call_sequences.py.

The places: before the first turn, in every callback, in timers and commands, between turns, in another thread, in a
forked child, and after the end. Peers on sockets of the same process send seeded messages and compare the answers.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bystanders import Stream
from call_sequences import FaultError, Trail, expect, outcome
from uringws import (
    LATER,
    Accept,
    Connection,
    ConnectionClosed,
    Handler,
    Later,
    LimitReached,
    Message,
    Opcode,
    Options,
    Reactor,
    ReactorStateError,
    Request,
    RequestHead,
    Sender,
    Stats,
    Timer,
    WrongThread,
)
from uringws.backend import Backend
from wire import BINARY, CLOSE, CONTINUATION, TEXT, close_frame, frame, upgrade_request

STEPS = 25
SIZES = (0, 1, 20, 200, 5000, 70_000, 200_000)
CALLS_PER_CALLBACK = (0, 0, 1, 1, 2, 4)
CALLS_ON_CONNECTIONS = (
    *("send", "send", "send", "fragments", "echo", "echo"),
    *("close", "abort", "pause", "resume", "look"),
)
FROM_SENDER = b"from a sender"
SETTLE_SECONDS = 10.0
FORK_PROBABILITY = 0.1
OPTIONS = Options(ping_interval_seconds=None, close_seconds_max=0.2, drain_seconds_max=0.5, handshake_seconds_max=2.0)


class BoomError(Exception):
    """The exception that a callback raises."""


@dataclass
class Known:
    """A connection, its peer, and what is known about both."""

    number: int
    sock: socket.socket
    said: list[tuple[int, bytes]] = field(default_factory=list)
    """The peer's messages."""
    delivered: int = 0
    expected: list[tuple[int, bytes]] = field(default_factory=list)
    """The frames that it must be sent, in order, without close frames and those of Senders."""
    conn: Connection | None = None
    lossy: bool = False
    """One side cut the connection: the bytes that the peer got may end anywhere."""
    quiet: bool = False
    """The peer says nothing more."""
    closed: int = 0
    unsent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)

    def push(self) -> None:
        """Move as many bytes as the socket takes, both ways."""
        with contextlib.suppress(BlockingIOError, OSError):
            while self.unsent:
                del self.unsent[: self.sock.send(self.unsent)]
        with contextlib.suppress(BlockingIOError, OSError):
            while part := self.sock.recv(1 << 20):
                self.received += part


class World(Handler):
    """The reactor, its peers, and the calls. It is the handler too."""

    def __init__(self, backend: Backend, rng: random.Random, trail: Trail) -> None:
        self.rng, self.trail = rng, trail
        self.known: list[Known] = []
        self.messages: list[Message] = []
        self.slices: list[memoryview] = []
        self.timers: list[Timer] = []
        self.fault: BaseException | None = None
        self.handling: Known | None = None
        """The connection of the current message, in on_message."""
        self.echo_asked: tuple[Known, tuple[int, bytes]] | None = None
        self.waiting: list[tuple[Request, Known]] = []
        """The requests that were left for later."""
        self.running = False
        self.started = self.closing = False
        """It has a thread."""
        self.draining = False
        self.reactor = Reactor(self, OPTIONS, backend=backend)
        self.address = self.reactor.bind("127.0.0.1", 0)
        self.senders = [self.reactor.sender()]

    # ---- callbacks

    @contextlib.contextmanager
    def _callback(self, name: str) -> Iterator[None]:
        self.trail.note(f"[{name}")
        try:
            yield
        except BoomError:
            raise
        except BaseException as error:
            self.fault = self.fault or error
            raise
        finally:
            self.trail.note(f"{name}]")

    def on_upgrade(self, request: Request, /) -> Accept | Later:
        with self._callback("on_upgrade"):
            self.calls()
            known = self.known[int(request.path[1:])]
            if self.rng.random() < 0.7:
                return Accept(data=known)
            self.waiting.append((request, known))
            return LATER

    def on_upgrade_abandoned(self, request: Request | RequestHead, /) -> None:
        with self._callback("on_upgrade_abandoned"):
            found = [left for left in self.waiting if left[0] is request]
            expect(len(found) == 1, "a request was abandoned that did not wait")
            self.waiting.remove(found[0])
            self.calls()

    def on_open(self, conn: Connection, /) -> None:
        with self._callback(f"on_open {conn.data.number}"):
            expect(conn.data.conn is None, "on_open was called twice")
            conn.data.conn = conn
            self.calls()

    def on_drain(self, conn: Connection, /) -> None:
        with self._callback(f"on_drain {conn.data.number}"):
            self.calls()

    def on_close(self, conn: Connection, code: int, reason: str, /) -> None:
        known: Known = conn.data
        with self._callback(f"on_close {known.number} {code}"):
            known.closed += 1
            expect(known.closed == 1 and known.conn is conn, "on_close without on_open, or twice")
            expect(not conn.is_open, "is_open in on_close")
            known.lossy |= code == 1006
            self.calls()

    def on_message(self, conn: Connection, message: Message, /) -> None:
        known: Known = conn.data
        with self._callback(f"on_message {known.number}"):
            expect(known.closed == 0, "a message after on_close")
            opcode, payload = known.said[known.delivered]
            known.delivered += 1
            expect((message.opcode, bytes(message)) == (opcode, payload), "another message was delivered")
            self.handling = known
            try:
                self._handle(message, opcode, payload)
            finally:
                self.handling = None
                self._echo_leaves()

    def _handle(self, message: Message, opcode: int, payload: bytes) -> None:
        rng = self.rng
        if rng.random() < 0.3:
            self.messages.append(message)
        if rng.random() < 0.2:
            self.slices.append(message.data[: rng.randrange(len(payload) + 1)])
        self.calls((opcode, payload), message)
        expect(bytes(message) == payload, "the message changed under its handler")
        if rng.random() < 0.03:
            raise BoomError("boom")

    def _echo_leaves(self) -> None:
        if self.echo_asked is not None:
            known, answer = self.echo_asked
            self.echo_asked = None
            known.expected.append(answer)

    # ---- calls on connections

    def calls(self, at_hand: tuple[int, bytes] | None = None, message: Message | None = None) -> None:
        """A few calls, from where the caller is."""
        for _ in range(self.rng.choice(CALLS_PER_CALLBACK)):
            kind = self.rng.randrange(13)
            if kind <= 5 and self.open_ones():
                self.call_connection(self.rng.choice(self.open_ones()), at_hand, message)
            elif kind == 6:
                self.from_another_thread()
            elif kind == 7:
                self.call_sender()
            elif kind == 8:
                self.touch_messages()
            elif kind == 9 and self.waiting:
                self.answer(*self.waiting.pop(self.rng.randrange(len(self.waiting))))
            else:
                self.call_reactor()

    def open_ones(self) -> list[Known]:
        return [known for known in self.known if known.conn is not None]

    def call_connection(
        self, known: Known, at_hand: tuple[int, bytes] | None = None, message: Message | None = None
    ) -> None:
        conn = known.conn
        assert conn is not None
        was_open = conn.is_open
        if at_hand is not None and self.rng.random() < 0.3:
            self._forward(known, conn, at_hand, message, was_open=was_open)
            return
        name = self.rng.choice(
            ("send", "send", "send", "fragments", "echo", "echo", "close", "abort", "pause", "resume", "look")
        )
        getattr(self, f"_{name}")(known, conn, at_hand, was_open=was_open)

    def _said(self, known: Known, what: str, call: Callable[[], object], *, was_open: bool) -> bool:
        """A call that an open connection takes and another refuses."""
        _, error = outcome(self.trail, f"{known.number}: {what}", call, (ConnectionClosed,))
        # A large message is sent at once, and the send may fail because the peer has left.
        right = was_open or error is not None if known.conn is None or not known.conn.is_open else error is None
        expect(right, f"{what}: is_open was {was_open}, and it raised {error!r}")
        known.lossy |= was_open and error is not None
        return error is None

    def _send(self, known: Known, conn: Connection, _: object, *, was_open: bool) -> None:
        opcode = self.rng.choice((TEXT, BINARY))
        payload = b"y" * self.rng.choice(SIZES)
        if self._said(known, f"send({opcode}, {len(payload)})", lambda: conn.send(opcode, payload), was_open=was_open):
            known.expected.append((opcode, payload))

    def _fragments(self, known: Known, conn: Connection, _: object, *, was_open: bool) -> None:
        """A message in two frames, and a message between them that is refused."""
        first, last = b"f" * self.rng.choice(SIZES), b"l" * self.rng.choice(SIZES)
        if not self._said(known, "send, fin=False", lambda: conn.send(TEXT, first, fin=False), was_open=was_open):
            return
        known.expected.append((TEXT, first))
        _, error = outcome(self.trail, "send inside", lambda: conn.send(b"x"), (ValueError, ConnectionClosed))
        expect(error is not None, "a message was sent inside a fragmented one")
        known.lossy |= isinstance(error, ConnectionClosed)
        if self._said(known, "send the last", lambda: conn.send(CONTINUATION, last), was_open=conn.is_open):
            known.expected.append((CONTINUATION, last))

    def _forward(
        self, known: Known, conn: Connection, at_hand: tuple[int, bytes], message: Message | None, *, was_open: bool
    ) -> None:
        assert message is not None
        way = self.rng.choice((lambda: conn.send(message), lambda: conn.send(message.opcode, message.data)))
        if self._said(known, "send the message at hand", way, was_open=was_open):
            known.expected.append(at_hand)

    def _echo(self, known: Known, conn: Connection, _: object, *, was_open: bool) -> None:
        _, error = outcome(self.trail, f"{known.number}: echo()", conn.echo, (ConnectionClosed, RuntimeError))
        if not was_open and known is self.handling and error is None:
            known.lossy = True  # it was lost while its handler runs: the echo goes where its other messages go
        elif not was_open:
            expect(isinstance(error, ConnectionClosed), f"echo() on a closed connection: {error!r}")
        elif known is self.handling:
            expect(error is None, f"echo() was refused: {error!r}")
            self.echo_asked = known, known.said[known.delivered - 1]
        else:
            expect(isinstance(error, RuntimeError), f"echo() outside of its handler: {error!r}")

    def _close(self, known: Known, conn: Connection, _: object, *, was_open: bool) -> None:
        if self.rng.random() < 0.5:
            return
        if self._said(known, "close(4000)", lambda: conn.close(4000, "enough"), was_open=was_open):
            expect(not conn.is_open, "is_open after close()")
            if self.echo_asked is not None and self.echo_asked[0] is known:
                self._echo_leaves()

    def _abort(self, known: Known, conn: Connection, _: object, *, was_open: bool) -> None:
        if self.rng.random() < 0.7:
            return
        _, error = outcome(self.trail, f"{known.number}: abort()", conn.abort, (ConnectionClosed,))
        expect(error is None or not was_open, f"abort() was refused: {error!r}")
        expect(not conn.is_open, "is_open after abort()")
        known.lossy = True

    def _pause(self, known: Known, conn: Connection, _: object, *, was_open: bool) -> None:
        _, error = outcome(self.trail, f"{known.number}: pause_reading()", conn.pause_reading, (ConnectionClosed,))
        expect(error is None or not was_open, f"pause_reading() was refused: {error!r}")

    def _resume(self, known: Known, conn: Connection, _: object, *, was_open: bool) -> None:
        _, error = outcome(self.trail, f"{known.number}: resume_reading()", conn.resume_reading, (ConnectionClosed,))
        expect(error is None or not was_open, f"resume_reading() was refused: {error!r}")

    def _look(self, known: Known, conn: Connection, _: object, *, was_open: bool) -> None:
        waiting, _ = outcome(self.trail, f"{known.number}: buffered_amount", lambda: conn.buffered_amount)
        expect(isinstance(waiting, int) and waiting >= 0, f"buffered_amount is {waiting}")
        outcome(self.trail, "latency_seconds, peer", lambda: (conn.latency_seconds, conn.peer))
        closing, _ = outcome(self.trail, "closing", lambda: conn.closing)
        expect(closing is None or not was_open, f"is_open is {was_open}, and closing is {closing}")
        expect(closing is not None or not known.closed, "closing is None after on_close")
        shown, _ = outcome(self.trail, "repr", lambda: repr(conn))
        expect(("open" in shown) == was_open, f"is_open is {was_open}, and it shows {shown}")

    # ---- calls on the rest

    def call_reactor(self) -> None:
        reactor, rng, trail = self.reactor, self.rng, self.trail
        kind = rng.randrange(9)
        if kind == 0:
            stats, _ = outcome(trail, "stats()", reactor.stats)
            expect(isinstance(stats, Stats) and stats.sessions >= 0, f"stats() gave {stats!r}")
        elif kind == 1:
            self.timed("call_later", lambda: reactor.call_later(0, self._timer))
        elif kind == 2 and len(self.timers) < 5:
            seconds = rng.uniform(0.001, 0.01)
            self.timed("call_every", lambda: reactor.call_every(seconds, self._timer))
        elif kind == 3 and self.timers:
            timer = rng.choice(self.timers)
            outcome(trail, "cancel()", timer.cancel)
            expect(not timer.is_active, "a cancelled timer is active")
        elif kind == 4:
            self.adopt()
        elif kind == 5 and self.running:
            for call in (reactor.run, lambda: reactor.run_once(0), reactor.run_echo, reactor.close):
                _, error = outcome(trail, "run, run_once, run_echo or close, inside", call, (ReactorStateError,))
                expect(error is not None, "the loop was entered twice, or closed inside")
        elif kind == 6 and rng.random() < 0.05:
            self.drain()
        elif kind == 7 and rng.random() < 0.3:
            outcome(trail, "stop()", reactor.stop)
        else:
            outcome(trail, "repr, addresses, backend", lambda: (repr(reactor), reactor.addresses, reactor.backend))

    def answer(self, request: Request, known: Known) -> None:
        """Answer a request that was left for later: nonsense first, then once, then again."""
        reactor, trail = self.reactor, self.trail
        name = self.rng.choice((request, request.id))
        if not self.closing:
            _, error = outcome(trail, "answer nonsense", lambda: reactor.answer(request, LATER), (TypeError,))  # type: ignore[arg-type]
            expect(error is not None or known.lossy or self.draining, "LATER was taken for an answer")
        there, _ = outcome(trail, f"{known.number}: answer()", lambda: reactor.answer(name, Accept(data=known)))
        expect((known.conn is not None) == there, f"answer() gave {there}, and the connection is {known.conn}")
        known.lossy |= not there
        _, error = outcome(trail, "answer again", lambda: reactor.answer(request, Accept()), (ReactorStateError,))
        expect(error is not None or not there, "a request was answered twice")

    def timed(self, what: str, call: Callable[[], Timer]) -> None:
        timer, _ = outcome(self.trail, what, call, self.ending_errors())
        if timer is not None:
            self.timers.append(timer)

    def ending_errors(self) -> tuple[type[Exception], ...]:
        """The exceptions of calls that would begin something in the on_close of close()."""
        return (ReactorStateError,) if self.closing else ()

    def drain(self) -> None:
        self.draining = self.started = True
        at_hand = self.echo_asked
        outcome(self.trail, "drain()", lambda: self.reactor.drain(0.3), self.ending_errors())
        if at_hand is not None:
            self._echo_leaves()

    def _timer(self) -> None:
        with self._callback("timer"):
            self.calls()

    def call_sender(self) -> None:
        rng, trail = self.rng, self.trail
        sender = rng.choice(self.senders)
        gone = (ReactorStateError,)
        target = rng.choice(self.known).conn if self.known else None
        kind = rng.randrange(6)
        if kind == 0 and target is not None:
            taken, _ = outcome(trail, "sender.send", lambda: sender.send(target.id, Opcode.TEXT, FROM_SENDER), gone)
            expect(taken is not True or sender._key in sender._commands.senders, "a released Sender sent")
        elif kind == 1:
            outcome(trail, "sender.call", lambda: sender.call(self._timer), gone)
        elif kind == 2:
            clone, _ = outcome(trail, "clone()", sender.clone, gone)
            if clone is not None:
                self.senders.append(clone)
        elif kind == 3 and len(self.senders) > 1:
            outcome(trail, "release()", sender.release)
            _, error = outcome(trail, "call after release()", lambda: sender.call(print), gone)
            expect(error is not None, "a released Sender took a command")
        elif kind == 4 and target is not None and rng.random() < 0.2:
            outcome(trail, "close_connection", lambda: sender.close_connection(target.id, 4002), gone)
        else:
            outcome(trail, "repr", lambda: repr(sender))

    def touch_messages(self) -> None:
        """A message kept past its handler: it raises, or shows the current message."""
        for view in self.slices:
            bytes(view)
        if not self.messages:
            return
        message = self.rng.choice(self.messages)
        for what, call in {
            "old.opcode": lambda: message.opcode,
            "len(old)": lambda: len(message),
            "bytes(old)": lambda: bytes(message),
            "old.fin": lambda: message.fin,
            "repr(old)": lambda: repr(message),
        }.items():
            outcome(self.trail, what, call, (RuntimeError, ValueError))

    def from_another_thread(self) -> None:
        """Calls for the reactor's thread only raise WrongThread; calls for all threads work."""
        reactor = self.reactor
        calls: dict[str, Callable[[], object]] = {
            "stats": reactor.stats,
            "bind": lambda: reactor.bind("127.0.0.1", 0),
            "run_once": lambda: reactor.run_once(0),
            "drain": lambda: reactor.drain(0),
            "call_later": lambda: reactor.call_later(1, print),
        }
        if self.running:
            calls["close"] = reactor.close
        conns = [known.conn for known in self.known if known.conn is not None and not known.closed]
        if conns and not self.closing:
            conn = self.rng.choice(conns)
            calls |= {
                "send": lambda: conn.send_text("x"),
                "close of a connection": conn.close,
                "abort": conn.abort,
                "pause_reading": conn.pause_reading,
                "buffered_amount": lambda: conn.buffered_amount,
            }
        name = self.rng.choice(list(calls))
        found: list[BaseException | object] = []

        def call() -> None:
            try:
                found.append(calls[name]())
            except BaseException as error:  # noqa: BLE001 - looked at below
                found.append(error)

        if not self.started:
            return  # it has no thread yet
        self.trail.note(f"{name} from another thread")
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        refused: tuple[type[Exception], ...] = (WrongThread, ConnectionClosed, *self.ending_errors())
        expect(isinstance(found[0], refused), f"{name} in another thread: {found[0]!r}")
        with self.reactor.sender() as sender:
            expect(isinstance(sender, Sender), "no Sender")

    # ---- peers

    def adopt(self) -> None:
        """Hand a socket over, with or without bytes that were read from it."""
        ours, theirs = socket.socketpair()
        known = self._know(theirs)
        prefix = self._speak(known) if self.rng.random() < 0.5 else b""
        _, error = outcome(
            self.trail,
            f"add_session {known.number} with {len(prefix)} bytes",
            lambda: self.reactor.add_session_with_prefix(ours, prefix, data=known),
            (LimitReached, *self.ending_errors()) if self.draining else self.ending_errors(),
        )
        if error is not None:
            known.lossy = True
            ours.close()

    def dial(self) -> None:
        known = self._know(socket.create_connection(self.address))
        known.unsent += upgrade_request(f"/{known.number}")
        if self.rng.random() < 0.5:
            known.unsent += self._speak(known)

    def _know(self, sock: socket.socket) -> Known:
        sock.setblocking(False)
        known = Known(len(self.known), sock)
        self.known.append(known)
        return known

    def _speak(self, known: Known) -> bytes:
        said = bytearray()
        for _ in range(self.rng.choice((1, 1, 3, 20))):
            size = self.rng.choice(SIZES[:5] if known.said else SIZES)
            opcode, payload = self.rng.choice((TEXT, BINARY)), bytes([97 + len(known.said) % 26]) * size
            known.said.append((opcode, payload))
            said += frame(opcode, payload)
        return bytes(said)

    def act(self) -> None:
        """One of the peers does something."""
        rng = self.rng
        talking = [known for known in self.known if not known.quiet]
        kind = rng.randrange(12)
        if (kind <= 1 and len(self.known) < 12 and not self.draining) or not talking:
            if len(self.known) < 12 and not self.draining:
                self.dial()
        elif kind <= 8:
            known = rng.choice(talking)
            known.unsent += self._speak(known)
        elif kind == 9:
            known = rng.choice(talking)
            known.unsent += close_frame(1000)
            known.quiet = True
        elif kind == 10 and rng.random() < 0.5:
            known = rng.choice(talking)
            known.quiet = known.lossy = True
            known.unsent.clear()
            known.sock.close()
        self.push()

    def push(self) -> None:
        for known in self.known:
            known.push()

    # ---- the whole

    def check_fault(self) -> None:
        if self.fault is not None:
            raise self.fault

    def turns(self) -> None:
        for _ in range(self.rng.choice((1, 1, 3))):
            self.running = self.started = True
            try:
                outcome(self.trail, "run_once(0.001)", lambda: self.reactor.run_once(0.001))
            finally:
                self.running = False
            self.push()
            self.check_fault()

    def run(self) -> None:
        """Run for a moment; the peers go on meanwhile."""
        self.running = self.started = True
        stop = self.reactor.call_later(0.03, self.reactor.stop)
        ticks = self.reactor.call_every(0.003, self.act)
        try:
            outcome(self.trail, "run()", self.reactor.run)
        finally:
            self.running = False
            stop.cancel()
            ticks.cancel()
        self.check_fault()

    def settle(self) -> None:
        """Let everything arrive, then compare what each peer was sent."""
        for timer in self.timers:
            timer.cancel()
        calls, self.calls = self.calls, lambda *_: None  # type: ignore[method-assign]
        deadline = time.monotonic() + SETTLE_SECONDS
        while not all(self._has_settled(known) for known in self.known):
            if time.monotonic() > deadline:
                waiting = [known for known in self.known if not self._has_settled(known)]
                raise FaultError(f"not settled: {[(each.number, each.closed, len(each.expected)) for each in waiting]}")
            self.turns()
        self.calls = calls  # type: ignore[method-assign]

    def _has_settled(self, known: Known) -> bool:
        got = self._received(known)
        expect(got == known.expected[: len(got)], f"{known.number} was sent something else")
        return known.lossy or len(got) == len(known.expected)

    def _received(self, known: Known) -> list[tuple[int, bytes]]:
        """The frames that a peer has received whole, without its close frame and what Senders sent."""
        head, _, rest = known.received.partition(b"\r\n\r\n")
        stream = Stream.__new__(Stream)
        stream._unread = bytearray(rest if head.startswith(b"HTTP/") else known.received)
        frames = list(iter(stream._take, None))
        closes = [number for number, (opcode, _) in enumerate(frames) if opcode == CLOSE]
        expect(closes in ([], [len(frames) - 1]), "something follows the close frame")
        return [each for each in frames if each[0] != CLOSE and each[1] != FROM_SENDER]

    def fork(self) -> None:
        """In the child everything is refused, and the parent's sockets stay as they are."""
        self.trail.note("fork")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self._in_the_child()
                status = 0
            except BaseException as error:  # noqa: BLE001 - this thread has no caller to catch it
                print(f"in the child: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        expect(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a call in a forked child was not refused")

    def _in_the_child(self) -> None:
        refused = (ReactorStateError,)
        attempts: list[Callable[[], object]] = [
            *(self.reactor.run, self.reactor.stats, self.reactor.drain, self.reactor.sender),
            lambda: self.reactor.run_once(0),
            lambda: self.reactor.call_later(1, print),
            lambda: self.senders[0].call(print),
        ]
        attempts += [known.conn.close for known in self.known if known.conn is not None and not known.closed]
        self.rng.shuffle(attempts)
        for attempt in attempts:
            _, error = outcome(self.trail, "a call in the child", attempt, refused)
            expect(error is not None, f"{attempt} worked in the child")
        self.reactor.close()

    def after_close(self) -> None:
        reactor, refused = self.reactor, (ReactorStateError,)
        for call in (reactor.run, reactor.stats, reactor.drain, reactor.sender, lambda: reactor.run_once(0)):
            _, error = outcome(self.trail, "a call after close()", call, refused)
            expect(error is not None, "a closed reactor took a call")
        reactor.stop()
        reactor.close()
        for sender in self.senders:
            _, error = outcome(self.trail, "sender.call after close()", lambda each=sender: each.call(print), refused)  # type: ignore[misc]
            expect(error is not None, "a Sender of a closed reactor took a command")
            sender.release()
        for known in self.open_ones():
            expect(known.closed == 1, f"{known.number}: on_close was called {known.closed} times")
            conn = known.conn
            assert conn is not None
            expect(
                (conn.is_open, conn.buffered_amount, conn.peer) == (False, 0, None), "a connection outlived its reactor"
            )
            for call in (conn.ping, conn.close, conn.abort, conn.echo, conn.pause_reading, conn.resume_reading):
                _, error = outcome(self.trail, "a connection after close()", call, (ConnectionClosed,))
                expect(error is not None, "a connection of a closed reactor took a call")
        for timer in self.timers:
            outcome(self.trail, "a timer after close()", lambda each=timer: (each.is_active, each.cancel()))  # type: ignore[misc]
            expect(not timer.is_active, "a timer of a closed reactor is active")
        self.touch_messages()

    def play(self) -> None:
        try:
            self.calls()
            for _ in range(STEPS):
                self.act()
                self.rng.choices((self.turns, self.run, self.calls), (10, 1, 5))[0]()
                self.check_fault()
            if self.rng.random() < FORK_PROBABILITY:
                self.fork()
            self.settle()
        except BaseException:
            self.calls = lambda *_: None  # type: ignore[method-assign]  # let the trail end here
            raise
        finally:
            self.closing = True
            self.reactor.close()
            for known in self.known:
                known.sock.close()
        self.check_fault()
        self.after_close()


def reactor_sequence(backend: Backend, rng: random.Random, trail: Trail) -> None:
    logging.disable(logging.CRITICAL)  # callbacks that raise are logged
    world = World(backend, rng, trail)
    world.play()
    views = world.slices
    del world
    gc.collect()
    for view in views:
        bytes(view)
