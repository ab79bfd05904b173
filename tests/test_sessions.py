"""A session from its first call to its last: open and close once each, in order, nothing after, however it ends."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import pytest

from servers import EchoRecorder, ReactorThread, Recorder
from uringws import Accept, CloseCode, Connection, ConnectionClosed, Message, Opcode, Options, Request
from uringws.backend import Backend
from wire import BINARY, CONTINUATION, PING, PONG, TEXT, Frame, Peer, close_frame, frame, http, upgrade_request


def test_open_comes_first_and_close_last(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        peer.write(frame(TEXT, b"one"), frame(BINARY, b"two"), close_frame(1000, "bye"))
        assert peer.read_frames(2) == [Frame(TEXT, b"one"), Frame(BINARY, b"two")]
        assert peer.read_close() == 1000
        peer.read_eof()
    recorder.wait_for("close")
    id_ = recorder.events[0][1]
    assert recorder.events == [
        ("open", id_),
        ("message", id_, Opcode.TEXT, b"one"),
        ("message", id_, Opcode.BINARY, b"two"),
        ("close", id_, 1000, "bye"),
    ]


def leave_in_mid_frame(peer: Peer) -> None:
    peer.write(frame(TEXT, b"half")[:-2])
    peer.close()


ENDINGS: dict[str, tuple[Callable[[Peer], object], int]] = {
    "close-1000": (lambda peer: peer.shake_hands(1000), 1000),
    "close-3999": (lambda peer: peer.shake_hands(3999), 3999),
    "close-without-code": (lambda peer: peer.shake_hands(None), 1005),
    "end-of-stream": (lambda peer: peer.sock.shutdown(socket.SHUT_WR), 1006),
    "end-of-stream-in-a-frame": (leave_in_mid_frame, 1006),
    "reset": (lambda peer: peer.reset(), 1006),
    "unmasked-frame": (lambda peer: peer.write(frame(TEXT, b"bare", key=None)), 1002),
    "text-that-is-not-utf-8": (lambda peer: peer.write(frame(TEXT, b"\xff")), 1007),
    "message-too-big": (lambda peer: peer.write(frame(BINARY, b"x" * 1025)), 1009),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_close_is_called_once_however_it_ends(backend: Backend, ending: str) -> None:
    end, code = ENDINGS[ending]
    recorder = EchoRecorder()
    options = Options(message_bytes_max=1024, close_seconds_max=0.2)
    with ReactorThread(recorder, backend=backend, options=options) as server:
        with Peer.connect(server.address) as peer:
            recorder.wait_for("open")
            end(peer)
            recorder.wait_for("close")
        with Peer.connect(server.address) as another:
            assert another.shake_hands() == 1000
        recorder.wait_for("close", 2)
    (first, *_), (second, *_) = recorder.of("open"), recorder.of("open")[1:]
    assert [event[:3] for event in recorder.events if event[1] == first[1]] == [first, ("close", first[1], code)]
    assert first[1] != second[1]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        pytest.param(frame(TEXT, b"bare", key=None), 1002, id="unmasked"),
        pytest.param(frame(0x3, b""), 1002, id="reserved-opcode"),
        pytest.param(frame(TEXT, b"\xed\xa0\x80"), 1007, id="surrogate"),
        pytest.param(frame(TEXT, b"\xc3" + b"x" * 20)[:9], 1007, id="bad-text-in-mid-frame"),
        pytest.param(frame(CONTINUATION, b""), 1002, id="continuation-of-nothing"),
        pytest.param(close_frame(1005), 1002, id="close-code-1005"),
    ],
)
def test_complete_messages_before_a_violation_are_answered_first(echo: ReactorThread, bad: bytes, code: int) -> None:
    with Peer.connect(echo.address) as peer:
        peer.write(frame(TEXT, b"first"), frame(PING, b"second"), frame(BINARY, b"third"), bad)
        assert peer.read_frames(3) == [Frame(TEXT, b"first"), Frame(PONG, b"second"), Frame(BINARY, b"third")]
        assert peer.read_close() == code
        peer.read_eof()


def test_nothing_is_delivered_after_the_peers_close(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        peer.write(close_frame(), frame(TEXT, b"late"), frame(PING, b"later"))
        assert peer.read_close() == 1000
        peer.read_eof()
    recorder.wait_for("close")
    assert [event[0] for event in recorder.events] == ["open", "close"]


def test_nothing_is_delivered_after_our_close(backend: Backend) -> None:
    class CloseAtFirst(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            conn.close(4000, "enough")
            self.record("is_open", conn.id, conn.is_open)

    recorder = CloseAtFirst()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        peer.write(*(frame(TEXT, payload) for payload in (b"first", b"second", b"third")))
        closing = peer.read_frame()
        assert (closing.close_code, closing.payload[2:]) == (4000, b"enough")
        peer.write(frame(TEXT, b"fourth"), close_frame(4000))
        peer.read_eof()
        recorder.wait_for("close")
    names = [event[0] for event in recorder.events]
    assert names == ["open", "message", "is_open", "close"]
    assert recorder.of("is_open")[0][2] is False


def test_a_connection_kept_past_its_close_sends_nothing(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        peer.shake_hands()
    ((_, id_, *_),) = recorder.wait_for("close")
    kept = recorder.connections[id_]

    # The slot is taken again, so that a stale connection could reach the wrong session.
    with Peer.connect(echo.address) as successor:
        recorder.wait_for("open", 2)
        assert echo.ask(lambda: kept.is_open) is False
        with pytest.raises(ConnectionClosed):
            echo.ask(lambda: kept.send_text("lost"))
        successor.send(TEXT, b"mine")
        assert successor.read_frame() == Frame(TEXT, b"mine")


# Handlers that raise


class Fragile(Recorder):
    """Raises in the method named, once; echoes otherwise."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = method

    def _break(self, method: str) -> None:
        if self._method == method:
            self._method = ""
            raise RuntimeError(f"broken {method}")

    def on_upgrade(self, request: Request) -> Accept:
        self._break("on_upgrade")
        return Accept()

    def on_open(self, conn: Connection) -> None:
        super().on_open(conn)
        self._break("on_open")

    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        self._break("on_message")
        conn.echo()

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        super().on_close(conn, code, reason)
        self._break("on_close")


def assert_logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """One record of the library's logger carries the traceback."""
    raised = [record for record in caplog.records if record.name.startswith("uringws") and record.exc_info]
    assert [str(record.exc_info[1]) for record in raised if record.exc_info] == [text]


@pytest.mark.parametrize("method", ["on_open", "on_message"])
def test_a_handler_that_raises_closes_its_session_with_1011(
    backend: Backend, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Fragile(method)
    with (
        caplog.at_level(logging.ERROR, "uringws"),
        ReactorThread(handler, backend=backend) as server,
    ):
        with Peer.connect(server.address) as victim:
            victim.write(frame(TEXT, b"one"), frame(TEXT, b"two"))
            assert victim.read_close() == CloseCode.INTERNAL_ERROR
            victim.write(close_frame(1011))
            victim.read_eof()
        ((_, _, code, _),) = handler.wait_for("close")
        assert code == CloseCode.INTERNAL_ERROR
        with Peer.connect(server.address) as another:
            another.send(TEXT, b"as ever")
            assert another.read_frame() == Frame(TEXT, b"as ever")
    assert_logged(caplog, f"broken {method}")
    assert len([event for event in handler.of("message") if event[3] != b"as ever"]) == (method == "on_message")


def test_on_close_that_raises_is_logged_and_the_loop_goes_on(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Fragile("on_close")
    with caplog.at_level(logging.ERROR, "uringws"), ReactorThread(handler, backend=backend) as server:
        for _ in range(2):
            with Peer.connect(server.address) as peer:
                assert peer.shake_hands() == 1000
        handler.wait_for("close", 2)
    assert_logged(caplog, "broken on_close")


def test_on_upgrade_that_raises_is_answered_500(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    handler = Fragile("on_upgrade")
    with caplog.at_level(logging.ERROR, "uringws"), ReactorThread(handler, backend=backend) as server:
        assert http(server.address, upgrade_request()).status == 500
        with Peer.connect(server.address) as peer:
            assert peer.shake_hands() == 1000
    assert_logged(caplog, "broken on_upgrade")
    assert len(handler.of("open")) == len(handler.of("close")) == 1
