"""The cost of stalled readers for active ones: throughput and p99 of echoes alone, and beside peers that never read.

python bench/stalled.py
python bench/stalled.py --backends epoll --stalled 5000 --rounds 9

Two servers per backend are visited in turn; only one of them has stalled readers. A stalled reader
has ordered more bytes than its socket and its backlog take, and reads none of them.
"""

import argparse
import json
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import load
import processes
from contenders import script
from load import Load, LoadError, Outcome
from native import BuildError
from processes import HOST, Server, ServerError
from summary import Spread, spread

BACKENDS = ("io_uring", "epoll")
THROUGHPUT_RATIO_MIN = 0.9
P99_RATIO_MAX = 2.0
RECEIVE_BYTES = 4096
"""The stalled peers' socket buffers are small, so that the bytes that they ordered stay with the server."""
TIMEOUT_SECONDS = 10.0
KEY = (0x37, 0xFA, 0x21, 0x3D)
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many, how often, how long."""

    lively: int = 100
    stalled: int = 1000
    payload_bytes: int = 20
    order_bytes: int = 1 << 20
    rounds: int = 7
    seconds: float = 1.0
    warmup_seconds: float = 0.2
    server_core: int = 0
    client_core: int = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """Beside the stalled readers, to alone: ratios within each round."""

    backend: str
    throughput: Spread
    p99: Spread
    messages_per_second: Spread
    """Alone."""
    p99_microseconds: Spread
    """Alone."""
    sessions: int
    queued_bytes: int
    pool_in_use: int

    @property
    def met(self) -> bool:
        """Whether all three bars are."""
        return (
            self.throughput.median >= THROUGHPUT_RATIO_MIN
            and self.p99.median <= P99_RATIO_MAX
            and self.pool_in_use == 0
        )


def order(text: str) -> bytes:
    """A text frame as a client sends it."""
    payload = bytes(byte ^ KEY[index % 4] for index, byte in enumerate(text.encode()))
    return bytes([0x81, 0x80 | len(payload), *KEY]) + payload


def upgraded(port: int, receive_bytes: int | None = None) -> socket.socket:
    """A connection that has had its 101, and has read nothing after it."""
    peer = socket.socket()
    peer.settimeout(TIMEOUT_SECONDS)
    if receive_bytes is not None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    peer.connect((HOST, port))
    peer.sendall(REQUEST)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = peer.recv(1)
        if not part:
            raise LoadError(f"the upgrade was not answered: {head!r}")
        head += part
    if b" 101 " not in head:
        raise LoadError(f"the upgrade was refused: {head!r}")
    return peer


def figures(port: int) -> dict[str, Any]:
    """The server's `stats()`, read between turns."""
    with upgraded(port) as peer, peer.makefile("rb") as stream:
        peer.sendall(order("figures"))
        length = stream.read(2)[1]
        if length == 126:
            length = int.from_bytes(stream.read(2), "big")
        read: dict[str, Any] = json.loads(stream.read(length))
        return read


@contextmanager
def stalled_readers(plan: Plan, port: int) -> Iterator[None]:
    """Within it so many peers have ordered bytes that they do not read."""
    with ExitStack() as stack:
        for _ in range(plan.stalled):
            peer = stack.enter_context(upgraded(port, RECEIVE_BYTES))
            peer.sendall(order(str(plan.order_bytes)))
        yield


def visit(plan: Plan, server: Server) -> Outcome:
    """One measurement of the lively connections."""
    asked = Load(
        connections=plan.lively,
        payload_bytes=plan.payload_bytes,
        seconds=plan.seconds,
        warmup_seconds=plan.warmup_seconds,
    )
    return load.run(asked, server.port, core=plan.client_core, watch=[server.pid])


def measure(plan: Plan, backend: str) -> Result:
    """All rounds of one backend. Raises LoadError or ServerError."""
    contender = script(f"uringws_on_demand_{backend}", "uringws_on_demand", "--backend", backend)
    with ExitStack() as stack:
        quiet = stack.enter_context(processes.started(contender, plan.server_core))
        beset = stack.enter_context(processes.started(contender, plan.server_core))
        stack.enter_context(stalled_readers(plan, beset.port))
        alone: list[Outcome] = []
        beside: list[Outcome] = []
        for turn in range(plan.rounds):
            for server in (quiet, beset) if turn % 2 == 0 else (beset, quiet):
                (alone if server is quiet else beside).append(visit(plan, server))
        left = figures(beset.port)
    pairs = list(zip(alone, beside, strict=True))
    return Result(
        backend=backend,
        throughput=spread([two.messages_per_second / one.messages_per_second for one, two in pairs]),
        p99=spread([two.latency_microseconds["p99"] / one.latency_microseconds["p99"] for one, two in pairs]),
        messages_per_second=spread([one.messages_per_second for one in alone]),
        p99_microseconds=spread([one.latency_microseconds["p99"] for one in alone]),
        sessions=left["sessions"],
        queued_bytes=left["queued_bytes"],
        pool_in_use=left["pool_in_use"],
    )


def show(plan: Plan, result: Result) -> None:
    """One backend's ratios, their quartiles, and whether they are within the bars."""
    throughput, p99 = result.throughput, result.p99
    print(
        f"{result.backend}: {plan.lively} lively connections alone: "
        f"{result.messages_per_second.median:,.0f} messages/s, p99 {result.p99_microseconds.median:,.0f} us\n"
        f"  beside {plan.stalled:,} stalled readers ({result.queued_bytes / 2**20:,.0f} MiB wait for them):\n"
        f"  throughput x {throughput.median:.3f} ({throughput.low:.3f} to {throughput.high:.3f}), "
        f"at least {THROUGHPUT_RATIO_MIN}\n"
        f"  p99        x {p99.median:.3f} ({p99.low:.3f} to {p99.high:.3f}), at most {P99_RATIO_MAX}\n"
        f"  pool buffers held: {result.pool_in_use}\n"
        f"  {'met' if result.met else 'MISSED'}"
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    usual = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default=",".join(BACKENDS), help="separated by commas (%(default)s)")
    parser.add_argument("--lively", type=int, default=usual.lively, help="connections that echo (%(default)s)")
    parser.add_argument("--stalled", type=int, default=usual.stalled, help="readers that do not read (%(default)s)")
    parser.add_argument("--payload-bytes", type=int, default=usual.payload_bytes, help="of an echo (%(default)s)")
    parser.add_argument("--order-bytes", type=int, default=usual.order_bytes, help="by each stalled one (%(default)s)")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="visits to each server (%(default)s)")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of each visit (%(default)s)")
    parser.add_argument("--cores", metavar="SERVER,CLIENT", default="0,1", help="CPUs (%(default)s)")
    options = parser.parse_args()
    for backend in options.backends.split(","):
        if backend not in BACKENDS:
            parser.error(f"there is no backend {backend!r}; there are: {', '.join(BACKENDS)}")
    return options


def main() -> int:
    """0 if all bars are met."""
    options = arguments()
    server_core, client_core = map(int, options.cores.split(","))
    plan = Plan(
        lively=options.lively,
        stalled=options.stalled,
        payload_bytes=options.payload_bytes,
        order_bytes=options.order_bytes,
        rounds=options.rounds,
        seconds=options.seconds,
        server_core=server_core,
        client_core=client_core,
    )
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    met = True
    for backend in options.backends.split(","):
        try:
            result = measure(plan, backend)
        except (LoadError, ServerError, BuildError, OSError) as error:
            print(f"{backend}: {error}", file=sys.stderr)
            met = False
            continue
        show(plan, result)
        met = met and result.met
    return 0 if met else os.EX_SOFTWARE


if __name__ == "__main__":
    sys.exit(main())
