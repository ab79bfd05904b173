"""The kinds of a turn's events, as the shim numbers them: looked up once, since in the shim each look-up takes time."""

from typing import Final

from uringws.shim import lib

__all__ = [
    "ABANDONED",
    "CLOSE",
    "DRAIN",
    "DROP",
    "FAILED",
    "FRAME",
    "LOST",
    "MESSAGE",
    "PONG",
    "UPGRADE",
]

MESSAGE: Final[int] = lib.URS_ITEM_MESSAGE
FRAME: Final[int] = lib.URS_ITEM_FRAME
PONG: Final[int] = lib.URS_ITEM_PONG
CLOSE: Final[int] = lib.URS_ITEM_CLOSE
FAILED: Final[int] = lib.URS_ITEM_FAILED
UPGRADE: Final[int] = lib.URS_EVENT_UPGRADE
DRAIN: Final[int] = lib.URS_EVENT_DRAIN
DROP: Final[int] = lib.URS_EVENT_DROP
LOST: Final[int] = lib.URS_EVENT_LOST
ABANDONED: Final[int] = lib.URS_EVENT_ABANDONED
