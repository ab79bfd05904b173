"""Why connections were lost: the numbers of the shim as sentences and as exceptions. Pure functions."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from uringws.closing import Close
from uringws.errors import error_of
from uringws.shim import ffi, lib

if TYPE_CHECKING:
    from uringws.closing import Closing

__all__ = ["loss_of", "lost_reason"]

_MEMORY_CLOSE: Final = lib.urs_failure_close(lib.URS_FAILURE_MEMORY)
_OUT_OF_MEMORY: Final = Close(int(_MEMORY_CLOSE.code), ffi.string(_MEMORY_CLOSE.reason).decode())
_LOST_REASONS: Final = {0: "the peer closed the TCP connection without a close frame"}


def lost_reason(error: int) -> str:
    """Return the reason for on_close: `error` is that of an URS_EVENT_LOST."""
    if error in _LOST_REASONS:
        return _LOST_REASONS[error]
    if error > -4096:
        return os.strerror(-error)
    return str(ffi.string(lib.urs_engine_error_text(error)).decode())


def loss_of(number: int, closing: Closing) -> Exception | None:
    """Return the error that lost a connection; None if its peer ended the stream, or the shim has told it why."""
    if number == 0 or (number == lib.URS_ERROR_MEMORY_BUDGET and closing.sent == _OUT_OF_MEMORY):
        return None
    if number == -errno.ETIMEDOUT:
        missing = "a ping" if closing.sent is None else "our close frame"
        return TimeoutError(errno.ETIMEDOUT, f"the peer did not answer {missing} in time")
    return error_of(number, "connection")
