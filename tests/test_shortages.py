"""Real shortages: receive buffers, submission and completion queue entries, descriptors.

Every session that waits gets its turn, no byte is lost, and the shortage is counted.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from servers import ReactorThread, Recorder, ServerProcess, Silent
from uringws import Connection, Handler, Message, Options, Reactor
from uringws.backend import Backend
from wire import BINARY, TEXT, Address, Frame, Peer, frame, http, upgrade_request


def connect_many(address: Address, count: int, stack: ExitStack) -> list[Peer]:
    return [stack.enter_context(Peer.connect(address)) for _ in range(count)]


def payload_of(number: int, index: int, size: int) -> bytes:
    """Message `index` of session `number`: no two are alike."""
    return (f"{number}:{index}:".encode() * (size // 4 + 1))[:size]


def flood(peers: list[Peer], messages: int, size: int) -> None:
    """Send and read in all sessions at once, more than their sockets hold, and compare every byte."""

    def write(number: int, peer: Peer) -> None:
        peer.write(*(frame(BINARY, payload_of(number, index, size)) for index in range(messages)))

    writers = [threading.Thread(target=write, args=pair) for pair in enumerate(peers)]
    for writer in writers:
        writer.start()
    for number, peer in enumerate(peers):
        for index in range(messages):
            assert peer.read_frame() == Frame(BINARY, payload_of(number, index, size))
    for writer in writers:
        writer.join()


def hold_back(server: ReactorThread, seconds: float) -> None:
    """Block the reactor's thread for a while, beginning now."""
    began = threading.Event()

    def wait() -> None:
        began.set()
        time.sleep(seconds)

    server.sender.call(wait)
    assert began.wait(5)


@pytest.mark.parametrize("run", [Reactor.run, Reactor.run_echo], ids=["handler", "c"])
def test_fifty_floods_through_two_receive_buffers(backend: Backend, run: Callable[[Reactor], None]) -> None:
    class Echo(Handler):
        def on_message(self, conn: Connection, message: Message) -> None:
            conn.echo()

    options = Options(receive_buffers=2)
    with (
        ReactorThread(Echo(), backend=backend, options=options, run=run) as server,
        ExitStack() as stack,
    ):
        peers = connect_many(server.address, 50, stack)
        flood(peers, 40, 5_000)
        stats = server.ask(server.reactor.stats)
        assert stats.messages_in == stats.messages_out == 50 * 40
        assert stats.pool_in_use == stats.memory_bytes == 0
        assert (stats.enobufs_parks > 0) == (backend == "io_uring")


def test_a_full_submission_queue_delays_no_request(backend: Backend) -> None:
    """Sessions that begin at once, more than the ring has entries, have all sent something before.

    A queue that is full is submitted and used again at once. To wait for it as for a shortage would take thousands of
    turns that do not wait and bring nothing.
    """
    recorder = Recorder()
    options = Options(ring_entries=64, ping_interval_seconds=None)
    with Reactor(recorder, options, backend=backend) as reactor, ExitStack() as stack:
        reactor.run_once(0)
        for _ in range(300):
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            theirs.sendall(frame(TEXT, b"first"))
            reactor.add_session(ours)
        empty = 0
        while len(recorder.of("message")) < 300:
            empty += not reactor.run_once(0)
            assert empty < 30


class Broadcaster(Recorder):
    """Sends each message to all."""

    def on_message(self, conn: Connection, message: Message) -> None:
        payload = bytes(message)
        for connection in self.connections.values():
            connection.send_binary(payload)


@pytest.mark.parametrize("size", [10, 5_000, 100_000])
def test_a_broadcast_to_more_sessions_than_the_ring_has_entries(backend: Backend, size: int) -> None:
    """64 entries and 300 sends a message: the queue is full again and again within one turn."""
    options = Options(ring_entries=64)
    with ReactorThread(Broadcaster(), backend=backend, options=options) as server, ExitStack() as stack:
        peers = connect_many(server.address, 300, stack)
        payloads = [payload_of(number, 0, size) for number in range(5)]
        for payload in payloads:
            peers[0].send(BINARY, payload)
            for peer in peers:
                assert peer.read_frame() == Frame(BINARY, payload)
        stats = server.ask(server.reactor.stats)
        assert stats.messages_out == 5 * 300
        assert stats.pool_in_use == stats.memory_bytes == 0


def test_more_completions_than_the_ring_holds(backend: Backend) -> None:
    """A ring of 64 entries holds 256 completions; here thousands are due when the loop comes back to it."""
    options = Options(ring_entries=64, receive_buffers=4096, receive_buffer_bytes=1024)
    with (
        ReactorThread(Silent(), backend=backend, options=options, run=Reactor.run_echo) as server,
        ExitStack() as stack,
    ):
        peers = connect_many(server.address, 100, stack)
        hold_back(server, 0.5)
        flood(peers, 30, 2_000)
        stats = server.ask(server.reactor.stats)
        assert stats.messages_in == stats.messages_out == 100 * 30
        assert stats.pool_in_use == stats.memory_bytes == 0
        if backend == "io_uring":
            assert stats.cq_overflows > 0


FEW_FILES = """
import resource, sys
from pathlib import Path
from uringws import Handler, Options, Reactor

class Echo(Handler):
    def on_message(self, conn, message):
        conn.echo()

with Reactor(Echo(), Options(metrics_path="/metrics"), backend=sys.argv[1]) as reactor:
    host, port = reactor.bind("127.0.0.1", 0)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + int(sys.argv[2]), hard))
    print(f"listening on ws://{host}:{port} ({reactor.backend})", flush=True)
    reactor.run()
"""


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metric(address: Address, name: str) -> int:
    body = http(address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").body.decode()
    (line,) = (line for line in body.splitlines() if line.startswith(f"{name} "))
    return int(line.split()[1])


def test_accepting_outlives_the_limit_of_open_files(backend: Backend) -> None:
    """Ten descriptors, thirty clients: twenty wait in the kernel's queue, unharmed, until others go."""
    with ServerProcess("-c", FEW_FILES, backend, "10") as server, ExitStack() as stack:
        waiting = [stack.enter_context(Peer.dial(server.address)) for _ in range(30)]
        for peer in waiting:
            peer.write(upgrade_request(), frame(TEXT, b"at last"))
        before = processor_seconds(server.pid)
        time.sleep(0.5)
        assert processor_seconds(server.pid) - before < 0.2
        served = 0
        while waiting:
            ready, _, _ = select.select([peer.sock for peer in waiting], [], [], 5)
            assert 0 < len(ready) <= 10
            for peer in [peer for peer in waiting if peer.sock in ready]:
                assert peer.read_response().status == 101
                assert peer.read_frame() == Frame(TEXT, b"at last")
                assert peer.shake_hands() == 1000
                peer.close()
                waiting.remove(peer)
                served += 1
        assert served == 30
        pauses = metric(server.address, "uringws_accept_pauses_total")
        assert 1 <= pauses <= 40
        assert metric(server.address, "uringws_turns_total") < 400
