"""Requests that are answered later: `uringws.LATER`, `Reactor.answer`, `Sender.answer`, `on_upgrade_abandoned`."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

import pytest

import uringws
from servers import ReactorThread, Recorder, run_until, settle, wait_until
from uringws import (
    LATER,
    Accept,
    Connection,
    Handler,
    Later,
    Message,
    Options,
    Reactor,
    ReactorStateError,
    Reject,
    Request,
    Response,
    SenderFull,
    WrongThread,
    parse_request,
)
from uringws.backend import Backend
from wire import BINARY, CLOSE, PING, PONG, TEXT, Frame, Peer, close_frame, cuts, frame, http, upgrade_request

QUIET = Options(ping_interval_seconds=None)


class Deferring(Recorder):
    """Leaves every request for later, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def on_upgrade(self, request: Request) -> Later:
        self.requests.append(request)
        self.record("upgrade", request.id)
        return LATER

    def on_upgrade_abandoned(self, request: Any) -> None:
        self.record("abandoned", request.id)


@contextlib.contextmanager
def asking(reactor: Reactor, recorder: Deferring, then: bytes = b"") -> Any:
    """A peer that has sent its request, which is left for later; and the request."""
    count = len(recorder.requests)
    with Peer.dial(reactor.addresses[0]) as peer:
        peer.write(upgrade_request("/room?name=x", subprotocols=["v1", "v2"]) + then)
        run_until(reactor, lambda: len(recorder.requests) > count)
        yield peer, recorder.requests[-1]


@contextlib.contextmanager
def deferring(backend: Backend, options: Options = QUIET) -> Any:
    recorder = Deferring()
    with Reactor(recorder, options, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        yield reactor, recorder


def test_a_request_is_accepted_later(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (peer, request):
        reactor.run_once(0)
        assert peer.quiet()
        assert reactor.answer(request, Accept("v2", headers=[("X-Served-By", "here")], data="mine")) is True
        ((_, identity),) = recorder.of("open")
        assert identity == request.id, "the connection has the request's id"
        connection = recorder.connections[identity]
        assert (connection.data, connection.subprotocol, connection.is_open) == ("mine", "v2", True)
        reactor.run_once(0)
        response = peer.read_response()
        assert (response.status, response.headers["x-served-by"]) == (101, "here")
        assert response.headers["sec-websocket-protocol"] == "v2"
        peer.send(TEXT, b"hello")
        run_until(reactor, lambda: recorder.of("message"))
    assert not recorder.of("abandoned")


def test_none_accepts_with_the_options_subprotocol(backend: Backend) -> None:
    options = Options(subprotocols=["v2", "v1"], ping_interval_seconds=None)
    with deferring(backend, options) as (reactor, recorder), asking(reactor, recorder) as (peer, request):
        assert reactor.answer(request.id, None)
        reactor.run_once(0)
        assert peer.read_response().headers["sec-websocket-protocol"] == "v2"


def test_a_request_is_refused_later(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (peer, request):
        assert reactor.answer(request, Reject(401, body="who are you?"))
        reactor.run_once(0)
        response = peer.read_response()
        assert (response.status, response.body) == (401, b"who are you?")
        peer.read_eof()
        peer.close()
        run_until(reactor, lambda: not reactor.stats().sessions)
        assert reactor.stats().rejected == {"handler": 1}
    assert not recorder.of("open")
    assert not recorder.of("abandoned")


def test_a_kept_request_stays_readable(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (_, first):
        with asking(reactor, recorder), asking(reactor, recorder):
            reactor.run_once(0)
        assert (first.path, first.query, first.subprotocols) == ("/room", "name=x", ("v1", "v2"))
        assert first.headers["host"] == "localhost"
        assert first.peer is not None
        assert first.id > 0
    assert first.path == "/room", "after the reactor's end too"


EARLY = [frame(TEXT, b"one"), frame(PING, b"?"), frame(BINARY, bytes(300)), frame(TEXT, b"thr", fin=False)]


def test_bytes_after_the_request_are_kept_for_the_open_connection(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder, EARLY[0]) as (peer, request):
        peer.write(*EARLY[1:])
        reactor.run_once(0.05)
        assert not recorder.of("message")
        assert reactor.answer(request, Accept())
        peer.write(frame(0, b"ee"), close_frame())
        run_until(reactor, lambda: recorder.of("close"))
        reactor.run_once(0)
        assert [event[3] for event in recorder.of("message")] == [b"one", bytes(300), b"three"]
        assert recorder.events[1][0] == "open"
        assert peer.read_response().status == 101
        assert peer.read_frame() == Frame(PONG, b"?")
        assert peer.read_close() == 1000


def test_a_peer_that_floods_before_the_answer_is_not_read_on(backend: Backend) -> None:
    """64 KiB are kept, and what fills the receive pool meanwhile; the rest stays in the sockets."""
    flood = frame(BINARY, bytes(60_000)) * 400
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (peer, request):
        writer = threading.Thread(target=peer.write, args=(flood,))
        writer.start()
        for _ in range(50):
            reactor.run_once(0.005)
        pool_bytes = QUIET.receive_buffers * QUIET.receive_buffer_bytes
        assert reactor.stats().memory_bytes < pool_bytes + (200 << 10) < len(flood) // 5
        assert reactor.answer(request, Accept())
        run_until(reactor, lambda: len(recorder.of("message")) == 400)
        writer.join()


def test_requests_without_an_answer_count_as_handshakes(backend: Backend) -> None:
    options = Options(handshakes_max=2, silent_seconds_max=None, ping_interval_seconds=None)
    with deferring(backend, options) as (reactor, recorder), asking(reactor, recorder), asking(reactor, recorder):
        assert reactor.stats().handshakes == 2
        with Peer.dial(reactor.addresses[0]) as third:
            run_until(reactor, lambda: reactor.stats().rejected)
            assert third.read_response().status == 503


# ---- from another thread


class InThread:
    def __init__(self, backend: Backend, options: Options = QUIET) -> None:
        self.recorder = Deferring()
        self._server = ReactorThread(self.recorder, backend=backend, options=options)

    def __enter__(self) -> Self:
        self.server = self._server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.__exit__(*exc)

    def ask(self, peer: Peer) -> Request:
        count = len(self.recorder.requests)
        peer.write(upgrade_request())
        wait_until(lambda: len(self.recorder.requests) > count)
        return self.recorder.requests[-1]


@pytest.mark.parametrize("by_id", [True, False])
def test_a_sender_answers_from_another_thread(backend: Backend, *, by_id: bool) -> None:
    with InThread(backend) as it, Peer.dial(it.server.address) as peer:
        request = it.ask(peer)
        assert it.server.sender.answer(request.id if by_id else request, Accept()) is True
        assert peer.read_response().status == 101
        peer.send(TEXT, b"hello")
        it.recorder.wait_for("message")
        with pytest.raises(WrongThread):
            it.server.reactor.answer(request, Accept())


def test_a_senders_nonsense_raises_at_once_and_the_request_goes_on_waiting(backend: Backend) -> None:
    with InThread(backend) as it, Peer.dial(it.server.address) as peer:
        request = it.ask(peer)
        for nonsense, error in NONSENSE:
            with pytest.raises(error):
                it.server.sender.answer(request, nonsense)
        assert it.server.sender.answer(request, Reject(404)) is True
        assert peer.read_response().status == 404
        with pytest.raises(ReactorStateError, match="answered before"):
            it.server.sender.answer(request, Accept())


def test_a_senders_answer_to_a_peer_that_has_left_is_false(backend: Backend) -> None:
    with InThread(backend) as it:
        with Peer.dial(it.server.address) as peer:
            request = it.ask(peer)
        it.recorder.wait_for("abandoned")
        assert it.server.sender.answer(request, Accept()) is False
        assert it.server.sender.answer(request.id, Accept()) is False
        settle(it.server)


def test_a_full_queue_of_commands(backend: Backend) -> None:
    options = Options(sender_commands_max=1, ping_interval_seconds=None)
    with InThread(backend, options) as it, Peer.dial(it.server.address) as peer:
        request = it.ask(peer)
        held = threading.Event()
        it.server.sender.call(held.wait)
        with contextlib.suppress(SenderFull):
            it.server.sender.call(lambda: None, timeout=0.05)
        with pytest.raises(SenderFull):
            it.server.sender.answer(request, Accept(), timeout=0.01)
        held.set()
        assert it.server.sender.answer(request, Accept()) is True
        assert peer.read_response().status == 101


# ---- misuse

NONSENSE: list[tuple[Any, type[Exception]]] = [
    (LATER, TypeError),
    ("yes", TypeError),
    (True, TypeError),
    (Accept, TypeError),
    (Response(200), TypeError),
    (uringws.RawAnswer(b""), TypeError),
    (Accept("not offered"), ValueError),
]


def test_nonsense_raises_and_the_request_goes_on_waiting(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (peer, request):
        for nonsense, error in NONSENSE:
            with pytest.raises(error):
                reactor.answer(request, nonsense)
        assert reactor.answer(request, Accept("v1"))
        reactor.run_once(0)
        assert peer.read_response().status == 101


def test_a_second_answer_raises(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (_, request):
        assert reactor.answer(request, Accept())
        for name in (request, request.id):
            with pytest.raises(ReactorStateError, match="answered before"):
                reactor.answer(name, Accept())
        with asking(reactor, recorder) as (_, other):
            assert reactor.answer(other, Reject())
            with pytest.raises(ReactorStateError, match="answered before"):
                reactor.answer(other, Accept())


def test_a_wrong_request_is_refused(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (_, request):
        made = parse_request(upgrade_request(), header_count_max=100)
        wrong: list[tuple[Any, type[Exception]]] = [
            (None, TypeError), ("1", TypeError), (True, TypeError), (0, ValueError), (-1, ValueError),
            (1 << 64, ValueError), (made, ValueError),
        ]  # fmt: skip
        for name, error in wrong:
            with pytest.raises(error):
                reactor.answer(name, Accept())
        assert reactor.answer(request.id + (2 << 32), Accept()) is False, "nobody has that id"
        made.id = request.id
        with pytest.raises(ReactorStateError, match="awaits no answer"):
            reactor.answer(made, Accept())
        assert reactor.answer(request, Accept())


def test_a_request_that_was_decided_on_at_once_cannot_be_answered(backend: Backend) -> None:
    class Immediate(Deferring):
        def on_upgrade(self, request: Request) -> None:  # type: ignore[override]
            self.requests.append(request)

    recorder = Immediate()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        with asking(reactor, recorder) as (_, request), pytest.raises(ReactorStateError, match="answered before"):
            reactor.answer(request, Accept())


def test_a_closed_reactor_answers_nothing(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (_, request):
        pass
    with pytest.raises(ReactorStateError, match="closed"):
        reactor.answer(request, Accept())


# ---- an answer while the callback runs


class Eager(Deferring):
    """Answers before it returns, as a task that need not wait does."""

    def __init__(self, decision: Any, returned: Any = LATER) -> None:
        super().__init__()
        self._decision, self._returned = decision, returned
        self.reactor: Reactor

    def on_upgrade(self, request: Request) -> Later:
        super().on_upgrade(request)
        self.record("answered", self.reactor.answer(request, self._decision))
        for name in (request, request.id):
            with pytest.raises(ReactorStateError, match="answered before"):
                self.reactor.answer(name, self._decision)
        return self._returned  # type: ignore[no-any-return]


def eagerly(backend: Backend, handler: Eager) -> int:
    with Reactor(handler, QUIET, backend=backend) as reactor:
        handler.reactor = reactor
        reactor.bind("127.0.0.1", 0)
        with asking(reactor, handler) as (peer, _):
            reactor.run_once(0)
            return int(peer.read_response().status)


@pytest.mark.parametrize(("decision", "status"), [(Accept(), 101), (None, 101), (Reject(410), 410)])
def test_an_answer_while_the_callback_runs_counts_when_it_has_returned(
    backend: Backend, decision: Any, status: int
) -> None:
    handler = Eager(decision)
    assert eagerly(backend, handler) == status
    assert handler.of("answered") == [("answered", True)]
    assert len(handler.of("open")) == (status == 101)


def test_an_answer_and_another_return_value_is_a_fault_of_the_handler(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    assert eagerly(backend, Eager(Accept(), Reject())) == 500
    assert "return LATER" in caplog.text


# ---- abandoned requests


def abandon_by_end(peer: Peer) -> None:
    peer.close()


LEAVE: dict[str, Callable[[Peer], object]] = {"end": abandon_by_end, "reset": Peer.reset}


@pytest.mark.parametrize("how", LEAVE)
def test_a_peer_that_leaves_at_any_byte_after_its_request(backend: Backend, how: str) -> None:
    """Nothing of what it sent already may keep the session: after the answer it is gone, whatever the answer was."""
    sent = frame(TEXT, b"one") + frame(PING) + frame(TEXT, b"thr", fin=False) + frame(0, b"ee") + close_frame()
    with deferring(backend, Options(ping_interval_seconds=None, close_seconds_max=0.5)) as (reactor, recorder):
        for number, (early, _) in enumerate(list(cuts(sent))[:: 1 if how == "end" else 3]):
            with asking(reactor, recorder, early) as (peer, request):
                LEAVE[how](peer)
            reactor.run_once(0.01)
            abandoned = ("abandoned", request.id) in recorder.events
            assert abandoned or early, "without early bytes the end of the stream is seen at once"
            there = reactor.answer(request, Accept() if number % 2 else Reject())
            assert not (there and abandoned)
            reactor.run_once(0)
        run_until(reactor, lambda: not reactor.stats().sessions)
        stats = reactor.stats()
        assert (stats.handshakes, stats.memory_bytes) == (0, 0)
        assert len(recorder.of("open")) == len(recorder.of("close"))
        assert len(recorder.of("abandoned")) == len(set(recorder.of("abandoned")))


def test_a_peer_that_leaves_with_its_request_in_one_turn(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder):
        with Peer.dial(reactor.addresses[0]) as peer:
            peer.write(upgrade_request())
        run_until(reactor, lambda: recorder.of("abandoned"))
        (request,) = recorder.requests
        assert recorder.events == [("upgrade", request.id), ("abandoned", request.id)]
        assert reactor.answer(request, Accept()) is False


def test_an_answer_inside_of_on_upgrade_abandoned_is_false(backend: Backend) -> None:
    class Stubborn(Deferring):
        reactor: Reactor

        def on_upgrade_abandoned(self, request: Any) -> None:
            super().on_upgrade_abandoned(request)
            self.record("answered", self.reactor.answer(request, Accept()), self.reactor.answer(request.id, None))

    recorder = Stubborn()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        recorder.reactor = reactor
        reactor.bind("127.0.0.1", 0)
        with asking(reactor, recorder):
            pass
        run_until(reactor, lambda: recorder.of("answered"))
        run_until(reactor, lambda: not reactor.stats().sessions)
        with asking(reactor, recorder):
            reactor.close()
    assert recorder.of("answered") == [("answered", False, False)] * 2


def test_a_handler_without_on_upgrade_abandoned(backend: Backend) -> None:
    class Plain:
        asked: Request | None = None

        def on_upgrade(self, request: Request) -> Later:
            self.asked = request
            return LATER

    plain = Plain()
    handler: Any = plain
    with Reactor(handler, QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        with Peer.dial(reactor.addresses[0]) as peer:
            peer.write(upgrade_request())
            run_until(reactor, lambda: plain.asked)
        run_until(reactor, lambda: not reactor.stats().handshakes)
        assert plain.asked is not None
        assert reactor.answer(plain.asked, Accept()) is False


def test_on_upgrade_abandoned_that_fails_is_logged(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Deferring):
        def on_upgrade_abandoned(self, request: Any) -> None:
            super().on_upgrade_abandoned(request)
            raise RuntimeError("as expected")

    recorder = Failing()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        with asking(reactor, recorder):
            pass
        run_until(reactor, lambda: recorder.of("abandoned"))
        run_until(reactor, lambda: not reactor.stats().sessions)
    assert "as expected" in caplog.text


def test_the_handshake_deadline_still_counts(backend: Backend) -> None:
    options = Options(handshake_seconds_max=0.1, ping_interval_seconds=None)
    with deferring(backend, options) as (reactor, recorder), asking(reactor, recorder) as (peer, request):
        run_until(reactor, lambda: recorder.of("abandoned"))
        assert reactor.answer(request, Accept()) is False
        assert reactor.answer(request.id, Accept()) is False
        reactor.run_once(0)
        assert peer.read_response().status == 408
        peer.read_eof()
        assert reactor.stats().rejected == {"timeout": 1}
    assert recorder.of("abandoned") == [("abandoned", request.id)]
    assert not recorder.of("open")


def test_a_drain_answers_waiting_requests_503(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (peer, request):
        ended = threading.Thread(target=lambda: (peer.read_response(), peer.read_eof(), peer.close()))
        ended.start()
        reactor.drain(5)
        ended.join()
        assert recorder.of("abandoned") == [("abandoned", request.id)]
        assert reactor.answer(request, Accept()) is False
        assert reactor.stats().rejected == {"draining": 1}


def test_a_drain_inside_of_on_upgrade_answers_503(backend: Backend) -> None:
    class Drainer(Deferring):
        reactor: Reactor

        def on_upgrade(self, request: Request) -> Later:
            self.reactor.drain(5)
            return super().on_upgrade(request)

    recorder = Drainer()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        recorder.reactor = reactor
        reactor.call_later(60, lambda: None)
        address = reactor.bind("127.0.0.1", 0)
        got: list[int] = []
        client = threading.Thread(target=lambda: got.append(http(address, upgrade_request()).status))
        client.start()
        reactor.run()
        client.join()
        assert got == [503]
        assert recorder.of("abandoned") == [("abandoned", recorder.requests[0].id)]


def test_a_cut_and_a_close_abandon_waiting_requests(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder), asking(reactor, recorder):
        assert not recorder.of("abandoned")
        reactor.close()
        assert recorder.of("abandoned") == [("abandoned", request.id) for request in recorder.requests]


def test_an_answer_during_close_is_false_and_no_callback_follows(backend: Backend) -> None:
    """Each request is told of once: by the result of its answer, or by `on_upgrade_abandoned`."""

    class Answering(Deferring):
        def on_upgrade_abandoned(self, request: Any) -> None:
            super().on_upgrade_abandoned(request)
            self.record("answered", reactor.answer(self.requests[1], Accept()))

    recorder = Answering()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        with asking(reactor, recorder), asking(reactor, recorder):
            reactor.close()
    assert recorder.of("abandoned") == [("abandoned", recorder.requests[0].id)]
    assert recorder.of("answered") == [("answered", False)]


# ---- plain requests


class Pages(Deferring):
    def on_request(self, request: Request) -> Later:
        self.requests.append(request)
        return LATER


@pytest.mark.parametrize(
    ("method", "decision", "status", "body"),
    [
        ("GET", Response(200, body="page"), 200, b"page"),
        ("HEAD", Response(200, body="page"), 200, b""),
        ("GET", None, 426, None),
        ("OPTIONS", None, 204, b""),
    ],
)
def test_a_plain_request_is_answered_later(
    backend: Backend, method: str, decision: Response | None, status: int, body: bytes | None
) -> None:
    recorder = Pages()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        with Peer.dial(reactor.addresses[0]) as peer:
            peer.write(f"{method} /page HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            run_until(reactor, lambda: recorder.requests)
            (request,) = recorder.requests
            with pytest.raises(TypeError, match="on_request is answered by"):
                reactor.answer(request, Accept())
            assert reactor.answer(request, decision)
            reactor.run_once(0)
            received = b"".join(iter(lambda: peer.sock.recv(65536), b""))
    assert received.split(b" ")[1] == str(status).encode()
    assert body is None or received.partition(b"\r\n\r\n")[2] == body


def test_later_is_shown_by_its_name() -> None:
    assert repr(LATER) == "uringws.LATER"
    assert Later.LATER is LATER


def test_a_half_closed_peer_counts_as_one_that_left(backend: Backend) -> None:
    with deferring(backend) as (reactor, recorder), asking(reactor, recorder) as (peer, request):
        peer.sock.shutdown(socket.SHUT_WR)
        run_until(reactor, lambda: recorder.of("abandoned"))
        assert reactor.answer(request, Accept()) is False


def test_on_open_may_send_and_close_from_answer(backend: Backend) -> None:
    class Greeter(Deferring):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            conn.send("welcome")
            conn.close(1000, "and goodbye")

    recorder = Greeter()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.bind("127.0.0.1", 0)
        with asking(reactor, recorder) as (peer, request):
            assert reactor.answer(request, Accept())
            reactor.run_once(0)
            assert peer.read_response().status == 101
            assert peer.read_frame() == Frame(TEXT, b"welcome")
            assert peer.read_frame().opcode == CLOSE


def test_an_answer_inside_of_another_connections_message(backend: Backend) -> None:
    """The echo of the message that is being handled is not the new connection's."""

    class Admitting(Deferring):
        reactor: Reactor

        def on_upgrade(self, request: Request) -> Any:
            return super().on_upgrade(request) if self.requests or self.of("open") else None

        def on_message(self, conn: Connection, message: Message) -> None:
            assert self.reactor.answer(self.requests[-1], Accept())
            assert bytes(message) == b"let it in"
            conn.echo()

    recorder = Admitting()
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        recorder.reactor = reactor
        reactor.bind("127.0.0.1", 0)
        with Peer.dial(reactor.addresses[0]) as first:
            first.write(upgrade_request())
            run_until(reactor, lambda: recorder.of("open"))
            with asking(reactor, recorder) as (second, _):
                assert first.read_response().status == 101
                first.send(TEXT, b"let it in")
                run_until(reactor, lambda: len(recorder.of("open")) == 2)
                reactor.run_once(0)
                assert first.read_frame() == Frame(TEXT, b"let it in")
                assert second.read_response().status == 101


def test_the_base_class_has_the_callback() -> None:
    Handler().on_upgrade_abandoned(parse_request(upgrade_request(), header_count_max=100))
