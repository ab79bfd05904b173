"""The fuzz targets build, and hold on the inputs that they begin with. How long they have run: README.md."""

import subprocess
import sys

import pytest

from servers import ROOT, require_tool


@pytest.mark.timeout(240)  # the compiler's, on a slow machine
@pytest.mark.parametrize("target", ["leaves", "deflate", "engine", "reactor", "topics"])
def test_target_holds_on_its_seeds(target: str) -> None:
    require_tool("clang")
    command = [sys.executable, "fuzz/fuzz.py", "--seconds", "2", target]
    result = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    assert f"{target}: " in result.stdout
