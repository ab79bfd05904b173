"""Floods of small messages beside a neighbour: every turn has room for the messages of all sessions.

The wait of a neighbour is counted, not timed: it is the number of other messages handled before its own.
"""

from __future__ import annotations

import resource
from collections import Counter
from contextlib import ExitStack

import pytest

from servers import EchoRecorder, Recorder, connected, run_until
from uringws import Connection, Message, Options, Reactor
from uringws.backend import Backend
from wire import BINARY, PING, TEXT, Frame, Peer, frame, upgrade_request

TINY = frame(BINARY, b"x")
FLOOD_MESSAGES = 9000  # as many as fit one receive buffer of the default size
SHARE_MESSAGES = 64
"""The default of `Options.session_turn_messages_max`."""


class Turns(Recorder):
    """Counts the binary messages of each turn by connection, and notes the turn of the text messages."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[Counter[int]] = []
        self.heard: list[int] = []

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.is_text:
            self.heard.append(len(self.turns) - 1)
        else:
            self.turns[-1][conn.id] += 1

    def take(self, reactor: Reactor) -> None:
        self.turns.append(Counter())
        reactor.run_once(0)

    def total(self) -> int:
        return sum(turn.total() for turn in self.turns)


def test_a_flood_of_tiny_messages_gets_at_most_its_share_of_each_turn(backend: Backend) -> None:
    handler = Turns()
    with (
        Reactor(handler, Options(ping_interval_seconds=None), backend=backend) as reactor,
        connected(reactor) as flood,
        connected(reactor) as lively,
    ):
        flood.write(TINY * FLOOD_MESSAGES)
        lively.send(TEXT, b"me too")

        def all_handled() -> bool:
            handler.take(reactor)
            return handler.total() == FLOOD_MESSAGES and bool(handler.heard)

        assert any(all_handled() for _ in range(100_000))
        assert max(turn.total() for turn in handler.turns) == SHARE_MESSAGES
        before = sum(turn.total() for turn in handler.turns[: handler.heard[0] + 1])
        assert before <= SHARE_MESSAGES, "a neighbour waits for the flood's share, not for the flood"


@pytest.mark.parametrize("share", [1, 7])
def test_the_share_of_a_turn_is_an_option(backend: Backend, share: int) -> None:
    """It counts what came in several receives of one turn too, and pings; nothing is lost or reordered."""
    options = Options(
        session_turn_messages_max=share, receive_buffer_bytes=1024, receive_buffers=4, ping_interval_seconds=None
    )
    handler = EchoRecorder()
    sent = [Frame(BINARY, number.to_bytes(2, "big") * 50) for number in range(60)]
    with Reactor(handler, options, backend=backend) as reactor, connected(reactor) as peer:
        peer.write(*(frame(PING, b"?") + frame(BINARY, message.payload) for message in sent))
        per_turn = []
        for _ in range(1000):
            before = len(handler.of("message"))
            reactor.run_once(0)
            per_turn.append(len(handler.of("message")) - before)
        assert sum(per_turn) == len(sent)
        assert max(per_turn) <= (share + 1) // 2
        assert [answer for answer in peer.read_frames(2 * len(sent)) if answer.opcode == BINARY] == sent


def test_held_floods_leave_room_for_newer_input(backend: Backend) -> None:
    """Twenty floods have more messages held than a turn takes; a new message of another session is handled
    nevertheless.
    """
    floods = 20
    handler = Turns()
    options = Options(session_turn_messages_max=512, ping_interval_seconds=None)
    with ExitStack() as stack:
        reactor = stack.enter_context(Reactor(handler, options, backend=backend))
        peers = [stack.enter_context(connected(reactor)) for _ in range(floods)]
        lively = stack.enter_context(connected(reactor))
        for peer in peers:
            peer.write(TINY * FLOOD_MESSAGES)

        def all_have_begun() -> bool:
            handler.take(reactor)
            return len(sum(handler.turns, Counter())) == floods

        assert any(all_have_begun() for _ in range(10_000))
        begun = len(handler.turns)
        assert handler.total() < floods * FLOOD_MESSAGES // 2, "there is plenty held"
        lively.send(TEXT, b"me too")

        def heard() -> bool:
            handler.take(reactor)
            return bool(handler.heard)

        assert any(heard() for _ in range(10_000))
        assert handler.heard[0] - begun <= 3, "a neighbour waits for a turn or two, not for the floods"


def test_a_stream_of_newcomers_does_not_keep_a_session_waiting(backend: Backend) -> None:
    """More connections come in each turn than one turn serves: open sessions are still served within a few turns."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # both ends of every connection are in this process
    recorder = EchoRecorder()
    options = Options(ping_interval_seconds=None, handshakes_max=None)
    with Reactor(recorder, options, backend=backend) as reactor, ExitStack() as stack:
        address = reactor.bind("127.0.0.1", 0)
        peer = stack.enter_context(Peer.dial(address))
        peer.write(upgrade_request())
        run_until(reactor, lambda: recorder.of("open"))
        for turn in range(15):
            for _ in range(100):
                stack.enter_context(Peer.dial(address)).write(upgrade_request())
            if turn == 12:
                peer.send(TEXT, b"here")
            reactor.run_once(0)
        assert recorder.of("message")
