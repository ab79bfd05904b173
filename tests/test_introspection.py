"""Introspection: versions, representations, and the text of `help()`."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import pickle
import pydoc
import subprocess
import sys

import pytest

import uringws
from servers import ROOT, ReactorThread, Recorder, Silent
from uringws import Handler, Options, Reactor, Request, Stats
from uringws.__main__ import main
from uringws.backend import Backend
from wire import TEXT, Peer


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"uringws {uringws.__version__}\n"
    assert importlib.metadata.version("uringws") == uringws.__version__


@pytest.mark.parametrize("cls", [Options, Stats, Request], ids=lambda cls: cls.__name__)
def test_help_shows_each_fields_docs(cls: type) -> None:
    """Run as a user would, in a process of its own: the docs are read when they are asked for."""
    shown = subprocess.run(
        [sys.executable, "-c", f"import uringws; help(uringws.{cls.__name__})"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=20,
    ).stdout  # fmt: skip
    lines = [line.removeprefix(" |").strip() for line in shown.splitlines()]
    for field in dataclasses.fields(cls):
        assert len(lines[lines.index(field.name) + 1]) > 5, f"nothing is said of {cls.__name__}.{field.name}"


def test_help_quotes_the_source() -> None:
    assert "The largest payload of a received message, all fragments together." in pydoc.plain(
        pydoc.render_doc(Options)
    )


def test_options_and_stats_can_still_be_copied() -> None:
    options = Options(message_bytes_max=5, subprotocols=["chat"])
    assert copy.copy(options) == copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options
    assert dataclasses.replace(options, message_bytes_max=6).subprotocols == ("chat",)
    stats = Stats(sessions=3)
    assert copy.copy(stats) == pickle.loads(pickle.dumps(stats)) == stats


def test_the_repr_of_stats_has_the_fields_that_are_not_zero() -> None:
    assert repr(Stats()) == "Stats()"
    stats = Stats(backend="epoll", sessions=2, close_codes={1000: 1})
    assert repr(stats) == "Stats(backend='epoll', sessions=2, close_codes={1000: 1})"
    assert eval(repr(stats)) == stats


def test_a_reactor_and_its_senders_name_backend_address_and_state(backend: Backend) -> None:
    with Reactor(Handler(), backend=backend) as reactor:
        assert repr(reactor) == f"<Reactor {backend}, not running>"
        _, port = reactor.bind("127.0.0.1", 0)
        _, port6 = reactor.bind("::1", 0)
        where = f"{backend} on 127.0.0.1:{port}, [::1]:{port6}"
        assert repr(reactor) == f"<Reactor {where}, not running>"
        sender = reactor.sender()
        assert repr(sender) == f"<Sender of {reactor!r}>"
        sender.release()
        assert repr(sender) == f"<Sender of {reactor!r}, released>"
    assert repr(reactor) == f"<Reactor {where}, closed>"


def test_a_reactor_can_be_shown_from_any_thread(backend: Backend) -> None:
    with ReactorThread(recorder := Recorder(), backend=backend) as server, Peer.connect(server.address) as peer:
        peer.send(TEXT, b"running")
        recorder.wait_for("message")
        expected = f"<Reactor {backend} on 127.0.0.1:{server.address[1]}, running>"
        assert repr(server.reactor) == expected
        assert server.ask(lambda: repr(server.reactor)) == expected
    assert "closed" in repr(server.reactor)


def test_a_reactor_on_a_unix_socket_shows_its_path(backend: Backend, tmp_path: object) -> None:
    with Reactor(Silent(), backend=backend) as reactor:
        reactor.bind_unix(path := f"{tmp_path}/socket")
        assert path in repr(reactor)
