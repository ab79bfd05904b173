"""A connection as its handler sees it. It is small, because there is one per session: the shim has all its state."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, overload

from uringws.closing import Close, Closing, begin, lost
from uringws.core import slot_of
from uringws.errors import ConnectionClosed, UringWSError, WrongThread, check
from uringws.frames import CloseCode, Opcode
from uringws.prepared import Frame
from uringws.sending import ABSENT, NOT_BEGUN, UNFINISHED, check_close, check_send, name_opcode
from uringws.shim import fast_send, fast_send_event, ffi, lib

if TYPE_CHECKING:
    from uringws.extensions import DeflateTerms
    from uringws.http import Peer
    from uringws.sending import Payload
    from uringws.services import Service
    from uringws.topics import Topic
    from uringws.turn import Turn

__all__ = ["Connection", "SendResult", "make_connection"]


class SendResult(IntEnum):
    """The result of a send. All three are final: nothing is reported about this message later."""

    SENT = 0
    """Handed on, or it leaves when the turn ends."""
    QUEUED = 1
    """It waits: the socket takes no more yet, or this turn's sends have reached `Options.backlog_high_bytes` (at least
    256 KiB). `buffered_amount` says how much waits; if that is the high mark or more, `on_drain` follows."""
    DROPPED = 2
    """It would have exceeded `backlog_bytes_max`: nothing of it was or will be sent."""


_SENT: Final = SendResult.SENT
_NOT_EVENT: Final[int] = lib.URS_ERROR_STATE  # the payload is not, or no longer, that of the event being handled
_OUT_OF_ORDER: Final = {lib.URS_ERROR_INTERLEAVED: UNFINISHED, lib.URS_ERROR_CONTINUATION: NOT_BEGUN}
_OWN_OPCODE: Final = 0
_CONTINUATION: Final = int(Opcode.CONTINUATION)
_UNCOMPRESSED: Final[int] = lib.URS_SEND_UNCOMPRESSED
_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_PING: Final = int(Opcode.PING)


# Looked up once: an attribute of the module costs as much as a small call.
_send: Final = fast_send
_send_event: Final = fast_send_event
_BYTES: Final = ffi.typeof("uint8_t[]")


class Connection:
    """One WebSocket connection. Its methods belong to the reactor's thread; `Sender` is for others.

    Those that send or close raise ConnectionClosed once the close handshake has begun, and WrongThread in another
    thread. The object may be kept for as long as you like: it does not keep the connection. It is hashable, compares by
    identity and can be referenced weakly: a `weakref.WeakSet` of connections lets go of those that have ended.
    """

    __slots__ = ("__weakref__", "_turn", "data", "id")

    id: int
    """Unique within the reactor: no later connection gets the same number."""
    data: Any
    """For the application. Its first value is the one given to `Accept.data` or `add_session`."""
    subprotocol: str | None = None
    """The subprotocol that the upgrade agreed on (RFC 6455 1.9). Connections without one spend no memory on it."""
    deflate: DeflateTerms | None = None
    """The terms of permessage-deflate (RFC 7692) that the upgrade agreed on; None if messages are not compressed."""
    _service: Service | None = None  # None is the reactor's own; only connections of another spend memory on it

    def __init__(self, turn: Turn, connection_id: int, data: object) -> None:
        """Only the reactor makes connections."""
        self._turn = turn
        self.id = connection_id
        self.data = data

    @property
    def slot(self) -> int:
        """Its place in the reactor's table, from 0 on: an index for arrays of your own, as in `Batch.slots`.

        No two connections have the same slot at a time. Another one may have it after this one's `on_close`: reset
        your arrays in `on_open`, and lengthen them there if they are too short.
        """
        return slot_of(self.id)

    @property
    def peer(self) -> Peer:
        """(host, port) of the other end, as a trusted PROXY header named it; None for a Unix socket, or for a
        connection that is gone.
        """
        return self._turn._core.peer(self.id)

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent: from `on_open` until either side has begun to close. Raises WrongThread."""
        turn = self._turn
        state: int = lib.urs_command_state(turn._handle, self.id)
        if state != lib.URS_SESSION_OPEN:
            check(state, "is_open")
            return False
        return turn._sessions.get(self.id) is self  # otherwise on_close was called or will be

    @property
    def buffered_amount(self) -> int:
        """Bytes that wait for the socket to take them, headers included; 0 once the connection is gone.

        Bytes sent in this turn count until the turn ends. If it is `Options.backlog_high_bytes` or more,
        `Handler.on_drain` will follow.
        """
        waiting: int = lib.urs_command_buffered(self._turn._handle, self.id)
        return 0 if waiting == lib.URS_ERROR_STALE else check(waiting, "buffered_amount")

    @property
    def closing(self) -> Closing | None:
        """How the connection ended, or how far its ending has come; None until either side has begun.

        It is complete when `on_close` is called, and can be read at any time after that, from any thread. Earlier it
        shows our own close frame, which a limit or a deadline may have sent too, and raises WrongThread elsewhere.
        """
        return self._turn._closing(self)

    @property
    def is_released(self) -> bool:
        """Whether its socket is closed. That may be some time after `on_close`: the end of the peer's stream is awaited
        for `Options.close_seconds_max` at most. Raises WrongThread.
        """
        state: int = lib.urs_command_state(self._turn._handle, self.id)
        return check(state, "is_released") == int(lib.URS_SESSION_FREE)

    @property
    def latency_seconds(self) -> float | None:
        """Seconds from the last ping of `Options.ping_interval_seconds` to its pong; None before the first pong."""
        seconds: float = lib.urs_command_latency(self._turn._handle, self.id)
        if seconds < -1:
            check(int(seconds), "latency_seconds")
        return seconds if seconds >= 0 else None

    @property
    def topics(self) -> list[Topic]:
        """The topics of which it is a member, in no order; none once it has begun to close. Raises WrongThread."""
        topics = self._turn._topics
        return [] if topics is None else topics.of(self.id)

    def echo(self) -> None:
        """Send the message that is being handled back, as it is now, without a copy.

        It is compressed where `send` would compress it, which copies it. It leaves when the handler has returned, after
        what the handler sends. Raises RuntimeError outside of the `on_message` (or `on_frame`) of this connection,
        ConnectionClosed after its close, ValueError for a whole message while one that `send(fin=False)` has begun is
        unfinished.
        """
        turn = self._turn
        if turn._connection is not self:
            if turn._batch is None or not turn._batch._echo_row(self):
                raise self._echo_error()
            return
        turn._echo_flags[turn._index] = 1

    @overload
    def send(self, payload: Payload, /, *, fin: bool = True, compress: bool = True) -> SendResult: ...

    @overload
    def send(self, opcode: int, payload: Payload, *, fin: bool = True, compress: bool = True) -> SendResult: ...

    def send(self, opcode: Any, payload: Any = ABSENT, *, fin: bool = True, compress: bool = True) -> SendResult:
        """Send a message: `send(payload)`, or `send(opcode, payload)`, in one frame. Never waits.

        `payload` is a str, bytes, any C-contiguous buffer (its bytes are sent as they lie in memory), a Message, or
        a Frame, which is not copied. On return it is copied or already with the kernel. `send(payload)` sends a str as
        text, a Message or a Frame with its own opcode, and everything else as binary. `opcode` is TEXT, BINARY, PING or
        PONG (RFC 6455 5.6, 5.5). Bytes sent as TEXT are not checked for UTF-8. All sends to one connection within one
        turn leave in one system call.

        To send the message that is being handled, pass the Message: `send(message)` costs half of
        `send(message.opcode, message.data)`, which makes a view of the payload first.

        `send(opcode, payload, fin=False)` begins a message of several frames (RFC 6455 5.4). It goes on with
        `send(Opcode.CONTINUATION, payload, fin=False)` and ends with `send(Opcode.CONTINUATION, payload)`. Until then
        pings, pongs and `close` may be sent, but no other message: that raises ValueError, as a continuation of no
        message does; `echo` raises it at once. An echo that was called before, and still waits when the handler returns
        with the message unfinished, closes the connection with 1011.

        A message of `Deflate.bytes_min` bytes or more is compressed if the connection agreed on that (`deflate`),
        unless `compress` is False; fragments never are. Whether it fits the backlog is decided by its size before
        compression; once it waits, it counts as it goes over the wire.

        `Options.on_full` says what happens if `Options.backlog_bytes_max` would be exceeded. Raises ValueError for
        another opcode or more than 125 bytes of ping or pong, TypeError for any other payload, BacklogFull with
        `on_full="error"` (and with "drop" for a continuation: a part of a message is never dropped), ConnectionClosed,
        WrongThread.
        """
        turn = self._turn
        result = _NOT_EVENT
        if not fin or not compress:
            pass
        elif payload is ABSENT:
            if opcode is turn:  # to the application, the turn is the Message
                result = _send_event(turn._address, self.id, turn._index, _OWN_OPCODE)
            elif type(opcode) is bytes:
                result = _send(turn._address, self.id, turn._index, _BINARY, opcode)
            elif type(opcode) is str:
                result = _send(turn._address, self.id, turn._index, _TEXT, opcode.encode())
        elif opcode == _BINARY or opcode == _TEXT:
            if payload is turn._view is not None or payload is turn:
                # The payload of the current message: the shim knows where it lies.
                result = _send_event(turn._address, self.id, turn._index, opcode)
            elif type(payload) is bytes:
                result = _send(turn._address, self.id, turn._index, opcode, payload)
        if result == 0:
            return _SENT
        is_left = result == _NOT_EVENT
        return self._send_any(opcode, payload, fin, compress) if is_left else self._result_or_raise(result)

    def _send_any(self, opcode: Any, payload: Any, fin: bool, compress: bool) -> SendResult:  # noqa: FBT001 - as `send`
        """Send a payload that `send` has no fast path for."""
        turn = self._turn
        if payload is ABSENT:
            if type(opcode) is Frame and fin:
                result = lib.urs_command_send_prepared(turn._handle, self.id, turn._index, opcode._block)
                return _SENT if result == 0 else self._result_or_raise(result)
            opcode, payload = name_opcode(opcode)
        data = check_send(opcode, payload, fin=fin)
        flags = opcode if compress or not fin else opcode | _UNCOMPRESSED
        if type(data) is bytes and fin:
            result = _send(turn._address, self.id, turn._index, flags, data)
        else:
            # Released here, before an exception can keep it: CPython 3.11 and early 3.12 crash when they collect a
            # cycle with a memoryview that is in use (python/cpython#77894).
            with ffi.from_buffer(_BYTES, data) as buffer:
                send = lib.urs_command_send if fin else lib.urs_command_send_fragment
                result = send(turn._handle, self.id, turn._index, flags, buffer, len(buffer))
        if (not fin or opcode == _CONTINUATION) and result >= 0:
            self._note_fragments(begun=not fin)
        return _SENT if result == 0 else self._result_or_raise(result)

    def _note_fragments(self, *, begun: bool) -> None:
        """Note that a message of several frames has begun, or has ended."""
        self.__class__ = (_FRAGMENTING if begun else _USUAL).get(type(self), type(self))

    def send_text(self, text: str) -> SendResult:
        """Send a str as a text message. See `send`; raises TypeError for anything but a str."""
        if not isinstance(text, str):
            raise TypeError(
                f"text is a str, not {type(text).__name__}: encoded text goes through send(Opcode.TEXT, ...)"
            )
        return self.send(_TEXT, text.encode())

    def send_binary(self, payload: Payload) -> SendResult:
        """Send a binary message, whatever the opcode of a Message. See `send`; a str raises TypeError."""
        return self.send(_BINARY, payload)

    def ping(self, payload: Payload = b"") -> SendResult:
        """Send a ping of at most 125 bytes (RFC 6455 5.5.2). See `send`.

        Its pong, which has the same payload, goes to the handler's `on_pong`, if it defines one. `latency_seconds`
        comes from the pings that the reactor sends itself.
        """
        return self.send(_PING, payload)

    def close(self, code: int | None = CloseCode.NORMAL, reason: str = "") -> None:
        """Begin the close handshake (RFC 6455 7.1.2), after all that was sent and echoed so far.

        No message is delivered any more, unless `Options.deliver_while_closing` asks for it; `on_close` comes when the
        peer has answered, or `Options.close_seconds_max` later. `code` is 1000 to 1003, 1007 to 1014 or 3000 to 4999
        (RFC 6455 7.4), or None for a close frame without one; `reason` is at most 123 bytes of UTF-8 and needs a code.
        Raises ValueError or TypeError for what cannot be sent, ConnectionClosed if it had begun already, WrongThread.
        """
        number, encoded = check_close(code, reason)
        turn = self._turn
        events = turn._events_before_close(self)
        result = lib.urs_command_close(turn._handle, self.id, events, number, encoded, len(encoded))
        if result < 0:
            raise self._error(result, "close")
        turn._begin_closing(self, begin(Close(number or CloseCode.NO_STATUS.value, reason)))

    def abort(self) -> None:
        """End the connection at once, without a close frame; its backlog is thrown away.

        `on_close` follows with 1006. Raises ConnectionClosed if it is gone already, WrongThread.
        """
        turn = self._turn
        so_far = turn._closing(self) or Closing()
        check(lib.urs_command_abort(turn._handle, self.id), "abort")
        error = ConnectionAbortedError(errno.ECONNABORTED, "the server aborted the connection")
        turn._begin_closing(self, lost(so_far, error), aborted=True)

    def pause_reading(self) -> None:
        """Stop reading: the peer's bytes wait in the socket and, once that is full, at the peer.

        Bytes that were already read are kept. The peer's close frame and pongs are not seen either, so
        `Options.idle_seconds_max` and `ping_timeout_seconds` do not count until `resume_reading`. Raises
        ConnectionClosed, WrongThread.
        """
        check(lib.urs_command_pause(self._turn._handle, self.id), "pause_reading")

    def resume_reading(self) -> None:
        """Read again; bytes that were kept come first. Raises ConnectionClosed, WrongThread."""
        check(lib.urs_command_resume(self._turn._handle, self.id), "resume_reading")

    def __repr__(self) -> str:
        """Name it for a log; whether it is open is known in the reactor's thread only."""
        try:
            return f"<Connection {self.id} {'open' if self.is_open else 'closed'}>"
        except UringWSError:
            return f"<Connection {self.id}>"

    def _echo_error(self) -> Exception:
        try:
            is_open = self.is_open
        except WrongThread:
            return WrongThread(f"echo on connection {self.id}: it belongs to the thread that runs its reactor")
        if not is_open:
            return ConnectionClosed(f"echo on connection {self.id}: the connection is closing")
        return RuntimeError("echo() is for the connection whose message is being handled, while it is")

    def _result_or_raise(self, result: int) -> SendResult:
        if result in _OUT_OF_ORDER:
            raise ValueError(_OUT_OF_ORDER[result])
        if result < 0:
            raise self._error(result, "send")
        if result == SendResult.DROPPED and not self.is_open:  # on_full="close"
            self._turn._begin_closing(self, self.closing or Closing())
        return SendResult(result)

    def _error(self, result: int, what: str) -> Exception:
        try:
            check(result, f"{what} on connection {self.id}")
        except (UringWSError, OSError) as error:
            return error
        raise AssertionError(result)


class _ConnectionWithSubprotocol(Connection):
    __slots__ = ("subprotocol",)


class _ConnectionOfService(_ConnectionWithSubprotocol):
    __slots__ = ("_service",)


class _ConnectionWithDeflate(_ConnectionOfService):
    __slots__ = ("deflate",)


class _Fragmenting(Connection):
    """A connection while a message that `send(fin=False)` has begun is unfinished.

    The object changes its class for that time: a look in `echo` would cost every message.
    """

    __slots__ = ()

    def echo(self) -> None:
        """Send back a frame that continues the message. Raises ValueError for others, else as `Connection.echo`."""
        turn = self._turn
        if turn._connection is not self:
            raise self._echo_error()
        if turn._opcodes[turn._index] != _CONTINUATION:
            raise ValueError(f"echo on connection {self.id}: {UNFINISHED}")
        super().echo()
        self._note_fragments(begun=not turn._fins[turn._index])


class _FragmentingWithSubprotocol(_Fragmenting, _ConnectionWithSubprotocol):
    __slots__ = ()


class _FragmentingOfService(_Fragmenting, _ConnectionOfService):
    __slots__ = ()


class _FragmentingWithDeflate(_Fragmenting, _ConnectionWithDeflate):
    __slots__ = ()


_FRAGMENTING: Final[dict[type[Connection], type[Connection]]] = {
    Connection: _Fragmenting,
    _ConnectionWithSubprotocol: _FragmentingWithSubprotocol,
    _ConnectionOfService: _FragmentingOfService,
    _ConnectionWithDeflate: _FragmentingWithDeflate,
}
_USUAL: Final = {fragmenting: usual for usual, fragmenting in _FRAGMENTING.items()}


def make_connection(
    turn: Turn,
    connection_id: int,
    subprotocol: str | None,
    data: object,
    service: Service | None,
    *,
    deflate: DeflateTerms | None,
) -> Connection:
    """Return a new connection that belongs to a reactor's turns; `service` is None for the reactor's own."""
    if deflate is not None:
        compressed = _ConnectionWithDeflate(turn, connection_id, data)
        compressed.subprotocol = subprotocol
        compressed._service = service
        compressed.deflate = deflate
        return compressed
    if service is not None:
        routed = _ConnectionOfService(turn, connection_id, data)
        routed.subprotocol = subprotocol
        routed._service = service
        return routed
    if subprotocol is None:
        return Connection(turn, connection_id, data)
    connection = _ConnectionWithSubprotocol(turn, connection_id, data)
    connection.subprotocol = subprotocol
    return connection
