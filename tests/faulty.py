"""Servers whose system calls fail on command: the build that can, and a process that runs on it.

The ordinary build stays as it is: the one with faults is made beside it, once a test run, and only a server's process
loads it. Where the build under test can fail by itself (`.ci/run` under the sanitizers), it is taken as it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import uringws
from servers import ROOT, START_SECONDS, STOP_SECONDS
from uringws.shim import lib
from wire import Frame, Peer, frame

ACCEPT, RECEIVE, SEND, ENTER, SETUP, ARM, NOTIFY, TASK_WORK, SHUTDOWN, ZERO_COPY, GROW, POLL_FIRST, WATCH, MIN_WAIT = (
    lib.URS_FAULT_ACCEPT,
    lib.URS_FAULT_RECEIVE,
    lib.URS_FAULT_SEND,
    lib.URS_FAULT_ENTER,
    lib.URS_FAULT_SETUP,
    lib.URS_FAULT_ARM,
    lib.URS_FAULT_NOTIFY,
    lib.URS_FAULT_TASK_WORK,
    lib.URS_FAULT_SHUTDOWN,
    lib.URS_FAULT_ZERO_COPY,
    lib.URS_FAULT_GROW,
    lib.URS_FAULT_POLL_FIRST,
    lib.URS_FAULT_WATCH,
    lib.URS_FAULT_MIN_WAIT,
)
ALWAYS = 1 << 60

SERVER = Path(__file__).with_name("faulty_server.py")
SETTLE_SECONDS = 10.0


def build_with_faults(directory: Path) -> Path:
    """The directory of a uringws whose calls fail on command: made in `directory` unless the one under test is one."""
    if lib.urs_fault_plan(ENTER, 0, 0, 0) != -errno.ENOTSUP:
        return Path(uringws.__file__).parent.parent
    for name in ("licenses", "uring_shim", "src"):
        shutil.copytree(
            ROOT / name, directory / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    build = subprocess.run(
        [sys.executable, directory / "uring_shim" / "build_ffi.py"],
        env={**os.environ, "URING_SHIM_FAULTS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout
    return directory / "src"


class FaultyServer:
    """The program `faulty_server.py`, listening on `address`."""

    def __init__(self, build: Path, directory: Path, backend: str, mode: str = "echo", **options: Any) -> None:
        self._build, self._directory = build, directory
        self._backend, self._mode, self._options = backend, mode, options

    def __enter__(self) -> Self:
        path = self._directory / f"control-{self._backend}-{self._mode}"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(START_SECONDS)
            self.log = self._directory / f"log-{self._backend}-{self._mode}"
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, SERVER, self._build, self._backend, self._mode, path, json.dumps(self._options)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self._control, _ = listener.accept()
        self._control.settimeout(STOP_SECONDS)
        self._answers = self._control.makefile()
        host, port = json.loads(self._answers.readline())
        self.address = (host, port)
        self.before = self.look()
        return self

    def __exit__(self, exc_type: object, *exc: object) -> None:
        self._control.shutdown(socket.SHUT_RDWR)
        self._answers.close()
        self._control.close()
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = None
        if exc_type is None:
            assert status == 0, self.log.read_text()

    def _ask(self, **command: Any) -> Any:
        self._control.sendall(json.dumps(command).encode() + b"\n")
        return json.loads(self._answers.readline())

    def plan(self, point: int, fault: int, *, start: int = 1, count: int = 1) -> None:
        """Make `count` calls of `point`, from the `start`-th from now on, fail with `fault` (an errno, or a cut)."""
        assert self._ask(plan=[point, start, count, fault]) == 0

    def clear(self) -> None:
        """Forget all plans."""
        for point in range(lib.URS_FAULT_POINTS):
            self.plan(point, 0, start=0, count=0)

    def look(self) -> dict[str, Any]:
        """How the server is: stats, sessions opened and closed, descriptors, faults injected, processor time."""
        answer: dict[str, Any] = self._ask(look=True)
        return answer

    def hold(self, seconds: float) -> None:
        """Block the server's thread for a while, beginning now."""
        self._ask(hold=seconds)

    def watch(self, *, wanted: bool = True) -> None:
        """Watch a pipe from now on, or no more."""
        self._ask(watch=wanted)

    def ring(self, count: int) -> None:
        """Write so many bytes to that pipe; its callback reads one at a time."""
        self._ask(ring=count)

    def rung(self) -> int:
        """How many of them the callback has read."""
        count: int = self._ask(rung=True)
        return count

    def injected(self, point: int) -> int:
        """How many faults of the present plan have happened."""
        count: int = self.look()["injected"][point]
        return count

    def settle(self) -> dict[str, Any]:
        """Wait until no session is left, and check what must be true then; return the server's last report."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            now = self.look()
            left = {name: now["stats"][name] for name in ("sessions", "handshakes")}
            if not any(left.values()) and now["descriptors"] <= self.before["descriptors"]:
                break
            assert time.monotonic() < deadline, f"still there: {left}, {now['descriptors']} descriptors"
            time.sleep(0.005)
        assert now["wrong"] == []
        assert now["opened"] == now["closed"]
        assert now["descriptors"] == self.before["descriptors"]
        for name in ("pool_in_use", "memory_bytes", "queued_bytes"):
            assert now["stats"][name] == self.before["stats"][name], name
        return now


class Talk:
    """A client that sends frames and takes the answers: all of them, or up to the byte at which it is cut off."""

    def __init__(self, peer: Peer, frames: list[Frame]) -> None:
        self.peer, self.expected = peer, frames

    def ask(self) -> None:
        """Send all frames at once."""
        self.peer.write(*(frame(sent.opcode, sent.payload) for sent in self.expected))

    def answered(self) -> bool:
        """Read the answers. False if the server cut the connection: then only their beginning came."""
        expected, self.expected = self.expected, []
        received: list[Frame] = []
        try:
            while len(received) < len(expected):
                received.append(self.peer.read_frame())
        except (EOFError, ConnectionError):
            self.peer.close()
        assert received == expected[: len(received)]
        return received == expected

    def finish(self) -> bool:
        """Read the answers and shake hands; False if the server cut the connection before."""
        with self.peer:
            if not self.answered():
                return False
            assert self.peer.shake_hands() == 1000
            return True

    def is_cut(self) -> bool:
        """Read on to see whether the server ends the connection without a close frame."""
        with self.peer, contextlib.suppress(ConnectionError):
            self.peer.read_eof()
        return True
