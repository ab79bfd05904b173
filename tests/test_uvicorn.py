"""`uringws.uvicorn.WebSocketProtocol` over sockets, on each event loop, tested against the promises of ASGI 2.4.

Expectations are from asgiref's specs/www.rst and its extension for denial responses, and from RFC 6455. uvicorn's own
tests are run by peers/test_uvicorn_suite.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Any

import pytest

from asgi_server import App, Event, Live, Receive, Send, loop, loop_factory
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, close_frame, frame, upgrade_request

__all__ = ["loop"]

ACCEPT: Event = {"type": "websocket.accept"}
TIMEOUT = 5.0


async def accept(receive: Receive, send: Send, **more: Any) -> None:
    assert await receive() == {"type": "websocket.connect"}
    await send({**ACCEPT, **more})


async def echo(scope: Event, receive: Receive, send: Send) -> Event:
    """Echo until the disconnect, and return that."""
    await accept(receive, send)
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")})
    return event


async def until_disconnected(scope: Event, receive: Receive, send: Send) -> list[Event]:
    """Accept, and return all events that came."""
    await accept(receive, send)
    events = [await receive()]
    while events[-1]["type"] != "websocket.disconnect":
        events.append(await receive())
    return events


# The opening


def test_the_scope_describes_the_request(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> Event:
        await accept(receive, send)
        return scope

    with Live(app, loop, root_path="/under") as live:
        with live.connect(
            "/a%2Fb%C3%A9?q=%20x", subprotocols=["v2", "v1"], headers=[("X-Two", "1"), ("x-two", "2")]
        ) as peer:
            client = peer.sock.getsockname()[:2]
            scope = live.result()
        server = live.address
    headers = scope.pop("headers")
    assert [value for name, value in headers if name == b"x-two"] == [b"1", b"2"]
    assert (b"host", b"localhost") in headers
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "server": server,
        "client": client,
        "root_path": "/under",
        "path": "/under/a/bé",
        "raw_path": b"/under/a%2Fb%C3%A9",
        "query_string": b"q=%20x",
        "subprotocols": ["v2", "v1"],
        "state": {},
        "extensions": {"websocket.http.response": {}},
    }


def test_accept_gives_subprotocol_and_headers(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await accept(receive, send, subprotocol="v1", headers=[(b"x-room", b"12"), (b"set-cookie", b"a=b")])
        await receive()

    caplog.set_level(logging.INFO, "uvicorn.error")
    with Live(app, loop, headers=[("x-all", "yes")]) as live, live.connect("/x?y=1", subprotocols=["v1"]) as peer:
        headers = peer.response.headers
        host, port = peer.sock.getsockname()[:2]
    assert headers["sec-websocket-protocol"] == "v1"
    assert (headers["x-room"], headers["set-cookie"], headers["x-all"]) == ("12", "a=b", "yes")
    assert headers["server"] == "uvicorn"
    assert headers["date"].endswith(" GMT")
    assert f'{host}:{port} - "WebSocket /x?y=1" [accepted]' in caplog.messages


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"headers": [(b"sec-websocket-protocol", b"v1")]}, "subprotocol"),
        ({"headers": [(b"upgrade", b"h2c")]}, "the server's to write"),
        ({"headers": [(b"x", b"1\r\nSet-Cookie: a=b")]}, "control character"),
        ({"headers": [(b"x y", b"1")]}, "not a token"),
        ({"subprotocol": "v1\r\nX: y"}, "not a token"),
    ],
)
def test_an_accept_that_would_break_the_answer_is_refused(more: Event, says: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await accept(receive, send, **more)

    with Live(app) as live, Peer.dial(live.address) as peer:
        peer.write(upgrade_request(subprotocols=["v1"]))
        assert peer.read_response().status == 500
        peer.read_eof()
        with pytest.raises(RuntimeError, match=says):
            live.result()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"Version: 13", b"Version: 8"), 426),
        ((b"Key: dGhlIHNhbXBsZSBub25jZQ==", b"Key: short"), 400),
        ((b"Host: localhost\r\n", b""), 400),
        ((b"GET ", b"POST "), 405),
    ],
)
def test_a_request_that_cannot_be_upgraded_never_reaches_the_application(
    change: tuple[bytes, bytes], status: int
) -> None:
    with Live(echo) as live, Peer.dial(live.address) as peer:
        peer.write(upgrade_request().replace(*change))
        answer = peer.read_response()
        peer.read_eof()
        assert live.results == []
    assert answer.status == status
    assert answer.headers["server"] == "uvicorn"


def test_an_application_that_ends_before_it_accepts_is_answered_500(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await receive()

    async def failing(scope: Event, receive: Receive, send: Send) -> None:
        raise LookupError

    for each in (app, failing):
        with Live(each, loop) as live, Peer.dial(live.address) as peer:
            peer.write(upgrade_request())
            answer = peer.read_response()
            peer.read_eof()
        assert (answer.status, answer.body) == (500, b"Internal Server Error")


def test_frames_sent_before_the_accept_are_kept(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> list[Event]:
        await asyncio.sleep(0.2)
        return await until_disconnected(scope, receive, send)

    with Live(app, loop) as live, Peer.dial(live.address) as peer:
        peer.write(upgrade_request())
        while not live.results:
            pass
        peer.write(frame(TEXT, b"early"), close_frame(1000))
        assert peer.read_response().status == 101
        assert peer.read_close() == 1000
        peer.read_eof()
        events = live.result()
    assert [event.get("text") for event in events] == ["early", None]


# Refusals


def test_a_close_before_the_accept_is_403(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> Event:
        await receive()
        await send({"type": "websocket.close", "code": 4000})
        return await receive()

    caplog.set_level(logging.INFO, "uvicorn.error")
    with Live(app, loop) as live, Peer.dial(live.address) as peer:
        peer.write(upgrade_request("/no"))
        answer = peer.read_response()
        peer.read_eof()
        assert live.result() == {"type": "websocket.disconnect", "code": 1006}
    assert (answer.status, answer.body, answer.headers["content-length"]) == (403, b"", "0")
    assert any(line.endswith('"WebSocket /no" 403') for line in caplog.messages)


START: Event = {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"because")]}


def body(data: bytes, *, more: bool = False) -> Event:
    return {"type": "websocket.http.response.body", "body": data, "more_body": more}


@pytest.mark.parametrize(
    ("messages", "fields", "payload"),
    [
        ([START, body(b"sorry")], {"content-length": "5"}, b"sorry"),
        ([START, body(b"")], {"content-length": "0"}, b""),
        ([START], {"content-length": "0"}, b""),
        (
            [START, body(b"so", more=True), body(b"rry")],
            {"transfer-encoding": "chunked"},
            b"2\r\nso\r\n3\r\nrry\r\n0\r\n\r\n",
        ),
        ([START, body(b"so", more=True)], {"transfer-encoding": "chunked"}, b"2\r\nso\r\n0\r\n\r\n"),
        ([START, body(b"", more=True), body(b"")], {"transfer-encoding": "chunked"}, b"0\r\n\r\n"),
        (
            [{**START, "headers": [(b"content-length", b"5")]}, body(b"so", more=True), body(b"rry")],
            {"content-length": "5"},
            b"sorry",
        ),
        ([{**START, "status": 204}, body(b"")], {}, b""),
    ],
)
def test_a_denial_is_sent_as_the_application_gave_it(
    messages: list[Event], fields: dict[str, str], payload: bytes
) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            await send(message)

    with Live(app) as live, Peer.dial(live.address) as peer:
        peer.write(upgrade_request())
        answer = peer.read_response()
        rest = answer.body + b"".join(iter(lambda: peer.sock.recv(65536), b""))
        rest = answer.body + bytes(peer._unread) + rest[len(answer.body) :]
    assert answer.status == messages[0]["status"]
    framing = {name: answer.headers.get(name) for name in ("content-length", "transfer-encoding")}
    assert {name: value for name, value in framing.items() if value is not None} == fields
    assert answer.headers["connection"] == "close"
    assert "date" in answer.headers
    assert rest == payload


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({**START, "status": 700}, "Invalid HTTP status code '700'"),
        ({**START, "status": 101}, "Invalid HTTP status code '101'"),
        ({**START, "headers": [(b"x", b"1\r\n2")]}, "control character"),
        ({"type": "websocket.send", "text": "x"}, "Expected ASGI message"),
        (body(b"x"), "Expected ASGI message"),
    ],
)
def test_a_wrong_answer_raises_and_is_500(message: Event, says: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await send(message)

    with Live(app) as live, Peer.dial(live.address) as peer:
        peer.write(upgrade_request())
        assert peer.read_response().status == 500
        with pytest.raises(RuntimeError, match=says):
            live.result()


def test_the_application_learns_that_a_peer_left_in_the_middle_of_a_denial(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> tuple[Event, str]:
        await receive()
        await send(START)
        await send(body(b"a", more=True))
        disconnect = await receive()
        try:
            await send(body(b"b"))
        except OSError as error:
            return disconnect, type(error).__name__
        return disconnect, "nothing"

    with Live(app, loop) as live:
        with Peer.dial(live.address) as peer:
            peer.write(upgrade_request())
            assert peer.read_response().status == 401
        disconnect, raised = live.result()
    assert disconnect["code"] == 1006
    assert raised == "ClientDisconnected"


# Messages


def test_messages_arrive_whole_and_are_echoed(loop: str) -> None:
    with Live(echo, loop) as live, live.connect() as peer:
        for size in (0, 1, 125, 126, 65_535, 65_536, 300_000):
            peer.send(TEXT, b"t" * size)
            peer.send(BINARY, b"\xff" * size)
            answers = peer.read_frames(2)
            assert [(answer.opcode, answer.payload) for answer in answers] == [
                (TEXT, b"t" * size),
                (BINARY, b"\xff" * size),
            ]
        peer.write(frame(TEXT, b"a", fin=False), frame(PING, b"?"), frame(CONTINUATION, b"b"))
        assert [(answer.opcode, answer.payload) for answer in peer.read_frames(2)] == [(PONG, b"?"), (TEXT, b"ab")]
        assert peer.shake_hands(4000, "bye") == 4000
        assert live.result() == {"type": "websocket.disconnect", "code": 4000, "reason": "bye"}


def test_pipelined_messages_come_in_order(loop: str) -> None:
    with Live(echo, loop) as live, live.connect() as peer:
        texts = [b"%d" % number for number in range(2000)]
        peer.write(*(frame(TEXT, text) for text in texts))
        assert [answer.payload for answer in peer.read_frames(len(texts))] == texts


@pytest.mark.parametrize("message", [{}, {"text": None, "bytes": None}, {"text": "a", "bytes": b"b"}])
def test_a_message_has_exactly_one_of_text_and_bytes(message: Event) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        with pytest.raises(RuntimeError, match="exactly one"):
            await send({"type": "websocket.send", **message})
        await send({"type": "websocket.send", "text": "go on"})

    with Live(app) as live, live.connect() as peer:
        assert peer.read_frame().payload == b"go on"
        live.result()


@pytest.mark.parametrize("wrong", [{"text": b"bytes"}, {"text": 1}, {"bytes": "text"}, {"bytes": 1}])
def test_a_payload_of_the_wrong_type_raises(wrong: Event) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        with pytest.raises(TypeError):
            await send({"type": "websocket.send", **wrong})
        await send({"type": "websocket.send", "text": "go on"})

    with Live(app) as live, live.connect() as peer:
        assert peer.read_frame().payload == b"go on"
        live.result()


def test_a_cancelled_receive_loses_nothing(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> list[str]:
        await accept(receive, send)
        texts: list[str] = []
        while True:
            waiting = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if not waiting.done():
                waiting.cancel()
            try:
                event = await waiting
            except asyncio.CancelledError:
                continue
            if event["type"] != "websocket.receive":
                return texts
            texts.append(event["text"])

    with Live(app, loop) as live, live.connect() as peer:
        texts = [b"%d" % number for number in range(200)]
        for text in texts:
            peer.send(TEXT, text)
        assert peer.shake_hands() == 1000
        assert [text.encode() for text in live.result()] == texts


def test_two_receives_at_a_time_get_one_event_each(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> tuple[Event, Event]:
        await accept(receive, send)
        both = asyncio.gather(receive(), receive())
        await asyncio.sleep(0)
        await send({"type": "websocket.send", "text": "ready"})
        return await both

    with Live(app, loop) as live, live.connect() as peer:
        assert peer.read_frame().payload == b"ready"
        peer.write(frame(TEXT, b"a"), frame(TEXT, b"b"))
        assert [event["text"] for event in live.result()] == ["a", "b"]


@pytest.mark.parametrize("violation", [frame(TEXT, b"\xff"), frame(BINARY, b"x" * 1001), frame(TEXT, b"a", key=None)])
def test_the_application_gets_the_code_of_a_violation(loop: str, violation: bytes) -> None:
    with Live(until_disconnected, loop, ws_max_size=1000) as live, live.connect() as peer:
        peer.write(violation, b"x" * 100_000)
        code = peer.read_close()
        peer.sock.shutdown(socket.SHUT_WR)
        (event,) = live.result()
    assert code in (1002, 1007, 1009)
    assert event["code"] == code
    assert event["reason"]


# The end


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        ({}, b"\x03\xe8"),
        ({"code": 4001, "reason": "bye"}, b"\x0f\xa1bye"),
        ({"code": 1001, "reason": None}, b"\x03\xe9"),
    ],
)
def test_the_application_closes(loop: str, message: Event, payload: bytes) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> Event:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": "last"})
        await send({"type": "websocket.close", **message})
        with pytest.raises(RuntimeError, match="after sending"):
            await send({"type": "websocket.send", "text": "late"})
        return await receive()

    with Live(app, loop) as live, live.connect() as peer:
        assert peer.read_frame().payload == b"last"
        closed = peer.read_frame()
        assert (closed.opcode, closed.payload) == (CLOSE, payload)
        peer.write(frame(TEXT, b"crossing"), close_frame(1000))
        peer.read_eof()
        code, reason = message.get("code", 1000), message.get("reason") or ""
        assert live.result() == {"type": "websocket.disconnect", "code": code, "reason": reason}


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (1006, "x"), (1000, "x" * 124), (99, "")])
def test_a_close_that_cannot_be_sent_raises(code: int, reason: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        with pytest.raises(ValueError, match=r"close (code|reason)"):
            await send({"type": "websocket.close", "code": code, "reason": reason})
        await send({"type": "websocket.close"})

    with Live(app) as live, live.connect() as peer:
        assert peer.read_close() == 1000
        live.result()


def test_a_peer_that_does_not_answer_a_close_is_cut(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close"})

    live = Live(app, loop)
    live.close_timeout = 0.1
    with live, live.connect() as peer:
        assert peer.read_close() == 1000
        peer.read_eof()


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (lambda peer: peer.shake_hands(None), 1005),
        (lambda peer: peer.shake_hands(1001), 1001),
        (lambda peer: peer.sock.shutdown(socket.SHUT_WR), 1006),
        (lambda peer: peer.reset(), 1006),
    ],
)
def test_the_disconnect_says_how_the_peer_left(loop: str, leave: Any, code: int) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> tuple[Event, Event]:
        await accept(receive, send)
        disconnect = await receive()
        late: list[Event] = [{"type": "websocket.send", "text": "late"}, {"type": "websocket.close"}]
        for message in late:
            with pytest.raises(OSError, match="left"):
                await send(message)
        return disconnect, await receive()

    with Live(app, loop) as live, live.connect() as peer:
        leave(peer)
        first, again = live.result()
    assert first["type"] == "websocket.disconnect"
    assert first["code"] == code
    assert again == first


def test_a_close_that_crosses_the_peers_raises_nothing(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await asyncio.sleep(0.2)
        await send({"type": "websocket.close"})

    with Live(app, loop) as live, live.connect() as peer:
        assert peer.shake_hands(1001) == 1001
        live.result()


def test_an_application_that_ends_without_a_close_ends_the_connection(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "bytes": b"x" * 1_000_000})

    async def failing(scope: Event, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        raise LookupError

    for each in (app, failing):
        with Live(each, loop) as live, live.connect() as peer:
            peer.write(frame(TEXT, b"unread"))
            peer.sock.recv(1, socket.MSG_PEEK)
            time.sleep(0.05)  # the application has ended by now
            peer.write(frame(TEXT, b"unread, too"))
            assert len(peer.read_frame().payload) == 1_000_000
            peer.read_eof()


# Backpressure


def test_send_waits_for_a_peer_that_does_not_read(loop: str) -> None:
    sent = 0

    async def app(scope: Event, receive: Receive, send: Send) -> None:
        nonlocal sent
        await accept(receive, send)
        for _ in range(200):
            await send({"type": "websocket.send", "bytes": bytes(100_000)})
            sent += 1

    with Live(app, loop) as live, live.connect() as peer:
        before = -1
        while before != sent or sent == 0:
            before = sent
            time.sleep(0.2)
        assert sent < 150
        assert all(len(answer.payload) == 100_000 for answer in peer.read_frames(200))
        live.result()


async def send_for_ever(send: Send) -> None:
    while True:
        await send({"type": "websocket.send", "bytes": bytes(1_000_000)})


def test_a_send_that_waits_raises_when_the_peer_has_left(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        with pytest.raises(OSError, match="left"):
            await send_for_ever(send)

    with Live(app, loop) as live:
        with live.connect() as peer:
            peer.read_exactly(1000)
        live.result()


def test_reading_stops_while_the_application_takes_nothing(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> int:
        await accept(receive, send)
        while not all_sent:
            await asyncio.sleep(0.01)
        count = 0
        while (await receive())["type"] == "websocket.receive":
            count += 1
        return count

    all_sent: list[bool] = []
    message = memoryview(frame(BINARY, bytes(100_000)) * 1000)
    with Live(app, loop) as live, live.connect() as peer:
        peer.sock.settimeout(0.5)
        given = 0
        try:
            while given < len(message):
                given += peer.sock.send(message[given : given + 100_000])
        except TimeoutError:
            pass
        assert given < len(message) / 2
        all_sent.append(True)
        peer.sock.settimeout(TIMEOUT)
        peer.sock.shutdown(socket.SHUT_WR)
        assert live.result() == given * 1000 // len(message)


# Keepalive


def test_pings_are_sent_and_a_silent_peer_is_closed_with_1011(loop: str) -> None:
    with Live(until_disconnected, loop, ws_ping_interval=0.05, ws_ping_timeout=0.3) as live, live.connect() as peer:
        for _ in range(3):
            ping = peer.read_frame()
            assert ping.opcode == PING
            peer.send(PONG, ping.payload)
        while (answer := peer.read_frame()).opcode == PING:
            pass
        assert answer.close_code == 1011
        peer.read_eof()
        assert live.result() == [{"type": "websocket.disconnect", "code": 1011, "reason": "keepalive ping timeout"}]


def test_without_a_timeout_pings_are_only_sent(loop: str) -> None:
    with Live(until_disconnected, loop, ws_ping_interval=0.02, ws_ping_timeout=None) as live, live.connect() as peer:
        assert [ping.opcode for ping in peer.read_frames(5)] == [PING] * 5


# Shutdown


def test_shutdown_closes_with_1012_and_waits_for_the_answer(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> Event:
        await accept(receive, send)
        disconnect = await receive()
        with pytest.raises(OSError, match="left"):
            await send({"type": "websocket.send", "text": "late"})
        return disconnect

    with Live(app, loop) as live, live.connect() as peer:
        live.shut_down()
        assert peer.read_close() == 1012
        assert live.result() == {"type": "websocket.disconnect", "code": 1012}
        assert peer.quiet(0.1)  # the server waits for the close frame
        peer.write(close_frame(1012))
        peer.read_eof()


def test_shutdown_before_the_accept_is_answered_500(loop: str) -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> Event:
        await receive()
        disconnect = await receive()
        with pytest.raises(OSError, match="left"):
            await send(ACCEPT)
        return disconnect

    with Live(app, loop) as live, Peer.dial(live.address) as peer:
        peer.write(upgrade_request())
        while not live.results:
            pass
        live.shut_down()
        assert peer.read_response().status == 500
        peer.read_eof()
        assert live.result()["code"] == 1006


def test_shutdown_cuts_a_peer_that_does_not_answer(loop: str) -> None:
    live = Live(until_disconnected, loop)
    live.close_timeout = 0.2
    with live, live.connect() as peer:
        live.shut_down()
        assert peer.read_close() == 1012
        peer.read_eof()


def test_nothing_is_left_behind(loop: str) -> None:
    with Live(echo, loop) as live:
        for _ in range(5):
            with live.connect() as peer:
                peer.send(TEXT, b"x")
                assert peer.read_frame().payload == b"x"
                assert peer.shake_hands() == 1000
            live.result()
        state = live.server.server_state
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), live.loop).result(TIMEOUT)
        assert state.connections == set()
        assert state.tasks == set()


def test_the_state_of_the_lifespan_is_copied_for_each_connection() -> None:
    async def app(scope: Event, receive: Receive, send: Send) -> dict[str, Any]:
        scope["state"]["own"] = True
        await accept(receive, send)
        return dict(scope["state"])

    with Live(app) as live:
        for _ in range(2):
            with live.connect():
                assert live.result() == {"own": True}


def test_each_loop_has_the_class_of_its_name(loop: str) -> None:
    made = loop_factory(loop)()
    try:
        assert loop in type(made).__module__
    finally:
        made.close()


def test_the_application_is_called_as_asgi_says() -> None:
    """For type checkers: the application of these tests has the type that uvicorn takes."""
    app: App = echo
    assert asyncio.iscoroutinefunction(app)


def test_a_plain_socket_moves_onto_the_ring_on_our_loop(loop: str) -> None:
    with Live(echo, loop) as live, live.connect() as peer:
        peer.send(TEXT, b"x")
        assert peer.read_frame().payload == b"x"
        (protocol,) = live.protocols
        assert protocol.mode == ("ring" if loop == "uringws" else "transport")
