"""The iterator of `async for message in connection`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from uringws.asyncio.classes import ConnectionClosedOK

if TYPE_CHECKING:
    from uringws.asyncio.connection import Data, ServerConnection

__all__ = ["Messages"]


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
