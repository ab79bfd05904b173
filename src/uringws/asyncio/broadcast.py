"""`broadcast`: one message to many connections, without waiting for any of them."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from uringws.asyncio.classes import OPEN, ConcurrencyError
from uringws.errors import ConnectionClosed as LinkClosed
from uringws.frames import Opcode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uringws.asyncio.connection import DataLike, ServerConnection

__all__ = ["broadcast"]


def broadcast(
    connections: Iterable[ServerConnection],
    message: DataLike,
    *,
    text: bool | None = None,
    raise_exceptions: bool = False,
) -> None:
    """Send a message to all of the connections that are open, whether or not they keep up.

    str is sent as text, a bytes-like object as binary, unless `text` says otherwise. Connections that are in the middle
    of a fragmented message are left out, with a warning in their log; `raise_exceptions` raises an ExceptionGroup of
    those instead, after the others were sent to. Raises TypeError for another message.
    """
    payload: Any
    if isinstance(message, str):
        payload, opcode = message.encode(), Opcode.BINARY if text is False else Opcode.TEXT
    elif isinstance(message, bytes | bytearray | memoryview):
        payload, opcode = message, Opcode.TEXT if text is True else Opcode.BINARY
    else:
        raise TypeError("data must be str or bytes")
    errors: list[Exception] = []
    for connection in connections:
        error = _send(connection, opcode, payload) if connection.state is OPEN else None
        if error is not None and raise_exceptions:
            errors.append(error)
        elif error is not None:
            connection.logger.warning("skipped broadcast: %s", _reason(error))
    if errors:
        raise ExceptionGroup("skipped broadcast", errors)


def _send(connection: ServerConnection, opcode: int, payload: bytes) -> Exception | None:
    """Send to one connection; return why that was not possible."""
    if connection._sending is not None:
        return ConcurrencyError("sending a fragmented message")
    try:
        connection._link.send_frame(opcode, payload)
    except LinkClosed:
        return None  # the peer's close frame is in, and not handled yet
    except Exception as cause:  # noqa: BLE001 - what a transport may raise is not documented
        error = RuntimeError("failed to write message")
        error.__cause__ = cause
        return error
    return None


def _reason(error: Exception) -> str:
    if error.__cause__ is None:
        return str(error)
    return f"{error}: {traceback.format_exception_only(error.__cause__)[0].strip()}"
