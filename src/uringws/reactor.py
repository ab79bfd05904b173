"""The reactor: one thread, one I/O backend, many sessions. Runs the shim's turns and hands their events to the handler.

Policy and bookkeeping of Python's side live here; how an opening request is answered lives in upgrade.py, bytes and
protocol live in the shim.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
import socket
import threading
import time
import warnings
import weakref
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, Self

from uringws.backend import Backend, Opened, open_core
from uringws.callbacks import came_out_of, look_up
from uringws.connection import Connection, make_connection, peer_of
from uringws.errors import ConnectionClosed, ReactorStateError, RejectReason, UringUnavailable, WrongThread, check
from uringws.frames import CloseCode
from uringws.handshake import refusal
from uringws.http import encode_refusal
from uringws.limits import warn_of_few_files
from uringws.message import Message
from uringws.options import Options, copy_options, copy_rules
from uringws.ownership import Owner
from uringws.seconds import check_seconds, sooner
from uringws.sender import Sender
from uringws.sending import check_close
from uringws.shim import ffi, lib
from uringws.signals import handled_by
from uringws.sockets import (
    Address,
    BoundPath,
    address_of,
    check_listener,
    check_stream,
    listen_tcp,
    listen_unix,
    show_address,
)
from uringws.stats import Stats, stats_of
from uringws.timers import Timer, Timers
from uringws.upgrade import Answer, Upgrade, answer_or_500

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

    from uringws.handler import HandlerProtocol
    from uringws.http import Peer

__all__ = ["Reactor"]

logger = logging.getLogger("uringws")

_REFUSALS: Final[tuple[RejectReason, ...]] = (
    "sessions_max",
    "sessions_per_ip_max",
    "handshakes_max",
    "draining",
    "timeout",
    "memory",
)
"""The names of enum urs_refusal, in its order."""
_DATE_STARTS: Final = b"\r\nDate: "

_LOST_REASONS: Final = {0: "the peer closed the TCP connection without a close frame"}

# Looked up once: an attribute of the module costs as much as a small call.
_turn_shim: Final = lib.urs_reactor_turn
_EVENTS_MAX: Final = lib.URS_EVENTS_MAX

_LAST_READ_SECONDS: Final = 0.2  # what a drain leaves, at its end, for answers that have come and are not read yet


def _nothing(*_: object) -> None:
    """Stand in for a callback that a handler lacks."""


class Reactor:
    """A WebSocket server (RFC 6455) for the thread that runs it.

    `handler` gets every connection's events; its callbacks are looked up here, once, so that one assigned to it later
    is not called. `backend` is "io_uring", "epoll", or "auto": io_uring where it is available, else epoll, with a
    warning that says why. Raises UringUnavailable for "io_uring" where it is not available, ValueError for another
    backend, OSError where not even epoll is available, TypeError for what is no handler.

    A reactor belongs to the thread that first runs it. `stop`, `sender` and what a Sender does are for all threads;
    the rest raises WrongThread elsewhere, except that any thread may close it once its own thread has ended. It is a
    context manager that closes itself.
    """

    def __init__(self, handler: HandlerProtocol, options: Options | None = None, *, backend: Backend = "auto") -> None:
        """Set everything up but the listening sockets; nothing is accepted before `run`."""
        self.handler: Final = handler
        self.options: Final = Options() if options is None else options
        if not isinstance(self.options, Options):
            raise TypeError(f"options must be Options, not {type(options).__name__}")
        self._callbacks: Final = look_up(handler)
        self._on_open = self._callbacks.on_open or _nothing
        self._on_message = self._callbacks.on_frame or self._callbacks.on_message or _nothing
        self._on_drain = self._callbacks.on_drain or _nothing
        self._on_close = self._callbacks.on_close or _nothing

        # By slot, those that take messages. The last one is None always: the target of all that is no message is -1.
        self._connections: list[Connection | None] = [None]
        self._ending: dict[int, Connection] = {}  # by slot, those that await only on_close
        self._listeners: list[socket.socket] = []
        self._own_listeners: list[socket.socket] = []  # those of bind and bind_unix, which no other server shares
        self._addresses: list[Address] = []
        self._bound_paths: list[BoundPath] = []
        self._commands: deque[Callable[[], object]] = deque()
        self._timers = Timers(self._check_thread)
        self._new_locks()
        self._senders = 0
        self._abandoned: deque[None] = deque()  # Senders that were collected without a release
        self._answered: tuple[int, Answer] | None = None  # the answer that is being carried out
        self._sessions_made = 0
        self._rejected: Counter[RejectReason] = Counter()
        self._close_codes: Counter[int] = Counter()

        self._owner = Owner()
        self._running = False
        self._stopping = False
        self._signal: int | None = None  # one that came, and was not acted on yet
        self._attention = False  # there is more to look at than events
        self._drained_until: float | None = None
        self._reads_last = False
        self._was_cut = False
        self._inherited = False
        self._closing_down = False

        # Last, so that __del__ finds all it needs from the moment there is something to free.
        self._opened = self._open(backend, frames=self._callbacks.on_frame is not None)
        self._core: Any = self._opened.core
        self._message = Message(self, self._core, self._pool, self._verdicts)
        targets = lib.urs_reactor_columns(self._core).targets
        self._targets = memoryview(ffi.buffer(targets, ffi.sizeof("int32_t") * _EVENTS_MAX)).cast("i")
        self._events = lib.urs_reactor_events(self._core)
        _reactors.add(self)

    def _open(self, backend: str, *, frames: bool) -> Opened:
        options = self.options
        pool_bytes = lib.urs_pool_bytes(options.receive_buffers, options.receive_buffer_bytes)
        # Python owns this memory: a view that a handler keeps shows stale bytes, never freed memory.
        pool = mmap.mmap(-1, pool_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pool = memoryview(pool)
        self._verdicts = bytearray(_EVENTS_MAX)
        self._handled = ffi.new("uint32_t[1]")
        self._anchors = (ffi.from_buffer("uint8_t[]", pool), ffi.from_buffer("uint8_t[]", self._verdicts))
        shim = ffi.new("struct urs_reactor_options *")
        shim.pool_memory, shim.verdicts = self._anchors
        shim.handled = self._handled
        rules = ffi.new("struct urs_rules *")
        self._refusals = self._encode_refusals(rules)
        rules.engine.frames = frames
        copy_options(options, shim, pool_bytes)
        copy_rules(options, rules)
        return open_core(backend, shim, rules)

    def _encode_refusals(self, rules: Any) -> list[Any]:
        """Give the shim its answers to those it refuses itself; return what keeps their memory."""
        kept = []
        for index, reason in enumerate(_REFUSALS):
            answer = bytearray(encode_refusal(refusal(reason), server_header=self.options.server_header))
            kept.append(ffi.from_buffer("uint8_t[]", answer))
            date_at = answer.index(_DATE_STARTS) + len(_DATE_STARTS)
            rules.refusals[index] = {"data": kept[-1], "bytes": len(answer), "date_at": date_at}
        return kept

    # ---- where it listens

    @property
    def backend(self) -> str:
        """The backend in use: "io_uring" or "epoll"."""
        return self._opened.name

    @property
    def unavailable(self) -> UringUnavailable | None:
        """Why "auto" did not take io_uring; None if it did."""
        return self._opened.refused

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, in the order of the bind calls. A drained or closed reactor still names its addresses."""
        return list(self._addresses)

    def bind(self, host: str, port: int, *, reuse_port: bool = False) -> tuple[str, int]:
        """Listen on a TCP port, 0 to 65535; return (host, port) with the port that a 0 was turned into.

        `host` is an IPv4 or IPv6 address or a name (its first address is taken; "" is all of IPv4, "::" all of IPv6).
        `reuse_port` lets several reactors share the port, the kernel spreading connections among them (SO_REUSEPORT,
        socket(7)). Raises OSError with the address in its text, ValueError or TypeError for what is no address.
        """
        self._check_usable()
        self._check_thread()
        listener = listen_tcp(host, port, reuse_port=reuse_port)
        try:
            self._listen(listener)
        except BaseException:
            listener.close()
            raise
        self._own_listeners.append(listener)
        name = listener.getsockname()
        return name[0], name[1]

    def bind_unix(self, path: str | os.PathLike[str], *, mode: int | None = None) -> Address:
        r"""Listen on a Unix socket; return its address as `addresses` has it.

        `path` is that of a file, or begins with NUL for an abstract name ("\0chat", unix(7)). `mode` is the file's
        permissions, such as 0o660 (a client needs the right to write); None leaves them to the umask. A socket
        of that path that nobody listens on is replaced. `close` and `drain` remove the file if it is still this
        reactor's own. Raises OSError with the path in its text, also where anything else lies there; ValueError or
        TypeError for what is no path or mode.
        """
        self._check_usable()
        self._check_thread()
        listener, bound_path = listen_unix(os.fsdecode(path), mode)
        try:
            address = self._listen(listener)
        except BaseException:
            if bound_path is not None:
                bound_path.remove()
            listener.close()
            raise
        self._own_listeners.append(listener)
        if bound_path is not None:
            self._bound_paths.append(bound_path)
        return address

    def bind_socket(self, sock: socket.socket) -> Address:
        """Listen on a socket that is bound already (and listening, or not yet).

        The reactor owns it from now on; if this raises, the caller keeps it. The file of a Unix socket stays the
        caller's to remove. Other processes and event loops may share the socket (a duplicate of it, or inherited): on
        io_uring it stays blocking or non-blocking, whatever it is; epoll makes it non-blocking for all of them, since
        it would otherwise wait for a connection that another has accepted.
        """
        self._check_usable()
        self._check_thread()
        check_listener(sock)
        return self._listen(sock)

    def _listen(self, sock: socket.socket) -> Address:
        if self.options.tcp_nodelay and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what it accepts
        sock.listen(self.options.listen_backlog)
        with self._core_lock:
            self._check_lasting()
            self._check_thread()
            if self._drained_until is not None:
                raise ReactorStateError("a reactor that drains listens no more: make a new one")
            check(lib.urs_reactor_listen(self._core, sock.fileno(), sock.family == socket.AF_UNIX, 0), "listen")
        self._listeners.append(sock)
        self._addresses.append(address_of(sock))
        return self._addresses[-1]

    # ---- running

    def run(self) -> None:
        """Serve until `stop`, or a signal, or there is no listening socket, session and Sender left.

        In the main thread SIGINT and SIGTERM drain it (`Options.drain_seconds_max`), unless the process ignores them; a
        second one ends it at once. Afterwards both are as they were.

        What is no error and gets out of a callback (KeyboardInterrupt), or what another signal's handler raises, gets
        out of here. No event is lost by it, and `run` may be called again.
        """
        self._run(echo=False)

    def run_echo(self) -> None:
        """Serve as `run` does, but send every message back without calling the handler for it."""
        self._run(echo=True)

    def run_once(self, timeout: float | None = None) -> int:
        """Take one turn, waiting at most `timeout` seconds (None: without end); return the number of its events.

        0 is a time-out, a wake-up, a timer, a signal or the deadline of a drain. What the handlers owe leaves with the
        next turn. Raises WrongThread, ReactorStateError inside of `run`, OSError for a backend beyond use, TypeError or
        ValueError for no time.
        """
        check_seconds(timeout)
        self._enter()
        self._running = True  # here: a signal handler that raises on the way out of a call must not leave it set
        try:
            if self._drained_until is not None and time.monotonic() >= self._drained_until:
                self._cut()
            count = self._turns(sooner(timeout, self._patience()), once=True)
            if self._timers:
                self._timers.run_due()
            return count
        finally:
            self._running = False

    def stop(self) -> None:
        """Make `run` return after its present turn. From any thread, or a signal handler; for good manners see `drain`.

        Sessions stay open until `close`; `run` may be called again.
        """
        self._stopping = self._attention = True
        self._wake()

    def drain(self, timeout: float | None = None, *, code: int = CloseCode.GOING_AWAY) -> None:
        """End in good order: accept nothing, answer requests that have begun 503, close every session with `code`.

        Called by a handler, or through `Sender.call`, it makes `run` return once all have ended, or after `timeout`
        seconds (None: `Options.drain_seconds_max`) when the rest are cut. Called outside of `run` it does all that
        before it returns.
        """
        self._check_lasting()
        self._check_thread()
        number, _ = check_close(code, "")
        check_seconds(timeout)
        if not self._owner.is_known:
            self._start()
        lib.urs_reactor_drain(self._core, self._message._owed(None), number)
        self._close_listeners()  # else the kernel would go on completing connections that nobody takes
        for connection in [connection for connection in self._connections if connection is not None]:
            self._closing(connection)
        seconds = self.options.drain_seconds_max if timeout is None else timeout
        self._drained_until = time.monotonic() + seconds
        self._attention = True
        if not self._running:
            self._run(echo=False, signals=False)

    def close(self) -> None:
        """Cut all sessions, stop listening, free everything: the reactor cannot be used any more. Twice is fine.

        From the thread that ran it or, once that has ended, from any: `on_close` is called there then. Raises
        WrongThread while that thread lives, ReactorStateError inside of `run`. If `on_close` raises what is no error
        (KeyboardInterrupt), close still calls it for the other connections and frees everything, and then raises it.
        """
        with self._core_lock:
            if self._core == ffi.NULL or self._closing_down:
                return
            if not self._inherited:
                self._check_may_close()
                self._closing_down = True  # on_close, called by it, may close once more
        # From here on all connections are closed: what on_close sent, to whomever, would never leave.
        self._message._core = ffi.NULL
        self._message._address = 0
        try:
            if not self._inherited:
                self._end_all()
        finally:
            self._free()

    def _free(self) -> None:
        """Give back all that the reactor has: the second half of `close`."""
        with self._core_lock:
            core, self._core = self._core, ffi.NULL
        self._message._index = _EVENTS_MAX  # nothing of it is there to be read any more
        lib.urs_reactor_close(core)
        self._close_listeners()
        self._timers.clear()
        with self._commands_lock:
            self._commands.clear()
            self._commands_lock.notify_all()

    def __del__(self) -> None:
        """Free what nobody closed, for the kernel writes into this memory; say so, as a socket would."""
        core = getattr(self, "_core", ffi.NULL)
        if core != ffi.NULL:
            lib.urs_reactor_close(core)  # first: a warning may be an error (python -W error)
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        """Name it for a log: backend, addresses and state. From any thread, at any time."""
        if self._core == ffi.NULL:
            state = "closed"
        elif self._inherited:
            state = "of the parent process"
        else:
            state = "running" if self._running else "not running"
        where = " on " + ", ".join(map(show_address, self._addresses)) if self._addresses else ""
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

        Return a handle to cancel it by. It is called while `run` or `run_once` runs, never early, and late by as much
        as the callbacks before it take. What it raises is logged. A timer keeps no reactor running: `run` ends without
        calling it when there is no listening socket, session and Sender left. Raises WrongThread (from other threads:
        `sender.call(lambda: reactor.call_later(...))`), ReactorStateError once closed, TypeError or ValueError for no
        time and no function.
        """
        self._check_lasting()
        timer = self._timers.add(seconds, None, function, arguments)
        self._attention = True  # the wait may have to be shorter now
        return timer

    def call_every(self, seconds: float, function: Callable[..., object], *arguments: Any) -> Timer:
        """Call `function(*arguments)` every so many seconds (0.001 or more), for the first time after as many.

        As `call_later`, until it is cancelled. The times are multiples of `seconds` from now: a delay does not add up,
        and calls that a busy reactor missed are left out. It goes on after an exception.
        """
        self._check_lasting()
        timer = self._timers.add(seconds, seconds, function, arguments)
        self._attention = True
        return timer

    # ---- sessions from elsewhere

    def add_session(self, sock: socket.socket | int, *, subprotocol: str | None = None, data: object = None) -> int:
        """Take over a connected socket that another server has upgraded. See `add_session_with_prefix`."""
        return self.add_session_with_prefix(sock, b"", subprotocol=subprotocol, data=data)

    def add_session_with_prefix(
        self, sock: socket.socket | int, prefix: Any, *, subprotocol: str | None = None, data: object = None
    ) -> int:
        """Take over a connected socket whose 101 answer was sent, with bytes already read past the request.

        `on_open` is called before this returns the connection's id; the prefix is handled in the next turn, before
        what is still in the socket. The descriptor belongs to the reactor as soon as this has returned: a
        socket.socket is detached (close() on it does nothing any more), a number must not be used again. If it raises,
        the caller keeps it. `subprotocol` is what the upgrade agreed on, for `conn.subprotocol`. Raises TypeError for
        a TLS socket, whose bytes the kernel cannot decrypt; OSError for a socket that is not connected; LimitReached
        at `sessions_max` or while draining.
        """
        self._check_usable()
        self._check_thread()
        number = check_stream(sock)
        buffer = memoryview(prefix).cast("B") if len(prefix) else b""
        with self._core_lock:  # one thread at a time, also before it has an owner
            self._check_lasting()
            self._check_thread()
            connection = self._adopt(number, buffer, subprotocol, data)
            if isinstance(sock, socket.socket):
                sock.detach()
        self._call(connection, self._on_open, connection)
        return connection.id

    def _adopt(self, descriptor: int, prefix: Any, subprotocol: str | None, data: object) -> Connection:
        identity = ffi.new("uint64_t *")
        with ffi.from_buffer("uint8_t[]", prefix) as buffer:  # no exception may keep it: see Connection._send_any
            result = lib.urs_reactor_adopt(self._core, descriptor, 0, buffer, len(prefix), identity)
        check(result, "add_session")
        connection = self._prepare_connection(int(identity[0]), subprotocol, data)
        self._connections[connection.id & 0xFFFFFFFF] = connection
        self._sessions_made += 1
        return connection

    def sender(self) -> Sender:
        """Return a handle for other threads. `run` goes on while one is alive: release it, or use it in a `with`."""
        self._check_usable()
        return Sender(self)

    # ---- figures

    def stats(self) -> Stats:
        """Return counters and the present state, at the cost of some microseconds.

        From the reactor's thread, or before it has one: else WrongThread.
        """
        self._check_usable()
        self._check_thread()
        shim = ffi.new("struct urs_reactor_stats *")
        lib.urs_reactor_read_stats(self._core, shim)
        return stats_of(
            shim,
            backend=self.backend,
            accepted=self._sessions_made,
            rejected=self._rejections(shim),
            close_codes=dict(self._close_codes),
        )

    def _rejections(self, shim: Any) -> dict[RejectReason, int]:
        """Return those that Python decided on and those of the shim, by reason."""
        rejected = Counter(self._rejected)
        rejected.update({name: int(shim.refused[index]) for index, name in enumerate(_REFUSALS) if shim.refused[index]})
        return dict(rejected)

    # ---- the turn

    def _run(self, *, echo: bool, signals: bool = True) -> None:
        self._enter()
        self._running = True
        try:
            with self._signals() if signals else contextlib.nullcontext():
                if signals and self._is_idle():
                    logger.warning("run() has nothing to do: bind a port, add a session or hold a Sender before it")
                while self._goes_on():
                    self._turns(self._patience(), echo=echo)
                    if self._timers:
                        self._timers.run_due()
        finally:
            self._running = False
            self._stopping = False

    def _goes_on(self) -> bool:
        # First, so that what asks for attention meanwhile is not forgotten. A drain watches its deadline each turn, and
        # timers theirs.
        self._attention = self._drained_until is not None or bool(self._timers)
        return not self._stopping and self._has_work()

    def _turns(self, timeout: float | None, *, echo: bool = False, once: bool = False) -> int:
        """Take turns for as long as they bring events and nothing asks for attention; return the last one's events."""
        milliseconds = -1 if timeout is None else int(timeout * 1000 + 0.999)
        core, targets, message, handled = self._core, self._targets, self._message, self._handled
        on_message = _nothing if echo else self._on_message  # the shim echoes
        if message._index != _EVENTS_MAX:
            self._note_handled()
        while True:
            count: int = _turn_shim(core, milliseconds, echo)
            if count > 0:
                first = handled[0]
                self._dispatch(enumerate(targets[first:count].tolist(), first), on_message)
                handled[0] = count
                message._index = _EVENTS_MAX
            elif count < 0:
                if count != -_EINTR:
                    check(count, f"{self.backend} turn")
                count = 0
            if self._commands:
                self._run_commands()
            if once or not count or self._attention:
                return count

    def _note_handled(self) -> None:
        """Tell the shim where an exception got out of the dispatch: it returns the rest of the turn's events again.

        An event is handled once its callback is called. For a message that is when it is at hand: between the two
        nothing can raise. Those of the others are noted as they are called.
        """
        index = self._message._index
        self._handled[0] = max(self._handled[0], index + (self._targets[index] >= 0))
        self._message._index = _EVENTS_MAX

    def _dispatch(self, batch: Iterator[tuple[int, int]], on_message: Callable[..., object]) -> None:
        """Hand a batch of events to the handler, and log what its callbacks raise. All else gets out (a
        KeyboardInterrupt, what a signal handler raises between two callbacks); the events after it wait for the next
        turn.
        """
        message = self._message
        connections = self._connections
        connection: Connection | None = None
        while True:
            try:
                for message._index, slot in batch:
                    connection = connections[slot]
                    if connection is None:
                        if slot < 0:
                            self._on_other()
                        else:
                            assert slot in self._ending, f"slot {slot} has no connection"  # noqa: S101
                        continue
                    message._connection = connection
                    on_message(connection, message)
                    view = message._view
                    if view is not None:  # Message._release, written out: the call would cost more than all of it
                        message._view = None
                        try:  # noqa: SIM105 - as there
                            view.release()
                        except BufferError:
                            pass
                return
            except Exception as error:
                if connection is None or on_message is _nothing or not came_out_of(on_message, error):
                    raise
                self._failed(connection, error)
            finally:
                message._connection = None
                if message._view is not None:
                    message._release()

    def _on_other(self) -> None:
        """Handle the event at the message's index, which is no message."""
        message = self._message
        index = message._index
        event = self._events[index]
        try:
            message._connection = None
            message._hide()
            message._index = index + 1  # this event is carried out before what its handler asks for
            self._on_event(event.slot, event.item)
            self._handled[0] = index + 1
        finally:  # no calls here: a signal handler could raise in them
            message._index = index
            message._offsets, message._lengths, message._opcodes = message._columns

    def _on_event(self, slot: int, item: Any) -> None:
        """Call back for what is no message. Callbacks of the application that fail are dealt with here."""
        kind = item.kind
        if kind == lib.URS_EVENT_UPGRADE:
            self._on_upgrade(slot, item)
        elif kind == lib.URS_EVENT_DRAIN:
            connection = self._connections[slot]
            if connection is not None:
                self._call(connection, self._on_drain, connection)
        elif kind == lib.URS_ITEM_CLOSE:
            reason = ffi.unpack(ffi.cast("char *", item.payload), item.bytes).decode() if item.bytes else ""
            self._ended(slot, item.close_code, reason)
        elif kind == lib.URS_ITEM_FAILED:
            self._ended(slot, item.close_code, ffi.string(lib.urs_engine_error_text(item.error)).decode())
        elif kind == lib.URS_EVENT_LOST:
            self._ended(slot, item.close_code or CloseCode.ABNORMAL, _lost_reason(item.error))

    def _on_upgrade(self, slot: int, item: Any) -> None:
        identity = int(lib.urs_reactor_id(self._core, slot))
        connection = self._connection(identity)  # there already, if an exception came before on_open was called
        if connection is None and lib.urs_session_state(self._core, identity) == lib.URS_SESSION_AWAIT_VERDICT:
            connection = self._answer(Upgrade(identity, item, self._peer(identity)))
        if connection is not None:
            self._call(connection, self._on_open, connection)

    def _answer(self, upgrade: Upgrade) -> Connection | None:
        """Answer a request, and return its connection if it has become one. What got out of it is raised then."""
        identity = upgrade.identity
        error = connection = None
        if self._answered is not None and self._answered[0] == identity:
            answer = self._answered[1]  # an exception came before it was carried out
        else:
            answer, error = answer_or_500(self, upgrade)
            self._answered = identity, answer
        if answer.accepted:
            connection = self._prepare_connection(identity, answer.subprotocol, answer.data)
            slot, response, size = identity & 0xFFFFFFFF, answer.response, len(answer.response)
            # No call between these, in which a signal handler could raise: a session opens with its connection.
            self._connections[slot] = connection
            self._sessions_made += 1
            if lib.urs_session_accept(self._core, identity, response, size) < 0:
                self._connections[slot] = None
                self._sessions_made -= 1
                connection = None
        else:
            reason, response, size = answer.reason, answer.response, len(answer.response)
            count = 0 if reason is None else self._rejected[reason] + 1
            if reason is not None:
                self._rejected[reason] = count  # no call after it but the next
            lib.urs_session_reject(self._core, identity, response, size)
        self._answered = None
        if error is not None:
            raise error
        return connection

    def _prepare_connection(self, identity: int, subprotocol: str | None, data: object) -> Connection:
        """Make a connection, and room for it; it is not among the others yet."""
        while len(self._connections) <= (identity & 0xFFFFFFFF) + 1:
            self._connections.append(None)
        return make_connection(self._message, identity, subprotocol, data)

    def _ended(self, slot: int, code: int, reason: str) -> None:
        """Call on_close, once: events of sessions that never opened, or have ended, find no connection."""
        ending = self._ending.get(slot)
        connection = ending
        if ending is None and slot < len(self._connections):
            connection = self._connections[slot]
        if connection is None:
            return
        code = int(code)
        count = self._close_codes[code] + 1
        # No call from here to the callback, in which a signal handler could raise.
        self._close_codes[code] = count
        if ending is not None:
            del self._ending[slot]
        else:
            self._connections[slot] = None
        if self._message._index < _EVENTS_MAX:
            self._handled[0] = self._message._index
        try:
            self._on_close(connection, code, reason)
        except Exception:
            logger.exception("on_close of %r failed", connection)

    def _closing(self, connection: Connection) -> None:
        """Deliver no more messages of a connection whose close handshake has begun; on_close is to come."""
        slot = connection.id & 0xFFFFFFFF
        if self._connections[slot] is connection:
            self._connections[slot] = None
            self._ending[slot] = connection
        if self._message._connection is connection:
            self._message._connection = None  # too late to echo it

    def _call(self, connection: Connection, callback: Callable[..., object], *arguments: object) -> None:
        if self._message._index < _EVENTS_MAX:
            self._handled[0] = self._message._index  # counts as handled from here on
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(connection, error)

    def _failed(self, connection: Connection | None, error: Exception) -> None:
        """A callback raised: log it, and close its connection with 1011."""
        if isinstance(error, ConnectionClosed) and connection is not None and not connection.is_open:
            # It answered a peer that has left meanwhile: no fault of the handler's, and on_close is to come.
            logger.debug("%r ended before it was answered", connection)
            return
        logger.error("the handler of %r failed; it is closed with 1011", connection, exc_info=error)
        if connection is not None and connection.is_open:
            with contextlib.suppress(Exception):
                connection.close(CloseCode.INTERNAL_ERROR, "internal error")

    # ---- its thread, its signals, its end

    def _enter(self) -> None:
        """Raise unless the caller may run it now, and start it if nobody has."""
        self._check_lasting()
        if not self._owner.is_known:
            self._start()
        self._check_thread()
        if self._running:
            raise ReactorStateError("the reactor is running already")

    def _start(self) -> None:
        warn_of_few_files(self.options.sessions_max)
        with self._core_lock:  # other threads may still be adding what it is to begin with, start it or close it
            self._check_lasting()
            if self._owner.is_known:
                return
            check(lib.urs_reactor_start(self._core), f"{self.backend} start")
            self._owner.take()

    def _check_thread(self) -> None:
        if not self._owner.is_known or self._owner.is_caller:
            return
        if self._owner.has_ended:
            raise WrongThread("the thread that ran the reactor has ended: all that can be done with it is close()")
        raise WrongThread("a reactor belongs to the thread that first ran it: use reactor.sender() from others")

    def _check_may_close(self) -> None:
        """Raise unless the caller may close it, and make it the owner."""
        if self._running and self._owner.is_caller:
            raise ReactorStateError("close() inside of run(): call stop() or drain() and close after it returned")
        if self._owner.has_ended:
            lib.urs_reactor_take(self._core)
            self._owner.take()
        self._check_thread()

    def _check_usable(self) -> None:
        if self._inherited:
            raise ReactorStateError("the reactor belongs to the parent process: make one after the fork")
        if self._core == ffi.NULL:
            raise ReactorStateError("the reactor is closed")

    def _check_lasting(self) -> None:
        """Raise for what would begin something: also in an `on_close` that `close` calls."""
        self._check_usable()
        if self._closing_down:
            raise ReactorStateError("the reactor is being closed")

    def _has_work(self) -> bool:
        if self._abandoned:
            with self._commands_lock:
                while self._abandoned:
                    self._abandoned.pop()
                    self._senders -= 1
        if self._signal is not None:
            self._drain_on_signal(self._signal)
        if self._drained_until is not None and time.monotonic() >= self._drained_until:
            return self._cut()
        if self._drained_until is not None:
            # Nothing comes in any more: a Sender that is still alive has nobody left to send to.
            return bool(lib.urs_reactor_sessions(self._core) or self._commands)
        if self._listeners:
            return True
        return bool(lib.urs_reactor_sessions(self._core) or self._commands or self._senders)

    def _is_idle(self) -> bool:
        """Whether `run` would return at once although nobody asked for it."""
        return self._drained_until is None and not self._stopping and not self._has_work()

    def _cut(self) -> bool:
        """End the sessions that outlasted the drain; return whether a turn is needed to tell their handlers."""
        sessions = lib.urs_reactor_sessions(self._core)
        self._drained_until = time.monotonic() + 1.0
        if self._was_cut or not sessions:
            return False
        if not self._reads_last and lib.urs_reactor_unread(self._core):
            # This thread was held up: answers have come that it has not read.
            self._reads_last = True
            self._drained_until = time.monotonic() + _LAST_READ_SECONDS
            return True
        self._was_cut = True
        logger.warning("%d sessions outlasted the drain and are cut", sessions)
        lib.urs_reactor_cut(self._core)
        return True

    def _patience(self) -> float | None:
        """Seconds that a turn may wait."""
        left = None if self._drained_until is None else max(0.0, self._drained_until - time.monotonic())
        return sooner(left, self._timers.seconds_left()) if self._timers else left

    def _signals(self) -> contextlib.AbstractContextManager[None]:
        """Turn SIGINT and SIGTERM into a drain, in the main thread, for as long as `run` runs."""
        return handled_by(self._on_signal, lib.urs_reactor_wake_descriptor(self._core))

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._drained_until is not None or self._signal is not None:
            self._stopping = True
        self._signal = number
        self._attention = True

    def _drain_on_signal(self, number: int) -> None:
        self._signal = None
        self.drain()
        sessions = lib.urs_reactor_sessions(self._core)
        if sessions:
            logger.warning(
                "%s: waiting up to %g s for %d connections to close; a second %s ends it at once",
                signal.Signals(number).name,
                self.options.drain_seconds_max,
                sessions,
                "Ctrl-C" if number == signal.SIGINT else "signal",
            )

    def _end_all(self) -> None:
        """Tell the handler of every connection that close() cuts, and then raise the first thing that got out of it."""
        got_out: BaseException | None = None
        for slot in range(len(self._connections)):
            try:
                self._ended(slot, CloseCode.ABNORMAL, "the reactor was closed")
            except BaseException as error:  # noqa: BLE001 - raised below
                got_out = error if got_out is None else got_out
        if got_out is not None:
            raise got_out

    def _peer(self, identity: int) -> Peer:
        peer = ffi.new("struct urs_peer *")
        result = lib.urs_session_peer(self._core, identity, peer)
        if result == lib.URS_ERROR_STALE:
            return None
        check(result, "peer")
        return peer_of(peer)

    def _close_listeners(self) -> None:
        for bound_path in self._bound_paths if not self._inherited else ():
            bound_path.remove()
        self._bound_paths.clear()
        for listener in self._own_listeners if not self._inherited else ():
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # a forked child would otherwise keep the port open
        self._own_listeners.clear()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    # ---- other threads

    def _connection(self, identity: int) -> Connection | None:
        """Return the connection of that id if messages can be sent on it."""
        slot = identity & 0xFFFFFFFF
        connections = self._connections
        connection = connections[slot] if slot < len(connections) else None
        return connection if connection is not None and connection.id == identity else None

    def _new_locks(self) -> None:
        self._commands_lock = threading.Condition()
        # Reentrant: a signal handler or a collection may wake a reactor that its thread is about to wake.
        self._core_lock = threading.RLock()

    def _wake(self) -> None:
        if self._inherited:
            return
        with self._core_lock:  # the reactor's thread may be about to free it
            if self._core != ffi.NULL:
                lib.urs_reactor_wake(self._core)

    def _run_commands(self) -> None:
        """Carry out what Senders asked for, as much as was there when the turn ended."""
        commands = self._commands
        for _ in range(len(commands)):
            try:
                command = commands[0]
                del commands[0]  # no call, in which a signal handler could raise: it is called, or still waits
                command()
            except Exception:
                logger.exception("a command of a Sender failed")
        with self._commands_lock:
            self._commands_lock.notify_all()


_EINTR: Final = 4

_reactors: weakref.WeakSet[Reactor] = weakref.WeakSet()


def _after_fork() -> None:
    """A ring belongs to the process that made it: its copies in a child are not to be touched."""
    for reactor in list(_reactors):
        reactor._inherited = True
        reactor._new_locks()  # whoever held them is not in this process
        if reactor._core != ffi.NULL:
            lib.urs_reactor_forked(reactor._core)


os.register_at_fork(after_in_child=_after_fork)


def _lost_reason(error: int) -> str:
    if error in _LOST_REASONS:
        return _LOST_REASONS[error]
    if error > -4096:
        return os.strerror(-error)
    return str(ffi.string(lib.urs_engine_error_text(error)).decode())
