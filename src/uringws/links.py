"""How the connection of an asyncio server is carried after its upgrade: over its transport, through the engine.

A link moves messages; its owner knows their meaning. Nothing here knows ASGI or a server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from uringws.engine import ServerEngine
from uringws.frames import Opcode

if TYPE_CHECKING:
    import asyncio

    from uringws.frames import AnyBuffer

__all__ = ["LinkOwner", "TransportLink"]

_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_PONG: Final = int(Opcode.PONG)
_CLOSE: Final = int(Opcode.CLOSE)
_EVENTS_MAX: Final = 256


class LinkOwner(Protocol):
    """The callbacks of a link."""

    def on_text(self, text: str) -> None:
        """Take a text message."""

    def on_bytes(self, data: bytes) -> None:
        """Take a binary message."""

    def on_pong(self, payload: bytes) -> None:
        """Take a pong."""

    def on_closed(self, code: int, reason: str, *, failed: bool) -> None:
        """Nothing more comes in: the peer's close frame came, or it broke the protocol (`failed`).

        The close frame that answers it has been written.
        """

    def wants_pause(self) -> bool:
        """Return whether no more messages are to be given for now."""


class TransportLink:
    """Carries a connection over an asyncio transport of any kind. `data_received` is its owner's to pass on."""

    mode: Final = "transport"

    __slots__ = ("_ending", "_engine", "_owner", "_paused", "_transport")

    def __init__(self, owner: LinkOwner, transport: asyncio.Transport, *, message_bytes_max: int) -> None:
        self._owner = owner
        self._transport = transport
        self._engine = ServerEngine(message_bytes_max=message_bytes_max)
        self._paused = False
        self._ending = False

    def feed(self, data: Any) -> None:
        """Take bytes of the peer, and give its messages to the owner until it wants a pause."""
        owner, engine = self._owner, self._engine
        while not self._ending:
            columns = engine.feed(data, _EVENTS_MAX)
            if columns.reply and not self._transport.is_closing():
                self._transport.write(columns.reply)
            for opcode, payload in zip(columns.opcodes, columns.payloads, strict=True):
                if opcode == _TEXT:
                    owner.on_text(payload)
                elif opcode == _BINARY:
                    owner.on_bytes(payload)
                elif opcode == _PONG:
                    owner.on_pong(payload)
                elif opcode == _CLOSE:
                    owner.on_closed(engine.close_code or 0, payload, failed=engine.has_failed)
            if owner.wants_pause():
                self._pause()
                return
            if not columns.held_len:
                return
            data = b""

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Give messages again: first those of the bytes that were taken before the pause."""
        if self._paused:
            if self._engine.held_len:
                self.feed(b"")
                if self._owner.wants_pause():
                    return
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def take_rest(self) -> None:
        """Give the messages of all bytes that were taken, pause or not: the transport is lost."""
        while self._engine.held_len:
            self.feed(b"")

    def send(self, opcode: int, payload: str | AnyBuffer) -> None:
        """Write a message or a ping. Raises TypeError, ValueError, ConnectionClosed."""
        self._transport.write(self._engine.encode(opcode, payload))

    def close(self, code: int | None, reason: str) -> None:
        """Write a close frame. Raises TypeError, ValueError, ConnectionClosed."""
        self._transport.write(self._engine.encode_close(code, reason))

    def end(self) -> None:
        """Close the transport once what was sent has left."""
        self._transport.close()

    def end_after_peer(self) -> bool:
        """Say that nothing more is sent, and go on to read: return False where that cannot be done.

        Closing a socket with unread input resets the connection, which destroys what the peer has not read yet.
        """
        transport = self._transport
        can_write_eof = getattr(transport, "can_write_eof", None)
        if transport.is_closing() or can_write_eof is None or not can_write_eof():
            return False
        self._ending = True
        transport.write_eof()
        if self._paused:
            self._paused = False
            transport.resume_reading()
        return True
