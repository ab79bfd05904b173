"""Several handlers and options in one reactor: each listener and each adopted session may have its own."""

from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, Silent, no_listener, run_until, settle, tcp_pair
from uringws import (
    LATER,
    Accept,
    BacklogFull,
    Connection,
    Handler,
    LimitReached,
    Message,
    Options,
    OptionsError,
    Reactor,
    Reject,
    Request,
    Response,
    SendResult,
)
from uringws.backend import Backend
from uringws.shim import lib
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, Peer, close_frame, frame, http, upgrade_request

QUIET = Options(ping_interval_seconds=None)
PLAIN = b"GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Named(Recorder):
    """Records every callback, and answers with its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def on_upgrade(self, request: Request) -> Accept | Reject:
        self.record("upgrade", request.path)
        return Reject(404) if request.path == "/none" else Accept(headers={"X-Name": self.name}, data=request.path)

    def on_request(self, request: Request) -> Response:
        self.record("request", request.path)
        return Response(200, (), self.name)

    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        conn.send_text(self.name)

    @property
    def names(self) -> list[str]:
        return [event[0] for event in self.events]


class Framed(Named):
    """Takes frames."""

    def on_frame(self, conn: Connection, message: Message) -> None:
        self.record("frame", conn.id, message.opcode, message.fin, bytes(message))
        if message.fin:
            conn.send_text(self.name)


@pytest.fixture
def reactor(backend: Backend) -> Iterator[Reactor]:
    with Reactor(Named("own"), QUIET, backend=backend) as reactor:
        yield reactor


def talk(address: Any, path: str = "/") -> str:
    """Open, send a message, close; return the name in the answers, which must be one."""
    with Peer.connect(address, path) as peer:
        peer.send(TEXT, b"who?")
        name = peer.read_frame().payload.decode()
        assert peer.response.headers["x-name"] == name
        assert peer.shake_hands(4000, "bye") == 4000
    return name


# Handlers


def test_each_listener_calls_its_own_handler(backend: Backend, tmp_path: Path) -> None:
    own, other, third, fourth = (Named(name) for name in ("own", "other", "third", "fourth"))

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.bind("127.0.0.1", 0, handler=other)
        reactor.bind_unix(tmp_path / "socket", handler=third)
        sock = socket.create_server(("127.0.0.1", 0))
        reactor.bind_socket(sock, handler=fourth)

    with ReactorThread(own, backend=backend, options=QUIET, prepare=prepare) as server:
        handlers = (own, other, third, fourth)
        for handler, address in zip(handlers, server.addresses, strict=True):
            assert talk(address, f"/{handler.name}") == handler.name
            assert http(address, PLAIN).body.decode() == handler.name
            assert http(address, upgrade_request("/none")).status == 404
        settle(server)
        for handler in handlers:
            assert handler.names == ["upgrade", "open", "message", "close", "request", "upgrade"]
            assert handler.of("upgrade") == [("upgrade", f"/{handler.name}"), ("upgrade", "/none")]
            assert handler.of("close")[0][2:] == (4000, "bye")


def test_connections_of_several_handlers_may_be_busy_in_one_turn(backend: Backend) -> None:
    handlers = [EchoRecorder() for _ in range(3)]

    def prepare(reactor: Reactor) -> None:
        for handler in handlers:
            reactor.bind("127.0.0.1", 0, handler=handler)

    with ReactorThread(handlers[0], backend=backend, options=QUIET, prepare=prepare) as server:
        peers = [(Peer.connect(address), number) for _ in range(4) for number, address in enumerate(server.addresses)]
        for count in range(30):
            for peer, number in peers:
                peer.send(BINARY, bytes([number, count]))
        for peer, number in peers:
            assert [frame.payload for frame in peer.read_frames(30)] == [bytes([number, n]) for n in range(30)]
            peer.close()
        for number, handler in enumerate(handlers):
            messages = handler.wait_for("message", 120)
            assert len(messages) == 120
            assert {message[3][0] for message in messages} == {number}


def test_an_adopted_session_has_the_handler_that_it_was_given(backend: Backend) -> None:
    own, other = Named("own"), Named("other")
    with ReactorThread(own, backend=backend, options=QUIET, prepare=no_listener) as server:
        pairs = [tcp_pair() for _ in range(4)]
        server.sender.add_session(pairs[0][0])
        server.sender.add_session(pairs[1][0], handler=other)
        server.sender.add_session_with_prefix(pairs[2][0], frame(TEXT, b"first"), handler=other, data=2)
        server.ask(lambda: server.reactor.add_session(pairs[3][0], handler=other))
        for (_, theirs), name in zip(pairs, ("own", "other", "other", "other"), strict=True):
            with Peer(theirs) as peer:
                peer.send(TEXT, b"who?")
                assert peer.read_frame().payload.decode() == name
        assert own.wait_for("close")[0][2] == other.wait_for("close", 3)[0][2] == 1006
        assert [event[3] for event in other.of("message")].count(b"first") == 1
        assert len(own.of("open")) == 1
        assert len(other.of("open")) == 3


def test_a_handler_may_be_added_by_a_callback(backend: Backend) -> None:
    """The second handler appears in the middle of a turn of `run`."""
    pairs = [tcp_pair() for _ in range(2)]

    class First(Handler):
        def on_message(self, conn: Connection, message: Message) -> None:
            if message.text() == "add":
                server.reactor.add_session(pairs[1][0], handler=Named("second"))
            conn.send_text("first")

    with (
        ReactorThread(First(), backend=backend, options=QUIET, prepare=no_listener) as server,
        Peer(pairs[0][1]) as first,
        Peer(pairs[1][1]) as second,
    ):
        second.send(TEXT, b"early")
        server.sender.add_session(pairs[0][0])
        first.send(TEXT, b"add")
        for _ in range(3):
            assert first.read_frame().payload == b"first"
            assert second.read_frame().payload == b"second"
            first.send(TEXT, b"?")
            second.send(TEXT, b"?")


def test_a_handler_that_raises_ends_only_its_connection(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            raise ZeroDivisionError

    own, broken = EchoRecorder(), Broken()

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.bind("127.0.0.1", 0, handler=broken)

    with (
        ReactorThread(own, backend=backend, options=QUIET, prepare=prepare) as server,
        Peer.connect(server.addresses[0]) as good,
        Peer.connect(server.addresses[1]) as bad,
    ):
        bad.send(TEXT, b"?")
        assert bad.shake_hands(1011) == 1011
        good.send(TEXT, b"!")
        assert good.read_frame() == Frame(TEXT, b"!")
        assert broken.wait_for("close")[0][2] == 1011
        assert own.of("close") == []
    assert "ZeroDivisionError" in caplog.text


def test_on_drain_is_called_for_the_handlers_own_connection(backend: Backend) -> None:
    class Draining(Recorder):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            conn.send_binary(bytes(8 << 20))

        def on_drain(self, conn: Connection) -> None:
            self.record("drain", conn.id)

    own, other = Draining(), Draining()

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.bind("127.0.0.1", 0, handler=other)

    with (
        ReactorThread(own, backend=backend, options=QUIET, prepare=prepare) as server,
        Peer.connect(server.addresses[0]),
        Peer.connect(server.addresses[1]) as reading,
    ):
        assert len(reading.read_frame().payload) == 8 << 20
        other.wait_for("drain")
        assert own.of("drain") == []


def test_frames_and_messages_may_be_mixed(backend: Backend) -> None:
    own, framed = Named("own"), Framed("framed")

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.bind("127.0.0.1", 0, handler=framed)

    with ReactorThread(own, backend=backend, options=QUIET, prepare=prepare) as server:
        for address, name in zip(server.addresses, ("own", "framed"), strict=True):
            with Peer.connect(address) as peer:
                peer.write(frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"b"))
                assert peer.read_frame().payload.decode() == name
        settle(server)
    assert [event[2:] for event in own.of("message")] == [(TEXT, b"ab")]
    assert own.of("frame") == framed.of("message") == []
    assert [event[2:] for event in framed.of("frame")] == [(TEXT, False, b"a"), (CONTINUATION, True, b"b")]


def test_run_echo_echoes_on_every_listener_and_calls_each_handler_for_the_rest(backend: Backend) -> None:
    own, other = Named("own"), Framed("other")

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0, options=replace(QUIET, refuse_binary=True))
        reactor.bind("127.0.0.1", 0, handler=other, options=replace(QUIET, refuse_text=True))

    run = Reactor.run_echo
    with ReactorThread(own, backend=backend, options=QUIET, prepare=prepare, run=run) as server:
        for address, opcode, refused in zip(server.addresses, (TEXT, BINARY), (BINARY, TEXT), strict=True):
            with Peer.connect(address) as peer:
                for payload in (b"small", b"large" * 1000):
                    peer.send(opcode, payload)
                    assert peer.read_frame() == Frame(opcode, payload)
                peer.send(refused, b"small")
                assert peer.read_close() == 1003
        settle(server)
    assert own.names == other.names == ["upgrade", "open", "close"]


def test_a_request_that_is_answered_later_stays_with_its_handler(backend: Backend) -> None:
    class Deciding(Named):
        def on_upgrade(self, request: Request) -> Any:
            self.record("upgrade", request.id)
            return LATER

    own, deciding = Named("own"), Deciding("deciding")

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.bind("127.0.0.1", 0, handler=deciding)

    with (
        ReactorThread(own, backend=backend, options=QUIET, prepare=prepare) as server,
        Peer.dial(server.addresses[1]) as peer,
    ):
        peer.write(upgrade_request() + frame(TEXT, b"who?"))
        identity = deciding.wait_for("upgrade")[0][1]
        assert server.ask(lambda: server.reactor.answer(identity, None))
        assert peer.read_response().status == 101
        assert peer.read_frame().payload == b"deciding"
        assert deciding.of("open") == [("open", identity)]
        assert own.events == []


def test_pongs_go_to_the_handler_that_asks_for_them(backend: Backend) -> None:
    class Ponged(Recorder):
        def on_pong(self, conn: Connection, payload: bytes) -> None:
            self.record("pong", payload)

    own, ponged = EchoRecorder(), Ponged()

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.bind("127.0.0.1", 0, handler=ponged)

    with ReactorThread(own, backend=backend, options=QUIET, prepare=prepare) as server:
        for address in server.addresses:
            with Peer.connect(address) as peer:
                peer.send(PONG, b"unasked")
                assert peer.shake_hands() == 1000
        settle(server)
    assert [event[0] for event in own.events] == ["open", "close"]
    assert [event[0] for event in ponged.events] == ["open", "pong", "close"]


def test_messages_after_a_close_go_to_the_handler_whose_options_ask_for_them(backend: Backend) -> None:
    class Closing(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            if conn.is_open:
                conn.close()

    own, other, third = Closing(), Closing(), Closing()

    def prepare(reactor: Reactor) -> None:
        late = replace(QUIET, deliver_while_closing=True)
        reactor.bind("127.0.0.1", 0)
        reactor.bind("127.0.0.1", 0, handler=other, options=late)
        reactor.bind("127.0.0.1", 0, handler=third)

    with ReactorThread(own, backend=backend, options=QUIET, prepare=prepare) as server:
        for address in server.addresses:
            with Peer.connect(address) as peer:
                peer.write(frame(TEXT, b"one"), frame(TEXT, b"two"))
                assert peer.read_close() == 1000
                peer.write(frame(TEXT, b"three"), close_frame())
                peer.read_eof()
        settle(server)
    assert [[event[3] for event in handler.of("message")] for handler in (own, other, third)] == [
        [b"one"],
        [b"one", b"two", b"three"],
        [b"one"],
    ]


def serve(reactor: Reactor, handler: Handler) -> bool:
    """Give the handler a session whose peer leaves at once."""
    ours, theirs = tcp_pair()
    reactor.add_session(ours, handler=handler)
    theirs.close()
    return True


def test_a_handler_of_one_session_is_let_go_with_it(reactor: Reactor) -> None:
    ended: list[int] = []

    class Short(Handler):
        def on_close(self, conn: Connection, code: int, reason: str) -> None:
            ended.append(conn.id)

    kept = tcp_pair()
    reactor.add_session(kept[0])
    handlers = [weakref.ref(handler) for handler in (Short(), Short()) if serve(reactor, handler)]
    run_until(reactor, lambda: len(ended) == 2)
    reactor.run_once(0)
    gc.collect()
    assert [handler() for handler in handlers] == [None, None]
    kept[1].close()


def test_a_handler_of_a_closed_listener_is_let_go_when_another_listens(reactor: Reactor) -> None:
    handlers: list[weakref.ref[Handler]] = []
    reactor.bind("127.0.0.1", 0, handler=Named("kept"))
    for number in range(20):
        handler = Named(str(number))
        handlers.append(weakref.ref(handler))
        reactor.unbind(reactor.bind("127.0.0.1", 0, handler=handler))
        del handler
        for _ in range(3):
            reactor.run_once(0.001)
    reactor.bind("127.0.0.1", 0)
    gc.collect()
    assert [handler() for handler in handlers] == [None] * 20


def test_a_request_is_answered_by_the_handler_of_its_listener_though_others_listen_since(reactor: Reactor) -> None:
    first, second = Named("first"), Named("second")
    address = reactor.bind("127.0.0.1", 0, handler=first)
    reactor.run_once(0)
    request = upgrade_request("/late")
    with Peer.dial(address) as peer:
        peer.write(request[:20])
        run_until(reactor, lambda: reactor.stats().handshakes)
        reactor.unbind(address)
        for _ in range(5):
            reactor.run_once(0.001)
            reactor.bind("127.0.0.1", 0, handler=second)
        peer.write(request[20:])
        run_until(reactor, lambda: first.of("open"))
        reactor.run_once(0)
        assert peer.read_response().headers["x-name"] == "first"
    assert second.events == []


def test_closing_the_reactor_tells_every_handler(backend: Backend) -> None:
    handlers = [Named(str(number)) for number in range(3)]
    pairs = [tcp_pair() for _ in handlers]
    with Reactor(handlers[0], QUIET, backend=backend) as reactor:
        for handler, (ours, _) in zip(handlers, pairs, strict=True):
            reactor.add_session(ours, handler=handler)
    for handler, (_, theirs) in zip(handlers, pairs, strict=True):
        assert handler.names == ["open", "close"]
        theirs.close()


def test_a_reactor_keeps_its_own_handler(reactor: Reactor) -> None:
    own = reactor.handler
    reactor.bind("127.0.0.1", 0, handler=Silent())
    assert reactor.handler is own


@pytest.mark.parametrize("bind", ["bind", "bind_unix", "bind_socket", "add_session"])
def test_a_wrong_handler_or_wrong_options_are_refused(reactor: Reactor, bind: str, tmp_path: Path) -> None:
    class Coroutines:
        async def on_message(self, conn: Connection, message: Message) -> None: ...

    sock = socket.create_server(("127.0.0.1", 0))
    ours, theirs = tcp_pair()
    calls: dict[str, Callable[..., object]] = {
        "bind": lambda **keywords: reactor.bind("127.0.0.1", 0, **keywords),
        "bind_unix": lambda **keywords: reactor.bind_unix(tmp_path / "socket", **keywords),
        "bind_socket": lambda **keywords: reactor.bind_socket(sock, **keywords),
        "add_session": lambda **keywords: reactor.add_session(ours, **keywords),
    }
    call = calls[bind]
    with sock, ours, theirs:
        with pytest.raises(TypeError, match="give an instance"):
            call(handler=Silent)
        with pytest.raises(TypeError, match="async def"):
            call(handler=Coroutines())
        with pytest.raises(TypeError, match="options must be Options, not dict"):
            call(options={})
        with pytest.raises(OptionsError, match="receive_buffers"):
            call(options=replace(QUIET, receive_buffers=64))
        assert sock.fileno() >= 0
        assert ours.fileno() >= 0
    assert reactor.addresses == []
    assert reactor.stats().accepted == 0


# Options


SHARED: dict[str, Any] = {
    "sessions_max": 5,
    "sessions_per_ip_max": 5,
    "handshakes_max": 5,
    "silent_seconds_max": 5,
    "drain_seconds_max": 5,
    "memory_bytes_max": 1 << 30,
    "receive_buffers": 64,
    "receive_buffer_bytes": 8192,
    "ring_entries": 64,
    "busy_poll_microseconds": 5,
    "zero_copy": "never",
    "zero_copy_bytes_min": 5,
    "sender_commands_max": 5,
    "batch_messages_max": 5,
    "batch_wait_microseconds": 5,
}


@pytest.mark.parametrize("name", SHARED)
def test_a_field_that_all_connections_share_cannot_differ(reactor: Reactor, name: str) -> None:
    with pytest.raises(OptionsError) as caught:
        reactor.bind("127.0.0.1", 0, options=replace(reactor.options, **{name: SHARED[name]}))
    assert caught.value.field == name
    text = str(caught.value)
    assert f"{name}={SHARED[name]!r}: must be {getattr(reactor.options, name)!r}" in text
    assert "dataclasses.replace(reactor.options" in text
    assert reactor.addresses == []


def two(backend: Backend, handler: Handler, **fields: Any) -> ReactorThread:
    """A server with two listeners, of which the second has other options."""

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.bind("127.0.0.1", 0, options=replace(QUIET, **fields))

    return ReactorThread(handler, backend=backend, options=QUIET, prepare=prepare)


def test_message_limits_are_those_of_the_listener(backend: Backend) -> None:
    with two(backend, EchoRecorder(), message_bytes_max=10, refuse_binary=True) as server:
        with Peer.connect(server.addresses[0]) as peer:
            peer.write(frame(BINARY, bytes(11)))
            assert peer.read_frame() == Frame(BINARY, bytes(11))
        with Peer.connect(server.addresses[1]) as peer:
            peer.write(frame(TEXT, bytes(10)), frame(TEXT, bytes(11)))
            assert peer.read_frame() == Frame(TEXT, bytes(10))
            assert peer.read_close() == 1009
        with Peer.connect(server.addresses[1]) as peer:
            peer.write(frame(BINARY, b""))
            assert peer.read_close() == 1003


def test_message_limits_are_those_of_the_adopted_session(backend: Backend) -> None:
    with ReactorThread(EchoRecorder(), backend=backend, options=QUIET, prepare=no_listener) as server:
        for limit, answer in ((None, TEXT), (10, CLOSE)):
            ours, theirs = tcp_pair()
            options = None if limit is None else replace(QUIET, message_bytes_max=limit)
            server.sender.add_session(ours, options=options)
            with Peer(theirs) as peer:
                peer.send(TEXT, bytes(11))
                assert peer.read_frame().opcode == answer


def test_handshake_settings_are_those_of_the_listener(backend: Backend) -> None:
    fields = {
        "subprotocols": ("chat",),
        "origins": ("https://a.example",),
        "header_bytes_max": 300,
        "header_count_max": 8,
        "metrics_path": "/metrics",
        "server_header": "second",
    }
    request = upgrade_request(subprotocols=("chat",), headers=(("Origin", "https://a.example"),))
    long = upgrade_request(headers=(("X-Long", "x" * 300),))
    metrics = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    with two(backend, Silent(), **fields) as server:
        first, second = server.addresses
        for address, protocol, foreign, head, plain, name in (
            (first, None, 101, 101, 426, None),
            (second, "chat", 403, 431, 200, "second"),
        ):
            with Peer.dial(address) as peer:
                peer.write(request)
                headers = peer.read_response().headers
                assert (headers.get("sec-websocket-protocol"), headers.get("server")) == (protocol, name)
            for raw, status in ((upgrade_request(), foreign), (long, head), (metrics, plain)):
                with Peer.dial(address) as peer:
                    peer.write(raw)
                    assert peer.read_response().status == status


def test_a_refusal_of_the_shim_has_the_server_header_of_the_listener(backend: Backend) -> None:
    with two(backend, Silent(), server_header="second", handshake_seconds_max=0.05) as server:
        with Peer.dial(server.addresses[1]) as peer:
            peer.write(b"GET / HTTP/1.1\r\n")
            refusal = peer.read_response()
            assert (refusal.status, refusal.headers["server"]) == (408, "second")
        with Peer.dial(server.addresses[0]) as peer:
            peer.write(b"GET / HTTP/1.1\r\n")
            assert peer.quiet(0.2)


def test_a_proxy_header_is_required_only_by_its_listener(backend: Backend) -> None:
    class Peers(Recorder):
        def on_upgrade(self, request: Request) -> None:
            self.record("peer", request.peer)

    handler = Peers()
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n"
    with two(backend, handler, proxy_protocol_from=("127.0.0.0/8",)) as server:
        with Peer.dial(server.addresses[1]) as peer:
            peer.write(header + upgrade_request())
            assert peer.read_response().status == 101
        assert handler.wait_for("peer")[0][1] == ("192.0.2.1", 1234)
        assert http(server.addresses[0], header + upgrade_request()).status == 400


def test_deadlines_are_those_of_the_connection(backend: Backend) -> None:
    with (
        two(backend, Silent(), idle_seconds_max=0.1) as server,
        Peer.connect(server.addresses[0]) as patient,
        Peer.connect(server.addresses[1]) as peer,
    ):
        assert peer.read_close() == 1001
        assert patient.quiet(0.2)


def test_pings_are_those_of_the_connection(backend: Backend) -> None:
    with (
        two(backend, Silent(), ping_interval_seconds=0.05, ping_timeout_seconds=None) as server,
        Peer.connect(server.addresses[0]) as unpinged,
        Peer.connect(server.addresses[1]) as pinged,
    ):
        assert [frame.opcode for frame in pinged.read_frames(2)] == [PING, PING]
        assert unpinged.quiet(0.1)


def test_a_full_backlog_is_dealt_with_as_the_connection_s_options_say(reactor: Reactor) -> None:
    results: list[object] = []

    class Sending(Handler):
        def on_open(self, conn: Connection) -> None:
            for _ in range(2):
                try:
                    results.append(conn.send_binary(bytes(2000)))
                except BacklogFull:
                    results.append(BacklogFull)

    cases: tuple[tuple[Literal["drop", "error", "close"], object], ...]
    cases = (("drop", SendResult.DROPPED), ("error", BacklogFull), ("close", SendResult.DROPPED))
    for on_full, after in cases:
        ours, theirs = tcp_pair()
        options = replace(QUIET, backlog_bytes_max=3000, on_full=on_full)
        reactor.add_session(ours, handler=Sending(), options=options)
        assert results == [SendResult.SENT, after]
        results.clear()
        with Peer(theirs) as peer:
            for _ in range(2):
                reactor.run_once(0.01)
            assert peer.read_frame() == Frame(BINARY, bytes(2000))
            if on_full == "close":
                assert peer.read_close() == 1008


@pytest.mark.parametrize("nodelay", [True, False])
def test_tcp_nodelay_is_that_of_the_adopted_session(reactor: Reactor, nodelay: bool) -> None:  # noqa: FBT001
    ours, theirs = tcp_pair()
    with theirs, ours.dup() as duplicate:
        reactor.add_session(ours, options=replace(QUIET, tcp_nodelay=nodelay))
        assert bool(duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay


def test_a_reactor_has_a_bounded_number_of_different_options(reactor: Reactor) -> None:
    """Equal ones count once, and handlers do not count."""
    pairs = [tcp_pair() for _ in range(2)]
    for limit in range(1, lib.URS_RULES_MAX):
        reactor._services.get(None, replace(QUIET, message_bytes_max=limit))
    with pytest.raises(LimitReached, match="at most 256 different Options"):
        reactor.add_session(pairs[0][0], options=replace(QUIET, message_bytes_max=1000))
    for ours, theirs in pairs:
        reactor.add_session(ours, handler=Silent(), options=replace(QUIET, message_bytes_max=7))
        with Peer(theirs) as peer:
            peer.send(TEXT, bytes(8))
            for _ in range(3):
                reactor.run_once(0.05)
            assert peer.read_close() == 1009


def test_options_that_differ_only_in_the_handshake_count_once(backend: Backend) -> None:
    with Reactor(Silent(), QUIET, backend=backend) as reactor:
        for number in range(300):
            reactor._services.get(Silent(), replace(QUIET, subprotocols=(f"p{number}",)))
        assert reactor._core.add_rules(replace(QUIET, metrics_path="/metrics"), frames=False, pongs=False) == 0
