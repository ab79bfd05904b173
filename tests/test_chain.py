"""Chains of slices alone, in C: each case is a function of tests/c/chain.c."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from servers import ROOT, require_tool

SHIM = ROOT / "uring_shim"
SOURCE = ROOT / "tests" / "c" / "chain.c"
CASES = re.findall(r'\{"(\w+)", \w+\}', SOURCE.read_text())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chain") / "chain"
    flags = ["-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    sources = [SOURCE, *(SHIM / f"{name}.c" for name in ("block", "chain", "pages"))]
    subprocess.run(
        [require_tool("gcc"), *flags, "-Wall", "-DURS_ASSERTIONS", f"-I{SHIM}", *sources, "-o", path], check=True
    )
    return path


@pytest.mark.parametrize("case", CASES)
def test_case(program: Path, case: str) -> None:
    run = subprocess.run([program, case], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_all_cases_are_run() -> None:
    assert len(CASES) == SOURCE.read_text().count("static void") - 1  # one of them is a helper
