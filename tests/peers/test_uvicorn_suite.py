"""uvicorn's own tests of WebSockets against our class, on each event loop.

docs/guides/fastapi.md has the reason for each test that is left out.
"""

from __future__ import annotations

import pytest

from peer_suites import failures

CLIENT_ABORTS = (
    "test_send_binary_data_to_server_bigger_than_default_on_websockets[httptools-max=defaults sent=defaults+1]",
    "test_send_binary_data_to_server_bigger_than_default_on_websockets[h11-max=defaults sent=defaults+1]",
)
LEFT_OUT = {
    "asyncio": {*CLIENT_ABORTS},
    "uvloop": {"test_server_keepalive_ping_timeout"},
    "uringws": {*CLIENT_ABORTS},
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("loop", LEFT_OUT)
def test_the_suite_of_uvicorn_passes_except_for_what_is_listed(loop: str) -> None:
    suite = "tests/protocols/test_websocket.py"
    failed = failures("uvicorn", "0.54.0", suite, loop, "-k", "not wsproto")
    assert {name for name in failed if not LEFT_OUT[loop] & {name, name.partition("[")[0]}} == set()
