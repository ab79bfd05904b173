"""Zero-copy sends on loopback, where the kernel always copies and reports that: buffers are released, and sessions stop
asking for zero copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from conftest import NO_URING
from servers import ReactorThread, wait_until
from uringws import Handler, Options, Stats
from wire import BINARY, Peer, frame

if TYPE_CHECKING:
    from uringws import Connection, Message

pytestmark = pytest.mark.skipif(NO_URING is not None, reason=f"needs io_uring: {NO_URING}")

SIZES = [20, 16_000, 16_384, 100_000, 1 << 20]


class Echo(Handler):
    def on_message(self, conn: Connection, message: Message) -> None:
        conn.echo()


def echo_all(zero_copy: Literal["auto", "never", "always"], rounds: int) -> Stats:
    options = Options(zero_copy=zero_copy)
    with ReactorThread(Echo(), options=options, backend="io_uring") as server, Peer.connect(server.address) as peer:
        for _ in range(rounds):
            for size in SIZES:
                payload = bytes(range(256)) * (size // 256 + 1)
                peer.write(frame(BINARY, payload[:size]))
                assert peer.read_frame().payload == payload[:size]
        wait_until(lambda: nothing_is_lent(server))  # the kernel's notifications come late
        return server.ask(server.reactor.stats)


def nothing_is_lent(server: ReactorThread) -> bool:
    stats = server.ask(server.reactor.stats)
    return stats.pool_in_use == stats.memory_bytes == 0


def test_auto_stops_at_the_first_copied_report_of_a_session() -> None:
    stats = echo_all("auto", rounds=3)
    assert (stats.zero_copy_sends, stats.zero_copy_copied) == (1, 1)


def test_always_goes_on_and_every_loan_comes_back() -> None:
    stats = echo_all("always", rounds=10)
    assert stats.zero_copy_sends == stats.zero_copy_copied >= 10 * len(SIZES) - 5


def test_never_lends_nothing() -> None:
    assert echo_all("never", rounds=1).zero_copy_sends == 0
