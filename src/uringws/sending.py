"""What may be sent: payloads, opcodes and close codes, checked before they reach the shim. Pure functions."""

from __future__ import annotations

from typing import Any, Final

from uringws.frames import Opcode

__all__ = ["Payload", "check_close", "check_send"]

Payload = Any
"""bytes, bytearray, memoryview, or any C-contiguous buffer (a numpy array); str where text is sent."""

_SENDABLE: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG})
_CONTROL_BYTES_MAX: Final = 125
_REASON_BYTES_MAX: Final = 123
_PRIVATE_CODES: Final = range(3000, 5000)
_SENDABLE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


def check_send(opcode: int, payload: Payload) -> Payload:
    """Return a payload as the buffer to send, or raise TypeError or ValueError with what is wrong with it."""
    if opcode not in _SENDABLE:
        raise ValueError(f"opcode {opcode!r} cannot be sent: TEXT, BINARY, PING or PONG can (close() ends a connection)")
    if isinstance(payload, str):
        if opcode == Opcode.BINARY:
            raise TypeError("str is text: send it with send_text, or encode it")
        payload = payload.encode()
    elif not isinstance(payload, (bytes, bytearray)):
        try:
            view = memoryview(payload)
        except TypeError:
            raise TypeError(f"a payload is bytes, str or a buffer, not {type(payload).__name__}") from None
        if not view.c_contiguous:
            raise TypeError("a payload must be C-contiguous: copy it first (numpy.ascontiguousarray)")
        payload = view.cast("B") if view.nbytes else b""
    if opcode >= Opcode.PING and len(payload) > _CONTROL_BYTES_MAX:
        raise ValueError(f"a ping or pong holds at most 125 bytes, not {len(payload)} (RFC 6455 5.5)")
    return payload


def check_close(code: int | None, reason: str) -> tuple[int, bytes]:
    """Return a close frame's code (0: none) and reason as they go out, or raise what is wrong with them."""
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
