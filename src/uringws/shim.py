"""The one door to the C shim.

cffi's module has no types, so its two names are Any here. Everything outside this module is typed, and nothing else
imports `uringws._shim`.
"""

from uringws._shim import ffi, lib

__all__ = ["ffi", "lib"]
