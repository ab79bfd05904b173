"""The test suite of `websockets` against our classes, by a plugin that puts them in place (peers/websockets_alias.py).

It needs a checkout of websockets 17.0.1 (commit 04e599c): `URINGWS_PEERS=DIR` names the directory that has it as
`websockets`. Its tests are not in its source distribution. docs/guides/websockets.md has the reason for each test that
is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from servers import ROOT

LOOPS = ("stock", "uringws")  # a helper of the suite asks asyncio.Server for what that of uvloop lacks
PEER = Path(os.environ.get("URINGWS_PEERS", "")) / "websockets"
SUITES = ("test_server.py", "test_router.py", "test_connection.py")

NEVER = {
    "test_backpressure",
    "test_compression_is_enabled",
    "test_disable_keepalive",
    "test_keepalive",
    "test_keepalive_ignores_timeout",
    "test_keepalive_reports_errors",
    "test_keepalive_terminates_while_sleeping",
    "test_keepalive_terminates_while_waiting_for_pong",
    "test_keepalive_times_out",
    "test_unexpected_failure_in_data_received",
    "test_unexpected_failure_in_send_context",
}
"""They look inside of websockets' own classes."""
NOT_THERE = {
    "uringws": {
        "test_broadcast_reports_connection_failing_to_send",
        "test_broadcast_skips_connection_failing_to_send",
        "test_local_address",
        "test_remote_address",
        "test_writing_in_data_received_fails",
        "test_writing_in_send_context_fails",
    },
    "stock": set[str](),
}
"""They need asyncio's own transport: patch it, call `write_eof` on it, or expect its error messages."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("loop", LOOPS)
def test_the_suite_of_websockets_passes_except_for_what_is_listed(loop: str) -> None:
    if not PEER.is_dir():
        pytest.skip("URINGWS_PEERS names no directory with a checkout of websockets 17.0.1")
    paths = [PEER / "src", ROOT / "src", ROOT / "tests" / "peers"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "websockets_alias", "-p", "no:cacheprovider", "--tb=line",
         "-k", "not ClientConnectionTests", *(str(Path("tests", "asyncio", suite)) for suite in SUITES)],
        cwd=PEER, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "URINGWS_PEERS_LOOP": loop,
             "WEBSOCKETS_TESTS_TIMEOUT_FACTOR": "100"},
    )  # fmt: skip
    failed = set(re.findall(r"^FAILED \S+::(\w+)", run.stdout, re.MULTILINE))
    assert re.search(r"\d+ passed", run.stdout), run.stdout + run.stderr
    assert failed <= NEVER | NOT_THERE[loop], run.stdout
