"""A run of messages, as a batch handler gets it: columns, payloads and answers, each in one call. No callbacks.

numpy is imported when the first handler with `on_batch` is looked up, and never by importing this module.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from uringws.core import EVENTS_MAX, slot_of
from uringws.errors import BacklogFull, check
from uringws.frames import CloseCode, Opcode
from uringws.sending import UNFINISHED, check_send, name_opcode
from uringws.shim import CData, ffi, lib
from uringws.turn import IN_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from uringws.connection import Connection
    from uringws.sending import Payload
    from uringws.turn import Turn

    Where: TypeAlias = ArrayLike | slice
else:
    np = None  # set by `load_numpy`

__all__ = ["Batch", "BatchMessage", "BatchSent", "Columns", "load_numpy"]

_INVALID: Final = "a batch is valid until on_batch returns: copy what is to be kept"
_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_BYTES_MAX: Final = 2**31 - 1
_UINT8: Final = ffi.typeof("uint8_t[]")
_UINT32: Final = ffi.typeof("uint32_t[]")
_UINT64: Final = ffi.typeof("uint64_t[]")
_INT32: Final = ffi.typeof("int32_t[]")
_INT64: Final = ffi.typeof("int64_t[]")
_BOOLS: Final = ffi.typeof("bool[]")


def load_numpy() -> None:
    """Import numpy for this module. Raises ImportError that says what to do if it is missing."""
    try:
        globals()["np"] = importlib.import_module("numpy")
    except ImportError as error:
        raise ImportError(
            f'on_batch is given numpy arrays, and numpy cannot be imported ({error}): run pip install "uringws[batch]"'
        ) from error


class BatchSent(NamedTuple):
    """How many messages of one call of `Batch.reply` or `Batch.send` had which result."""

    sent: int
    """Handed on: as SendResult.SENT."""
    queued: int
    """They wait in the backlogs of their connections: as SendResult.QUEUED."""
    dropped: int
    """`backlog_bytes_max` would have been exceeded: as SendResult.DROPPED."""
    skipped: int
    """Their connections have begun to close, or are gone."""


class Columns:
    """The columns of a reactor's turns as arrays. They lie in the shim's memory: no application is given one."""

    def __init__(self, turn: Turn) -> None:
        """Make the arrays once; each run takes parts of them."""
        core = turn._core
        columns = lib.urs_reactor_columns(core.handle)
        self.targets: NDArray[np.int32] = np.frombuffer(ffi.buffer(columns.targets, 4 * EVENTS_MAX), np.int32)
        self.offsets: NDArray[np.uint32] = np.frombuffer(ffi.buffer(columns.offsets, 4 * EVENTS_MAX), np.uint32)
        self.lengths: NDArray[np.uint32] = np.frombuffer(ffi.buffer(columns.lengths, 4 * EVENTS_MAX), np.uint32)
        self.opcodes: NDArray[np.uint8] = np.frombuffer(ffi.buffer(columns.opcodes, EVENTS_MAX), np.uint8)
        self.echo_flags: NDArray[np.uint8] = np.frombuffer(core.echo_flags, np.uint8)
        self.rows: NDArray[np.uint32] = np.empty(EVENTS_MAX, np.uint32)
        """Where the shim writes which events of a run are messages for the handler."""
        self.rows_pointer: CData = ffi.from_buffer(_UINT32, self.rows)


class Batch:
    """A run of messages, in the order in which they came: `on_batch` is given one. Row i of each column is message i.

    Valid until `on_batch` returns: everything raises RuntimeError after that. The arrays that its columns, `gather` and
    `records` give are copies: they are yours to keep. `data` and `pool` are views without a copy, and are released
    when `on_batch` returns, as `Message.data` is. `len(batch)` is `batch.count`.

    Where a method takes `where`, that is what numpy takes as an index of one dimension: a mask with an element per
    message, row numbers, a slice, one row number; None is all messages.
    """

    count: int
    """How many messages it holds."""

    _slots: NDArray[np.intp] | None = None
    _row: int | None = None
    """The index of the message that the loop over `each` has come to, among the turn's events."""

    def __init__(
        self, turn: Turn, columns: Columns, first: int, count: int, *, rows: NDArray[np.uint32] | None, until: int
    ) -> None:
        """Only the reactor makes it: of `count` events from `first` on, or of those that `rows` names.

        `until` is the index after the last event of the run.
        """
        self.count = count
        self._turn = turn
        self._columns = columns
        self._first = first
        self._rows = rows
        self._until = until
        self._views: list[memoryview] | None = None
        self._whole = self
        """The batch that `on_batch` was given, which this one may be a part of."""

    # ---- columns

    @property
    def slots(self) -> NDArray[np.intp]:
        """The slot of each message's connection, `Connection.slot`: an index for arrays of your own.

        A slot may be there several times. Assigning by it keeps the last message's value (the messages are in their
        order); `numpy.add.at` adds up all of them.
        """
        if self._slots is None:
            # An event that came while its connection was closing has no target, so its slot is read from the id.
            own = self._ids_of_rows() & 0xFFFFFFFF if self._rows is not None else self._column(self._columns.targets)
            self._slots = own.astype(np.intp)
        self._check()
        return self._slots

    @property
    def ids(self) -> NDArray[np.uint64]:
        """The id of each message's connection, `Connection.id`."""
        return self._ids_of_rows()

    @property
    def opcodes(self) -> NDArray[np.uint8]:
        """The opcode of each message: TEXT (1) or BINARY (2)."""
        return self._column(self._columns.opcodes).copy()

    @property
    def lengths(self) -> NDArray[np.intp]:
        """The size of each payload in bytes."""
        return self._column(self._columns.lengths).astype(np.intp)

    @property
    def offsets(self) -> NDArray[np.intp]:
        """Where each payload begins in `pool`; -1 for one that is not there (`data`, `gather` and `records` find it).

        Large messages, those that came in fragments, and input that was held back lie outside of the pool.
        """
        offsets = self._column(self._columns.offsets)
        return np.where(offsets == IN_BLOCK, -1, offsets.astype(np.intp))

    @property
    def pool(self) -> memoryview:
        """The receive pool, in which most payloads lie: `pool[offset : offset + length]` is one, without a copy."""
        return self._lend(self._turn._pool[:])

    # ---- payloads

    def data(self, row: int) -> memoryview:
        """Return one payload: a writable memoryview of bytes, without a copy. An echo sends the changes made here."""
        index = self._event(row)
        turn = self._turn
        offsets, lengths, _ = turn._columns
        offset = offsets[index]
        if offset == IN_BLOCK:
            return self._lend(turn._view_block(index, lengths[index]))
        return self._lend(turn._pool[offset : offset + lengths[index]])

    def gather(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Return all payloads in one copy, as Arrow lays out binary arrays: (offsets, data).

        Payload i is `data[offsets[i] : offsets[i + 1]]`; there are `count + 1` offsets. Raises ValueError for 2 GiB or
        more.
        """
        offsets = np.empty(self.count + 1, np.int32)
        size = self._gather(np.empty(0, np.uint8), offsets)
        data = np.empty(size, np.uint8)
        if size:
            self._gather(data, offsets)
        return offsets, data

    def records(self, dtype: DTypeLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the payloads as records of a fixed size, in one copy: (rows, fits).

        `rows[i]` is the payload of message i as a `dtype`, and `fits[i]` whether it is one: a binary message of
        exactly `dtype.itemsize` bytes. The rows of the others are zero. numpy's types are of this machine's byte order
        unless they say otherwise: write "<u4" for one that the peers know. Raises TypeError for a dtype of objects,
        ValueError for one of no bytes, or for rows of 2 GiB or more.
        """
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"a record of {kind} holds Python objects: bytes of a peer cannot be read as those")
        if not kind.itemsize:
            raise ValueError(f"a record of {kind} has no bytes")
        if kind.itemsize * self.count > _BYTES_MAX:
            raise ValueError(f"{self.count} records of {kind.itemsize} bytes are 2 GiB or more: select fewer messages")
        data = np.empty(self.count * kind.itemsize, np.uint8)
        fits = np.empty(self.count, np.bool_)
        pointer, first = self._events_pointer()
        result = lib.urs_batch_records(
            self._turn._handle,
            pointer,
            first,
            self.count,
            kind.itemsize,
            ffi.from_buffer(_UINT8, data),
            ffi.from_buffer(_BOOLS, fits),
        )
        check(result, "records")
        return np.frombuffer(data, kind, self.count), fits

    # ---- parts

    def select(self, where: Where) -> Batch:
        """Return the batch of some of the messages, in the order that `where` names them."""
        rows = self._pick(where)
        part = Batch(self._turn, self._columns, self._first, len(rows), rows=rows, until=self._until)
        part._whole = self._whole
        return part

    def connection(self, row: int) -> Connection:
        """Return the connection of one message."""
        index = self._event(row)
        slot = int(self._turn._events[index].slot)
        sessions = self._turn._sessions
        return sessions.by_slot[slot] or sessions.ending[slot]

    def each(self, where: Where | None = None) -> Iterator[tuple[Connection, BatchMessage]]:
        """Yield each message with its connection, to handle some of them one by one.

        `conn.echo()` is for the message that the loop has come to. A message of `conn.send` leaves before the echoes
        of the whole batch, as those of `reply` and `send` do.
        """
        part = self if where is None else self.select(where)
        whole = self._whole
        try:
            for row in range(part.count):
                whole._row = part._event(row)
                yield part.connection(row), BatchMessage(part, row)
        finally:
            whole._row = None

    # ---- answers

    def echo(self, where: Where | None = None) -> None:
        """Send messages back as they are then, without a copy, when `on_batch` has returned.

        They leave after what it sends. A connection that has begun to close is left out.
        """
        rows = self._rows
        flags = self._columns.echo_flags
        self._check()
        if rows is not None:
            flags[rows if where is None else rows[_index(where)]] = 1
        elif where is None:
            flags[self._first : self._first + self.count] = 1
        else:
            flags[self._first : self._first + self.count][_index(where)] = 1

    def reply(
        self,
        payload: Payload | NDArray[Any] | Sequence[Payload],
        *,
        offsets: ArrayLike | None = None,
        opcode: int | None = None,
        where: Where | None = None,
    ) -> BatchSent:
        """Send one message to the connection of each message (or of those at `where`), in one call.

        `payload` is one of these:

        * an array with a row per message: each is sent its row's bytes as they lie in memory;
        * any buffer, with `offsets`: message i is sent `payload[offsets[i] : offsets[i + 1]]`, as `gather` gives them;
        * a list or tuple with a payload per message;
        * a str, or any other payload of `Connection.send`: all are sent the same.

        `opcode` is TEXT or BINARY; None is TEXT for str and BINARY for anything else. Replies leave before the echoes
        of the batch. Those to connections that have begun to close are left out, and counted. Raises ValueError or
        TypeError for what cannot be sent, and for a number of payloads that is not that of the messages; BacklogFull
        with `on_full="error"`, and ValueError for a connection with an unfinished fragmented message, each once all
        other replies are sent.
        """
        ids = self._ids_of_rows()
        if where is not None:
            ids = ids[_index(where)].reshape(-1)
        return self.send(ids, payload, offsets=offsets, opcode=opcode)

    def send(
        self,
        ids: ArrayLike,
        payload: Payload | NDArray[Any] | Sequence[Payload],
        *,
        offsets: ArrayLike | None = None,
        opcode: int | None = None,
    ) -> BatchSent:
        """Send one message to each of the connections with these ids, whether they are in the batch or not.

        As `reply`; an id that names no connection any more counts as skipped.
        """
        self._check()
        to = np.ascontiguousarray(ids, np.uint64)
        if to.ndim != 1:
            raise ValueError(f"ids have one dimension, not {to.ndim}")
        opcode, payloads, keep = _payloads(payload, len(to), offsets, opcode)
        results = ffi.new("struct urs_batch_results *")
        result = lib.urs_batch_send(
            self._turn._handle,
            ffi.from_buffer(_UINT64, to),
            len(to),
            self._turn._index,
            opcode,
            payloads,
            results,
        )
        del keep  # the memory that `payloads` points to
        if result == lib.URS_ERROR_STATE:
            raise ValueError("offsets grow from 0 or more to the end of the payload or less")
        check(result, "send")
        if results.full:
            raise BacklogFull(
                f"{results.full} of {len(to)} messages would exceed backlog_bytes_max; the others are sent"
            )
        if results.interleaved:
            raise ValueError(f"{results.interleaved} of {len(to)} messages were not sent: {UNFINISHED}")
        return BatchSent(results.sent, results.queued, results.dropped, results.skipped)

    def close(self, where: Where | None = None, code: int | None = CloseCode.NORMAL, reason: str = "") -> int:
        """Close the connections of messages, each after what was sent to it and echoed so far; return how many.

        As `Connection.close`; a connection that has begun to close already is left out.
        """
        part = self if where is None else self.select(where)
        closed = 0
        for identity in dict.fromkeys(part._ids_of_rows().tolist()):
            connection = self._turn._sessions.get(identity)
            if connection is not None and connection.is_open:
                connection.close(code, reason)
                closed += 1
        return closed

    # ---- inside

    def __len__(self) -> int:
        """Return how many messages it holds."""
        return self.count

    def __repr__(self) -> str:
        """Name it for a log."""
        return f"<Batch of {self.count} messages>" if self._turn._batch is self._whole else "<Batch, no longer valid>"

    def _check(self) -> None:
        if self._turn._batch is not self._whole:
            raise RuntimeError(_INVALID)

    def _column(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return a part of a column of the turn: a view of it, or a copy."""
        self._check()
        rows = self._rows
        return column[self._first : self._first + self.count] if rows is None else column[rows]

    def _events(self) -> NDArray[np.uint32]:
        """Return the index of each message among the turn's events."""
        rows = self._rows
        return np.arange(self._first, self._first + self.count, dtype=np.uint32) if rows is None else rows

    def _event(self, row: int) -> int:
        """Return the index of one message among the turn's events."""
        self._check()
        if not -self.count <= row < self.count:
            raise IndexError(f"row {row} of a batch of {self.count} messages")
        row = row + self.count if row < 0 else row
        return self._first + row if self._rows is None else int(self._rows[row])

    def _pick(self, where: Where) -> NDArray[np.uint32]:
        self._check()
        rows: NDArray[np.uint32] = self._events()[_index(where)].reshape(-1)
        return rows

    def _events_pointer(self) -> tuple[CData, int]:
        """Return how the shim is told which events these are."""
        self._check()
        return ffi.NULL if self._rows is None else ffi.from_buffer(_UINT32, self._rows), self._first

    def _ids_of_rows(self) -> NDArray[np.uint64]:
        pointer, first = self._events_pointer()
        ids = np.empty(self.count, np.uint64)
        check(lib.urs_batch_ids(self._turn._handle, pointer, first, self.count, ffi.from_buffer(_UINT64, ids)), "ids")
        return ids

    def _gather(self, data: NDArray[np.uint8], offsets: NDArray[np.int32]) -> int:
        pointer, first = self._events_pointer()
        size = lib.urs_batch_gather(
            self._turn._handle,
            pointer,
            first,
            self.count,
            ffi.from_buffer(_UINT8, data),
            len(data),
            ffi.from_buffer(_INT32, offsets),
        )
        if size == lib.URS_ERROR_TOO_BIG:
            raise ValueError("the payloads together have 2 GiB or more: gather fewer messages at a time, with select")
        return check(size, "gather")

    def _lend(self, view: memoryview) -> memoryview:
        """Keep a view, to release it when the batch ends."""
        whole = self._whole
        self._check()
        if whole._views is None:
            whole._views = []
        whole._views.append(view)
        return view

    def _echo_row(self, connection: Connection) -> bool:
        """Mark the echo of the message that the loop over `each` has come to, if it is of that connection."""
        row = self._row
        if row is None or self._turn._sessions.by_slot[slot_of(connection.id)] is not connection:
            return False
        if self._turn._events[row].slot != slot_of(connection.id):
            return False
        self._columns.echo_flags[row] = 1
        return True

    def _echo_now(self, connection: Connection | None) -> None:
        """Queue the echoes marked so far, of one connection or (None) of all: a close frame follows."""
        identity = 0 if connection is None else connection.id
        check(lib.urs_batch_echo(self._turn._handle, identity, self._first, self._until), "close")

    def _release(self) -> None:
        """Release the views that were given out."""
        for view in self._views or ():
            # The handler may keep an array or a slice. It shows later bytes of the pool, never freed memory.
            with contextlib.suppress(BufferError):
                view.release()

    def _leave_out(self, slots: set[int]) -> None:
        """Leave out the messages of some connections, before the handler is given the batch."""
        keep = ~np.isin(self.slots, list(slots))
        self._rows = self._events()[keep]
        self.count, self._slots = len(self._rows), None

    def _connections(self) -> list[Connection]:
        """Return each connection that has a message in it and has not begun to close."""
        turn = self._turn
        slots = dict.fromkeys(int(turn._events[index].slot) for index in self._events().tolist())
        by_slot = turn._sessions.by_slot
        return [connection for slot in slots if (connection := by_slot[slot]) is not None]


class BatchMessage:
    """One message of a batch, as `Batch.each` gives it. Valid until `on_batch` returns; it can be sent as a payload.

    It has what `Message` has, except that several of them are valid at a time.
    """

    __slots__ = ("_batch", "_row")

    fin = True
    """It is whole: a batch has no fragments."""

    def __init__(self, batch: Batch, row: int) -> None:
        """Only a batch makes it."""
        self._batch = batch
        self._row = row

    @property
    def opcode(self) -> int:
        """TEXT (1) or BINARY (2)."""
        return self._batch._turn._columns[2][self._batch._event(self._row)]

    @property
    def is_text(self) -> bool:
        """Whether the opcode is TEXT; the payload is valid UTF-8 then."""
        return self.opcode == _TEXT

    @property
    def data(self) -> memoryview:
        """The payload: a writable memoryview of bytes, without a copy."""
        return self._batch.data(self._row)

    def copy_whole(self) -> str | bytes:
        """Return a copy: a str of text, bytes of binary."""
        return self.text() if self.is_text else bytes(self)

    def text(self) -> str:
        """Return a copy of the payload, decoded. Raises UnicodeDecodeError for binary that is not UTF-8."""
        return bytes(self).decode()

    def __bytes__(self) -> bytes:
        """Return a copy of the payload."""
        return bytes(self.data)

    def __len__(self) -> int:
        """Return the payload's size in bytes."""
        return self._batch._turn._columns[1][self._batch._event(self._row)]

    def __repr__(self) -> str:
        """Name it for a log."""
        if self._batch._turn._batch is not self._batch._whole:
            return "<BatchMessage, no longer valid>"
        return f"<BatchMessage opcode={self.opcode} bytes={len(self)}>"


def _index(where: Where) -> Any:
    """Return what numpy takes as an index of one dimension: to numpy a tuple has one dimension per element."""
    return list(where) if isinstance(where, tuple) else where


def _payloads(
    payload: Payload | NDArray[Any] | Sequence[Payload], count: int, offsets: ArrayLike | None, opcode: int | None
) -> tuple[int, CData, object]:
    """Return the opcode of `count` messages, their `struct urs_payloads`, and the objects that hold its memory.

    Raises TypeError or ValueError for what cannot be sent.
    """
    if opcode is not None and opcode not in (_TEXT, _BINARY):
        raise ValueError(f"opcode {opcode!r}: a batch sends TEXT or BINARY")
    shim = ffi.new("struct urs_payloads *")
    buffer: Any
    if isinstance(payload, (list, tuple)):
        if offsets is not None:
            raise TypeError("a list has a payload per message: it takes no offsets")
        kind, buffer, offsets = _join(payload, count, opcode)
    elif isinstance(payload, np.ndarray) and payload.ndim:
        kind, buffer = _BINARY, _flat(payload)
        if offsets is None and len(payload) != count:
            raise ValueError(f"an array of {len(payload)} rows for {count} messages: it needs a row per message")
        shim.width = shim.stride = len(buffer) // count if count else 0
    else:
        kind, single = name_opcode(cast("Payload", payload))
        buffer = check_send(kind if opcode is None else opcode, single)
        shim.width = len(buffer)
    data, positions = ffi.from_buffer(_UINT8, buffer), None
    if offsets is not None:
        ends = np.ascontiguousarray(offsets, np.int64)
        if ends.shape != (count + 1,):
            raise ValueError(f"{ends.size} offsets for {count} messages: they need {count + 1}")
        shim.offsets = positions = ffi.from_buffer(_INT64, ends)
    shim.data, shim.bytes = data, len(data)
    return kind if opcode is None else opcode, shim, (data, positions)


def _flat(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an array's bytes as they lie in memory, without a copy if they lie in one piece."""
    if array.dtype.hasobject:
        raise TypeError(f"an array of {array.dtype} holds Python objects, which cannot be sent")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _join(payloads: Sequence[Payload], count: int, opcode: int | None) -> tuple[int, bytes, list[int]]:
    """Return the opcode of several payloads, their bytes, and where each begins and the last one ends."""
    if len(payloads) != count:
        raise ValueError(f"{len(payloads)} payloads for {count} messages: one per message is needed")
    kinds = set()
    parts: list[Any] = []
    offsets = [0]
    for payload in payloads:
        kind, single = name_opcode(payload)
        kinds.add(kind)
        parts.append(check_send(kind if opcode is None else opcode, single))
        offsets.append(offsets[-1] + len(parts[-1]))
    if len(kinds) > 1 and opcode is None:
        raise TypeError("payloads of text and of binary in one list: give the opcode, or make two calls")
    return kinds.pop() if kinds else _BINARY, b"".join(parts), offsets
