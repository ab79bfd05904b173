"""Coroutines on uringws: an event loop on a reactor, and `serve` with the surface of `websockets.asyncio.server`."""

from uringws.asyncio.auth import basic_auth
from uringws.asyncio.broadcast import broadcast
from uringws.asyncio.connection import ServerConnection
from uringws.asyncio.exceptions import (
    ConcurrencyError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidHandshake,
    NegotiationError,
    WebSocketException,
)
from uringws.asyncio.listening import Listening, listen
from uringws.asyncio.loop import EventLoop, new_event_loop, run
from uringws.asyncio.router import Router, route, unix_route
from uringws.asyncio.server import Server, serve, unix_serve

__all__ = [
    "ConcurrencyError",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "EventLoop",
    "InvalidHandshake",
    "Listening",
    "NegotiationError",
    "Router",
    "Server",
    "ServerConnection",
    "WebSocketException",
    "basic_auth",
    "broadcast",
    "listen",
    "new_event_loop",
    "route",
    "run",
    "serve",
    "unix_route",
    "unix_serve",
]
