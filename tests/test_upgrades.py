"""The opening handshake on the wire: what a handler is asked, what is refused with which status, and no byte lost."""

from __future__ import annotations

import pytest

from servers import EchoRecorder, ReactorThread, Recorder
from uringws import Accept, Connection, Reject, Request
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
def test_what_is_no_upgrade_gets_a_status_and_the_end_of_the_connection(
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
