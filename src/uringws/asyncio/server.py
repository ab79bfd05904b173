"""`serve`, `unix_serve` and `Server`: a server for coroutines, with the surface of `websockets.asyncio.server`.

This file has the listening sockets, the connections and the end of a server. On the loop of `uringws.asyncio` the
connections of a plain socket live on its ring; everywhere else, and under TLS, they use asyncio's transports.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from uringws.asyncio.admission import Admission
from uringws.asyncio.classes import OPEN
from uringws.asyncio.connection import ServerConnection
from uringws.asyncio.deadlines import Deadlines
from uringws.asyncio.inbox import queue_marks
from uringws.asyncio.loop import EventLoop
from uringws.asyncio.opening import SERVER, OpeningRules
from uringws.asyncio.ring import ring_of
from uringws.asyncio.transport import TransportLink
from uringws.asyncio.waiters import Wakeups
from uringws.extensions import Deflate
from uringws.options import Options

if TYPE_CHECKING:
    import os

    from uringws.asyncio.link import Link
    from uringws.asyncio.opening import Hook

    Handler = Callable[[ServerConnection], Awaitable[object]]

__all__ = ["Server", "serve", "unix_serve"]

_RECEIVE_BYTES: Final = 256 * 1024  # as much as asyncio reads at a time
_DEFLATE: Final = Deflate(takeover=True, bytes_min=0)  # with the window and the memory level of websockets
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 5.6.2


class Clocks:
    """The deadlines of all connections of a server, each kind on one timer of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.openings: Final = Deadlines(loop, TransportLink.open_timed_out)
        self.pings: Final = Deadlines(loop, TransportLink.ping_due)
        self.pongs: Final = Deadlines(loop, TransportLink.pong_due)
        self.closings: Final = Deadlines(loop, ServerConnection._close_timed_out)

    def close(self) -> None:
        """Forget them all, and their timers."""
        self.openings.close()
        self.pings.close()
        self.pongs.close()
        self.closings.close()


class Server:
    """The object that `serve` returns: await it, or enter it with `async with`, to listen. Leaving the block closes it.

    `handler` is called once for each connection. `logger` gets its log records, "websockets.server" by default.
    """

    _close_task: asyncio.Task[None] | None = None
    _emptied: asyncio.Future[None] | None = None

    def __init__(
        self,
        handler: Handler,
        create_server: Callable[[Callable[[], TransportLink]], Coroutine[Any, Any, asyncio.Server]],
        *,
        opening: OpeningRules | None = None,
        options: Options | None = None,
        open_timeout: float | None = 10,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        close_timeout: float | None = 10,
        max_size: int | tuple[int | None, int | None] | None = 2**20,
        max_queue: int | tuple[int | None, int | None] | None = 16,
        write_limit: int | tuple[int, int | None] = 2**15,
        logger: Any = None,
        create_connection: Callable[..., ServerConnection] | None = None,
    ) -> None:
        """Only `serve` and `unix_serve` make servers; their docstrings explain the arguments."""
        self.loop: Final = _running_loop()
        self.handler: Final = handler
        self.logger: Final = logging.getLogger("websockets.server") if logger is None else logger
        self.opening: Final = OpeningRules() if opening is None else opening
        self.options: Final = options
        self.open_timeout: Final = open_timeout
        self.close_timeout: Final = close_timeout
        self.max_queue: Final = max_queue
        self.queue_marks: Final = queue_marks(max_queue)
        self.message_bytes_max, self.fragment_bytes_max = max_size if isinstance(max_size, tuple) else (max_size, None)
        self._create_server = create_server
        self._create_connection = functools.partial(
            ServerConnection if create_connection is None else create_connection,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            close_timeout=close_timeout,
            max_queue=max_queue,
            write_limit=write_limit,
        )
        self.server: asyncio.Server  # made when this is awaited; it has the listening sockets
        self.wakeups: Final = self.loop.wakeups if isinstance(self.loop, EventLoop) else Wakeups(self.loop)
        self.buffer: Final = memoryview(bytearray(_RECEIVE_BYTES))  # into which all transports read, in turn
        self.clocks: Final = Clocks(self.loop)
        self.links: Final[set[Link]] = set()  # of all connections that are not closed, opening ones included
        self._handled: set[ServerConnection] = set()  # those that were opened and are not closed
        self._tasks: dict[asyncio.Task[Any], ServerConnection | None] = {}  # with the connection that a handler has
        self.ring: Final = ring_of(self)
        self.limits: Final = options or (Options() if self.ring is None else self.ring.options)
        self.admission: Final = Admission(self.limits, self.loop, self.ring)
        self._context = contextvars.copy_context()
        self._on_handler_done = self._handler_done  # one object for all tasks
        self._closed: asyncio.Future[None] = self.loop.create_future()

    # ---- the surface of websockets

    @property
    def connections(self) -> set[ServerConnection]:
        """The connections that are open."""
        return {connection for connection in self._handled if connection.state is OPEN}

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none once closed."""
        return tuple(self.server.sockets)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of the server."""
        return self.loop

    def is_serving(self) -> bool:
        """Whether connections are accepted."""
        return self.server.is_serving()

    async def start_serving(self) -> None:
        """Start accepting connections, if `serve` was called with start_serving=False."""
        await self.server.start_serving()

    async def serve_forever(self) -> None:
        """Serve until it is cancelled, which closes the server, or `close` is called."""
        try:
            if not self.is_serving():
                await self.start_serving()
            await self.wait_closed()
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise

    def close(self, close_connections: bool = True, code: int = 1001, reason: str = "") -> None:
        """Stop listening, and close all connections with a code and a reason.

        Requests that wait for an answer get 503. Open connections stay as they are with `close_connections=False`.
        `wait_closed` waits until they are closed and their handlers have returned. May be called twice.
        """
        if self._close_task is None:
            self.logger.info("server closing")
            if hasattr(self, "server"):
                self.server.close()
            self._close_task = self.create_task(self._close(close_connections, code, reason))

    async def wait_closed(self) -> None:
        """Wait until the server is closed, all connections are and all handlers have returned."""
        await asyncio.shield(self._closed)

    async def _close(self, close_connections: bool, code: int, reason: str) -> None:
        if close_connections:
            closes = [self.create_task(connection.close(code, reason)) for connection in self.connections]
            if closes:
                await asyncio.wait(closes)
        me = asyncio.current_task()
        while self.links or self._handled or self._tasks.keys() - {me}:
            self._emptied = self.loop.create_future()
            await self._emptied
        if self.ring is not None:
            await self.ring.wait_released()
        self.clocks.close()
        if not self._closed.done():
            self._closed.set_result(None)
        self.logger.info("server closed")

    def __await__(self) -> Generator[Any, None, Self]:
        return self._listen().__await__()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()

    async def _listen(self) -> Self:
        if not hasattr(self, "server"):
            if asyncio.get_running_loop() is not self.loop:
                raise RuntimeError("serve() was called in one event loop and awaited in another: do both in one")
            self.server = await self._create_server(functools.partial(TransportLink, self))
            if self.server.is_serving():
                for sock in self.server.sockets:
                    self.logger.info("server listening on %s", show_socket(sock))
        return self

    # ---- what links and connections call

    def new_connection(self, link: Link) -> ServerConnection:
        """Return the connection of a new link."""
        return self._create_connection(link, self)

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine of this server in a task that its end waits for."""
        task = self.loop.create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def open_connection(self, connection: ServerConnection) -> None:
        """Call the handler of a connection whose opening handshake is done."""
        connection._opened()
        self._handled.add(connection)
        task = self.loop.create_task(self._handle(connection), context=self._context.copy())
        self._tasks[task] = connection
        task.add_done_callback(self._on_handler_done)

    def _connection_lost(self, connection: ServerConnection) -> None:
        """A connection is closed; its handler may still run."""
        self.admission.leave(connection)
        self._handled.discard(connection)
        self._look_whether_empty()

    def _handle(self, connection: ServerConnection) -> Coroutine[Any, Any, object]:
        """Return the handler's coroutine."""
        try:
            handled = self.handler(connection)
        except Exception as error:  # noqa: BLE001 - as if the coroutine had raised it
            return _raise(error)
        return handled if inspect.iscoroutine(handled) else _await(handled)

    def _handler_done(self, task: asyncio.Task[Any]) -> None:
        """Close a connection whose handler has returned, failed or been cancelled."""
        connection = self._tasks.pop(task)
        assert connection is not None  # noqa: S101 - `open_connection` put it there
        error = None if task.cancelled() else task.exception()
        if error is not None:
            connection.logger.error("connection handler failed", exc_info=error)
        if connection.state is OPEN:
            connection._start_close(1000 if error is None and not task.cancelled() else 1011, "")
        connection._abandon()
        self._look_whether_empty()

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            self.logger.error("unexpected internal error", exc_info=task.exception())
        self._look_whether_empty()

    def _look_whether_empty(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)


async def _raise(error: Exception) -> None:
    raise error


async def _await(handled: Any) -> None:
    """Run a handler that is not a coroutine function. Raises TypeError for what cannot be awaited."""
    if not inspect.isawaitable(handled):
        raise TypeError(f"the handler returned {type(handled).__name__}: it must be a coroutine function (async def)")
    await handled


def show_socket(sock: Any) -> str:
    """Return a listening socket's address for a log."""
    name = sock.getsockname()
    if sock.family == socket.AF_INET6:
        return f"[{name[0]}]:{name[1]}"
    return f"{name[0]}:{name[1]}" if sock.family == socket.AF_INET else str(name)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "serve() needs a running event loop: call it in a coroutine, as in `async with serve(...)`"
        ) from None


def _check_handler(handler: object) -> None:
    """Raise TypeError for a handler that could handle no connection."""
    if not callable(handler):
        raise TypeError(f"the handler must be a coroutine function of one connection, not {type(handler).__name__}")
    name = getattr(handler, "__qualname__", type(handler).__name__)
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise TypeError(f"the handler {name} has a `yield`, so that a call of it runs nothing: use `await` alone")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # a function in C may tell of none
        return
    try:
        signature.bind(object())
    except TypeError as error:
        raise TypeError(
            f"the handler {name}{signature} is called with one connection: {error} "
            "(the request's path is connection.request.path)"
        ) from None


def _check_own(settings: dict[str, Any]) -> None:
    """Raise TypeError or ValueError for a setting of `Server` that no connection could use."""
    for name in ("open_timeout", "close_timeout", "ping_interval", "ping_timeout"):
        _check_seconds(name, settings.get(name))
    _check_bytes("max_size", settings.get("max_size"), least=1)
    if "write_limit" in settings:
        _check_write_limit(settings["write_limit"])
    options = settings.get("options")
    if options is not None and not isinstance(options, Options):
        raise TypeError(f"options is an uringws.Options, not {options!r}")


def _check_seconds(name: str, value: object) -> None:
    """Raise TypeError or ValueError for a value that is neither seconds nor None. An interval of pings must exceed
    0.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, or None for none, not {value!r}")
    is_positive = name.startswith("ping")
    if not (value > 0 if is_positive else value >= 0):
        raise ValueError(f"{name} must be {'more than' if is_positive else 'at least'} 0 seconds, or None for none")


def _check_bytes(name: str, value: object, *, least: int) -> None:
    """Raise TypeError or ValueError for a setting that is neither bytes, nor None, nor a pair of those."""
    pair = value if isinstance(value, tuple) else (value, None)
    if len(pair) != 2:
        raise TypeError(f"{name} has two items as a tuple, not {value!r}")
    for count in pair:
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name} is a number of bytes, or a tuple of two, not {value!r}")
        if count < least:
            raise ValueError(f"{name} must be at least {least}, not {count}")


def _check_write_limit(value: object) -> None:
    """Raise TypeError or ValueError for a value that is neither a number of bytes nor (high, low)."""
    _check_bytes("write_limit", value, least=0)
    high, low = value if isinstance(value, tuple) else (value, None)
    if high is None:
        raise TypeError("write_limit needs a number of bytes: 0 lets send wait until all has left")
    if low is not None and low > high:
        raise ValueError(f"write_limit is (high, low), and high must be at least low: not {value!r}")


def _check_subprotocols(subprotocols: object) -> None:
    if subprotocols is None:
        return
    if not isinstance(subprotocols, Sequence):
        raise TypeError("subprotocols must be a list")
    if isinstance(subprotocols, str):
        raise TypeError("subprotocols must be a list, not a str")
    for subprotocol in subprotocols:
        if not isinstance(subprotocol, str) or not _TOKEN.fullmatch(subprotocol):
            raise ValueError(f"invalid subprotocol: {subprotocol}")


def serve(
    handler: Handler,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    origins: Sequence[str | re.Pattern[str] | None] | None = None,
    extensions: Sequence[Any] | None = None,
    subprotocols: Sequence[str] | None = None,
    select_subprotocol: Callable[[ServerConnection, Sequence[str]], str | None] | None = None,
    compression: str | None = "deflate",
    process_request: Hook | None = None,
    process_response: Hook | None = None,
    server_header: str | None = SERVER,
    logger: Any = None,
    **settings: Any,
) -> Server:
    """Return a server that calls `await handler(connection)` for each WebSocket connection. Await it to listen.

    The arguments have the names, defaults and meaning that they have in `websockets.asyncio.server`. Of `settings`,
    `open_timeout`, `ping_interval`, `ping_timeout` and `close_timeout` are seconds (None: none); `max_size` is bytes of
    a message, or (of a message, of a fragment); `max_queue` is frames that may wait for the handler before reading
    pauses, and `write_limit` bytes that may wait for the peer before `send` waits, each also as (high, low);
    `create_connection` makes the connections. `options` is ours: `Options` for what has no argument here, such as
    `sessions_max`. All others go
    to loop.create_server: `ssl`, `sock`, `backlog`, `reuse_port`, `start_serving` and so on. `options.deflate` says how
    `compression="deflate"` compresses; without it, it does so with the window and the memory of `websockets`. Other
    extensions are not negotiated.

    Raises TypeError or ValueError for a wrong argument, RuntimeError outside of an event loop; to await the server
    raises OSError where it cannot listen.
    """
    _check_handler(handler)
    _check_subprotocols(subprotocols)
    _check_extensions(compression, extensions)
    rules = OpeningRules(
        origins=origins,
        subprotocols=subprotocols,
        select_subprotocol=select_subprotocol,
        process_request=process_request,
        process_response=process_response,
        server_header=server_header,
        deflate=_deflate_of(compression, settings.get("options")),
    )
    own, others = _split(settings)
    _check_own(own)
    return Server(handler, functools.partial(_create_server, host, port, others), opening=rules, logger=logger, **own)


def _check_extensions(compression: object, extensions: object) -> None:
    if compression not in ("deflate", None):
        raise ValueError(f"unsupported compression: {compression}")
    if extensions:
        logging.getLogger("uringws").warning("serve(extensions=...): extensions are not supported, none is negotiated")


def _deflate_of(compression: object, options: Any) -> Deflate | None:
    """Return how messages are compressed, None for not at all."""
    own = options.deflate if isinstance(options, Options) else None
    return None if compression is None else own or _DEFLATE


async def _create_server(
    host: Any, port: int | None, settings: dict[str, Any], factory: Callable[[], TransportLink]
) -> asyncio.Server:
    """Listen through asyncio, which supports every setting of a listening socket."""
    loop: Any = asyncio.get_running_loop()
    is_unix = settings.pop("unix", False)
    if is_unix:
        server = await loop.create_unix_server(factory, **settings)
    else:
        server = await loop.create_server(factory, host, port, **settings)
    return cast("asyncio.Server", server)


_OWN_SETTINGS: Final = frozenset(
    {
        "close_timeout",
        "create_connection",
        "max_queue",
        "max_size",
        "open_timeout",
        "options",
        "ping_interval",
        "ping_timeout",
        "write_limit",
    }
)


def _split(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of `Server`, and those of the event loop's create_server."""
    own = {name: settings.pop(name) for name in _OWN_SETTINGS & settings.keys()}
    if settings.get("ssl") is not None:
        settings.setdefault("ssl_handshake_timeout", own.get("open_timeout", 10))
        settings.setdefault("ssl_shutdown_timeout", own.get("close_timeout", 10))
    return own, settings


def unix_serve(handler: Handler, path: str | os.PathLike[str] | None = None, **settings: Any) -> Server:
    """Return a server that listens on a Unix socket. See `serve` for its other arguments."""
    return serve(handler, unix=True, path=path, **settings)
