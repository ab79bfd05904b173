"""The reactor: one thread, one I/O backend, many sessions. It decides when a turn is taken, and when `run` ends.

dispatch.py handles a turn's events, and each other part has its own module; bytes and protocol are in the shim.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final, Self

from uringws.backend import Backend
from uringws.batch import load_numpy
from uringws.callbacks import look_up
from uringws.commands import Commands
from uringws.core import Core
from uringws.deferred import Deferred
from uringws.dispatch import Dispatcher
from uringws.draining import Drain
from uringws.errors import ReactorStateError
from uringws.frames import CloseCode
from uringws.listeners import Listeners
from uringws.message import Message
from uringws.options import Options
from uringws.publisher import Publisher
from uringws.refusals import sum_refusals
from uringws.run_state import RunState
from uringws.seconds import check_seconds, sooner
from uringws.sender import Sender
from uringws.sending import check_close
from uringws.services import Service, Services, own_batch
from uringws.sessions import Sessions
from uringws.shim import ffi, lib
from uringws.signals import handled_by
from uringws.sockets import Address, check_stream, show_address
from uringws.stats import Stats, stats_of
from uringws.timers import Timer, Timers
from uringws.topics import Topics
from uringws.watches import Watch, Watches

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

    from uringws.errors import UringUnavailable
    from uringws.extensions import DeflateTerms
    from uringws.handler import HandlerProtocol
    from uringws.handshake import Accept, RawAnswer, Reject, RequestHead
    from uringws.http import Request, Response

__all__ = ["Reactor"]

logger = logging.getLogger("uringws")


class Reactor(Publisher):
    """A WebSocket server (RFC 6455) for the thread that runs it.

    `handler` gets every connection's events, and `options` hold for every connection, unless `bind` or `add_session`
    gives others. The callbacks are looked up here, once, so that one assigned to the handler later is not called.
    `backend` is "io_uring", "epoll", or "auto": io_uring where it is available, else epoll, with a
    warning that says why. Raises UringUnavailable for "io_uring" where it is not available, ValueError for another
    backend, OSError where not even epoll is available, TypeError for what is no handler.

    A reactor belongs to the thread that first runs it. All threads may call `stop`, `sender` and the methods of a
    Sender; everything else raises WrongThread in other threads, except that any thread may close the reactor once its
    own thread has ended. It is a context manager that closes itself.
    """

    def __init__(self, handler: HandlerProtocol, options: Options | None = None, *, backend: Backend = "auto") -> None:
        """Set up everything except the listening sockets. No connection is accepted before `run`."""
        self.handler: Final = handler
        self.options: Final = Options() if options is None else options
        if not isinstance(self.options, Options):
            raise TypeError(f"options must be Options, not {type(options).__name__}")
        callbacks = look_up(handler)
        if callbacks.on_batch is not None:
            load_numpy()
        self._is_running = False  # a call of run, run_once or drain is in progress
        self._stop_requested = False
        self._signal: int | None = None  # one that came, and was not acted on yet

        # Here, so that __del__ finds it as soon as there is something to free.
        self._core = Core(
            backend,
            self.options,
            frames=callbacks.on_frame is not None,
            pongs=callbacks.on_pong is not None,
            batch=own_batch(callbacks),
        )
        self._services: Final = Services(self._core, handler, callbacks, self.options, self.stats)
        self._listeners: Final = Listeners(self._core)
        self._sessions: Final = Sessions()
        self._commands: Final = Commands(self._core, self.options.sender_commands_max)
        self._timers: Final = Timers(self._core.check_thread, self._core.report)
        self._drain: Final = Drain(self._core)
        self._deferred: Final = Deferred()
        message = Message(self._core, self._sessions)
        self._topics = message._topics = Topics(self._core, message)
        self._dispatcher: Final = Dispatcher(
            self._core,
            message,
            sessions=self._sessions,
            commands=self._commands,
            own=self._services.own,
            by_listener=self._listeners.services,
            deferred=self._deferred,
        )
        _reactors.add(self)

    # ---- where it listens

    @property
    def backend(self) -> str:
        """The backend in use: "io_uring" or "epoll"."""
        return self._core.opened.name

    @property
    def unavailable(self) -> UringUnavailable | None:
        """Why "auto" did not take io_uring; None if it did."""
        return self._core.opened.refused

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, in the order of the bind calls. A drained or closed reactor still names its addresses."""
        return list(self._listeners.addresses)

    def bind(
        self,
        host: str,
        port: int | None = None,
        *,
        handler: HandlerProtocol | None = None,
        options: Options | None = None,
        reuse_port: bool = False,
    ) -> tuple[str, int]:
        """Listen on a TCP port, 0 to 65535; return (host, port) with the port that a 0 was turned into.

        `handler` and `options` are for the connections of this listener alone; None is the reactor's. Options are made
        with `dataclasses.replace(reactor.options, ...)`: OptionsError names a field that all connections share and that
        differs. A reactor has at most 256 sets of options that differ in what the connections are held to:
        LimitReached.

        `host` is an IPv4 or IPv6 address or a name (its first address is taken; "" is all of IPv4, "::" all of IPv6).
        `reuse_port` lets several reactors share the port, the kernel spreading connections among them (SO_REUSEPORT,
        socket(7)). Raises OSError with the address in its text, ValueError or TypeError for anything but an address.
        """
        return self._listeners.bind(host, port, self._service(handler, options), reuse_port=reuse_port)

    def bind_unix(
        self,
        path: str | os.PathLike[str],
        *,
        handler: HandlerProtocol | None = None,
        options: Options | None = None,
        mode: int | None = None,
    ) -> Address:
        r"""Listen on a Unix socket; return its address as `addresses` has it. `handler` and `options` as for `bind`.

        `path` is that of a file, or begins with NUL for an abstract name ("\0chat", unix(7)). `mode` is the file's
        permissions, such as 0o660 (a client needs the right to write); None leaves them to the umask. A socket
        file on which no program listens is replaced. `close` and `drain` remove the file if it is still this
        reactor's own. Raises OSError with the path in its text, also if any other file exists there; ValueError or
        TypeError for anything but a path and a mode.
        """
        return self._listeners.bind_unix(path, self._service(handler, options), mode=mode)

    def bind_socket(
        self, sock: socket.socket, *, handler: HandlerProtocol | None = None, options: Options | None = None
    ) -> Address:
        """Listen on a socket that is bound already (and listening, or not yet). `handler` and `options` as for `bind`.

        The reactor owns it from now on; if this raises, the caller keeps it. The file of a Unix socket stays the
        caller's to remove. Other processes and event loops may share the socket (a duplicate of it, or inherited): on
        io_uring it stays blocking or non-blocking, whatever it is; epoll makes it non-blocking for all of them, since
        it would otherwise wait for a connection that another has accepted.
        """
        return self._listeners.bind_socket(sock, self._service(handler, options))

    def _service(self, handler: HandlerProtocol | None, options: Options | None) -> Service:
        """Return what serves connections with that handler and those options, and expect such connections."""
        service = self._services.get(handler, options)
        self._dispatcher.begin_to_serve(service)
        return service

    def unbind(self, address: Address) -> None:
        """Stop listening on one address, as `bind` or `addresses` has it, and close that socket.

        Connections that came there stay; requests that have begun are answered as before. The file of a Unix socket is
        removed if `bind_unix` made it. Raises ValueError where the reactor does not listen, WrongThread, and
        ReactorStateError once closed.
        """
        self._listeners.unbind(address)

    # ---- running

    def run(self) -> None:
        """Serve until `stop`, or a signal, or there is no listening socket, session and Sender left.

        In the main thread SIGINT and SIGTERM drain it (`Options.drain_seconds_max`), unless the process ignores them; a
        second one ends it at once. Afterwards both are as they were.

        A KeyboardInterrupt or another exception that is not an Exception propagates from a callback through `run`, as
        does any exception of another signal's handler. No event is lost by it, and `run` may be called again.
        """
        self._run(echo=False)

    def run_echo(self) -> None:
        """Serve as `run` does, but send every message back without calling a handler for it.

        This holds for all listeners and adopted sessions, each with its own options. Every other callback is called as
        ever.
        """
        self._run(echo=True)

    def run_once(self, timeout: float | None = None) -> int:
        """Take one turn, waiting at most `timeout` seconds (None: without end); return the number of its events.

        0 is a time-out, a wake-up, a timer, a signal or the deadline of a drain. Messages that callbacks sent have
        left, or wait for their sockets. Raises WrongThread, ReactorStateError inside of `run`, OSError if the backend
        fails, TypeError or ValueError for anything but seconds.
        """
        check_seconds(timeout)
        self._enter()
        self._is_running = True  # here: a signal handler that raises on the way out of a call must not leave it set
        try:
            if self._drain.is_due:
                self._drain.take_next_step()
            count = self._dispatcher.take_turns(sooner(timeout, self._wait_limit()), once=True)
            if self._timers:
                self._timers.run_due()
            self._core.flush()
            return count
        finally:
            self._is_running = False

    def stop(self) -> None:
        """Make `run` return after its present turn. From any thread, or a signal handler. `drain` ends sessions first.

        Sessions stay open until `close`; `run` may be called again.
        """
        self._stop_requested = self._dispatcher.attention = True
        self._core.wake()

    def drain(self, timeout: float | None = None, *, code: int = CloseCode.GOING_AWAY) -> None:
        """End gracefully: accept nothing, answer unfinished requests 503, and close every session with `code`.

        Called by a handler, or through `Sender.call`, it makes `run` return once all have ended, or after `timeout`
        seconds (None: `Options.drain_seconds_max`) when the rest are cut. Called outside of `run` it does all that
        before it returns.
        """
        core = self._core
        core.check_lasting()
        core.check_thread()
        number, _ = check_close(code, "")
        check_seconds(timeout)
        core.start()
        self._dispatcher.begin_drain(number)
        self._listeners.close()  # otherwise the kernel would go on completing connections
        self._drain.begin(self.options.drain_seconds_max if timeout is None else timeout)
        self._dispatcher.attention = True
        if not self._is_running:
            self._run(echo=False, signals=False)

    def _enter(self) -> None:
        """Raise unless the caller may run it now, and start it if it is new."""
        self._core.check_lasting()
        self._core.start()
        self._core.check_thread()
        if self._is_running:
            raise ReactorStateError("the reactor is running already")

    def _run(self, *, echo: bool, signals: bool = True) -> None:
        self._enter()
        self._is_running = True
        try:
            with self._signals() if signals else contextlib.nullcontext():
                if signals and self._has_nothing_to_do():
                    logger.warning("run() has nothing to do: bind a port, add a session or hold a Sender before it")
                while self._should_continue():
                    self._dispatcher.take_turns(self._wait_limit(), echo=echo)
                    if self._timers:
                        self._timers.run_due()
        finally:
            self._is_running = False
            self._stop_requested = False

    def _should_continue(self) -> bool:
        # Cleared first, so that a request for attention that comes meanwhile is kept. A drain and timers need to look
        # at the clock after every turn.
        self._dispatcher.attention = self._core.is_draining or bool(self._timers)
        return not self._stop_requested and self._has_work()

    def _has_work(self) -> bool:
        if self._signal is not None:
            self._drain_on_signal(self._signal)
        if self._drain.is_due:
            return self._drain.take_next_step()
        if self._core.sessions or self._commands.waiting:
            return True
        # In a drain no new session comes: a Sender that is still alive has no connection left to send to.
        return not self._core.is_draining and bool(self._listeners or self._commands.senders)

    def _has_nothing_to_do(self) -> bool:
        """Whether `run` would return at once although neither `stop` nor `drain` was called."""
        return not self._core.is_draining and not self._stop_requested and not self._has_work()

    def _wait_limit(self) -> float | None:
        """Return the seconds that a turn may wait; None is without end."""
        left = self._drain.seconds_left()
        return sooner(left, self._timers.seconds_left()) if self._timers else left

    def _signals(self) -> contextlib.AbstractContextManager[None]:
        """Turn SIGINT and SIGTERM into a drain, in the main thread, for as long as `run` runs."""
        return handled_by(self._on_signal, lib.urs_reactor_wake_descriptor(self._core.handle))

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._core.is_draining or self._signal is not None:
            self._stop_requested = True
        self._signal = number
        self._dispatcher.attention = True

    def _drain_on_signal(self, number: int) -> None:
        self._signal = None
        self.drain()
        sessions = self._core.sessions
        if sessions:
            logger.warning(
                "%s: waiting up to %g s for %d connections to close; a second %s ends it at once",
                signal.Signals(number).name,
                self.options.drain_seconds_max,
                sessions,
                "Ctrl-C" if number == signal.SIGINT else "signal",
            )

    # ---- its end

    def close(self) -> None:
        """Cut all sessions, stop listening, free everything: the reactor cannot be used any more. Twice is fine.

        From the thread that ran it or, once that has ended, from any: `on_close` is called there then. Raises
        WrongThread while that thread lives, ReactorStateError inside of `run`. If `on_close` raises KeyboardInterrupt
        or another exception that is not an Exception, close still calls it for the other connections and frees
        everything, and then raises that exception.
        """
        core = self._core
        with core.lock:
            if core.state in (RunState.CLOSED, RunState.CLOSING):
                return
            is_inherited = core.state is RunState.INHERITED
            if not is_inherited:
                self._check_may_close()
                core.become(RunState.CLOSING)  # on_close, called by it, may close it again
        self._dispatcher.close()
        try:
            if not is_inherited:
                self._dispatcher.end_all()
        finally:
            self._free()

    def _check_may_close(self) -> None:
        """Raise unless the caller may close it, and make it the owner."""
        core = self._core
        if self._is_running and core.owner.is_caller:
            raise ReactorStateError("close() inside of run(): call stop() or drain() and close after it returned")
        if core.owner.has_ended:
            core.take()
        core.check_thread()

    def _free(self) -> None:
        """Release everything that the reactor holds: the second half of `close`."""
        self._listeners.close()
        self._core.free()
        self._timers.clear()
        if self._dispatcher.watches is not None:
            self._dispatcher.watches.clear()
        self._commands.drop_all()

    def __del__(self) -> None:
        """Close a reactor that the application forgot, because the kernel writes into its memory, and warn."""
        core: Core | None = getattr(self, "_core", None)
        if core is not None and core.handle != ffi.NULL:
            name = repr(self)
            core.free()  # first: a warning may be an error (python -W error)
            warnings.warn(f"unclosed {name}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        """Name it for a log: backend, addresses and state. From any thread, at any time."""
        state = "running" if self._is_running else "not running"
        if self._core.state in _SHOWN:
            state = _SHOWN[self._core.state]
        addresses = self._listeners.addresses
        where = " on " + ", ".join(map(show_address, addresses)) if addresses else ""
        return f"<Reactor {self.backend}{where}, {state}>"

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    # ---- timers

    def call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> Timer:
        """Call `function(*arguments)` once, after 0 or more seconds, on the reactor's thread between two turns.

        Return a handle to cancel it by. It is called while `run` or `run_once` runs, never early, and late by the time
        that callbacks before it take. Its exceptions are logged. A timer keeps no reactor running: `run` ends without
        calling it when there is no listening socket, session and Sender left. Raises WrongThread (other threads write
        `sender.call(reactor.call_later, seconds, function)`), ReactorStateError once closed, TypeError or ValueError
        for wrong arguments.
        """
        self._core.check_lasting()
        timer = self._timers.add(seconds, None, function, arguments)
        self._dispatcher.attention = True  # the wait may have to be shorter now
        return timer

    def call_every(self, seconds: float, function: Callable[..., object], *arguments: Any) -> Timer:
        """Call `function(*arguments)` every so many seconds (0.001 or more), for the first time after as many.

        As `call_later`, until it is cancelled. The times are multiples of `seconds` from now: delays do not add up, and
        calls that a busy reactor missed are left out. It goes on after an exception.
        """
        self._core.check_lasting()
        timer = self._timers.add(seconds, seconds, function, arguments)
        self._dispatcher.attention = True
        return timer

    # ---- descriptors of others

    def watch(self, descriptor: Any, callback: Callable[[], object], *, writable: bool = False) -> Watch:
        """Call `callback()` after each turn in which a descriptor was readable (`writable`: writable); return a handle
        to cancel it by.

        This is for other descriptors on the reactor's thread: a pipe, a database client, another event loop.
        `descriptor` is a number, or an object with `fileno()`, of any file that poll(2) can wait for. A descriptor that
        is not read empty is reported again by the next turn, and so is one that has failed or was hung up. Each
        direction needs its own watch. The callback runs while `run` or `run_once` runs, on the reactor's thread; its
        exceptions are logged. A watch keeps no reactor running.

        The reactor keeps the open file until a turn after `Watch.cancel`: cancel before you close the descriptor.
        Raises WrongThread, ReactorStateError once closed, ValueError for a closed descriptor and for one that is always
        ready (a regular file), LimitReached with more than 1,024 watches, TypeError, and OSError of the system.
        """
        self._core.check_lasting()
        dispatcher = self._dispatcher
        if dispatcher.watches is None:
            dispatcher.watches = Watches(self._core)
        return dispatcher.watches.add(descriptor, callback, writable=writable)

    # ---- sessions from elsewhere

    def add_session(
        self,
        sock: socket.socket | int,
        *,
        handler: HandlerProtocol | None = None,
        options: Options | None = None,
        subprotocol: str | None = None,
        deflate: DeflateTerms | None = None,
        data: object = None,
    ) -> int:
        """Take over a connected socket that another server has upgraded. See `add_session_with_prefix`."""
        return self.add_session_with_prefix(
            sock, b"", handler=handler, options=options, subprotocol=subprotocol, deflate=deflate, data=data
        )

    def add_session_with_prefix(
        self,
        sock: socket.socket | int,
        prefix: Any,
        *,
        handler: HandlerProtocol | None = None,
        options: Options | None = None,
        subprotocol: str | None = None,
        deflate: DeflateTerms | None = None,
        data: object = None,
    ) -> int:
        """Take over a connected socket whose 101 answer was sent, with bytes already read past the request.

        `on_open` is called before this returns the connection's id; the prefix is handled in the next turn,
        before what is still in the socket. The descriptor belongs to the reactor as soon as this has returned:
        a socket.socket is detached (close() on it does nothing any more), a number must not be used again. If
        it raises, the caller keeps it. `handler` and `options` are for this connection alone, as for `bind`;
        there may be any number of handlers. `subprotocol` is what the upgrade agreed on, for
        `conn.subprotocol`, and `deflate` the terms of compression that its answer named
        (`DeflateTerms.from_response`). Raises TypeError for a TLS socket, whose bytes the kernel cannot
        decrypt; OSError for a socket that is not connected; LimitReached at `sessions_max` or while draining.
        """
        core = self._core
        core.check_usable()
        core.check_thread()
        number = check_stream(sock)
        buffer = memoryview(prefix).cast("B") if len(prefix) else b""
        service = self._service(handler, options)
        with core.lock:  # one thread at a time, also before it has an owner
            core.check_lasting()
            core.check_thread()
            connection = self._dispatcher.adopt(number, buffer, subprotocol, data, service, deflate=deflate)
            if isinstance(sock, socket.socket):
                sock.detach()
        self._dispatcher.open_adopted(connection)
        return connection.id

    # ---- requests that are answered later

    def answer(
        self, request: Request | RequestHead | int, decision: Accept | Reject | Response | RawAnswer | None
    ) -> bool:
        """Answer a request for which a callback returned `uringws.LATER`; return whether its peer was still there.

        `request` is what the callback was given, or its `id`. `decision` is what the callback might have returned:
        Accept, Reject or None for `on_upgrade`, Response or None for `on_request`, RawAnswer or None for `on_head`.
        `on_open` is called before this returns, and then what the peer has sent already is delivered. It may be called
        while the callback still runs; the request is then answered when the callback has returned LATER.

        A request that was abandoned (its peer has left, `Options.handshake_seconds_max` is over, the reactor drains)
        gives False; `on_upgrade_abandoned` is not called for it after that. So does an id that was answered before,
        once its connection has ended.

        Raises ReactorStateError for a second answer, TypeError or ValueError for a decision that does not fit (the
        request goes on waiting), WrongThread in another thread: those take `Sender.answer`.
        """
        self._core.check_usable()
        self._core.check_thread()
        if self._core.state is RunState.CLOSING:
            self._deferred.drop(request)
            return False
        return self._dispatcher.answer(request, decision)

    # ---- other threads

    def sender(self) -> Sender:
        """Return a handle for other threads. `run` goes on while one is alive: release it, or use it in a `with`."""
        self._core.check_usable()
        return Sender(self, self._core, self._sessions, self._commands, self._deferred, topics=self._topics)

    # ---- figures

    def stats(self) -> Stats:
        """Return counters and the present state, which takes some microseconds. Raises WrongThread unless the reactor's
        thread calls it, or the reactor has no thread yet.
        """
        self._core.check_usable()
        self._core.check_thread()
        shim = ffi.new("struct urs_reactor_stats *")
        lib.urs_reactor_read_stats(self._core.handle, shim)
        return stats_of(
            shim,
            backend=self.backend,
            accepted=self._sessions.made,
            rejected=sum_refusals(self._sessions.rejected, shim),
            close_codes=dict(self._sessions.close_codes),
        )

    # ---- its process

    def _inherit(self) -> None:
        """Be a copy in a forked child."""
        self._core.inherit()
        self._commands.renew_lock()


_SHOWN: Final = {RunState.CLOSED: "closed", RunState.INHERITED: "of the parent process"}

_reactors: weakref.WeakSet[Reactor] = weakref.WeakSet()


def _after_fork() -> None:
    """Tell the reactors that a child inherited: it may not touch the rings."""
    for reactor in list(_reactors):
        reactor._inherit()


os.register_at_fork(after_in_child=_after_fork)
