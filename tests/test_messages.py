"""Messages in and messages out: the messages of a handler, the payloads that it may send, and their order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from servers import EchoRecorder, ReactorThread, Recorder
from uringws import CloseCode, Connection, Handler, Message, Opcode, Options, handler_fn
from uringws.backend import Backend
from wire import BINARY, CONTINUATION, PING, PONG, TEXT, Frame, Peer, distinct_payloads, frame


def test_fragments_arrive_as_one_message_with_control_frames_between(echo: ReactorThread) -> None:
    with Peer.connect(echo.address) as peer:
        peer.write(
            frame(TEXT, "né".encode()[:2], fin=False),
            frame(PING, b"still there?"),
            frame(CONTINUATION, b"", fin=False),
            frame(CONTINUATION, "né".encode()[2:]),
        )
        assert peer.read_frames(2) == [Frame(PONG, b"still there?"), Frame(TEXT, "né".encode())]


def test_on_frame_sees_fragments_as_they_come(backend: Backend) -> None:
    class Frames(Recorder):
        def on_frame(self, conn: Connection, frame: Message) -> None:
            self.record("frame", frame.opcode, frame.fin, bytes(frame))

    recorder = Frames()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"one", fin=False)
        recorder.wait_for("frame")
        peer.send(CONTINUATION, b"two", fin=False)
        recorder.wait_for("frame", 2)
        peer.send(CONTINUATION, b"three")
        peer.send(BINARY, b"four")
        assert [event[1:] for event in recorder.wait_for("frame", 4)] == [
            (Opcode.TEXT, False, b"one"),
            (Opcode.CONTINUATION, False, b"two"),
            (Opcode.CONTINUATION, True, b"three"),
            (Opcode.BINARY, True, b"four"),
        ]
    assert recorder.of("message") == []


EURO = "€".encode()  # three bytes
BAD_TEXTS = {
    "a bad byte in the first": ([b"\xff", b"b", b"c"], 0),
    "a bad byte in a continuation": ([b"a", b"\xff", b"c"], 1),
    "a bad byte in the last": ([b"a", b"b", b"\xff"], 2),
    "a character that goes on wrongly": ([b"a" + EURO[:1], b"b", b"c"], 1),
    "a character that never ends": ([b"a", EURO[:1], EURO[1:2]], 2),
}
"""Fragments, and which of them is the first that no UTF-8 text can have there (RFC 6455 8.1)."""


@pytest.mark.parametrize("chunk_bytes", [1, 1000])
@pytest.mark.parametrize("name", BAD_TEXTS)
def test_text_is_utf8_in_every_fragment(backend: Backend, name: str, chunk_bytes: int) -> None:
    class Frames(Recorder):
        def on_frame(self, conn: Connection, frame: Message) -> None:
            self.record("frame", bytes(frame))

    parts, bad = BAD_TEXTS[name]
    recorder = Frames()
    with ReactorThread(recorder, backend=backend) as server:
        for fragments in ([EURO[:1], EURO[1:2], EURO[2:]], parts):
            opcodes = [TEXT, CONTINUATION, CONTINUATION]
            stream = b"".join(map(frame_of_three, opcodes, fragments, range(3)))
            with Peer.connect(server.address) as peer:
                for start in range(0, len(stream), chunk_bytes):
                    peer.write(stream[start : start + chunk_bytes])
                if fragments is parts:
                    assert peer.read_close() == CloseCode.INVALID_PAYLOAD
                else:
                    assert [event[1] for event in recorder.wait_for("frame", 3)] == fragments
    assert [event[1] for event in recorder.of("frame")[3:]] == parts[:bad]


def frame_of_three(opcode: int, payload: bytes, number: int) -> bytes:
    return frame(opcode, payload, fin=number == 2)


@pytest.mark.parametrize("size", [1, 200, 16_000, 70_000, 1 << 20])
def test_echo_sends_the_payload_as_the_handler_changed_it(backend: Backend, size: int) -> None:
    def shout(conn: Connection, message: Message) -> None:
        message.data[:] = bytes(message).upper()
        conn.echo()

    with ReactorThread(handler_fn(shout), backend=backend) as server, Peer.connect(server.address) as peer:
        payload = (b"quiet please " * (size // 13 + 1))[:size]
        peer.send(TEXT, payload)
        assert peer.read_frame() == Frame(TEXT, payload.upper())


def test_a_message_shows_opcode_length_bytes_and_text(backend: Backend) -> None:
    seen: list[tuple[object, ...]] = []

    def look(conn: Connection, message: Message) -> None:
        text = message.text() if message.opcode == Opcode.TEXT else None
        seen.append((message.opcode, len(message), bytes(message), bytes(message.data), text))
        conn.echo()

    with ReactorThread(handler_fn(look), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.write(frame(TEXT, "größer".encode()), frame(BINARY, b"\x00\xff"), frame(TEXT, b""))
        peer.read_frames(3)
    assert seen == [
        (Opcode.TEXT, 8, "größer".encode(), "größer".encode(), "größer"),
        (Opcode.BINARY, 2, b"\x00\xff", b"\x00\xff", None),
        (Opcode.TEXT, 0, b"", b"", ""),
    ]


def test_a_payload_kept_past_the_handler_cannot_be_read(backend: Backend) -> None:
    kept: list[memoryview] = []

    def keep(conn: Connection, message: Message) -> None:
        kept.append(message.data)
        conn.echo()

    with ReactorThread(handler_fn(keep), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"mine for now")
        peer.read_frame()
        peer.send(TEXT, b"another")
        peer.read_frame()
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


@pytest.mark.parametrize("size", [5, 20_000, 100_000])
def test_sends_leave_before_the_echo_of_the_same_message(backend: Backend, size: int) -> None:
    def answer(conn: Connection, _: Message) -> None:
        conn.send_text("first")
        conn.echo()
        conn.send_binary(b"second")

    payload = b"e" * size
    with ReactorThread(handler_fn(answer), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.write(frame(BINARY, payload), frame(BINARY, payload))
        round_ = [Frame(TEXT, b"first"), Frame(BINARY, b"second"), Frame(BINARY, payload)]
        assert peer.read_frames(6) == round_ * 2


@pytest.mark.parametrize("size", [5, 100_000])
@pytest.mark.parametrize("answer", ["echo", "send"])
def test_a_handler_may_close_another_session_before_it_answers(backend: Backend, answer: str, size: int) -> None:
    class Replace(Recorder):
        """Each message ends all other sessions."""

        def on_message(self, conn: Connection, message: Message) -> None:
            for other in self.connections.values():
                if other is not conn:
                    other.close()
            if answer == "echo":
                conn.echo()
            else:
                conn.send(message.opcode, message.data)

    recorder = Replace()
    with (
        ReactorThread(recorder, backend=backend) as server,
        Peer.connect(server.address) as first,
        Peer.connect(server.address) as second,
    ):
        recorder.wait_for("open", 2)
        second.send(TEXT, b"x" * size)
        assert second.read_frame() == Frame(TEXT, b"x" * size)
        assert first.read_frame().close_code == CloseCode.NORMAL


def test_everything_that_can_be_sent(backend: Backend) -> None:
    numpy = pytest.importorskip("numpy")
    payloads = [b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview"), numpy.arange(5, dtype=numpy.uint8)]

    def answer(conn: Connection, message: Message) -> None:
        for payload in payloads:
            conn.send(Opcode.BINARY, payload)
        conn.send(Opcode.TEXT, "str ✓")
        conn.send_text("text ✓")
        conn.send_binary(message.data)
        conn.ping(b"ping")

    with ReactorThread(handler_fn(answer), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(BINARY, b"go")
        assert peer.read_frames(8) == [
            *(Frame(BINARY, bytes(payload)) for payload in payloads),
            Frame(TEXT, "str ✓".encode()),
            Frame(TEXT, "text ✓".encode()),
            Frame(BINARY, b"go"),
            Frame(PING, b"ping"),
        ]


def test_a_payload_without_an_opcode_is_sent_by_its_type(backend: Backend) -> None:
    """A str is text, a message keeps its type, and everything else is binary."""
    numpy = pytest.importorskip("numpy")
    payloads = [b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview"), numpy.arange(5, dtype=numpy.uint8), b""]

    def answer(conn: Connection, message: Message) -> None:
        conn.send("str ✓")
        conn.send("")
        for payload in payloads:
            conn.send(payload)
        conn.send(message)
        conn.send(message.data)

    with ReactorThread(handler_fn(answer), backend=backend) as server, Peer.connect(server.address) as peer:
        for opcode in (TEXT, BINARY):
            peer.send(opcode, b"go")
            assert peer.read_frames(9) == [
                Frame(TEXT, "str ✓".encode()),
                Frame(TEXT, b""),
                *(Frame(BINARY, bytes(payload)) for payload in payloads),
                Frame(opcode, b"go"),
                Frame(BINARY, b"go"),
            ]


@pytest.mark.parametrize("size", [0, 20, 16_000, 70_000, 1 << 20])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_can_be_the_payload(backend: Backend, opcode: int, size: int) -> None:
    """With its own opcode or another, read before or not, and as the handler changed it."""

    def answer(conn: Connection, message: Message) -> None:
        conn.send(message)
        conn.send(message.opcode, message)
        conn.send_binary(message)
        assert len(message.data) == size
        conn.send(message)
        message.data[:1] = b"!"[:size]
        conn.send(Opcode.TEXT, message)
        conn.send(message)

    payload = b"m" * size
    changed = (b"!" + payload)[:size]
    with ReactorThread(handler_fn(answer), backend=backend) as server, Peer.connect(server.address) as peer:
        for _ in range(2):
            peer.send(opcode, payload)
            assert peer.read_frames(6) == [
                Frame(opcode, payload),
                Frame(opcode, payload),
                Frame(BINARY, payload),
                Frame(opcode, payload),
                Frame(TEXT, changed),
                Frame(opcode, changed),
            ]


@pytest.mark.parametrize("size", [20, 70_000])
def test_a_message_can_be_sent_to_another_reactor_and_through_a_sender(backend: Backend, size: int) -> None:
    payload = b"p" * size
    pushed = Recorder()
    with (
        ReactorThread(pushed, backend=backend) as target,
        Peer.connect(target.address) as listener,
    ):
        ((_, listener_id),) = pushed.wait_for("open")
        with target.reactor.sender() as sender:

            def relay(conn: Connection, message: Message) -> None:
                sender.send(listener_id, message)
                sender.send(listener_id, Opcode.TEXT, message)
                sender.send(listener_id, "str")
                sender.send(listener_id, message.data)

            with ReactorThread(handler_fn(relay), backend=backend) as source, Peer.connect(source.address) as peer:
                for opcode in (TEXT, BINARY):
                    peer.send(opcode, payload)
                    assert listener.read_frames(4) == [
                        Frame(opcode, payload),
                        Frame(TEXT, payload),
                        Frame(TEXT, b"str"),
                        Frame(BINARY, payload),
                    ]


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_message_that_is_no_longer_current_is_never_sent(backend: Backend, size: int) -> None:
    """Also where the next event of the turn has bytes of its own: another client's request."""
    kept: list[Message] = []
    refused: list[str] = []

    class Keeper(Recorder):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            for message in kept:
                with pytest.raises(RuntimeError, match="until its handler returns"):
                    conn.send(message)
                refused.append("open")

        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            kept.append(message)

    recorder = Keeper()
    with ReactorThread(recorder, backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(BINARY, bytes(size))
        recorder.wait_for("message")
        server.ask(lambda: None)
        with Peer.connect(server.address), Peer.connect(server.address):
            recorder.wait_for("open", 3)
            assert refused == ["open", "open"]


def test_a_continuation_has_no_type_to_be_sent_as(backend: Backend) -> None:
    class Frames(Recorder):
        def on_frame(self, conn: Connection, frame: Message) -> None:
            if frame.opcode == Opcode.CONTINUATION:
                with pytest.raises(ValueError, match=r"send\(opcode, frame\)"):
                    conn.send(frame)
                conn.send(Opcode.TEXT, frame)
            else:
                conn.send(frame)

    with ReactorThread(Frames(), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"begun", fin=False)
        peer.send(CONTINUATION, b"ended")
        assert peer.read_frames(2) == [Frame(TEXT, b"begun"), Frame(TEXT, b"ended")]


def test_a_payload_that_cannot_be_sent_raises_and_harms_nothing(backend: Backend) -> None:
    errors: list[type[BaseException]] = []

    def attempt(conn: Connection, _: Message) -> None:
        attempts: list[Callable[[], object]] = [
            lambda: conn.send(Opcode.BINARY, 5),  # type: ignore[call-overload]
            lambda: conn.send_text(None),  # type: ignore[arg-type]
            lambda: conn.send(3, b""),
            lambda: conn.ping(b"x" * 126),
            lambda: conn.close(1005),
            lambda: conn.close(1000, "x" * 124),
        ]
        for each in attempts:
            with pytest.raises((TypeError, ValueError)) as raised:
                each()
            errors.append(raised.type)
        conn.echo()

    with ReactorThread(handler_fn(attempt), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"still fine")
        assert peer.read_frame() == Frame(TEXT, b"still fine")
    assert len(errors) == 6


def test_a_send_from_on_open_is_the_first_frame(backend: Backend) -> None:
    class Greeter(Handler):
        def on_open(self, conn: Connection) -> None:
            conn.send_text("welcome")

        def on_message(self, conn: Connection, message: Message) -> None:
            conn.echo()

    with (
        ReactorThread(Greeter(), backend=backend) as server,
        Peer.connect(server.address, then=frame(TEXT, b"eager")) as peer,
    ):
        assert peer.read_frames(2) == [Frame(TEXT, b"welcome"), Frame(TEXT, b"eager")]


def test_a_frame_may_arrive_byte_by_byte(echo: ReactorThread) -> None:
    with Peer.connect(echo.address) as peer:
        for byte in frame(TEXT, b"slow") + frame(BINARY, b"x" * 126):
            peer.write(bytes([byte]))
        assert peer.read_frames(2) == [Frame(TEXT, b"slow"), Frame(BINARY, b"x" * 126)]


@pytest.mark.parametrize("size", [20, 1024, 20_000])
def test_a_pipeline_is_answered_in_order(echo: ReactorThread, size: int) -> None:
    payloads = distinct_payloads(3_000_000 // (size + 3000), size)
    with Peer.connect(echo.address) as peer:
        writer = threading.Thread(target=peer.write, args=[frame(BINARY, payload) for payload in payloads])
        writer.start()
        for payload in payloads:
            assert peer.read_frame() == Frame(BINARY, payload)
        writer.join()


def test_many_sessions_in_one_turn_each_get_their_own(echo: ReactorThread) -> None:
    payloads = distinct_payloads(300, 600)
    peers = [Peer.connect(echo.address) for _ in payloads]
    try:
        for peer, payload in zip(peers, payloads, strict=True):
            peer.send(BINARY, payload)
        for peer, payload in zip(peers, payloads, strict=True):
            assert peer.read_frame() == Frame(BINARY, payload)
    finally:
        for peer in peers:
            peer.close()


@pytest.mark.parametrize(("sessions", "size"), [(2, 4), (3, 20), (10, 125), (5, 5000)])
def test_sends_to_several_sessions_in_one_turn_do_not_mix(
    echo: ReactorThread, recorder: EchoRecorder, sessions: int, size: int
) -> None:
    """Frames for different sessions lie side by side in memory, a gap apart from the next one for the same session."""
    rounds = 20
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(echo.address)) for _ in range(sessions)]
        conns = [recorder.connections[event[1]] for event in recorder.wait_for("open", sessions)]
        payloads = distinct_payloads(sessions * rounds, size)

        def send_to_each_in_turn() -> None:
            for number, payload in enumerate(payloads):
                conns[number % sessions].send_binary(payload)

        echo.sender.call(send_to_each_in_turn)
        for number, peer in enumerate(peers):
            assert [frame.payload for frame in peer.read_frames(rounds)] == payloads[number::sessions]


def test_a_pool_of_two_buffers_loses_nothing(backend: Backend, recorder: EchoRecorder) -> None:
    options = Options(receive_buffers=2, receive_buffer_bytes=1024, session_turn_bytes_max=1024)
    payloads = distinct_payloads(50, 5000)
    with ReactorThread(recorder, backend=backend, options=options) as server:
        peers = [Peer.connect(server.address) for _ in payloads]
        for peer, payload in zip(peers, payloads, strict=True):
            peer.write(frame(BINARY, payload), frame(TEXT, b"and more"))
        for peer, payload in zip(peers, payloads, strict=True):
            assert peer.read_frames(2) == [Frame(BINARY, payload), Frame(TEXT, b"and more")]
            peer.close()
