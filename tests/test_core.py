"""The reactor's insides, in C: states that no peer can bring about within a test's time. Each case is a function of
tests/c/reactor.c.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from servers import ROOT, require_tool

SHIM = ROOT / "uring_shim"
SOURCE = ROOT / "tests" / "c" / "reactor.c"
NOT_LINKED = {"io_uring.c", "fast_engine.c", "fast_send.c"}  # these need a kernel, or Python
CASES = re.findall(r'\{"(\w+)", \w+\}', SOURCE.read_text())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release build, without assertions: the code must keep the invariants without them."""
    path = tmp_path_factory.mktemp("core") / "reactor"
    sources = [SOURCE, *(source for source in SHIM.glob("*.c") if source.name not in NOT_LINKED)]
    flags = ["-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", f"-I{SHIM}"]
    subprocess.run(
        [require_tool("gcc"), *flags, "-DURS_FAULTS", *sources, "-Wl,--wrap=urs_session_holding", "-lz", "-o", path],
        check=True,
    )
    return path


@pytest.mark.parametrize("case", CASES)
def test_case(program: Path, case: str) -> None:
    run = subprocess.run([program, case], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_all_cases_are_run() -> None:
    assert len(CASES) >= 3
