"""How a connection is closed so that its peer reads everything that was sent (RFC 6455 7.1.1, 7.1.7).

A socket that is closed while its peer still sends makes the kernel answer with a reset: the peer's next write fails,
and it may never read the last bytes that were sent. So the server shuts its own side down, and reads until the peer has
closed too, or `close_seconds_max` is over.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from servers import EchoRecorder, ReactorThread, wait_until
from uringws import Options
from uringws.backend import Backend
from wire import BINARY, TEXT, Frame, Peer, close_frame, frame, upgrade_request

PEERS = 30
JUNK = b"\xff" * 20_000


def talk_on(peers: list[Peer]) -> None:
    """Write in all sessions for a while; a reset in between makes the next write fail."""
    for _ in range(5):
        time.sleep(0.03)
        for peer in peers:
            peer.write(JUNK)


VIOLATIONS = {
    "a reserved bit": (frame(TEXT, b"x", rsv=4), 1002),
    "no mask": (frame(TEXT, b"x", key=None), 1002),
    "bad text": (frame(TEXT, b"\xff"), 1007),
    "too big": (frame(BINARY, bytes(1001)), 1009),
    "a close frame": (close_frame(4000, "enough"), 4000),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_peer_that_keeps_sending_after_the_end_still_reads_everything(
    backend: Backend, recorder: EchoRecorder, name: str
) -> None:
    last, code = VIOLATIONS[name]
    options = Options(message_bytes_max=1000, close_seconds_max=20)
    with ReactorThread(recorder, backend=backend, options=options) as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(server.address)) for _ in range(PEERS)]
        for peer in peers:
            peer.write(frame(TEXT, b"before"), last)
        recorder.wait_for("close", PEERS)
        talk_on(peers)
        for peer in peers:
            assert peer.read_frame() == Frame(TEXT, b"before")
            assert peer.read_close() == code
            peer.read_eof()
            peer.close()
        wait_until(lambda: server.ask(server.reactor.stats).sessions == 0)


def test_a_refused_peer_that_keeps_sending_still_reads_the_answer(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend) as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer.dial(server.address)) for _ in range(PEERS)]
        for peer in peers:
            peer.write(upgrade_request(key="no key at all"))
        wait_until(lambda: server.ask(server.reactor.stats).rejected.get("bad_request", 0) == PEERS)
        talk_on(peers)
        for peer in peers:
            assert peer.read_response().status == 400
            peer.read_eof()
