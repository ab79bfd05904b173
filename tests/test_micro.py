"""bench/micro: its one command compiles, runs, and reports every candidate; the figures are not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent.parent / "bench" / "micro" / "run.py"


@pytest.mark.parametrize(
    ("what", "candidates"),
    [
        ("mask", ["memcpy", "scalar"]),
        ("utf8", ["bytes.decode", "automaton"]),
        ("headers", ["7-bit length", "16-bit length", "64-bit length"]),
    ],
)
def test_micro_benchmark(what: str, candidates: list[str]) -> None:
    command = [sys.executable, str(RUN), "--rounds", "1", "--seconds", "1e-6", what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    for candidate in candidates:
        found = [line for line in lines if line.startswith(candidate)]
        assert found, done.stdout
        assert all(line.endswith("x") for line in found)
