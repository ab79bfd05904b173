"""SIGINT and SIGTERM while a reactor runs: handled in the main thread, and restored afterwards. No policy."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any, Final

from uringws.shim import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["handled_by"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handled_by(on_signal: Callable[[int, FrameType | None], object], wake_descriptor: int) -> Iterator[None]:
    """Call `on_signal` for SIGINT and SIGTERM, in the main thread; in other threads do nothing.

    A signal that the process ignores stays ignored: a shell ignores SIGINT for its background jobs, and nohup SIGHUP.
    Each signal also writes a byte to `wake_descriptor`: otherwise a signal that comes just before a wait would be seen
    only after the wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    saved: list[tuple[signal.Signals, Any, Any]] = []
    descriptor = signal.set_wakeup_fd(wake_descriptor, warn_on_full_buffer=False)
    try:
        for number in _SIGNALS:
            action = ffi.new("struct urs_signal_action *")
            if lib.urs_signal_save(number, action) != 0:
                continue  # ignored
            saved.append((number, signal.getsignal(number), action))
            signal.signal(number, on_signal)
        yield
    finally:
        try:
            _restore(saved)
        finally:
            _write_to(descriptor)


def _write_to(descriptor: int) -> None:
    """Let signals write to the earlier descriptor again, or to none if that was closed meanwhile."""
    try:
        signal.set_wakeup_fd(descriptor)
    except (OSError, ValueError):
        signal.set_wakeup_fd(-1)


def _restore(saved: list[tuple[signal.Signals, Any, Any]]) -> None:
    """Restore Python's handlers and then the system's, which need not be those that Python installs."""
    # Blocked meanwhile: a signal between the two steps would meet neither handler.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for number, handler, action in saved:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
            lib.urs_signal_restore(number, action)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
