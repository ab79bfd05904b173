"""Payloads, opcodes and close codes of sends, checked before they reach the shim. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from uringws.frames import Opcode

if TYPE_CHECKING:
    from uringws.frames import AnyBuffer

    class AnyMessage(Protocol):
        """A `Message` or an `EngineMessage`."""

        @property
        def opcode(self) -> int:
            """TEXT or BINARY; of a frame also CONTINUATION."""

        @property
        def data(self) -> memoryview:
            """The payload."""

    Payload: TypeAlias = str | AnyBuffer | AnyMessage

__all__ = [
    "ABSENT",
    "NOT_BEGUN",
    "UNFINISHED",
    "check_close",
    "check_fragment",
    "check_publish",
    "check_send",
    "name_opcode",
]

ABSENT: Final[Any] = object()
"""Stands for the payload in `send(payload)`, whose only argument comes first, in the place of the opcode."""

UNFINISHED: Final = "a fragmented message is unfinished: CONTINUATION frames come first, up to one with fin=True"
NOT_BEGUN: Final = "there is no fragmented message to continue: begin one with fin=False"

_TEXT: Final = int(Opcode.TEXT)
_BINARY: Final = int(Opcode.BINARY)
_PING: Final = int(Opcode.PING)
_SENDABLE: Final = frozenset({int(Opcode.CONTINUATION), _TEXT, _BINARY, _PING, int(Opcode.PONG)})
_COPIED_BYTES_MAX: Final = 16 * 1024
"""Up to this size a copy of a buffer costs less than to lend the buffer itself to C."""
_CONTROL_BYTES_MAX: Final = 125
_REASON_BYTES_MAX: Final = 123
_PRIVATE_CODES: Final = range(3000, 5000)
_SENDABLE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


def name_opcode(payload: Payload) -> tuple[int, Payload]:
    """Return the opcode of a payload that is sent without one, and the payload. Raises TypeError, ValueError."""
    if isinstance(payload, str):
        return _TEXT, payload
    if isinstance(payload, int):  # most likely an opcode, and the payload was forgotten
        raise TypeError(f"send({payload!r}) has no payload: call send(payload) or send(opcode, payload)")
    opcode: int = getattr(payload, "opcode", _BINARY)  # only a message has one
    if opcode == Opcode.CONTINUATION:
        raise ValueError("a continuation frame has no type of its own: call send(opcode, frame)")
    return opcode, payload


def check_send(opcode: int, payload: Payload, *, fin: bool = True) -> bytes | bytearray | memoryview:
    """Return a payload as the buffer to send. Raises TypeError or ValueError if it cannot be sent.

    A small buffer is copied: the result is bytes then. `check_fragment` decides whether the frame may come now.
    """
    if opcode not in _SENDABLE:
        raise ValueError(
            f"opcode {opcode!r} cannot be sent: TEXT, BINARY, CONTINUATION, PING or PONG can; close() sends CLOSE"
        )
    buffer: Any
    if isinstance(payload, str):
        if opcode == _BINARY:
            raise TypeError("str is text: send it with send_text, or encode it")
        buffer = payload.encode()
    elif type(payload) is bytearray:
        buffer = bytes(payload) if len(payload) <= _COPIED_BYTES_MAX else payload
    else:
        buffer = payload if type(payload) is bytes else _flat(payload)
    if opcode >= _PING and len(buffer) > _CONTROL_BYTES_MAX:
        raise ValueError(f"a ping or pong holds at most 125 bytes, not {len(buffer)} (RFC 6455 5.5)")
    if opcode >= _PING and not fin:
        raise ValueError("a ping or pong cannot be fragmented (RFC 6455 5.5)")
    return buffer  # type: ignore[no-any-return]


def check_publish(opcode: int | None, payload: Payload) -> tuple[int, bytes | bytearray | memoryview]:
    """Return the opcode of a message to many connections, and its payload as the buffer to send.

    Raises TypeError or ValueError if it cannot be sent.
    """
    if opcode is None:
        if isinstance(payload, int):
            raise TypeError(f"the payload comes first, and is a str, a buffer or a message, not {payload!r}")
        opcode, payload = name_opcode(payload)
    elif opcode not in (_TEXT, _BINARY):
        raise ValueError(f"opcode {opcode!r} cannot be sent to many: TEXT and BINARY can")
    return opcode, check_send(opcode, payload)


def check_fragment(opcode: int, *, fin: bool, unfinished: bool) -> bool:
    """Return whether a message is unfinished after a frame (RFC 6455 5.4). `unfinished` says whether one was before it.

    Raises ValueError for a frame that must not come now.
    """
    if opcode >= _PING:
        return unfinished
    if unfinished and opcode != Opcode.CONTINUATION:
        raise ValueError(UNFINISHED)
    if not unfinished and opcode == Opcode.CONTINUATION:
        raise ValueError(NOT_BEGUN)
    return not fin


def _flat(payload: Any) -> bytes | memoryview:
    """Return the bytes of a buffer as they lie in memory."""
    try:
        view = memoryview(payload)
    except TypeError:
        if hasattr(payload, "opcode"):
            return _flat(payload.data)
        raise TypeError(f"a payload is str, bytes, a buffer or a message, not {type(payload).__name__}") from None
    if not view.c_contiguous:
        raise TypeError("a payload must be C-contiguous: copy it first (numpy.ascontiguousarray)")
    if view.nbytes <= _COPIED_BYTES_MAX:
        return view.tobytes()
    return view.cast("B")


def check_close(code: int | None, reason: str) -> tuple[int, bytes]:
    """Return a close frame's code (0: none) and encoded reason. Raises TypeError or ValueError for invalid ones."""
    if not isinstance(reason, str):
        raise TypeError(f"a close reason is a str, not {type(reason).__name__}")
    encoded = reason.encode()
    if len(encoded) > _REASON_BYTES_MAX:
        raise ValueError(f"a close reason holds at most 123 bytes, not {len(encoded)} (RFC 6455 5.5)")
    if code is None:
        if encoded:
            raise ValueError("a close reason needs a code")
        return 0, b""
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"a close code is an int or None, not {type(code).__name__}")
    if code not in _SENDABLE_CODES and code not in _PRIVATE_CODES:
        raise ValueError(f"close code {code} may not be sent: 1000-1003, 1007-1014 and 3000-4999 may (RFC 6455 7.4)")
    return int(code), encoded
