"""The dispatch loop: takes turns of the shim and calls the handler for their events. The reactor decides when."""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from uringws import kinds
from uringws.callbacks import came_out_of, ignore
from uringws.closing import NOT_BEGUN, Close, Closing, begin, lost, peer_closed, peer_violated
from uringws.connection import make_connection
from uringws.core import EVENTS_MAX, slot_of
from uringws.errors import ConnectionClosed, ReactorStateError, check
from uringws.frames import CloseCode
from uringws.handshake import LATER
from uringws.losses import loss_of, lost_reason
from uringws.run_state import RunState
from uringws.runs import Runs
from uringws.shim import CData, ffi, lib
from uringws.turn import TurnOutcome
from uringws.upgrade import Decision, Upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from uringws.commands import Commands
    from uringws.connection import Connection
    from uringws.core import Core
    from uringws.deferred import Deferred
    from uringws.extensions import DeflateTerms
    from uringws.handshake import Later, RequestHead
    from uringws.http import Request
    from uringws.message import Message
    from uringws.services import Service
    from uringws.sessions import Sessions
    from uringws.watches import Watches

__all__ = ["Dispatcher"]

logger = logging.getLogger("uringws")

# Looked up once: an attribute of the module costs as much as a small call.
_turn_shim: Final = lib.urs_reactor_turn
_EINTR: Final = 4
_PART_EVENTS_MIN: Final = 4
_PART_EVENTS_MAX: Final = 64
"""How many events a bounded turn hands out between two looks at the clock: twice as many each time."""


class Dispatcher:
    """Hands the events of turns to the callbacks of the handlers."""

    def __init__(
        self,
        core: Core,
        message: Message,
        *,
        sessions: Sessions,
        commands: Commands,
        own: Service,
        by_listener: Mapping[int, Service],
        deferred: Deferred,
    ) -> None:
        """`own` is the service of connections that name none, `by_listener` that of a listener's opening requests."""
        self.attention = False
        """Set to end `take_turns` after its present turn: there is more to look at than events."""
        self.watches: Watches | None = None
        """Set once there is one."""
        self._core = core
        self._message = message
        self._sessions = sessions
        self._commands = commands
        self._own = own
        self._by_listener = by_listener
        self._deferred = deferred
        self._first: Service | None = None
        self._on_message: Callable[..., object] | None = ignore  # None: that of each connection's service
        self._runs: Runs | None = None  # once a handler has on_batch
        self._decided: tuple[int, Decision] | None = (
            None  # the decision that is being carried out, with its session's id
        )
        targets = lib.urs_reactor_columns(core.handle).targets
        self._targets = memoryview(ffi.buffer(targets, ffi.sizeof("int32_t") * EVENTS_MAX)).cast("i")
        self._events: CData = lib.urs_reactor_events(core.handle)

    # ---- handlers

    def begin_to_serve(self, service: Service) -> None:
        """Register a service. While there is only one, a message needs no lookup of its service."""
        if self._first is None:
            self._first = service
            self._on_message = service.on_message
        elif service is not self._first:
            self._on_message = None
        if service.on_batch is not None:
            self._on_message = None
            if self._runs is None:
                self._runs = Runs(self._message, self._dispatch_by_service)
            self._runs.add(service)
        self.attention = True  # `take_turns` goes on with what it began with

    def _service_of(self, connection: Connection) -> Service:
        return connection._service or self._own

    # ---- turns

    def take_turns(self, timeout: float | None, *, echo: bool = False, once: bool = False) -> int:
        """Take turns for as long as they bring events and nothing asks for attention; return the last one's events."""
        milliseconds = -1 if timeout is None else int(timeout * 1000 + 0.999)
        handle, handled = self._core.handle, self._core.handled
        targets, message, waiting = self._targets, self._message, self._commands.waiting
        on_message = ignore if echo else self._on_message  # the shim echoes
        if message._index != EVENTS_MAX:
            self._note_handled()
        while True:
            count: int = _turn_shim(handle, milliseconds, echo)
            if count > 0:
                first = handled[0]
                if on_message is not None:
                    self._dispatch(enumerate(targets[first:count].tolist(), first), on_message)
                else:
                    self._dispatch_mixed(first, count)
                handled[0] = count
                message._index = EVENTS_MAX
            elif count < 0:
                if count != -_EINTR:
                    check(count, f"{self._core.opened.name} turn")
                count = 0
            if waiting:
                self._commands.run()
            if self.watches is not None and self.watches:
                self.watches.run_ready()
            if once or not count or self.attention:
                return count

    def take_bounded_turn(self, timeout: float | None, seconds: float) -> TurnOutcome:
        """Take one turn, or go on with the events that are left of the last one; call back for about `seconds`.

        What the handlers sent has left if events are left over, and leaves with the next turn otherwise.
        """
        milliseconds = -1 if timeout is None else int(timeout * 1000 + 0.999)
        handle, handled, message = self._core.handle, self._core.handled, self._message
        if message._index != EVENTS_MAX:
            self._note_handled()
        count: int = _turn_shim(handle, milliseconds, False)
        outcome = TurnOutcome.IDLE
        if count < 0:
            if count != -_EINTR:
                check(count, f"{self._core.opened.name} turn")
            outcome = TurnOutcome.INTERRUPTED
        elif count > 0:
            outcome = TurnOutcome.BUSY
            first, part, until = handled[0], _PART_EVENTS_MIN, time.monotonic() + seconds
            while first < count:
                first = handled[0] = self._hand_out(first, count, part)
                part = min(2 * part, _PART_EVENTS_MAX)
                message._index = EVENTS_MAX
                if first < count and time.monotonic() >= until:
                    check(lib.urs_reactor_flush_handled(handle), f"{self._core.opened.name} flush")
                    outcome = TurnOutcome.CUT_SHORT
                    break
        if self._commands.waiting:
            self._commands.run()
            outcome = max(outcome, TurnOutcome.BUSY)
        if self.watches is not None and self.watches:
            self.watches.run_ready()
        return outcome

    def _hand_out(self, first: int, count: int, part: int) -> int:
        """Hand out the events from `first` on: at most `part` of them, or one run for `on_batch`. Return the next."""
        if self._runs is not None:
            return self._runs.dispatch_next(first, count, part)
        last = min(count, first + part)
        batch = enumerate(self._targets[first:last].tolist(), first)
        if self._on_message is None:
            self._dispatch_by_service(batch)
        else:
            self._dispatch(batch, self._on_message)
        return last

    def _note_handled(self) -> None:
        """Tell the shim how many events were handled when an exception interrupted the dispatch: it returns the others
        again.

        An event is handled once its callback is called. For a message that is when it becomes the current one: between
        the two nothing can raise. Events of other kinds are noted as their callbacks are called.
        """
        index = self._message._index
        handled = self._core.handled
        handled[0] = max(handled[0], index + (self._targets[index] >= 0))
        self._message._index = EVENTS_MAX

    def _dispatch(self, batch: Iterator[tuple[int, int]], on_message: Callable[..., object]) -> None:
        """Hand a batch of events to the handler, and log the errors of its callbacks. Other exceptions propagate (a
        KeyboardInterrupt, an exception of a signal handler between two callbacks); the events after the current one
        wait for the next turn.
        """
        message = self._message
        connections = self._sessions.by_slot
        connection: Connection | None = None
        while True:
            try:
                for message._index, slot in batch:
                    connection = connections[slot]
                    if connection is None:
                        if slot < 0:
                            self._on_other()
                        else:
                            self._on_late_message(slot)
                        continue
                    message._connection = connection
                    on_message(connection, message)
                    view = message._view
                    if view is not None:  # Turn._release, written out: the call would cost more than all of it
                        message._view = None
                        try:  # noqa: SIM105 - as there
                            view.release()
                        except BufferError:
                            pass
                return
            except Exception as error:
                if connection is None or on_message is ignore or not came_out_of(on_message, error):
                    raise
                self._log_failure(connection, error)
            finally:
                message._connection = None
                if message._view is not None:
                    message._release()

    def _dispatch_mixed(self, first: int, count: int) -> None:
        """Hand out events whose callbacks are not all those of one service, or in runs."""
        if self._runs is not None:
            self._runs.dispatch(first, count)
        else:
            self._dispatch_by_service(enumerate(self._targets[first:count].tolist(), first))

    def _dispatch_by_service(self, batch: Iterator[tuple[int, int]]) -> None:
        """Do as `_dispatch`, with the callback of each connection's own handler.

        Not by a callback that calls it: where a signal handler raised between the two, the message would be lost.
        """
        message, own = self._message, self._own
        connections = self._sessions.by_slot
        connection: Connection | None = None
        on_message: Callable[..., object] = ignore
        while True:
            try:
                for message._index, slot in batch:
                    connection = connections[slot]
                    if connection is None:
                        if slot < 0:
                            self._on_other()
                        else:
                            self._on_late_message(slot)
                        continue
                    on_message = (connection._service or own).on_message
                    message._connection = connection
                    on_message(connection, message)
                    if message._view is not None:
                        message._release()
                return
            except Exception as error:
                if connection is None or on_message is ignore or not came_out_of(on_message, error):
                    raise
                self._log_failure(connection, error)
            finally:
                message._connection = None
                if message._view is not None:
                    message._release()

    # ---- what comes while a connection is closing

    def _receiver(self, slot: int) -> Connection | None:
        """Return the connection to which a message or a pong is to be delivered; None if it has begun to close."""
        sessions = self._sessions
        connection = sessions.by_slot[slot]
        if connection is not None:
            return connection
        connection = sessions.ending.get(slot)
        if connection is None or slot in sessions.aborted:
            return None
        return connection if self._service_of(connection).options.deliver_while_closing else None

    def _on_late_message(self, slot: int) -> None:
        """Deliver the current message, of a connection that has begun to close, if the options ask for it."""
        message = self._message
        connection = self._receiver(slot)
        if connection is None or self._core.echo_flags[message._index]:  # flagged by the shim, in run_echo
            return
        message._connection = None  # too late to echo it
        self._core.handled[0] = message._index + 1
        try:
            self._service_of(connection).on_message(connection, message)
        except Exception as error:  # noqa: BLE001 - logged
            self._log_failure(connection, error)
        finally:
            if message._view is not None:
                message._release()

    # ---- events that are not messages

    def _on_other(self) -> None:
        """Handle the current event, which is no message that could be echoed."""
        message = self._message
        index = message._index
        event = self._events[index]
        try:
            message._connection = None
            message._hide()
            message._index = index + 1  # this event is applied before what its handler asks for
            kind = event.item.kind
            if kind == kinds.MESSAGE or kind == kinds.FRAME:
                message._index = index
                message._show()
                self._on_late_message(event.slot)
            else:
                self._on_event(event.slot, event.item, kind)
            self._core.handled[0] = index + 1
        finally:  # no calls here: a signal handler could raise in them
            message._index = index
            message._offsets, message._lengths, message._opcodes = message._columns

    def _on_event(self, slot: int, item: CData, kind: int) -> None:
        """Call the callback of an event that is not a message. Errors of the callback are logged."""
        if kind == kinds.UPGRADE:
            self._on_upgrade(slot, item)
        elif kind == kinds.DRAIN:
            connection = self._sessions.by_slot[slot]
            if connection is not None:
                self._call(connection, self._service_of(connection).on_drain, connection)
        elif kind == kinds.DROP:
            self._on_drop(slot)
        elif kind == kinds.PONG:
            connection = self._receiver(slot)
            if connection is not None:
                on_pong = self._service_of(connection).on_pong
                self._call(connection, on_pong, connection, bytes(ffi.buffer(item.payload, item.bytes)))
        else:
            self._on_ending(slot, item, kind)

    def _on_drop(self, slot: int) -> None:
        """Report messages of topics that were dropped for a connection."""
        connection, topics = self._sessions.by_slot[slot], self._message._topics
        if connection is None or topics is None:
            return
        on_drop = self._service_of(connection).on_drop
        for topic, count in topics.take_drops(connection.id):
            self._call(connection, on_drop, connection, topic, count)

    def _on_ending(self, slot: int, item: CData, kind: int) -> None:
        """Handle what ends a session, or the wait for an answer to its request."""
        if kind == kinds.ABANDONED:
            self._abandon(slot)
        elif kind == kinds.CLOSE:
            reason = ffi.unpack(ffi.cast("char *", item.payload), item.bytes).decode() if item.bytes else ""
            self._end(slot, Close(int(item.close_code), reason), peer_closed)
        elif kind == kinds.FAILED:
            reason = ffi.string(lib.urs_engine_error_text(item.error)).decode()
            self._end(slot, Close(int(item.close_code), reason), peer_violated)
        elif kind == kinds.LOST:
            if self._deferred.waiting:
                self._abandon(slot)
            if self._unended(slot) is None:
                return  # most often: the close handshake came before
            number = int(item.error)
            close = Close(int(item.close_code), lost_reason(number))
            self._end(slot, close, lambda closing, _: lost(closing, loss_of(number, closing)))

    def _unended(self, slot: int) -> Connection | None:
        """Return the connection whose `on_close` is still to be called; None for a session that has none."""
        sessions = self._sessions
        connection = sessions.ending.get(slot)
        if connection is None and slot < len(sessions.by_slot):
            connection = sessions.by_slot[slot]
        return connection

    def _end(self, slot: int, close: Close, complete: Callable[[Closing, Close], Closing]) -> None:
        """Call on_close, once. For a session that never opened, or has ended, there is no connection: do nothing.

        `close` has the code and the reason for on_close; `complete` makes the final `Closing` from it and from the
        unfinished one.
        """
        sessions = self._sessions
        by_slot, ending, close_codes = sessions.by_slot, sessions.ending, sessions.close_codes
        connection = self._unended(slot)
        if connection is None:
            return
        sessions.aborted.discard(slot)
        on_close = self._service_of(connection).on_close
        code, reason = close.code, close.reason
        so_far = self._message._closing(connection) or NOT_BEGUN
        failed = so_far.sent is not None and so_far.sent.code == CloseCode.INTERNAL_ERROR
        if failed and lib.urs_command_failure(self._core.handle, connection.id) == lib.URS_FAILURE_ORDER:
            logger.error("%r was closed with 1011: echo() while a fragmented message was unfinished", connection)
        sessions.closings[connection] = complete(so_far, close)
        count = close_codes[code] + 1
        # No call from here to the callback, in which a signal handler could raise.
        close_codes[code] = count
        if slot in ending:
            del ending[slot]
        else:
            by_slot[slot] = None
        if self._message._index < EVENTS_MAX:
            self._core.handled[0] = self._message._index
        try:
            on_close(connection, code, reason)
        except Exception as error:  # noqa: BLE001 - reported
            self._core.report(error, "on_close of %r failed", connection, connection=connection)

    def begin_drain(self, code: int) -> None:
        """Begin the close handshake of every connection, after what the current event's handler sent and echoed."""
        message = self._message
        lib.urs_reactor_drain(self._core.handle, message._events_before_close(None), code)
        closing = begin(Close(code))
        for connection in self._sessions.receiving():
            was_open = lib.urs_command_state(self._core.handle, connection.id) == lib.URS_SESSION_AWAIT_CLOSE
            message._begin_closing(connection, message._closing(connection) or (closing if was_open else NOT_BEGUN))

    def close(self) -> None:
        """Refuse to send on any connection from now on: bytes that on_close sent would never leave."""
        message, sessions = self._message, self._sessions
        # In a forked child the shim refuses to be asked, and no on_close follows.
        for connection in sessions.receiving() if self._core.state is RunState.CLOSING else ():
            closing = message._closing(connection)
            if closing is not None:  # the shim began it, and will not be there to report it
                sessions.closings[connection] = closing
        message._close()

    def end_all(self) -> None:
        """Tell the handler of every connection, and of every request that awaits an answer, that it has ended.

        Then raise the first exception that got out of it.
        """
        got_out: BaseException | None = None
        close = Close(CloseCode.ABNORMAL.value, "the reactor was closed")
        cause = ConnectionAbortedError(errno.ECONNABORTED, close.reason)
        ends = [partial(self._deferred.abandon, identity) for identity in self._deferred.waiting]
        slots = range(len(self._sessions.by_slot))
        ends += [partial(self._end, slot, close, lambda closing, _: lost(closing, cause)) for slot in slots]
        for end in ends:
            try:
                end()
            except BaseException as error:  # noqa: BLE001 - raised below
                got_out = error if got_out is None else got_out
        if got_out is not None:
            raise got_out

    # ---- sessions that begin

    def _on_upgrade(self, slot: int, item: CData) -> None:
        core = self._core
        identity = int(lib.urs_reactor_id(core.handle, slot))
        connection = self._sessions.get(identity)  # there already, if an exception came before on_open was called
        if (
            connection is None
            and identity not in self._deferred.waiting
            and lib.urs_command_state(core.handle, identity) == lib.URS_SESSION_AWAIT_DECISION
        ):
            service = self._by_listener.get(item.count, self._own)
            connection = self._decide(Upgrade(identity, item, core.peer(identity)), service)
        if connection is not None:
            self._call(connection, self._service_of(connection).on_open, connection)

    def _decide(self, upgrade: Upgrade, service: Service) -> Connection | None:
        """Decide on a request and carry that out; return the connection if it was accepted.

        Raises what a callback raised, once the decision is carried out.
        """
        identity = upgrade.identity
        error = connection = None
        decision: Decision | Later
        if self._decided is not None and self._decided[0] == identity:
            decision = self._decided[1]  # an exception interrupted its execution
        else:
            decision, error = self._deferred.decide(upgrade, service)
        if decision is not LATER:
            self._decided = identity, decision
            _, connection = self._carry_out(identity, decision, service)
            self._decided = None
        elif self._message._index < EVENTS_MAX:
            self._core.handled[0] = self._message._index  # its event has done what it is for
        if error is not None:
            raise error
        return connection

    def _carry_out(self, identity: int, decision: Decision, service: Service) -> tuple[bool, Connection | None]:
        """Answer a request; return whether its peer was still there, and the connection if it has become one."""
        if decision.accepted:
            connection = self._open(identity, decision, service)
            return connection is not None, connection
        handle, rejected = self._core.handle, self._sessions.rejected
        reason, response, size = decision.reason, decision.response, len(decision.response)
        count = 0 if reason is None else rejected[reason] + 1
        if reason is not None:
            rejected[reason] = count  # no call after it but the next
        return lib.urs_command_reject(handle, identity, response, size) == 0, None

    def answer(self, request: Request | RequestHead | int, returned: object) -> bool:
        """Answer a request for which a callback returned LATER. See `Reactor.answer`."""
        pending = self._deferred.find(request)
        if pending is None:
            return self._answer_missing(request)
        decision = self._deferred.answer(pending, returned)
        if decision is LATER:
            return True
        is_there, connection = self._carry_out(pending.upgrade.identity, decision, pending.service)
        if connection is not None:
            self._call(connection, pending.service.on_open, connection)
        return is_there

    def _answer_missing(self, request: Request | RequestHead | int) -> bool:
        """Return False for a request that was abandoned; raise for one that has become a connection."""
        identity = request if isinstance(request, int) else request.id
        state = lib.urs_command_state(self._core.handle, identity)
        if state == lib.URS_SESSION_OPEN or state == lib.URS_SESSION_AWAIT_CLOSE:
            raise ReactorStateError(f"request {identity} was answered before: a request is answered once")
        return False

    def _abandon(self, slot: int) -> None:
        """Report a request that can no longer be answered: its peer has left, or the shim has refused it."""
        if self._message._index < EVENTS_MAX:
            self._core.handled[0] = self._message._index
        self._deferred.abandon(int(lib.urs_reactor_id(self._core.handle, slot)))

    def _open(self, identity: int, decision: Decision, service: Service) -> Connection | None:
        """Accept a request; return its connection, or None if the peer has left."""
        sessions, handle = self._sessions, self._core.handle
        connection = self._make_connection(identity, decision.subprotocol, decision.data, service, decision.deflate)
        terms = 0 if decision.deflate is None else decision.deflate.number
        slot, response, size = slot_of(identity), decision.response, len(decision.response)
        # No call between these, in which a signal handler could raise: a session opens with its connection.
        sessions.by_slot[slot] = connection
        sessions.made += 1
        if lib.urs_command_accept(handle, identity, response, size, terms) < 0:
            sessions.by_slot[slot] = None
            sessions.made -= 1
            return None
        return connection

    def _make_connection(
        self, identity: int, subprotocol: str | None, data: object, service: Service, deflate: DeflateTerms | None
    ) -> Connection:
        """Make a connection, and room for it; it is not among the others yet."""
        self._sessions.make_room(identity)
        other = None if service is self._own else service
        return make_connection(self._message, identity, subprotocol, data, other, deflate=deflate)

    def adopt(
        self,
        descriptor: int,
        prefix: memoryview | bytes,
        subprotocol: str | None,
        data: object,
        service: Service,
        *,
        deflate: DeflateTerms | None,
    ) -> Connection:
        """Make a session of an upgraded socket; `prefix` is what was read from it past the request.

        The caller holds the lock of the core, and calls `open_adopted` once it has given up the socket.
        """
        identity = ffi.new("uint64_t *")
        handle, terms = self._core.handle, 0 if deflate is None else deflate.number
        with ffi.from_buffer("uint8_t[]", prefix) as buffer:  # no exception may keep it: see Connection._send_any
            result = lib.urs_reactor_adopt(handle, descriptor, service.rules, terms, buffer, len(prefix), identity)
        check(result, "add_session")
        connection = self._make_connection(int(identity[0]), subprotocol, data, service, deflate)
        self._sessions.by_slot[slot_of(connection.id)] = connection
        self._sessions.made += 1
        return connection

    def open_adopted(self, connection: Connection) -> None:
        """Call on_open for a session that `adopt` made."""
        self._call(connection, self._service_of(connection).on_open, connection)

    # ---- callbacks

    def _call(self, connection: Connection, callback: Callable[..., object], *arguments: object) -> None:
        if self._message._index < EVENTS_MAX:
            self._core.handled[0] = self._message._index  # counts as handled from here on
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001 - logged
            self._log_failure(connection, error)

    def _log_failure(self, connection: Connection, error: Exception) -> None:
        """A callback raised: log it, and close its connection with 1011."""
        if isinstance(error, ConnectionClosed) and not connection.is_open:
            # It sent to a peer that has left meanwhile. That is not the handler's mistake, and on_close will follow.
            logger.debug("%r ended before it was answered", connection)
            return
        self._core.report(error, "the handler of %r failed; it is closed with 1011", connection, connection=connection)
        if connection.is_open:
            with contextlib.suppress(Exception):
                connection.close(CloseCode.INTERNAL_ERROR, "internal error")
