"""`on_head` and `RawAnswer`, for programs with a handshake of their own; and `Options.refuse_silently`."""

from __future__ import annotations

from typing import Any

import pytest

from servers import ReactorThread, Recorder, run_until
from uringws import (
    LATER,
    Accept,
    Options,
    RawAnswer,
    Reactor,
    ReactorStateError,
    Reject,
    Request,
    RequestHead,
    Response,
)
from uringws.backend import Backend
from wire import TEXT, Peer, http, upgrade_request

QUIET = Options(ping_interval_seconds=None)
TEAPOT = b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 3\r\n\r\ntea"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nX-Mine: yes\r\n\r\n"


class Heads(Recorder):
    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned
        self.heads: list[RequestHead] = []

    def on_head(self, head: RequestHead) -> Any:
        self.heads.append(head)
        self.record("head", head.data)
        return self.returned

    def on_upgrade(self, request: Request) -> None:
        self.record("upgrade", request.path)

    def on_request(self, request: Request) -> Response:
        self.record("request", request.path)
        return Response(200, body="page")

    def on_upgrade_abandoned(self, request: Any) -> None:
        self.record("abandoned", request.id)


ODD_HEADS = {
    "post": b"POST /form HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    "http-1.0": b"GET / HTTP/1.0\r\n\r\n",
    "no-host": b"GET / HTTP/1.1\r\n\r\n",
    "no-http": b"HELO relay.invalid\r\n\r\n",
    "no-key": upgrade_request().replace(b"Sec-WebSocket-Key", b"X-Key"),
    "upgrade": upgrade_request("/chat"),
}


@pytest.mark.parametrize("name", ODD_HEADS)
def test_on_head_sees_any_request_as_it_came_and_answers_in_its_own_bytes(backend: Backend, name: str) -> None:
    recorder = Heads(RawAnswer(TEAPOT))
    with ReactorThread(recorder, backend=backend, options=QUIET) as server:
        response = http(server.address, ODD_HEADS[name])
    assert (response.status, response.body) == (418, b"tea")
    assert recorder.events == [("head", ODD_HEADS[name])]
    assert recorder.heads[0].id > 0
    assert isinstance(recorder.heads[0].peer, tuple)


def test_a_request_goes_on_as_ever_after_none(backend: Backend) -> None:
    recorder = Heads(None)
    with ReactorThread(recorder, backend=backend, options=QUIET) as server:
        assert http(server.address, b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n").body == b"page"
        assert http(server.address, ODD_HEADS["post"]).status == 405
        with Peer.connect(server.address, "/chat") as peer:
            peer.send(TEXT, b"hello")
            recorder.wait_for("message")
    assert [event[:2] for event in recorder.events if event[0] in ("request", "upgrade")] == [
        ("request", "/page"),
        ("upgrade", "/chat"),
    ]


def test_a_raw_answer_may_open_the_connection(backend: Backend) -> None:
    recorder = Heads(RawAnswer(SWITCHED, opens=True, subprotocol="mine", data=7))
    with ReactorThread(recorder, backend=backend, options=QUIET) as server, Peer.dial(server.address) as peer:
        peer.write(ODD_HEADS["no-key"], TEXT_FRAME)
        assert peer.read_response().headers == {"x-mine": "yes"}
        ((_, identity),) = recorder.wait_for("open")
        connection = recorder.connections[identity]
        assert (connection.id, connection.subprotocol, connection.data) == (recorder.heads[0].id, "mine", 7)
        recorder.wait_for("message")


TEXT_FRAME = b"\x81\x82\0\0\0\0hi"


def test_an_empty_raw_answer_closes_silently(backend: Backend) -> None:
    recorder = Heads(RawAnswer(b""))
    with ReactorThread(recorder, backend=backend, options=QUIET) as server, Peer.dial(server.address) as peer:
        peer.write(upgrade_request())
        peer.read_eof()


@pytest.mark.parametrize("later", [RawAnswer(TEAPOT), None])
def test_a_head_is_answered_later(backend: Backend, later: RawAnswer | None) -> None:
    recorder = Heads(LATER)
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        address = reactor.bind("127.0.0.1", 0)
        with Peer.dial(address) as peer:
            peer.write(upgrade_request("/chat"))
            run_until(reactor, lambda: recorder.heads)
            (head,) = recorder.heads
            for nonsense in (Accept(), Reject(), Response(200), LATER):
                with pytest.raises(TypeError):
                    reactor.answer(head, nonsense)  # type: ignore[arg-type]
            assert not recorder.of("upgrade")
            assert reactor.answer(head, later)
            with pytest.raises(ReactorStateError, match="answered before"):
                reactor.answer(head, later)
            reactor.run_once(0)
            assert peer.read_response().status == (101 if later is None else 418)
    assert len(recorder.of("upgrade")) == (later is None)


def test_a_request_may_be_left_for_later_more_than_once(backend: Backend) -> None:
    """First as a head, then as a parsed request: each is answered by what its own callback was given."""

    class Twice(Heads):
        asked: Request

        def on_upgrade(self, request: Request) -> Any:
            self.asked = request
            return LATER

    recorder = Twice(LATER)
    with Reactor(recorder, QUIET, backend=backend) as reactor:
        address = reactor.bind("127.0.0.1", 0)
        with Peer.dial(address) as peer:
            peer.write(upgrade_request("/chat"))
            run_until(reactor, lambda: recorder.heads)
            (head,) = recorder.heads
            assert reactor.answer(head, None)
            assert recorder.asked.id == head.id
            with pytest.raises(ReactorStateError):
                reactor.answer(head, None)
            assert reactor.answer(recorder.asked, Accept())
            reactor.run_once(0)
            assert peer.read_response().status == 101
        with Peer.dial(address) as peer:
            peer.write(upgrade_request("/chat"))
            run_until(reactor, lambda: len(recorder.heads) == 2)
        run_until(reactor, lambda: recorder.of("abandoned"))
        assert reactor.answer(recorder.heads[1], None) is False


@pytest.mark.parametrize("returned", ["text", Accept(), Response(200)])
def test_another_return_value_is_answered_500(
    backend: Backend, returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with ReactorThread(Heads(returned), backend=backend, options=QUIET) as server:
        assert http(server.address, ODD_HEADS["post"]).status == 500
    assert "on_head for POST /form HTTP/1.1 failed" in caplog.text
    assert "RawAnswer or None" in caplog.text


def test_a_proxy_header_is_taken_off(backend: Backend) -> None:
    recorder = Heads(RawAnswer(TEAPOT))
    options = Options(proxy_protocol_from=["127.0.0.1"], ping_interval_seconds=None)
    with ReactorThread(recorder, backend=backend, options=options) as server:
        http(server.address, b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 80\r\n" + upgrade_request())
    assert recorder.heads[0].data == upgrade_request()
    assert recorder.heads[0].peer == ("203.0.113.7", 4711)


def test_a_raw_answer_is_checked() -> None:
    wrong: list[tuple[Any, bool, type[Exception]]] = [
        ("text", False, TypeError),
        (TEAPOT, True, ValueError),
        (SWITCHED[:-2], True, ValueError),
        (b"", True, ValueError),
    ]
    for response, opens, error in wrong:
        with pytest.raises(error):
            RawAnswer(response, opens=opens)


UNREADABLE = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client\r\n\r\n",
    "smtp": b"HELO relay.invalid\r\n\r\n",
    "malformed": b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "too-large": b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 20_000,
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("silently", [True, False])
def test_bytes_other_than_requests_are_refused_silently_if_asked_for(
    backend: Backend, name: str, *, silently: bool
) -> None:
    options = Options(refuse_silently=silently, ping_interval_seconds=None)
    with (
        ReactorThread(Recorder(), backend=backend, options=options) as server,
        Peer.dial(server.address) as peer,
    ):
        peer.write(UNREADABLE[name])
        if silently:
            peer.read_eof()
        else:
            assert peer.read_response().status in (400, 431)
        assert server.ask(server.reactor.stats).rejected == {"bad_request": 1}


@pytest.mark.parametrize("silently", [True, False])
def test_a_request_that_comes_too_slowly_is_refused_silently_if_asked_for(backend: Backend, *, silently: bool) -> None:
    options = Options(refuse_silently=silently, handshake_seconds_max=0.1, ping_interval_seconds=None)
    with (
        ReactorThread(Recorder(), backend=backend, options=options) as server,
        Peer.dial(server.address) as peer,
    ):
        peer.write(b"GET / HTTP/1.1\r\n")
        if silently:
            peer.read_eof()
        else:
            assert peer.read_response().status == 408
        assert server.ask(server.reactor.stats).rejected == {"timeout": 1}


def test_requests_that_can_be_read_are_answered_all_the_same(backend: Backend) -> None:
    options = Options(refuse_silently=True, ping_interval_seconds=None)
    with ReactorThread(Recorder(), backend=backend, options=options) as server:
        assert http(server.address, ODD_HEADS["post"]).status == 405
        assert http(server.address, ODD_HEADS["no-key"]).status == 400
        assert http(server.address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 426
        with Peer.connect(server.address) as peer:
            peer.send(TEXT, b"hello")
            assert peer.quiet()
