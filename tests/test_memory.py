"""The memory of an idle session: resident memory of a server with thousands of them, whose handlers have seen each."""

from __future__ import annotations

import re
import resource
from contextlib import ExitStack
from pathlib import Path

import pytest

from servers import ServerProcess, missing, wait_until
from uringws.backend import Backend
from wire import TEXT, Address, Frame, Peer, upgrade_request

SESSIONS = 10_000
WARM_SESSIONS = 256
SESSION_BYTES_MAX = 512
SPARE_FILES = 200

SERVER = """
import sys
from uringws import Handler, Options, Reactor

class Idle(Handler):
    opened = 0

    def on_open(self, conn):
        self.opened += 1

    def on_message(self, conn, message):
        conn.send_text(str(self.opened))

options = Options(ping_interval_seconds=None)
with Reactor(Idle(), options, backend=sys.argv[1]) as reactor:
    reactor.bind("127.0.0.1", 0)
    host, port = reactor.addresses[0]
    print(f"listening on ws://{host}:{port} ({reactor.backend})", flush=True)
    reactor.run()
"""


def resident_bytes(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (kib,) = re.findall(r"^Rss:\s+(\d+) kB$", rollup, re.MULTILINE)
    return int(kib) * 1024


def connect_many(address: Address, count: int, stack: ExitStack) -> list[Peer]:
    """Upgrade in batches: quick, and never more at once than the server's queue of accepted connections takes."""
    peers: list[Peer] = []
    while len(peers) < count:
        batch = [stack.enter_context(Peer.dial(address)) for _ in range(min(100, count - len(peers)))]
        for peer in batch:
            peer.write(upgrade_request())
        for peer in batch:
            assert b" 101 " in peer.sock.recv(4096)
        peers += batch
    return peers


@pytest.fixture
def many_files() -> int:
    """As many open files as 10,000 sockets take, in this process and in the server, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SESSIONS + WARM_SESSIONS + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < wanted:
        missing(f"the limit of open files is {hard}, this needs {wanted}")
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return wanted


@pytest.mark.usefixtures("many_files")
def test_an_idle_session_costs_less_than_half_a_kibibyte(backend: Backend) -> None:
    with ServerProcess("-c", SERVER, backend) as server, ExitStack() as stack:
        # The first sessions bring in code and tables that all share.
        connect_many(server.address, WARM_SESSIONS, stack)
        before = resident_bytes(server.pid)
        peers = connect_many(server.address, SESSIONS, stack)
        after = resident_bytes(server.pid)

        each = (after - before) / SESSIONS
        print(f"{backend}: {each:.0f} bytes per session, {after / 2**20:.1f} MiB with {SESSIONS + WARM_SESSIONS}")

        for peer in (peers[0], peers[SESSIONS // 2], peers[-1]):
            peer.send(TEXT, b"how many?")
            assert peer.read_frame() == Frame(TEXT, str(SESSIONS + WARM_SESSIONS).encode())
        assert each < SESSION_BYTES_MAX


COROUTINES_WARM = 2_000
COROUTINES = 8_000
COROUTINE_BYTES_MAX = 3_840

COROUTINE_SERVER = """
import asyncio, logging
from uringws.asyncio import run, serve

logging.disable()  # of handlers whose peers vanish at the end
opened = 0

async def idle(connection):
    global opened
    opened += 1
    async for _ in connection:
        await connection.send(str(opened))

async def main():
    async with serve(idle, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        print(f"listening on ws://{host}:{port} (asyncio)", flush=True)
        asyncio.get_running_loop().add_signal_handler(2, server.close)
        await server.wait_closed()

run(main())
"""


@pytest.mark.usefixtures("many_files")
def test_an_idle_coroutine_session_costs_less_than_four_kibibytes() -> None:
    """With its handler's task, which waits for a message, and the keepalive of the defaults."""
    with ServerProcess("-c", COROUTINE_SERVER) as server, ExitStack() as stack:
        connect_many(server.address, COROUTINES_WARM, stack)
        before = resident_bytes(server.pid)
        peers = connect_many(server.address, COROUTINES, stack)
        peers[-1].send(TEXT, b"how many?")
        assert peers[-1].read_frame() == Frame(TEXT, str(COROUTINES + COROUTINES_WARM).encode())
        each = (resident_bytes(server.pid) - before) / COROUTINES
        print(f"{each:.0f} bytes per coroutine session")
        stack.close()
    assert each <= COROUTINE_BYTES_MAX


STALLED = 30
STORM_BYTES = 8 * 2**20
"""The bytes sent to each of them, far more than a socket takes."""
LEFT_BYTES_MAX = 64 * 2**20
"""Memory that may stay resident afterwards of the 240 MiB: caches, and memory that Python and malloc keep."""

STORM_SERVER = """
import os, sys
from uringws import Handler, Options, Reactor

class Storm(Handler):
    def __init__(self):
        self.payloads = {}

    def on_message(self, conn, message):
        size, total = map(int, message.text().split())
        payload = self.payloads.setdefault(size, os.urandom(size))
        for _ in range(total // size):
            conn.send(payload)

options = Options(ping_interval_seconds=None, backlog_bytes_max=1 << 28, close_seconds_max=1)
with Reactor(Storm(), options, backend=sys.argv[1]) as reactor:
    reactor.bind("127.0.0.1", 0)
    host, port = reactor.addresses[0]
    print(f"listening on ws://{host}:{port} ({reactor.backend})", flush=True)
    reactor.run()
"""


@pytest.mark.parametrize("size", [1_000, 20_000, 100_000, STORM_BYTES])
def test_memory_goes_back_to_the_system_after_a_storm_of_stalled_readers(backend: Backend, size: int) -> None:
    """Clients that come and go meanwhile cause small allocations above the large ones, as in a real server."""
    with ServerProcess("-c", STORM_SERVER, backend) as server:
        with Peer.connect(server.address) as peer:
            peer.send(TEXT, b"%d %d" % (size, size))
            assert len(peer.read_frame().payload) == size
        before = resident_bytes(server.pid)
        with ExitStack() as staying, ExitStack() as stalled:
            for _ in range(STALLED):
                peer = stalled.enter_context(Peer.connect(server.address))
                peer.send(TEXT, b"%d %d" % (size, STORM_BYTES))
                connect_many(server.address, 5, staying)
            wait_until(lambda: resident_bytes(server.pid) - before > STALLED * STORM_BYTES // 4)
            stalled.close()
            wait_until(lambda: resident_bytes(server.pid) - before < LEFT_BYTES_MAX)
