"""The bench of stalled readers, in small: it runs, its peers really stall, and no pool buffer is held for them."""

from __future__ import annotations

import os
import shutil

import pytest

import stalled
from native import BuildError, build
from servers import missing
from summary import spread
from uringws.backend import Backend


@pytest.fixture(autouse=True)
def _generator() -> None:
    if shutil.which("cc") is None:
        missing("cc is not installed")
    try:
        build("load")
    except BuildError as error:
        missing(str(error))


def test_stalled_readers_are_left_with_a_backlog_and_no_buffer(backend: Backend) -> None:
    cores = sorted(os.sched_getaffinity(0))
    plan = stalled.Plan(
        lively=5,
        stalled=20,
        rounds=1,
        seconds=0.3,
        warmup_seconds=0.05,
        server_core=cores[0],
        client_core=cores[-1],
    )
    result = stalled.measure(plan, backend)
    assert result.pool_in_use == 0
    assert result.queued_bytes >= 20 * 100_000
    assert result.sessions == 20 + 1
    assert result.throughput.median > 0
    assert result.p99.median > 0


def test_bars() -> None:
    def result(throughput: float, p99: float, pool_in_use: int = 0) -> stalled.Result:
        one = spread([1.0])
        return stalled.Result(
            backend="epoll",
            throughput=spread([throughput]),
            p99=spread([p99]),
            messages_per_second=one,
            p99_microseconds=one,
            sessions=1,
            queued_bytes=0,
            pool_in_use=pool_in_use,
        )

    assert result(0.95, 1.5).met
    assert not result(0.85, 1.0).met
    assert not result(1.0, 2.5).met
    assert not result(1.0, 1.0, pool_in_use=1).met
