"""Which I/O backend a reactor gets, and why: io_uring if it is available, else epoll, with the reason kept."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from uringws.errors import REMEDIES, UnavailableReason, UringUnavailable, check
from uringws.shim import ffi, lib

__all__ = ["DEFER_TASKRUN", "Backend", "Opened", "open_core", "why_not"]

logger = logging.getLogger("uringws")

Backend = Literal["auto", "io_uring", "epoll"]

_BACKENDS: Final = ("auto", "io_uring", "epoll")
DEFER_TASKRUN: Final = 1 << 13
"""IORING_SETUP_DEFER_TASKRUN of <linux/io_uring.h>: completions run when the reactor asks for them."""

_DISABLED: Final = Path("/proc/sys/kernel/io_uring_disabled")


@dataclass(frozen=True, slots=True)
class Opened:
    """A reactor of the shim that is not started yet, and the features that it got."""

    core: Any
    name: str
    ring_entries: int
    setup_flags: int
    features: int
    reduced: bool
    zero_copy: bool
    """Whether the receive pool is registered with the kernel, so that it can be sent from without a copy."""
    refused: UringUnavailable | None
    """Why "auto" did not take io_uring; None if it did, or was not asked."""


def why_not(error: int, stage: str) -> UringUnavailable:
    """Explain the -errno of a ring that could not be made."""
    number = -error
    if number == errno.EPERM and _sysctl_disabled():
        reason = UnavailableReason.SYSCTL
    elif number in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP) or (number == errno.ENOSYS and _seccomp_filters()):
        reason = UnavailableReason.SECCOMP_OR_CONTAINER
    elif number in (errno.ENOSYS, errno.EINVAL):
        reason = UnavailableReason.KERNEL_TOO_OLD
    elif number == errno.ENOMEM:
        reason = UnavailableReason.MEMLOCK
    elif number in (errno.EMFILE, errno.ENFILE):
        reason = UnavailableReason.FD_LIMIT
    else:
        reason = UnavailableReason.UNKNOWN
    return UringUnavailable(number, f"io_uring: {stage} failed: {os.strerror(number)}", reason, REMEDIES[reason])


def _sysctl_disabled() -> bool:
    try:
        return _DISABLED.read_text(encoding="utf-8").strip() not in ("", "0")
    except OSError:
        return False


def _seccomp_filters() -> bool:
    try:
        return "Seccomp:\t2" in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def open_core(backend: str, options: Any, rules: Any) -> Opened:
    """Open a reactor of the shim on a backend, with a `struct urs_reactor_options` and a `struct urs_rules`.

    Raises UringUnavailable for "io_uring" if it is not available, OSError if not even epoll is.
    """
    if backend not in _BACKENDS:
        raise ValueError(f'backend={backend!r}: must be "auto", "io_uring" or "epoll"')
    refused = None
    if backend != "epoll":
        opened = _open("io_uring", options, rules)
        if isinstance(opened, Opened):
            if opened.reduced:
                _warn_reduced(opened)
            if options.zero_copy == lib.URS_ZERO_COPY_ALWAYS and not opened.zero_copy:
                remedy = REMEDIES[UnavailableReason.MEMLOCK]
                logger.warning('io_uring: zero_copy="always" copies, as the pool cannot be locked; remedy: %s', remedy)
            return opened
        refused = why_not(*opened)
        if backend == "io_uring":
            raise refused
        logger.warning("serving on epoll: %s", refused)
    opened = _open("epoll", options, rules, refused)
    if isinstance(opened, Opened):
        return opened
    check(opened[0], f"epoll: {opened[1]}")
    raise AssertionError(opened)


def _warn_reduced(opened: Opened) -> None:
    """Log what the ring lacks: a flag that this kernel does not have, or entries for which memory was short."""
    if not opened.setup_flags & DEFER_TASKRUN:
        reason = UnavailableReason.KERNEL_TOO_OLD
        logger.warning("io_uring (%s): a ring without DEFER_TASKRUN; remedy: %s", reason, REMEDIES[reason])
    else:
        reason = UnavailableReason.MEMLOCK
        logger.warning(
            "io_uring (%s): a ring of only %d entries; remedy: %s", reason, opened.ring_entries, REMEDIES[reason]
        )


def _open(name: str, options: Any, rules: Any, refused: UringUnavailable | None = None) -> Opened | tuple[int, str]:
    report = ffi.new("struct urs_io_report *")
    core = lib.urs_reactor_open(name.encode(), options, rules, report)
    if core == ffi.NULL:
        return int(report.error), ffi.string(report.stage).decode()
    return Opened(
        core,
        name,
        int(report.ring_entries),
        int(report.setup_flags),
        int(report.features),
        bool(report.reduced),
        bool(report.zero_copy),
        refused,
    )
