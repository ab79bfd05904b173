"""Chromium's own WebSocket, from a page, against the echo example: the sizes of test_interop.py, byte for byte.

The page comes from a small HTTP server in this process and posts its report back there, so nothing has to steer the
browser.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from servers import ServerProcess, missing
from test_interop import SIZES
from wire import Peer

TESTS = Path(__file__).parent
FILES = {
    "/echo.html": (TESTS / "pages" / "echo.html", "text/html"),
    "/payloads.mjs": (TESTS / "js" / "payloads.mjs", "text/javascript"),
}
REPORT_SECONDS = 45.0


class PageServer(http.server.ThreadingHTTPServer):
    """Serves ``FILES``; what a page posts arrives in ``reports``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PageHandler)
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()


class PageHandler(http.server.BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        path, kind = FILES.get(self.path.partition("?")[0], (None, ""))
        if path is None:
            self.send_error(404)
            return
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.server.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def page_server() -> Iterator[PageServer]:
    with PageServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None) or missing("Chromium is not installed")


@contextlib.contextmanager
def browsing(chromium: str, url: str, profile: Path) -> Iterator[None]:
    """A headless Chromium with a profile of its own, which speaks to this machine only."""
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [
                chromium,
                "--headless",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"--user-data-dir={profile}",
                *(["--no-sandbox"] if os.geteuid() == 0 else []),  # its sandbox refuses root
                url,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_page_gets_back_what_it_sent(
    echo_server: ServerProcess, page_server: PageServer, chromium: str, tmp_path: Path
) -> None:
    query = urlencode({"url": echo_server.url, "sizes": json.dumps(SIZES)})
    page = f"http://127.0.0.1:{page_server.server_port}/echo.html?{query}"
    with browsing(chromium, page, tmp_path / "profile"):
        try:
            report = page_server.reports.get(timeout=REPORT_SECONDS)
        except queue.Empty:
            pytest.fail("the page reported nothing:\n" + (tmp_path / "chromium.log").read_text(errors="replace"))
    assert report["wrong"] == []
    assert report["messages"] > 4 * len(SIZES)
    assert report["closed"] == {"code": 1000, "wasClean": True}


def test_the_page_of_the_chat_joins_the_chat(chromium: str, tmp_path: Path) -> None:
    with (
        ServerProcess("examples/chat_broker.py", "--port", "0") as server,
        Peer.connect(server.address, "/?name=Ada") as ada,
        browsing(chromium, f"{server.url.replace('ws', 'http', 1)}/?name=Bob", tmp_path / "profile"),
    ):
        ada.sock.settimeout(REPORT_SECONDS)
        while b"Bob is here" not in ada.read_frame().payload:
            pass
