"""The handle for other threads: commands to the reactor, in order, bounded, waking it once a burst."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, Final, Self, overload

from uringws.errors import ConnectionClosed, ReactorStateError, SenderFull
from uringws.frames import CloseCode
from uringws.sending import ABSENT, check_close, check_send, name_opcode
from uringws.shim import ffi
from uringws.sockets import check_stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType

    from uringws.connection import Connection
    from uringws.reactor import Reactor
    from uringws.sending import Payload

__all__ = ["Sender"]

_LOOK_SECONDS: Final = 0.5


class Sender:
    """Commands to a reactor from any thread, carried out in the order of each thread's calls.

    A command returns False if its connection is gone at the time of the call. If the connection ends later, before the
    reactor runs the command, or the reactor is closed, the command is dropped silently: only an answer of the peer
    proves delivery. The payload is copied at the call unless it is bytes or str, which cannot change.

    At most `Options.sender_commands_max` commands wait; over that a call waits up to `timeout` seconds (None: without
    end) and raises SenderFull. On the reactor's own thread, which cannot wait for itself, it raises at once. Once the
    thread that ran the reactor has ended, nobody can carry out a command: each raises ReactorStateError.

    `Reactor.run` goes on while a Sender lives: release it, or use it in a `with`. A clone lives on its own.
    """

    def __init__(self, reactor: Reactor) -> None:
        """Use `reactor.sender()`."""
        self._reactor: Final = reactor
        self._released = False
        with reactor._commands_lock:
            reactor._senders += 1

    @overload
    def send(self, id: int, payload: Payload, /, *, timeout: float | None = None) -> bool: ...

    @overload
    def send(self, id: int, opcode: int, payload: Payload, *, timeout: float | None = None) -> bool: ...

    def send(self, id: int, opcode: Any, payload: Any = ABSENT, *, timeout: float | None = None) -> bool:
        """Send a message on the connection of that id: `send(id, payload)`, or `send(id, opcode, payload)`.

        Return False if the connection is gone or closing. Opcode and payload as for `Connection.send`, whose TypeError
        and ValueError it raises at once. What a full backlog does is `Options.on_full`; "error" is logged. Raises
        SenderFull, and ReactorStateError once released or the reactor is closed.
        """
        if payload is ABSENT:
            opcode, payload = name_opcode(opcode)
        buffer = check_send(opcode, payload)
        if type(buffer) is not bytes:
            buffer = bytes(buffer)
        return self._command(id, lambda connection: connection.send(opcode, buffer), timeout)

    def close_connection(
        self, id: int, code: int | None = CloseCode.NORMAL, reason: str = "", *, timeout: float | None = None
    ) -> bool:
        """Begin the close handshake of the connection of that id; return False if it is gone or closing.

        Code and reason as for `Connection.close`, whose TypeError and ValueError it raises at once. Raises SenderFull
        and ReactorStateError as `send`.
        """
        check_close(code, reason)
        return self._command(id, lambda connection: connection.close(code, reason), timeout)

    def close(self, id: int, *arguments: Any, **options: Any) -> bool:
        """Deprecated: the old name of `close_connection`. To give up the Sender itself, call `release`."""
        warnings.warn(
            "Sender.close(id) is called close_connection(id) now; release() gives up the Sender",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.close_connection(id, *arguments, **options)

    def call(self, function: Callable[[], object], *, timeout: float | None = None) -> None:
        """Have a function called on the reactor's thread, between two turns. What it raises is logged.

        Raises SenderFull and ReactorStateError as `send`.
        """
        if not callable(function):
            raise TypeError(f"call takes a function without arguments, not {type(function).__name__}")
        if inspect.iscoroutinefunction(function):
            raise TypeError("call takes a plain function, not `async def`: a reactor has no event loop to run it")
        self._put(function, timeout)

    def add_session(
        self,
        sock: socket.socket | int,
        *,
        subprotocol: str | None = None,
        data: object = None,
        timeout: float | None = None,
    ) -> int:
        """Have the reactor take over a socket; wait for it. As `Reactor.add_session`."""
        return self.add_session_with_prefix(sock, b"", subprotocol=subprotocol, data=data, timeout=timeout)

    def add_session_with_prefix(
        self,
        sock: socket.socket | int,
        prefix: Any,
        *,
        subprotocol: str | None = None,
        data: object = None,
        timeout: float | None = None,
    ) -> int:
        """Have the reactor take over a socket and bytes read from it; wait for it and return the connection's id.

        As `Reactor.add_session_with_prefix`, whose exceptions it raises; TimeoutError (the caller keeps the socket) if
        the reactor did not come to it within `timeout` seconds. It waits for the reactor's thread also where that does
        not run the reactor yet: before `run`, the thread that is to call it takes `Reactor.add_session_with_prefix`.
        """
        self._check_live()
        reactor = self._reactor
        if reactor._owner.is_caller:
            return reactor.add_session_with_prefix(sock, prefix, subprotocol=subprotocol, data=data)
        check_stream(sock)  # what is wrong with it is raised here at once
        copy = bytes(memoryview(prefix))
        if not reactor._owner.is_known and threading.active_count() == 1:
            raise ReactorStateError("no other thread can run the reactor while this one waits: use its add_session")
        adoption = _Adoption(lambda: reactor.add_session_with_prefix(sock, copy, subprotocol=subprotocol, data=data))
        until = None if timeout is None else time.monotonic() + timeout
        try:
            self._put(adoption.run, timeout)
            while not adoption.done.wait(_wait_seconds(until)):
                ended = reactor._core == ffi.NULL or reactor._owner.has_ended
                if ended and adoption.abandon():
                    raise ReactorStateError("the reactor was closed, or its thread ended, before it took the socket")
                if until is not None and time.monotonic() >= until and adoption.abandon():
                    raise TimeoutError(f"the reactor did not take the socket within {timeout} seconds")
        except BaseException:  # also what a signal handler raises: the caller keeps the socket then
            adoption.abandon()
            raise
        return adoption.result()

    def clone(self) -> Sender:
        """Return another handle to the same reactor, with a life of its own."""
        self._check_live()
        return Sender(self._reactor)

    def release(self) -> None:
        """Give up the Sender, not a connection. What it has commanded is still carried out."""
        reactor = self._reactor
        with reactor._commands_lock:
            if self._released:
                return
            self._released = True
            reactor._senders -= 1
        reactor._wake()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release it."""
        self.release()

    def __del__(self) -> None:
        """A handle that nobody holds keeps no reactor running."""
        # No lock: a collection may come while this very thread holds it.
        if not getattr(self, "_released", True):
            self._released = True
            self._reactor._abandoned.append(None)
            self._reactor._wake()

    def __repr__(self) -> str:
        """Name it for a log, from any thread."""
        return f"<Sender of {self._reactor!r}{', released' if self._released else ''}>"

    def _check_live(self) -> None:
        if self._released:
            raise ReactorStateError("this Sender was released")
        self._reactor._check_usable()
        if self._reactor._owner.has_ended:
            raise ReactorStateError("the thread that ran the reactor has ended: nobody can carry this out; close it")

    def _command(self, id: int, act: Callable[[Connection], object], timeout: float | None) -> bool:
        reactor = self._reactor
        self._check_live()
        if not isinstance(id, int):
            raise TypeError(f"a Sender names a connection by its id, conn.id, an int, not by {type(id).__name__}")
        if reactor._connection(id) is None:
            return False

        def run() -> None:
            connection = reactor._connection(id)
            if connection is not None:
                with contextlib.suppress(ConnectionClosed):  # failed by the shim: on_close is still to come
                    act(connection)

        self._put(run, timeout)
        return True

    def _put(self, command: Callable[[], object], timeout: float | None) -> None:
        self._check_live()
        reactor = self._reactor
        commands = reactor._commands
        with reactor._commands_lock:
            if len(commands) >= reactor.options.sender_commands_max:
                self._wait_for_room(timeout)
            commands.append(command)
        reactor._wake()

    def _wait_for_room(self, timeout: float | None) -> None:
        reactor = self._reactor
        limit = reactor.options.sender_commands_max
        own = reactor._owner.is_caller
        until = None if timeout is None else time.monotonic() + timeout
        while len(reactor._commands) >= limit:
            if own or (until is not None and time.monotonic() >= until):
                raise SenderFull(f"{limit} commands wait for the reactor (Options.sender_commands_max)")
            reactor._commands_lock.wait(_wait_seconds(until))
            self._check_live()


def _wait_seconds(until: float | None) -> float:
    """Return how long to wait before the next look whether the reactor lives: the end of its thread wakes nobody."""
    return _LOOK_SECONDS if until is None else max(0.0, min(_LOOK_SECONDS, until - time.monotonic()))


class _Adoption:
    """An add_session that one thread waits for and the reactor's thread carries out."""

    def __init__(self, adopt: Callable[[], int]) -> None:
        self.done = threading.Event()
        self._adopt = adopt
        self._lock = threading.Lock()
        self._abandoned = False
        self._id = 0
        self._error: BaseException | None = None

    def run(self) -> None:
        """Take the socket, unless the caller waits for it no more."""
        with self._lock:
            if self._abandoned:
                return
            try:
                self._id = self._adopt()
            except Exception as error:  # noqa: BLE001 - raised where it belongs, by the caller's call
                self._error = error
            except BaseException:
                self._error = ReactorStateError("the reactor was interrupted while it took the socket")
                raise
            finally:
                self.done.set()

    def abandon(self) -> bool:
        """Let the caller keep the socket; return False if the reactor has taken it already."""
        with self._lock:
            self._abandoned = not self.done.is_set()
            return self._abandoned

    def result(self) -> int:
        if self._error is not None:
            raise self._error
        return self._id
