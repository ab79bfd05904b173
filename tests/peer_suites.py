"""Runs the test suite of another package against our classes.

A plugin for pytest puts them in place: peers/uvicorn_alias.py, peers/aiohttp_alias.py.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from servers import ROOT

__all__ = ["failures"]


def failures(package: str, version: str, suite: str, loop: str, *options: str) -> set[str]:
    """Run a suite of a package's source distribution on one event loop.

    Returns the names of the tests that fail, with their parameters in brackets. `URINGWS_PEERS=DIR` names the directory
    in which the distribution is unpacked. The test is skipped without it, and where another version is installed,
    since the suite tests the installed package.
    """
    folder = Path(os.environ.get("URINGWS_PEERS", "")) / f"{package}-{version}"
    if not folder.is_dir():
        pytest.skip(f"URINGWS_PEERS names no directory with the source distribution of {package} {version}")
    if (installed := importlib.metadata.version(package)) != version:
        pytest.skip(f"{package} {installed} is installed, and the suite is of {version}")
    paths = [ROOT / "src", ROOT / "tests" / "peers"]
    run = subprocess.run(
        # -P: without the compiled modules, the package in the distribution is not the one to test
        [sys.executable, "-P", "-m", "pytest", "-q", "-o", "addopts=", "-o", "filterwarnings=",
         "-p", f"{package}_alias", "-p", "no:cacheprovider", "--tb=line", *options, suite],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "URINGWS_LOOP": loop},
    )  # fmt: skip
    assert re.search(r"\d+ passed", run.stdout), run.stdout + run.stderr
    assert not re.search(r"\d+ errors?\b", run.stdout.splitlines()[-1]), run.stdout
    return set(re.findall(r"^FAILED \S+::(\w+(?:\[[^]]*\])?)", run.stdout, re.MULTILINE))
