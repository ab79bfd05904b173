"""Objects that look like those of `websockets` which applications reach through a connection. They hold no state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uringws.asyncio.ending import Ending

if TYPE_CHECKING:
    import uuid

    from uringws.asyncio.attributes import Attributes, Logger
    from uringws.asyncio.classes import Close, ConnectionClosed, State

__all__ = ["ProtocolFacade"]


class ProtocolFacade:
    """The readable part of `connection.protocol` of `websockets`."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Attributes) -> None:
        self._connection = connection

    @property
    def id(self) -> uuid.UUID:
        """As `ServerConnection.id`."""
        return self._connection.id

    @property
    def logger(self) -> Logger:
        """As `ServerConnection.logger`."""
        return self._connection.logger

    @property
    def state(self) -> State:
        """As `ServerConnection.state`."""
        return self._connection.state

    @property
    def subprotocol(self) -> str | None:
        """As `ServerConnection.subprotocol`."""
        return self._connection.subprotocol

    @property
    def extensions(self) -> list[Any]:
        """The extensions that were agreed on: none."""
        return []

    @property
    def close_code(self) -> int | None:
        """As `ServerConnection.close_code`."""
        return self._connection.close_code

    @property
    def close_reason(self) -> str | None:
        """As `ServerConnection.close_reason`."""
        return self._connection.close_reason

    @property
    def close_rcvd(self) -> Close | None:
        """The peer's close frame."""
        ending = self._connection._ending
        return None if ending is None else ending.received

    @property
    def close_sent(self) -> Close | None:
        """This side's close frame."""
        ending = self._connection._ending
        return None if ending is None else ending.sent

    @property
    def close_exc(self) -> ConnectionClosed:
        """The exception that a closed connection raises."""
        return (self._connection._ending or Ending()).error()
