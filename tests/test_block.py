"""Blocks alone, in C: their reference counts hold when two threads take and drop references at the same time."""

from __future__ import annotations

import subprocess
from pathlib import Path

from servers import ROOT, require_tool

SHIM = ROOT / "uring_shim"


def test_references_may_be_taken_and_dropped_by_several_threads(tmp_path: Path) -> None:
    """ThreadSanitizer reports a count that is changed without an atomic operation."""
    program = tmp_path / "block"
    command = [require_tool("gcc"), "-std=gnu11", "-O1", "-g", "-fsanitize=thread", f"-I{SHIM}", "-pthread"]
    subprocess.run([*command, ROOT / "tests/c/block.c", SHIM / "block.c", SHIM / "pages.c", "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in run.stderr:  # addresses are randomised more than the sanitizer of gcc 12 bears
        run = subprocess.run(["setarch", "-R", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "200\n"
