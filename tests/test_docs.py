"""The documentation is correct: it builds without a warning, its Python runs, its configurations work."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from servers import ROOT, ReactorThread, require_tool
from uringws import Handler, Options, Reactor, Request, Response

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DEPLOYMENT = (DOCS / "guides" / "deployment.md").read_text()
START_SECONDS = 10.0


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


PYTHON = [
    pytest.param(block, id=f"{page.relative_to(DOCS)}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page.read_text(), "python"), start=1)
]


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    options = ["-W", "--keep-going", "-q", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path / "html")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "Reactor" in (tmp_path / "html" / "api.html").read_text()


@pytest.mark.parametrize("block", PYTHON)
def test_its_python_runs(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bind, run = Reactor.bind, Reactor.run

    def bind_any_port(reactor: Reactor, host: str, port: int, **others: Any) -> object:
        return bind(reactor, host, 0 if port else port, **others)

    def run_for_a_moment(reactor: Reactor) -> object:
        is_main = threading.current_thread() is threading.main_thread()
        return reactor.run_once(0) if is_main else run(reactor)

    monkeypatch.setattr(Reactor, "bind", bind_any_port)
    monkeypatch.setattr(Reactor, "run", run_for_a_moment)
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(block, "docs", "exec"), names)
    for value in names.values():
        if isinstance(value, Reactor):
            value.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_tests_it_names_exist(page: Path) -> None:
    for file, function in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?", page.read_text()):
        assert (ROOT / file).exists(), file
        assert not function or re.search(rf"^def {function}\b", (ROOT / file).read_text(), re.MULTILINE), function


class Health(Handler):
    """Echoes, and answers a health check; keeps who the peers were."""

    def __init__(self) -> None:
        self.peers: list[object] = []

    def on_request(self, request: Request) -> Response | None:
        return Response(200, body="ok\n") if request.path == "/health" else None

    def on_open(self, conn: Any) -> None:
        self.peers.append(conn.peer)

    def on_message(self, conn: Any, message: Any) -> None:
        conn.echo()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def proxy(command: list[str | Path], port: int) -> Iterator[None]:
    """A proxy that accepts connections on the port, for as long as the context lasts."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            until = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < until
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.communicate(timeout=10)


def with_ports(configuration: str, ports: dict[str, int]) -> str:
    """A configuration of the documentation with the ports it names replaced."""
    for name, port in ports.items():
        assert name in configuration
        configuration = configuration.replace(name, name.replace(re.findall(r"\d+$", name)[0], str(port)))
    return configuration


def echo_through(port: int, source: str = "127.0.0.1") -> None:
    sock = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
    with connect(f"ws://127.0.0.1:{port}/", sock=sock, proxy=None, open_timeout=10) as client:
        for message in ("aé漢😀" * 1000, bytes(range(256)) * 1000):
            client.send(message)
            assert client.recv(timeout=10) == message


def test_its_nginx_configuration_passes_a_websocket_on(tmp_path: Path) -> None:
    nginx = require_tool("nginx")
    [block] = blocks(DEPLOYMENT, "nginx")
    port = free_port()
    with ReactorThread(Health(), backend="epoll") as served:
        block = with_ports(block, {"127.0.0.1:9001": int(served.address[1]), "listen 8080": port})
        own = "".join(
            f"    {name}_temp_path {tmp_path / name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        block = block.replace("http {\n", f"http {{\n    access_log off;\n{own}", 1)
        file = tmp_path / "nginx.conf"
        file.write_text(f"daemon off;\nmaster_process off;\npid {tmp_path / 'pid'};\nevents {{}}\n{block}")
        with proxy([nginx, "-e", "stderr", "-p", tmp_path, "-c", file], port):
            echo_through(port)


def test_its_haproxy_configuration_names_the_client(tmp_path: Path) -> None:
    haproxy = require_tool("haproxy")
    [block] = blocks(DEPLOYMENT, "cfg")
    port = free_port()
    handler = Health()
    options = Options(proxy_protocol_from=["127.0.0.1"])
    with ReactorThread(handler, backend="epoll", options=options) as served:
        block = with_ports(block, {"127.0.0.1:9001": int(served.address[1]), "127.0.0.1:8081": port})
        file = tmp_path / "haproxy.cfg"
        file.write_text(block)
        with proxy([haproxy, "-db", "-f", file], port):
            echo_through(port, source="127.0.0.7")
    assert [peer[0] for peer in handler.peers if isinstance(peer, tuple)] == ["127.0.0.7"]


def test_its_systemd_unit_is_valid(tmp_path: Path) -> None:
    [block] = blocks(DEPLOYMENT, "ini")
    assert "LimitNOFILE=" in block
    (tmp_path / "chat.service").write_text(block.replace("/srv/chat/.venv/bin/python", sys.executable))
    verified = subprocess.run(
        [require_tool("systemd-analyze"), "verify", tmp_path / "chat.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "chat.service" not in verified.stderr, verified.stderr


def test_its_seccomp_command_adds_the_calls_of_io_uring(tmp_path: Path) -> None:
    (block,) = blocks(DEPLOYMENT, "sh")
    (tmp_path / "default.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}))
    subprocess.run(["sh", "-euc", block], cwd=tmp_path, check=True)
    profile = json.loads((tmp_path / "uringws.json").read_text())
    assert {name for entry in profile["syscalls"] for name in entry["names"]} == {
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
    }
