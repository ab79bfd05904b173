"""Which thread a reactor belongs to: none before it first runs, and then that one. No policy: it only tells."""

from __future__ import annotations

import threading
import weakref

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
    """The thread that something belongs to, by object: the ident of a thread is used again once it has ended."""

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token: weakref.ref[_Token] | None = None

    def take(self) -> None:
        """Make the calling thread the owner."""
        self._token = weakref.ref(_own_token())

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
