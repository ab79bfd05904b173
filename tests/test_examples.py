"""The examples as a reader runs them: each starts, serves, and ends on Ctrl-C with exit status 0 and no traceback."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import ROOT, STOP_SECONDS, ServerProcess
from wire import BINARY, TEXT, Frame, Peer, close_frame, http

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def example(name: str, *arguments: str) -> ServerProcess:
    return ServerProcess(Path("examples") / name, "--port", "0", *arguments)


@pytest.mark.parametrize("name", EXAMPLES)
def test_starts_and_ends_on_ctrl_c(name: str) -> None:
    """``ServerProcess`` holds it to the rest."""
    with example(name):
        pass


@pytest.mark.parametrize("name", EXAMPLES)
def test_ends_on_ctrl_c_while_a_client_is_connected(name: str) -> None:
    with example(name) as server, Peer.connect(server.address) as peer:
        server.process.send_signal(signal.SIGINT)
        assert peer.read_close() == 1001
        peer.write(close_frame(1001))
        peer.read_eof()
        peer.close()
        assert server.process.wait(STOP_SECONDS) == 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_names_the_arguments(name: str) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / name, "--help"], capture_output=True, text=True, check=True
    )
    assert "--port" in run.stdout


def test_echo_asyncio_echoes() -> None:
    with (
        example("echo_asyncio.py") as server,
        Peer.connect(server.address) as first,
        Peer.connect(server.address) as second,
    ):
        for payload in (b"", b"x" * 125, b"y" * 70_000, b"z" * (1 << 20)):
            for peer in (first, second):
                peer.send(BINARY, payload)
                assert peer.read_frame() == Frame(BINARY, payload)
        assert first.shake_hands() == 1000


@pytest.fixture
def broker() -> Iterator[ServerProcess]:
    with example("chat_broker.py") as server:
        yield server


def read_until(peer: Peer, text: str) -> None:
    while text not in peer.read_frame().payload.decode():
        pass


def test_chat_broker_carries_what_one_says_to_all(broker: ServerProcess) -> None:
    with Peer.connect(broker.address) as ada, Peer.connect(broker.address) as bob:
        ada.send(TEXT, b"hello from Ada")
        read_until(ada, "hello from Ada")
        read_until(bob, "hello from Ada")
        bob.send(TEXT, b"hello from Bob")
        read_until(ada, "hello from Bob")
        ada.shake_hands()
        bob.send(TEXT, b"anyone?")
        read_until(bob, "anyone?")


def test_chat_broker_serves_its_page(broker: ServerProcess) -> None:
    response = http(broker.address, GET)
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/html")
    assert re.search(rb"new WebSocket\(", response.body)
