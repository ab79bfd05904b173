"""Which thread a reactor belongs to: none before it first runs, and then that one; and when that thread ends."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Owner"]


class _Token:
    """Stands for a thread, and lives as long as it does."""

    __slots__ = ("__weakref__",)


_local = threading.local()


def _own_token() -> _Token:
    token: _Token | None = getattr(_local, "token", None)
    if token is None:
        token = _local.token = _Token()
    return token


class Owner:
    """The thread that a reactor belongs to. An object stands for it: the ident of a thread that ended is used again."""

    __slots__ = ("_process", "_token", "on_end")

    def __init__(self) -> None:
        self._token: weakref.ref[_Token] | None = None
        self._process = 0
        self.on_end: Callable[[], object] | None = None
        """Called in the owner's thread when that ends."""

    def take(self) -> None:
        """Make the calling thread the owner."""
        self._process = os.getpid()
        self._token = weakref.ref(_own_token(), self._end)

    def _end(self, _: object) -> None:
        # A forked child loses all threads but one, before it has renewed the locks that they held.
        if self.on_end is not None and os.getpid() == self._process:
            self.on_end()

    @property
    def is_known(self) -> bool:
        """Whether there is, or was, an owner."""
        return self._token is not None

    @property
    def is_caller(self) -> bool:
        """Whether the calling thread is the owner."""
        return self._token is not None and self._token() is _own_token()

    @property
    def has_ended(self) -> bool:
        """Whether the owner's thread has ended."""
        return self._token is not None and self._token() is None
