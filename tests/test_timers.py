"""Timers: called in time and in order on the reactor's thread, cancelled, refused elsewhere, and never in the way."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, Silent, run_until
from uringws import Connection, Handler, Message, Options, Reactor, ReactorStateError, Timer, WrongThread
from uringws.backend import Backend
from uringws.timers import Timers
from wire import TEXT, Frame, Peer

QUIET = Options(ping_interval_seconds=None)


def listening(backend: Backend, handler: Handler | None = None) -> Reactor:
    reactor = Reactor(handler or Silent(), QUIET, backend=backend)
    reactor.bind("127.0.0.1", 0)
    return reactor


@pytest.mark.parametrize("seconds", [0, 0.05, 0.2])
def test_a_timer_is_never_early_and_is_called_once(backend: Backend, seconds: float) -> None:
    moments: list[float] = []
    with listening(backend) as reactor:
        start = time.monotonic()
        reactor.call_later(seconds, lambda: moments.append(time.monotonic()))
        reactor.call_later(0.3, reactor.stop)
        reactor.run()
    (moment,) = moments
    assert seconds <= moment - start < 5


def test_arguments_are_handed_on_and_timers_come_in_the_order_of_their_times(backend: Backend) -> None:
    called: list[tuple[Any, ...]] = []
    with listening(backend) as reactor:
        for number in (3, 1, 2):
            reactor.call_later(number / 50, lambda *arguments: called.append(arguments), number, "x")
        for number in (4, 5, 6):  # of one time: in the order of the calls
            reactor.call_later(0.08, lambda *arguments: called.append(arguments), number, "x")
        reactor.call_later(0.2, reactor.stop)
        reactor.run()
    assert called == [(number, "x") for number in range(1, 7)]


def test_call_every_goes_on_until_it_is_cancelled_by_its_own_function(backend: Backend) -> None:
    moments: list[float] = []

    def tick() -> None:
        moments.append(time.monotonic())
        if len(moments) == 5:
            timer.cancel()
            timer.cancel()

    with listening(backend) as reactor:
        start = time.monotonic()
        timer = reactor.call_every(0.02, tick)
        assert repr(timer).endswith(" every 0.02 s>")
        reactor.call_later(0.3, reactor.stop)
        reactor.run()
        assert not timer.is_active
        assert "over" in repr(timer)
    assert len(moments) == 5
    for number, moment in enumerate(moments, 1):
        assert moment - start >= 0.02 * number


def test_calls_that_a_busy_reactor_missed_are_not_made_up_for(backend: Backend) -> None:
    called: list[float] = []
    with listening(backend) as reactor:
        start = time.monotonic()
        timer = reactor.call_every(0.05, lambda: called.append(time.monotonic() - start))
        reactor.call_later(0, time.sleep, 0.3)
        run_until(reactor, lambda: len(called) == 3)
        timer.cancel()
        assert repr(timer) == "<Timer, over>"
    # After the stall one call, and then at multiples of the interval again.
    assert called[1] - called[0] > 0.001
    assert called[2] - called[1] > 0.03


def test_a_cancelled_timer_is_not_called(backend: Backend) -> None:
    called: list[int] = []

    with listening(backend) as reactor:
        timers = [reactor.call_later(0.01, called.append, number) for number in range(500)]
        for timer in timers[1:]:
            timer.cancel()
        run_until(reactor, lambda: called)
        reactor.run_once(0.02)
    assert called == [0]


def test_cancelled_timers_do_not_pile_up(backend: Backend) -> None:
    """As if each message set a deadline again: the heap holds only the timers that are set, not all that ever were."""
    called: list[int] = []
    with listening(backend) as reactor:
        reactor.call_later(0.05, called.append, 1)
        for _ in range(10_000):
            reactor.call_later(3600, print).cancel()
        assert len(reactor._timers._heap) < 1000
        run_until(reactor, lambda: called)


def test_a_timer_that_was_called_keeps_its_arguments_no_longer(backend: Backend) -> None:
    class Big:
        pass

    argument = Big()
    kept = weakref.ref(argument)
    called: list[bool] = []
    with listening(backend) as reactor:
        timer = reactor.call_later(0, lambda _: called.append(True), argument)
        del argument
        run_until(reactor, lambda: called)
        gc.collect()
        assert kept() is None
        assert not timer.is_active


def test_a_timers_error_is_logged_and_other_timers_run(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    called: list[int] = []

    def broken() -> None:
        called.append(0)
        raise RuntimeError("broken timer")

    with listening(backend) as reactor:
        reactor.call_every(0.01, broken)
        reactor.call_later(0.02, called.append, 1)
        run_until(reactor, lambda: called.count(0) >= 3 and 1 in called)
    raised = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert raised == ["broken timer"] * called.count(0)


@pytest.mark.parametrize("method", ["call_later", "call_every"])
def test_keyboard_interrupt_propagates_and_other_timers_stay(backend: Backend, method: str) -> None:
    called: list[int] = []

    def interrupt() -> None:
        called.append(0)
        raise KeyboardInterrupt

    with listening(backend) as reactor:
        getattr(reactor, method)(0.01, interrupt)
        reactor.call_later(0.01, called.append, 1)
        with pytest.raises(KeyboardInterrupt):
            run_until(reactor, lambda: 1 in called)
        assert called == [0]
        reactor.run_once(0.005)
        assert 1 in called


def test_messages_of_a_timer_leave_at_once(backend: Backend) -> None:
    class Clock(Recorder):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            reactor.call_later(0.02, conn.send_text, "tick")

    with ReactorThread(Clock(), backend=backend, options=QUIET) as server:
        reactor = server.reactor
        with Peer.connect(server.address) as peer:
            assert peer.read_frame() == Frame(TEXT, b"tick")


def test_timers_are_called_while_events_never_cease(backend: Backend) -> None:
    """A turn that brings events is followed by the next one without a pause: timers must not wait for a pause."""
    called = threading.Event()

    class Answers(Handler):
        def on_message(self, conn: Connection, message: Message) -> None:
            conn.echo()

    def prepare(reactor: Reactor) -> None:
        reactor.bind("127.0.0.1", 0)
        reactor.call_later(0.1, called.set)

    with (
        ReactorThread(Answers(), backend=backend, options=QUIET, prepare=prepare) as server,
        Peer.connect(server.address) as peer,
    ):
        deadline = time.monotonic() + 10
        while not called.is_set():
            assert time.monotonic() < deadline
            peer.send(TEXT, b"busy")
            peer.read_frame()


def test_timers_run_while_the_shim_echoes(backend: Backend, recorder: EchoRecorder) -> None:
    with listening(backend) as reactor:
        reactor.call_later(0.05, reactor.stop)
        reactor.run_echo()


def test_run_once_waits_no_longer_than_until_the_next_timer(backend: Backend) -> None:
    called: list[int] = []
    with listening(backend) as reactor:
        reactor.call_later(0.05, called.append, 1)
        start = time.monotonic()
        while not called:
            assert reactor.run_once(None) == 0
        assert time.monotonic() - start < 5


def test_a_timer_keeps_no_reactor_running(backend: Backend) -> None:
    called: list[int] = []
    with Reactor(Silent(), QUIET, backend=backend) as reactor:
        reactor.call_later(3600, called.append, 1)
        reactor.call_every(3600, called.append, 1)
        reactor.run()
    assert called == []


def test_a_timer_set_by_a_timer_waits_its_turn(backend: Backend) -> None:
    """A timer that sets itself again at once stops nothing else."""
    called: list[int] = []

    def again() -> None:
        called.append(0)
        reactor.call_later(0, again)

    with listening(backend) as reactor:
        again()
        reactor.call_later(0.05, reactor.stop)
        reactor.run()
    assert len(called) > 2


def test_closing_ends_all_timers(backend: Backend) -> None:
    with listening(backend) as reactor:
        timers = [reactor.call_later(5, print), reactor.call_every(5, print)]
    assert not any(timer.is_active for timer in timers)
    for timer in timers:
        timer.cancel()
    with pytest.raises(ReactorStateError, match="closed"):
        reactor.call_later(1, print)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda reactor, _: reactor.call_later(1, print),
        lambda reactor, _: reactor.call_every(1, print),
        lambda _, timer: timer.cancel(),
    ],
    ids=["call_later", "call_every", "cancel"],
)
def test_another_thread_gets_an_error_with_the_remedy(
    echo: ReactorThread, attempt: Callable[[Reactor, Timer], object]
) -> None:
    timer = echo.ask(lambda: echo.reactor.call_later(3600, print))
    with pytest.raises(WrongThread, match="sender"):
        attempt(echo.reactor, timer)
    assert timer.is_active


WRONG: dict[str, tuple[Callable[[Any], object], type[Exception]]] = {
    "no time": (lambda reactor: reactor.call_later("soon", print), TypeError),
    "None": (lambda reactor: reactor.call_later(None, print), TypeError),
    "True": (lambda reactor: reactor.call_later(True, print), TypeError),
    "negative": (lambda reactor: reactor.call_later(-1, print), ValueError),
    "nan": (lambda reactor: reactor.call_later(float("nan"), print), ValueError),
    "infinite": (lambda reactor: reactor.call_later(float("inf"), print), ValueError),
    "no function": (lambda reactor: reactor.call_later(1, "print"), TypeError),
    "every 0": (lambda reactor: reactor.call_every(0, print), ValueError),
    "every 1 us": (lambda reactor: reactor.call_every(1e-6, print), ValueError),
    "every nan": (lambda reactor: reactor.call_every(float("nan"), print), ValueError),
    "every None": (lambda reactor: reactor.call_every(None, print), TypeError),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_at_once(name: str) -> None:
    attempt, error = WRONG[name]
    with Reactor(Silent(), QUIET, backend="epoll") as reactor, pytest.raises(error):
        attempt(reactor)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("uringws.timers.time", self)

    def monotonic(self) -> float:
        return self.now


def test_the_delays_of_a_repeated_timer_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    timers = Timers(lambda: None, print)
    calls: list[float] = []
    timers.add(1.0, 1.0, lambda: calls.append(clock.now), ())
    for late in (0.0, 0.25, 0.5, 0.75):  # by how much each call comes too late
        left = timers.seconds_left()
        assert left is not None
        clock.now += left + late
        timers.run_due()
    assert calls == [1001.0, 1002.25, 1003.5, 1004.75]
    assert timers.seconds_left() == 0.25


def test_a_timer_that_is_added_by_another_waits_for_the_next_turn_however_soon_it_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the clock has not moved in between."""
    Clock(monkeypatch)
    timers = Timers(lambda: None, print)
    calls: list[int] = []

    def again() -> None:
        calls.append(len(calls))
        if len(calls) < 100:
            timers.add(0, None, again, ())

    timers.add(0, None, again, ())
    for turn in range(1, 4):
        timers.run_due()
        assert len(calls) == turn


def test_a_coroutine_function_cannot_be_a_timer(backend: Backend) -> None:
    async def coroutine() -> None: ...

    with Reactor(Silent(), backend=backend) as reactor:
        with pytest.raises(TypeError, match="async def"):
            reactor.call_later(1, coroutine)
        with pytest.raises(TypeError, match="async def"):
            reactor.call_every(1, coroutine)
