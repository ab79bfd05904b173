"""Runs the load generator (load/, in C) and turns its output into named numbers.

As a script it compiles the generator if need be and becomes it:

    python bench/load.py --port 9001 --connections 100 --payload-bytes 20 --verify
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from native import BuildError, build

Protocol = Literal["websocket", "tcp"]

GRACE_SECONDS = 30
"""How much longer than its windows a run may take: opening, the last answers, and a machine that is busy."""


OFF_BY_DEFAULT = {"connections", "rate", "members", "stalled", "publishes", "publish_rate"}
"""Settings whose 0 is said by leaving the option out."""


class LoadError(Exception):
    """The generator gave up; the message is what it said."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The settings of the generator; the fields are its options, see `python bench/load.py --help`."""

    connections: int = 1
    payload_bytes: int = 20
    in_flight: int = 1
    mode: Literal["echo", "upgrade", "fanout", "chat", "backlog"] = "echo"
    members: int = 0
    stalled: int = 0
    publishes: int = 0
    publish_rate: float = 0
    protocol: Protocol = "websocket"
    text: bool = False
    verify: bool = False
    spin: bool = False
    rate: float = 0
    warmup_seconds: float = 0.2
    seconds: float = 1.0

    def arguments(self) -> list[str]:
        """The generator's command line, without the port."""
        words: list[str] = []
        for name, value in vars(self).items():
            option = "--" + name.replace("_", "-")
            if value is True:
                words.append(option)
            elif value is not False and not (value == 0 and name in OFF_BY_DEFAULT):
                words += [option, str(value)]
        return words


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The counts of the measured window. A message is an answered message, a finished upgrade, or a message that a
    member received.
    """

    messages: int
    seconds: float
    latency_microseconds: dict[str, float]
    """By percentile: p50, p90, p99, p99.9, max."""
    client_cpu_seconds: float
    server_cpu_seconds: float
    """Of all watched processes and their threads; 0 if none was watched."""
    client_waited_seconds: float
    server_waited_seconds: float
    """How long each was ready to run while its CPU did something else: on a quiet machine next to nothing, except
    where a busy loop shares the server's CPU."""
    unanswered: int
    """Messages of a fixed rate that were due in the window and never answered."""

    @property
    def messages_per_second(self) -> float:
        """On all connections together."""
        return self.messages / self.seconds

    @property
    def client_cpu_share(self) -> float:
        """1 if the generator never slept: then it was the bottleneck."""
        return self.client_cpu_seconds / self.seconds

    @property
    def server_cpu_share(self) -> float:
        """1 if the server kept one CPU busy."""
        return self.server_cpu_seconds / self.seconds

    @property
    def server_cpu_microseconds_per_message(self) -> float:
        """The price of a message: user and system time together."""
        return self.server_cpu_seconds * 1e6 / self.messages if self.messages else float("inf")


def run(load: Load, port: int, *, core: int | None = None, watch: Sequence[int] = ()) -> Outcome:
    """Puts the load on 127.0.0.1:port from CPU `core`, and measures the CPU time of the processes `watch` meanwhile.

    Raises LoadError if the server does not do its part, BuildError if the generator cannot be compiled.
    """
    command = [str(build("load")), "--port", str(port), *load.arguments()]
    if core is not None:
        command += ["--core", str(core)]
    for pid in watch:
        command += ["--watch", str(pid)]
    limit = load.warmup_seconds + load.seconds + GRACE_SECONDS
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise LoadError(f"the load did not end within {limit:.0f} s") from None
    if done.returncode != 0:
        raise LoadError(done.stderr.strip() or f"the load generator ended with status {done.returncode}")
    said = json.loads(done.stdout)
    return Outcome(
        messages=said["messages"],
        seconds=said["seconds"],
        latency_microseconds=said["latency_microseconds"],
        client_cpu_seconds=said["client_cpu_seconds"],
        server_cpu_seconds=said.get("server_cpu_seconds", 0.0),
        client_waited_seconds=said["client_waited_seconds"],
        server_waited_seconds=said.get("server_waited_seconds", 0.0),
        unanswered=said["unanswered"],
    )


@contextmanager
def hold(connections: int, port: int, *, protocol: Protocol = "websocket", core: int | None = None) -> Iterator[None]:
    """Within it, `connections` sessions stand idle, each of which has exchanged one message before."""
    command = [str(build("load")), "--mode", "idle", "--port", str(port)]
    command += ["--connections", str(connections), "--protocol", protocol]
    if core is not None:
        command += ["--core", str(core)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise AssertionError("pipes were asked for")
        try:
            if not process.stdout.readline():
                raise LoadError(process.stderr.read().strip())
            yield
        finally:
            process.stdin.close()


def talk(process: subprocess.Popen[str], line: str | None = None) -> None:
    """Says the line, if there is one, and waits for the answer. Raises LoadError if the generator has given up."""
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise AssertionError("pipes were asked for")
    if line is not None:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    if not process.stdout.readline():
        raise LoadError(process.stderr.read().strip())


@contextmanager
def backlogs(load: Load, port: int, *, core: int | None = None) -> Iterator[Callable[[], None]]:
    """Within it, members are connected; the yielded function publishes to them all that `load` asks for.

    At the end the stalled members read all of it, and every byte is compared: a server that has dropped a message is
    a LoadError.
    """
    command = [str(build("load")), "--port", str(port), *load.arguments()]
    if core is not None:
        command += ["--core", str(core)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            talk(process)
            yield lambda: talk(process, "publish")
            talk(process, "read")
        except BaseException:
            process.kill()
            raise


if __name__ == "__main__":
    try:
        generator = build("load")
    except BuildError as error:
        sys.exit(str(error))
    os.execv(generator, [generator.name, *sys.argv[1:]])  # noqa: S606 (there is no shell to go through)
