"""`ServerConnection`: one connection as a coroutine sees it, with the surface of that of `websockets.asyncio.server`.

This file has the state of a connection, its queue of messages, and the tasks that wait. Its link (link.py) moves the
frames to and from the peer.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from logging import LoggerAdapter
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast, overload

from uringws.asyncio.attributes import Attributes
from uringws.asyncio.classes import (
    CLOSED,
    CLOSING,
    CONNECTING,
    OPEN,
    Close,
    ConcurrencyError,
    ConnectionClosed,
    ProtocolError,
    State,
)
from uringws.asyncio.ending import Ending
from uringws.asyncio.inbox import Discarding, Fragment, as_inbox, put_back, queue_marks
from uringws.asyncio.iterator import Messages, PlainMessages
from uringws.asyncio.link import wrong_thread
from uringws.asyncio.payloads import Fragments, control_payload, each, fragment_payload
from uringws.asyncio.waiters import Waiter
from uringws.errors import ConnectionClosed as LinkClosed
from uringws.errors import WrongThread
from uringws.frames import Opcode
from uringws.sending import check_close

if TYPE_CHECKING:
    from types import TracebackType

    from uringws.asyncio.inbox import Inbox, Item
    from uringws.asyncio.link import Link
    from uringws.asyncio.server import Server

    Data = str | bytes
    BytesLike = bytes | bytearray | memoryview
    DataLike = str | bytes | bytearray | memoryview
    Logger = LoggerAdapter[Any]

__all__ = ["ServerConnection"]

_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_CONTINUATION: Final = int(Opcode.CONTINUATION)
_PING: Final = int(Opcode.PING)
_PONG: Final = int(Opcode.PONG)
_BYTES_LIKE: Final = (bytes, bytearray, memoryview)
_CONTROL_BYTES_MAX: Final = 125
_OK_CODES: Final = frozenset({1000, 1001, 1005})
_HEADERS_MAX: Final = 1_000_000  # the head was parsed once already
_RECV_RUNS: Final = "cannot call {} while another coroutine is already running recv or recv_streaming"


class ServerConnection(Attributes):
    """One connection of a `Server`, given to its handler.

    `async for message in connection` ends when the connection is closed with code 1000, 1001 or none. It raises
    ConnectionClosedError if the connection is lost or closed with another code. All methods belong to the event loop of
    the server. Objects are hashable, compare by identity, can be referenced weakly and take attributes of the
    application.

    Applications do not make them; `serve(create_connection=...)` may be given a subclass. The arguments are those of
    `serve`; `protocol` is the link to the peer.
    """

    # Class attributes as defaults: most connections never change them, so the objects need no memory for them.
    _pings: dict[bytes, tuple[asyncio.Future[float], float]] | None = None
    _sending: asyncio.Future[None] | None = None
    _closed_waiters: list[asyncio.Future[None]] | None = None
    _drain_waiters: list[asyncio.Future[None]] | None = None
    _reads_paused = False
    _writes_paused = False
    _send: Callable[[Any], object]

    def __init__(
        self,
        protocol: Link,
        server: Server,
        *,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        close_timeout: float | None = 10,
        max_queue: int | tuple[int | None, int | None] | None = 16,
        write_limit: int | tuple[int, int | None] = 2**15,
    ) -> None:
        self._link = protocol
        self.server = server
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.close_timeout = close_timeout
        self.write_limit = write_limit
        self._state: State = CONNECTING
        self._frames: list[Item] | Inbox = []
        self._high, self._low = server.queue_marks if max_queue is server.max_queue else queue_marks(max_queue)
        self._waiter = Waiter(server.wakeups)
        self._is_reading = False

    # ---- receiving

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(1000 if kind is None else 1011)

    def __aiter__(self) -> AsyncIterator[Data]:
        return PlainMessages(self) if type(self).recv is ServerConnection.recv else Messages(self)

    @overload
    async def recv(self, decode: Literal[True]) -> str: ...
    @overload
    async def recv(self, decode: Literal[False]) -> bytes: ...
    @overload
    async def recv(self, decode: bool | None = None) -> Data: ...
    async def recv(self, decode: bool | None = None) -> Data:
        """Return the next message: str for text, bytes for binary, unless `decode` says otherwise.

        Messages that came before the end of the connection are returned first; then it raises ConnectionClosed. It may
        be cancelled: no message is lost. Raises ConcurrencyError while another task receives.
        """
        if self._is_reading:
            raise ConcurrencyError(_RECV_RUNS.format("recv"))
        frames = self._frames
        if not frames:
            self._is_reading = True
            try:
                while not frames:
                    if self._state is CLOSED:
                        raise self._closed_error()
                    await self._waiter
                    frames = self._frames
            finally:
                self._is_reading = False
        item = frames.pop(0)
        if self._reads_paused:
            self._resume_if_low()
        if decode is None and type(item) is not Fragment:
            return cast("Data", item)
        return await self._assemble(item, decode)

    async def _assemble(self, item: Item, decode: bool | None) -> Data:
        """Return the message that begins with an item: put its fragments together, and decode or encode it."""
        try:
            message = await self._join(item) if isinstance(item, Fragment) else item
            if decode is None or isinstance(message, str) is decode:
                return message
            return message.encode() if isinstance(message, str) else message.decode()
        except EOFError:
            pass
        except UnicodeDecodeError as error:
            self._fail(1007, f"{error.reason} at position {error.start}", error)
        await self.wait_closed()
        raise self._closed_error()

    async def _join(self, first: Fragment) -> Data:
        data, fin = bytearray(first.data), first.fin  # grows: any number of small fragments takes no more memory
        self._is_reading = True
        try:
            while not fin:
                _, more, fin = cast("Fragment", await self._take())
                data += more
        except asyncio.CancelledError:
            self._frames = put_back(self._frames, Fragment(first.opcode, bytes(data), fin=False))
            raise
        finally:
            self._is_reading = False
        return data.decode() if first.opcode == _TEXT else bytes(data)

    @overload
    def recv_streaming(self, decode: Literal[True]) -> AsyncIterator[str]: ...
    @overload
    def recv_streaming(self, decode: Literal[False]) -> AsyncIterator[bytes]: ...
    @overload
    def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Data]: ...
    async def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Data]:
        """Return an iterator over the fragments of the next message, each as it came.

        Read it to its end: if it is cancelled or left after the first fragment, the connection becomes unusable, and
        `recv` raises ConcurrencyError from then on. Raises the same errors as `recv`.
        """
        if self._is_reading:
            raise ConcurrencyError(_RECV_RUNS.format("recv_streaming"))
        self._is_reading = True
        try:
            item = await self._take()
        except EOFError:
            self._is_reading = False
            raise self._closed_error() from self._cause
        except BaseException:
            self._is_reading = False
            raise
        if not isinstance(item, Fragment):
            self._is_reading = False
            yield await self._assemble(item, decode)
            return
        fragments = Fragments(decode=item.opcode == _TEXT if decode is None else decode)
        try:
            yield fragments.take(item)
            while not item.fin:
                item = cast("Fragment", await self._take())
                yield fragments.take(item)
            self._is_reading = False
            return
        except EOFError:
            pass
        except UnicodeDecodeError as error:
            self._fail(1007, f"{error.reason} at position {error.start}", error)
        await self.wait_closed()
        raise self._closed_error()

    async def _take(self) -> Item:
        """Return the next item of the queue. Raises EOFError when the connection is closed and the queue empty."""
        while not self._frames:
            if self._state is CLOSED:
                raise EOFError
            await self._waiter
        item = self._frames.pop(0)
        if self._reads_paused:
            self._resume_if_low()
        return item

    # ---- sending

    async def send(
        self, message: DataLike | Iterable[DataLike] | AsyncIterable[DataLike], *, text: bool | None = None
    ) -> None:
        """Send a message: str as text, a bytes-like object as binary, unless `text` says otherwise.

        An iterable or asynchronous iterable of either is sent in fragments. Waits while more bytes than `write_limit`
        wait for the peer. Raises ConnectionClosed if the connection is closing, but only after it has ended; TypeError
        for any other payload, including dicts.
        """
        if text is None and self._state is OPEN and self._sending is None:
            kind = type(message)
            if kind is str or kind is bytes:
                try:
                    if not self._send(message):
                        return
                except LinkClosed:
                    await self._refuse()
                except WrongThread:
                    raise wrong_thread() from None
                except Exception as error:  # noqa: BLE001 - what a transport may raise is not documented
                    await self._lose(error)
                await self._drain()
                return
        await self._send_any(message, text)

    async def _send_any(self, message: Any, text: bool | None) -> None:
        """Send a payload for which `send` has no fast path."""
        while self._sending is not None:
            await asyncio.shield(self._sending)
        if isinstance(message, str):
            await self._write(_BINARY if text is False else _TEXT, message.encode())
        elif isinstance(message, _BYTES_LIKE):
            await self._write(_TEXT if text is True else _BINARY, message)
        elif isinstance(message, Mapping):
            raise TypeError("data is a dict-like object")
        elif isinstance(message, Iterable):
            await self._send_fragments(each(message), text)
        elif isinstance(message, AsyncIterable):
            await self._send_fragments(aiter(message), text)
        else:
            raise TypeError("data must be str, bytes, iterable, or async iterable")

    async def _send_fragments(self, chunks: AsyncIterator[Any], text: bool | None) -> None:
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        self._sending = self.loop.create_future()
        try:
            is_str = isinstance(chunk, str)
            is_text = is_str if text is None else text
            await self._write(_TEXT if is_text else _BINARY, fragment_payload(chunk, is_str=is_str), fin=False)
            async for chunk in chunks:
                await self._write(_CONTINUATION, fragment_payload(chunk, is_str=is_str), fin=False)
            await self._write(_CONTINUATION, b"")
        except Exception as error:
            # The message can be neither completed nor taken back.
            if not isinstance(error, ConnectionClosed):
                self._fail(1011, "error in fragmented message", None)
            raise
        finally:
            self._sending.set_result(None)
            self._sending = None

    async def _write(self, opcode: int, payload: BytesLike, *, fin: bool = True) -> None:
        """Send one frame, and wait while too much waits for the peer."""
        if self._state is not OPEN:
            await self._refuse()
        try:
            may_be_full = self._link.send_frame(opcode, payload, fin=fin)
        except LinkClosed:
            await self._refuse()
        except WrongThread:
            raise
        except Exception as error:  # noqa: BLE001 - what a transport may raise is not documented
            await self._lose(error)
        else:
            if may_be_full or self._writes_paused:
                await self._drain()

    async def _drain(self) -> None:
        """Wait until the bytes that wait for the peer are within `write_limit`."""
        if not (self._writes_paused or self._link.is_full()):
            return
        if self._drain_waiters is None:
            self._drain_waiters = []
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._drain_waiters.append(waiter)
        try:
            await waiter
        finally:
            self._drain_waiters.remove(waiter)
        if self._state is CLOSED:
            raise self._closed_error()

    async def _refuse(self) -> None:
        """Wait until the connection has ended, then raise ConnectionClosed: only then are all its fields known."""
        if self._state is CONNECTING:
            raise RuntimeError(
                "the connection is not open yet: send and receive in the handler, not in process_request"
            )
        await self.wait_closed()
        raise self._closed_error()

    async def _lose(self, error: BaseException) -> None:
        """Raise ConnectionClosed for an error of the link, which has become unusable."""
        self._note_cause(error)
        self._link.abort()
        await self.wait_closed()
        raise self._closed_error()

    async def ping(self, data: DataLike | None = None) -> Awaitable[float]:
        """Send a ping of at most 125 bytes; None: four random bytes. Return a future of the seconds to its pong.

        The pong of a later ping completes it too. Raises ConnectionClosed, as the future does; ConcurrencyError if a
        ping with the same data waits for its pong.
        """
        payload = None if data is None else control_payload(data)
        if self._state is not OPEN:
            await self._refuse()
        if self._pings is None:
            self._pings = {}
        if payload in self._pings:
            raise ConcurrencyError("already waiting for a pong with the same data")
        while payload is None or payload in self._pings:
            payload = struct.pack("!I", random.getrandbits(32))
        pong: asyncio.Future[float] = self.loop.create_future()
        self._pings[payload] = pong, time.monotonic()  # the time of uvloop's loops is in whole milliseconds
        await self._write(_PING, payload)
        return pong

    async def pong(self, data: DataLike = b"") -> None:
        """Send an unsolicited pong (RFC 6455 5.5.3) of at most 125 bytes. Raises ConnectionClosed."""
        await self._write(_PONG, control_payload(data))

    # ---- closing

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, and wait for the peer's close frame and the end of its stream.

        After `close_timeout` seconds the connection is cut. Does nothing more if it is closed already. Raises
        ProtocolError for a code or reason that cannot be sent.
        """
        if self._state is OPEN:
            self._start_close(code, reason)
        elif self._state is CONNECTING:
            self._link.abort()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""
        if self._state is CLOSED:
            return
        waiter: asyncio.Future[None] = self.loop.create_future()
        if self._closed_waiters is None:
            self._closed_waiters = []
        self._closed_waiters.append(waiter)
        try:
            await waiter
        finally:
            self._closed_waiters.remove(waiter)

    def _start_close(self, code: int, reason: str) -> None:
        """Send a close frame; the connection must be open."""
        try:
            check_close(code, reason)
        except (TypeError, ValueError) as error:
            raise ProtocolError(str(error)) from None
        if self._sending is not None:
            self._fail(1011, "close during fragmented message", None)
        else:
            self._send_close(code, reason)

    def _send_close(self, code: int, reason: str) -> None:
        try:
            self._link.close(code, reason)
        except LinkClosed:
            return  # the peer was first
        except Exception as error:  # noqa: BLE001 - what a transport may raise is not documented
            self._note_cause(error)
            self._link.abort()
            return
        self._begin_ending().sent = Close(code, reason)

    def _fail(self, code: int, reason: str, cause: BaseException | None) -> None:
        """Fail the connection (RFC 6455 7.1.7): tell the peer, and do not wait for its answer."""
        if cause is not None:
            self._note_cause(cause)
        if self._state is not OPEN:
            return
        self._send_close(code, reason)
        if self._ending is not None:
            self._ending.has_failed = True
        self._link.end()

    def _begin_ending(self) -> Ending:
        """Note that the connection closes, and return what is known of it."""
        ending = self._ending
        if ending is None:
            ending = self._ending = Ending()
        if self._state is OPEN:
            self._state = CLOSING
            if self.close_timeout is not None:
                self.server.clocks.closings.start(self, self.close_timeout)
        return ending

    def _note_cause(self, error: BaseException | None) -> None:
        """Keep the first error for `__cause__`."""
        if self._ending is None:
            self._ending = Ending()
        if self._ending.cause is None:
            self._ending.cause = error

    @property
    def _cause(self) -> BaseException | None:
        return None if self._ending is None else self._ending.cause

    def _closed_error(self) -> ConnectionClosed:
        return (self._ending or Ending()).error()

    # ---- what the link calls

    def _received(self, item: Item) -> None:
        """Queue a message or a fragment, and resume the task that waits for it."""
        frames = self._frames
        frames.append(item)
        if len(frames) > self._high:
            self._pause_reading()
        if self._is_reading:
            self._waiter.wake()

    def _pause_reading(self) -> None:
        if self._low is not None and not self._reads_paused:
            self._reads_paused = True
            self._link.pause_reading()
        self._frames = as_inbox(self._frames)

    def _resume_if_low(self) -> None:
        if self._low is not None and len(self._frames) <= self._low:
            self._reads_paused = False
            self._link.resume_reading()

    def _abandon(self) -> None:
        """The handler has returned: later messages have no reader, and must not delay the peer's close frame."""
        if self._is_reading or self._state is CLOSED:
            return
        self._frames = Discarding(self._frames)
        if self._reads_paused:
            self._reads_paused = False
            self._link.resume_reading()

    def _ponged(self, data: bytes) -> None:
        """Complete the ping with that payload and all before it."""
        pings = self._pings
        if not pings or data not in pings:
            return
        now = time.monotonic()
        for payload in list(pings):
            pong, sent = pings.pop(payload)
            if not pong.done():
                pong.set_result(now - sent)
            if payload == data:
                self._latency = now - sent
                return

    def pause_writing(self) -> None:
        """As asyncio calls it: `send` waits from now on."""
        self._writes_paused = True
        self._send = self._send_paused

    def resume_writing(self) -> None:
        """As asyncio calls it: those that wait in `send` go on."""
        self._writes_paused = False
        self._send = self._link.send
        self._drained()

    def _send_paused(self, message: Any) -> bool:
        self._link.send(message)
        return True

    def _drained(self) -> None:
        for waiter in self._drain_waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _opened(self) -> None:
        """The 101 answer has been sent."""
        self._state = OPEN
        self._send = self._link.send

    def _close_received(self, code: int, reason: str) -> None:
        """The peer's close frame has come; if it was the first one, it is answered with the same code."""
        if self._ending is not None and self._ending.has_failed:
            return
        is_first = self._state is OPEN
        ending = self._begin_ending()
        ending.received = Close(code, reason)
        ending.received_first = is_first
        if is_first:
            ending.sent = Close(code, "")

    def _failed(self, code: int, reason: str, error: Exception) -> None:
        """The peer has broken the protocol. The link has sent a close frame that says so, unless one was sent
        before.
        """
        self._note_cause(error)
        if self._state is OPEN:
            self._begin_ending().sent = Close(code, reason)
        self._begin_ending().has_failed = True

    def _ended(self, sent: Any, received: Any, received_first: bool | None, error: BaseException | None) -> None:
        """The reactor reports the end of the connection. The reactor itself has answered the peer's close frame."""
        self._note_cause(error)
        ending = self._begin_ending()
        if ending.sent is None and sent is not None:
            ending.sent = Close(sent.code, sent.reason)
        if received is not None and not ending.has_failed:
            ending.received = Close(received.code, received.reason)
            ending.received_first = received_first
        self._lost(None)

    def _lost(self, error: BaseException | None) -> None:
        """The connection has ended, because of an error or not."""
        if self._state is CLOSED:
            return
        self._note_cause(error)
        self._state = CLOSED
        self.server.clocks.closings.stop(self)
        if self._is_reading:
            self._waiter.wake()
        self._end_pings()
        for waiter in (*(self._closed_waiters or ()), *(self._drain_waiters or ())):
            if not waiter.done():
                waiter.set_result(None)
        self.server._connection_lost(self)

    def _end_pings(self) -> None:
        pings, self._pings = self._pings, None
        for pong, _ in (pings or {}).values():
            if not pong.done():
                pong.set_exception(self._closed_error())
                pong.exception()  # otherwise asyncio would log a ping whose future the application did not keep

    def _close_timed_out(self) -> None:
        """The peer has not answered our close frame, or not closed its stream, in `close_timeout` seconds."""
        self._note_cause(TimeoutError("timed out while closing connection"))
        self._link.abort()
