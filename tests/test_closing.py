"""`Connection.closing`: which side closed first, both sides' close frames, and the error that lost the connection."""

from __future__ import annotations

import errno
import gc
import socket
import weakref
from collections.abc import Callable

import pytest

from servers import ReactorThread, Recorder, connected, run_until
from uringws import Close, Closing, Connection, Message, Options, Reactor, WrongThread
from uringws.backend import Backend
from wire import BINARY, CLOSE, PING, PONG, TEXT, Frame, Peer, close_frame, frame

QUIET = Options(ping_interval_seconds=None, close_seconds_max=5)


class Account(Recorder):
    """Keeps `closing` as it is when each callback runs, and lets a test act on a message."""

    def __init__(self, act: Callable[[Connection], object] = lambda _: None) -> None:
        super().__init__()
        self._act = act
        self.opened: list[Closing | None] = []

    def on_open(self, conn: Connection) -> None:
        super().on_open(conn)
        self.opened.append(conn.closing)

    def on_message(self, conn: Connection, message: Message) -> None:
        self._act(conn)
        self.record("acted", conn.closing)

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        self.record("close", conn.closing, code, reason)

    def complete(self) -> Closing:
        """Wait for `on_close`, and return `closing` as it was there."""
        ((_, closing, _, _),) = self.wait_for("close")
        assert isinstance(closing, Closing)
        return closing


def told(recorder: Account, backend: Backend, options: Options, talk: Callable[[Peer], object]) -> Closing:
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        talk(peer)
        closing = recorder.complete()
        (connection,) = recorder.connections.values()
        assert connection.closing == closing, "it stays readable, here from another thread"
        assert recorder.opened == [None]
    return closing


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (close_frame(1000, "bye"), Close(1000, "bye")),
        (close_frame(1001), Close(1001, "")),
        (close_frame(4321, "ä" * 61), Close(4321, "ä" * 61)),
        (close_frame(None), Close(1005, "")),
    ],
)
def test_a_peer_that_closes_first(backend: Backend, sent: bytes, received: Close) -> None:
    """RFC 6455 5.5.1: our close frame answers with the peer's code."""

    def talk(peer: Peer) -> None:
        peer.write(sent)
        answer = peer.read_close()
        assert answer == (None if received.code == 1005 else received.code)

    closing = told(Account(), backend, QUIET, talk)
    assert closing == Closing(sent=Close(received.code), received=received, received_first=True)


@pytest.mark.parametrize(
    ("answer", "received"),
    [
        (close_frame(1000), Close(1000)),
        (close_frame(4000, "as you like"), Close(4000, "as you like")),
        (close_frame(None), Close(1005)),
    ],
)
def test_a_server_that_closes_first(backend: Backend, answer: bytes, received: Close) -> None:
    recorder = Account(lambda conn: conn.close(4999, "enough"))

    def talk(peer: Peer) -> None:
        peer.send(TEXT)
        assert peer.read_close() == 4999
        assert recorder.wait_for("acted") == [("acted", Closing(sent=Close(4999, "enough"), received_first=False))]
        peer.write(answer)

    closing = told(recorder, backend, QUIET, talk)
    assert closing == Closing(sent=Close(4999, "enough"), received=received, received_first=False)


def test_a_close_frame_of_ours_without_a_code(backend: Backend) -> None:
    recorder = Account(lambda conn: conn.close(None))
    closing = told(recorder, backend, QUIET, lambda peer: peer.write(frame(TEXT), close_frame(1000)))
    assert closing == Closing(sent=Close(1005), received=Close(1000), received_first=False)


def test_both_close_at_the_same_time(backend: Backend) -> None:
    """Both frames cross: ours went out before the peer's was read, so that the peer's was not first."""
    recorder = Account(lambda conn: conn.close(1001, "ours"))
    closing = told(recorder, backend, QUIET, lambda peer: peer.write(frame(TEXT), close_frame(1000, "theirs")))
    assert closing == Closing(sent=Close(1001, "ours"), received=Close(1000, "theirs"), received_first=False)


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (QUIET, b"\xff\xff", 1002),
        (QUIET, frame(TEXT, b"\xff"), 1007),
        (Options(message_bytes_max=10), frame(BINARY, bytes(11)), 1009),
        (Options(refuse_text=True), frame(TEXT, b"text"), 1003),
        (QUIET, frame(CLOSE, b"x"), 1002),
    ],
)
def test_a_peer_that_breaks_a_rule(backend: Backend, options: Options, said: bytes, code: int) -> None:
    got: list[Frame] = []

    def talk(peer: Peer) -> None:
        peer.write(said)
        got.append(peer.read_frame())

    closing = told(Account(), backend, options, talk)
    assert got[0].close_code == code
    assert closing == Closing(sent=Close(code, got[0].payload[2:].decode()), received=None, received_first=False)


def fill_up(conn: Connection) -> None:
    while conn.is_open:
        conn.send(bytes(100_000))


def test_a_full_backlog(backend: Backend) -> None:
    recorder = Account(fill_up)
    options = Options(backlog_bytes_max=1 << 20, ping_interval_seconds=None)

    def talk(peer: Peer) -> None:
        peer.send(TEXT)
        recorder.wait_for("acted")
        while peer.read_frame().opcode != CLOSE:
            pass
        peer.write(close_frame(1008))

    assert told(recorder, backend, options, talk) == Closing(
        sent=Close(1008, "backlog full"), received=Close(1008), received_first=False
    )
    assert recorder.of("acted")[0][1] == Closing(sent=Close(1008, "backlog full"), received_first=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (Options(idle_seconds_max=0.05, ping_interval_seconds=None), "idle"),
        (Options(session_seconds_max=0.05, ping_interval_seconds=None), "session time is over"),
    ],
)
def test_a_deadline_of_an_open_connection(backend: Backend, options: Options, reason: str) -> None:
    recorder = Account()

    def talk(peer: Peer) -> None:
        got = peer.read_frame()
        assert (got.close_code, got.payload[2:].decode()) == (1001, reason)
        peer.write(close_frame(1001))

    closing = told(recorder, backend, options, talk)
    assert closing == Closing(sent=Close(1001, reason), received=Close(1001), received_first=False)


def test_closing_has_the_close_frame_that_the_shim_sent_before_the_end(backend: Backend) -> None:
    recorder = Recorder()
    options = Options(session_seconds_max=0.05, ping_interval_seconds=None)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        assert peer.read_close() == 1001
        (connection,) = recorder.connections.values()
        told_so_far = server.ask(lambda: connection.closing)
        assert told_so_far == Closing(sent=Close(1001, "session time is over"), received_first=False)
        with pytest.raises(WrongThread):
            connection.closing  # noqa: B018 - it is not complete
        peer.write(close_frame())
        recorder.wait_for("close")


def test_a_peer_that_never_answers_a_ping(backend: Backend) -> None:
    options = Options(ping_interval_seconds=0.05, ping_timeout_seconds=0.05)
    closing = told(Account(), backend, options, lambda peer: peer.read_frame())
    assert (closing.sent, closing.received, closing.received_first) == (None, None, None)
    assert isinstance(closing.error, TimeoutError)
    assert "ping" in str(closing.error)


def test_a_peer_that_never_answers_our_close_frame(backend: Backend) -> None:
    recorder = Account(lambda conn: conn.close(1001, "leave"))
    options = Options(close_seconds_max=0.05, ping_interval_seconds=None)
    closing = told(recorder, backend, options, lambda peer: peer.send(TEXT))
    assert (closing.sent, closing.received, closing.received_first) == (Close(1001, "leave"), None, False)
    assert isinstance(closing.error, TimeoutError)
    assert "close frame" in str(closing.error)


def test_a_peer_that_ends_its_stream_without_a_close_frame(backend: Backend) -> None:
    closing = told(Account(), backend, QUIET, lambda peer: peer.sock.shutdown(socket.SHUT_WR))
    assert closing == Closing()


def test_a_peer_that_resets_the_connection(backend: Backend) -> None:
    closing = told(Account(), backend, QUIET, Peer.reset)
    assert (closing.sent, closing.received, closing.received_first) == (None, None, None)
    assert isinstance(closing.error, ConnectionResetError)
    assert closing.error.errno == errno.ECONNRESET


def test_a_peer_that_leaves_after_our_close_frame(backend: Backend) -> None:
    recorder = Account(lambda conn: conn.close(1001))

    def talk(peer: Peer) -> None:
        peer.send(TEXT)
        peer.read_close()
        peer.sock.shutdown(socket.SHUT_WR)

    assert told(recorder, backend, QUIET, talk) == Closing(sent=Close(1001), received_first=False)


@pytest.mark.parametrize("closed_before", [False, True])
def test_an_abort(backend: Backend, *, closed_before: bool) -> None:
    def act(conn: Connection) -> None:
        if closed_before:
            conn.close(1000, "never mind")
        conn.abort()

    recorder = Account(act)
    closing = told(recorder, backend, QUIET, lambda peer: peer.send(TEXT))
    assert recorder.of("acted")[0][1] == closing
    assert isinstance(closing.error, ConnectionAbortedError)
    assert (closing.sent, closing.received) == (Close(1000, "never mind") if closed_before else None, None)
    assert closing.received_first is (False if closed_before else None)


def test_a_callback_that_raises(backend: Backend) -> None:
    def act(_: Connection) -> None:
        raise RuntimeError("as expected")

    closing = told(Account(act), backend, QUIET, lambda peer: peer.write(frame(TEXT), close_frame(1011)))
    assert closing == Closing(sent=Close(1011, "internal error"), received=Close(1011), received_first=False)


def test_a_drain(backend: Backend) -> None:
    """With one peer that answers and one that does not."""
    recorder = Account()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        answering, silent = connected(reactor), connected(reactor)
        reactor.run_once(0)
        answering.write(close_frame(1012))
        reactor.call_later(0.2, lambda: None)
        reactor.drain(0.1, code=1012)
        assert answering.read_close() == 1012
        first, second = (event[1] for event in recorder.of("close"))
        answering.close()
        silent.close()
    assert first == Closing(sent=Close(1012), received=Close(1012), received_first=False)
    assert (second.sent, second.received, second.received_first) == (Close(1012), None, False)
    assert isinstance(second.error, ConnectionAbortedError)


def test_a_reactor_that_is_closed(backend: Backend) -> None:
    recorder = Account()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        peers = [connected(reactor) for _ in range(2)]
        first = next(iter(recorder.connections.values()))
        first.close(1001, "soon")
    closings = {event[1].sent: event[1] for event in recorder.of("close")}
    assert set(closings) == {None, Close(1001, "soon")}
    for closing in closings.values():
        assert isinstance(closing.error, ConnectionAbortedError)
        assert closing.received is None
    for peer in peers:
        peer.close()


def test_a_connection_that_has_ended_keeps_nothing_alive(backend: Backend) -> None:
    recorder = Account()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        with connected(reactor) as peer:
            peer.write(close_frame())
            run_until(reactor, lambda: recorder.of("close"))
        gone = weakref.ref(recorder.connections.popitem()[1])
        gc.collect()
        assert gone() is None


def test_pings_and_pongs_are_no_part_of_it(backend: Backend) -> None:
    closing = told(Account(), backend, QUIET, lambda peer: peer.write(frame(PING), frame(PONG), close_frame()))
    assert closing == Closing(sent=Close(1000), received=Close(1000), received_first=True)
