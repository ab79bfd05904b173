"""The turns of a reactor that has batch handlers: runs of messages go to `on_batch`, all other events one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uringws.batch import Batch, Columns, load_numpy
from uringws.callbacks import came_out_of
from uringws.core import EVENTS_MAX
from uringws.errors import check
from uringws.frames import CloseCode
from uringws.shim import CData, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uringws.services import Service
    from uringws.turn import Turn

__all__ = ["Runs"]

_find: Final = lib.urs_batch_find


class Runs:
    """Hands out the events of turns in stretches: runs for batch handlers, and what lies between them."""

    def __init__(self, turn: Turn, dispatch_others: Callable[[Iterator[tuple[int, int]]], None]) -> None:
        """`dispatch_others` handles events that are not for batch handlers. Raises ImportError without numpy."""
        load_numpy()
        core = turn._core
        self._turn = turn
        self._core = core
        self._handled = core.handled
        self._dispatch_others = dispatch_others
        self._columns = Columns(turn)
        self._callbacks: dict[int, Callable[..., object]] = {}
        self._messages_max = core.batch_messages_max
        targets = lib.urs_reactor_columns(core.handle).targets
        self._targets = memoryview(ffi.buffer(targets, ffi.sizeof("int32_t") * EVENTS_MAX)).cast("i")
        self._run: CData = ffi.new("struct urs_run *")

    def add(self, service: Service) -> None:
        """Expect messages of a service that has `on_batch`. Services of one handler have one number."""
        assert service.on_batch is not None  # noqa: S101 - the caller knows
        self._callbacks[service.batch] = service.on_batch

    def dispatch(self, first: int, count: int) -> None:
        """Hand out the events from `first` to before `count`."""
        while first < count:
            first = self._handled[0] = self.dispatch_next(first, count, EVENTS_MAX)
            self._turn._index = EVENTS_MAX

    def dispatch_next(self, first: int, count: int, part: int) -> int:
        """Hand out one run, or at most `part` of the other events; return the index after the last of them."""
        run = self._run
        result = _find(self._core.handle, first, count, self._messages_max, self._columns.rows_pointer, run)
        if result != 0:
            check(result, "batch")
        end: int = run.end
        if not run.batch:
            end = min(end, first + part)
            self._dispatch_others(enumerate(self._targets[first:end].tolist(), first))
        elif run.count:
            self._take(first, end)
        return end

    def _take(self, first: int, end: int) -> None:
        """Give a run to its handler. An exception that is not the handler's own leaves it for the next turn."""
        turn, run = self._turn, self._run
        rows = None if run.contiguous else self._columns.rows[: run.count].copy()
        batch = Batch(turn, self._columns, run.first, run.count, rows=rows, until=end)
        on_batch = self._callbacks[run.batch]
        failure: Exception | None = None
        try:
            turn._hide()
            turn._connection = None
            turn._index = first  # so that its sends leave before the echoes of the run
            turn._batch = batch
            if turn._sessions.aborted:
                batch._leave_out(turn._sessions.aborted)
            if batch.count:
                on_batch(batch)
            self._handled[0] = end  # no call between: a signal handler that raised there would have it given again
        except Exception as error:
            if not came_out_of(on_batch, error):
                raise
            failure = error
            self._handled[0] = end
        finally:  # no calls here: a signal handler could raise in them
            turn._batch = None
            turn._index = EVENTS_MAX
            turn._offsets, turn._lengths, turn._opcodes = turn._columns
        if batch._views is not None:
            batch._release()
        if failure is not None:
            self._fail(failure, batch)

    def _fail(self, failure: Exception, batch: Batch) -> None:
        """Log what `on_batch` raised, and close the connections of its messages with 1011."""
        open_ones = [connection for connection in batch._connections() if connection.is_open]
        self._core.report(
            failure,
            "on_batch failed; it is unknown which messages it handled: %d connections are closed with 1011",
            len(open_ones),
        )
        for connection in open_ones:
            if connection.is_open:
                connection.close(CloseCode.INTERNAL_ERROR, "internal error")
