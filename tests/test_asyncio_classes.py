"""Our own classes mean what those of `websockets` mean, and take their place where it is not installed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import websockets.datastructures
import websockets.exceptions
import websockets.frames
import websockets.http11
import websockets.protocol

from uringws.asyncio import classes, own_classes

THEIRS: Any = {
    **vars(websockets.datastructures),
    **{name: getattr(websockets.exceptions, name, None) for name in own_classes.__all__},
    "Close": websockets.frames.Close,
    "Request": websockets.http11.Request,
    "Response": websockets.http11.Response,
    "State": websockets.protocol.State,
}


@pytest.mark.parametrize("name", own_classes.__all__)
def test_the_classes_of_websockets_are_used_where_it_is_installed(name: str) -> None:
    theirs = THEIRS[name] or getattr(websockets.datastructures, name)
    assert getattr(classes, name) is theirs


def test_a_server_runs_without_websockets() -> None:
    program = """
import sys
sys.modules["websockets"] = None
import asyncio
from uringws.asyncio import ConnectionClosed, classes, own_classes, serve

async def main():
    assert classes.ConnectionClosed is ConnectionClosed is own_classes.ConnectionClosed
    seen = []
    async def handler(connection):
        seen.append(connection.request.headers["Host"])
        try:
            await connection.recv()
        except ConnectionClosed as error:
            seen.append(str(error))
    async with serve(handler, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                     b"Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n")
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(b"\\x88\\x82\\0\\0\\0\\0\\x03\\xe8")
        await reader.read()
        writer.close()
    assert seen == ["a", "received 1000 (OK); then sent 1000 (OK)"], seen

asyncio.run(main())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (1005, ""), (3001, "x"), (4000, ""), (1, "")])
def test_close_frames_read_the_same(code: int, reason: str) -> None:
    assert str(own_classes.Close(code, reason)) == str(websockets.frames.Close(code, reason))


@pytest.mark.parametrize("received", [None, (1000, ""), (4000, "why")])
@pytest.mark.parametrize("sent", [None, (1001, "")])
@pytest.mark.parametrize("received_first", [True, False])
def test_the_exceptions_read_the_same(received: Any, sent: Any, received_first: bool) -> None:  # noqa: FBT001
    order = received_first if received and sent else None

    def text(module: Any, close: Any) -> str:
        frames = [close(*frame) if frame else None for frame in (received, sent)]
        return str(module.ConnectionClosedError(*frames, order))

    assert text(own_classes, own_classes.Close) == text(websockets.exceptions, websockets.frames.Close)


@pytest.mark.parametrize("headers_class", [own_classes.Headers, websockets.datastructures.Headers])
def test_headers_keep_all_values_and_find_them_by_any_case(headers_class: Any) -> None:
    headers = headers_class([("Host", "a"), ("Cookie", "b")])
    headers["cookie"] = "c"
    assert headers["HOST"] == "a"
    assert headers.get_all("Cookie") == ["b", "c"]
    assert list(headers.raw_items()) == [("Host", "a"), ("Cookie", "b"), ("cookie", "c")]
    assert headers.serialize() == b"Host: a\r\nCookie: b\r\ncookie: c\r\n\r\n"
    assert (len(headers), list(headers), "COOKIE" in headers) == (2, ["host", "cookie"], True)
    with pytest.raises(LookupError):
        headers["Cookie"]
    copy = headers.copy()
    del headers["Cookie"]
    assert ("Cookie" in headers, "Cookie" in copy) == (False, True)
    with pytest.raises(KeyError):
        del headers["Cookie"]


def test_a_header_value_that_would_break_out_of_its_line_is_refused() -> None:
    with pytest.raises(own_classes.InvalidHeaderValue):
        own_classes.Headers()["X"] = "a\r\nEvil: yes"
