"""The classes that programs written for `websockets` name: its own where it is installed, else ours of the same names.

A program that changes one import goes on to catch `websockets.ConnectionClosed`, and must be given that class. The
choice is made once, here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

__all__ = [
    "CLOSED",
    "CLOSING",
    "CONNECTING",
    "OPEN",
    "USES_WEBSOCKETS",
    "Close",
    "ConcurrencyError",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "Headers",
    "InvalidHandshake",
    "InvalidHeader",
    "InvalidHeaderValue",
    "InvalidOrigin",
    "InvalidUpgrade",
    "MultipleValuesError",
    "NegotiationError",
    "PayloadTooBig",
    "ProtocolError",
    "Request",
    "Response",
    "State",
    "WebSocketException",
]

_WEBSOCKETS_MIN: Final = "14"


def _is_websockets_there() -> bool:
    """Whether `websockets` is installed, and new enough to have all the classes."""
    try:
        import websockets.exceptions  # noqa: PLC0415
        import websockets.version  # noqa: PLC0415
    except ImportError:
        return False
    if hasattr(websockets.exceptions, "ConcurrencyError"):
        return True
    logging.getLogger("uringws").warning(
        "websockets %s is older than %s: uringws.asyncio raises its own exceptions, which `except` lines that name "
        "those of websockets do not catch",
        websockets.version.version,
        _WEBSOCKETS_MIN,
    )
    return False


USES_WEBSOCKETS: Final = _is_websockets_there()
"""Whether the classes are those of `websockets`."""

if TYPE_CHECKING or USES_WEBSOCKETS:
    from websockets.datastructures import Headers, MultipleValuesError
    from websockets.exceptions import (
        ConcurrencyError,
        ConnectionClosed,
        ConnectionClosedError,
        ConnectionClosedOK,
        InvalidHandshake,
        InvalidHeader,
        InvalidHeaderValue,
        InvalidOrigin,
        InvalidUpgrade,
        NegotiationError,
        PayloadTooBig,
        ProtocolError,
        WebSocketException,
    )
    from websockets.frames import Close
    from websockets.http11 import Request, Response
    from websockets.protocol import State
else:
    from uringws.asyncio.own_classes import (
        Close,
        ConcurrencyError,
        ConnectionClosed,
        ConnectionClosedError,
        ConnectionClosedOK,
        Headers,
        InvalidHandshake,
        InvalidHeader,
        InvalidHeaderValue,
        InvalidOrigin,
        InvalidUpgrade,
        MultipleValuesError,
        NegotiationError,
        PayloadTooBig,
        ProtocolError,
        Request,
        Response,
        State,
        WebSocketException,
    )

CONNECTING: Final = State.CONNECTING
OPEN: Final = State.OPEN
CLOSING: Final = State.CLOSING
CLOSED: Final = State.CLOSED
