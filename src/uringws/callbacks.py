"""A handler's callbacks: looked up once, when the reactor gets the handler, and checked for mistakes. No state."""

from __future__ import annotations

import difflib
import inspect
import warnings
from pathlib import Path
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Callbacks", "came_out_of", "ignore", "look_up"]


class Callbacks(NamedTuple):
    """The callbacks of a handler; None for one that it lacks."""

    on_head: Callable[..., object] | None
    on_upgrade: Callable[..., object] | None
    on_upgrade_abandoned: Callable[..., object] | None
    on_request: Callable[..., object] | None
    on_open: Callable[..., object] | None
    on_message: Callable[..., object] | None
    on_frame: Callable[..., object] | None
    on_batch: Callable[..., object] | None
    on_drain: Callable[..., object] | None
    on_drop: Callable[..., object] | None
    on_pong: Callable[..., object] | None
    on_close: Callable[..., object] | None


_ARGUMENTS: Final = {
    "on_head": ("head",),
    "on_upgrade": ("request",),
    "on_upgrade_abandoned": ("request",),
    "on_request": ("request",),
    "on_open": ("conn",),
    "on_message": ("conn", "message"),
    "on_frame": ("conn", "frame"),
    "on_batch": ("batch",),
    "on_drain": ("conn",),
    "on_drop": ("conn", "topic", "count"),
    "on_pong": ("conn", "payload"),
    "on_close": ("conn", "code", "reason"),
}
"""The positional arguments with which the reactor calls each callback."""

_REMEDY: Final = "derive from uringws.Handler, or give an object that has some of " + ", ".join(Callbacks._fields)


_ALIKE_MIN: Final = 0.8
"""The least similarity (difflib) at which one name counts as a misspelling of another."""


def ignore(*_: object) -> None:
    """Stand in for a callback that a handler lacks."""


def look_up(handler: object) -> Callbacks:
    """Return the callbacks of a handler.

    Raises TypeError for anything but a handler: a class in place of its instance, a bare function, a value such as
    None, or callbacks that are coroutine or generator functions, cannot be called, do not take their arguments, or
    exclude each other; ImportError for `on_batch` without numpy.
    Warns (RuntimeWarning) of a callable attribute whose name begins with "on_" but is not a callback's name.
    """
    if inspect.isclass(handler):
        raise TypeError(f"the handler is the class {handler.__name__}: give an instance, {handler.__name__}()")
    callbacks = Callbacks(*(_callback(handler, name) for name in Callbacks._fields))
    if callbacks == (None,) * len(callbacks):
        _refuse_without_callbacks(handler)
    if callbacks.on_batch is not None and callbacks.on_frame is not None:
        raise TypeError(
            f"{type(handler).__name__} defines on_batch, which is given whole messages, and on_frame, which is given "
            "their fragments: define one of them"
        )
    _warn_of_unknown(handler)
    return callbacks


def _callback(handler: object, name: str) -> Callable[..., object] | None:
    callback: Any = getattr(handler, name, None)
    if callback is None:
        return None
    kind = type(handler).__name__
    if not callable(callback):
        raise TypeError(f"{kind}.{name} cannot be called: it is {type(callback).__name__}")
    for function in (callback, getattr(callback, "__call__", None)):  # noqa: B004 - of an object with `async __call__`
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{kind}.{name} is `async def`, and a reactor has no event loop to run it: make it a plain function, "
                "or serve coroutines with uringws.asyncio.serve; from other event loops send through reactor.sender()"
            )
        if inspect.isgeneratorfunction(function):
            raise TypeError(
                f"{kind}.{name} has a `yield`, so calling it runs none of its code: make it a plain function"
            )
    _check_arguments(f"{kind}.{name}", callback, _ARGUMENTS[name])
    return callback  # type: ignore[no-any-return]


def _check_arguments(name: str, callback: Callable[..., object], arguments: tuple[str, ...]) -> None:
    """Raise TypeError if every call of the callback would: it does not take its arguments."""
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # some functions in C have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        called = ", ".join(arguments)
        raise TypeError(f"{name} takes {signature}, and a reactor calls it with ({called}): {error}") from None


def _refuse_without_callbacks(handler: object) -> None:
    """Raise TypeError for an object that cannot have been meant as a handler; warn of one without any callback."""
    kind = type(handler).__name__
    if callable(handler):
        raise TypeError(f"the handler is a function ({kind}): wrap it, handler_fn(function), or {_REMEDY}")
    if type(handler).__module__ == "builtins" and type(handler) is not object:
        raise TypeError(f"the handler is {kind}, which has no callback: {_REMEDY}")
    warnings.warn(f"{kind} has no callback: {_REMEDY}", RuntimeWarning, stacklevel=_callers_level())


def _warn_of_unknown(handler: object) -> None:
    for name in dir(handler):
        if not name.startswith("on_") or name in Callbacks._fields:
            continue
        if not callable(inspect.getattr_static(handler, name, None)):
            continue
        alike = difflib.get_close_matches(name, Callbacks._fields, 1, _ALIKE_MIN)
        hint = f": did you mean {alike[0]}?" if alike else f"; the callbacks are {', '.join(Callbacks._fields)}"
        warnings.warn(
            f"{type(handler).__name__}.{name} is not a callback of a reactor and will not be called{hint}",
            RuntimeWarning,
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """Return the `stacklevel` with which the caller's warning names the line outside of this package that led to it."""
    package = str(Path(__file__).parent)
    frame = inspect.currentframe()
    level = 0
    while frame is not None and frame.f_code.co_filename.startswith(package):
        frame = frame.f_back
        level += 1
    return level


def came_out_of(function: Callable[..., object], error: BaseException) -> bool:
    """Whether an error that the caller caught came from a callback, not from a signal handler between two callbacks."""
    if isinstance(function, MethodType):
        function = function.__func__
    if not isinstance(function, FunctionType):
        return True  # it has no frame to look for
    trace = error.__traceback__
    entered = None if trace is None else trace.tb_next
    return entered is not None and entered.tb_frame.f_code is function.__code__
