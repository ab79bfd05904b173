"""Random sequences of calls, in processes of their own: a crash, a hang or a wrong outcome is a failed test.

call_sequences.py says how to play one again, or many.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from servers import ROOT, Recorder
from test_connections import QUIET, pairs
from uringws import (
    Accept,
    Connection,
    ConnectionClosed,
    Reactor,
    ReactorStateError,
    Response,
    encode_accept,
    encode_response,
    parse_header,
    parse_request,
)
from uringws.backend import Backend

SEQUENCES = {"leaves": 200, "engine": 150}
REACTOR_SEQUENCES = 20
SECONDS_MAX = 300.0


def play(kind: str, count: int, trail: Path) -> None:
    command = [sys.executable, "tests/call_sequences.py", kind, "--count", str(count), "--trail", str(trail)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=SECONDS_MAX, check=False
    )
    last_calls = "\n".join(trail.read_text(errors="replace").splitlines()[-60:])
    assert done.returncode == 0, f"exit status {done.returncode}\n{last_calls}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.timeout(SECONDS_MAX + 10)
def test_a_random_call_has_its_result_or_a_clear_error(kind: str, tmp_path: Path) -> None:
    play(kind, SEQUENCES[kind], tmp_path / "trail")


@pytest.mark.timeout(SECONDS_MAX + 10)
def test_a_random_call_of_a_reactor_has_its_result_or_a_clear_error_wherever_it_comes_from(
    backend: Backend, tmp_path: Path
) -> None:
    play(backend, REACTOR_SEQUENCES, tmp_path / "trail")


# Faults that such sequences have found


def test_nothing_can_be_sent_or_begun_while_the_reactor_closes(backend: Backend) -> None:
    """on_close, called by close(): a message sent there would never leave, on its own connection or another."""
    refused: list[str] = []

    class LastWords(Recorder):
        def on_close(self, conn: Connection, code: int, reason: str, /) -> None:
            for other in self.connections.values():
                assert not other.is_open
                for send in (lambda other=other: other.send_text("late"), other.ping, other.close):
                    with pytest.raises(ConnectionClosed):
                        send()
            for begin in (
                reactor.run,
                lambda: reactor.run_once(0),
                reactor.drain,
                lambda: reactor.bind("127.0.0.1", 0),
                lambda: reactor.call_later(0, print),
            ):
                with pytest.raises(ReactorStateError, match="being closed"):
                    begin()
            assert reactor.stats().sessions >= 0
            refused.append(reason)

    with pairs(2) as ((ours, _), (others, _)):
        reactor = Reactor(LastWords(), QUIET, backend=backend)
        reactor.add_session(ours)
        reactor.add_session(others)
        reactor.run_once(0)
        reactor.close()
    assert refused == ["the reactor was closed"] * 2


CYCLE = """
import gc, socket, sys
from uringws import Handler, Options, Reactor

class Fill(Handler):
    def on_open(self, conn):
        payload = memoryview(bytearray(300_000))
        try:
            for _ in range(100):
                conn.send_binary(payload)
        except Exception as error:
            error.itself = error  # and its traceback, with the frames of send
            self.failed = True

handler = Fill()
options = Options(on_full="error", backlog_bytes_max=1_000_000, ping_interval_seconds=None)
with Reactor(handler, options, backend=sys.argv[1]) as reactor:
    ours, theirs = socket.socketpair()
    reactor.add_session(ours)
    reactor.run_once(0)
    ours, other = socket.socketpair()
    reactor.drain(0)
    try:
        reactor.add_session_with_prefix(ours, memoryview(bytearray(b"prefix")))
    except Exception as error:
        error.itself = error
        refused = True
gc.collect()
assert handler.failed and refused
"""


def test_an_exception_of_a_call_with_a_memoryview_can_be_collected_from_a_cycle(backend: Backend) -> None:
    """CPython 3.11 crashes where a memoryview is collected while something still uses it (python/cpython#77894)."""
    subprocess.run([sys.executable, "-X", "faulthandler", "-c", CYCLE, backend], timeout=20, check=True)


@pytest.mark.parametrize("header", ["a\r\nSet-Cookie: b=c", "é", 5, b"bytes"])
def test_a_server_header_that_breaks_out_of_its_line_is_refused(header: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="server_header"):
        encode_response(Response(200), server_header=header)
    with pytest.raises((TypeError, ValueError), match="server_header"):
        encode_accept(b"dGhlIHNhbXBsZSBub25jZQ==", Accept(), server_header=header)


@pytest.mark.parametrize("wrong", [5, "client", b"client", 1.5])
def test_wrong_arguments_of_the_parsers_are_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match="from_client"):
        parse_header(b"\x81\x00", from_client=wrong)
    if not isinstance(wrong, (bytes, str)):
        with pytest.raises(TypeError, match="head of a request"):
            parse_request(wrong, header_count_max=10)
        with pytest.raises(TypeError, match="subprotocol"):
            Accept(subprotocol=wrong)
