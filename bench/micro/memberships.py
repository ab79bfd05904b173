"""The cost of joining a topic and leaving it: through C, through Python, and of another library beside them.

The other library's part is a program that is given on the command line: it gets the numbers of sessions, topics, joins
per session and repeats as arguments, does what `loop_topics_visit` describes, and prints the nanoseconds of CPU time.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from tables import Candidate, Table, UnavailableError

SESSIONS = 1000
TOPICS = 100
JOINS = 10


def run_program(command: str, repeats: int) -> int:
    """The nanoseconds that the other library's program prints."""
    words = [*shlex.split(command), *map(str, (SESSIONS, TOPICS, JOINS, repeats))]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return int(done.stdout) if done.returncode == 0 else -1
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{command}: {error}") from None


class Memberships:
    """Connections of a reactor of this process, and topics."""

    def __init__(self, stack: ExitStack) -> None:
        """The peers are Unix sockets; all is closed with the stack."""
        from uringws import Handler, Options, Reactor  # noqa: PLC0415 - the other tables need no package that is built

        opened: list[Any] = []

        class Collect(Handler):
            def on_open(self, conn: Any) -> None:
                """Keep it."""
                opened.append(conn)

        reactor = stack.enter_context(Reactor(Collect(), Options(ping_interval_seconds=None)))
        for _ in range(SESSIONS + 1):
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            reactor.add_session(ours)
        while len(opened) <= SESSIONS:
            reactor.run_once(0)
        stays = opened.pop()
        topics = [reactor.topic(f"topic {number}") for number in range(TOPICS)]
        for topic in topics:
            topic.add(stays)
        self._pairs = [
            (topics[(number * JOINS + k) % TOPICS], conn) for number, conn in enumerate(opened) for k in range(JOINS)
        ]

    def visit(self, repeats: int) -> int:
        """The nanoseconds of CPU time for every join and every leave."""
        start = time.thread_time_ns()
        for _ in range(repeats):
            for topic, conn in self._pairs:
                topic.add(conn)
            for topic, conn in self._pairs:
                topic.remove(conn)
        return time.thread_time_ns() - start


def membership_tables(module: Any, topic_tree: str | None = None) -> Iterator[Table]:
    """One table; the program's line comes first, and the others are compared with it."""
    room = module.lib.loop_topics_open(SESSIONS, TOPICS)
    if room == module.ffi.NULL:
        raise UnavailableError("out of memory")
    with ExitStack() as stack:
        stack.callback(module.lib.loop_topics_close, room)
        lines = {
            "C": lambda repeats: int(module.lib.loop_topics_visit(room, JOINS, repeats)),
            "Python": Memberships(stack).visit,
        }
        if topic_tree is not None:
            lines = {"the other library": partial(run_program, topic_tree), **lines}
        candidates = [Candidate(name, line, SESSIONS * JOINS) for name, line in lines.items()]
        title = f"join and leave, {SESSIONS:,} sessions, {JOINS} of {TOPICS} topics each"
        yield Table(title, 1e3, "million/s", candidates)
