"""The iterator of `async for message in connection`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, cast

from uringws.asyncio.classes import CLOSED, ConnectionClosedOK
from uringws.asyncio.inbox import Fragment

if TYPE_CHECKING:
    from uringws.asyncio.connection import Data, ServerConnection

__all__ = ["Messages", "PlainMessages"]


class PlainMessages:
    """The same for a connection whose `recv` is not overridden: its common case is written out here, which saves a
    coroutine per message.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Data:
        connection = self._connection
        frames = connection._frames
        if not frames and not connection._is_reading and connection._state is not CLOSED:
            connection._is_reading = True
            try:
                await connection._waiter
            finally:
                connection._is_reading = False
            frames = connection._frames
        if frames and not connection._is_reading and type(frames[0]) is not Fragment:
            item = frames.pop(0)
            if connection._reads_paused:
                connection._resume_if_low()
            return cast("Data", item)
        try:
            return await connection.recv()
        except ConnectionClosedOK:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Do nothing: it holds nothing that must be given back."""


class Messages:
    """Ends when the connection is closed with code 1000, 1001 or none."""

    __slots__ = ("_connection",)

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Data:
        try:
            return await self._connection.recv()
        except ConnectionClosedOK:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Do nothing: it holds nothing that must be given back."""
