"""Chromium's own WebSocket, from a page, against the echo example: the sizes of test_interop.py, byte for byte.

The page comes from a small HTTP server in this process and posts its report back there, so nothing has to steer the
browser.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import json
import os
import queue
import shutil
import signal
import struct
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.sync.client import ClientConnection, connect

from servers import ServerProcess, missing
from test_interop import SIZES
from wire import BINARY, TEXT, Peer

TESTS = Path(__file__).parent
FILES = {
    "/echo.html": (TESTS / "pages" / "echo.html", "text/html"),
    "/payloads.mjs": (TESTS / "js" / "payloads.mjs", "text/javascript"),
}
REPORT_SECONDS = 45.0
SCREENSHOTS = os.environ.get("URINGWS_SCREENSHOTS")
"""A directory for pictures of the pages, to look at; none are made where it is not set."""


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
def browsing(chromium: str, url: str, profile: Path, *options: str) -> Iterator[None]:
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
                *options,
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


def test_a_page_gets_its_messages_back(
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


class Tab:
    """A page in Chromium, steered through its DevTools."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._calls = itertools.count(1)

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._calls)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(REPORT_SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait_until(self, condition: str) -> None:
        deadline = time.monotonic() + REPORT_SECONDS
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"never true: {condition}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.02)


@contextlib.contextmanager
def tab(chromium: str, url: str, profile: Path) -> Iterator[Tab]:
    with browsing(chromium, url, profile, "--remote-debugging-port=0"):
        port_file = profile / "DevToolsActivePort"
        deadline = time.monotonic() + REPORT_SECONDS
        pages: list[str] = []
        while not pages:
            assert time.monotonic() < deadline, (profile.parent / "chromium.log").read_text(errors="replace")
            time.sleep(0.05)
            if port_file.exists() and (port := port_file.read_text().partition("\n")[0]):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=REPORT_SECONDS) as listing:
                    targets = json.loads(listing.read())
                pages = [target["webSocketDebuggerUrl"] for target in targets if target["url"].startswith(url)]
        with connect(pages[0], max_size=None, proxy=None) as connection:
            yield Tab(connection)


DEVICES = {"desk": (1280, 800), "phone": (360, 640)}


@pytest.mark.parametrize("device", DEVICES)
def test_the_page_of_the_echo_example_echoes(chromium: str, tmp_path: Path, device: str) -> None:
    width, height = DEVICES[device]
    backgrounds = set()
    with (
        ServerProcess("examples/echo_uring.py", "--port", "0") as server,
        tab(chromium, f"{server.url.replace('ws', 'http', 1)}/", tmp_path / "profile") as page,
    ):
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=device == "phone",
        )  # fmt: skip
        page.wait_until("document.getElementById('state')?.className === 'open'")
        for text in ("héllo <b>😀</b>", "x" * 400):
            page.evaluate(f"byId('text').value = {json.dumps(text)}; byId('send').click()")
            page.wait_until("log.lastElementChild.className === 'back'")
            assert page.evaluate("log.lastElementChild.querySelector('p').textContent") == text
            assert page.evaluate("log.children[log.childElementCount - 2].textContent") == text
        page.evaluate("byId('burst').click()")
        page.wait_until("log.lastElementChild.className === 'notice'")
        assert "1,000 messages back" in page.evaluate("log.lastElementChild.textContent")
        assert "all of them right and in order" in page.evaluate("log.lastElementChild.textContent")

        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the screen"
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight"), "the form is below the screen"
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            if SCREENSHOTS is not None:
                shot = page.call("Page.captureScreenshot")
                (Path(SCREENSHOTS) / f"echo-{device}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
        assert len(backgrounds) == 2


def test_the_page_of_the_echo_example_comes_back_after_its_server(chromium: str, tmp_path: Path) -> None:
    with ServerProcess("examples/echo_uring.py", "--port", "0") as first:
        port = str(first.address[1])
        with tab(chromium, f"{first.url.replace('ws', 'http', 1)}/", tmp_path / "profile") as page:
            page.wait_until("document.getElementById('state')?.className === 'open'")
            first.stop()
            page.wait_until("state.textContent.startsWith('closed')")
            assert page.evaluate("byId('send').disabled && byId('burst').disabled")
            with ServerProcess("examples/echo_uring.py", "--port", port):
                page.wait_until("state.className === 'open' && !byId('send').disabled")


# ---- the chat


@contextlib.contextmanager
def chatting(chromium: str, profile: Path, query: str, port: int = 0) -> Iterator[tuple[ServerProcess, Tab]]:
    with (
        ServerProcess("examples/chat_broker.py", "--port", str(port)) as server,
        tab(chromium, f"{server.url.replace('ws', 'http', 1)}/{query}", profile) as page,
    ):
        yield server, page


def join(server: ServerProcess, name: str, room: str = "tea") -> Peer:
    peer = Peer.connect(server.address)
    peer.send(TEXT, json.dumps({"join": room, "name": name}).encode())
    return peer


def say(peer: Peer, text: str) -> None:
    peer.send(TEXT, json.dumps({"say": text}).encode())


def fits_the_screen(page: Tab) -> bool:
    return bool(
        page.evaluate(
            "document.documentElement.scrollWidth <= innerWidth && document.documentElement.scrollHeight <= innerHeight"
        )
    )


def shoot(page: Tab, name: str) -> None:
    """Take a picture of the page in both colour schemes, and check that they differ."""
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        if SCREENSHOTS is not None:
            shot = page.call("Page.captureScreenshot")
            (Path(SCREENSHOTS) / f"{name}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
    assert len(backgrounds) == 2


@pytest.mark.parametrize("device", DEVICES)
def test_the_page_of_the_chat_shows_people_texts_and_links(chromium: str, tmp_path: Path, device: str) -> None:
    width, height = DEVICES[device]
    hostile = "<img src=x onerror=alert(1)> <b>bold</b> \u202eevil"
    with chatting(chromium, tmp_path / "profile", "?room=tea&name=Bob") as (server, page):
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=device == "phone",
        )  # fmt: skip
        page.wait_until("document.getElementById('state')?.textContent === 'only you'")
        with join(server, "Ada") as ada, join(server, "ADA") as other:
            page.wait_until("state.textContent === '3 people'")
            page.wait_until("log.textContent.includes('Ada is here')")
            say(ada, hostile)
            say(ada, "see https://example.org/a?b=c&d#e, http://user@bank.example or javascript:alert(1) " + "x" * 300)
            say(other, "I am Ada")
            page.evaluate("text.value = 'hello\\nthere'; form.requestSubmit()")
            page.wait_until("document.querySelectorAll('#log .mine').length === 1")
            page.wait_until("log.textContent.includes('I am Ada')")

            said = page.evaluate("[...document.querySelectorAll('#log p')].map((p) => p.textContent)")
            assert hostile in said
            assert "hello\nthere" in said
            assert page.evaluate("document.querySelectorAll('#log img, #log b, #log script').length") == 0
            links = page.evaluate(
                "[...document.querySelectorAll('#log a')].map((a) => [a.href, a.rel, a.target, a.textContent])"
            )
            shown = "https://example.org/a?b=c&d#e"
            assert links == [[shown, "noopener noreferrer nofollow ugc", "_blank", shown]]
            tags = page.evaluate(
                "[...document.querySelectorAll('#log .who i, #people .who i')].map((i) => i.textContent)"
            )
            assert tags, "the second Ada is marked"
            assert all(tag.startswith("another, no. ") for tag in tags)
            assert fits_the_screen(page)
            shoot(page, f"chat-{device}")


def test_the_page_of_the_chat_comes_back_to_its_room_with_its_name_and_history(chromium: str, tmp_path: Path) -> None:
    with ServerProcess("examples/chat_broker.py", "--port", "0") as first:
        port = first.address[1]
        with tab(chromium, f"{first.url.replace('ws', 'http', 1)}/?room=tea&name=Bob", tmp_path / "profile") as page:
            page.wait_until("document.getElementById('state')?.textContent === 'only you'")
            page.evaluate("text.value = 'before'; form.requestSubmit()")
            page.wait_until("log.textContent.includes('before')")
            page.evaluate("socket.close()")
            page.wait_until("state.textContent.startsWith('reconnecting in ')")
            with join(first, "Ada") as ada:
                say(ada, "meanwhile")
                page.wait_until("state.textContent === '2 people' && log.textContent.includes('meanwhile')")
            said = page.evaluate("[...document.querySelectorAll('#log p')].map((p) => p.textContent)")
            assert said == ["before", "meanwhile"]
            assert page.evaluate("document.querySelectorAll('#log .missed').length") == 0
            first.stop()
            page.wait_until("state.textContent.startsWith('reconnecting in ') && byId('send').disabled")
            with ServerProcess("examples/chat_broker.py", "--port", str(port)):
                page.wait_until("state.textContent === 'only you' && !byId('send').disabled")
                page.wait_until("log.textContent.includes('The server has started again.')")


def test_the_page_of_the_chat_asks_for_a_name_and_tells_why_one_is_refused(chromium: str, tmp_path: Path) -> None:
    with chatting(chromium, tmp_path / "profile", "?room=tea") as (_, page):
        page.wait_until("document.getElementById('entry')?.open")
        page.evaluate("name.value = 'A\u202eda'; document.getElementById('join').click()")
        page.wait_until("!why.hidden && entry.open")
        assert "U+202E" in page.evaluate("why.textContent")
        page.evaluate("name.value = 'Ada'; document.getElementById('join').click()")
        page.wait_until("document.getElementById('state')?.textContent === 'only you'")
        assert page.evaluate("location.search") == "?room=tea"


def test_the_page_of_the_chat_says_how_many_messages_are_missing(chromium: str, tmp_path: Path) -> None:
    with chatting(chromium, tmp_path / "profile", "?room=tea&name=Bob") as (server, page), join(server, "Ada") as ada:
        page.wait_until("document.getElementById('state')?.textContent === '2 people'")
        say(ada, "first")
        page.wait_until("log.textContent.includes('first')")
        page.evaluate("socket.close()")
        for number in range(230):
            say(ada, f"{number}")
        page.wait_until("log.textContent.includes('229')")
        assert "30 messages are missing here" in page.evaluate("document.querySelector('#log .missed').textContent")


@pytest.mark.parametrize("device", DEVICES)
def test_the_page_of_the_market_shows_a_quick_and_two_slow_readers(chromium: str, tmp_path: Path, device: str) -> None:
    """The slow reader of conflating topics skips prices; the other one reads each, in its turn."""
    width, height = DEVICES[device]
    with (
        ServerProcess("examples/market_data.py", "--port", "0", "--subscribers", "20", "--prices", "500") as server,
        tab(chromium, f"{server.url.replace('ws', 'http', 1)}/", tmp_path / "profile") as page,
    ):
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=device == "phone",
        )  # fmt: skip
        page.wait_until("document.getElementById('state')?.textContent === 'connected'")
        page.wait_until("byId('subscribers').textContent === '22'")
        page.wait_until("readers.quick.got > 100 && readers.conflating.got > 10 && readers.queueing.got > 10")
        page.wait_until("Number(byId('conflated').textContent.replace(/,/g, '')) > 0")
        page.wait_until("document.querySelectorAll('table')[2].textContent.includes('ACME')")
        assert page.evaluate("readers.quick.section.querySelector('.late').textContent") == "up to date"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the screen"
        shoot(page, f"market-{device}")


@pytest.mark.parametrize("device", DEVICES)
def test_the_page_of_the_telemetry_shows_the_numbers_of_all_sensors(chromium: str, tmp_path: Path, device: str) -> None:
    width, height = DEVICES[device]
    with (
        ServerProcess("examples/telemetry_batch.py", "--port", "0") as server,
        tab(chromium, f"{server.url.replace('ws', 'http', 1)}/", tmp_path / "profile") as page,
    ):
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=device == "phone",
        )  # fmt: skip
        page.wait_until("document.getElementById('state')?.textContent === 'connected'")
        page.wait_until("byId('sensors').textContent === '24' && Number(byId('batch').textContent) > 1")
        assert page.evaluate(
            "[...document.querySelectorAll('svg')].map((plot) => plot.querySelectorAll('.sensor').length)"
        ) == [24, 24]
        assert page.evaluate("document.querySelectorAll('.silent').length") == 0
        x, y = page.evaluate(
            "(({ left, top, width, height }) => [left + 34 + (width - 34) * 7.5 / 24, top + height / 2])"
            "(document.querySelector('svg').getBoundingClientRect())"
        )
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        page.wait_until(
            "[...document.querySelectorAll('section p')].every((p) => p.textContent.startsWith('Sensor 7: '))"
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the screen"
        shoot(page, f"telemetry-{device}")
        page.evaluate("table.open = true")
        page.wait_until("document.querySelectorAll('tbody tr').length === 24")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the table widens the page"
        page.evaluate("socket.close()")
        page.wait_until("state.textContent.startsWith('reconnecting in ')")
        page.wait_until("state.textContent === 'connected'")


def test_the_page_of_the_telemetry_says_what_is_missing(chromium: str, tmp_path: Path) -> None:
    """No sensor yet, one that falls silent, a server that is gone and comes back."""
    arguments = ["examples/telemetry_batch.py", "--sensors", "0", "--port"]
    with ServerProcess(*arguments, "0") as first:
        port = str(first.address[1])
        with tab(chromium, f"{first.url.replace('ws', 'http', 1)}/", tmp_path / "profile") as page:
            page.wait_until("document.getElementById('state')?.textContent.endsWith('no sensor has sent anything yet')")
            with Peer.connect(first.address, "/sensor") as sensor:
                sensor.send(BINARY, struct.pack("<Iff", 5, 21.5, 40))
                page.wait_until("state.textContent === 'connected' && byId('sensors').textContent === '1'")
            page.wait_until("document.querySelectorAll('.silent').length === 2")
            first.stop()
            page.wait_until("state.textContent.startsWith('reconnecting in ') && byId('plots').className === 'old'")
            with ServerProcess(*arguments, port):
                page.wait_until("state.textContent.startsWith('connected') && byId('records').textContent === '0'")
