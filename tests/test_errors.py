"""errors.py: every C result finds its exception, and base.h and the table name the same errors."""

from __future__ import annotations

import errno
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from uringws import errors
from uringws.errors import (
    BacklogFull,
    ConnectionClosed,
    HandshakeError,
    LimitReached,
    OptionsError,
    ProtocolError,
    ReactorStateError,
    SenderFull,
    UnavailableReason,
    UringUnavailable,
    UringWSError,
    WrongThread,
    check,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE_H = Path(__file__).parent.parent / "uring_shim" / "base.h"
NUMBERS = {
    name: int(number)
    for name, number in re.findall(r"(URS_ERROR_\w+) = (-\d+)", BASE_H.read_text())
    if name != "URS_ERROR_BASE"
}


@pytest.fixture(autouse=True)
def shim_of_base_h(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand in for the compiled module with the numbers of base.h, so that this file needs no build."""
    shim = ModuleType("uringws.shim")
    shim.lib = SimpleNamespace(**NUMBERS)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uringws.shim", shim)
    errors._names_by_number.cache_clear()
    yield
    errors._names_by_number.cache_clear()


def test_the_table_names_exactly_the_errors_of_base_h() -> None:
    assert set(errors.LIBRARY_ERRORS) == set(NUMBERS)
    assert len(NUMBERS) > 20


@pytest.mark.parametrize("result", [0, 1, 4096, 2**40])
def test_a_success_is_returned_as_it_is(result: int) -> None:
    assert check(result, "send") == result


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EPERM, PermissionError),
        (errno.EAGAIN, BlockingIOError),
        (errno.EPIPE, BrokenPipeError),
        (errno.ECONNRESET, ConnectionResetError),
        (errno.ENOENT, FileNotFoundError),
        (errno.ETIMEDOUT, TimeoutError),
        (errno.EADDRINUSE, OSError),
        (4095, OSError),
    ],
)
def test_an_errno_becomes_its_oserror(number: int, kind: type[OSError]) -> None:
    with pytest.raises(kind, match="bind port 9001") as caught:
        check(-number, "bind port 9001")
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("name", "kind", "close_code"),
    [
        ("URS_ERROR_RSV", ProtocolError, 1002),
        ("URS_ERROR_UNMASKED", ProtocolError, 1002),
        ("URS_ERROR_CLOSE_CODE", ProtocolError, 1002),
        ("URS_ERROR_UTF8", ProtocolError, 1007),
        ("URS_ERROR_TOO_BIG", ProtocolError, 1009),
        ("URS_ERROR_REFUSED_OPCODE", ProtocolError, 1003),
        ("URS_ERROR_STALE", ConnectionClosed, None),
        ("URS_ERROR_CLOSING", ConnectionClosed, None),
        ("URS_ERROR_FULL", BacklogFull, None),
        ("URS_ERROR_LIMIT", LimitReached, None),
        ("URS_ERROR_MEMORY_BUDGET", LimitReached, None),
        ("URS_ERROR_STATE", ReactorStateError, None),
    ],
)
def test_a_library_error_becomes_its_exception(name: str, kind: type[UringWSError], close_code: int | None) -> None:
    with pytest.raises(kind, match="parse") as caught:
        check(NUMBERS[name], "parse")
    assert type(caught.value) is kind
    assert getattr(caught.value, "close_code", None) == close_code


@pytest.mark.parametrize("name", NUMBERS)
def test_every_library_error_has_a_text(name: str) -> None:
    with pytest.raises(UringWSError, match=r"^x: \w.{10,}"):
        check(NUMBERS[name], "x")


@pytest.mark.parametrize("result", [-4096, -5000, -(2**31)])
def test_a_number_of_neither_kind_is_still_raised(result: int) -> None:
    with pytest.raises(UringWSError, match=f"unknown result {result}"):
        check(result, "turn")


def test_an_unavailable_ring_raises_with_the_remedy() -> None:
    error = UringUnavailable(errno.EPERM, "io_uring_setup", UnavailableReason.SYSCTL)
    assert isinstance(error, OSError)
    assert error.errno == errno.EPERM
    assert error.reason == "sysctl"
    assert error.remedy == errors.REMEDIES[UnavailableReason.SYSCTL]
    assert "io_uring_disabled" in str(error)


def test_an_unavailable_ring_takes_a_remedy_of_its_own() -> None:
    assert UringUnavailable(errno.EMFILE, "x", UnavailableReason.FD_LIMIT, "close some").remedy == "close some"


def test_every_reason_has_a_remedy_of_one_line() -> None:
    assert set(errors.REMEDIES) == set(UnavailableReason)
    assert all(remedy and "\n" not in remedy for remedy in errors.REMEDIES.values())


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (UringUnavailable, OSError),
        (WrongThread, RuntimeError),
        (ReactorStateError, RuntimeError),
        (SenderFull, TimeoutError),
        (OptionsError, ValueError),
        (BacklogFull, LimitReached),
    ],
)
def test_each_is_caught_as_the_builtin_it_resembles(kind: type[Exception], base: type[Exception]) -> None:
    assert issubclass(kind, base)
    assert issubclass(kind, UringWSError)


@pytest.mark.parametrize(
    "error",
    [
        UringUnavailable(errno.EPERM, "io_uring_setup", UnavailableReason.MEMLOCK, "more"),
        ProtocolError("too big", 1009),
        HandshakeError(405, "no", (("Allow", "GET"),), "handler"),
        OptionsError("ring_entries", 0, "more"),
        SenderFull("full"),
        WrongThread("not here"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes(error: UringWSError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
