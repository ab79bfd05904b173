"""Starting, finding, measuring and ending processes: the servers, and the loops beside them on their CPUs."""

import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from contenders import Contender

START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 3.0
HOST = "127.0.0.1"


class ServerError(Exception):
    """A server did not start; the message is the last thing it said."""


@dataclass(frozen=True)
class Server:
    """A server that accepts connections."""

    contender: Contender
    port: int
    pid: int

    @property
    def name(self) -> str:
        """The contender's."""
        return self.contender.name


@contextmanager
def started(contender: Contender, core: int) -> Iterator[Server]:
    """Runs the contender on CPU `core`; it is gone afterwards. Raises ServerError with the reason if it cannot."""
    port = contender.port or free_port()
    wait_until_free(port)
    with tempfile.TemporaryFile("w+") as output:
        process = start(contender.command_line(port, core), core, output)
        try:
            wait_until_it_accepts(process, port, output)
            yield Server(contender, port, process.pid)
        finally:
            stop(process)


def start(command: list[str], core: int, output: IO[str]) -> subprocess.Popen[str]:
    """Starts a process that runs on `core` from its first instruction on: it inherits the CPUs of this one."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True)
    except OSError as error:
        raise ServerError(f"{shlex.join(command)}: {error.strerror}") from None
    finally:
        os.sched_setaffinity(0, mine)


def stop(process: subprocess.Popen[str]) -> None:
    """Asks a process to end, and ends it if it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def wait_until_it_accepts(process: subprocess.Popen[str], port: int, output: IO[str]) -> None:
    """Raises ServerError, with what the server said last, if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while not accepts(port):
        if process.poll() is not None:
            raise ServerError(last_line(output) or f"it ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise ServerError(f"it did not accept a connection on port {port} within {START_SECONDS_MAX:.0f} s")
        time.sleep(0.02)


def last_line(output: IO[str]) -> str:
    """Which of a traceback is the one that counts."""
    output.seek(0)
    lines = output.read().strip().splitlines()
    return lines[-1] if lines else ""


def accepts(port: int) -> bool:
    """Whether a program listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def wait_until_free(port: int) -> None:
    """A port of a process that has ended may stay taken until the kernel has freed its io_uring."""
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while accepts(port):
        if time.monotonic() > deadline:
            raise ServerError(f"port {port} is taken")
        time.sleep(0.02)


def free_port() -> int:
    """A port on which no program listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    children: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    except OSError:  # a thread or the process ended meanwhile
        pass
    return [pid, *(member for child in children for member in family(child))]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants, counted exactly (the figure in `status` is an estimate)."""
    total = 0
    for member in family(pid):
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


BUSY_LOOP = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10**6):
        pass
"""


@contextmanager
def busy_loop(core: int, policy: int = os.SCHED_OTHER) -> Iterator[None]:
    """Within it, half of the CPU is taken, or with SCHED_IDLE only unused time; ends by itself if its parent does."""
    with tempfile.TemporaryFile("w+") as output:
        process = start([sys.executable, "-S", "-c", BUSY_LOOP], core, output)
        try:
            os.sched_setscheduler(process.pid, policy, os.sched_param(0))
            yield
        finally:
            process.kill()
            process.wait()


@contextmanager
def kept_awake(*cores: int) -> Iterator[None]:
    """Within it, the CPUs never halt: loops run on them while nothing else wants to, and make way at once, sched(7)."""
    with ExitStack() as stack:
        for core in sorted(set(cores)):
            stack.enter_context(busy_loop(core, os.SCHED_IDLE))
        yield
