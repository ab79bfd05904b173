"""The opening handshake on the wire: the handler's request, refusals and their status, and no byte lost."""

from __future__ import annotations

from contextlib import suppress

import pytest

import wire
from servers import EchoRecorder, ReactorThread, Recorder, wait_until
from uringws import Accept, Connection, Options, Reject, Request, Response
from uringws.backend import Backend
from wire import BINARY, TEXT, Frame, Peer, frame, http, upgrade_request


def test_on_upgrade_sees_the_request_and_its_answer_reaches_both_sides(backend: Backend) -> None:
    class Chooser(Recorder):
        def on_upgrade(self, request: Request) -> Accept:
            self.record("upgrade", request.path, request.query, request.headers["x-token"], request.peer)
            return Accept(subprotocol=request.subprotocols[-1], headers=[("X-Served-By", "here")], data={"n": 1})

        def on_open(self, conn: Connection) -> None:
            self.record("opened", conn.data, conn.peer)

    recorder = Chooser()
    with (
        ReactorThread(recorder, backend=backend) as server,
        Peer.connect(
            server.address, "/room?name=x", subprotocols=["v1", "v2"], headers=[("X-Token", "secret")]
        ) as peer,
    ):
        assert peer.response.headers["sec-websocket-protocol"] == "v2"
        assert peer.response.headers["x-served-by"] == "here"
        here = peer.sock.getsockname()
        recorder.wait_for("opened")
    assert recorder.events[:2] == [
        ("upgrade", "/room", "name=x", "secret", here),
        ("opened", {"n": 1}, here),
    ]


def test_on_upgrade_may_refuse(backend: Backend) -> None:
    class Refuser(Recorder):
        def on_upgrade(self, request: Request) -> Reject:
            return Reject(401, headers=[("WWW-Authenticate", "Bearer")], body=b"who are you?")

    recorder = Refuser()
    with ReactorThread(recorder, backend=backend) as server:
        response = http(server.address, upgrade_request())
    assert (response.status, response.body) == (401, b"who are you?")
    assert response.headers["www-authenticate"] == "Bearer"
    assert recorder.events == []


HEADERS_OF_PROXIES = {
    b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 80\r\n": "v1",
    b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\xcb\0q\x07\xc0\0\x02\x01\x12\x67\0\x50": "v2",
}


def replace(old: bytes, new: bytes) -> bytes:
    request = upgrade_request()
    assert old in request
    return request.replace(old, new)


REFUSED = {
    "plain-get": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 426),
    "version-8": (replace(b"Version: 13", b"Version: 8"), 426),
    "post": (replace(b"GET /", b"POST /"), 405),
    "short-key": (replace(b"b25jZQ==", b"b24="), 400),
    "no-key": (replace(b"Sec-WebSocket-Key", b"X-Key"), 400),
    "no-host": (replace(b"Host: localhost\r\n", b""), 400),
    "no-connection": (replace(b"Connection: Upgrade\r\n", b""), 400),
    "not-http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client\r\n\r\n", 400),
    "head-too-large": (replace(b"Host", b"X-Long: " + b"x" * 20_000 + b"\r\nHost"), 431),
    "too-many-fields": (replace(b"Host", b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"Host"), 431),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_without_upgrade_gets_a_status_and_the_end_of_the_connection(
    echo: ReactorThread, recorder: EchoRecorder, name: str
) -> None:
    request, status = REFUSED[name]
    response = http(echo.address, request)
    assert response.status == status
    if status == 426:
        assert response.headers["sec-websocket-version"] == "13"
    assert recorder.events == []


def test_a_request_may_arrive_byte_by_byte(echo: ReactorThread) -> None:
    with Peer.dial(echo.address) as peer:
        for byte in upgrade_request():
            peer.write(bytes([byte]))
        assert peer.read_response().status == 101
        peer.send(TEXT, b"hello")
        assert peer.read_frame() == Frame(TEXT, b"hello")


@pytest.mark.parametrize("cut", ["whole", "cut"])
@pytest.mark.parametrize("before", [b"", *HEADERS_OF_PROXIES], ids=["alone", *HEADERS_OF_PROXIES.values()])
def test_one_empty_line_before_the_request_is_ignored(backend: Backend, before: bytes, cut: str) -> None:
    options = Options(proxy_protocol_from=["127.0.0.1"] if before else [])
    request = before + b"\r\n" + upgrade_request()
    with (
        ReactorThread(EchoRecorder(), backend=backend, options=options) as server,
        Peer.dial(server.address) as peer,
    ):
        for part in [request] if cut == "whole" else [request[at : at + 1] for at in range(len(request))]:
            peer.write(part)
        assert peer.read_response().status == 101
        assert http(server.address, before + b"\r\n\r\n" + upgrade_request()).status == 400


GARBAGE = {
    "SSH": b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    "SSH without a line end": b"SSH-2.0-OpenSSH_9.2p1",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SMTP": b"EHLO mail.example\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "Redis in one line": b"PING\r\n",
    "memcached": b"stats\r\n",
    "NUL": b"\0",
    "HTTP/0.9": b"GET /\r\n",
    "RTSP": b"OPTIONS * RTSP/1.0\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\n",
    "a method without end": b"GETGETGETGETGETGETGETGETGETGETGET",
    "a head of bare LF": b"GET / HTTP/1.1\nHost: a\nUpgrade: websocket\n\n",
    "a bare LF after a field": b"GET / HTTP/1.1\r\nHost: a\n",
    "a bare LF for the empty line": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "a bare LF before": b"\n",
    "a bare CR before": b"\rG",
    "two empty lines": b"\r\n\r\n",
    "an untrusted PROXY header": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
}
"""Bytes that cannot begin a request. If the server waited for the rest, only the deadline would end it."""
PATIENT = Options(handshake_seconds_max=None)


@pytest.mark.parametrize("name", GARBAGE)
def test_bytes_that_cannot_begin_a_request_are_refused_at_once(backend: Backend, name: str) -> None:
    recorder = EchoRecorder()
    with ReactorThread(recorder, backend=backend, options=PATIENT) as server:
        assert http(server.address, GARBAGE[name]).status == 400
        with Peer.dial(server.address) as peer:
            for byte in GARBAGE[name]:
                with suppress(ConnectionError):  # it may have been refused already
                    peer.write(bytes([byte]))
            with suppress(ConnectionResetError):
                assert peer.read_response().status == 400
        wait_until(lambda: server.ask(server.reactor.stats).sessions == 0)
        assert server.ask(server.reactor.stats).rejected == {"bad_request": 2}
    assert recorder.events == []


@pytest.mark.parametrize("header", HEADERS_OF_PROXIES, ids=HEADERS_OF_PROXIES.values())
@pytest.mark.parametrize("name", ["SSH", "Redis in one line", "a head of bare LF", "a bare CR before"])
def test_bytes_that_cannot_begin_a_request_are_refused_after_a_proxy_header_too(
    backend: Backend, header: bytes, name: str
) -> None:
    options = Options(handshake_seconds_max=None, proxy_protocol_from=["127.0.0.1"])
    with ReactorThread(EchoRecorder(), backend=backend, options=options) as server:
        assert http(server.address, header + GARBAGE[name]).status == 400


@pytest.mark.parametrize("start", ["VERSION-CONTROL / HTTP/1.1", "UPDATEREDIRECTREF / HTTP/1.1", "PRI * HTTP/2.0"])
def test_a_strange_method_is_waited_for_and_named_in_the_answer(echo: ReactorThread, start: str) -> None:
    with Peer.dial(echo.address) as peer:
        for byte in f"{start}\r\nHost: a\r\n\r\n".encode():
            peer.write(bytes([byte]))
        assert peer.read_response().status == (505 if "2.0" in start else 405)


def test_bytes_after_the_request_are_the_first_frames(echo: ReactorThread) -> None:
    frames = frame(TEXT, b"eager") + frame(BINARY, b"x" * 40_000) + frame(TEXT, b"last")
    with Peer.connect(echo.address, then=frames) as peer:
        assert peer.read_frames(3) == [Frame(TEXT, b"eager"), Frame(BINARY, b"x" * 40_000), Frame(TEXT, b"last")]


def test_a_request_cut_in_the_middle_of_the_first_frame(echo: ReactorThread) -> None:
    first = frame(TEXT, b"cut here")
    for at in range(1, len(first)):
        with Peer.connect(echo.address, then=first[:at]) as peer:
            peer.write(first[at:])
            assert peer.read_frame() == Frame(TEXT, b"cut here")


# Options and plain HTTP


def test_the_first_subprotocol_that_both_speak_is_taken(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(subprotocols=["v3", "v2"])
    with ReactorThread(recorder, backend=backend, options=options) as server:
        with Peer.connect(server.address, subprotocols=["v1", "v2", "v3"]) as peer:
            assert peer.response.headers["sec-websocket-protocol"] == "v3"
        with Peer.connect(server.address, subprotocols=["v1"]) as peer:
            assert "sec-websocket-protocol" not in peer.response.headers


def test_pages_of_other_origins_are_refused(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(origins=["https://example.org"])
    with ReactorThread(recorder, backend=backend, options=options) as server:
        with Peer.connect(server.address, headers=[("Origin", "https://example.org")]) as peer:
            assert peer.shake_hands() == 1000
        foreign = upgrade_request(headers=[("Origin", "https://example.com")])
        assert http(server.address, foreign).status == 403
        assert http(server.address, upgrade_request()).status == 403
        assert server.ask(server.reactor.stats).rejected == {"origin": 2}


def test_compression_that_is_offered_is_declined(echo: ReactorThread) -> None:
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]
    with Peer.connect(echo.address, headers=offer) as peer:
        assert "sec-websocket-extensions" not in peer.response.headers
        peer.write(frame(TEXT, b"compressed, it claims", rsv=4))
        assert peer.read_close() == 1002


class Site(EchoRecorder):
    def on_request(self, request: Request) -> Response | None:
        self.record("request", request.method, request.path)
        if request.path == "/broken":
            raise RuntimeError("broken on_request")
        return Response(200, [("X-Kind", "health")], "fine") if request.path == "/health" else None


def test_plain_requests_are_answered_on_the_same_port(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    def get(path: str, method: str = "GET") -> wire.Response:
        return http(server.address, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    site = Site()
    options = Options(metrics_path="/metrics", server_header="tests")
    with ReactorThread(site, backend=backend, options=options) as server:
        health = get("/health")
        assert (health.status, health.body) == (200, b"fine")
        assert health.headers["x-kind"] == "health"
        assert health.headers["server"] == "tests"
        assert health.headers["connection"] == "close"
        assert get("/else").status == 426
        assert get("/broken").status == 500
        metrics = get("/metrics")
        assert metrics.status == 200
        assert metrics.headers["content-type"].startswith("text/plain")
        assert b"uringws_" in metrics.body
    assert "broken on_request" in caplog.text
    assert site.of("request") == [("request", "GET", path) for path in ("/health", "/else", "/broken")]


HAPROXY_CHECK = b"OPTIONS / HTTP/1.0\r\n\r\n"
"""The request of HAProxy 2.6 for `option httpchk`; the server is up if the status is 2xx or 3xx."""


def test_a_health_check_by_options_is_answered(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend, options=Options(metrics_path="/")) as server:
        for check in (HAPROXY_CHECK, b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"):
            response = http(server.address, check)
            assert (response.status, response.body) == (204, b"")
            assert response.headers["allow"] == "GET, HEAD, OPTIONS"
            assert "content-length" not in response.headers
        assert server.ask(server.reactor.stats).rejected == {}


def test_the_handler_may_answer_options_itself(backend: Backend) -> None:
    class Ill(EchoRecorder):
        def on_request(self, request: Request) -> Response | None:
            self.record("request", request.method, request.path)
            return Response(503) if request.path == "/health" else None

    ill = Ill()
    with ReactorThread(ill, backend=backend) as server:
        assert http(server.address, b"OPTIONS /health HTTP/1.0\r\n\r\n").status == 503
        assert http(server.address, HAPROXY_CHECK).status == 204
    assert ill.of("request") == [("request", "OPTIONS", "/health"), ("request", "OPTIONS", "/")]


def test_head_is_answered_with_the_length_and_no_body(backend: Backend) -> None:
    with ReactorThread(Site(), backend=backend) as server, Peer.dial(server.address) as peer:
        peer.write(b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = b""
        while chunk := peer.sock.recv(4096):
            head += chunk
    assert b"Content-Length: 4\r\n" in head
    assert head.endswith(b"\r\n\r\n")


def test_a_trusted_proxy_names_the_peer(backend: Backend) -> None:
    class Name(EchoRecorder):
        def on_upgrade(self, request: Request) -> None:
            self.record("upgrade", request.peer)

        def on_open(self, conn: Connection) -> None:
            self.record("peer", conn.peer)

    recorder = Name()
    options = Options(proxy_protocol_from=["127.0.0.1"])
    with ReactorThread(recorder, backend=backend, options=options) as server:
        with Peer.dial(server.address) as peer:
            peer.write(b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 80\r\n", upgrade_request(), frame(TEXT, b"via"))
            assert peer.read_response().status == 101
            assert peer.read_frame() == Frame(TEXT, b"via")
        assert http(server.address, upgrade_request()).status == 400
    named = ("203.0.113.7", 4711)
    assert recorder.events[:2] == [("upgrade", named), ("peer", named)]
