"""Memory between two inaccessible pages.

A test places its input directly at a page's edge: code that reads or writes one byte too far is killed at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PROT_NONE = 0


def fenced_memory(size: int) -> memoryview:
    """Writable memory of `size` bytes, rounded up to whole pages, with a fence at either end."""
    pages_bytes = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, pages_bytes + 2 * mmap.PAGESIZE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for fence in (first, first + mmap.PAGESIZE + pages_bytes):
        if _libc.mprotect(fence, mmap.PAGESIZE, _PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), f"mprotect: {os.strerror(ctypes.get_errno())}")
    return memoryview(pages)[mmap.PAGESIZE : -mmap.PAGESIZE]
