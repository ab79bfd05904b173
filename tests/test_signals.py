"""Signals while a reactor runs: it drains and logs that it waits, and afterwards each signal is as before."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from servers import STOP_SECONDS, ServerProcess, Silent, wait_until
from uringws import Reactor
from uringws.backend import Backend
from wire import TEXT, Frame, Peer

SERVER = """
import sys
from uringws import Handler, Options, Reactor

class Echo(Handler):
    def on_message(self, conn, message):
        conn.echo()

with Reactor(Echo(), Options(drain_seconds_max=float(sys.argv[2])), backend=sys.argv[1]) as reactor:
    line = "listening on ws://%s:%d (%s)" % (*reactor.bind("127.0.0.1", 0), reactor.backend)
    reactor.call_later(0, lambda: print(line, flush=True))  # when signals are taken over
    reactor.run()
print("ended", flush=True)
"""


def server(backend: Backend, drain_seconds: float = 5, **options: object) -> ServerProcess:
    return ServerProcess("-c", SERVER, backend, str(drain_seconds), **options)


def test_the_first_interrupt_drains_with_a_message_and_the_second_ends_it(backend: Backend) -> None:
    with server(backend, 600) as process, Peer.connect(process.address) as silent, Peer.connect(process.address):
        process.process.send_signal(signal.SIGINT)
        assert silent.read_close() == 1001
        wait_until(lambda: "Ctrl-C" in process.output)
        assert re.search(r"SIGINT: .*600 s.* 2 connections.*second Ctrl-C ends it at once", process.output)
        assert process.stop(signal.SIGINT) == 0
        assert "ended" in process.output


def test_an_interrupt_with_nothing_to_wait_for_says_nothing(backend: Backend) -> None:
    with server(backend, 600) as process:
        assert process.stop(signal.SIGINT) == 0
    assert process.lines[1:] == ["ended\n"]


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(backend: Backend, ignored: signal.Signals) -> None:
    """As nohup and shells leave it for programs in the background."""
    other = signal.SIGTERM if ignored is signal.SIGINT else signal.SIGINT
    with (
        server(backend, preexec_fn=lambda: signal.signal(ignored, signal.SIG_IGN)) as process,
        Peer.connect(process.address) as peer,
    ):
        for _ in range(2):
            process.process.send_signal(ignored)
            peer.send(TEXT, b"still there")
            assert peer.read_frame() == Frame(TEXT, b"still there")
        process.process.send_signal(other)
        assert peer.read_close() == 1001
        peer.close()
        assert process.process.wait(STOP_SECONDS) == 0


AS_IT_WAS = """
import faulthandler, importlib, os, signal, sys
from uringws import Handler, Reactor

number = signal.Signals[sys.argv[2]]
with open(sys.argv[3], "w") as file:
    faulthandler.register(number, file)
    if sys.argv[4:]:
        # Initialised once more, the module takes the handlers for what they are: not set from Python.
        del sys.modules["_signal"]
        importlib.import_module("_signal")
        assert signal.getsignal(number) is None, "the test itself is broken"
    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    with Reactor(Handler(), backend=sys.argv[1]) as reactor:
        reactor.bind("127.0.0.1", 0)
        reactor.call_later(0.02, reactor.stop)
        reactor.run()
    os.kill(os.getpid(), number)
after = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
assert [one or signal.SIG_DFL for one in before] == after, (before, after)
print("end", flush=True)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("known", [True, False], ids=["unknown to Python", "not set from Python"])
def test_a_handler_that_is_not_of_pythons_making_is_put_back(
    backend: Backend, number: str, tmp_path: Path, *, known: bool
) -> None:
    """faulthandler's: Python's own table says "the default", or None as in a program that embeds Python."""
    said = tmp_path / "said"
    arguments = [sys.executable, "-c", AS_IT_WAS, backend, number, str(said), *([] if known else ["None"])]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert (run.returncode, run.stdout) == (0, "end\n"), run.stderr
    assert "most recent call first" in said.read_text()


def test_handlers_are_put_back_where_the_wakeup_descriptor_of_before_was_closed(backend: Backend) -> None:
    """As where run is called with an event loop that ends meanwhile: Ctrl-C must still work after it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    before = signal.getsignal(signal.SIGINT)
    saved = signal.set_wakeup_fd(ours.fileno())
    try:
        with theirs, Reactor(Silent(), backend=backend) as reactor:
            reactor.bind("127.0.0.1", 0)
            reactor.call_later(0, ours.close)
            reactor.call_later(0, reactor.stop)
            reactor.run()
        assert signal.getsignal(signal.SIGINT) is before
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(saved)
