"""bench/micro: its one command compiles, runs, and reports every candidate; the figures are not looked at.

Where io_uring is refused, one line says so.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import NO_URING
from servers import missing

RUN = Path(__file__).resolve().parent.parent / "bench" / "micro" / "run.py"

REFUSED = """
import errno, os, runpy, sys
sys.path[:0] = [os.path.dirname(sys.argv[2]), sys.argv.pop(1)]
import confined
confined.refuse_io_uring(errno.EPERM)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("what", "candidates", "end"),
    [
        ("mask", ["memcpy", "scalar"], "x"),
        ("utf8", ["bytes.decode", "automaton"], "x"),
        ("headers", ["7-bit length", "16-bit length", "64-bit length"], "x"),
        ("engine", ["memcpy", "1 a read", "16 a read", "64 a read"], "x"),
        ("dispatch", ["shim, no answers", "shim, echo", "nothing", "bytes(message)", "echo()", "send(data)"], "ns"),
        ("memberships", ["C ", "Python"], "x"),
        ("send", ["SEND ", "SEND_ZC ", "SEND_ZC, fixed"], ("x", " copied")),
    ],
)
def test_micro_benchmark(what: str, candidates: list[str], end: str | tuple[str, ...]) -> None:
    if what == "send" and NO_URING is not None:
        missing(NO_URING)
    command = [sys.executable, str(RUN), "--rounds", "1", "--seconds", "1e-6", what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    for candidate in candidates:
        found = [line for line in lines if line.startswith(candidate)]
        assert found, done.stdout
        assert all(line.endswith(end) for line in found)


def test_memberships_beside_another_library(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(int(sys.argv[4]) * 10_000 * 50)\n")
    program.chmod(0o755)
    command = [sys.executable, str(RUN), "--rounds", "1", "--seconds", "1e-6", "memberships", "--topic-tree"]
    done = subprocess.run([*command, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the other library           50.0 ns" in done.stdout
    missing_program = subprocess.run([*command, "/no/such/program"], capture_output=True, text=True, check=False)
    assert missing_program.returncode == 0, missing_program.stderr
    assert "memberships: not on this machine: /no/such/program" in missing_program.stdout


def test_sends_without_io_uring_are_one_line() -> None:
    arguments = [str(Path(__file__).parent), str(RUN), "--rounds", "1", "send"]
    done = subprocess.run([sys.executable, "-c", REFUSED, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.split("\n", 1)[1].strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("send: not on this machine: io_uring_setup: ")
