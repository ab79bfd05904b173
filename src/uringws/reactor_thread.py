"""A reactor in a thread of its own, beside an application: started, called into, drained, joined. No event loop."""

from __future__ import annotations

import contextlib
import inspect
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from uringws.errors import ReactorStateError
from uringws.frames import CloseCode
from uringws.reactor import Reactor
from uringws.seconds import check_seconds
from uringws.sending import check_close

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from uringws.backend import Backend
    from uringws.handler import HandlerProtocol
    from uringws.options import Options
    from uringws.sender import Sender

__all__ = ["ReactorThread"]

_T = TypeVar("_T")


class ReactorThread:
    """A WebSocket server in a thread of its own, beside an application that blocks or runs an event loop.

    In a `with` it starts and ends. `server.call(server.reactor.bind, "127.0.0.1", 9001).result()` binds it, from any
    thread.

    The arguments are those of `Reactor`, whose exceptions this raises; `name` is the thread's. The handler's callbacks
    are called in that thread. `call` is for everything that belongs to the reactor's thread. `reactor.sender()` sends
    messages: it costs less, since it makes no Future.

    An exception that ends the thread (an OSError of the backend, a SystemExit out of a callback) is raised by `join`,
    and is the cause of the ReactorStateError that `call` raises from then on. Leaving the `with` drains the server and
    joins the thread; after an exception in the `with` block it cuts the connections instead.
    """

    def __init__(
        self,
        handler: HandlerProtocol,
        options: Options | None = None,
        *,
        backend: Backend = "auto",
        name: str = "uringws",
    ) -> None:
        """Make the reactor. Until `start`, the caller may use it directly, for example to bind it."""
        self.reactor: Final = Reactor(handler, options, backend=backend)
        self._sender: Final[Sender] = self.reactor.sender()  # `run` goes on while it lives
        self._thread: Final = threading.Thread(target=self._main, name=name, daemon=True)
        self._serves: Final[Future[None]] = Future()
        self._error: BaseException | None = None

    def start(self) -> Self:
        """Start the thread; return itself once the reactor serves.

        Raises what keeps the reactor from it (OSError), and ReactorStateError if called twice.
        """
        if self._thread.ident is not None:
            raise ReactorStateError("a ReactorThread starts once: make a new one")
        self._thread.start()
        self._serves.result()
        return self

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def call(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have `function(*arguments)` called in the reactor's thread, between two turns; return its future.

        The future has what the function returned or raised. If it is cancelled in time, the function is not called.
        Calls of one thread are carried out in their order. In the reactor's own thread, which cannot wait for itself,
        the function is called at once. Never waits: raises SenderFull if `Options.sender_commands_max` commands wait,
        ReactorStateError once the thread has ended, TypeError for what is no plain function. If the thread ends before
        it comes to the call, the future has that ReactorStateError.
        """
        if not callable(function):
            raise TypeError(f"call takes a function, not {type(function).__name__}")
        if inspect.iscoroutinefunction(function):
            raise TypeError("call takes a plain function, not `async def`: a reactor has no event loop to run it")
        return self._put(partial(function, *arguments), timeout=0)

    def drain(self, timeout: float | None = None, *, code: int = CloseCode.GOING_AWAY) -> None:
        """Begin to drain, as `Reactor.drain` does; `join` waits for the end. Does nothing once the thread has ended.

        `timeout` is the time that sessions are given to close (None: `Options.drain_seconds_max`).
        """
        check_seconds(timeout)
        check_close(code, "")
        with contextlib.suppress(ReactorStateError):
            self._put(partial(self.reactor.drain, timeout, code=code), timeout=None)

    def stop(self) -> None:
        """Make the thread end after its present turn: connections are cut. From any thread."""
        self.reactor.stop()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread's end, at most `timeout` seconds (None: without end), and raise what ended it.

        Raises TimeoutError if it still runs, ReactorStateError if it was never started.
        """
        check_seconds(timeout)
        if self._thread.ident is None:
            raise ReactorStateError("the ReactorThread was never started: call start(), or close its reactor")
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the thread {self._thread.name!r} runs after {timeout} s: call drain() or stop()")
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain, or stop after an exception, and join."""
        if error is not None:
            self.stop()
            self._thread.join()
            return
        self.drain()
        self.join()

    def __repr__(self) -> str:
        """Name it for a log, from any thread."""
        return f"<ReactorThread {self._thread.name!r} of {self.reactor!r}>"

    def _put(self, function: Callable[[], _T], *, timeout: float | None) -> Future[_T]:
        future: Future[_T] = Future()
        if threading.current_thread() is self._thread:
            _carry_out(future, function)
            return future
        try:
            self.reactor._commands.put(function, timeout, future)
        except ReactorStateError as error:
            raise error from self._error
        return future

    def _main(self) -> None:
        try:
            with self.reactor:
                self.reactor._core.start()
                self._serves.set_result(None)
                self.reactor.run()
        except BaseException as error:  # noqa: BLE001 - raised again by join, or by start
            self._error = error
            if not self._serves.done():
                self._serves.set_exception(error)
        finally:
            self._sender.release()


def _carry_out(future: Future[_T], function: Callable[[], _T]) -> None:
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001 - for the caller, who has the future
        future.set_exception(error)
