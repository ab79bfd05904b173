"""Watches of a reactor: functions that are called when a descriptor of the application is ready. Reads no
descriptor.
"""

from __future__ import annotations

import inspect
import select
from typing import TYPE_CHECKING, Any, Final

from uringws.errors import LimitReached, check
from uringws.shim import CData, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.core import Core

__all__ = ["Watch", "Watches"]

_TAKEN_MAX: Final = 64


class Watch:
    """The handle that `Reactor.watch` returns: `cancel` ends it."""

    __slots__ = ("_callback", "_descriptor", "_id", "_watches", "_writable")

    def __init__(
        self, watches: Watches, identity: int, descriptor: int, callback: Callable[[], object], *, writable: bool
    ) -> None:
        """Only the reactor makes watches."""
        self._watches = watches
        self._id = identity
        self._descriptor = descriptor
        self._callback = callback
        self._writable = writable

    @property
    def is_active(self) -> bool:
        """Whether its callback may still be called: not once it was cancelled, or the reactor is closed."""
        return self._watches.find(self._id) is self

    def cancel(self) -> None:
        """Do not call the callback any more. May be called twice, and by the callback itself. Raises WrongThread.

        Cancel a watch before you close its descriptor: the reactor keeps the open file until a turn after this call.
        """
        self._watches.cancel(self)

    def __repr__(self) -> str:
        """Name it for a log."""
        what = "writable" if self._writable else "readable"
        state = "" if self.is_active else ", over"
        return f"<Watch of descriptor {self._descriptor} ({what}){state}>"


class Watches:
    """The watches of one reactor."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._active: dict[int, Watch] = {}
        self._ready: CData = lib.urs_reactor_watches_ready(core.handle)
        self._ids = ffi.new("uint64_t[]", _TAKEN_MAX)

    def __bool__(self) -> bool:
        """Whether a watched descriptor is ready and its callback was not called yet."""
        return bool(self._ready[0])

    def find(self, identity: int) -> Watch | None:
        """Return the active watch of that id."""
        return self._active.get(identity)

    def add(self, descriptor: Any, callback: Callable[[], object], *, writable: bool) -> Watch:
        """See `Reactor.watch`."""
        self._core.check_thread()
        number = _check_descriptor(descriptor)
        if not callable(callback):
            raise TypeError(f"a watch takes a function without arguments, not {type(callback).__name__}")
        if inspect.iscoroutinefunction(callback):
            raise TypeError("a watch takes a plain function, not `async def`: a reactor has no event loop to run it")
        identity = ffi.new("uint64_t *")
        result = lib.urs_reactor_watch(self._core.handle, number, bool(writable), identity)
        if result == lib.URS_ERROR_LIMIT:
            raise LimitReached(
                f"{lib.URS_WATCHES_MAX} descriptors are watched already: "
                "register the others in a select.epoll() and watch that"
            )
        check(result, f"watch descriptor {number}")
        watch = Watch(self, int(identity[0]), number, callback, writable=bool(writable))
        self._active[watch._id] = watch
        return watch

    def cancel(self, watch: Watch) -> None:
        """See `Watch.cancel`."""
        if self._active.get(watch._id) is not watch:
            return
        self._core.check_thread()
        del self._active[watch._id]
        lib.urs_reactor_unwatch(self._core.handle, watch._id)

    def run_ready(self) -> None:
        """Call the callbacks of the descriptors that are ready; report their errors.

        A KeyboardInterrupt or another exception that is not an Exception propagates. The callbacks that it prevents are
        called after the next turn, if their descriptors are still ready.
        """
        count = lib.urs_reactor_take_watches(self._core.handle, self._ids, _TAKEN_MAX)
        for identity in self._ids[0:count]:
            watch = self._active.get(identity)  # an earlier callback may have cancelled it
            if watch is None:
                continue
            try:
                watch._callback()
            except Exception as error:  # noqa: BLE001 - reported
                self._core.report(error, "the callback of a watch failed: %r", watch)

    def clear(self) -> None:
        """Forget all watches: the reactor is closed."""
        self._active.clear()


def _check_descriptor(descriptor: Any) -> int:
    """Return the number of a descriptor that can be watched.

    Raises TypeError for an object without a descriptor, ValueError for a closed descriptor and for one that is always
    ready.
    """
    number = descriptor if isinstance(descriptor, int) else getattr(descriptor, "fileno", lambda: None)()
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"watch takes a descriptor or an object with fileno(), not {type(descriptor).__name__}")
    if number < 0:
        raise ValueError(f"watch: {descriptor!r} is closed")
    with select.epoll() as probe:
        try:
            probe.register(number, select.EPOLLIN)
        except PermissionError:
            raise ValueError(
                f"watch: descriptor {number} is a regular file, a directory or a device that is always ready: "
                "read it in a thread, or at once"
            ) from None
        except OSError as error:
            raise OSError(error.errno, f"watch descriptor {number}: {error.strerror}; is it closed?") from None
    return number
