"""Random sequences of calls on a ServerEngine, inside and outside of its handler. See call_sequences.py.

A model computes what the engine must answer after each call: it is written from ServerEngine's docstrings.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from call_sequences import Trail, expect, outcome
from uringws import ConnectionClosed, EngineMessage, Opcode, ServerEngine
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame, server_frame

CALLS = 30
SIZES = (0, 1, 20, 125, 126, 3000, 70_000)


class BoomError(Exception):
    """The exception that a handler raises."""


@dataclass
class Item:
    """Something the peer sends: a message's frames, a ping, a pong or a close frame."""

    kind: str
    payload: bytes
    end: int
    """Where it ends in the peer's stream."""
    opcode: int = BINARY


class Model:
    """The stream of a peer, and the answers that an engine must give to the part that was fed."""

    def __init__(self, rng: random.Random) -> None:
        self.stream = bytearray()
        self.items: list[Item] = []
        self.fed = 0
        self.taken = 0
        """Items that were answered or delivered."""
        self.replies: list[bytes] = []
        self.closing = False
        """A close frame was queued: nothing may follow it."""
        self.ended = False
        for _ in range(rng.randrange(1, 25)):
            self._add(rng)

    def _add(self, rng: random.Random) -> None:
        kind = rng.choices(("message", "ping", "pong", "close"), (20, 4, 1, 0.5))[0]
        opcode, payload = BINARY, rng.randbytes(rng.choice(SIZES) if kind == "message" else rng.randrange(20))
        if kind == "message":
            opcode = rng.choice((TEXT, BINARY))
            payload = payload.hex()[: len(payload)].encode() if opcode == TEXT else payload
            cut = rng.randrange(len(payload) + 1)
            if rng.random() < 0.3:
                self.stream += frame(opcode, payload[:cut], fin=False) + frame(CONTINUATION, payload[cut:])
            else:
                self.stream += frame(opcode, payload)
        elif kind == "close":
            payload = b"\x0f\xa0"
            self.stream += close_frame(4000)
        else:
            self.stream += frame(PING if kind == "ping" else PONG, payload)
        self.items.append(Item(kind, payload, len(self.stream), opcode))

    def whole(self) -> bool:
        """Whether the next item was fed to its end, and counts."""
        return not self.ended and self.taken < len(self.items) and self.items[self.taken].end <= self.fed

    def take_until_message(self) -> Item | None:
        """Answer what comes before the next message that is delivered, and return that message."""
        while self.whole():
            item = self.items[self.taken]
            self.taken += 1
            if item.kind == "message" and not self.closing:
                return item
            if item.kind == "ping" and not self.closing:
                self.replies.append(server_frame(PONG, item.payload))
            elif item.kind == "close":
                self.ended = True
                if not self.closing:
                    self.close(item.payload)
        return None

    def close(self, payload: bytes) -> None:
        self.replies.append(server_frame(CLOSE, payload))
        self.closing = True

    def fail(self) -> None:
        """The handler raised."""
        self.ended = True
        if not self.closing:
            self.close(b"\x03\xf3internal error")


class Sequence:
    """One engine, its model, and the calls on both."""

    def __init__(self, rng: random.Random, trail: Trail) -> None:
        self.rng, self.trail = rng, trail
        self.engine = ServerEngine()
        self.model = Model(rng)
        self.kept: list[EngineMessage] = []
        self.slices: list[memoryview] = []
        self.unsent = False
        """The segments of process_into are not cleared yet."""
        self.fault: BaseException | None = None

    # ---- calls that are right everywhere

    def send(self) -> None:
        opcode, payload = self.rng.choice((TEXT, BINARY, PING, PONG)), b"x" * self.rng.randrange(126)
        self._changes(
            f"send({opcode}, {len(payload)} bytes)", lambda: self.engine.send(opcode, payload), opcode, payload
        )

    def close(self) -> None:
        if self.rng.random() < 0.8:
            self.look()  # after a close there is little left to test
            return
        _, error = outcome(self.trail, "close(4001)", lambda: self.engine.close(4001), (ConnectionClosed,))
        expect((error is not None) == (self.model.closing or self.model.ended), "close() after the close, or not")
        if error is None:
            self.model.close(b"\x0f\xa1")

    def _changes(self, what: str, call: Callable[[], object], opcode: int, payload: bytes) -> None:
        _, error = outcome(self.trail, what, call, (ConnectionClosed,))
        expect((error is not None) == (self.model.closing or self.model.ended), f"{what} after the close, or not")
        if error is None:
            self.model.replies.append(server_frame(opcode, payload))

    def clear(self) -> None:
        outcome(self.trail, "clear_outbound()", self.engine.clear_outbound)
        self.model.replies.clear()
        self.unsent = False

    def look(self) -> None:
        engine, model = self.engine, self.model
        closed, _ = outcome(self.trail, "is_closed", lambda: engine.is_closed)
        if not engine._feeding:
            expect(closed == model.ended, f"is_closed is {closed}")
        partial, _ = outcome(self.trail, "partial_len", lambda: engine.partial_len)
        expect(isinstance(partial, int) and partial >= 0, f"partial_len is {partial}")
        outcome(self.trail, "close_code, close_reason", lambda: (engine.close_code, engine.close_reason))
        segments, _ = outcome(self.trail, "outbound_segments()", engine.outbound_segments)
        local, _ = outcome(self.trail, "outbound_local()", engine.outbound_local)
        sizes = sum(segment.stop - segment.start for segment in segments)
        expect(
            sizes == sum(map(len, model.replies)), f"{sizes} bytes are to be sent, not {sum(map(len, model.replies))}"
        )
        expect(len(local) == sum(each.stop - each.start for each in segments if each.local), "outbound_local() differs")

    def from_another_thread(self) -> None:
        """It is refused inside of a call, and allowed outside."""
        found: list[BaseException | None] = []

        def call() -> None:
            try:
                self.rng.choice(
                    (self.engine.outbound_segments, self.engine.outbound_local, lambda: self.engine.partial_len)
                )()
                found.append(None)
            except BaseException as error:  # noqa: BLE001 - looked at below
                found.append(error)

        self.trail.note("a call from another thread")
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        wanted = RuntimeError if self.engine._feeding else type(None)
        expect(type(found[0]) is wanted, f"another thread got {found[0]!r}")

    def touch_kept(self) -> None:
        """A message whose handler has returned: its view is released, its echo too late."""
        if not self.kept:
            return
        message = self.rng.choice(self.kept)
        for what, call in {
            "bytes(old)": lambda: bytes(message),
            "len(old)": lambda: len(message),
            "old.text()": message.text,
        }.items():
            _, error = outcome(self.trail, what, call, (ValueError,))
            expect(error is not None or message.data.obj is not None, f"{what} worked after its handler")
        _, error = outcome(self.trail, "old.echo()", message.echo, (RuntimeError,))
        expect(error is not None, "an old message was echoed")
        for view in self.slices:
            bytes(view)

    # ---- the handler

    def handle(self, message: EngineMessage) -> None:
        try:
            self._handle(message)
        except BoomError:
            raise
        except BaseException as error:
            self.fault = self.fault or error
            raise

    def _handle(self, message: EngineMessage) -> None:
        item = self.model.take_until_message()
        expect(item is not None, f"a message too many: {bytes(message)!r:.80}")
        assert item is not None
        expect(
            (message.opcode, bytes(message), message.fin) == (item.opcode, item.payload, True), "another message came"
        )
        payload = bytearray(item.payload)
        echoed = False
        for _ in range(self.rng.choice((0, 1, 1, 2, 4))):
            act = self.rng.randrange(9)
            if act <= 2:
                echoed = self._echo(message, bytes(payload), echoed=echoed)
            elif act == 3 and payload and not echoed:
                payload[0] ^= 1
                message.data[0] ^= 1
            elif act == 4:
                self._reenter()
            elif act == 5 and self.rng.random() < 0.15:
                self.model.fail()
                raise BoomError("boom")
            elif act == 6 and not echoed:
                expect(bytes(message) == payload, "the message has changed under its handler")
                self.slices.append(message.data[: self.rng.randrange(len(payload) + 1)])
            else:
                self.rng.choice(
                    (self.send, self.close, self.clear, self.look, self.from_another_thread, self.touch_kept)
                )()
        if self.rng.random() < 0.3:
            self.kept.append(message)

    def _echo(self, message: EngineMessage, payload: bytes, *, echoed: bool) -> bool:
        _, error = outcome(self.trail, "message.echo()", message.echo, (ConnectionClosed, RuntimeError))
        if echoed:
            expect(isinstance(error, RuntimeError), "a second echo was taken")
        elif self.model.closing:
            expect(isinstance(error, ConnectionClosed), f"an echo after the close: {error!r}")
        else:
            expect(error is None, f"an echo was refused: {error!r}")
            self.model.replies.append(server_frame(message.opcode, payload))
            return True
        return echoed

    def _reenter(self) -> None:
        for what, call in (
            ("process in its handler", lambda: self.engine.process(b"\x81", print, print)),
            ("process_into in its handler", lambda: self.engine.process_into(bytearray(b"\x81"), print)),
        ):
            _, error = outcome(self.trail, what, call, (RuntimeError,))
            expect(error is not None, f"{what} was allowed")

    # ---- data

    def feed(self) -> None:
        model, rng = self.model, self.rng
        start = model.fed
        stop = min(len(model.stream), start + rng.choice((0, 1, 10, 500, 5000, 200_000)))
        data = bytes(model.stream[start:stop])
        if self.unsent:
            _, error = outcome(
                self.trail,
                "process before clear_outbound()",
                lambda: self.engine.process(data, print, print),
                (RuntimeError,),
            )
            expect(error is not None, "data was taken although the last segments are not sent")
            return
        model.fed = stop
        if rng.random() < 0.5:
            self._process(data)
        else:
            self._process_into(bytearray(data))

    def _process(self, data: bytes) -> None:
        written: list[bytes] = []
        given: Any = data if self.rng.random() < 0.5 else bytearray(data)
        self._run(f"process({len(data)} bytes)", lambda: self.engine.process(given, written.append, self.handle))
        expect(b"".join(written) == b"".join(self.model.replies), "process wrote other bytes than it must")
        expect(len(written) == bool(self.model.replies), "write was not called once")
        self.model.replies.clear()

    def _process_into(self, data: bytearray) -> None:
        self._run(f"process_into({len(data)} bytes)", lambda: self.engine.process_into(data, self.handle))
        local = self.engine.outbound_local()
        parts = [
            (local if segment.local else data)[segment.start : segment.stop]
            for segment in self.engine.outbound_segments()
        ]
        expect(b"".join(parts) == b"".join(self.model.replies), "the segments are not the bytes to send")
        self.unsent = bool(self.model.replies)
        if self.rng.random() < 0.8:
            self.clear()

    def _run(self, what: str, call: Callable[[], object]) -> None:
        outcome(self.trail, what, call, (BoomError,))
        if self.fault is not None:
            raise self.fault
        expect(self.model.take_until_message() is None, "a message was not delivered")

    def play(self) -> None:
        for _ in range(CALLS):
            self.rng.choice(
                (
                    self.feed,
                    self.feed,
                    self.feed,
                    self.feed,
                    self.send,
                    self.close,
                    self.clear,
                    self.look,
                    self.touch_kept,
                    self.from_another_thread,
                )
            )()
        kept, slices = self.kept, self.slices
        del self.engine
        gc.collect()
        for message in kept:
            outcome(self.trail, "echo() of an engine that is gone", message.echo, (RuntimeError,))
        for view in slices:
            bytes(view)


def engine_sequence(rng: random.Random, trail: Trail) -> None:
    expect(Opcode.TEXT == TEXT, "the model has other opcodes")
    Sequence(rng, trail).play()
