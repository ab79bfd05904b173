"""A plugin for pytest: aiohttp's own tests get our `WebSocketResponse` as `web.WebSocketResponse`, on our event loop.

`python -m pytest -p aiohttp_alias` in a source distribution of aiohttp, with this directory in PYTHONPATH. URINGWS_LOOP
names the event loop: uringws, where the connections are on the ring, or asyncio.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import setup_test_loop, teardown_test_loop

from uringws.aiohttp import WebSocketResponse
from uringws.asyncio import new_event_loop

LOOP = os.environ.get("URINGWS_LOOP", "uringws")
modes: Counter[str | None] = Counter()


class Counted(WebSocketResponse):
    """Counts where its connections went."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        writer = await super().prepare(request)
        modes[self.mode] += 1
        return writer


def pytest_configure() -> None:
    web.WebSocketResponse = Counted  # type: ignore[misc,assignment]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"connections by mode: {dict(modes)}")


@pytest.hookimpl(tryfirst=True)
def pytest_plugin_registered(plugin: Any) -> None:
    """Put our event loop in the place of aiohttp's plugin for tests."""
    if getattr(plugin, "__name__", "") == "aiohttp.pytest_plugin":
        plugin.loop = loop


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = setup_test_loop(new_event_loop if LOOP == "uringws" else asyncio.new_event_loop)
    asyncio.set_event_loop(made)
    yield made
    teardown_test_loop(made)
