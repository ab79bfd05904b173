"""Commands from other threads: in order and complete, refused for sessions that are gone, bounded, and counted in."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import sys
import threading
import time

import pytest

from servers import EchoRecorder, ReactorThread, Silent, run_until, wait_until
from uringws import CloseCode, Opcode, Options, Reactor, ReactorStateError, SenderFull, Topic
from uringws.backend import Backend
from wire import BINARY, TEXT, Frame, Peer

THREADS, SESSIONS, MESSAGES = 4, 100, 60


def test_every_threads_stream_to_every_session_is_in_order_and_complete(
    echo: ReactorThread, recorder: EchoRecorder
) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(echo.address)) for _ in range(SESSIONS)]
        ids = [event[1] for event in recorder.wait_for("open", SESSIONS)]

        def push(thread: int, refused: list[int]) -> None:
            with echo.sender.clone() as sender:
                for number in range(MESSAGES):
                    payload = struct.pack("!II", thread, number) + bytes(number % 50)
                    refused += [id_ for id_ in ids if not sender.send(id_, Opcode.BINARY, payload)]

        refused: list[int] = []
        threads = [threading.Thread(target=push, args=(thread, refused)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        expected = {
            thread: [struct.pack("!II", thread, number) + bytes(number % 50) for number in range(MESSAGES)]
            for thread in range(THREADS)
        }
        for peer in peers:
            received: dict[int, list[bytes]] = {thread: [] for thread in range(THREADS)}
            for frame in peer.read_frames(THREADS * MESSAGES):
                received[struct.unpack_from("!I", frame.payload)[0]].append(frame.payload)
            assert received == expected
        for thread in threads:
            thread.join()
        assert refused == []


def test_large_payloads_from_several_threads_do_not_mix(echo: ReactorThread, recorder: EchoRecorder) -> None:
    size, rounds = 300_000, 5
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")

        def push(letter: bytes) -> None:
            for _ in range(rounds):
                echo.sender.send(id_, Opcode.BINARY, letter * size)

        threads = [threading.Thread(target=push, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
        for thread in threads:
            thread.start()
        received = [frame.payload for frame in peer.read_frames(4 * rounds)]
        for thread in threads:
            thread.join()
    assert sorted(received) == sorted(letter * size for letter in (b"a", b"b", b"c", b"d") for _ in range(rounds))


def test_a_payload_may_change_as_soon_as_send_returned(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        payload = bytearray(b"before")
        assert echo.sender.send(id_, Opcode.TEXT, payload)
        payload[:] = b"after!"
        assert peer.read_frame() == Frame(TEXT, b"before")


def test_text_may_be_str(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        assert echo.sender.send(id_, Opcode.TEXT, "grüß dich")
        assert peer.read_frame() == Frame(TEXT, "grüß dich".encode())


def test_close_reaches_the_peer_with_code_and_reason(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        assert echo.sender.send(id_, Opcode.TEXT, b"last words")
        assert echo.sender.close_connection(id_, CloseCode.GOING_AWAY, "moving")
        assert peer.read_frame() == Frame(TEXT, b"last words")
        closing = peer.read_frame()
        assert (closing.close_code, closing.payload[2:]) == (1001, b"moving")
        peer.write(b"\x88\x82\0\0\0\0\x03\xe9")
        peer.read_eof()
    recorder.wait_for("close")


def test_the_old_name_of_close_connection_works_and_warns(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        with pytest.warns(DeprecationWarning, match=r"close_connection\(id\).*release\(\) gives up the Sender"):
            assert echo.sender.close(id_, CloseCode.GOING_AWAY, "moving")
        assert peer.read_close() == CloseCode.GOING_AWAY


def test_a_session_that_is_gone_is_refused_even_when_its_slot_is_taken_again(
    echo: ReactorThread, recorder: EchoRecorder
) -> None:
    with Peer.connect(echo.address) as peer:
        ((_, gone),) = recorder.wait_for("open")
        peer.shake_hands()
    recorder.wait_for("close")
    with Peer.connect(echo.address) as successor:
        present = recorder.wait_for("open", 2)[1][1]
        assert echo.sender.send(gone, Opcode.TEXT, b"for the dead") is False
        assert echo.sender.close_connection(gone) is False
        assert echo.sender.send(present, Opcode.TEXT, b"for the living") is True
        assert successor.read_frame() == Frame(TEXT, b"for the living")
        assert echo.sender.send(0, Opcode.TEXT, b"nobody") is False
        assert echo.sender.send(2**63, Opcode.TEXT, b"nobody") is False


def test_call_runs_on_the_reactors_thread_in_order_with_sends(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        ((_, id_),) = recorder.wait_for("open")
        threads: list[threading.Thread] = []
        conn = recorder.connections[id_]

        def function() -> None:
            threads.append(threading.current_thread())
            conn.send_text("two")

        echo.sender.send(id_, Opcode.TEXT, b"one")
        echo.sender.call(function)
        echo.sender.send(id_, Opcode.TEXT, b"three")
        assert [frame.payload for frame in peer.read_frames(3)] == [b"one", b"two", b"three"]
    assert threads[0].name == f"reactor-{echo.reactor.backend}"


def test_a_call_that_raises_is_logged_and_the_loop_goes_on(
    echo: ReactorThread, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("broken call")

    echo.sender.call(broken)
    assert echo.ask(lambda: "still here") == "still here"
    raised = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert raised == ["broken call"]


def test_waiting_commands_are_bounded(backend: Backend, recorder: EchoRecorder) -> None:
    """The reactor is not turned here, so that nothing leaves the queue."""
    ours, theirs = socket.socketpair()
    with (
        Reactor(recorder, Options(sender_commands_max=16), backend=backend) as reactor,
        Peer(theirs) as peer,
        reactor.sender() as sender,
    ):
        reactor.add_session(ours)
        run_until(reactor, lambda: recorder.of("open"))
        reactor.run_once(0)
        ((_, id_),) = recorder.of("open")
        accepted: list[bool] = []
        refused = threading.Event()

        def push() -> None:
            accepted.extend(sender.send(id_, Opcode.BINARY, b"x") for _ in range(16))
            with pytest.raises(SenderFull):
                sender.send(id_, Opcode.BINARY, b"x", timeout=0.1)
            refused.set()

        thread = threading.Thread(target=push)
        thread.start()
        thread.join(10)
        assert accepted == [True] * 16
        assert refused.is_set()
        reactor.run_once(0)
        reactor.run_once(0)
        assert peer.read_frames(16) == [Frame(BINARY, b"x")] * 16


def test_a_thread_that_waits_for_room_without_a_timeout_continues_when_there_is_room(backend: Backend) -> None:
    with Reactor(Silent(), Options(sender_commands_max=2), backend=backend) as reactor, reactor.sender() as sender:
        done: list[int] = []

        def push(number: int) -> None:
            sender.call(lambda: done.append(number))

        reactor.run_once(0)
        for number in range(2):
            push(number)
        waiting = [threading.Thread(target=push, args=(number,), daemon=True) for number in range(2, 8)]
        for thread in waiting:
            thread.start()
        waiting[0].join(0.1)
        assert all(thread.is_alive() for thread in waiting)
        run_until(reactor, lambda: len(done) == 8)
        for thread in waiting:
            thread.join(5)
            assert not thread.is_alive()
    assert done[:2] == [0, 1]
    assert sorted(done) == list(range(8))


def test_a_thread_that_waits_for_room_gets_an_error_when_the_reactor_is_closed(backend: Backend) -> None:
    errors: list[Exception] = []
    with Reactor(Silent(), Options(sender_commands_max=1), backend=backend) as reactor, reactor.sender() as sender:

        def push() -> None:
            with pytest.raises(ReactorStateError) as error:
                sender.call(print)
            errors.append(error.value)

        sender.call(lambda: None)
        thread = threading.Thread(target=push, daemon=True)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        reactor.close()
        thread.join(5)
        assert len(errors) == 1


def test_run_goes_on_while_a_sender_lives_and_then_ends(backend: Backend, recorder: EchoRecorder) -> None:
    senders = []

    def prepare(reactor: Reactor) -> None:
        senders.append(reactor.sender())
        senders.append(senders[0].clone())

    with ReactorThread(recorder, backend=backend, prepare=prepare) as server:
        server.sender.release()
        for sender in senders:
            time.sleep(0.1)
            assert server.ended is None
            assert server.is_running()
            sender.release()
        server.join()


def test_a_sender_that_was_collected_keeps_no_reactor_running(backend: Backend) -> None:
    forgotten: list[object] = []
    with ReactorThread(
        Silent(), backend=backend, prepare=lambda reactor: forgotten.append(reactor.sender().clone())
    ) as server:
        server.sender.release()
        time.sleep(0.1)
        assert server.is_running()
        forgotten.clear()
        gc.collect()
        server.join()


def test_collected_senders_are_forgotten_while_a_server_listens(backend: Backend) -> None:
    with ReactorThread(Silent(), backend=backend) as server:
        for _ in range(100):
            server.reactor.sender()
        gc.collect()
        wait_until(lambda: len(server.reactor._commands.senders) == 1)


def test_a_sender_that_is_released_or_whose_reactor_is_closed_raises(backend: Backend, recorder: EchoRecorder) -> None:
    with Reactor(recorder, backend=backend) as reactor:
        closed, orphan = reactor.sender(), reactor.sender()
        closed.release()
        closed.release()
    for sender in (closed, orphan):
        with pytest.raises(ReactorStateError):
            sender.call(print)
        with pytest.raises(ReactorStateError):
            sender.send(1, Opcode.TEXT, b"")
        with pytest.raises(ReactorStateError):
            sender.clone()
    orphan.release()


def test_the_last_sender_may_wake_a_reactor_that_is_being_freed(backend: Backend) -> None:
    """Its release ends ``run``, and the reactor's thread closes it while the release still wakes it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            reactor = Reactor(Silent(), backend=backend)
            sender = reactor.sender()

            def run(reactor: Reactor = reactor) -> None:
                with reactor:
                    reactor.run()

            thread = threading.Thread(target=run)
            thread.start()
            sender.release()
            thread.join()
    finally:
        sys.setswitchinterval(interval)


def test_a_command_after_the_last_event_repeats_no_echo(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        peer.send(TEXT, b"once")
        assert peer.read_frame() == Frame(TEXT, b"once")
        (conn,) = recorder.connections.values()
        echo.ask(lambda: conn.send_text("pushed"))
        assert peer.read_frame() == Frame(TEXT, b"pushed")
        assert peer.quiet()


def test_a_command_that_comes_too_late_is_dropped_in_silence(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The shim has failed the session with 1008, and on_close has not been called: Python does not know yet."""
    recorder = EchoRecorder()
    options = Options(backlog_bytes_max=1 << 16, close_seconds_max=0.2)
    ours, theirs = socket.socketpair()
    with theirs, Reactor(recorder, options, backend=backend) as reactor, reactor.sender() as sender:
        id_ = reactor.add_session(ours)
        reactor.run_once(0)
        for _ in range(3):
            assert sender.send(id_, Opcode.BINARY, bytes(1 << 17))
        run_until(reactor, lambda: recorder.of("close"))
    assert [event[2] for event in recorder.of("close")] == [CloseCode.POLICY_VIOLATION]
    assert caplog.records == []


def test_a_coroutine_function_cannot_be_called_by_a_sender(backend: Backend) -> None:
    async def coroutine() -> None: ...

    with (
        Reactor(Silent(), backend=backend) as reactor,
        reactor.sender() as sender,
        pytest.raises(TypeError, match="async def"),
    ):
        sender.call(coroutine)


# ---- topics


def test_publish_reaches_the_members_in_the_order_of_the_calls_with_one_command_each(
    echo: ReactorThread, recorder: EchoRecorder
) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer.connect(echo.address)) for _ in range(20)]
        recorder.wait_for("open", 20)

        def join() -> Topic:
            topic = echo.reactor.topic("room")
            for conn in recorder.connections.values():
                topic.add(conn)
            return topic

        topic = echo.ask(join)
        held = threading.Event()
        echo.sender.call(held.wait, 10)
        for number in range(30):
            echo.sender.publish("room", f"{number}")
            echo.sender.broadcast(b"%d" % number)
        assert len(echo.reactor._commands.waiting) <= 61
        held.set()
        expected = [Frame(opcode, b"%d" % number) for number in range(30) for opcode in (TEXT, BINARY)]
        for peer in peers:
            assert peer.read_frames(60) == expected
        assert echo.ask(lambda: topic.stats().addressed) == 600


def test_publish_copies_what_can_change(echo: ReactorThread, recorder: EchoRecorder) -> None:
    with Peer.connect(echo.address) as peer:
        recorder.wait_for("open")
        (conn,) = recorder.connections.values()
        echo.ask(lambda: echo.reactor.topic("room").add(conn))
        payload = bytearray(b"before" * 10_000)
        held = threading.Event()
        echo.sender.call(held.wait, 10)
        echo.sender.publish("room", payload)
        payload[:] = b"later." * 10_000
        held.set()
        assert peer.read_frame().payload == b"before" * 10_000


def test_publish_to_a_topic_that_does_not_exist_sends_nothing_and_makes_none(backend: Backend) -> None:
    with Reactor(Silent(), backend=backend) as reactor, reactor.sender() as sender:
        sender.publish("nowhere", "hello")
        reactor.run_once(0)
        assert reactor.topic("nowhere").stats().published == 0


def test_publish_refuses_at_once(backend: Backend) -> None:
    with Reactor(Silent(), Options(sender_commands_max=1), backend=backend) as reactor:
        sender = reactor.sender()
        with pytest.raises(ValueError, match="1 to 1024"):
            sender.publish("", "x")
        with pytest.raises(TypeError, match="name of a topic"):
            sender.publish(1, "x")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="payload"):
            sender.publish("room", 5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="to many"):
            sender.publish("room", b"", Opcode.PING)
        sender.publish("room", "fits")
        with pytest.raises(SenderFull):
            sender.publish("room", "too many", timeout=0)
        with pytest.raises(SenderFull):
            sender.broadcast("too many", timeout=0)
    with pytest.raises(ReactorStateError, match="closed"):
        sender.publish("room", "late")
    sender.release()
    with pytest.raises(ReactorStateError, match="released"):
        sender.publish("room", "late")
