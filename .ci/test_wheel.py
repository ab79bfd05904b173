"""The wheel as users get it: installed in an environment of its own, away from the checkout.

`.ci/run` builds it and names the environment's Python in URINGWS_PYTHON, the directory of the wheel in URINGWS_DIST.
"""

import os
import re
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest
from websockets.sync.client import connect

DIST = Path(os.environ["URINGWS_DIST"])
PYTHON = Path(os.environ["URINGWS_PYTHON"])


def installed(directory: Path, *arguments: str) -> str:
    """What the installed Python prints for `arguments`."""
    return subprocess.run([PYTHON, *arguments], cwd=directory, check=True, capture_output=True, text=True).stdout


def test_there_is_one_wheel_for_every_python() -> None:
    (wheel,) = DIST.glob("*.whl")
    assert re.fullmatch(r"uringws-[\d.]+-cp311-abi3-linux_\w+\.whl", wheel.name)


def test_the_wheel_holds_no_symbols_and_all_licences(tmp_path: Path) -> None:
    (wheel,) = DIST.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extract("uringws/_shim.abi3.so", tmp_path)
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "liburing.txt", "zlib.txt"}
    shim = tmp_path / "uringws" / "_shim.abi3.so"
    sections = subprocess.run(
        ["readelf", "--sections", "--wide", str(shim)], check=True, capture_output=True, text=True
    ).stdout
    assert ".text" in sections
    assert not re.search(r"\.(symtab|debug_\w+)\b", sections)
    assert shim.stat().st_size < 500_000  # liburing and zlib are in it


def test_the_command_is_installed(tmp_path: Path) -> None:
    version = installed(tmp_path, "-c", "import uringws; print(uringws.__version__)")
    command = [str(PYTHON.parent / "uringws"), "--version"]
    printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert printed == f"uringws {version}"


def test_import_is_the_wheels(tmp_path: Path) -> None:
    where = Path(installed(tmp_path, "-c", "import uringws; print(uringws.__file__)").strip())
    assert where.is_relative_to(PYTHON.parent.parent)
    assert (where.parent / "py.typed").exists()


def test_doctor_knows_this_machine(tmp_path: Path) -> None:
    assert "io_uring" in installed(tmp_path, "-m", "uringws", "doctor")


@pytest.mark.parametrize("backend", ["io_uring", "epoll"])
def test_echo_round_trip(tmp_path: Path, backend: str) -> None:
    command = [str(PYTHON), "-u", "-m", "uringws", "echo", "--port", "0", "--backend", backend]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"listening on (ws://\S+) \((\w+)", server.stdout.readline())
            assert found is not None
            assert found[2] == backend
            with connect(found[1], proxy=None) as client:
                for message in ("aé漢😀" * 1000, bytes(range(256)) * 1000):
                    client.send(message)
                    assert client.recv() == message
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0
