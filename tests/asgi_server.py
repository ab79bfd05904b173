"""uvicorn with our WebSocket class, in a thread of its own, for tests that speak to it over a socket."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Self

import pytest
import uvicorn
import uvloop

from uringws.uvicorn import WebSocketProtocol
from wire import Peer

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Event, Receive, Send], Awaitable[object]]

LOOPS = ("asyncio", "uvloop", "uringws")
WAIT_SECONDS = 10.0


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uringws":
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uringws.asyncio").new_event_loop
        return factory
    return uvloop.new_event_loop if name == "uvloop" else asyncio.SelectorEventLoop


class Live:
    """An ASGI application under uvicorn. Its results and exceptions are kept in the order of the connections."""

    def __init__(self, app: App, loop: str = "asyncio", **config: Any) -> None:
        self._app = app
        self._loop_name = loop
        self.protocols: list[WebSocketProtocol] = []
        self.results: list[Future[Any]] = []
        self._asked = 0
        self.close_timeout: float | None = None
        make: Any = self._make  # as good as a class
        self.config = uvicorn.Config(
            self._call, port=0, ws=make, lifespan="off", log_config=None, interface="asgi3", **config
        )
        self.server = uvicorn.Server(self.config)

    def _make(self, *arguments: Any, **keywords: Any) -> WebSocketProtocol:
        protocol = WebSocketProtocol(*arguments, **keywords)
        if self.close_timeout is not None:
            protocol.close_timeout = self.close_timeout
        self.protocols.append(protocol)
        return protocol

    async def _call(self, scope: Event, receive: Receive, send: Send) -> None:
        result: Future[Any] = Future()
        self.results.append(result)
        try:
            result.set_result(await self._app(scope, receive, send))
        except BaseException as error:
            result.set_exception(error)
            raise

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        started.result(WAIT_SECONDS)
        return self

    def _run(self, started: Future[None]) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory(self._loop_name)) as runner:
                runner.run(self._serve(started))
        except BaseException as error:  # noqa: BLE001 - for the thread that waits
            if not started.done():
                started.set_exception(error)

    async def _serve(self, started: Future[None]) -> None:
        self.loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self.server.serve())
        while not self.server.started and not serving.done():
            await asyncio.sleep(0.01)
        started.set_result(None)
        await serving

    def __exit__(self, *_: object) -> None:
        self.shut_down()
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "uvicorn has not ended"

    def shut_down(self) -> None:
        """Ask uvicorn to end, as Ctrl-C does."""
        self.server.should_exit = True

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.server.servers[0].sockets[0].getsockname()[:2]
        return host, port

    def connect(self, path: str = "/", **options: Any) -> Peer:
        return Peer.connect(self.address, path, **options)

    def result(self) -> Any:
        """Wait for the application's result of the next connection."""
        asyncio.run_coroutine_threadsafe(self._until_called(), self.loop).result(WAIT_SECONDS)
        future = self.results[self._asked]
        self._asked += 1
        return future.result(WAIT_SECONDS)

    async def _until_called(self) -> None:
        while len(self.results) <= self._asked:
            await asyncio.sleep(0.005)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop in turn."""
    name: str = request.param
    if name == "uringws":
        pytest.importorskip("uringws.asyncio")
    return name
