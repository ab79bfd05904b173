"""Where io_uring is refused: ``auto`` serves nevertheless and says why, ``io_uring`` raises, ``doctor`` explains.

The refusals are real ones, made in a child process by ``confined.py``: a seccomp filter as in a container, or a limit
of locked memory as in a bare login shell.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import NO_URING
from servers import ROOT, ServerProcess, missing
from uringws.errors import REMEDIES, UnavailableReason
from wire import TEXT, Frame, Peer

CONFINED = Path(__file__).with_name("confined.py")
BARE_LOGIN_BYTES = 64 << 10  # the kernel's own default until 5.16, MLOCK_LIMIT in <linux/resource.h>

REFUSALS = [
    pytest.param(["--refuse", "EPERM"], "seccomp_or_container", id="EPERM"),
    pytest.param(["--refuse", "ENOSYS"], "seccomp_or_container", id="ENOSYS"),
    pytest.param(["--memlock", "0"], "memlock", id="memlock-0"),
]

# The modules that the scripts import are loaded first: the user `nobody` may be unable to read the standard library.

RAW_SETUP = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
ring = libc.syscall(425, 4096, ctypes.create_string_buffer(120))
print(ctypes.get_errno() if ring < 0 else 0)
"""

RAISE = """
from uringws import Handler, Reactor, UringUnavailable
try:
    Reactor(Handler(), backend="io_uring")
except UringUnavailable as error:
    print({"reason": str(error.reason), "remedy": error.remedy, "errno": error.errno, "text": str(error)})
"""


@pytest.fixture(autouse=True)
def _only_where_io_uring_works() -> None:
    if NO_URING is not None:
        missing(NO_URING)


def confined(confinement: list[str], program: list[str | Path]) -> str:
    """The output of ``program`` under ``confinement``; it must end with 0 and print no traceback."""
    run = subprocess.run(
        [sys.executable, CONFINED, *confinement, "--", *program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=20,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "Traceback" not in run.stdout, run.stdout
    return run.stdout


def run_source(confinement: list[str], source: str, directory: Path) -> Any:
    script = directory / "script.py"
    script.write_text(source)
    return ast.literal_eval(confined(confinement, [script]))


def skip_unless_refused(confinement: list[str], directory: Path) -> None:
    """Kernels differ in what they charge to RLIMIT_MEMLOCK: ask the system call itself, not the library."""
    if run_source(confinement, RAW_SETUP, directory) == 0:
        pytest.skip(f"this kernel gives a ring of 4096 entries under {' '.join(confinement)}")


def echo_confined(confinement: list[str], backend: str) -> ServerProcess:
    return ServerProcess(CONFINED, *confinement, "--", "-m", "uringws", "echo", "--port", "0", "--backend", backend)


def assert_echoes(server: ServerProcess) -> None:
    with Peer.connect(server.address) as peer:
        for payload in (b"", b"x" * 125, b"y" * 70_000):
            peer.send(TEXT, payload)
            assert peer.read_frame() == Frame(TEXT, payload)
        assert peer.shake_hands() == 1000


@pytest.mark.parametrize(("confinement", "reason"), REFUSALS)
def test_auto_serves_on_epoll_and_says_why_once(confinement: list[str], reason: str, tmp_path: Path) -> None:
    skip_unless_refused(confinement, tmp_path)
    with echo_confined(confinement, "auto") as server:
        assert server.backend == "epoll"
        assert_echoes(server)
        assert_echoes(server)
    told = [line for line in server.lines if reason in line]
    assert len(told) == 1, server.output
    assert REMEDIES[UnavailableReason(reason)] in told[0]


def test_auto_takes_a_smaller_ring_when_little_memory_may_be_locked(tmp_path: Path) -> None:
    confinement = ["--memlock", str(BARE_LOGIN_BYTES)]
    skip_unless_refused(confinement, tmp_path)
    with echo_confined(confinement, "auto") as server:
        assert_echoes(server)
    assert "memlock" in server.output


def test_zero_copy_that_was_asked_for_and_cannot_be_is_warned_of(tmp_path: Path) -> None:
    """The pool is locked memory: more than a bare login may have."""
    script = tmp_path / "script.py"
    for zero_copy, warns in (("always", True), ("auto", False)):
        script.write_text(
            "from uringws import Handler, Options, Reactor\n"
            f"with Reactor(Handler(), Options(zero_copy={zero_copy!r}), backend='io_uring') as reactor:\n"
            "    print('zero copy works' if reactor._core.opened.zero_copy else 'zero copy does not work')"
        )
        printed = confined(["--memlock", str(BARE_LOGIN_BYTES)], [script])
        if "zero copy works" in printed:
            pytest.skip("this kernel does not charge registered buffers to RLIMIT_MEMLOCK")
        assert ('zero_copy="always" copies' in printed and REMEDIES[UnavailableReason.MEMLOCK] in printed) == warns


@pytest.mark.parametrize(("confinement", "reason"), REFUSALS)
def test_io_uring_raises_with_reason_and_remedy(confinement: list[str], reason: str, tmp_path: Path) -> None:
    skip_unless_refused(confinement, tmp_path)
    error = run_source(confinement, RAISE, tmp_path)
    assert error["reason"] == reason
    assert error["remedy"] == REMEDIES[UnavailableReason(reason)]
    assert error["remedy"] in error["text"]
    assert error["errno"] == run_source(confinement, RAW_SETUP, tmp_path)


@pytest.mark.parametrize(("confinement", "reason"), REFUSALS)
def test_doctor_names_the_backend_the_reason_and_the_remedy(
    confinement: list[str], reason: str, tmp_path: Path
) -> None:
    skip_unless_refused(confinement, tmp_path)
    report = confined(confinement, ["-m", "uringws", "doctor"])
    assert "epoll" in report
    assert reason in report
    assert REMEDIES[UnavailableReason(reason)] in report


def test_doctor_reports_io_uring_where_it_works() -> None:
    report = confined([], ["-m", "uringws", "doctor"])
    assert "io_uring" in report
    assert not any(remedy in report for remedy in REMEDIES.values())
