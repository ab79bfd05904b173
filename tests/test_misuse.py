"""Mistakes of an application: each raises a clear exception at once, and harms nothing."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, Silent, run_until
from test_connections import QUIET, pairs
from uringws import (
    CloseCode,
    Connection,
    ConnectionClosed,
    Handler,
    Message,
    Opcode,
    Options,
    Reactor,
    ReactorStateError,
    Sender,
    WrongThread,
    handler_fn,
)
from uringws.backend import Backend
from wire import BINARY, TEXT, Frame, Peer, close_frame, frame, upgrade_request

# Wrong arguments

WRONG_FOR_REACTOR: dict[str, tuple[Callable[[Any], object], type[Exception]]] = {
    "bind-host": (lambda reactor: reactor.bind(None, 0), TypeError),
    "bind-port": (lambda reactor: reactor.bind("127.0.0.1", "80"), TypeError),
    "bind_unix": (lambda reactor: reactor.bind_unix(5), TypeError),
    "bind_socket": (lambda reactor: reactor.bind_socket("socket"), TypeError),
    "run_once-text": (lambda reactor: reactor.run_once("soon"), TypeError),
    "run_once-negative": (lambda reactor: reactor.run_once(-1), ValueError),
    "run_once-nan": (lambda reactor: reactor.run_once(float("nan")), ValueError),
    "run_once-infinite": (lambda reactor: reactor.run_once(float("inf")), ValueError),
    "drain-timeout": (lambda reactor: reactor.drain("soon"), TypeError),
    "drain-negative": (lambda reactor: reactor.drain(-1), ValueError),
    "drain-code": (lambda reactor: reactor.drain(code="1001"), TypeError),
    "drain-code-reserved": (lambda reactor: reactor.drain(code=1006), ValueError),
    "add_session": (lambda reactor: reactor.add_session("socket"), TypeError),
    "add_session-True": (lambda reactor: reactor.add_session(True), TypeError),
    "add_session-negative": (lambda reactor: reactor.add_session(-1), ValueError),
}


@pytest.mark.parametrize("name", WRONG_FOR_REACTOR)
def test_wrong_arguments_of_a_reactor(backend: Backend, name: str) -> None:
    attempt, error = WRONG_FOR_REACTOR[name]
    recorder = EchoRecorder()
    with pairs(1) as ((ours, peer),), Reactor(recorder, QUIET, backend=backend) as reactor:
        with pytest.raises(error):
            attempt(reactor)
        reactor.add_session(ours)
        peer.send(TEXT, b"unharmed")
        run_until(reactor, lambda: recorder.of("message"))
        reactor.run_once(0)
        assert peer.read_frame() == Frame(TEXT, b"unharmed")


@pytest.mark.parametrize("prefix", [None, 5, "text", [1, 2]])
def test_a_prefix_is_a_buffer_and_its_socket_stays_the_callers(backend: Backend, prefix: Any) -> None:
    with pairs(1) as ((ours, _),), Reactor(Silent(), QUIET, backend=backend) as reactor:
        with pytest.raises(TypeError):
            reactor.add_session_with_prefix(ours, prefix)
        assert ours.fileno() >= 0
        assert reactor.stats().sessions == 0


def test_wrong_arguments_of_the_constructor(backend: Backend) -> None:
    wrong: Any = {"message_bytes_max": 5}
    with pytest.raises(TypeError, match="options"):
        Reactor(Silent(), wrong, backend=backend)
    with pytest.raises(ValueError, match="backend"):
        Reactor(Silent(), backend="kqueue")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="function"):
        handler_fn("on_message")  # type: ignore[arg-type]


WRONG_FOR_CONNECTION: dict[str, tuple[Callable[[Any], object], type[Exception]]] = {
    "payload-missing": (lambda conn: conn.send(Opcode.TEXT), TypeError),
    "payload-alone-int": (lambda conn: conn.send(1), TypeError),
    "payload-alone-None": (lambda conn: conn.send(None), TypeError),
    "payload-alone-strided": (lambda conn: conn.send(memoryview(b"abcdef")[::2]), TypeError),
    "payload-None": (lambda conn: conn.send(Opcode.TEXT, None), TypeError),
    "payload-before-opcode": (lambda conn: conn.send("text", Opcode.TEXT), ValueError),
    "payload-int": (lambda conn: conn.send_binary(5), TypeError),
    "payload-binary-None": (lambda conn: conn.send_binary(None), TypeError),
    "payload-str-as-binary": (lambda conn: conn.send_binary("text"), TypeError),
    "payload-strided": (lambda conn: conn.send_binary(memoryview(b"abcdef")[::2]), TypeError),
    "text-bytes": (lambda conn: conn.send_text(b"bytes"), TypeError),
    "text-surrogate": (lambda conn: conn.send_text("\ud800"), UnicodeEncodeError),
    "opcode-text": (lambda conn: conn.send("text", b""), ValueError),
    "opcode-None": (lambda conn: conn.send(None, b""), ValueError),
    "opcode-float": (lambda conn: conn.send(1.5, b""), ValueError),
    "opcode-continuation": (lambda conn: conn.send(0, b""), ValueError),
    "opcode-close": (lambda conn: conn.send(8, b""), ValueError),
    "opcode-reserved": (lambda conn: conn.send(11, b""), ValueError),
    "ping-long": (lambda conn: conn.ping(bytes(126)), ValueError),
    "pong-long": (lambda conn: conn.send(Opcode.PONG, bytes(126)), ValueError),
    "close-text": (lambda conn: conn.close("1000"), TypeError),
    "close-True": (lambda conn: conn.close(True), TypeError),
    "close-float": (lambda conn: conn.close(1000.0), TypeError),
    "close-reason-bytes": (lambda conn: conn.close(1000, b"why"), TypeError),
    "close-reason-None": (lambda conn: conn.close(1000, None), TypeError),
    "close-reason-124": (lambda conn: conn.close(1000, "x" * 124), ValueError),
    "close-reason-124-in-utf-8": (lambda conn: conn.close(1000, "漢" * 42), ValueError),
    "close-reason-without-code": (lambda conn: conn.close(None, "why"), ValueError),
}


@pytest.mark.parametrize("name", WRONG_FOR_CONNECTION)
def test_wrong_arguments_of_a_connection(backend: Backend, name: str) -> None:
    attempt, error = WRONG_FOR_CONNECTION[name]
    raised: list[type[BaseException]] = []

    def on_message(conn: Connection, _: Message) -> None:
        with pytest.raises(error) as info:
            attempt(conn)
        raised.append(info.type)
        conn.echo()

    with pairs(1) as ((ours, peer),), Reactor(handler_fn(on_message), QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
        peer.send(TEXT, b"unharmed")
        run_until(reactor, lambda: raised)
        reactor.run_once(0)
        assert peer.read_frame() == Frame(TEXT, b"unharmed")


def test_a_forgotten_payload_is_asked_for(backend: Backend) -> None:
    with pairs(1) as ((ours, _),), Reactor(recorder := Recorder(), QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
        ((_, id_),) = recorder.of("open")
        for forgotten in (Opcode.TEXT, 1, 5):
            with pytest.raises(TypeError, match=r"no payload: call send\(payload\) or send\(opcode, payload\)"):
                recorder.connections[id_].send(forgotten)  # type: ignore[call-overload]


CODES_NOT_TO_BE_SENT = (-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_536, 1 << 70)


def test_close_codes_that_may_not_be_sent(backend: Backend) -> None:
    refused: list[int] = []

    def on_message(conn: Connection, _: Message) -> None:
        for code in CODES_NOT_TO_BE_SENT:
            with pytest.raises(ValueError, match=f"close code {code} may not be sent"):
                conn.close(code)
            refused.append(code)
        conn.close(4999)

    with ReactorThread(handler_fn(on_message), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"close")
        assert peer.read_close() == 4999
    assert refused == list(CODES_NOT_TO_BE_SENT)


WRONG_FOR_SENDER: dict[str, tuple[Callable[[Any, int], object], type[Exception]]] = {
    "send-opcode": (lambda sender, id: sender.send(id, 8, b""), ValueError),
    "send-payload": (lambda sender, id: sender.send(id, Opcode.BINARY, 5), TypeError),
    "send-no-payload": (lambda sender, id: sender.send(id, Opcode.BINARY), TypeError),
    "send-payload-alone": (lambda sender, _: sender.send("payload"), TypeError),
    "send-id": (lambda sender, _: sender.send("id", Opcode.BINARY, b""), TypeError),
    "close-connection": (lambda sender, _: sender.close_connection(None), TypeError),
    "close-code": (lambda sender, id: sender.close_connection(id, 1005), ValueError),
    "close-reason": (lambda sender, id: sender.close_connection(id, 1000, "x" * 124), ValueError),
    "call": (lambda sender, _: sender.call("function"), TypeError),
}


@pytest.mark.parametrize("name", WRONG_FOR_SENDER)
def test_wrong_arguments_of_a_sender_raise_where_they_are_given(
    echo: ReactorThread, recorder: EchoRecorder, name: str
) -> None:
    attempt, error = WRONG_FOR_SENDER[name]
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        with pytest.raises(error, match=r"conn\.id" if "-id" in name or name == "close-connection" else None):
            attempt(echo.sender, id_)
        assert echo.sender.send(id_ + 1, Opcode.TEXT, b"no such connection") is False
        assert echo.sender.send(-1, Opcode.TEXT, b"no such connection") is False
        peer.send(TEXT, b"unharmed")
        assert peer.read_frame() == Frame(TEXT, b"unharmed")


def test_a_unix_path_may_be_bytes_and_is_removed_by_close(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Reactor(Silent(), backend=backend) as reactor:
        reactor.bind_unix(os.fsencode(path))  # type: ignore[arg-type]
        assert path.is_socket()
    assert not path.exists()


# The wrong thread, the wrong time, the wrong process


def test_a_call_from_another_thread_leaks_no_socket(echo: ReactorThread, tmp_path: Path) -> None:
    echo.ask(lambda: None)  # its thread owns it from here on
    path = tmp_path / "socket"
    with pytest.raises(WrongThread):
        echo.reactor.bind_unix(path)
    assert not path.exists()


FOREIGN: dict[str, Callable[[Reactor, Connection], object]] = {
    "bind_socket": lambda reactor, _: reactor.bind_socket(socket.socket()),
    "add_session": lambda reactor, _: reactor.add_session(socket.socket()),
    "run_echo": lambda reactor, _: reactor.run_echo(),
    "close": lambda reactor, _: reactor.close(),
    "resume_reading": lambda _, conn: conn.resume_reading(),
    "buffered_amount": lambda _, conn: conn.buffered_amount,
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_another_thread_is_turned_away(echo: ReactorThread, recorder: EchoRecorder, name: str) -> None:
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        with pytest.raises(WrongThread):
            FOREIGN[name](echo.reactor, recorder.connections[id_])
        peer.send(TEXT, b"unharmed")
        assert peer.read_frame() == Frame(TEXT, b"unharmed")


AFTER_CLOSE: dict[str, Callable[[Reactor], object]] = {
    "run": lambda reactor: reactor.run(),
    "run_echo": lambda reactor: reactor.run_echo(),
    "run_once": lambda reactor: reactor.run_once(0),
    "bind": lambda reactor: reactor.bind("127.0.0.1", 0),
    "bind_unix": lambda reactor: reactor.bind_unix("socket"),
    "bind_socket": lambda reactor: reactor.bind_socket(socket.socket()),
    "add_session": lambda reactor: reactor.add_session(socket.socket()),
    "sender": lambda reactor: reactor.sender(),
    "stats": lambda reactor: reactor.stats(),
    "drain": lambda reactor: reactor.drain(),
}


@pytest.mark.parametrize("name", AFTER_CLOSE)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_call_of_a_closed_reactor_raises(backend: Backend, name: str) -> None:
    reactor = Reactor(Silent(), backend=backend)
    reactor.close()
    with pytest.raises(ReactorStateError, match="closed"):
        AFTER_CLOSE[name](reactor)
    reactor.stop()


def test_objects_of_a_closed_reactor_are_safe_to_use(backend: Backend) -> None:
    kept: list[Message] = []

    class Keeper(EchoRecorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            kept.append(message)

    recorder = Keeper()
    with pairs(1) as ((ours, peer),):
        reactor = Reactor(recorder, QUIET, backend=backend)
        sender = reactor.sender()
        id_ = reactor.add_session(ours)
        peer.send(BINARY, bytes(200_000))
        run_until(reactor, lambda: recorder.of("message"))
        reactor.close()
        conn = recorder.connections[id_]
        assert not conn.is_open
        assert (conn.buffered_amount, conn.latency_seconds, conn.peer) == (0, None, None)
        assert "closed" in repr(conn)
        for attempt in (
            lambda: conn.send_text("too late"),
            conn.ping,
            conn.close,
            conn.abort,
            conn.pause_reading,
            conn.resume_reading,
            conn.echo,
        ):
            with pytest.raises(ConnectionClosed):
                attempt()
        assert_not_valid(kept[0])
        with pytest.raises(ReactorStateError):
            sender.send(id_, Opcode.TEXT, b"too late")
        sender.release()


FORK = """
import os, sys, socket, threading
from uringws import Handler, Opcode, Options, Reactor, ReactorStateError

class Keep(Handler):
    def on_open(self, conn):
        self.conn = conn
    def on_message(self, conn, message):
        self.got = bytes(message)
        conn.echo()

def refused(attempt):
    try:
        attempt()
    except ReactorStateError as error:
        return "fork" in str(error)
    return False

handler = Keep()
reactor = Reactor(handler, Options(ping_interval_seconds=None), backend=sys.argv[1])
reactor.bind("127.0.0.1", 0)
ours, theirs = socket.socketpair()
sender = reactor.sender()
reactor.add_session(ours)
reactor.run_once(0)
if child := os.fork():
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    theirs.sendall(b"\\x81\\x82\\0\\0\\0\\0ok")
    while not hasattr(handler, "got"):
        reactor.run_once(1)
    reactor.run_once(0)
    assert theirs.recv(4) == b"\\x81\\x02ok"
    socket.create_connection(reactor.addresses[0]).close()
    sender.release()
    reactor.close()
    sys.exit(status)
conn = handler.conn
attempts = [
    reactor.run, reactor.run_echo, lambda: reactor.run_once(0), reactor.drain, reactor.stats, reactor.sender,
    lambda: reactor.bind("127.0.0.1", 0), lambda: reactor.add_session(theirs),
    lambda: conn.send_text("x"), conn.close, conn.abort, conn.pause_reading, conn.resume_reading,
    lambda: sender.send(conn.id, Opcode.TEXT, b"x"), lambda: sender.call(print),
]
failed = [number for number, attempt in enumerate(attempts) if not refused(attempt)]
reactor.stop()
sender.release()
reactor.close()
print("not refused:", failed, flush=True) if failed else None
os._exit(bool(failed))
"""


def test_a_child_is_refused_everything_and_its_parent_goes_on(backend: Backend) -> None:
    """In a process of its own: pytest's may have threads, and forks badly."""
    subprocess.run([sys.executable, "-c", FORK, backend], timeout=20, check=True)


def test_the_loop_cannot_be_entered_from_any_callback(backend: Backend) -> None:
    refused: list[str] = []

    class Reenter(Handler):
        def _try(self, where: str) -> None:
            for attempt in (reactor.run, reactor.run_echo, lambda: reactor.run_once(0), reactor.close):
                with pytest.raises(ReactorStateError):
                    attempt()
                refused.append(where)

        def on_open(self, conn: Connection) -> None:
            self._try("open")

        def on_message(self, conn: Connection, message: Message) -> None:
            self._try("message")

        def on_close(self, conn: Connection, code: int, reason: str) -> None:
            self._try("close")

    with ReactorThread(Reenter(), backend=backend) as server:
        reactor = server.reactor
        with Peer.connect(server.address) as peer:
            peer.send(TEXT, b"hello")
            assert peer.shake_hands() == 1000
    assert refused == ["open"] * 4 + ["message"] * 4 + ["close"] * 4


# Connections and messages at the wrong time


def assert_not_valid(message: Message) -> None:
    """Nothing of it can be read any more, and the exception says why."""
    attempts: list[Callable[[], object]] = [
        lambda: message.data,
        lambda: bytes(message),
        message.text,
        lambda: len(message),
        lambda: message.opcode,
        lambda: message.is_text,
        lambda: message.fin,
    ]
    for attempt in attempts:
        with pytest.raises(RuntimeError, match="until its handler returns"):
            attempt()
    assert "no longer valid" in repr(message)


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_message_kept_past_its_handler_raises(backend: Backend, size: int) -> None:
    kept: list[Message] = []

    class Keeper(EchoRecorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            kept.append(message)

    recorder = Keeper()
    with pairs(1) as ((ours, peer),), Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
        peer.send(BINARY, bytes(size))
        run_until(reactor, lambda: kept)
        assert_not_valid(kept[0])
        reactor.run_once(0)
        assert_not_valid(kept[0])


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("echoed", [False, True], ids=["close", "echo-close"])
def test_a_message_can_be_read_after_its_connection_was_closed(backend: Backend, size: int, *, echoed: bool) -> None:
    seen: list[bytes] = []
    payload = os.urandom(size)

    def on_message(conn: Connection, message: Message) -> None:
        if echoed:
            conn.echo()
        conn.close(4000)
        seen.append(bytes(message))
        with pytest.raises(ConnectionClosed):
            conn.echo()

    with ReactorThread(handler_fn(on_message), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(BINARY, payload)
        if echoed:
            assert peer.read_frame() == Frame(BINARY, payload)
        assert peer.read_close() == 4000
    assert seen == [payload]


def answer_kinds(reactor: Reactor) -> dict[str, Callable[[Connection], object]]:
    return {"close": lambda conn: conn.close(4000), "drain": lambda _conn: reactor.drain(5)}


@pytest.mark.parametrize("end", ["close", "drain"])
@pytest.mark.parametrize("size", [1, 10, 4000])
def test_the_current_message_stays_unchanged_when_its_connection_is_closed_after_its_echo(
    backend: Backend, end: str, size: int
) -> None:
    """Several messages in one segment, so that their answers could be moved together."""
    payloads = [bytes([number]) + os.urandom(size - 1) for number in range(1, 4)]
    seen: list[bytes] = []

    def on_message(conn: Connection, message: Message) -> None:
        conn.echo()
        if message.data[0] == len(payloads):
            view = message.data
            answer_kinds(reactor)[end](conn)
            seen.extend([bytes(view), bytes(message), bytes(message.data)])

    with pairs(1) as ((ours, peer),), Reactor(handler_fn(on_message), QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
        peer.write(b"".join(frame(BINARY, payload) for payload in payloads))
        run_until(reactor, lambda: seen)
        assert seen == 3 * [payloads[-1]]
        reactor.run_once(0)
        assert peer.read_frames(3) == [Frame(BINARY, payload) for payload in payloads]
        assert peer.read_close() == (4000 if end == "close" else 1001)


def test_a_message_is_forwarded_unchanged_after_its_connection_was_closed(backend: Backend) -> None:
    class Forwarder(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            conn.echo()
            if bytes(message) == b"GHIJKLM":
                conn.close(4000)
                (other,) = [each for each in self.connections.values() if each is not conn]
                other.send(message)
                other.send(message.opcode, message.data)

    recorder = Forwarder()
    with pairs(2) as ((ours, peer), (other_ours, other)), Reactor(recorder, QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
        reactor.add_session(other_ours)
        peer.write(frame(TEXT, b"ABCDEF") + frame(TEXT, b"GHIJKLM"))
        run_until(reactor, lambda: not recorder.connections or len(reactor._sessions.ending) == 1)
        reactor.run_once(0)
        assert peer.read_frames(2) == [Frame(TEXT, b"ABCDEF"), Frame(TEXT, b"GHIJKLM")]
        assert other.read_frames(2) == 2 * [Frame(TEXT, b"GHIJKLM")]


@pytest.mark.parametrize("size", [10, 200_000])
def test_closing_another_connection_keeps_the_echo_of_the_current_message(backend: Backend, size: int) -> None:
    payload = os.urandom(size)

    class CloseOther(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            for other in self.connections.values():
                if other is not conn:
                    other.close(4000)
            message.data[:1] = b"!"
            conn.send_text("first")
            conn.echo()

    recorder = CloseOther()
    with (
        ReactorThread(recorder, backend=backend) as server,
        Peer.connect(server.address) as peer,
        Peer.connect(server.address) as other,
    ):
        recorder.wait_for("open", 2)
        peer.send(BINARY, payload)
        assert other.read_close() == 4000
        assert peer.read_frames(2) == [Frame(TEXT, b"first"), Frame(BINARY, b"!" + payload[1:])]


@pytest.mark.parametrize("size", [10, 200_000])
def test_draining_leaves_the_current_message_readable(backend: Backend, size: int) -> None:
    payload = os.urandom(size)
    seen: list[bytes] = []

    def on_message(conn: Connection, message: Message) -> None:
        reactor.drain(5)
        seen.append(bytes(message))
        with pytest.raises(ConnectionClosed):
            conn.echo()

    with pairs(1) as ((ours, peer),), Reactor(handler_fn(on_message), QUIET, backend=backend) as reactor:
        reactor.add_session(ours)
        peer.write(frame(BINARY, payload), close_frame(1001))
        peer.sock.shutdown(socket.SHUT_WR)
        reactor.run()
        assert peer.read_close() == 1001
    assert seen == [payload]


@pytest.mark.parametrize("ending", ["close", "eof", "violation"])
def test_nothing_can_be_sent_from_on_close(backend: Backend, ending: str) -> None:
    class LastWords(Recorder):
        def on_close(self, conn: Connection, code: int, reason: str) -> None:
            self.record("is_open", conn.is_open)
            for attempt in (lambda: conn.send_text("wait!"), conn.ping, conn.close, conn.echo):
                with pytest.raises(ConnectionClosed):
                    attempt()
            super().on_close(conn, code, reason)

    recorder = LastWords()
    said = {"close": close_frame(), "eof": b"", "violation": frame(TEXT, b"bare", key=None)}[ending]
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        peer.write(said)
        peer.sock.shutdown(socket.SHUT_WR)
        if ending != "eof":
            assert peer.read_close() == (1000 if ending == "close" else 1002)
        peer.read_eof()
        recorder.wait_for("close")
    assert recorder.of("is_open") == [("is_open", False)]


def test_echo_belongs_to_on_message(backend: Backend) -> None:
    class Echoes(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            for number in range(80):
                conn.send_binary(bytes([number]) * 100_000)
            self.record("sent")

        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            self._try(conn, "open")

        def on_drain(self, conn: Connection) -> None:
            self._try(conn, "drain")

        def _try(self, conn: Connection, where: str) -> None:
            with pytest.raises(RuntimeError, match="whose message is being handled"):
                conn.echo()
            self.record("refused", where)

    recorder = Echoes()
    options = Options(ping_interval_seconds=None, backlog_high_bytes=1 << 20, backlog_low_bytes=1 << 18)
    with ReactorThread(recorder, backend=backend, options=options) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"go")
        recorder.wait_for("sent")
        peer.read_frames(80)
        assert [event[1] for event in recorder.wait_for("refused", 2)] == ["open", "drain"]
        assert peer.shake_hands() == 1000


# Handlers that raise errors, and other exceptions


class Broken(Recorder):
    """Raises the given exception in every callback named."""

    def __init__(self, error: type[BaseException], *where: str) -> None:
        super().__init__()
        self._error, self._where = error, where

    def _raise(self, where: str) -> None:
        if where in self._where:
            raise self._error(where)

    def on_open(self, conn: Connection) -> None:
        super().on_open(conn)
        self._raise("on_open")

    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        if message.is_text:
            self._raise("on_message")
        if bytes(message) == b"fill":
            for _ in range(80):
                conn.send_binary(bytes(100_000))
            self.record("sent")
        conn.echo()

    def on_drain(self, conn: Connection) -> None:
        self.record("drain", conn.id)
        self._raise("on_drain")

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        super().on_close(conn, code, reason)
        self._raise("on_close")


def test_on_drain_that_raises_closes_its_session_with_1011(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    options = Options(ping_interval_seconds=None, backlog_high_bytes=1 << 20, backlog_low_bytes=1 << 18)
    handler = Broken(RuntimeError, "on_drain")
    with (
        caplog.at_level(logging.ERROR, "uringws"),
        ReactorThread(handler, backend=backend, options=options) as server,
        Peer.connect(server.address) as peer,
    ):
        peer.send(BINARY, b"fill")
        handler.wait_for("sent")
        peer.read_frames(81)
        assert peer.read_close() == CloseCode.INTERNAL_ERROR
        peer.write(close_frame(1011))
        assert handler.wait_for("close")[0][2] == CloseCode.INTERNAL_ERROR
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["on_drain"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["on_open", "on_message", "on_close"])
def test_keyboard_interrupt_propagates_and_keeps_the_remaining_events(
    backend: Backend, where: str, error: type[BaseException]
) -> None:
    handler = Broken(error, where)
    count = 3
    with Reactor(handler, QUIET, backend=backend) as reactor:
        host, port = reactor.bind("127.0.0.1", 0)
        peers = [Peer.dial((host, port)) for _ in range(count)]
        for peer in peers:
            peer.write(upgrade_request(), frame(TEXT, b"one"), frame(BINARY, b"two"), close_frame())
        got_out = 0
        while len(handler.of("close")) < count:
            try:
                run_until(reactor, lambda: len(handler.of("close")) == count)
            except error:
                got_out += 1
        assert got_out == count
        reactor.run_once(0)
        for peer in peers:
            with peer:
                assert peer.read_response().status == 101
                expected = (
                    [Frame(BINARY, b"two")] if where == "on_message" else [Frame(TEXT, b"one"), Frame(BINARY, b"two")]
                )
                assert peer.read_frames(len(expected)) == expected
                assert peer.read_close() == 1000
                peer.read_eof()
        run_until(reactor, lambda: reactor.stats().sessions == 0)
        assert reactor.stats().accepted == sum(reactor.stats().close_codes.values()) == count
    for kind in ("open", "close"):
        assert len({event[1] for event in handler.of(kind)}) == len(handler.of(kind)) == count
    assert len(handler.of("message")) == 2 * count


def test_an_interrupt_out_of_a_command_leaves_the_next_one(backend: Backend) -> None:
    done: list[int] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    with Reactor(Silent(), QUIET, backend=backend) as reactor, reactor.sender() as sender:
        assert isinstance(sender, Sender)
        sender.call(interrupt)
        sender.call(lambda: done.append(1))
        with pytest.raises(KeyboardInterrupt):
            run_until(reactor, lambda: done)
        run_until(reactor, lambda: done)
