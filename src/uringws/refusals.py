"""The HTTP answers with which the shim refuses connections itself: written here, counted there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from uringws.handshake import refusal
from uringws.http import encode_refusal
from uringws.shim import ffi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uringws.errors import RejectReason
    from uringws.shim import CData

__all__ = ["encode_refusals", "sum_refusals"]

_REFUSALS: Final[tuple[RejectReason, ...]] = (
    "sessions_max",
    "sessions_per_ip_max",
    "handshakes_max",
    "draining",
    "timeout",
    "memory",
)
"""The names of enum urs_refusal, in its order."""
_DATE_STARTS: Final = b"\r\nDate: "


def encode_refusals(rules: CData, server_header: str | None) -> list[CData]:
    """Write the answers into a `struct urs_rules`; return what keeps their memory."""
    kept = []
    for index, reason in enumerate(_REFUSALS):
        answer = bytearray(encode_refusal(refusal(reason), server_header=server_header))
        kept.append(ffi.from_buffer("uint8_t[]", answer))
        date_at = answer.index(_DATE_STARTS) + len(_DATE_STARTS)
        rules.refusals[index] = {"data": kept[-1], "bytes": len(answer), "date_at": date_at}
    return kept


def sum_refusals(rejected: Mapping[RejectReason, int], shim: CData) -> dict[RejectReason, int]:
    """Return the refusals that Python decided on and those of a `struct urs_reactor_stats`, by reason."""
    total = Counter(rejected)
    total.update({name: int(shim.refused[index]) for index, name in enumerate(_REFUSALS) if shim.refused[index]})
    return dict(total)
