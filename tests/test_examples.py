"""The examples as a reader runs them: each starts, serves, and ends on Ctrl-C with exit status 0 and no traceback."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from servers import MODES, ROOT, STOP_SECONDS, ServerProcess, require_tool
from uringws.backend import Backend
from wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    Peer,
    close_frame,
    frame,
    http,
    upgrade_request,
)

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


SMALLER = {"market_data.py": ("--subscribers", "3"), "telemetry_batch.py": ("--sensors", "3")}
"""Arguments that make an example quick to start."""
PATHS = {"market_data.py": "/prices", "telemetry_batch.py": "/sensor"}
"""Where a client connects, if not at /."""


def example(name: str, *arguments: str) -> ServerProcess:
    return ServerProcess(Path("examples") / name, "--port", "0", *SMALLER.get(name, ()), *arguments)


@pytest.mark.parametrize("name", EXAMPLES)
def test_starts_and_ends_on_ctrl_c(name: str) -> None:
    """``ServerProcess`` holds it to the rest."""
    with example(name):
        pass


@pytest.mark.parametrize("name", EXAMPLES)
def test_ends_on_ctrl_c_while_a_client_is_connected(name: str) -> None:
    with example(name) as server:
        with Peer.connect(server.address, PATHS.get(name, "/")) as peer:
            server.process.send_signal(signal.SIGINT)
            answers = iter(peer.read_frame, None)
            code = next(answer for answer in answers if answer.opcode == CLOSE).close_code
            assert code == (1012 if name == "fastapi_app.py" else 1001)  # uvicorn closes with 1012
            peer.write(close_frame(code))
            peer.read_eof()
        assert server.process.wait(STOP_SECONDS) == 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_port_in_use_is_one_line(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, str(ROOT / "examples" / name), "--port", str(port)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert run.returncode == 1
    # A warning may come before it: that this machine has no io_uring.
    complaints = [line for line in run.stderr.splitlines() if str(port) in line]
    assert len(complaints) == 1, run.stderr
    assert "Traceback" not in run.stderr


WRONG_ARGUMENTS = {
    **{f"{name}-port": (name, ["--port", "70000"], "port") for name in EXAMPLES},
    **{f"{name}-host": (name, ["--host", "no.such.host.invalid"], "no.such.host.invalid") for name in EXAMPLES},
    **{
        f"tick-{text}": ("chat_broker.py", ["--tick-seconds", text], "seconds")
        for text in ("nan", "inf", "0", "-1", "x")
    },
    **{f"subscribers-{text}": ("market_data.py", ["--subscribers", text], "whole number") for text in ("x", "-1")},
    **{f"sensors-{text}": ("telemetry_batch.py", ["--sensors", text], "sensors") for text in ("x", "-1", "101")},
    "certificate-missing": ("echo_asyncio.py", ["--certificate", "no/such/file.pem"], "no/such/file.pem: No such file"),
    "certificate-bad": ("echo_asyncio.py", ["--certificate", "README.md"], "README.md: "),
    "certificate-directory": ("echo_asyncio.py", ["--certificate", "tests"], "tests: Is a directory"),
}


@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS)
def test_wrong_arguments_are_one_line_that_says_which(wrong: str) -> None:
    name, arguments, says = WRONG_ARGUMENTS[wrong]
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert run.returncode in {1, 2}
    assert "Traceback" not in run.stderr
    # A warning may come before it, that this machine has no io_uring, and argparse shows the usage.
    complaint = run.stderr.splitlines()[-1]
    assert complaint.startswith((f"{name.removesuffix('.py')}: ", f"{name}: error: "))
    assert says in complaint


@pytest.mark.parametrize("loop", ["uringws", "stock"])
def test_asyncio_serve_passes_on_what_a_client_sends(loop: str) -> None:
    with example("asyncio_serve.py", "--loop", loop) as server, connect(server.url) as one, connect(server.url) as two:
        one.send("to all")
        assert [client.recv(10) for client in (one, two)] == ["to all"] * 2
        two.send(b"\x00")
        assert [client.recv(10) for client in (one, two)] == [b"\x00"] * 2


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [("embed_aiohttp", "aiohttp", "aiohttp"), ("telemetry_batch", "numpy", '"uringws[batch]"')],
)
def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    name: str, package: str, install: str, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {package}', name='{package}')")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr == f"{name}: {package} is not installed: run pip install {install}\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_names_the_arguments(name: str) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / name, "--help"], capture_output=True, text=True, check=True
    )
    assert "--port" in run.stdout


@pytest.mark.parametrize("mode", MODES)
def test_echo_uring_names_a_client_that_works(mode: str) -> None:
    with example("echo_uring.py", "--mode", mode) as server:
        line = server.wait_for_line("in a terminal: ")
        command = shlex.split(line.partition(": ")[2].partition("#")[0])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write("hello\n")
            client.stdin.flush()
            assert any("< hello" in printed for printed in client.stdout)  # it ends when it has lost the server
            client.stdin.close()
            assert client.wait(STOP_SECONDS) == 0


@pytest.mark.parametrize(("host", "called"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")])
def test_echo_uring_names_an_address_that_can_be_reached(host: str, called: str) -> None:
    with example("echo_uring.py", "--host", host) as server:
        assert f"http://{called}:{server.address[1]}/" in server.wait_for_line("in a browser: ")


@pytest.mark.parametrize("name", ["chat_broker.py", "market_data.py", "telemetry_batch.py"])
@pytest.mark.parametrize(("host", "called"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")])
def test_a_page_is_at_an_address_that_can_be_reached(name: str, host: str, called: str) -> None:
    with example(name, "--host", host) as server:
        assert f"http://{called}:{server.address[1]}/" in server.wait_for_line("in a browser: ")


@pytest.mark.parametrize("mode", MODES)
def test_echo_uring_serves_its_page(mode: str) -> None:
    with example("echo_uring.py", "--mode", mode) as server:
        response = http(server.address, GET)
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/html")
        assert not re.search(rb"(src|href)=\"?(https?:)?//", response.body), "the page fetches something from elsewhere"
        assert http(server.address, GET.replace(b"/ ", b"/favicon.ico ", 1)).status == 404


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


def test_echo_asyncio_refuses_other_requests() -> None:
    with example("echo_asyncio.py") as server:
        assert http(server.address, GET).status == 426
        assert http(server.address, b"\x16\x03\x01\r\n\r\n").status == 400


def test_echo_asyncio_answers_fragments_pings_and_violations() -> None:
    stream = (
        frame(TEXT, b"in ", fin=False)
        + frame(PING, b"between")
        + frame(CONTINUATION, b"two")
        + frame(BINARY, b"whole")
        + frame(TEXT, b"\xff")
    )
    answers = [Frame(PONG, b"between"), Frame(TEXT, b"in two"), Frame(BINARY, b"whole")]
    with example("echo_asyncio.py") as server, Peer.connect(server.address, then=stream) as peer:
        assert peer.read_frames(3) == answers
        assert peer.read_close() == 1007
        peer.read_eof()


def test_echo_asyncio_serves_tls(tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = [require_tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*make, *subject, "-keyout", pem, "-out", tmp_path / "public.pem"], capture_output=True, check=True)
    pem.write_bytes(pem.read_bytes() + (tmp_path / "public.pem").read_bytes())
    with example("echo_asyncio.py", "--certificate", str(pem)) as server:
        trust = ssl.create_default_context(cafile=str(tmp_path / "public.pem"))
        host, port = server.address
        with connect(f"wss://{host}:{port}", ssl=trust) as client:
            client.send("secret")
            assert client.recv() == "secret"


# aiohttp for HTTP, the reactor for WebSocket


@pytest.fixture
def embedded(backend: Backend) -> Iterator[ServerProcess]:
    with example("embed_aiohttp.py", "--backend", backend) as server:
        yield server


def ask(server: ServerProcess, path: str, body: bytes | None = None) -> bytes:
    """A request to aiohttp; with a body it is a POST."""
    host, port = server.address
    with urllib.request.urlopen(f"http://{host}:{port}{path}", body, timeout=10) as response:
        return bytes(response.read())


def test_embed_aiohttp_loses_no_byte_between_the_two(embedded: ServerProcess) -> None:
    """The first frames come in the request's own segment, cut in the middle of one."""
    assert b"aiohttp" in ask(embedded, "/")
    payloads = [b"eager", b"x" * 70_000, b""]
    stream = b"".join(frame(BINARY, payload) for payload in payloads)
    for cut in (0, 3, 11, 14, 5000):
        with Peer.connect(embedded.address, then=stream[:cut]) as peer:
            peer.write(stream[cut:])
            assert peer.read_frames(3) == [Frame(BINARY, payload) for payload in payloads]
            assert peer.shake_hands() == 1000
    assert b"aiohttp" in ask(embedded, "/")


def test_embed_aiohttp_pushes_from_http_to_all(embedded: ServerProcess) -> None:
    with Peer.connect(embedded.address) as ada, Peer.connect(embedded.address) as bob:
        for peer in (ada, bob):
            peer.send(TEXT, b"here")
            assert peer.read_frame() == Frame(TEXT, b"here")
        assert ask(embedded, "/say", "né".encode()) == b"said\n"
        for peer in (ada, bob):
            assert peer.read_frame() == Frame(TEXT, "né".encode())


def test_embed_aiohttp_refuses_other_requests_in_http(embedded: ServerProcess) -> None:
    with Peer.dial(embedded.address) as peer:
        peer.write(upgrade_request().replace(b"Version: 13", b"Version: 9"))
        assert peer.read_response().status == 400


def test_fastapi_app_speaks_to_everybody_and_answers_http() -> None:
    with example("fastapi_app.py") as server, Peer.connect(server.address) as one, Peer.connect(server.address) as two:
        one.send(TEXT, b"hello")
        assert one.read_frame() == two.read_frame() == Frame(TEXT, b"hello")
        assert b"served by uringws" in ask(server, "/")


def test_the_line_in_fastapi_apps_docstring_starts_it(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "fastapi_app.py").read_text()
    (line,) = re.findall(r"^    (uvicorn .*)$", text, re.MULTILINE)
    command = [sys.executable, "-m", *shlex.split(line), "--uds", str(tmp_path / "socket")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("Uvicorn running" in printed for printed in process.stderr)
        with Peer.connect(str(tmp_path / "socket")) as peer:
            peer.send(TEXT, b"hello")
            assert peer.read_frame() == Frame(TEXT, b"hello")
            assert peer.shake_hands() == 1000
        process.send_signal(signal.SIGTERM)
        process.stderr.read()


@pytest.mark.parametrize("name", ["embed_aiohttp.py", "fastapi_app.py"])
def test_an_example_of_another_servers_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) < 60
