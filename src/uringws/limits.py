"""The system's limits that a server runs into, and what raises them. Reads limits, changes none."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path
from typing import Final

__all__ = ["FILES_WANTED", "files_remedy", "warn_of_few_files"]

logger = logging.getLogger("uringws")

FILES_WANTED: Final = 65_536
"""The recommended limit of open files: one per session, and a reserve."""
_FILES_MIN: Final = 256
"""A server that can open fewer gets a warning: each browser alone keeps several connections."""


def files_remedy(soft: int, hard: int, wanted: int = FILES_WANTED) -> str:
    """Return how to raise RLIMIT_NOFILE to `wanted`, given the soft and the hard limit (-1: unlimited)."""
    elsewhere = (
        f"LimitNOFILE={wanted} in the systemd unit, docker run --ulimit nofile={wanted}, or nofile in "
        "/etc/security/limits.conf"
    )
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return f"run ulimit -n {wanted} before the server, or set {elsewhere}"
    if hard > soft:
        return f"run ulimit -n {hard} before the server, the most without privileges; for more set {elsewhere}"
    return f"the hard limit is {hard} too, so ulimit -n alone does not help: set {elsewhere}"


def warn_of_few_files(sessions_max: int | None) -> None:
    """Log a warning if so few files can still be opened that accepting would soon pause."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    left = max(0, soft - _open_files())
    if left < _FILES_MIN and (sessions_max is None or left < sessions_max):
        what = f"only {left} more files can be opened"
    elif sessions_max is not None and left < sessions_max:
        what = f"sessions_max is {sessions_max}, and only {left} more files can be opened"
    else:
        return
    remedy = files_remedy(soft, hard, max(FILES_WANTED, 2 * (sessions_max or 0)))
    logger.warning("%s (RLIMIT_NOFILE is %d), one for each connection; remedy: %s", what, soft, remedy)


def _open_files() -> int:
    try:
        return sum(1 for _ in os.scandir(Path("/proc/self/fd")))
    except OSError:
        return 0
