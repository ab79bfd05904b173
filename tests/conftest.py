"""Fixtures shared by the tests: which I/O backends this machine has, and echo servers on each of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from faulty import build_with_faults
from servers import BACKENDS, MODES, EchoRecorder, ReactorThread, ServerProcess, Silent, echo_process, missing
from uringws import Reactor, UringUnavailable
from uringws.backend import Backend

# A shell starts background jobs with SIGINT ignored, and the servers that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)  # a busy machine fails no test
hypothesis.settings.load_profile("suite")


def _why_no_uring() -> str | None:
    try:
        Reactor(Silent(), backend="io_uring").close()
    except UringUnavailable as error:
        return str(error)
    return None


NO_URING = _why_no_uring()


def pytest_report_header() -> str:
    return f"io_uring: {NO_URING or 'available'}"


def _require_backend(backend: Backend) -> Backend:
    if backend == "io_uring" and NO_URING is not None:
        missing(NO_URING)
    return backend


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    """Both I/O backends in turn; without io_uring here, its half is skipped and the reason named."""
    return _require_backend(request.param)


@pytest.fixture(
    params=[(backend, mode) for backend in BACKENDS for mode in MODES],
    ids="-".join,
    scope="session",
)
def echo_server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """The echo example on each backend, in C alone (``run_echo``) and through a Python handler."""
    backend, mode = request.param
    with echo_process(_require_backend(backend), mode) as server:
        assert server.backend == backend
        yield server


@pytest.fixture(scope="session")
def faulty_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a build whose system calls fail on command; for `FaultyServer`."""
    return build_with_faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def recorder() -> EchoRecorder:
    """A handler that echoes, and keeps what happened."""
    return EchoRecorder()


@pytest.fixture
def echo(recorder: EchoRecorder, backend: Backend) -> Iterator[ReactorThread]:
    """A reactor in a thread, listening, with ``recorder`` for its handler."""
    with ReactorThread(recorder, backend=backend) as server:
        yield server
