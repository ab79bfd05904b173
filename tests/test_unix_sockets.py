"""Unix sockets to listen on: paths and abstract names, their mode, and which paths are removed.

Covers `Reactor.bind_unix`, `Reactor.bind_socket` of Unix sockets, and sockets.py where it makes them.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from servers import EchoRecorder, ReactorThread, Silent
from uringws import Reactor
from uringws.backend import Backend
from uringws.sockets import show_address
from wire import TEXT, Frame, Peer


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def echoes(address: str) -> bool:
    with Peer.connect(address) as peer:
        peer.send(TEXT, b"hello")
        return peer.read_frame() == Frame(TEXT, b"hello")


def abstract_name() -> str:
    return f"\0uringws-{uuid.uuid4()}"


# Which paths are removed


def test_a_new_server_takes_over_the_path_and_the_old_one_leaves_it_alone(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    old = Reactor(Silent(), backend=backend)
    old.bind_unix(path)
    path.unlink()  # as in a deployment that starts the new server before the old one has ended
    with ReactorThread(EchoRecorder(), backend=backend, prepare=lambda reactor: reactor.bind_unix(path)) as server:
        old.close()
        assert path.is_socket()
        assert server.address == str(path)
        assert echoes(str(path))
    assert not path.exists()


def test_a_path_that_was_moved_over_the_servers_own_is_left_alone(backend: Backend, tmp_path: Path) -> None:
    path, other = tmp_path / "socket", tmp_path / "other"
    with Reactor(Silent(), backend=backend) as reactor:
        reactor.bind_unix(path)
        other.write_text("somebody else's")
        other.rename(path)
    assert path.read_text() == "somebody else's"


def test_a_drain_removes_only_the_path_of_its_server(backend: Backend, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    with Reactor(Silent(), backend=backend) as reactor, socket.socket(socket.AF_UNIX) as successor:
        reactor.bind_unix(mine)
        reactor.bind_unix(theirs)
        theirs.unlink()
        successor.bind(str(theirs))
        reactor.drain()
        assert not mine.exists()
        assert theirs.is_socket()


def test_a_relative_path_is_removed_also_from_another_directory(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Reactor(Silent(), backend=backend) as reactor:
        assert reactor.bind_unix("socket") == "socket"
        monkeypatch.chdir("/")
    assert not (tmp_path / "socket").exists()


def test_a_stale_socket_is_replaced(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert path.is_socket()
    with ReactorThread(EchoRecorder(), backend=backend, prepare=lambda reactor: reactor.bind_unix(path)):
        assert echoes(str(path))


@pytest.mark.parametrize("kind", ["file", "empty file", "directory", "link to a file", "link to a stale socket"])
def test_other_files_at_the_path_are_never_removed(backend: Backend, tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "there", tmp_path / "target"
    if kind == "directory":
        path.mkdir()
    elif kind == "link to a file":
        target.write_text("precious")
        path.symlink_to(target)
    elif kind == "link to a stale socket":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(target))
        path.symlink_to(target)
    else:
        path.write_text("" if kind == "empty file" else "precious")
    before = path.lstat()
    with Reactor(Silent(), backend=backend) as reactor, pytest.raises(OSError, match=str(path)) as caught:
        reactor.bind_unix(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert (path.lstat().st_ino, path.lstat().st_size) == (before.st_ino, before.st_size)


@pytest.mark.parametrize("backlog", [0, 128], ids=["its queue full", "idle"])
def test_the_socket_of_a_living_server_is_never_taken_away(backend: Backend, tmp_path: Path, backlog: int) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as living, socket.socket(socket.AF_UNIX) as waiting:
        living.bind(str(path))
        living.listen(backlog)
        waiting.connect(str(path))  # a further blocking connect would wait for ever where the queue is full
        with Reactor(Silent(), backend=backend) as reactor, pytest.raises(OSError, match=str(path)) as caught:
            reactor.bind_unix(path)
        assert caught.value.errno == errno.EADDRINUSE
        assert path.is_socket()


def test_a_socket_that_cannot_be_listened_on_leaves_no_file(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "no buffers")

    monkeypatch.setattr(socket.socket, "listen", fail)
    with Reactor(Silent(), backend=backend) as reactor:
        with pytest.raises(OSError, match="no buffers"):
            reactor.bind_unix(tmp_path / "socket")
        assert list(tmp_path.iterdir()) == []
        assert reactor.addresses == []


# The mode


def test_a_mode_that_cannot_be_set_leaves_no_file(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path, __: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path = tmp_path / "socket"
    monkeypatch.setattr(Path, "chmod", refuse)
    with Reactor(Silent(), backend=backend) as reactor:
        with pytest.raises(PermissionError, match=str(path)):
            reactor.bind_unix(path, mode=0o660)
        assert not path.exists()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o666), (0o077, 0o660), (0, 0o600), (0o022, 0)], ids=oct)
def test_the_mode_does_not_depend_on_the_umask(backend: Backend, tmp_path: Path, mask: int, mode: int) -> None:
    path = tmp_path / "socket"
    with umask(mask), Reactor(Silent(), backend=backend) as reactor:
        reactor.bind_unix(path, mode=mode)
        assert mode_of(path) == mode


def test_without_a_mode_the_umask_decides(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with umask(0o027), Reactor(Silent(), backend=backend) as reactor:
        reactor.bind_unix(path)
        assert mode_of(path) == 0o750


@pytest.mark.parametrize(
    ("mode", "error"),
    [("0o666", TypeError), (True, TypeError), (6.0, TypeError), (-1, ValueError), (0o1000, ValueError)],
)
def test_a_bad_mode_is_refused_before_anything_is_made(
    backend: Backend, tmp_path: Path, mode: object, error: type[Exception]
) -> None:
    path = tmp_path / "socket"
    with Reactor(Silent(), backend=backend) as reactor:
        with pytest.raises(error, match="mode"):
            reactor.bind_unix(path, mode=mode)  # type: ignore[arg-type]
        assert not path.exists()
        assert reactor.addresses == []


# Abstract names


def test_an_abstract_name_is_listened_on_and_reported(backend: Backend) -> None:
    name = abstract_name()
    with ReactorThread(EchoRecorder(), backend=backend, prepare=lambda reactor: reactor.bind_unix(name)) as server:
        assert server.addresses == [name]
        assert echoes(name)
    with socket.socket(socket.AF_UNIX) as after:
        after.bind(name)  # free again


def test_an_abstract_socket_can_be_handed_over(backend: Backend) -> None:
    name = abstract_name()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name.encode())
    with ReactorThread(
        EchoRecorder(), backend=backend, prepare=lambda reactor: reactor.bind_socket(listener)
    ) as server:
        assert server.addresses == [name]
        assert echoes(name)


def test_an_abstract_name_is_shown_with_an_at_sign(backend: Backend) -> None:
    name = abstract_name()
    shown = "@" + name[1:]
    assert show_address(name) == shown
    with Reactor(Silent(), backend=backend) as reactor, socket.socket(socket.AF_UNIX) as other:
        other.bind(name)
        with pytest.raises(OSError, match=f"bind {shown}: Address already in use"):
            reactor.bind_unix(name)
        with pytest.raises(ValueError, match="mode"):
            reactor.bind_unix(abstract_name(), mode=0o600)
        free = abstract_name()
        reactor.bind_unix(free)
        assert f"@{free[1:]}" in repr(reactor)


# Invalid names


@pytest.mark.parametrize("path", ["", "a\0b", "/tmp/a\0"], ids=repr)
def test_a_path_that_the_kernel_would_cut_short_is_refused(backend: Backend, path: str) -> None:
    with Reactor(Silent(), backend=backend) as reactor, pytest.raises(ValueError, match="bind_unix"):
        reactor.bind_unix(path)


@pytest.mark.parametrize(("length", "fits"), [(107, True), (108, False), (120, False)])
def test_a_path_has_as_many_bytes_as_the_kernel_takes(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, *, fits: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = "ä" * (length // 2) + "x" * (length % 2)
    with Reactor(Silent(), backend=backend) as reactor:
        if fits:
            assert reactor.bind_unix(path) == path
            return
        with pytest.raises(OSError, match="107 bytes") as caught:
            reactor.bind_unix(path)
        assert caught.value.errno == errno.ENAMETOOLONG
        with pytest.raises(OSError, match="107 bytes"):
            reactor.bind_unix("\0" + "x" * 108)
        reactor.bind_unix("\0" + "x" * 107)
