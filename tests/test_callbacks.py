"""Handlers that a reactor accepts: mistakes raise when the reactor is made, and do not show as clients that hang."""

from __future__ import annotations

import functools
import logging
import types
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from servers import ReactorThread, Silent
from uringws import Accept, Connection, Handler, Message, Options, Reactor, Reject, Request, Response, handler_fn
from uringws.backend import Backend
from wire import TEXT, Frame, Peer, http

QUIET = Options(ping_interval_seconds=None)


class AsyncMessage(Handler):
    async def on_message(self, conn: Connection, message: Message) -> None:  # type: ignore[override]
        conn.echo()


class AsyncOpen(Handler):
    async def on_open(self, conn: Connection) -> None:  # type: ignore[override]
        pass


class AsyncGenerator(Handler):
    async def on_message(self, conn: Connection, message: Message) -> AsyncIterator[int]:  # type: ignore[override]
        yield 1


class Generator(Handler):
    def on_message(self, conn: Connection, message: Message) -> Iterator[int]:  # type: ignore[override]
        yield 1


class AsyncCall:
    async def __call__(self, conn: Connection, message: Message) -> None:
        pass


class AsyncCallable(Handler):
    on_message = AsyncCall()  # type: ignore[assignment]


class NotCallable(Handler):
    on_close = 5  # type: ignore[assignment]


NO_HANDLERS: dict[str, tuple[Callable[[], object], str]] = {
    "None": (lambda: None, "NoneType"),
    "a number": (lambda: 42, "int"),
    "a string": (lambda: "handler", "str"),
    "a list": (lambda: [Silent()], "list"),
    "a module": (lambda: types, "module"),
    "the class": (lambda: Silent, r"Silent\(\)"),
    "a function": (lambda: print, "handler_fn"),
    "a lambda": (lambda: lambda conn, _: conn.echo(), "handler_fn"),
    "a partial": (lambda: functools.partial(print), "handler_fn"),
    "async on_message": (AsyncMessage, r"AsyncMessage\.on_message is `async def`.*sender"),
    "async on_open": (AsyncOpen, r"AsyncOpen\.on_open is `async def`"),
    "an async generator": (AsyncGenerator, r"on_message is `async def`"),
    "a generator": (Generator, r"Generator\.on_message has a `yield`"),
    "an object with async __call__": (AsyncCallable, r"on_message is `async def`"),
    "a callback that is a number": (NotCallable, r"NotCallable\.on_close cannot be called: it is int"),
}


@pytest.mark.parametrize("name", NO_HANDLERS)
def test_a_wrong_handler_is_refused_with_the_remedy(backend: Backend, name: str) -> None:
    make, text = NO_HANDLERS[name]
    handler: Any = make()
    with pytest.raises(TypeError, match=text):
        Reactor(handler, QUIET, backend=backend)


def test_handler_fn_of_a_coroutine_function_is_refused_too() -> None:
    async def on_message(conn: Connection, message: Message) -> None:
        conn.echo()

    with pytest.raises(TypeError, match="async def"):
        Reactor(handler_fn(on_message), QUIET, backend="epoll")


@pytest.mark.parametrize(
    ("name", "callback", "arguments"),
    [
        ("on_upgrade", lambda: None, "request"),
        ("on_request", lambda: None, "request"),
        ("on_open", lambda: None, "conn"),
        ("on_message", lambda message: message, "conn, message"),
        ("on_frame", lambda frame: frame, "conn, frame"),
        ("on_drain", lambda conn, amount: conn.send(amount), "conn"),
        ("on_close", lambda conn: conn, "conn, code, reason"),
        ("on_close", lambda conn, code, *, reason: (conn, code, reason), "conn, code, reason"),
    ],
)
def test_a_callback_that_does_not_take_its_arguments_is_refused(
    name: str, callback: Callable[..., object], arguments: str
) -> None:
    handler: Any = types.SimpleNamespace(**{name: callback})
    with pytest.raises(TypeError, match=rf"SimpleNamespace\.{name} takes .* calls it with \({arguments}\)"):
        Reactor(handler, QUIET, backend="epoll")


def test_a_callback_may_take_more_than_it_is_given() -> None:
    """Defaults, `*arguments`, and a function of C, whose signature cannot be known."""
    for callback in (lambda conn, message, room=None: (conn, message, room), lambda *_: None, print, max):
        handler: Any = types.SimpleNamespace(on_message=callback)
        Reactor(handler, QUIET, backend="epoll").close()


@pytest.mark.parametrize(
    ("slip", "meant"), [("on_connect", None), ("on_mesage", "on_message"), ("on_closed", "on_close")]
)
def test_a_method_that_no_callback_is_named_like_is_warned_of(slip: str, meant: str | None) -> None:
    handler: Any = type("Slip", (Handler,), {slip: print})()
    with pytest.warns(RuntimeWarning, match=rf"Slip\.{slip} .*{meant or 'the callbacks are'}") as caught:
        Reactor(handler, QUIET, backend="epoll").close()
    assert caught[0].filename == __file__  # it points to the caller's line


def test_an_object_without_any_callback_is_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match="no callback"):
        Reactor(object(), QUIET, backend="epoll").close()  # type: ignore[arg-type]


def test_an_object_with_one_callback_is_enough(backend: Backend) -> None:
    """A class without a base, a module, a namespace: any object with a callback. None stands for a missing callback."""

    class Bare:
        on_frame = None
        on_something_else = "a value is no method"

        def on_message(self, conn: Connection, message: Message) -> None:
            conn.echo()

    namespace = types.SimpleNamespace(on_message=lambda conn, _: conn.echo())
    module = types.ModuleType("handler")
    module.on_message = namespace.on_message  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for handler in (Bare(), namespace, module):
            made: Any = handler
            with ReactorThread(made, backend=backend) as server, Peer.connect(server.address) as peer:
                peer.send(TEXT, b"hello")
                assert peer.read_frame() == Frame(TEXT, b"hello")


def test_callbacks_are_looked_up_when_the_reactor_is_made_all_of_them(backend: Backend) -> None:
    called: list[str] = []

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        for name in ("on_upgrade", "on_request", "on_open", "on_message", "on_frame", "on_drain", "on_close"):
            setattr(handler, name, lambda *_, name=name: called.append(name))

    class First(Handler):
        def on_upgrade(self, request: Request) -> Accept | Reject | None:
            called.append("first")
            return None

        def on_request(self, request: Request) -> Response | None:
            return Response(200, (), b"first")

        def on_message(self, conn: Connection, message: Message) -> None:
            conn.echo()

    handler = First()
    with ReactorThread(handler, backend=backend, prepare=prepare) as server:
        with Peer.connect(server.address) as peer:
            peer.send(TEXT, b"hello")
            assert peer.read_frame() == Frame(TEXT, b"hello")
            assert peer.shake_hands() == 1000
        assert http(server.address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").body == b"first"
    assert called == ["first"]


def test_run_without_anything_to_do_warns(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    with Reactor(Silent(), QUIET, backend=backend) as reactor, caplog.at_level(logging.WARNING, "uringws"):
        reactor.run()
        assert ["bind" in record.message for record in caplog.records] == [True]
        caplog.clear()
        reactor.bind("127.0.0.1", 0)
        reactor.call_later(0, reactor.stop)
        reactor.run()  # it has a listening socket
        reactor.drain(0.1)
        reactor.run()  # it has been drained: there is nothing to warn of
    assert caplog.records == []
