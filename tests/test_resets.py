"""A peer's reset that comes together with its last bytes: the session ends soon, without a deadline or a send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from faulty import ALWAYS, POLL_FIRST, FaultyServer
from wire import BINARY, Peer, frame, upgrade_request

WITHOUT_DEADLINES = {"handshake_seconds_max": None, "ping_interval_seconds": None, "close_seconds_max": None}


@pytest.fixture
def server(backend: str, faulty_build: Path, tmp_path: Path) -> Iterator[FaultyServer]:
    with FaultyServer(faulty_build, tmp_path, backend, "silent", **WITHOUT_DEADLINES) as server:
        yield server
        server.clear()
        server.settle()


@pytest.mark.parametrize("missed", [False, True], ids=["reported", "missed-by-the-receive"])
@pytest.mark.parametrize("sent", [b"G", upgrade_request()[:-2]], ids=["one-byte", "most-of-it"])
def test_a_reset_during_the_request_is_noticed(server: FaultyServer, *, missed: bool, sent: bytes) -> None:
    """Data and reset are there when the server first looks."""
    if missed:
        server.plan(POLL_FIRST, -1, count=ALWAYS)
    server.hold(0.2)
    for _ in range(5):
        peer = Peer.dial(server.address)
        peer.write(sent)
        peer.reset()
    server.settle()


@pytest.mark.parametrize("sent", [frame(BINARY, b"whole"), frame(BINARY, bytes(50))[:20]], ids=["message", "part"])
def test_a_reset_of_an_open_session_is_noticed(server: FaultyServer, sent: bytes) -> None:
    """Data and reset come while the server is busy with something else; it answers nothing to the data."""
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(server.address)) for _ in range(5)]
        server.hold(0.2)
        for peer in peers:
            peer.write(sent)
            peer.reset()
    server.settle()
