"""`uringws.asyncio.serve`: the opening handshake, the server, misuse, on every event loop.

Expectations come from the documentation of `websockets` (reference/asyncio/server).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coroutines import (
    Wire,
    address_of,
    ask,
    each_loop,
    echo,
    first_connection,
    listen,
    run_on,
    until,
)
from uringws.asyncio import (
    ConnectionClosedOK,
    NegotiationError,
    Server,
    ServerConnection,
    basic_auth,
    broadcast,
    serve,
    unix_serve,
)
from wire import BINARY, CLOSE, PING, TEXT, Peer, frame, upgrade_request

# ---- the opening handshake


@each_loop
def test_request_and_response_can_be_read(loop: str) -> None:
    async def main() -> None:
        server = await listen(subprotocols=["a", "b"])
        async with server, await Wire.connect(server, "/path?x=1", subprotocols=["b", "c"]) as wire:
            connection = await first_connection(server)
            assert connection.request is not None
            assert connection.response is not None
            assert (connection.request.path, connection.request.method) == ("/path?x=1", "GET")
            assert connection.request.headers["Sec-WebSocket-Protocol"] == "b, c"
            assert connection.request is connection.request
            assert connection.response.status_code == 101
            assert connection.response.headers["Server"].startswith("Python/")
            assert connection.subprotocol == wire.peer.response.headers["sec-websocket-protocol"] == "b"
            wire.leave()

    run_on(loop, main)


@each_loop
def test_process_request_sees_any_method_and_may_answer_it(loop: str) -> None:
    async def main() -> None:
        async def process_request(connection: ServerConnection, request: Any) -> Any:
            await asyncio.sleep(0)
            return connection.respond(200, f"{request.method} {request.protocol}\n")

        async with listen(process_request=process_request) as server:
            assert (await ask(server, b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n"))[2] == b"POST HTTP/1.0\n"
            async with await Wire.dial(server) as wire:
                wire.write(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
                head = await wire.do(lambda: b"".join(iter(lambda: wire.peer.sock.recv(65536), b"")))
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert head.endswith(b"\r\n\r\n")  # no body

    run_on(loop, main)


@each_loop
def test_the_request_is_checked_after_process_request_has_changed_it(loop: str) -> None:
    async def main() -> None:
        def process_request(_: ServerConnection, request: Any) -> None:
            del request.headers["Sec-WebSocket-Key"]

        async with listen(process_request=process_request) as server:
            status, _, body = await ask(server)
            assert status == 400
            assert b"missing Sec-WebSocket-Key header" in body

    run_on(loop, main)


REFUSED = {
    "method": (upgrade_request().replace(b"GET", b"PUT"), 405),
    "version": (upgrade_request().replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
    "no-upgrade": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426),
    "connection": (upgrade_request().replace(b"Connection: Upgrade", b"Connection: close"), 426),
    "key": (upgrade_request(key="short"), 400),
    "protocol-version": (upgrade_request().replace(b"Version: 13", b"Version: 8"), 400),
    "host": (upgrade_request().replace(b"Host: localhost\r\n", b""), 400),
    "head": (upgrade_request(headers=[("X", "y" * 20_000)]), 431),
    "fields": (upgrade_request(headers=[("X", "y")] * 200), 431),
}


@each_loop
@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_opens_no_websocket_is_refused(loop: str, name: str) -> None:
    request, status = REFUSED[name]

    async def main() -> None:
        async with listen() as server:
            assert (await ask(server, request))[0] == status

    run_on(loop, main)


@each_loop
def test_origins_are_checked(loop: str) -> None:
    async def main() -> None:
        async with listen(origins=["https://a.example", re.compile(r"https://.*\.b\.example")]) as server:
            for origin, status in (("https://a.example", 101), ("https://x.b.example", 101), ("https://c", 403)):
                assert (await ask(server, upgrade_request(headers=[("Origin", origin)])))[0] == status
            assert (await ask(server))[0] == 403

    run_on(loop, main)


@each_loop
def test_subprotocols_are_required_once_there_are_any(loop: str) -> None:
    async def main() -> None:
        async with listen(subprotocols=["a"]) as server:
            assert (await ask(server))[0] == 400
            assert (await ask(server, upgrade_request(subprotocols=["z"])))[0] == 400

        def select(connection: ServerConnection, offered: Any) -> str | None:
            connection.offered = offered  # type: ignore[attr-defined]
            if not offered:
                raise NegotiationError("none offered")
            return None

        async with listen(select_subprotocol=select) as server:
            assert (await ask(server))[0] == 400
            assert (await ask(server, upgrade_request(subprotocols=["z"])))[0] == 101

    run_on(loop, main)


@each_loop
def test_hooks_that_raise_are_answered_500_and_logged(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        def hook(*_: Any) -> None:
            raise LookupError("boom")

        for name in ("process_request", "process_response", "select_subprotocol"):
            async with listen(**{name: hook}) as server:
                assert (await ask(server))[0] == 500

    run_on(loop, main)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "process_request failed",
        "process_response failed",
        "opening handshake failed",
    ]


@each_loop
def test_a_header_that_would_split_the_answer_is_not_sent(loop: str) -> None:
    async def main() -> None:
        def process_response(_: ServerConnection, __: Any, response: Any) -> None:
            response.headers["X"] = "ok"
            response.headers._list.append(("Y", "a\r\nEvil: yes"))

        async with listen(process_response=process_response) as server:
            status, headers, _ = await ask(server)
            assert (status, "evil" in headers) == (500, False)

    run_on(loop, main)


@each_loop
def test_frames_that_follow_the_request_at_once_are_not_lost(loop: str) -> None:
    async def main() -> None:
        async def process_request(_: ServerConnection, __: Any) -> None:
            await asyncio.sleep(0.05)

        for settings in ({}, {"process_request": process_request}):
            server = await listen(echo, **settings)
            async with server, await Wire.connect(server, then=frame(TEXT, b"early")) as wire:
                assert (await wire.frame()).payload == b"early"
                wire.leave()

    run_on(loop, main)


@each_loop
def test_junk_is_not_answered(loop: str) -> None:
    async def main() -> None:
        async with listen() as server:
            for junk in (b"HELO relay.invalid\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"):
                async with await Wire.dial(server) as wire:
                    wire.write(junk)
                    await wire.do(_read_to_end, wire.peer)

    run_on(loop, main)


def _read_to_end(peer: Peer) -> None:
    with contextlib.suppress(ConnectionResetError):  # the peer's bytes were not read
        assert peer.sock.recv(100) == b""


@each_loop
def test_a_silent_client_is_left_after_open_timeout(loop: str) -> None:
    async def main() -> None:
        async with listen(open_timeout=0.1) as server, await Wire.dial(server) as wire:
            await wire.do(_read_to_end, wire.peer)

    run_on(loop, main)


@each_loop
def test_a_hook_is_cancelled_when_its_client_leaves(loop: str) -> None:
    async def main() -> None:
        ends: list[str] = []

        async def process_request(_: ServerConnection, __: Any) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        async with listen(process_request=process_request) as server:
            wire = await Wire.dial(server)
            wire.write(upgrade_request())
            await asyncio.sleep(0.05)
            wire.peer.close()
            await until(lambda: ends)

    run_on(loop, main)


@each_loop
def test_basic_auth_accepts_the_right_password(loop: str) -> None:
    async def main() -> None:
        async with listen(process_request=basic_auth("home", ("user", "secret"))) as server:
            status, headers, _ = await ask(server)
            assert (status, headers["www-authenticate"]) == (401, 'Basic realm="home", charset="UTF-8"')
            for credentials in ("dXNlcjp3cm9uZw==", "b3RoZXI6c2VjcmV0", "%%%", "dXNlcg=="):
                headers_of = [("Authorization", f"Basic {credentials}")]
                assert (await ask(server, upgrade_request(headers=headers_of)))[0] == 401
            right = [("Authorization", "Basic dXNlcjpzZWNyZXQ=")]
            async with await Wire.connect(server, headers=right) as wire:
                assert (await first_connection(server)).username == "user"
                wire.leave()

    run_on(loop, main)


# ---- the server


@each_loop
def test_close_answers_503_closes_with_1001_and_waits_for_handlers(loop: str) -> None:
    async def main() -> None:
        ended: list[Any] = []
        asked = asyncio.Event()

        async def process_request(connection: ServerConnection, request: Any) -> None:
            if request.path == "/slow":
                asked.set()
                await until(lambda: not connection.server.is_serving())

        async def handler(connection: ServerConnection) -> None:
            with pytest.raises(ConnectionClosedOK):
                await connection.recv()
            await asyncio.sleep(0.05)
            ended.append(connection)

        server = await listen(handler, process_request=process_request)
        wire = await Wire.connect(server)
        waiting = asyncio.create_task(ask(server, upgrade_request("/slow")))
        await asked.wait()
        server.close()
        server.close()
        assert not server.is_serving()
        assert (await waiting)[0] == 503
        assert (await wire.frame()).close_code == 1001
        assert not ended
        wire.leave(1001)
        await server.wait_closed()
        assert len(ended) == 1
        assert server.sockets == ()
        wire.peer.close()

    run_on(loop, main)


@each_loop
def test_close_may_leave_connections_open(loop: str) -> None:
    async def main() -> None:
        server = await listen(echo)
        async with await Wire.connect(server) as wire:
            server.close(close_connections=False)
            wire.write(frame(TEXT, b"still here"))
            assert (await wire.frame()).payload == b"still here"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 0.05)
            wire.leave()
            await server.wait_closed()

    run_on(loop, main)


@each_loop
def test_a_cancelled_server_leaves_no_socket_task_or_descriptor(loop: str) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def main() -> None:
        async with listen(echo) as server, await Wire.connect(server) as wire:  # threads and caches come first
            wire.leave()
        gc.collect()
        before = descriptors()
        server = await listen(echo)
        address = address_of(server)
        serving = asyncio.create_task(server.serve_forever())
        wires = [await Wire.connect(server) for _ in range(5)]
        serving.cancel()
        for wire in wires:
            assert (await wire.frame()).close_code == 1001
            wire.leave(1001)
            await wire.eof()
            wire.peer.close()
        with pytest.raises(asyncio.CancelledError):
            await serving
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(Peer.dial, address)
        await until(lambda: descriptors() <= before)

    run_on(loop, main)


@each_loop
def test_a_cancelled_handler_closes_its_connection(loop: str) -> None:
    async def main() -> None:
        tasks: list[Any] = []

        async def handler(connection: ServerConnection) -> None:
            tasks.append(asyncio.current_task())
            await connection.recv()

        async with listen(handler) as server, await Wire.connect(server) as wire:
            await until(lambda: tasks)
            tasks[0].cancel()
            assert (await wire.frame()).close_code == 1011
            wire.leave(1011)
            await wire.eof()

    run_on(loop, main)


@each_loop
def test_connections_are_hashable_take_attributes_and_are_let_go(loop: str) -> None:
    async def main() -> None:
        known: set[ServerConnection] = set()
        references: list[Any] = []

        async def handler(connection: ServerConnection) -> None:
            known.add(connection)
            connection.user = "me"  # type: ignore[attr-defined]
            references.append(weakref.ref(connection))
            await connection.wait_closed()
            known.discard(connection)

        async with listen(handler) as server:
            async with await Wire.connect(server) as wire:
                await until(lambda: known)
                assert known == server.connections
                assert connection_of(known).user == "me"  # type: ignore[attr-defined]
                assert len({connection_of(known).id}) == 1
                await wire.do(wire.peer.shake_hands)
            await until(lambda: not known)
            await asyncio.sleep(0.05)
            gc.collect()
            assert references[0]() is None
            assert server.connections == set()

    run_on(loop, main)


def connection_of(connections: set[ServerConnection]) -> ServerConnection:
    (connection,) = connections
    return connection


@each_loop
def test_a_connection_has_its_addresses_and_its_mode(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            assert connection.remote_address[:2] == wire.peer.sock.getsockname()
            assert connection.local_address[:2] == wire.peer.sock.getpeername()
            assert connection.transport.get_extra_info("peername")[:2] == wire.peer.sock.getsockname()
            assert connection.mode in {"ring", "transport"}
            assert connection.protocol.state is connection.state
            assert connection.protocol.extensions == []
            assert connection.server is server
            assert connection.mode in repr(connection)
            wire.leave()

    run_on(loop, main)


@each_loop
def test_unix_sockets_are_served(loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        async with unix_serve(echo, path) as server, await Wire.connect(server) as wire:
            wire.write(frame(TEXT, b"local"))
            assert (await wire.frame()).payload == b"local"
            wire.leave()

    run_on(loop, main)


@each_loop
def test_a_subclass_may_be_made_for_each_connection(loop: str) -> None:
    class Mine(ServerConnection):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.mine = True

    async def main() -> None:
        async with listen(create_connection=Mine) as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)
            assert isinstance(connection, Mine)
            assert connection.mine
            wire.leave()

    run_on(loop, main)


@each_loop
def test_two_servers_in_one_loop_have_their_own_limits(loop: str) -> None:
    async def main() -> None:
        small, large = await listen(echo, max_size=10), await listen(echo, max_size=1000)
        async with small, large, await Wire.connect(small) as one, await Wire.connect(large) as two:
            for wire in (one, two):
                wire.write(frame(BINARY, b"x" * 100))
            assert (await one.frame()).close_code == 1009
            assert (await two.frame()).payload == b"x" * 100
            two.leave()

    run_on(loop, main)


@each_loop
def test_broadcast_skips_connections_that_close_or_send_fragments(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def pieces() -> AsyncIterator[str]:
            yield "a"
            await gate.wait()

        async with listen() as server:
            wires = [await Wire.connect(server) for _ in range(3)]
            await until(lambda: len(server.connections) == 3)
            connections = list(server.connections)
            sending = asyncio.create_task(connections[0].send(pieces()))
            closing = asyncio.create_task(connections[1].close())
            await asyncio.sleep(0.02)
            broadcast(connections, b"news")
            with pytest.raises(ExceptionGroup, match="skipped broadcast"):
                broadcast(connections[:2], "news", raise_exceptions=True)
            gate.set()
            await sending
            got = []
            for wire in wires:
                opened = await wire.frame()
                got.append((opened.opcode, opened.payload))
                wire.leave()
            assert sorted(got) == sorted([(TEXT, b"a"), (CLOSE, b"\x03\xe8"), (BINARY, b"news")])
            await closing
            for wire in wires:
                wire.peer.close()
        with pytest.raises(TypeError, match="data must be str or bytes"):
            broadcast([], ["a"])  # type: ignore[arg-type]

    run_on(loop, main)
    assert "skipped broadcast: sending a fragmented message" in caplog.messages


# ---- misuse


def test_serve_outside_of_a_loop_raises_with_the_remedy() -> None:
    with pytest.raises(RuntimeError, match="needs a running event loop"):
        serve(echo, "127.0.0.1", 0)


def test_a_server_awaited_in_another_loop_raises() -> None:
    servers: list[Server] = []

    async def make() -> None:
        servers.append(listen())

    async def wait() -> None:
        with pytest.raises(RuntimeError, match="awaited in another"):
            await servers[0]

    run_on("stock", make)
    run_on("stock", wait)


@each_loop
def test_a_port_in_use_is_an_os_error(loop: str) -> None:
    async def main() -> None:
        async with listen() as server:
            with pytest.raises(OSError, match="address already in use"):
                await serve(echo, *address_of(server))

    run_on(loop, main)


def _plain(_: ServerConnection) -> None: ...


async def _two(_: ServerConnection, path: str) -> None: ...


async def _yields(_: ServerConnection) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (None, "must be a coroutine function"),
        ("name", "must be a coroutine function"),
        (_two, "the request's path is connection.request.path"),
        (_yields, "has a `yield`"),
    ],
)
def test_a_handler_of_the_wrong_shape_is_refused(handler: Any, text: str) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=re.escape(text)):
            listen(handler)

    run_on("stock", main)


def test_a_handler_that_is_not_a_coroutine_function_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with listen(_plain) as server, await Wire.connect(server) as wire:
            assert (await wire.frame()).close_code == 1011
            wire.leave(1011)

    run_on("stock", main)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "must be a coroutine function (async def)" in str(record.exc_info[1])


@each_loop
def test_a_connection_used_from_another_thread_raises(loop: str) -> None:
    async def main() -> None:
        async with listen() as server, await Wire.connect(server) as wire:
            connection = await first_connection(server)

            def elsewhere() -> None:
                asyncio.run(connection.send("a"))

            with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
                await asyncio.to_thread(elsewhere)
            wire.leave()

    run_on(loop, main)


def test_arguments_that_make_no_sense_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="unsupported compression"):
            listen(compression="gzip")
        with pytest.raises(TypeError, match="not a str"):
            listen(subprotocols="chat")
        with pytest.raises(ValueError, match="invalid subprotocol"):
            listen(subprotocols=["a b"])
        with pytest.raises(TypeError):
            await listen(no_such_argument=1)

    run_on("stock", main)


WRONG_SETTINGS: list[tuple[str, object, type[Exception]]] = [
    ("open_timeout", "3", TypeError),
    ("open_timeout", -1, ValueError),
    ("close_timeout", -1, ValueError),
    ("ping_interval", "20", TypeError),
    ("ping_interval", 0, ValueError),
    ("ping_timeout", 0, ValueError),
    ("max_size", "1", TypeError),
    ("max_size", 0, ValueError),
    ("max_size", (1, 2, 3), TypeError),
    ("write_limit", "x", TypeError),
    ("write_limit", None, TypeError),
    ("write_limit", (1, 2), ValueError),
    ("options", 3, TypeError),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG_SETTINGS)
def test_serve_refuses_a_setting_that_no_connection_could_use(
    name: str, value: object, expected: type[Exception]
) -> None:
    async def main() -> None:
        with pytest.raises(expected, match=name):
            listen(**{name: value})

    run_on("stock", main)


@each_loop
def test_settings_at_their_ends_serve(loop: str) -> None:
    async def main() -> None:
        ends: list[dict[str, Any]] = [
            {"ping_interval": 1e-9, "ping_timeout": 1e12},
            {"close_timeout": 0, "open_timeout": 1e6},
            {"write_limit": 0, "max_size": 2**40},
            {"write_limit": (2**40, 2**39), "ping_interval": None},
            {"write_limit": (1024, 1024), "ping_timeout": None},
        ]
        for settings in ends:
            async with listen(echo, **settings) as server, await Wire.connect(server) as wire:
                wire.write(frame(TEXT, b"x"))
                received = await wire.frame()
                while received.opcode == PING:
                    received = await wire.frame()
                assert received.payload == b"x"
                wire.leave()

    run_on(loop, main)
