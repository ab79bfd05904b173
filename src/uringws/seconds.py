"""Durations as callers give them: checked, compared, and turned into the shim's milliseconds. No clock."""

from __future__ import annotations

from typing import Final

__all__ = ["check_seconds", "milliseconds", "sooner"]

_SECONDS_MAX: Final = 366 * 86400.0  # as of Options


def check_seconds(timeout: object) -> None:
    """Raise unless `timeout` is None or a number of seconds that a turn can wait."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"a timeout is a number of seconds or None, not {type(timeout).__name__}")
    if not 0 <= timeout <= _SECONDS_MAX:
        raise ValueError(f"a timeout of {timeout} seconds: it must be None or 0 to {_SECONDS_MAX:.0f}")


def sooner(first: float | None, second: float | None) -> float | None:
    """Return the shorter of two waits; None is a wait without end."""
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


def milliseconds(seconds: float | None) -> int:
    """Return whole milliseconds for the shim, at least 1; 0 stands for None."""
    return 0 if seconds is None else max(1, round(seconds * 1000))
