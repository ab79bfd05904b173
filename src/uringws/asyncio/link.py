"""The interface between a connection and its link, which moves its frames: the ring or an asyncio transport."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from uringws.errors import WrongThread

if TYPE_CHECKING:
    from uringws.frames import AnyBuffer

__all__ = ["Link", "Mode", "wrong_thread"]

Mode = Literal["ring", "transport"]


def wrong_thread() -> WrongThread:
    """Return the error of a connection that is used from another thread or event loop than its own."""
    return WrongThread(
        "the connection belongs to another event loop: from elsewhere call "
        "asyncio.run_coroutine_threadsafe(connection.send(...), connection.loop)"
    )


class Link(ABC):
    """One connection's way to its peer. It calls the connection's `_received`, `_pong`, `_drained` and so on.

    Its methods never wait. Those that send raise what the transport raises; uringws.ConnectionClosed says that the
    peer's close or the loss of the connection is known and not handled yet.
    """

    __slots__ = ()

    mode: ClassVar[Mode]

    @abstractmethod
    def send(self, message: str | bytes) -> object:
        """Send a whole message: str as text, bytes as binary. Return a true value if the caller must look at `is_full`,
        otherwise a false value.
        """

    @abstractmethod
    def send_frame(self, opcode: int, payload: AnyBuffer, *, fin: bool = True) -> object:
        """Send one frame. Returns as `send` does."""

    @abstractmethod
    def is_full(self) -> bool:
        """Whether the bytes that wait for the peer have reached `write_limit`. If so, `_drained` of the connection will
        be called.
        """

    @abstractmethod
    def close(self, code: int | None, reason: str) -> None:
        """Send a close frame."""

    @abstractmethod
    def end(self) -> None:
        """Stop sending and receiving: the connection has failed (RFC 6455 7.1.7)."""

    @abstractmethod
    def abort(self) -> None:
        """End the connection at once."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Take in nothing for a while."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Take in frames again."""

    @property
    @abstractmethod
    def transport(self) -> Any:
        """The asyncio transport, or an object with the methods of one that make sense for the ring."""

    @property
    def latency(self) -> float:
        """Seconds that the last keepalive ping took to its pong; 0.0 before the first one."""
        return 0.0
