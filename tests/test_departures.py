"""Peers that leave at every byte of a session, by a reset, by closing, or by closing one half only.

Each session that opened is closed once, messages before the end are answered if the peer can still read, and nothing
is leaked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from servers import EchoRecorder, ReactorThread, settle
from wire import BINARY, CONTINUATION, PING, PONG, TEXT, Frame, Peer, close_frame, frame, upgrade_request

SESSION = [
    upgrade_request(),
    frame(TEXT, b"whole"),
    frame(BINARY, b"begun ", fin=False),
    frame(PING, b"between"),
    frame(CONTINUATION, b"and ended"),
    frame(BINARY, bytes(200)),
    close_frame(1000, "bye"),
]
WHOLE = b"".join(SESSION)
ANSWERS = [Frame(TEXT, b"whole"), Frame(PONG, b"between"), Frame(BINARY, b"begun and ended"), Frame(BINARY, bytes(200))]
ANSWERED_AT = [sum(map(len, SESSION[:parts])) for parts in (2, 4, 5, 6)]  # bytes after which each answer must come

LEAVE: dict[str, Callable[[Peer], None]] = {"reset": Peer.reset, "close": Peer.close}


@pytest.mark.parametrize("leave", LEAVE)
def test_a_peer_leaves_at_every_byte(
    echo: ReactorThread, recorder: EchoRecorder, leave: str, open_files: Callable[[], int]
) -> None:
    settle(echo)
    before = open_files()
    for sent in range(len(WHOLE) + 1):
        peer = Peer.dial(echo.address)
        peer.write(WHOLE[:sent])
        LEAVE[leave](peer)
    settle(echo)
    assert open_files() == before
    opened = [event[1] for event in recorder.of("open")]
    assert sorted(opened) == sorted(event[1] for event in recorder.of("close"))
    assert len(set(opened)) == len(opened) <= len(WHOLE) - len(SESSION[0]) + 1
    if leave == "close":  # a reset may overtake the request
        assert len(opened) == len(WHOLE) - len(SESSION[0]) + 1


def test_a_half_closed_peer_gets_its_answers(
    echo: ReactorThread, recorder: EchoRecorder, open_files: Callable[[], int]
) -> None:
    settle(echo)
    before = open_files()
    for sent in range(len(SESSION[0]), len(WHOLE) + 1):
        with Peer.dial(echo.address) as peer:
            peer.write(WHOLE[:sent])
            peer.sock.shutdown(socket.SHUT_WR)
            assert peer.read_response().status == 101
            answered = sum(sent >= at for at in ANSWERED_AT)
            assert peer.read_frames(answered) == ANSWERS[:answered]
            if sent == len(WHOLE):
                assert peer.read_close() == 1000
            peer.read_eof()
    settle(echo)
    assert open_files() == before
    codes = [event[2] for event in recorder.of("close")]
    assert codes == [1006] * (len(codes) - 1) + [1000]


def test_a_peer_that_no_longer_reads_is_let_go_of(echo: ReactorThread, recorder: EchoRecorder) -> None:
    """SHUT_RD makes its kernel reset the connection when more comes: the server's send fails."""
    with Peer.connect(echo.address) as peer:
        peer.sock.shutdown(socket.SHUT_RD)
        peer.sock.close()
        settle(echo)
    ((_, _, code, _),) = recorder.of("close")
    assert code == 1006


@pytest.fixture
def open_files() -> Callable[[], int]:
    """Counts this process's descriptors."""
    return lambda: sum(1 for _ in Path("/proc/self/fd").iterdir())
