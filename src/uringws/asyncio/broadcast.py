"""`broadcast`: one message to many connections, without waiting for any of them."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from uringws.asyncio.classes import OPEN, ConcurrencyError
from uringws.asyncio.link import wrong_thread
from uringws.errors import ConnectionClosed as LinkClosed
from uringws.errors import WrongThread
from uringws.frames import Opcode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from uringws.asyncio.connection import DataLike, ServerConnection
    from uringws.asyncio.link import Link
    from uringws.connection import Connection
    from uringws.reactor import Reactor

__all__ = ["broadcast"]


def broadcast(
    connections: Iterable[ServerConnection],
    message: DataLike,
    *,
    text: bool | None = None,
    raise_exceptions: bool = False,
) -> None:
    """Send a message to all of the connections that are open, whether or not they keep up.

    Those on the ring share one call and one frame, however many they are; each of the others takes a write.

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
    for connection, error in _send_to_each(connections, opcode, payload):
        if raise_exceptions:
            errors.append(error)
        else:
            connection.logger.warning("skipped broadcast: %s", _reason(error))
    if errors:
        raise ExceptionGroup("skipped broadcast", errors)


def _send_to_each(
    connections: Iterable[ServerConnection], opcode: int, payload: Any
) -> Iterator[tuple[ServerConnection, Exception]]:
    """Send to all; yield those to which that was not possible, with the reason. Those on one ring take one call."""
    rings: dict[Reactor, list[Connection]] = {}
    last: Reactor | None = None
    group: list[Connection] = []
    for connection in connections:
        if connection._state is not OPEN:
            continue
        link: Any = connection._link
        if connection._sending is not None:
            yield connection, ConcurrencyError("sending a fragmented message")
        elif link.mode == "ring":
            reactor = link._ring._reactor
            if reactor is not last:
                last, group = reactor, rings.setdefault(reactor, [])
            group.append(link._conn)
        elif (error := _send(link, opcode, payload)) is not None:
            yield connection, error
    for reactor, group in rings.items():
        try:
            reactor.broadcast(payload, opcode, to=group)
        except Exception as cause:  # noqa: BLE001 - another thread's reactor, or one without memory
            error = _failed(wrong_thread() if isinstance(cause, WrongThread) else cause)
            yield from ((conn.data, error) for conn in group if conn.data is not None)


def _send(link: Link, opcode: int, payload: bytes) -> Exception | None:
    """Send to one connection; return why that was not possible."""
    try:
        link.send_frame(opcode, payload)
    except LinkClosed:
        return None  # the peer's close frame is in, and not handled yet
    except Exception as cause:  # noqa: BLE001 - what a transport may raise is not documented
        return _failed(cause)
    return None


def _failed(cause: Exception) -> Exception:
    error = RuntimeError("failed to write message")
    error.__cause__ = cause
    return error


def _reason(error: Exception) -> str:
    if error.__cause__ is None:
        return str(error)
    return f"{error}: {traceback.format_exception_only(error.__cause__)[0].strip()}"
