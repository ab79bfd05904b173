"""A plugin for pytest: the test client of Starlette speaks WebSocket over a socket, to uvicorn with our class.

`python -m pytest -p starlette_alias tests/test_websockets.py` in a source distribution of Starlette, with this and the
parent directory in PYTHONPATH. URINGWS_PEERS_LOOP names the event loop: asyncio, uvloop or uringws.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import os
import struct
from typing import Any, Self, cast

import pytest
from starlette import testclient
from starlette.testclient import TestClient, WebSocketDenialResponse, WebSocketTestSession

from asgi_server import Live
from wire import BINARY, CLOSE, TEXT, Peer, close_frame

LOOP = os.environ.get("URINGWS_PEERS_LOOP", "uringws")
HANDSHAKE = {b"upgrade", b"connection", b"sec-websocket-accept", b"sec-websocket-protocol"}


class Stream:
    """The method of a socket that HTTPResponse calls."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self.raw)


class LiveSession(WebSocketTestSession):
    """A session of the test client with a server of its own. Leaving it raises what the application raised."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.live = stack.enter_context(
                Live(cast("Any", self.app), LOOP, server_header=False, date_header=False, log_level="critical")
            )
            self.peer = stack.enter_context(Peer.dial(self.live.address))
            stack.callback(self.live.result)
            self.peer.write(self.request())
            self.take_answer()
            stack.callback(self.close, 1000)
            self.exit_stack = stack.pop_all()
        return self

    def request(self) -> bytes:
        """The request that the client made, with a key of 16 bytes in place of its own and the header it leaves out."""
        scope = self.scope
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = {name.lower(): value for name, value in scope["headers"]}
        headers |= {b"upgrade": b"websocket", b"sec-websocket-key": base64.b64encode(os.urandom(16))}
        lines = [b"GET " + target + b" HTTP/1.1", *(name + b": " + value for name, value in headers.items())]
        return b"\r\n".join([*lines, b"", b""])

    def take_answer(self) -> None:
        raw = b""
        while not raw.endswith(b"\r\n\r\n"):
            raw += self.peer.read_exactly(1)
        if raw.startswith(b"HTTP/1.1 101 "):
            lines = [line.partition(b": ") for line in raw.split(b"\r\n")[1:-2]]
            headers = [(name.lower(), value) for name, _, value in lines]
            subprotocol = dict(headers).get(b"sec-websocket-protocol")
            self.accepted_subprotocol = cast("Any", None if subprotocol is None else subprotocol.decode())
            self.extra_headers = cast("Any", [header for header in headers if header[0] not in HANDSHAKE])
            return
        with contextlib.suppress(EOFError):
            while True:
                raw += self.peer.read_exactly(1)
        response = http.client.HTTPResponse(cast("Any", Stream(raw)))
        response.begin()
        denial = cast("Any", WebSocketDenialResponse)  # its type depends on which HTTP client is installed
        raise denial(status_code=response.status, headers=response.getheaders(), content=response.read())

    def send(self, message: Any) -> None:
        """Send a message or a close frame. An event that no server makes of bytes is not sent."""
        if message["type"] == "websocket.disconnect":
            with contextlib.suppress(OSError):  # the server may have closed the connection
                self.peer.write(close_frame(message["code"], message["reason"] or ""))
        elif message.get("text") is not None:
            self.peer.send(TEXT, message["text"].encode())
        elif message.get("bytes") is not None:
            self.peer.send(BINARY, message["bytes"])

    def receive(self) -> Any:
        """The next message or close frame, as the event that the application sent."""
        frame = self.peer.read_frame()
        if frame.opcode == CLOSE:
            (code,) = struct.unpack_from("!H", frame.payload)
            return {"type": "websocket.close", "code": code, "reason": frame.payload[2:].decode()}
        if frame.opcode == TEXT:
            return {"type": "websocket.send", "text": frame.payload.decode()}
        assert frame.opcode == BINARY
        return {"type": "websocket.send", "bytes": frame.payload}


def pytest_configure() -> None:
    testclient.WebSocketTestSession = LiveSession  # type: ignore[misc]


@pytest.hookimpl(tryfirst=True)
def pytest_plugin_registered(plugin: Any) -> None:
    """Put our fixture in the place of the suite's, before pytest looks for fixtures in it."""
    if hasattr(plugin, "test_client_factory"):
        plugin.test_client_factory = test_client_factory


@pytest.fixture
def test_client_factory() -> Any:
    """The client itself: each session runs its application on LOOP."""
    return TestClient
