"""Sockets for a reactor: listening ones are made here, and those it takes over are checked. No state."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Final

__all__ = ["Address", "address_of", "check_listener", "check_stream", "listen_tcp", "listen_unix", "show_address"]

Address = tuple[str, int] | str
"""(host, port), or the path of a Unix socket."""

_PORT_MAX: Final = 65_535
_ANY_HOST: Final = "0.0.0.0"  # noqa: S104 - asked for by an empty host, as in socket.create_server
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def listen_tcp(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """Return a socket bound to a TCP port. Raises as `Reactor.bind` says."""
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"bind takes a host as str and a port as int, not {host!r} and {port!r}")
    if not 0 <= port <= _PORT_MAX:  # getaddrinfo would take it modulo 65536
        raise ValueError(f"port {port} is not in 0 to {_PORT_MAX}")
    # ASCII as bytes spares getaddrinfo the import of the IDNA tables.
    name: str | bytes = (host or _ANY_HOST).encode() if host.isascii() else host
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise socket.gaierror(error.errno, f"bind {host}:{port}: {error.strerror}") from None
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"bind {host}:{port}: {error.strerror}") from None
    return listener


def listen_unix(path: str) -> socket.socket:
    """Return a Unix socket bound to a path, in place of one of that name that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except OSError:
            pass  # no socket there; what else may be there makes bind fail
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"bind {path}: {error.strerror}") from None
    return listener


def check_listener(sock: socket.socket) -> None:
    """Raise TypeError or ValueError for what cannot be listened on."""
    if not isinstance(sock, socket.socket) or isinstance(sock, ssl.SSLSocket):
        raise TypeError(f"bind_socket takes a plain socket.socket, not {type(sock).__name__}")
    if sock.type != socket.SOCK_STREAM or sock.family not in _FAMILIES:
        raise ValueError("bind_socket takes a TCP or Unix stream socket")


def check_stream(sock: socket.socket | int) -> int:
    """Return the descriptor of a socket to be adopted. Raises TypeError or ValueError, and leaves it alone."""
    if isinstance(sock, ssl.SSLSocket):
        raise TypeError("a TLS socket cannot be adopted: terminate TLS before it, or use ServerEngine on its stream")
    if isinstance(sock, bool) or not isinstance(sock, (int, socket.socket)):
        raise TypeError(f"sock must be a socket.socket or a descriptor, not {type(sock).__name__}")
    descriptor = sock if isinstance(sock, int) else sock.fileno()
    if descriptor < 0:
        raise ValueError("the socket is closed")
    with socket.socket(fileno=os.dup(descriptor)) as probe:
        if probe.type != socket.SOCK_STREAM or probe.family not in _FAMILIES:
            raise ValueError("only TCP and Unix stream sockets can be adopted")
    return descriptor


def address_of(sock: socket.socket) -> Address:
    """Return where a socket is bound."""
    name = sock.getsockname()
    return name if isinstance(name, str) else (name[0], name[1])


def show_address(address: Address) -> str:
    """Return an address as a URL has it: host:port, an IPv6 host in brackets; a path as it is."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
