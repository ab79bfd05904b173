"""Pings of a peer whose pongs do not get through: few pongs wait, and the latest ping has its own.

RFC 6455 5.5.3: an endpoint that has not answered earlier pings yet may send a pong for the latest one only.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import ReactorThread, Recorder, wait_until
from uringws import Options, SendResult
from uringws.backend import Backend
from wire import BINARY, PING, PONG, Peer, frame

KIB = 1 << 10
CHUNK = bytes(100 * KIB)
BACKLOG_BYTES_MAX = 256 * KIB
CONTROL_RESERVE_BYTES = 4096
PONG_BYTES_MAX = 127
PONGS_WAITING_MAX = 16
FLOOD = 5000


def ping_payload(number: int) -> bytes:
    """Of all lengths that a ping may have, and no two alike."""
    return number.to_bytes(4, "big") * (number % 30 + 1)


class Flooded:
    """A session with a backlog, whose peer reads nothing until told."""

    def __init__(self, server: ReactorThread, recorder: Recorder, peer: Peer) -> None:
        self.server, self.peer = server, peer
        (self.conn,) = (recorder.connections[event[1]] for event in recorder.wait_for("open"))

    def send(self, payload: bytes) -> SendResult:
        return self.server.ask(lambda: self.conn.send_binary(payload))

    def fill(self, outcome: SendResult) -> None:
        """Send until `send` returns that."""
        while self.send(CHUNK) is not outcome:
            pass

    def fill_up(self) -> None:
        """Leave no room for another message."""
        assert self.send(bytes(BACKLOG_BYTES_MAX - self.buffered())) is SendResult.QUEUED
        assert self.send(b"") is SendResult.DROPPED

    def flood(self, first: int, last: int) -> None:
        """Send pings with these numbers, and wait until the server has read them all."""
        data = b"".join(frame(PING, ping_payload(number)) for number in range(first, last))
        before = self.server.ask(self.server.reactor.stats).bytes_in
        self.peer.write(data)
        wait_until(lambda: self.server.ask(self.server.reactor.stats).bytes_in >= before + len(data))

    def buffered(self) -> int:
        return self.server.ask(lambda: self.conn.buffered_amount)

    def pongs_up_to(self, last: int) -> list[int]:
        """Read up to the pong of that number; return the numbers of all pongs, in their order."""
        pongs = [-1]
        while pongs[-1] != last:
            got = self.peer.read_frame()
            if got.opcode == PONG:
                pongs.append(int.from_bytes(got.payload[:4], "big"))
                assert got.payload == ping_payload(pongs[-1])
            else:
                assert got.opcode == BINARY
        return pongs[1:]


@pytest.fixture
def flooded(backend: Backend) -> Iterator[Flooded]:
    recorder = Recorder()
    options = Options(backlog_bytes_max=BACKLOG_BYTES_MAX, on_full="drop", ping_interval_seconds=None)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        yield Flooded(server, recorder, peer)


@pytest.mark.parametrize("outcome", [SendResult.QUEUED, SendResult.DROPPED])
def test_of_many_pings_that_wait_the_latest_is_answered(flooded: Flooded, outcome: SendResult) -> None:
    """After a backlog of any size, also a full one, few pongs wait, and the last of them answers the latest ping."""
    flooded.fill(outcome)
    if outcome is SendResult.DROPPED:
        flooded.fill_up()
    before = flooded.buffered()
    flooded.flood(0, FLOOD)
    assert 0 < flooded.buffered() - before <= (PONGS_WAITING_MAX + 1) * PONG_BYTES_MAX
    assert flooded.pongs_up_to(FLOOD - 1) == [*range(PONGS_WAITING_MAX), FLOOD - 1]
    flooded.flood(FLOOD, FLOOD + 3)
    assert flooded.pongs_up_to(FLOOD + 2) == [FLOOD, FLOOD + 1, FLOOD + 2], "without a backlog each has its pong"


def test_pongs_keep_coming_while_a_backlog_stays(flooded: Flooded) -> None:
    """A ping never delays the waiting pong: pongs leave even if the backlog is never empty."""
    answered = []
    flooded.fill(SendResult.DROPPED)
    flooded.flood(0, 100)
    for number in range(100, 200):
        flooded.flood(number, number + 1)
        got = flooded.peer.read_frame()
        if got.opcode == PONG:
            answered.append(int.from_bytes(got.payload[:4], "big"))
        flooded.fill(SendResult.DROPPED)
    assert answered == sorted(answered)
    assert answered[-1] > 100
    assert flooded.pongs_up_to(199)[-1] == 199


def test_pings_are_answered_within_the_limit_of_the_backlog(flooded: Flooded) -> None:
    """The reserve for control frames is a limit for pongs too, to the byte."""
    flooded.fill(SendResult.DROPPED)
    flooded.fill_up()
    while flooded.server.ask(lambda: flooded.conn.ping(b"p" * 125)) is not SendResult.DROPPED:
        pass
    full = flooded.buffered()
    flooded.peer.write(frame(PING, b"?" * 125) * 40)
    flooded.flood(0, 1)
    assert flooded.buffered() <= BACKLOG_BYTES_MAX + CONTROL_RESERVE_BYTES
    assert flooded.buffered() - full < PONG_BYTES_MAX
