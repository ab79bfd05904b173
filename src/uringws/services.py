"""The handlers of one reactor, each with the options of the connections that it serves. dispatch.py calls them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from uringws.callbacks import ignore, look_up
from uringws.errors import LimitReached
from uringws.options import Options, check_shared
from uringws.upgrade import Upgrader

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.callbacks import Callbacks
    from uringws.core import Core
    from uringws.handler import HandlerProtocol
    from uringws.stats import Stats

__all__ = ["Service", "Services", "own_batch"]

_BATCHES_MAX: Final = 255
"""Handlers with `on_batch` at a time: rules have 8 bits for their number, and 0 stands for none."""


class Service:
    """A handler's callbacks, and the options of its connections. Listeners and connections keep it alive."""

    __slots__ = (
        "__weakref__",
        "batch",
        "handler",
        "on_batch",
        "on_close",
        "on_drain",
        "on_drop",
        "on_message",
        "on_open",
        "on_pong",
        "options",
        "rules",
        "upgrader",
    )

    def __init__(
        self,
        handler: HandlerProtocol,
        callbacks: Callbacks,
        options: Options,
        rules: int,
        upgrader: Upgrader,
        *,
        batch: int,
    ) -> None:
        self.handler: Final = handler
        self.options: Final = options
        self.rules: Final = rules
        """The index of the options' rules in the shim."""
        self.upgrader: Final = upgrader
        self.batch: Final = batch
        """The number by which the shim knows the messages that `on_batch` is given; 0 without it."""
        self.on_batch: Final = callbacks.on_batch
        self.on_open: Final = callbacks.on_open or ignore
        self.on_message: Final = callbacks.on_frame or callbacks.on_message or ignore
        self.on_drain: Final = callbacks.on_drain or ignore
        self.on_drop: Final = callbacks.on_drop or ignore
        self.on_pong: Final = callbacks.on_pong or ignore
        self.on_close: Final = callbacks.on_close or ignore


class Services:
    """The services of one reactor: its own, and one for each other pair of handler and options that is in use."""

    def __init__(
        self,
        core: Core,
        handler: HandlerProtocol,
        callbacks: Callbacks,
        options: Options,
        read_stats: Callable[[], Stats],
    ) -> None:
        """Make the reactor's own service, which goes by the rules that its core was opened with."""
        self._core = core
        self._read_stats = read_stats
        upgrader = Upgrader(core, options, callbacks, read_stats)
        self.own: Final = Service(handler, callbacks, options, 0, upgrader, batch=own_batch(callbacks))
        # A service keeps its handler, so an id in a key names no other object while the service is here.
        self._others: weakref.WeakValueDictionary[tuple[int, Options], Service] = weakref.WeakValueDictionary()

    def get(self, handler: HandlerProtocol | None, options: Options | None) -> Service:
        """Return the service of a handler (None: the reactor's) with options (None: the reactor's).

        Raises TypeError for an object that is not a handler or not Options, OptionsError for options that the reactor
        cannot have beside its own, LimitReached if it has too many different ones.
        """
        own = self.own
        if handler is None:
            handler = own.handler
        if options is None:
            options = own.options
        elif not isinstance(options, Options):
            raise TypeError(f"options must be Options, not {type(options).__name__}")
        if handler is own.handler and options == own.options:
            return own
        check_shared(options, own.options)
        with self._core.lock:
            key = (id(handler), options)
            service = self._others.get(key)
            if service is None:
                service = self._others[key] = self._make(handler, options)
        return service

    def _make(self, handler: HandlerProtocol, options: Options) -> Service:
        callbacks = look_up(handler)
        frames, pongs = callbacks.on_frame is not None, callbacks.on_pong is not None
        batch = 0 if callbacks.on_batch is None else self._batch_number(handler)
        rules = self._core.add_rules(options, frames=frames, pongs=pongs, batch=batch)
        upgrader = Upgrader(self._core, options, callbacks, self._read_stats)
        return Service(handler, callbacks, options, rules, upgrader, batch=batch)

    def _batch_number(self, handler: HandlerProtocol) -> int:
        """Return the number of a handler with `on_batch`: that of its other services, or one that no service has.

        Raises LimitReached if there is none left.
        """
        services = [self.own, *self._others.values()]
        for service in services:
            if service.handler is handler:
                return service.batch
        free = set(range(1, _BATCHES_MAX + 1)).difference(service.batch for service in services)
        if not free:
            raise LimitReached(f"a reactor has at most {_BATCHES_MAX} handlers with on_batch at a time")
        return min(free)


def own_batch(callbacks: Callbacks) -> int:
    """Return the number of the reactor's own handler: 1 if it has `on_batch`, else 0."""
    return int(callbacks.on_batch is not None)
