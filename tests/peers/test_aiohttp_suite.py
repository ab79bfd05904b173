"""aiohttp's own tests of WebSockets against our class, on the ring and beside it.

docs/guides/aiohttp.md has the reason for each test that is left out.
"""

from __future__ import annotations

import pytest

from peer_suites import failures

LEFT_OUT = {
    "asyncio": set[str](),
    "uringws": {
        "test_heartbeat_connection_closed",
        "test_stalled_parser_outlives_connection_lost",
        "test_close_releases_parser",
    },
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("loop", LEFT_OUT)
def test_the_suite_of_aiohttp_passes_except_for_what_is_listed(loop: str) -> None:
    suite = "tests/test_web_websocket_functional.py"
    assert failures("aiohttp", "3.14.5", suite, loop) <= LEFT_OUT[loop]
