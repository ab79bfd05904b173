"""Payloads: checks fragments to be sent, decodes received fragments one by one, makes the data of pings. No I/O."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any, Final

from uringws.asyncio.classes import ProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from uringws.asyncio.inbox import Fragment

__all__ = ["Fragments", "control_payload", "each", "fragment_payload"]

_CONTROL_BYTES_MAX: Final = 125


async def each(chunks: Iterable[Any]) -> AsyncIterator[Any]:
    """Return an asynchronous iterator over an iterable."""
    for chunk in chunks:
        yield chunk


def fragment_payload(chunk: Any, *, is_str: bool) -> bytes | bytearray | memoryview:
    """Return the payload of one piece. Raises TypeError if it is not of the type of the first one."""
    if isinstance(chunk, str):
        if is_str:
            return chunk.encode()
    elif isinstance(chunk, bytes | bytearray | memoryview) and not is_str:
        return chunk
    raise TypeError("the fragments of a message must be all str or all bytes-like")


class Fragments:
    """Decodes the fragments of one message as they come: a character may be split between two."""

    def __init__(self, *, decode: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")() if decode else None

    def take(self, fragment: Fragment) -> str | bytes:
        """Return a fragment as the application is given it. Raises UnicodeDecodeError."""
        if self._decoder is None:
            return fragment.data
        return self._decoder.decode(fragment.data, fragment.fin)


def control_payload(data: Any) -> bytes:
    """Return the payload of a ping or pong. Raises TypeError, and ProtocolError for more than 125 bytes."""
    if isinstance(data, str):
        payload = data.encode()
    elif isinstance(data, bytes | bytearray | memoryview):
        payload = bytes(data)
    else:
        raise TypeError("data must be str or bytes-like")
    if len(payload) > _CONTROL_BYTES_MAX:
        raise ProtocolError("control frame too long")
    return payload
