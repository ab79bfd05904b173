"""Published messages and sends that fail, or are cut at any byte: no member sees the progress of another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from servers import BACKENDS

SCRIPT = """
import errno, socket, sys
sys.path.insert(0, sys.argv[1])
from uringws import Handler, Options, Reactor
from uringws.shim import lib

class Members(Handler):
    def on_open(self, conn):
        conns.append(conn)
    def on_close(self, conn, code, reason):
        closed.append(conn)

def read(peer):
    peer.setblocking(False)
    try:
        return peer.recv(1 << 16)
    except BlockingIOError:
        return b""

def check(reactor, topic, plan, sizes, lost=None):
    frames = []
    for number, size in enumerate(sizes):
        payload = bytes([65 + number]) * size
        frames.append((bytes([0x82, size]) if size < 126 else bytes([0x82, 126, size >> 8, size & 255])) + payload)
        topic.publish(payload)
    assert lib.urs_fault_plan(lib.URS_FAULT_SEND, *plan) == 0
    expected = b"".join(frames)
    got = {peer: b"" for peer in peers}
    for _ in range(400):
        reactor.run_once(0.001)
        for peer in peers:
            got[peer] += read(peer)
        if sum(got[peer] == expected for peer in peers) >= len(peers) - (lost is not None):
            break
    lib.urs_fault_plan(lib.URS_FAULT_SEND, 0, 0, 0)
    whole = [got[peer] == expected for peer in peers]
    assert whole.count(False) == (lost is not None), (plan, sizes, got, expected)
    assert all(expected.startswith(data) for data in got.values())
    stats = topic.stats()
    assert stats.addressed == stats.sent + stats.queued + stats.dropped + stats.conflated + stats.closed

for on_full in ("close", "drop_old"):
    conns, closed, peers = [], [], []
    with Reactor(Members(), Options(zero_copy="never"), backend=sys.argv[2]) as reactor:
        topic = reactor.topic("t", on_full=on_full)
        for _ in range(3):
            ours, theirs = socket.socketpair()
            peers.append(theirs)
            reactor.add_session(ours)
            topic.add(conns[-1])
        reactor.run_once(0)
        for cut in range(1, 3 + 20 + 4 + 130):
            check(reactor, topic, (1 + cut % 3, 1, cut), (20, 130, 7))     # one send of one member is short
        for cut in (1, 2, 3, 21, 22, 23, 150):
            check(reactor, topic, (1, 5, cut), (20, 130, 7))               # sends of all members are short
        for error in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EINTR):
            check(reactor, topic, (1, 2, -error), (20, 130, 7))
        assert topic.stats().queued > 0
        check(reactor, topic, (2, 1, -errno.EPIPE), (20, 130), lost=True)
        reactor.run_once(0)
        assert (len(topic), len(closed)) == (2, 1)
        assert topic.stats().closed == 2
        for peer in peers:
            peer.close()
        for _ in range(20):
            reactor.run_once(0.001)
        assert reactor.stats().memory_bytes == 0
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_members_whose_sends_fail_differently_get_whole_streams(backend: str, faulty_build: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, faulty_build, backend], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
