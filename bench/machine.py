"""Facts to be published with each figure: kernel, CPU, versions. Nothing that identifies a machine."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("uringws", "picows", "websockets", "aiohttp", "socketify", "uvicorn", "fastapi", "uvloop", "numpy")
NODE_PACKAGES = Path(__file__).resolve().parent / "servers" / "node_modules"


def facts() -> dict[str, object]:
    """Flat enough for a line of JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "mitigations": mitigations(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions(),
    }


def cpu_model() -> str:
    """As its maker calls it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def mitigations() -> list[str]:
    """The CPU flaws against which the kernel does something: they make system calls dear."""
    flaws = Path("/sys/devices/system/cpu/vulnerabilities")
    if not flaws.is_dir():
        return []
    return sorted(flaw.name for flaw in flaws.iterdir() if flaw.read_text().startswith("Mitigation"))


def versions() -> dict[str, str]:
    """Of the contenders that are installed, and what they run on."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    node = shutil.which("node")
    if node is not None:
        found["node"] = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    description = NODE_PACKAGES / "ws" / "package.json"
    if description.exists():
        found["ws"] = json.loads(description.read_text())["version"]
    return found
