"""A user's code under type checkers. mypy, which .ci/run also runs on this file, must find no error in it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from servers import ReactorThread
from uringws import (
    Accept,
    Connection,
    Handler,
    HandlerProtocol,
    Message,
    Opcode,
    Options,
    Reactor,
    Reject,
    Request,
    Response,
    Sender,
    handler_fn,
)
from uringws.backend import Backend
from wire import TEXT, Frame, Peer

if TYPE_CHECKING:
    import socket

    import numpy as np
    from numpy.typing import NDArray


class Derived(Handler):
    """Names its parameters as other libraries do."""

    def on_upgrade(self, req: Request) -> Accept | Reject | None:
        return None

    def on_open(self, ws: Connection) -> None:
        ws.send("welcome")

    def on_message(self, ws: Connection, msg: Message) -> None:
        ws.send(msg)

    def on_close(self, ws: Connection, status: int, why: str) -> None:
        pass


class Shaped:
    """Is a handler by its shape alone."""

    def on_upgrade(self, req: Request) -> Accept | Reject | None:
        return None

    def on_request(self, req: Request) -> Response | None:
        return None

    def on_open(self, ws: Connection) -> None:
        ws.send("welcome")

    def on_message(self, ws: Connection, msg: Message) -> None:
        ws.send(msg)

    def on_drain(self, ws: Connection) -> None:
        pass

    def on_close(self, ws: Connection, status: int, why: str) -> None:
        pass


def greet_and_echo(ws: Connection, msg: Message) -> None:
    if bytes(msg) == b"hello":
        ws.send("welcome")
    ws.send(msg)


HANDLERS: list[HandlerProtocol] = [Derived(), Shaped(), handler_fn(greet_and_echo)]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: type(handler).__name__)
def test_a_handler_names_its_parameters_as_it_likes(backend: Backend, handler: HandlerProtocol) -> None:
    with ReactorThread(handler, backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"hello")
        assert peer.read_frames(2) == [Frame(TEXT, b"welcome"), Frame(TEXT, b"hello")]


@pytest.mark.parametrize("shape", [Handler, HandlerProtocol])
def test_parameters_of_callbacks_have_no_names_to_checkers(shape: type[Any]) -> None:
    """Otherwise pyright refuses a handler with other parameter names."""
    callbacks = [member for name, member in inspect.getmembers(shape) if name.startswith("on_")]
    assert callbacks
    for callback in callbacks:
        kinds = {parameter.kind for parameter in inspect.signature(callback).parameters.values()}
        assert kinds == {inspect.Parameter.POSITIONAL_ONLY}, callback


def every_way_to_send(conn: Connection, sender: Sender, message: Message, array: NDArray[np.float64]) -> None:
    """Never called: it is here for mypy."""
    payloads: list[str | bytes | bytearray | memoryview] = []
    for payload in payloads:
        conn.send(payload)
        conn.send(Opcode.TEXT, payload)
        sender.send(conn.id, payload, timeout=1)
        sender.send(conn.id, Opcode.TEXT, payload)
    conn.send(array)
    conn.send(2, array)
    conn.send(message)
    conn.send(message.opcode, message)
    conn.send(opcode=message.opcode, payload=message.data)
    sender.send(conn.id, message)
    conn.send(1)  # type: ignore[call-overload]
    conn.send(Opcode.TEXT, None)  # type: ignore[call-overload]
    conn.send("text", Opcode.TEXT)  # type: ignore[call-overload]
    conn.send()  # type: ignore[call-overload]
    sender.send("text")  # type: ignore[call-overload]
    Reactor("handler")  # type: ignore[arg-type]


def every_way_to_serve(reactor: Reactor, sender: Sender, sock: socket.socket, options: Options) -> None:
    """Never called: it is here for mypy."""
    handler: HandlerProtocol | None
    for handler in [*HANDLERS, None]:
        reactor.bind("127.0.0.1", 0, handler=handler, options=options)
        reactor.bind_unix("path", handler=handler, options=None)
        reactor.bind_socket(sock, handler=handler, options=options)
        reactor.add_session(sock, handler=handler, options=options)
        reactor.add_session_with_prefix(sock, b"", handler=handler, options=options)
        sender.add_session(sock, handler=handler, options=options, timeout=1)
        sender.add_session_with_prefix(sock, b"", handler=handler, options=options)
    reactor.bind("127.0.0.1", 0, handler=greet_and_echo)  # type: ignore[arg-type]
    reactor.bind("127.0.0.1", 0, options={})  # type: ignore[arg-type]
    reactor.add_session(sock, handler=Derived)  # type: ignore[arg-type]
