"""The README is correct: its code runs, and the names in it exist."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from typing import Any

import pytest

import uringws
from servers import ROOT
from uringws import Connection, Handler, Message, Options, Reactor, Request, Sender, SendResult, ServerEngine, Stats

README = (ROOT / "README.md").read_text()
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LINKS = sorted(set(re.findall(r"\]\(([^)#]+)\)", README)))

HAS_NAMES = (uringws, Connection, Handler, Message, Options, Reactor, Request, Sender, SendResult, ServerEngine, Stats)
KNOWN_ELSEWHERE = {"MSG_DONTWAIT", "on_frame", "os.dup"}  # on_frame is there only where a handler defines it


def code(text: str) -> Iterator[str]:
    """The dotted names that a text's inline code begins with, where they can only be names."""
    for inline in re.findall(r"`([^`]+)`", text):
        found = re.match(r"[A-Za-z_][\w.]*(?=$|[(=])", inline)
        if found and ("_" in found[0] or found[0][0].isupper()) and not found[0].startswith(("URING_", "URINGWS_")):
            yield found[0]


def is_there(name: str) -> bool:
    """Whether a dotted name is one of the package's, or of its public classes'."""
    first, *rest = name.removeprefix("reactor.").removeprefix("conn.").split(".")
    for owner in HAS_NAMES:
        found: Any = getattr(owner, first, None)
        if found is None and first not in getattr(owner, "__annotations__", {}):
            continue
        if not rest or hasattr(found, rest[0]):
            return True
    return hasattr(builtins, name) or name in KNOWN_ELSEWHERE


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {README[: README.index(block)].count(chr(10)) + 1}")
def test_its_python_runs(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = Reactor.bind
    monkeypatch.setattr(Reactor, "bind", lambda reactor, host, port: bind(reactor, host, 0 if port else port))
    monkeypatch.setattr(Reactor, "run", lambda reactor: reactor.run_once(0))
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)
    for value in names.values():
        if isinstance(value, Reactor):
            value.close()


@pytest.mark.parametrize("link", [link for link in LINKS if "://" not in link])
def test_its_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("name", sorted(set(code(PROSE))))
def test_the_names_it_uses_exist(name: str) -> None:
    assert is_there(name)


def test_headings_that_it_points_to_exist() -> None:
    headings = re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
