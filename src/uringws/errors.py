"""Every exception the library raises, and the one function that turns a negative C result into one.

A peer's mistake is a close code and reaches the handler; the caller's mistakes, and the system's refusals, are raised
from here. No I/O, no policy, and no state.
"""

# ruff: noqa: N818  (a name says what happened, as KeyboardInterrupt does; not all of these are errors)

from __future__ import annotations

import errno as errno_names
import functools
import os
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BacklogFull",
    "ConnectionClosed",
    "Gap",
    "HandshakeError",
    "LimitReached",
    "OptionsError",
    "ProtocolError",
    "ReactorStateError",
    "RejectReason",
    "SenderFull",
    "UnavailableReason",
    "UringUnavailable",
    "UringWSError",
    "WrongThread",
    "check",
    "error_of",
]


class UringWSError(Exception):
    """The base of every exception of this library: `except UringWSError` catches them all."""


class UnavailableReason(StrEnum):
    """Why the kernel gave no ring (io_uring_setup(2), ERRORS). `REMEDIES` says what to do about each."""

    KERNEL_TOO_OLD = "kernel_too_old"
    """It has no io_uring (before 5.1), or lacks a feature that is needed (before 6.0)."""
    SYSCTL = "sysctl"
    """kernel.io_uring_disabled is set (Linux 6.6 and later)."""
    SECCOMP_OR_CONTAINER = "seccomp_or_container"
    """A filter of system calls refuses it, as container runtimes do by default, or a security module."""
    MEMLOCK = "memlock"
    """RLIMIT_MEMLOCK (getrlimit(2)) leaves no room for a ring."""
    FD_LIMIT = "fd_limit"
    """No descriptor is left, for this process or the whole system."""
    UNKNOWN = "unknown"
    """Anything else; `UringUnavailable.errno` has it."""


REMEDIES: Final[Mapping[UnavailableReason, str]] = MappingProxyType(
    {
        UnavailableReason.KERNEL_TOO_OLD: 'run Linux 6.0 or newer (6.1 for full speed), or take backend="epoll"',
        UnavailableReason.SYSCTL: (
            "set kernel.io_uring_disabled to 0, or to 1 with this process's group in kernel.io_uring_group "
            "(sysctl -w kernel.io_uring_disabled=0)"
        ),
        UnavailableReason.SECCOMP_OR_CONTAINER: (
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile "
            "(docker run --security-opt seccomp=<profile>; in Kubernetes a Localhost seccompProfile)"
        ),
        UnavailableReason.MEMLOCK: (
            "raise the locked-memory limit (LimitMEMLOCK=64M in systemd, docker run --ulimit memlock=67108864, "
            "memlock in /etc/security/limits.conf), or lower ring_entries"
        ),
        UnavailableReason.FD_LIMIT: "raise the limit of open files (ulimit -n, LimitNOFILE= in systemd)",
        UnavailableReason.UNKNOWN: 'see "python -m uringws doctor", or take backend="epoll"',
    }
)
"""One line per reason that says what to do about it."""


class UringUnavailable(UringWSError, OSError):
    """io_uring is not available here, and `backend="io_uring"` asked for nothing else.

    Attributes: `errno` and `strerror` as of any OSError, `reason`, and `remedy`, one line that says what to do.
    """

    def __init__(
        self,
        errno: int,
        strerror: str,
        reason: UnavailableReason = UnavailableReason.UNKNOWN,
        remedy: str | None = None,
    ) -> None:
        super().__init__(errno, strerror)
        self.reason = UnavailableReason(reason)
        self.remedy = REMEDIES[self.reason] if remedy is None else remedy

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.reason}); remedy: {self.remedy}"


class ProtocolError(UringWSError):
    """Bytes that break the protocol: a WebSocket frame (RFC 6455) or a PROXY protocol header.

    Raised where the caller feeds bytes itself (`parse_header`); a session's peer gets `close_code` (RFC 6455 7.4.1)
    instead.
    """

    def __init__(self, message: str, close_code: int = 1002) -> None:
        super().__init__(message)
        self.close_code = close_code


RejectReason = Literal[
    "bad_request",  # the head is not a WebSocket opening handshake, or not HTTP
    "origin",  # not in Options.origins
    "handler",  # on_upgrade refused or raised
    "timeout",  # handshake_seconds_max
    "sessions_max",
    "sessions_per_ip_max",
    "handshakes_max",
    "memory",  # memory_bytes_max
    "draining",  # the server is shutting down
]
"""Why a connection became no session: the names under which `stats()` counts them."""


class HandshakeError(UringWSError):
    """An opening request that is refused, with the HTTP answer it is refused by.

    Attributes: `status` (400 to 599), `body` (one short line of plain text), `headers` (further field lines of the
    answer) and `reason`, under which `stats()` counts it.
    """

    def __init__(
        self,
        status: int,
        body: str,
        headers: tuple[tuple[str, str], ...] = (),
        reason: RejectReason = "bad_request",
    ) -> None:
        super().__init__(status, body, headers, reason)
        self.status = status
        self.body = body
        self.headers = headers
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.status}: {self.body}"


class ConnectionClosed(UringWSError):
    """The connection's close handshake has begun, or the connection has ended: nothing more can be sent on it."""


class Gap(UringWSError):
    """A topic's history does not reach back to a position, or the position is none of the topic's.

    Raised by `Topic.add`: the connection was not added, and was sent nothing. Attributes: `since`, the position asked
    for; `oldest` and `newest`, the first and the last one from which the topic can go on.
    """

    def __init__(self, since: int, oldest: int, newest: int) -> None:
        super().__init__(since, oldest, newest)
        self.since = since
        self.oldest = oldest
        self.newest = newest

    def __str__(self) -> str:
        return f"the history goes from position {self.oldest} to {self.newest}, so it cannot go on from {self.since}"


class LimitReached(UringWSError):
    """A limit of `Options` is reached; the text names it."""


class BacklogFull(LimitReached):
    """The message would exceed `backlog_bytes_max` and `on_full` is `"error"`. Nothing of it was queued."""


class WrongThread(UringWSError, RuntimeError):
    """A reactor or connection was used from a thread other than the one that runs it; `Sender` is for those."""


class ReactorStateError(UringWSError, RuntimeError):
    """The reactor cannot do this now: it is running already, closed, or was made before a fork."""


class SenderFull(UringWSError, TimeoutError):
    """`sender_commands_max` commands wait for the reactor, and it ran none within the time allowed."""


class OptionsError(UringWSError, ValueError):
    """A field of `Options` has a value that is not allowed. Attributes: `field`, `value`, `allowed` (as text)."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(field, value, allowed)
        self.field = field
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: must be {self.allowed}"


def _protocol_error(close_code: int) -> Callable[[str], UringWSError]:
    return lambda message: ProtocolError(message, close_code)


_BROKEN: Final = _protocol_error(1002)

LIBRARY_ERRORS: Final[Mapping[str, tuple[Callable[[str], UringWSError], str]]] = MappingProxyType(
    {
        "URS_ERROR_RSV": (_BROKEN, "a reserved bit is set (RFC 6455 5.2)"),
        "URS_ERROR_OPCODE": (_BROKEN, "the opcode is reserved (RFC 6455 5.2)"),
        "URS_ERROR_CONTROL_FRAGMENTED": (_BROKEN, "a control frame is fragmented (RFC 6455 5.5)"),
        "URS_ERROR_CONTROL_LENGTH": (_BROKEN, "a control frame's payload is over 125 bytes (RFC 6455 5.5)"),
        "URS_ERROR_LENGTH_NOT_MINIMAL": (_BROKEN, "the length is not in its shortest form (RFC 6455 5.2)"),
        "URS_ERROR_LENGTH_TOP_BIT": (_BROKEN, "a 64-bit length has its top bit set (RFC 6455 5.2)"),
        "URS_ERROR_UNMASKED": (_BROKEN, "a client's frame is not masked (RFC 6455 5.1)"),
        "URS_ERROR_MASKED": (_BROKEN, "a server's frame is masked (RFC 6455 5.1)"),
        "URS_ERROR_CONTINUATION": (_BROKEN, "a continuation frame continues nothing (RFC 6455 5.4)"),
        "URS_ERROR_INTERLEAVED": (_BROKEN, "a new message begins inside a fragmented one (RFC 6455 5.4)"),
        "URS_ERROR_CLOSE_PAYLOAD": (_BROKEN, "a close frame's payload is one byte (RFC 6455 5.5.1)"),
        "URS_ERROR_CLOSE_CODE": (_BROKEN, "the close code may not be sent (RFC 6455 7.4)"),
        "URS_ERROR_UTF8": (_protocol_error(1007), "text or a close reason is not UTF-8 (RFC 6455 8.1)"),
        "URS_ERROR_TOO_BIG": (_protocol_error(1009), "the message is over message_bytes_max"),
        "URS_ERROR_COMPRESSION": (_protocol_error(1007), "a compressed message is malformed (RFC 7692 7.2.2)"),
        "URS_ERROR_REFUSED_OPCODE": (_protocol_error(1003), "this type of message is refused (RFC 6455 7.4.1)"),
        "URS_ERROR_STALE": (ConnectionClosed, "the connection is gone"),
        "URS_ERROR_CLOSING": (ConnectionClosed, "the connection is closing"),
        "URS_ERROR_FULL": (BacklogFull, "backlog_bytes_max would be exceeded"),
        "URS_ERROR_LIMIT": (LimitReached, "a limit of the options is reached"),
        "URS_ERROR_MEMORY_BUDGET": (LimitReached, "memory_bytes_max would be exceeded"),
        "URS_ERROR_STATE": (ReactorStateError, "not allowed in this state"),
        "URS_ERROR_REQUEST": (_BROKEN, "the bytes are not an HTTP request"),
        "URS_ERROR_THREAD": (
            WrongThread,
            "the reactor belongs to the thread that first ran it: use a Sender",
        ),
        "URS_ERROR_FORKED": (ReactorStateError, "the reactor belongs to the parent process: make one after the fork"),
    }
)
"""The exception and its text for each name of `enum urs_error`. The numbers are in base.h only."""

_ERRNO_MAX: Final = 4095  # the kernel's MAX_ERRNO; base.h keeps its own errors below it


def check(result: int, what: str) -> int:
    """Return `result` of a C call if it is a success (0 or more), else raise what it means.

    `what` names the attempt, for the text ("bind 127.0.0.1:9001"). Raises the OSError subclass of its errno for
    -4095 to -1, and an exception of this module for an `enum urs_error`.
    """
    if result >= 0:
        return result
    raise error_of(result, what)


def error_of(result: int, what: str) -> OSError | UringWSError:
    """Return the exception that `check` raises for a negative result."""
    if result >= -_ERRNO_MAX:
        name = errno_names.errorcode.get(-result, "unknown errno")
        return OSError(-result, f"{what}: {os.strerror(-result)} [{name}]")
    return _library_error(result, what)


def _library_error(result: int, what: str) -> UringWSError:
    known = _names_by_number().get(result)
    if known is None:
        return UringWSError(f"{what}: unknown result {result} of the C shim")
    make, meaning = LIBRARY_ERRORS[known]
    return make(f"{what}: {meaning}")


@functools.cache
def _names_by_number() -> Mapping[int, str]:
    # Imported on the first error only: options, handshake and their tests need no compiled extension.
    from uringws.shim import lib  # noqa: PLC0415

    return {getattr(lib, name): name for name in LIBRARY_ERRORS}
