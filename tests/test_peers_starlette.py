"""Starlette's own WebSocket tests over a socket, through uvicorn with our class (peers/starlette_alias.py).

They need the source distribution of Starlette 1.10.0: `URINGWS_PEERS=DIR` names the directory that has it, unpacked, as
`starlette`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asgi_server import LOOPS
from servers import ROOT

PEER = Path(os.environ.get("URINGWS_PEERS", "")) / "starlette"
TESTS = 40
"""Of which 38 open a connection."""

NEVER = {
    "test_websocket_headers": "the request has a key of 16 bytes and an Upgrade header, which it does not expect",
    "test_rejected_connection": "it expects a close code before the accept, where HTTP has 403",
    "test_send_response_unsupported": "it expects a close code before the accept, where HTTP has 403",
    "test_receive_wrong_message_type": "it gives the application an event that no client can cause",
    "test_websocket_concurrency_pattern": "it closes after the disconnect, and expects no OSError",
}
"""They fail with uvicorn's own class, too, for these reasons."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("loop", LOOPS)
def test_the_websocket_tests_of_starlette_pass_except_for_what_is_listed(loop: str) -> None:
    if not PEER.is_dir():
        pytest.skip("URINGWS_PEERS names no directory with the source distribution of Starlette 1.10.0")
    paths = [
        ROOT / "src",
        ROOT / "tests",
        ROOT / "tests" / "peers",
        *os.environ.get("PYTHONPATH", "").split(os.pathsep),
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "starlette_alias", "-p", "no:cacheprovider", "--tb=line",
         str(Path("tests", "test_websockets.py"))],
        cwd=PEER, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "URINGWS_PEERS_LOOP": loop},
    )  # fmt: skip
    failed = set(re.findall(r"^FAILED \S+::(\w+)", run.stdout, re.MULTILINE))
    counts = re.search(r"(\d+) failed, (\d+) passed in", run.stdout)
    assert counts is not None, run.stdout + run.stderr
    assert int(counts[1]) + int(counts[2]) == TESTS
    assert failed == NEVER.keys(), run.stdout
