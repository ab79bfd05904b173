"""The C shim, as all other modules import it.

cffi's module has no types, so its names are Any here. Everything outside this module is typed, and nothing else imports
`uringws._shim`.
"""

from typing import Any, Final, TypeAlias

try:
    from uringws import _shim
    from uringws._shim import ffi, lib
except ImportError as error:
    raise ImportError(
        f"the C extension uringws._shim cannot be loaded ({error}): run `pip install .` in a clone, or "
        "`python uring_shim/build_ffi.py` to use its src/ in place"
    ) from error

__all__ = [
    "CData",
    "fast_copy",
    "fast_feed",
    "fast_frame",
    "fast_message",
    "fast_publish",
    "fast_publish_event",
    "fast_send",
    "fast_send_event",
    "ffi",
    "lib",
]

CData: TypeAlias = Any
"""A pointer, array or struct of the shim."""

if lib.urs_fast_send_attach() != 0 or lib.urs_fast_engine_attach() != 0:
    raise MemoryError

fast_send: Final[Any] = _shim.fast_send
"""`urs_command_send` for bytes, and for a reactor by its address: fast_send.h says why it exists."""
fast_send_event: Final[Any] = _shim.fast_send_event
"""`urs_command_send_event` likewise."""
fast_publish: Final[Any] = _shim.fast_publish
"""`urs_publish` for bytes, and for a reactor by its address."""
fast_publish_event: Final[Any] = _shim.fast_publish_event
"""`urs_publish` of the payload of the event that is being handled."""
fast_copy: Final[Any] = _shim.fast_copy
"""Copies the whole message of an event, of a reactor by its address."""
fast_feed: Final[Any] = _shim.feed
"""Takes a chunk into a `ServerEngine` and returns its columns: see fast_engine.h."""
fast_frame: Final[Any] = _shim.frame
"""Returns the bytes of one frame."""
fast_message: Final[Any] = _shim.message
"""Returns the bytes of a whole message, compressed as its engine agreed."""
