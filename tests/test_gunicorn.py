"""`gunicorn -k uringws.gunicorn.Worker`: a worker process serves WebSockets on a ring of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import ROOT, missing
from wire import TEXT, Frame, Peer, close_frame

APPLICATION = """
async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    protocol = receive.__self__
    await send({"type": "websocket.send", "text": f"{type(protocol).__module__} {protocol.mode}"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})
"""


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """gunicorn with one worker, on a free port."""
    for name in ("gunicorn", "uvicorn_worker"):
        if importlib.util.find_spec(name) is None:
            missing(f"{name} is not installed")
    (tmp_path / "application.py").write_text(APPLICATION)
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-k",
        "uringws.gunicorn.Worker",
        "-b",
        "127.0.0.1:0",
        "application:app",
    ]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT / "src"))))
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": path}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def address_of(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Wait until the worker has started, and return the address that gunicorn has written before that."""
    assert process.stderr is not None
    written = ""
    for line in process.stderr:
        written += line
        if "Application startup complete" in line:
            break
    found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", written)
    assert found is not None, written
    return "127.0.0.1", int(found[1])


def test_its_worker_serves_websockets_on_the_ring_and_closes_them_when_it_ends(
    gunicorn: subprocess.Popen[str],
) -> None:
    with Peer.connect(address_of(gunicorn)) as peer:
        assert peer.read_frame() == Frame(TEXT, b"uringws.uvicorn ring")
        peer.send(TEXT, b"hello")
        assert peer.read_frame() == Frame(TEXT, b"hello")
        gunicorn.terminate()
        assert peer.read_close() == 1012
        peer.write(close_frame(1012))
        peer.read_eof()
    assert gunicorn.wait(10) == 0
