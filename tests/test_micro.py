"""bench/micro: its one command compiles, runs, and reports every candidate; the figures are not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent.parent / "bench" / "micro" / "run.py"


@pytest.mark.parametrize(
    ("what", "candidates", "end"),
    [
        ("mask", ["memcpy", "scalar"], "x"),
        ("utf8", ["bytes.decode", "automaton"], "x"),
        ("headers", ["7-bit length", "16-bit length", "64-bit length"], "x"),
        ("engine", ["memcpy", "1 a read", "16 a read", "64 a read"], "x"),
        ("dispatch", ["shim, no answers", "shim, echo", "nothing", "bytes(message)", "echo()", "send(data)"], "ns"),
    ],
)
def test_micro_benchmark(what: str, candidates: list[str], end: str) -> None:
    command = [sys.executable, str(RUN), "--rounds", "1", "--seconds", "1e-6", what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    for candidate in candidates:
        found = [line for line in lines if line.startswith(candidate)]
        assert found, done.stdout
        assert all(line.endswith(end) for line in found)
