"""Sockets for a reactor: makes listening sockets, and checks sockets that a reactor takes over. No state."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "Address",
    "BoundPath",
    "address_of",
    "check_listener",
    "check_stream",
    "listen_tcp",
    "listen_unix",
    "show_address",
]

Address = tuple[str, int] | str
"""(host, port), or the path of a Unix socket; an abstract name begins with NUL, unix(7)."""

_PORT_MAX: Final = 65_535
_ANY_HOST: Final = "0.0.0.0"  # noqa: S104 - asked for by an empty host, as in socket.create_server
_UNIX_NAME_BYTES_MAX: Final = 107  # unix(7): sun_path has 108 bytes, one of them NUL
_MODE_MAX: Final = 0o777
_BIND_HINTS: Final = {
    errno.EADDRINUSE: "; another program listens there: stop it, or choose another port",
    errno.EADDRNOTAVAIL: "; no interface of this machine has that address",
    errno.EACCES: "; ports below net.ipv4.ip_unprivileged_port_start (1024) take root or CAP_NET_BIND_SERVICE",
}
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def listen_tcp(host: object, port: object, *, reuse_port: bool) -> socket.socket:
    """Return a socket bound to a TCP port, whatever the caller gave for one. Raises as `Reactor.bind` says."""
    if isinstance(host, tuple):
        raise TypeError(f"bind takes the host and the port as two arguments, not a tuple: bind(*{host!r})")
    if port is None:
        raise TypeError(f"bind takes a host and a port, not {host!r} alone")
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
        hint = _BIND_HINTS.get(error.errno or 0, "")
        raise OSError(error.errno, f"bind {host}:{port}: {error.strerror}{hint}") from None
    return listener


class BoundPath(NamedTuple):
    """The file that a Unix socket was bound to. Another file may take its path later: device and inode tell them
    apart.
    """

    path: str
    """Absolute, because the process may change its directory."""
    device: int
    inode: int

    def is_of(self, address: str) -> bool:
        """Whether it is the file of that address."""
        return not address.startswith("\0") and self.path == str(Path(address).absolute())

    def remove(self) -> None:
        """Remove the file, unless it is gone or another file has its path.

        Call this before the socket is closed: until then no new file gets this inode, and no new server can mistake
        the path for a stale one.
        """
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                Path(self.path).unlink()


def listen_unix(name: str, mode: int | None) -> tuple[socket.socket, BoundPath | None]:
    """Return a socket bound to a Unix path, or to an abstract name, which begins with NUL and has no file.

    Raises as `Reactor.bind_unix` says. A file has the permissions `mode`; None leaves them to the umask.
    """
    shown = show_address(name)
    _check_unix_name(name, mode)
    is_abstract = name.startswith("\0")
    if not is_abstract:
        _remove_stale(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = None
    try:
        listener.bind(name)
        if is_abstract:
            return listener, None
        found = os.lstat(name)
        bound = BoundPath(str(Path(name).absolute()), found.st_dev, found.st_ino)
        if mode is not None:
            Path(name).chmod(mode)  # no client can have connected: the socket does not listen yet
    except OSError as error:
        if bound is not None:
            bound.remove()
        listener.close()
        raise OSError(error.errno, f"bind {shown}: {error.strerror}{_unix_hint(name, error.errno)}") from None
    return listener, bound


def _unix_hint(name: str, error: int | None) -> str:
    """Return what to do about an errno of bind(2) for a Unix socket."""
    if name.startswith("\0"):
        return _BIND_HINTS[errno.EADDRINUSE] if error == errno.EADDRINUSE else ""
    directory = Path(name).absolute().parent
    hints = {
        errno.EADDRINUSE: _taken_hint(name),
        errno.EACCES: f"; this user may not create a file in {directory}, which takes write and search permission",
        errno.ENOENT: f"; {directory} does not exist: create it first",
        errno.ENOTDIR: f"; {directory} is not a directory",
    }
    return hints.get(error or 0, "")


def _taken_hint(path: str) -> str:
    """Return what lies at a path that bind(2) found taken, and what to do about it."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return ""
    if stat.S_ISDIR(mode):
        return "; that is a directory: give the path of a socket in it, such as " + str(Path(path) / "uringws.sock")
    if stat.S_ISSOCK(mode):
        return "; another program listens there: stop it, or choose another path"
    return "; a file of another kind exists there: remove it, or choose another path"


def _check_unix_name(name: str, mode: int | None) -> None:
    if not name or "\0" in name[1:]:  # the kernel would choose a name itself, or end the path at the NUL
        raise ValueError(f"bind_unix takes a path, or NUL and an abstract name, not {name!r}")
    bytes_max = _UNIX_NAME_BYTES_MAX + name.startswith("\0")
    if len(os.fsencode(name)) > bytes_max:
        text = f"bind {show_address(name)}: the name is longer than {_UNIX_NAME_BYTES_MAX} bytes"
        raise OSError(errno.ENAMETOOLONG, text)
    if mode is None:
        return
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise TypeError(f"mode is an int such as 0o660 or None, not {mode!r}")
    if not 0 <= mode <= _MODE_MAX:
        raise ValueError(f"mode {mode:#o} is not in 0 to {_MODE_MAX:#o}")
    if name.startswith("\0"):
        raise ValueError("mode: an abstract socket has no file and no permissions")


def _remove_stale(path: str) -> None:
    """Remove a socket on which no program listens any more. Leave everything else: files, links, and live sockets."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server whose queue is full would make it wait
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except OSError:
            pass  # a program listens: bind fails


def check_listener(sock: socket.socket) -> None:
    """Raise TypeError or ValueError unless a reactor can listen on it."""
    if not isinstance(sock, socket.socket) or isinstance(sock, ssl.SSLSocket):
        raise TypeError(f"bind_socket takes a plain socket.socket, not {type(sock).__name__}")
    if sock.fileno() < 0:
        raise ValueError("bind_socket takes an open socket, and this one is closed")
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
    with _duplicate(descriptor) as probe:
        if probe.type != socket.SOCK_STREAM or probe.family not in _FAMILIES:
            raise ValueError("only TCP and Unix stream sockets can be adopted")
        probe.getpeername()  # raises OSError for one that is not connected
    return descriptor


def _duplicate(descriptor: int) -> socket.socket:
    """Return another handle of a socket. Raises OSError for a descriptor that is not a socket."""
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except BaseException:
        os.close(duplicate)
        raise


def address_of(sock: socket.socket) -> Address:
    """Return where a socket is bound."""
    name = sock.getsockname()
    if isinstance(name, bytes):  # abstract
        return os.fsdecode(name)
    return name if isinstance(name, str) else (name[0], name[1])


def show_address(address: Address) -> str:
    """Return an address as text: host:port as in a URL, an IPv6 host in brackets; a path unchanged; an abstract name
    with "@" in place of its NUL, as ss(8) shows it.
    """
    if isinstance(address, str):
        return address.replace("\0", "@", 1) if address.startswith("\0") else address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
