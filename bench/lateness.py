"""How late a task of asyncio wakes from its sleep beside connections that flood, on each event loop.

python bench/lateness.py
python bench/lateness.py --connections 1000 --in-flight 1 --rounds 9

In each server a task sleeps 10 ms again and again and notes by how much it woke late. Meanwhile all connections keep
messages in flight, which are echoed. The servers are visited in turn. "quiet" is the same server without the flood.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

import load
import processes
from contenders import Contender, script
from load import Load, LoadError, Outcome
from native import BuildError
from processes import Server, ServerError
from stalled import order, upgraded
from summary import spread

PAIRS = ((("uringws", "listen"), ("uvloop", "picows")), (("uringws", "serve"), ("uvloop", "websockets")))
"""Loops and what echoes on them: callbacks, and coroutines. The second of each pair is the measure of the first."""
MORE_MILLISECONDS_MAX = 5.0
"""How much later than on uvloop a task may wake, at the 99th percentile."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """The result of one visit to a server."""

    quiet_milliseconds: float
    """The 99th percentile of the lateness without connections."""
    milliseconds: float
    """The same beside the flood."""
    outcome: Outcome


def name_of(server: tuple[str, str]) -> str:
    """A loop and what echoes on it, for a reader."""
    return f"{server[1]} on {server[0]}"


def take_figures(server: Server) -> list[float]:
    """How late the task woke, each time since the last call, in seconds."""
    with upgraded(server.port) as peer, peer.makefile("rb") as stream:
        peer.sendall(order("figures"))
        length = stream.read(2)[1]
        if length >= 126:
            length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
        late: list[float] = json.loads(stream.read(length))
        peer.shutdown(socket.SHUT_RDWR)
        return late


def late_milliseconds(server: Server) -> float:
    """The 99th percentile since the last call."""
    return statistics.quantiles(take_figures(server), n=100, method="inclusive")[98] * 1000


def visit(server: Server, asked: Load, client_core: int) -> Visit:
    """One measurement."""
    take_figures(server)
    time.sleep(asked.seconds)
    quiet = late_milliseconds(server)
    outcome = load.run(asked, server.port, core=client_core, watch=[server.pid])
    return Visit(quiet_milliseconds=quiet, milliseconds=late_milliseconds(server), outcome=outcome)


def measure(options: argparse.Namespace) -> dict[str, list[Visit]]:
    """All rounds, by the server's name. Raises LoadError or ServerError."""
    server_core, client_core = map(int, options.cores.split(","))
    asked = Load(
        connections=options.connections,
        in_flight=options.in_flight,
        payload_bytes=options.payload_bytes,
        seconds=options.seconds,
    )
    contenders: list[Contender] = [
        script(name_of(server), "ticking_echo", "--loop", server[0], "--server", server[1])
        for pair in PAIRS
        for server in pair
    ]
    visits: dict[str, list[Visit]] = {contender.name: [] for contender in contenders}
    with ExitStack() as stack:
        servers = [stack.enter_context(processes.started(contender, server_core)) for contender in contenders]
        for number in range(options.rounds):
            for server in servers if number % 2 == 0 else reversed(servers):
                visits[server.name].append(visit(server, asked, client_core))
    return visits


def show(visits: dict[str, list[Visit]]) -> bool:
    """All servers' figures; returns whether those on our loop are within the bar."""
    flooded = {name: spread([one.milliseconds for one in found]) for name, found in visits.items()}
    for name, found in visits.items():
        late = flooded[name]
        quiet = spread([one.quiet_milliseconds for one in found])
        rate = spread([one.outcome.messages_per_second for one in found])
        print(
            f"{name}: p99 {late.median:.2f} ms late ({late.low:.2f} to {late.high:.2f}), "
            f"quiet {quiet.median:.2f} ms; {rate.median:,.0f} messages/s"
        )
    met = all(
        flooded[name_of(ours)].median - flooded[name_of(theirs)].median <= MORE_MILLISECONDS_MAX
        for ours, theirs in PAIRS
    )
    print(f"at most {MORE_MILLISECONDS_MAX:.0f} ms later than on uvloop: {'met' if met else 'MISSED'}")
    return met


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=100, help="that flood (%(default)s)")
    parser.add_argument("--in-flight", type=int, default=16, help="messages of each (%(default)s)")
    parser.add_argument("--payload-bytes", type=int, default=20, help="of a message (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="visits to each server (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each visit (%(default)s)")
    parser.add_argument("--cores", metavar="SERVER,CLIENT", default="0,1", help="CPUs (%(default)s)")
    return parser.parse_args()


def main() -> int:
    """0 if the bar is met."""
    try:
        return 0 if show(measure(arguments())) else os.EX_SOFTWARE
    except (LoadError, ServerError, BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return os.EX_SOFTWARE


if __name__ == "__main__":
    sys.exit(main())
