"""The cost of a send by its size: plain, zero copy, and zero copy from a registered buffer, over TCP on loopback.

If the kernel refuses, one line says so. On loopback it copies the bytes when they arrive, so that these tables show the
cost of zero copy, and never its gain.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

from tables import Candidate, Table, UnavailableError

SIZES = (1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
KINDS = {"SEND": "LOOP_SEND", "SEND_ZC": "LOOP_SEND_ZC", "SEND_ZC, fixed": "LOOP_SEND_ZC_FIXED"}

_FORBIDDEN = "the sysctl kernel.io_uring_disabled or a seccomp filter forbids io_uring"
HINTS = {
    errno.EINVAL: "Linux 6.2 or later is needed",
    errno.ENOBUFS: "a burst must fit into the sockets' buffers, see net.ipv4.tcp_rmem and net.ipv4.tcp_wmem",
    errno.ENOMEM: "raise RLIMIT_MEMLOCK, ulimit -l",
    errno.ENOSYS: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
}


def check(result: int, what: str) -> int:
    """Returns `result`, or raises UnavailableError if it is an error of the kernel's."""
    if result < 0:
        hint = HINTS.get(-result)
        raise UnavailableError(f"{what}: {os.strerror(-result)}{f' ({hint})' if hint else ''}")
    return result


def connection() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection, sender and receiver.

    SO_SNDBUF and SO_RCVBUF are left alone: they end TCP's own tuning, which goes beyond what an ordinary machine grants
    by them. A burst that finds no room yet is not counted (loop_send).
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver = listener.accept()[0]
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The kernel's own timeout: Python's would make the socket one that never waits.
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
    return sender, receiver


class Sends:
    """Bursts of one kind and size."""

    def __init__(self, module: Any, ring: Any, ends: tuple[socket.socket, socket.socket], kind: str, size: int) -> None:
        """`ring` is shared by all, `ends` by the lines of a table."""
        lib = module.lib
        self.count = min(int(lib.LOOP_SENDS_MAX), int(lib.LOOP_SENDS_BYTES_MAX) // size)
        self._ends = ends  # open as long as their numbers are used
        self._what = f"{kind} of {size:,} bytes"
        sender, receiver = (end.fileno() for end in ends)
        self._sends = module.ffi.new(
            "struct loop_sends *", (sender, receiver, getattr(lib, KINDS[kind]), size, self.count)
        )
        self._loop = partial(lib.loop_send, ring, self._sends)

    def run(self, repeats: int) -> int:
        """The nanoseconds of CPU time that so many bursts took."""
        return check(int(self._loop(repeats)), self._what)

    def copied(self) -> str:
        """The contents of the notifications of all sends so far."""
        notified, copied = int(self._sends.notified), int(self._sends.copied)
        if notified == 0:
            return ""
        return {0: "none copied", notified: "all copied"}.get(copied, f"{copied:,} of {notified:,} copied")


def open_ring(module: Any) -> Any:
    """A ring with its buffer registered."""
    opened = module.ffi.new("struct loop_ring **")
    check(module.lib.loop_ring_open(opened), "io_uring_setup")
    ring = module.ffi.gc(opened[0], module.lib.loop_ring_close)
    check(module.lib.loop_ring_register(ring), "io_uring_register (buffers)")
    return ring


def send_tables(module: Any) -> Iterator[Table]:
    """Each size; made one by one, so that what a machine refuses to the largest is shown for the others."""
    ring = open_ring(module)
    for size in SIZES:
        ends = connection()
        kinds = {kind: Sends(module, ring, ends, kind, size) for kind in KINDS}
        candidates = [Candidate(kind, sends.run, sends.count, note=sends.copied) for kind, sends in kinds.items()]
        count = kinds["SEND"].count
        yield Table(f"send {size:,} bytes over TCP loopback, {count} in a burst", size, "GB/s", candidates)
        for end in ends:
            end.close()
