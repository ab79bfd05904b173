"""The cost of Python per message: turns of a reactor with a handler, minus turns of the shim alone.

The peers are sockets of this very process, filled before the clock starts and emptied after it has stopped, so that a
turn finds all its messages at once and never waits.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tables import Candidate, Table

KEY = b"\x37\xfa\x21\x3d"
PAYLOAD_BYTES = 20
ANSWER = bytes(PAYLOAD_BYTES)

# Connections, and how many messages of each a turn brings. Many messages make the share of the sockets, and its
# noise, small. One message each is what most servers see: the cost of a turn is in it, divided by its messages.
SHAPES = ((32, 64), (100, 1))


class Nothing:
    """A handler that does not read the message."""

    def on_message(self, conn: Any, message: Any) -> None:
        """Handle a message."""


class Copy:
    """A handler that takes a copy of the payload."""

    def on_message(self, conn: Any, message: Any) -> None:
        """Handle a message."""
        bytes(message)


class Echo:
    """A handler that sends each message back as it is."""

    def on_message(self, conn: Any, message: Any) -> None:
        """Handle a message."""
        conn.echo()


class SendMessage:
    """A handler that sends the message as its payload, without a view."""

    def on_message(self, conn: Any, message: Any) -> None:
        """Handle a message."""
        conn.send(message)


class SendBytes:
    """A handler that sends an answer of its own."""

    def on_message(self, conn: Any, message: Any) -> None:
        """Handle a message."""
        conn.send(ANSWER)


class Send:
    """A handler that sends the payload as a message of its own."""

    def on_message(self, conn: Any, message: Any) -> None:
        """Handle a message."""
        conn.send(message.opcode, message.data)


class Burst:
    """A reactor, its peers, and the same messages over and over."""

    def __init__(self, handler: Any, connections: int, pipelined: int, *, answers: bool) -> None:
        """`answers` says whether the handler sends each message back."""
        from uringws import Options, Reactor  # noqa: PLC0415 - the other tables need no package that is built

        self.messages = connections * pipelined
        self._reactor = Reactor(handler, Options(ping_interval_seconds=None), backend="auto")
        self._frames = (struct.pack("!BB4s", 0x82, 0x80 | PAYLOAD_BYTES, KEY) + bytes(PAYLOAD_BYTES)) * pipelined
        self._answer = bytearray((2 + PAYLOAD_BYTES) * pipelined if answers else 0)
        self._peers = []
        for _ in range(connections):
            ours, theirs = socket.socketpair()
            theirs.settimeout(10)
            self._peers.append(theirs)
            self._reactor.add_session(ours)

    @property
    def backend(self) -> str:
        """The reactor's backend."""
        return self._reactor.backend

    def run(self, turn: Callable[[], int], repeats: int) -> int:
        """The nanoseconds of CPU time that so many bursts took, the sending of the answers included."""
        nanoseconds = 0
        for _ in range(repeats):
            for peer in self._peers:
                peer.sendall(self._frames)
            start = time.thread_time_ns()
            left = self.messages
            while left > 0:
                left -= turn()
            turn()  # the answers of a turn leave in the next one
            nanoseconds += time.thread_time_ns() - start
            if left < 0 or not all(self._took(peer) for peer in self._peers):
                return -1
        return nanoseconds

    def handled(self, repeats: int) -> int:
        """With the handler."""
        return self.run(partial(self._reactor.run_once, 0), repeats)

    def alone(self, repeats: int) -> int:
        """Without Python: the shim answers, if anything does."""
        from uringws.shim import ffi, lib  # noqa: PLC0415 - see above

        core = self._reactor._core  # noqa: SLF001 - run_echo runs until it is stopped; this is a turn of it
        self._reactor.run_once(0)  # starts it, the first time
        stats = ffi.new("struct urs_reactor_stats *")

        def turn() -> int:
            before = int(stats.messages_in)  # one event may be many messages
            core.handled[0] = max(0, lib.urs_reactor_turn(core.handle, 0, bool(self._answer)))
            lib.urs_reactor_read_stats(core.handle, stats)
            return int(stats.messages_in) - before

        lib.urs_reactor_read_stats(core.handle, stats)
        return self.run(turn, repeats)

    def _took(self, peer: socket.socket) -> bool:
        """Whether the peer got its answers; they are gone then."""
        return not self._answer or peer.recv_into(self._answer, 0, socket.MSG_WAITALL) == len(self._answer)


def dispatch_table(connections: int, pipelined: int) -> Table:
    """Each handler beside the shim that does the same without one."""
    silent, echoing = 0, 1
    bursts = {
        "shim, no answers": (Burst(Nothing(), connections, pipelined, answers=False), silent),
        "shim, echo": (Burst(Nothing(), connections, pipelined, answers=True), echoing),
        "nothing": (Burst(Nothing(), connections, pipelined, answers=False), silent),
        "bytes(message)": (Burst(Copy(), connections, pipelined, answers=False), silent),
        "echo()": (Burst(Echo(), connections, pipelined, answers=True), echoing),
        "send(answer)": (Burst(SendBytes(), connections, pipelined, answers=True), echoing),
        "send(message)": (Burst(SendMessage(), connections, pipelined, answers=True), echoing),
        "send(data)": (Burst(Send(), connections, pipelined, answers=True), echoing),
    }
    candidates = [
        Candidate(name, burst.alone if index <= echoing else burst.handled, burst.messages, base)
        for index, (name, (burst, base)) in enumerate(bursts.items())
    ]
    backend = bursts["shim, echo"][0].backend
    title = f"dispatch on {backend}, {connections} connections, {pipelined} in flight, {PAYLOAD_BYTES} bytes"
    return Table(title, 1e3, "million/s", candidates, "difference")


def dispatch_tables(_module: object) -> list[Table]:
    """Each shape."""
    return [dispatch_table(*shape) for shape in SHAPES]
