"""An echo server whose system calls fail on command, run by `faulty.py` in a process of its own.

    faulty_server.py <directory of the build with faults> <backend> <mode> <control socket> <options as JSON>

On the control socket each line is a JSON object, and so is its answer: {"plan": [point, from, count, fault]} plans a
fault (fault.h), {"look": true} tells how the server is, {"hold": seconds} blocks its thread for a while,
{"watch": true} watches a pipe from now on, {"watch": false} no more, {"ring": count} writes so many bytes to it, and
{"rung": true} tells how many bytes the callback has read.
"""

import dataclasses
import functools
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

from uringws import Connection, Handler, Message, Options, Reactor, Sender, Watch
from uringws.shim import lib

SINK: list[Connection] = []
"""The session that has sent a text message."""


def echo_between_flushes(conn: Connection, message: Message) -> None:
    """Echo, but first send so much to another session that all replies so far leave at once."""
    if message.is_text:
        SINK.append(conn)
        return
    for _ in range(40):
        SINK[0].send_binary(bytes(30_000))
    conn.echo()


ANSWERS: dict[str, Callable[[Connection, Message], object]] = {
    "c": lambda _conn, _message: None,
    "silent": lambda _conn, _message: None,
    "echo": lambda conn, _message: conn.echo(),
    "echo-between-flushes": echo_between_flushes,
    "send": lambda conn, message: conn.send(message.opcode, bytes(message)),
}


class Bookkeeper(Handler):
    """Answers as its mode says, and counts how often each session was opened and closed."""

    def __init__(self, mode: str) -> None:
        self.opened: Counter[int] = Counter()
        self.closed: Counter[int] = Counter()
        self.codes: Counter[int] = Counter()
        self.answer = ANSWERS[mode]

    def on_open(self, conn: Connection) -> None:
        self.opened[conn.id] += 1

    def on_message(self, conn: Connection, message: Message) -> None:
        self.answer(conn, message)

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        self.closed[conn.id] += 1
        self.codes[code] += 1


class Bell:
    """A pipe that the reactor watches on command, and how many bytes its callback has read."""

    def __init__(self, reactor: Reactor) -> None:
        self.reading, self.writing = os.pipe()
        self.rung = 0
        self._reactor = reactor
        self._watch: Watch | None = None

    def watch(self, wanted: bool) -> None:  # noqa: FBT001
        if wanted:
            self._watch = self._reactor.watch(self.reading, self._read)
        elif self._watch is not None:
            self._watch.cancel()

    def _read(self) -> None:
        self.rung += len(os.read(self.reading, 1))


def look(reactor: Reactor, books: Bookkeeper) -> dict[str, Any]:
    return {
        "stats": dataclasses.asdict(reactor.stats()),
        "opened": len(books.opened),
        "closed": len(books.closed),
        "codes": dict(books.codes),
        "wrong": sorted(id_ for id_ in books.opened | books.closed if books.opened[id_] != 1 or books.closed[id_] > 1),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "injected": [lib.urs_fault_injected(point) for point in range(lib.URS_FAULT_POINTS)],
        "cpu_seconds": time.process_time(),
    }


def control(connection: socket.socket, reactor: Reactor, sender: Sender, books: Bookkeeper) -> None:
    """Carry out commands, each on the reactor's thread; the end of the stream stops the server."""
    bell = Bell(reactor)
    for line in connection.makefile():
        command = json.loads(line)
        answer: Future[Any] = Future()

        def act(command: dict[str, Any] = command, answer: Future[Any] = answer) -> None:
            if "plan" in command:
                answer.set_result(lib.urs_fault_plan(*command["plan"]))
            elif "hold" in command:
                answer.set_result(None)
                time.sleep(command["hold"])
            elif "watch" in command:
                bell.watch(command["watch"])
                answer.set_result(None)
            elif "ring" in command:
                answer.set_result(os.write(bell.writing, bytes(command["ring"])))
            elif "rung" in command:
                answer.set_result(bell.rung)
            else:
                answer.set_result(look(reactor, books))

        # A turn later than the command: only the next turn releases the memory of a turn's messages.
        sender.call(functools.partial(sender.call, act))
        connection.sendall(json.dumps(answer.result(30)).encode() + b"\n")
    sender.release()
    reactor.stop()


def main() -> None:
    mode, path, options = sys.argv[3:]
    backend: Any = sys.argv[2]
    books = Bookkeeper(mode)
    with (
        socket.socket(socket.AF_UNIX) as connection,
        Reactor(books, Options(**json.loads(options)), backend=backend) as reactor,
    ):
        connection.connect(path)
        host, port = reactor.bind("127.0.0.1", 0)
        sender = reactor.sender()
        threading.Thread(target=control, args=(connection, reactor, sender, books), daemon=True).start()
        connection.sendall(json.dumps([host, port]).encode() + b"\n")
        (reactor.run_echo if mode == "c" else reactor.run)()


main()
