"""The timer wheel alone, in C, against an array of moments: no timer early, none late, none lost."""

from __future__ import annotations

import subprocess
from pathlib import Path

from servers import ROOT, require_tool


def test_every_timer_fires_once_and_in_time(tmp_path: Path) -> None:
    program = tmp_path / "wheel"
    sources = [str(ROOT / "tests" / "c" / "wheel.c"), str(ROOT / "uring_shim" / "wheel.c")]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    command = [require_tool("gcc"), "-std=gnu11", "-O1", "-g", *sanitize, f"-I{ROOT / 'uring_shim'}", *sources]
    subprocess.run([*command, "-o", str(program)], check=True)
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 50_000
