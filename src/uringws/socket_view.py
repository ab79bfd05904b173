"""The socket of a connection as an application may see it: its options and addresses, none of its bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final, NoReturn

from uringws.errors import check
from uringws.shim import lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uringws.connection import Connection

__all__ = ["SocketView"]

_NO_DESCRIPTOR: Final = -1


class SocketView:
    """The value of `get_extra_info("socket")` on the ring, with the methods of asyncio's TransportSocket.

    The descriptor stays the reactor's: the view looks it up at each call. Once the connection's socket is closed,
    `fileno` returns -1 and calls raise OSError (EBADF), as those of a closed socket do. Only for the reactor's thread.
    """

    __slots__ = ("_connection", "_family")

    def __init__(self, connection: Connection, local_name: object) -> None:
        """`local_name` is what getsockname returned, by which the family is known also after the end."""
        self._connection = connection
        if not isinstance(local_name, tuple):
            self._family = socket.AF_UNIX
        else:
            self._family = socket.AF_INET if len(local_name) == 2 else socket.AF_INET6

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET, AF_INET6 or AF_UNIX."""
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        """SOCK_STREAM."""
        return socket.SOCK_STREAM

    @property
    def proto(self) -> int:
        """IPPROTO_TCP; 0 for a Unix socket."""
        return 0 if self._family == socket.AF_UNIX else socket.IPPROTO_TCP

    def fileno(self) -> int:
        """Return the descriptor, which must be neither closed nor read from; -1 once the socket is closed."""
        turn = self._connection._turn
        descriptor: int = lib.urs_command_descriptor(turn._handle, self._connection.id)
        if descriptor in (_NO_DESCRIPTOR, lib.URS_ERROR_STALE):
            return _NO_DESCRIPTOR
        return check(descriptor, "the socket of a connection")

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[socket.socket]:
        """Give a socket object for one call. Raises OSError once the socket is closed."""
        descriptor = self.fileno()
        if descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sock = socket.socket(self._family, socket.SOCK_STREAM, self.proto, fileno=descriptor)
        try:
            yield sock
        finally:
            sock.detach()

    def getsockopt(self, *arguments: Any) -> Any:
        """See socket.getsockopt."""
        with self._borrowed() as sock:
            return sock.getsockopt(*arguments)

    def setsockopt(self, *arguments: Any) -> None:
        """See socket.setsockopt."""
        with self._borrowed() as sock:
            sock.setsockopt(*arguments)

    def getpeername(self) -> Any:
        """See socket.getpeername."""
        with self._borrowed() as sock:
            return sock.getpeername()

    def getsockname(self) -> Any:
        """See socket.getsockname."""
        with self._borrowed() as sock:
            return sock.getsockname()

    def get_inheritable(self) -> bool:
        """See socket.get_inheritable."""
        with self._borrowed() as sock:
            return sock.get_inheritable()

    def dup(self) -> socket.socket:
        """Return another socket object, with a descriptor of its own, which keeps the stream from ending."""
        with self._borrowed() as sock:
            return sock.dup()

    def shutdown(self, how: int) -> None:
        """See socket.shutdown. Rather close the connection."""
        with self._borrowed() as sock:
            sock.shutdown(how)

    def gettimeout(self) -> float:
        """Return 0.0: nothing on an event loop blocks."""
        return 0.0

    def settimeout(self, value: float | None) -> None:
        """Accept 0. Raises ValueError for all else."""
        if value != 0:
            raise ValueError("settimeout(): only 0 timeout is allowed on transport sockets")

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - as a socket has it
        """Accept False. Raises ValueError for True."""
        if flag:
            raise ValueError("setblocking(): transport sockets cannot be blocking")

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled."""
        raise TypeError("Cannot serialize the socket of a connection")

    def __repr__(self) -> str:
        """Name it for a log."""
        return f"<SocketView of {self._connection!r}>"
