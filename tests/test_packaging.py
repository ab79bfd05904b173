"""The package as it is published: the files of the source distribution, and its page on PyPI.

The wheel is built and installed by `.ci/run`, and looked at by `.ci/test_wheel.py`.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import build_description
from servers import ROOT

NOT_SHIPPED = re.compile(r"\.github/.*|\.gitignore")  # they serve a clone only
LEFT_BEHIND = re.compile(
    r"(^|/)(\.git|\.venv|build|dist|node_modules|__pycache__|\.\w+_cache|\.hypothesis|\w+\.egg-info)(/|$)|\.(so|o|pyc)$"
    r"|^bench/results/(?!published-)|(^|/)(PKG-INFO|setup\.cfg|\.coverage\w*)$"
)
MADE_BY_THE_BUILD = re.compile(r"PKG-INFO|setup\.cfg|src/uringws\.egg-info/.*")
BUILD_SDIST = "import build_backend, sys; build_backend.build_sdist(sys.argv[1])"
README = (ROOT / "README.md").read_text()
ADDRESS = "https://example.org/owner/uringws"


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The project's files: those that git knows, or, without git, all except the products of builds and tests."""
    if (ROOT / ".git").exists() and shutil.which("git") is not None:
        command = ["git", "ls-files", "-z"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    else:
        listing = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    return [name for name in listing if name and not LEFT_BEHIND.search(name) and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def sdist(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy: the build leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    (copy / "fuzz" / "left-over.pyc").touch()
    environment = {**os.environ, "PYTHONPATH": str(copy / "uring_shim"), build_description.VARIABLE: ADDRESS}
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-c", BUILD_SDIST, str(out)]
    subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=True, timeout=50)
    (path,) = out.glob("uringws-*.tar.gz")
    return path


def test_the_sdist_has_every_file_of_the_project_and_no_other(sdist: Path, tracked: list[str]) -> None:
    """It has everything that its tests need: distributors run them from there."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    shipped = {name for name in names if not MADE_BY_THE_BUILD.fullmatch(name)}
    assert shipped == {name for name in tracked if not NOT_SHIPPED.fullmatch(name)}


def test_the_metadata_name_version_licences_and_urls(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        (info,) = (member for member in archive if re.fullmatch(r"[^/]+/PKG-INFO", member.name))
        file = archive.extractfile(info)
        assert file is not None
        metadata = email.message_from_bytes(file.read())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Name"] == project["name"]
    assert sdist.name == f"uringws-{metadata['Version']}.tar.gz"
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE", "licenses/liburing.txt", "licenses/zlib.txt"]
    assert f"Repository, {ADDRESS}" in (metadata.get_all("Project-URL") or [])
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    assert f"]({ADDRESS}/blob/HEAD/examples/embed_aiohttp.py)" in metadata.get_payload()


def test_the_licence_of_linked_code_is_complete() -> None:
    text = " ".join((ROOT / "licenses" / "liburing.txt").read_text().split())
    assert "Jens Axboe" in text
    for part in (
        "Permission is hereby granted, free of charge, to any person",
        "The above copyright notice and this permission notice shall be included in all copies",
        'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND',
        "OTHER DEALINGS IN THE SOFTWARE.",
    ):
        assert part in text


# The page on PyPI, where a link to a file of the repository leads nowhere


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", text)


def test_every_link_of_the_page_is_a_url_or_a_heading() -> None:
    assert any("://" not in link and not link.startswith("#") for link in links(README)), "the README has no such link"
    page = build_description.description(README, ADDRESS)
    assert [link for link in links(page) if not link.startswith(("https://", "#"))] == []
    assert len(links(page)) == len(links(README))
    plot = "Messages per second of all servers compared, with quartiles"
    assert f"![{plot}]({ADDRESS}/raw/HEAD/bench/results/published-all.png)" in page


def test_without_an_address_only_the_text_of_links_is_left() -> None:
    page = build_description.description(README, None)
    assert [link for link in links(page) if not link.startswith(("https://", "#"))] == []
    assert "How that was measured, and where it does not win." in " ".join(page.split())
    assert "published-all.png" not in page
    assert build_description.project_urls(None) == {}


@pytest.mark.parametrize("address", ["github.com/owner/uringws", "http://example.org/x", "https://example.org", "x y"])
def test_an_address_that_is_none_stops_the_build(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build_description.VARIABLE, address)
    with pytest.raises(SystemExit, match=r"URINGWS_REPOSITORY.*give https://"):
        build_description.repository()


def test_an_address_may_end_in_a_slash_or_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build_description.VARIABLE, ADDRESS + "/")
    assert build_description.repository() == ADDRESS
    monkeypatch.delenv(build_description.VARIABLE)
    assert build_description.repository() is None
