"""The HTTP answers with which the shim refuses connections itself: written here, counted there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from uringws.handshake import refusal
from uringws.http import encode_refusal
from uringws.shim import ffi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uringws.errors import RejectReason
    from uringws.shim import CData

__all__ = ["Refusals", "encode_refusals", "sum_refusals"]

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


class Refusals(NamedTuple):
    """The answers, in memory that stays for as long as this object does."""

    answers: list[CData]
    dates_at: list[int]

    def copy_to(self, rules: CData, *, silently: bool) -> None:
        """Name the answers in a `struct urs_rules`; `silently` leaves out the one to a request that is too late."""
        for index, (answer, date_at) in enumerate(zip(self.answers, self.dates_at, strict=True)):
            if silently and _REFUSALS[index] == "timeout":
                continue
            rules.refusals[index] = {"data": answer, "bytes": len(answer), "date_at": date_at}


def encode_refusals(server_header: str | None) -> Refusals:
    """Return the answers with that value of Server."""
    answers = [bytearray(encode_refusal(refusal(reason), server_header=server_header)) for reason in _REFUSALS]
    return Refusals(
        [ffi.from_buffer("uint8_t[]", answer) for answer in answers],
        [answer.index(_DATE_STARTS) + len(_DATE_STARTS) for answer in answers],
    )


def sum_refusals(rejected: Mapping[RejectReason, int], shim: CData) -> dict[RejectReason, int]:
    """Return the refusals that Python decided on and those of a `struct urs_reactor_stats`, by reason."""
    total = Counter(rejected)
    total.update({name: int(shim.refused[index]) for index, name in enumerate(_REFUSALS) if shim.refused[index]})
    return dict(total)
