"""The message that a handler is given: one object per reactor, used for each message in turn.

Reading it costs nothing until it is asked for: the payload stays where the kernel put it.
"""

from __future__ import annotations

from typing import Final

from uringws.shim import fast_copy, lib
from uringws.turn import IN_BLOCK, INVALID, NO_COLUMN, Turn

__all__ = ["Message"]

_TEXT: Final[int] = lib.URS_OPCODE_TEXT
_copy: Final = fast_copy


class Message(Turn):
    """A message (to `on_frame`: a frame). Valid until the handler returns; copy with `bytes(message)` or `text()`.

    After the return `data` is released: reading it raises ValueError. A slice that was taken of it shows later bytes of
    the receive buffer, never freed memory. Once the turn is over, everything else raises RuntimeError. The same object
    is used for the next message. `len(message)` is the payload's size in bytes.
    """

    __slots__ = ()

    @property
    def opcode(self) -> int:
        """TEXT (1) or BINARY (2); of a frame also CONTINUATION (0)."""
        try:
            opcode: int = self._opcodes[self._index]
        except IndexError:
            raise RuntimeError(INVALID) from None
        return opcode

    @property
    def fin(self) -> bool:
        """Whether this is the end of its message; always True in `on_message`."""
        self.opcode  # noqa: B018 - raises if there is nothing to be read
        return bool(self._fins[self._index])

    @property
    def is_text(self) -> bool:
        """Whether the opcode is TEXT; the payload is valid UTF-8 then."""
        return bool(self.opcode == lib.URS_OPCODE_TEXT)

    @property
    def data(self) -> memoryview:
        """The payload: a writable memoryview of bytes ("B", one dimension), without a copy.

        `conn.echo()` sends the bytes with the changes made here. numpy.frombuffer(message.data, ...) makes no copy
        either.
        """
        view = self._view
        if view is None:
            index = self._index
            try:
                offset = self._offsets[index]
            except IndexError:
                raise RuntimeError(INVALID) from None
            in_pool = offset != IN_BLOCK
            length = self._lengths[index]
            view = self._pool[offset : offset + length] if in_pool else self._view_block(index, length)
            self._view = view
        return view

    def copy_whole(self) -> str | bytes | None:
        """Return a copy of a whole message: a str of text, bytes of binary; None for a fragment of one.

        For handlers that keep messages: one call in place of `is_text`, `fin`, and `text()` or `bytes(message)`.
        """
        if self._opcodes is NO_COLUMN:
            raise RuntimeError(INVALID)
        try:
            return _copy(self._address, self._index)  # type: ignore[no-any-return]
        except IndexError:
            pass
        payload = bytes(self.data)  # an echo that was applied has taken the block from the event, not from its view
        return payload.decode() if self.opcode == _TEXT else payload

    def text(self) -> str:
        """Return a copy of the payload, decoded. Raises UnicodeDecodeError for binary that is not UTF-8."""
        return self.__bytes__().decode()

    def __bytes__(self) -> bytes:
        """Return a copy of the payload."""
        index = self._index
        try:
            offset = self._offsets[index]
        except IndexError:
            raise RuntimeError(INVALID) from None
        if offset == IN_BLOCK:
            return bytes(self.data)
        return self._memory[offset : offset + self._lengths[index]]

    def __len__(self) -> int:
        """Return the payload's size in bytes."""
        try:
            return int(self._lengths[self._index])
        except IndexError:
            raise RuntimeError(INVALID) from None

    def __repr__(self) -> str:
        """Name it for a log."""
        if self._index >= len(self._opcodes):
            return "<Message, no longer valid>"
        return f"<Message opcode={self.opcode} bytes={len(self)}>"
