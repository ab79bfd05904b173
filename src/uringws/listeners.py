"""The listening sockets of one reactor: bound, given to the shim, and closed. How a socket is made is in sockets.py."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from uringws.errors import ReactorStateError, check
from uringws.run_state import RunState
from uringws.shim import lib
from uringws.sockets import Address, BoundPath, address_of, check_listener, listen_tcp, listen_unix

if TYPE_CHECKING:
    from uringws.core import Core
    from uringws.services import Service

__all__ = ["Listeners"]


class Listeners:
    """Where one reactor listens. `Reactor` documents the functions of the same names, and what they raise."""

    def __init__(self, core: Core) -> None:
        self.addresses: list[Address] = []
        """In the order of the bind calls; `close` keeps them."""
        self.services: dict[int, Service] = {}
        """The service of each listener's connections, by the shim's index of it; `close` keeps them."""
        self._core = core
        self._sockets: list[socket.socket] = []  # as long as `addresses`, until `close`
        self._indexes: list[int] = []  # their indexes in the shim
        self._unshared: list[socket.socket] = []  # sockets made here: no other server shares them
        self._paths: list[BoundPath] = []

    def __bool__(self) -> bool:
        """Whether it listens anywhere."""
        return bool(self._sockets)

    def bind(self, host: str, port: int | None, service: Service, *, reuse_port: bool) -> tuple[str, int]:
        """See `Reactor.bind`."""
        self._check()
        listener = listen_tcp(host, port, reuse_port=reuse_port)
        try:
            self._listen(listener, service)
        except BaseException:
            listener.close()
            raise
        self._unshared.append(listener)
        name = listener.getsockname()
        return name[0], name[1]

    def bind_unix(self, path: str | os.PathLike[str], service: Service, *, mode: int | None) -> Address:
        """See `Reactor.bind_unix`."""
        self._check()
        listener, bound_path = listen_unix(os.fsdecode(path), mode)
        try:
            address = self._listen(listener, service)
        except BaseException:
            if bound_path is not None:
                bound_path.remove()
            listener.close()
            raise
        self._unshared.append(listener)
        if bound_path is not None:
            self._paths.append(bound_path)
        return address

    def bind_socket(self, sock: socket.socket, service: Service) -> Address:
        """See `Reactor.bind_socket`."""
        self._check()
        check_listener(sock)
        return self._listen(sock, service)

    def _check(self) -> None:
        self._core.check_usable()
        self._core.check_thread()

    def _listen(self, sock: socket.socket, service: Service) -> Address:
        options = service.options
        if options.tcp_nodelay and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        sock.listen(options.listen_backlog)
        core = self._core
        with core.lock:
            core.check_lasting()
            core.check_thread()
            if core.is_draining:
                raise ReactorStateError("a reactor that is draining cannot listen: make a new one")
            is_unix = sock.family == socket.AF_UNIX
            index = check(lib.urs_reactor_listen(core.handle, sock.fileno(), is_unix, service.rules), "listen")
            self.services[index] = service
        self._sockets.append(sock)
        self._indexes.append(index)
        self.addresses.append(address_of(sock))
        return self.addresses[-1]

    def unbind(self, address: Address) -> None:
        """See `Reactor.unbind`."""
        core = self._core
        core.check_lasting()
        core.check_thread()
        if not self._sockets or address not in self.addresses:
            raise ValueError(f"unbind: the reactor does not listen on {address!r}, only on {self.addresses}")
        place = self.addresses.index(address)
        check(lib.urs_reactor_unlisten(core.handle, self._indexes[place]), "unbind")
        sock = self._sockets[place]
        del self.addresses[place], self._sockets[place], self._indexes[place]
        for path in [path for path in self._paths if isinstance(address, str) and path.is_of(address)]:
            path.remove()
            self._paths.remove(path)
        if sock in self._unshared:
            self._unshared.remove(sock)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # as in `close`
        sock.close()

    def close(self) -> None:
        """Close all of them, and remove the files of those that were made here. A forked child keeps the files."""
        ours = self._core.state is not RunState.INHERITED
        for path in self._paths if ours else ():
            path.remove()
        self._paths.clear()
        for listener in self._unshared if ours else ():
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # a forked child would otherwise keep the port open
        self._unshared.clear()
        for listener in self._sockets:
            listener.close()
        self._sockets.clear()
        self._indexes.clear()
