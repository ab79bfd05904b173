"""A plugin for pytest: uvicorn's own tests get our WebSocket class where they name that of websockets' sans-I/O half.

`python -m pytest -p uvicorn_alias` in a source distribution of uvicorn, with this directory in PYTHONPATH. The event
loop is the one that URINGWS_LOOP names: asyncio, uvloop or uringws.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
from uvicorn.protocols.websockets import websockets_sansio_impl

from uringws.uvicorn import WebSocketProtocol

LOOP = os.environ.get("URINGWS_LOOP", "asyncio")


def pytest_configure() -> None:
    websockets_sansio_impl.WebSocketsSansIOProtocol = WebSocketProtocol  # type: ignore[misc,assignment]


@pytest.hookimpl(tryfirst=True)
def pytest_plugin_registered(plugin: Any) -> None:
    """Put our fixture in the place of the suite's, before pytest looks for fixtures in it."""
    if hasattr(plugin, "anyio_backend") and getattr(plugin, "__file__", "").endswith("conftest.py"):
        plugin.anyio_backend = anyio_backend


@pytest.fixture
def anyio_backend() -> Any:
    if LOOP == "uvloop":
        return "asyncio", {"use_uvloop": True}
    if LOOP == "uringws":
        return "asyncio", {"loop_factory": importlib.import_module("uringws.asyncio").new_event_loop}
    return "asyncio"
