"""asyncio's event loop on a reactor: sessions, timers, tasks and descriptors meet in one thread. No coroutines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

from uringws.asyncio.selector import ReactorSelector
from uringws.asyncio.waiters import Wakeups
from uringws.driver import Driver
from uringws.errors import ReactorStateError
from uringws.handler import Handler
from uringws.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from uringws.backend import Backend
    from uringws.connection import Connection
    from uringws.options import Options

__all__ = ["EventLoop", "new_event_loop", "ring_loop", "run"]

_T = TypeVar("_T")


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's `SelectorEventLoop`, each of whose iterations takes one turn of `reactor`.

    Everything of asyncio works on it as it does elsewhere. The callbacks of handlers (`uringws.Handler`) are called
    inside the turn, in the loop's thread, and outside of any task: `asyncio.get_running_loop()` returns this loop,
    `asyncio.current_task()` None. Callbacks and tasks that they make ready (`call_soon`, `create_task`,
    `future.set_result`) run in the same iteration. The messages that these send leave at the start of the next
    iteration. A turn calls back for about a millisecond; events that are left over then come after the tasks and timers
    that are due.

    An exception that gets out of a callback goes to `call_exception_handler`, with the connection in the context under
    "connection"; the connection is then closed as `uringws.Handler` describes. KeyboardInterrupt and SystemExit get
    out of `run_forever`.

    The loop belongs to the thread that first runs it, since the ring does; to run it in another one raises WrongThread.
    """

    def __init__(self, reactor: Reactor) -> None:
        """Take over a reactor that no thread has run. Use `new_event_loop`."""
        driver = Driver(reactor)
        self.wakeups: Final = Wakeups(self)
        """The tasks that wait for messages of the ring."""
        self._turns = ReactorSelector(reactor, driver, self.wakeups)
        super().__init__(self._turns)
        self._reactor = reactor
        self._driver = driver
        driver.on_stop = self.stop
        self._driver.hand_failures_to(self._report)

    @property
    def reactor(self) -> Reactor:
        """The reactor. The loop takes its turns and closes it: no other code may call `run`, `run_once` or `close`. Its
        `stop` stops the loop, from any thread.
        """
        return self._reactor

    def run_forever(self) -> None:
        """Run until `stop`. Raises WrongThread, or ReactorStateError in a forked child, before anything runs."""
        if self.is_closed() or self.is_running():
            super().run_forever()  # this raises the right error
        with self._driver.driving():
            super().run_forever()

    def close(self) -> None:
        """Cut the sessions, stop listening and free the ring; then close the loop. Twice is fine.

        `on_close` may still use the loop, but nothing that it makes ready will run.

        Raises RuntimeError while the loop runs, WrongThread in another thread while the one that ran it lives.
        """
        if not self.is_running() and not self.is_closed():
            self._driver.check_may_close()
            self._turns.unwatch()
            self._reactor.close()
        super().close()

    def _report(self, message: str, error: Exception, connection: Connection | None) -> None:
        context: dict[str, Any] = {"message": message, "exception": error}
        if connection is not None:
            context["connection"] = connection
        self.call_exception_handler(context)


def new_event_loop(*, backend: Backend = "auto", options: Options | None = None) -> EventLoop:
    """Return an event loop of asyncio whose iterations are turns of a reactor.

    For `asyncio.Runner(loop_factory=...)`, `asyncio.run(loop_factory=...)` (Python 3.12 and later), and servers that
    take such a factory (`uvicorn --loop uringws.asyncio:new_event_loop`). `backend` and `options` are those of
    `uringws.Reactor`: the options hold for the ring and its buffers, and for every listener that is given none of its
    own. Raises as `uringws.Reactor`. Call it in the process that will run the loop: a forked child cannot use it.
    """
    reactor = Reactor(Handler(), options, backend=backend)
    try:
        return EventLoop(reactor)
    except BaseException:
        reactor.close()
        raise


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """Run a coroutine as `asyncio.run` does, on a loop of `new_event_loop`; return its result.

    Raises what the coroutine raises, RuntimeError inside of a running loop, and as `new_event_loop`.
    """
    with asyncio.Runner(loop_factory=new_event_loop, debug=debug) as runner:
        return runner.run(main)


def ring_loop(what: str) -> EventLoop:
    """Return the running loop. Raises ReactorStateError, with the remedy, where that is not an `EventLoop`."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, EventLoop):
        return loop
    raise ReactorStateError(
        f"{what} takes the event loop of uringws, and {type(loop).__module__}.{type(loop).__qualname__} is running: "
        "use uringws.asyncio.run(main()) in place of asyncio.run, or loop_factory=uringws.asyncio.new_event_loop"
    )
