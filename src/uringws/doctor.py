"""`python -m uringws doctor`: which backend works here and why, which limits matter, and what to do about them.

`look` reads the machine and `try_backends` asks the kernel; `diagnose` only judges what they found.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import resource
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from uringws.backend import DEFER_TASKRUN
from uringws.core import Core
from uringws.errors import REMEDIES, UnavailableReason, UringUnavailable, check
from uringws.frames import mask_implementation
from uringws.limits import files_remedy
from uringws.options import Options
from uringws.shim import ffi, lib
from uringws.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from uringws.backend import Backend, Opened

__all__ = [
    "FEATURES",
    "SETUP_FLAGS",
    "Finding",
    "Level",
    "Machine",
    "Trial",
    "diagnose",
    "look",
    "render",
    "try_backends",
]

# From <linux/io_uring.h>, in the order of their bits.
SETUP_FLAGS: Final = (
    "IOPOLL", "SQPOLL", "SQ_AFF", "CQSIZE", "CLAMP", "ATTACH_WQ", "R_DISABLED", "SUBMIT_ALL", "COOP_TASKRUN",
    "TASKRUN_FLAG", "SQE128", "CQE32", "SINGLE_ISSUER", "DEFER_TASKRUN", "NO_MMAP", "REGISTERED_FD_ONLY",
    "NO_SQARRAY", "HYBRID_IOPOLL", "CQE_MIXED",
)  # fmt: skip
FEATURES: Final = (
    "SINGLE_MMAP", "NODROP", "SUBMIT_STABLE", "RW_CUR_POS", "CUR_PERSONALITY", "FAST_POLL", "POLL_32BITS",
    "SQPOLL_NONFIXED", "EXT_ARG", "NATIVE_WORKERS", "RSRC_TAGS", "CQE_SKIP", "LINKED_FILE", "REG_REG_RING",
    "RECVSEND_BUNDLE", "MIN_TIMEOUT", "RW_ATTR", "NO_IOWAIT",
)  # fmt: skip

_MIN_TIMEOUT: Final = 1 << FEATURES.index("MIN_TIMEOUT")
_NO_IOWAIT: Final = 1 << FEATURES.index("NO_IOWAIT")

_KIB: Final = 1024
_FILES_SPARE: Final = 64  # Python's own, listening sockets, the ring, logs
_FILES_WANTED: Final = 10_000
_MEMLOCK_WANTED_BYTES: Final = 512 * _KIB  # enough for a ring of 512 entries, with room to spare
_CAP_IPC_LOCK: Final = 14  # <linux/capability.h>
_SECCOMP_FILTER: Final = 2  # <linux/seccomp.h>


class Level(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    INFO = "--"
    LOW = "low"
    """It works, and could be better."""
    NO = "no"
    """It does not work."""


class Finding(NamedTuple):
    """One line of the report."""

    section: str
    level: Level
    text: str
    remedy: str | None = None
    """One line that says what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The limits that `look` read; None if one could not be read. A limit of -1 is "unlimited"."""

    files_max: int
    """RLIMIT_NOFILE, the soft limit."""
    files_hard_max: int
    memlock_bytes_max: int
    """RLIMIT_MEMLOCK, the soft limit, which the rings of all processes of one user share."""
    memlock_exempt: bool
    """Whether CAP_IPC_LOCK lifts it."""
    somaxconn: int | None
    """net.core.somaxconn, in connections."""
    tcp_pages: tuple[int, ...] | None
    """net.ipv4.tcp_mem: low, pressure and high, in pages, for all TCP sockets together."""
    tcp_send_bytes: tuple[int, ...] | None
    """net.ipv4.tcp_wmem: least, default and most, for one socket."""
    uring_disabled: int | None
    """kernel.io_uring_disabled; None also where the kernel has no such switch (before 6.6)."""
    seccomp: int | None
    """Seccomp of /proc/self/status: 2 is a filter, as in containers."""


class Trial(NamedTuple):
    """One backend's trial: a reactor was made and took a turn, or failed."""

    opened: Opened | None
    """None: it could not be made."""
    error: OSError | None
    """The failure; UringUnavailable if io_uring was refused at set-up."""

    @property
    def works(self) -> bool:
        """Whether a server can run on it."""
        return self.error is None


def look(proc: Path = Path("/proc")) -> Machine:
    """Read the limits of this process and of its machine."""
    files, files_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    status = dict(line.split(":", 1) for line in _read(proc / "self/status").splitlines() if ":" in line)
    capabilities = int(status.get("CapEff", "0").strip() or "0", 16)
    seccomp = status.get("Seccomp", "").strip()
    return Machine(
        files_max=files,
        files_hard_max=files_hard,
        memlock_bytes_max=memlock,
        memlock_exempt=bool(capabilities >> _CAP_IPC_LOCK & 1),
        somaxconn=_first(_numbers(proc / "sys/net/core/somaxconn")),
        tcp_pages=_numbers(proc / "sys/net/ipv4/tcp_mem"),
        tcp_send_bytes=_numbers(proc / "sys/net/ipv4/tcp_wmem"),
        uring_disabled=_first(_numbers(proc / "sys/kernel/io_uring_disabled")),
        seccomp=int(seccomp) if seccomp.isdigit() else None,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _numbers(path: Path) -> tuple[int, ...] | None:
    words = _read(path).split()
    return tuple(map(int, words)) if words and all(word.lstrip("-").isdigit() for word in words) else None


def _first(numbers: tuple[int, ...] | None) -> int | None:
    return numbers[0] if numbers else None


def try_backends() -> dict[str, Trial]:
    """Make a reactor on each backend and let it take a turn: a sandbox may refuse only what comes after set-up."""
    logger = logging.getLogger("uringws")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # the report says it all
    try:
        return {"io_uring": _try("io_uring"), "epoll": _try("epoll")}
    finally:
        logger.setLevel(level)


def _try(backend: Backend) -> Trial:
    opened = None
    try:
        core = Core(backend, Options(), frames=False, pongs=False)
        opened = core.opened
        try:
            core.start()
            check(lib.urs_reactor_turn(core.handle, 0, False), f"{backend} turn")
        finally:
            core.free()
    except OSError as error:
        return Trial(opened, error)
    return Trial(opened, None)


def diagnose(machine: Machine, trials: Mapping[str, Trial]) -> list[Finding]:
    """Judge what was found, the most important first."""
    return [*_backends(trials), *_kernel(machine, trials["io_uring"].opened), *_cpu(), *_limits(machine)]


def _backends(trials: Mapping[str, Trial]) -> Iterator[Finding]:
    for name, trial in trials.items():
        if isinstance(trial.error, UringUnavailable):
            text = f"{trial.error.strerror} ({trial.error.reason})"  # str() would repeat the remedy
            yield Finding("backend", Level.NO, text, trial.error.remedy)
        elif trial.error is not None:
            yield Finding("backend", Level.NO, f"{name}: {trial.error}")
        elif trial.opened is not None and name == "io_uring":
            yield _ring(trial.opened)
        else:
            yield Finding("backend", Level.OK, name)
    yield _auto(trials["io_uring"], trials["epoll"])


def _auto(uring: Trial, epoll: Trial) -> Finding:
    """Say which backend `auto` takes: io_uring as soon as a ring can be made."""
    if uring.works:
        return Finding("backend", Level.OK, 'backend="auto" takes io_uring')
    if uring.opened is not None:
        return Finding(
            "backend",
            Level.NO,
            'backend="auto" takes io_uring, because a ring can be made, and fails at its first turn',
            f'{REMEDIES[UnavailableReason.SECCOMP_OR_CONTAINER]}, or take backend="epoll"',
        )
    if epoll.works:
        return Finding("backend", Level.OK, 'backend="auto" takes epoll')
    return Finding("backend", Level.NO, "no server can run here")


def _ring(opened: Opened) -> Finding:
    text = f"io_uring: a ring of {opened.ring_entries} entries, {_names(SETUP_FLAGS, opened.setup_flags)}"
    if opened.ring_entries < Options().ring_entries:
        return Finding("backend", Level.LOW, f"{text}; fewer than asked for", REMEDIES[UnavailableReason.MEMLOCK])
    return Finding("backend", Level.OK, text)


def _names(names: tuple[str, ...], bits: int) -> str:
    known = [name for bit, name in enumerate(names) if bits >> bit & 1]
    rest = bits >> len(names) << len(names)
    return " ".join([*known, hex(rest)] if rest else known) or "none"


def _kernel(machine: Machine, opened: Opened | None) -> Iterator[Finding]:
    if opened is not None:
        if opened.setup_flags & DEFER_TASKRUN:
            yield Finding("kernel", Level.OK, "DEFER_TASKRUN (6.1): completions run when the reactor asks for them")
        else:
            text = "no DEFER_TASKRUN (6.1): completions interrupt the reactor"
            yield Finding("kernel", Level.LOW, text, "run Linux 6.1 or newer for full speed")
        if opened.features & _NO_IOWAIT:
            yield Finding("kernel", Level.OK, "NO_IOWAIT (6.15): an idle server shows as idle")
        else:
            yield Finding(
                "kernel", Level.INFO, "no NO_IOWAIT (6.15): monitors show an idle server as iowait; no CPU is used"
            )
        if opened.features & _MIN_TIMEOUT:
            yield Finding("kernel", Level.OK, "MIN_TIMEOUT (6.12): batch_wait_microseconds takes one system call")
        else:
            yield Finding("kernel", Level.INFO, "no MIN_TIMEOUT (6.12): batch_wait_microseconds takes a second call")
        yield _zero_copy(opened)
        yield Finding("kernel", Level.INFO, f"features: {_names(FEATURES, opened.features)}")
    if machine.uring_disabled:
        who = "for all but CAP_SYS_ADMIN and kernel.io_uring_group" if machine.uring_disabled == 1 else "for all"
        yield Finding("kernel", Level.INFO, f"kernel.io_uring_disabled = {machine.uring_disabled}: disabled {who}")
    if machine.seccomp == _SECCOMP_FILTER:
        yield Finding("kernel", Level.INFO, "a seccomp filter is on this process, as in a container")


def _zero_copy(opened: Opened) -> Finding:
    if opened.zero_copy:
        return Finding("kernel", Level.OK, "SEND_ZC: large sends may go without a copy (Options.zero_copy)")
    text = "no SEND_ZC: the receive pool could not be registered, so that all sends are copied"
    return Finding("kernel", Level.LOW, text, f"run Linux 6.0 or newer, and {REMEDIES[UnavailableReason.MEMLOCK]}")


def _cpu() -> Iterator[Finding]:
    names = ", ".join(_mask_implementations())
    yield Finding("CPU", Level.OK, f"payloads are unmasked with {mask_implementation()} (this CPU can run {names})")


def _mask_implementations() -> list[str]:
    names: list[str] = []
    while (name := lib.urs_mask_available(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode("ascii"))
    return names


def _limits(machine: Machine) -> Iterator[Finding]:
    yield _files(machine)
    yield _memlock(machine)
    if machine.somaxconn is not None:
        yield _somaxconn(machine.somaxconn, Options().listen_backlog)
    if machine.tcp_pages is not None and len(machine.tcp_pages) == 3:
        page = resource.getpagesize()
        _, pressure, most = (_bytes(pages * page) for pages in machine.tcp_pages)
        text = f"{most} of buffers for all TCP sockets, under pressure from {pressure} on (net.ipv4.tcp_mem)"
        yield Finding("limits", Level.INFO, text)
    if machine.tcp_send_bytes is not None:
        text = f"{_bytes(machine.tcp_send_bytes[-1])} of send buffer for one TCP socket (net.ipv4.tcp_wmem)"
        yield Finding("limits", Level.INFO, f"{text}: a slow reader fills this before its backlog grows")


def _files(machine: Machine) -> Finding:
    if machine.files_max == resource.RLIM_INFINITY:
        return Finding("limits", Level.OK, "open files without limit (RLIMIT_NOFILE)")
    sessions = max(0, machine.files_max - _FILES_SPARE)
    text = f"{machine.files_max} open files, so about {sessions} sessions (RLIMIT_NOFILE)"
    if machine.files_max >= _FILES_WANTED:
        return Finding("limits", Level.OK, text)
    return Finding("limits", Level.LOW, text, files_remedy(machine.files_max, machine.files_hard_max))


def _memlock(machine: Machine) -> Finding:
    limit = machine.memlock_bytes_max
    shown = (
        "memory may be locked without limit" if limit == resource.RLIM_INFINITY else f"{_bytes(limit)} of locked memory"
    )
    text = f"{shown} (RLIMIT_MEMLOCK)"
    if machine.memlock_exempt:
        return Finding("limits", Level.OK, f"{text}, which CAP_IPC_LOCK lifts here")
    if limit == resource.RLIM_INFINITY or limit >= _MEMLOCK_WANTED_BYTES:
        return Finding("limits", Level.OK, f"{text}, for all rings of this user")
    text = f"{text}, for all rings of this user: a ring of {Options().ring_entries} entries may not fit"
    return Finding("limits", Level.LOW, text, REMEDIES[UnavailableReason.MEMLOCK])


def _somaxconn(somaxconn: int, wanted: int) -> Finding:
    text = (
        f"{min(somaxconn, wanted)} connections wait to be accepted at most (net.core.somaxconn, Options.listen_backlog)"
    )
    if somaxconn >= wanted:
        return Finding("limits", Level.OK, text)
    return Finding("limits", Level.LOW, text, f"for more: sysctl -w net.core.somaxconn={wanted}")


def _bytes(count: int) -> str:
    """Return a number of bytes as text, in the largest unit in which it is 1 or more."""
    for unit, size in (("GiB", _KIB**3), ("MiB", _KIB**2), ("KiB", _KIB)):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count} bytes"


def _version(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def render(findings: Iterable[Finding]) -> str:
    """Return the report: the versions, then the findings by section, each remedy under its finding."""
    packages = [f"{name} {_version(name) or 'unknown'}" for name in ("cffi", "httptools")]
    numpy = _version("numpy")
    if numpy is not None:
        packages.append(f"numpy {numpy}")
    implementation, python = platform.python_implementation(), platform.python_version()
    machine = os.uname()
    lines = [
        f"uringws {__version__} on {implementation} {python}, with {', '.join(packages)}",
        f"{machine.sysname} {machine.release} {machine.machine}, {os.cpu_count()} CPUs",
    ]
    if numpy is None:
        lines.append('numpy is not installed: only batch handlers (on_batch) need it; pip install "uringws[batch]"')
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        lines.append(f"  {finding.level:<4}{finding.text}")
        if finding.remedy is not None:
            lines.append(f"      remedy: {finding.remedy}")
    return "\n".join(lines)
