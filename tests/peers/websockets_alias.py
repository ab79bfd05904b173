"""A pytest plugin that puts our classes where the test suite of `websockets` looks for its own. It edits no file.

    PYTHONPATH=$DIR/src:src:tests/peers python -m pytest -p websockets_alias --rootdir $DIR $DIR/tests/asyncio

`URINGWS_PEERS_LOOP` names the event loop: "stock", "uvloop" or "uringws". What the tests need beyond the public API is
in `ServerConnectionTests.asyncSetUp`, which wraps a bare protocol around a socket: it is given a connection of ours.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import pytest
import uvloop
from websockets.asyncio import connection, router, server

import uringws.asyncio as ours
from uringws.asyncio.adopting import adopt

LOOP = os.environ.get("URINGWS_PEERS_LOOP", "stock")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The event loop that the tests are to run on."""
    if LOOP == "uvloop":
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    if LOOP == "uringws":
        return ours.new_event_loop()
    return asyncio.SelectorEventLoop()


class Policy(asyncio.DefaultEventLoopPolicy):
    """Makes the loops of unittest.IsolatedAsyncioTestCase."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return new_event_loop()


async def set_up_connection(test: Any) -> None:
    """The work of `asyncSetUp` of the connection tests, with a connection of ours at one end."""
    module = sys.modules[type(test).__module__]
    test.loop = asyncio.get_running_loop()
    local, remote = socket.socketpair()
    test.connection = await adopt(ours.serve(_no_handler, close_timeout=2 * module.MS), local)
    test.transport = test.connection.transport
    assert type(test.connection).__module__.startswith("uringws.")
    _, test.remote_connection = await test.loop.create_connection(
        lambda: module.InterceptingConnection(module.RecordingProtocol(test.REMOTE)), sock=remote
    )


async def _no_handler(connection: ours.ServerConnection) -> None:
    await connection.wait_closed()


def pytest_configure(config: pytest.Config) -> None:
    for name in server.__all__:
        setattr(server, name, getattr(ours, name))
    for name in router.__all__:
        setattr(router, name, getattr(ours, name))
    setattr(connection, "broadcast", ours.broadcast)  # noqa: B010 - it takes other connections
    asyncio.set_event_loop_policy(Policy())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test_class = getattr(item, "cls", None)
        if test_class is not None and test_class.__name__ == "ServerConnectionTests":
            test_class.asyncSetUp = set_up_connection
