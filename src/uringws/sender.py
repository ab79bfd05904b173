"""The handle for other threads: it puts their calls as commands into the reactor's queue."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
import warnings
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, overload

from uringws.errors import ConnectionClosed, ReactorStateError
from uringws.frames import CloseCode
from uringws.prepared import Frame
from uringws.sending import ABSENT, check_close, check_publish, check_send, name_opcode
from uringws.sockets import check_stream
from uringws.topics import check_name

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType

    from uringws.commands import Commands
    from uringws.connection import Connection
    from uringws.core import Core
    from uringws.deferred import Deferred
    from uringws.extensions import DeflateTerms
    from uringws.handler import HandlerProtocol
    from uringws.handshake import Accept, RawAnswer, Reject, RequestHead
    from uringws.http import Request, Response
    from uringws.options import Options
    from uringws.reactor import Reactor
    from uringws.sending import Payload
    from uringws.sessions import Sessions
    from uringws.topics import Topics

__all__ = ["Sender"]


class Sender:
    """Commands to a reactor from any thread. The commands of one thread run in the order of its calls.

    A method returns False if its connection is gone at the time of the call. If the connection ends later, before the
    reactor runs the command, or if the reactor is closed, the command is dropped silently: only an answer of the peer
    proves delivery. The payload is copied at the call unless it is bytes or str, which cannot change.

    At most `Options.sender_commands_max` commands wait. If that many wait, a call waits up to `timeout` seconds (None:
    without end) and then raises SenderFull. On the reactor's own thread, which cannot wait for itself, it raises at
    once. Once the thread that ran the reactor has ended, no command can run: each call raises ReactorStateError.

    `Reactor.run` goes on while a Sender lives: release it, or use it in a `with`. A clone must be released, too.
    """

    def __init__(
        self,
        reactor: Reactor,
        core: Core,
        sessions: Sessions,
        commands: Commands,
        deferred: Deferred,
        *,
        topics: Topics,
    ) -> None:
        """Use `reactor.sender()`."""
        self._reactor: Final = reactor
        self._core: Final = core
        self._sessions: Final = sessions
        self._commands: Final = commands
        self._deferred: Final = deferred
        self._topics: Final = topics
        self._key: Final = object()
        commands.senders.add(self._key)

    @overload
    def send(
        self, id: int, payload: Payload, /, *, fin: bool = True, compress: bool = True, timeout: float | None = None
    ) -> bool: ...

    @overload
    def send(
        self,
        id: int,
        opcode: int,
        payload: Payload,
        *,
        fin: bool = True,
        compress: bool = True,
        timeout: float | None = None,
    ) -> bool: ...

    def send(
        self,
        id: int,
        opcode: Any,
        payload: Any = ABSENT,
        *,
        fin: bool = True,
        compress: bool = True,
        timeout: float | None = None,
    ) -> bool:
        """Send a message on the connection of that id: `send(id, payload)`, or `send(id, opcode, payload)`.

        Return False if the connection is gone or closing. Opcode, payload and `compress` as for
        `Connection.send`, whose TypeError and ValueError it raises at once. `Options.on_full` says what happens
        if the backlog is full; "error" is logged. A frame that must not come where the reactor gets to it (a
        message while a fragmented one is unfinished, sent by another thread for example) is not sent, and that
        is logged. Raises SenderFull, and ReactorStateError once released or the reactor is closed.
        """
        if payload is ABSENT:
            if type(opcode) is Frame and fin:
                frame = opcode
                return self._command(id, lambda connection: connection.send(frame), timeout)
            opcode, payload = name_opcode(opcode)
        buffer = check_send(opcode, payload, fin=fin)
        if type(buffer) is not bytes:
            buffer = bytes(buffer)
        return self._command(
            id, lambda connection: connection.send(opcode, buffer, fin=fin, compress=compress), timeout
        )

    def publish(self, topic: str, payload: Payload, opcode: int | None = None, *, timeout: float | None = None) -> None:
        """Publish a message to the topic of that name: one command, whatever the number of its members.

        As `Topic.publish`, whose TypeError and ValueError it raises at once. If there is no such topic when the reactor
        comes to the command, it has no members, and nothing is sent: a topic need not be made before it is published
        to. How many members a message was addressed to is in `Topic.stats`. Raises SenderFull and ReactorStateError as
        `send`.
        """
        check_name(topic)
        message = self._message(payload, opcode)
        self._check_live()
        self._commands.put(lambda: self._topics.publish(topic, *message), timeout)

    def broadcast(self, payload: Payload, opcode: int | None = None, *, timeout: float | None = None) -> None:
        """Send a message to all connections that are open when the reactor comes to it: one command.

        As `Reactor.broadcast`, and with the exceptions of `publish`.
        """
        message = self._message(payload, opcode)
        self._check_live()
        self._commands.put(lambda: self._topics.broadcast(*message, None), timeout)

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

    def answer(
        self,
        request: Request | RequestHead | int,
        decision: Accept | Reject | Response | RawAnswer | None,
        *,
        timeout: float | None = None,
    ) -> bool:
        """Answer a request for which a callback returned `uringws.LATER`, as `Reactor.answer`.

        Return False if it no longer awaits an answer. If it is abandoned before the reactor runs the command, the
        answer is dropped and `on_upgrade_abandoned` is called. Raises TypeError or ValueError at once for a decision
        that does not fit, ReactorStateError for a request that was answered, SenderFull as `send`.
        """
        self._check_live()
        if not self._deferred.check_answer(request, decision):
            return False
        self._commands.put(lambda: self._reactor.answer(request, decision), timeout)
        return True

    def call(self, function: Callable[..., object], *arguments: Any, timeout: float | None = None) -> None:
        """Call `function(*arguments)` on the reactor's thread, between two turns. Its exceptions are logged.

        Raises SenderFull and ReactorStateError as `send`, TypeError for anything but a plain function.
        """
        if not callable(function):
            raise TypeError(f"call takes a function and its arguments, not {type(function).__name__}")
        if inspect.iscoroutinefunction(function):
            raise TypeError("call takes a plain function, not `async def`: a reactor has no event loop to run it")
        self._check_live()
        self._commands.put(partial(function, *arguments) if arguments else function, timeout)

    def add_session(
        self,
        sock: socket.socket | int,
        *,
        handler: HandlerProtocol | None = None,
        options: Options | None = None,
        subprotocol: str | None = None,
        deflate: DeflateTerms | None = None,
        data: object = None,
        timeout: float | None = None,
    ) -> int:
        """Let the reactor take over a socket, and wait until it has. As `Reactor.add_session`."""
        return self.add_session_with_prefix(
            sock,
            b"",
            handler=handler,
            options=options,
            subprotocol=subprotocol,
            deflate=deflate,
            data=data,
            timeout=timeout,
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
        timeout: float | None = None,
    ) -> int:
        """Let the reactor take over a socket and bytes read from it, and wait; return the connection's id.

        As `Reactor.add_session_with_prefix`, whose exceptions it raises; TimeoutError (the caller keeps the socket) if
        the reactor did not take it within `timeout` seconds. It also waits if no thread runs the reactor yet: a thread
        that will call `run` itself uses `Reactor.add_session_with_prefix` instead.
        """
        self._check_live()
        owner = self._core.owner
        add = partial(
            self._reactor.add_session_with_prefix,
            sock,
            handler=handler,
            options=options,
            subprotocol=subprotocol,
            deflate=deflate,
            data=data,
        )
        if owner.is_caller:
            return add(prefix)
        check_stream(sock)  # errors of the caller are raised at once
        copy = bytes(memoryview(prefix))
        if not owner.is_known and threading.active_count() == 1:
            raise ReactorStateError("no other thread can run the reactor while this one waits: use its add_session")
        until = None if timeout is None else time.monotonic() + timeout
        added: Future[int] = Future()
        try:
            self._commands.put(partial(add, copy), timeout, added)
            wait((added,), None if until is None else max(0.0, until - time.monotonic()))
        except BaseException:  # also that of a signal handler: the caller keeps the socket
            added.cancel()
            raise
        if added.cancel():
            raise TimeoutError(f"the reactor did not take the socket within {timeout} seconds")
        return added.result()

    def clone(self) -> Sender:
        """Return another handle to the same reactor, to be released separately."""
        self._check_live()
        return Sender(self._reactor, self._core, self._sessions, self._commands, self._deferred, topics=self._topics)

    def release(self) -> None:
        """Give up the Sender. Its commands that wait still run, and connections stay open."""
        self._commands.remove_sender(self._key)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release it."""
        self.release()

    def __del__(self) -> None:
        """Release it: a handle that is collected keeps no reactor running."""
        if hasattr(self, "_key"):
            self._commands.remove_sender(self._key)

    def __repr__(self) -> str:
        """Name it for a log, from any thread."""
        return f"<Sender of {self._reactor!r}{', released' if self._key not in self._commands.senders else ''}>"

    def _check_live(self) -> None:
        if self._key not in self._commands.senders:
            raise ReactorStateError("this Sender was released")
        self._commands.check_open()

    def _message(self, payload: Payload, opcode: int | None) -> tuple[Payload, int | None]:
        """Return a payload that cannot change, and its opcode. Raises TypeError, ValueError."""
        number, buffer = check_publish(opcode, payload)
        if type(payload) is Frame and number == payload.opcode:
            return payload, None
        return buffer if type(buffer) is bytes else bytes(buffer), number

    def _command(self, id: int, act: Callable[[Connection], object], timeout: float | None) -> bool:
        self._check_live()
        if not isinstance(id, int):
            raise TypeError(f"a Sender names a connection by its id, conn.id, an int, not by {type(id).__name__}")
        sessions = self._sessions
        if sessions.get(id) is None:
            return False

        def run() -> None:
            connection = sessions.get(id)
            if connection is not None:
                with contextlib.suppress(ConnectionClosed):  # failed by the shim: on_close is still to come
                    act(connection)

        self._commands.put(run, timeout)
        return True
