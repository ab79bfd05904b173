"""The sessions that Python knows: connections by slot, and how many there were. No calls of the shim."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import TYPE_CHECKING

from uringws.core import slot_of

if TYPE_CHECKING:
    from uringws.closing import Closing
    from uringws.connection import Connection
    from uringws.errors import RejectReason

__all__ = ["Sessions"]


class Sessions:
    """The connections of one reactor. The dispatch loop changes the lists itself where no call may come between."""

    def __init__(self) -> None:
        self.by_slot: list[Connection | None] = [None]
        """Those that take messages. The last element stays None: index -1, the target of every event that is not a
        message, finds no connection."""
        self.ending: dict[int, Connection] = {}
        """By slot, those that have begun to close and await `on_close`."""
        self.aborted: set[int] = set()
        """The slots of those whose messages are no longer delivered, whatever the options say."""
        self.closings: weakref.WeakKeyDictionary[Connection, Closing] = weakref.WeakKeyDictionary()
        """How those ended, or how far their ending has come. A table, so that open connections spend no memory on
        it."""
        self.made = 0
        self.rejected: Counter[RejectReason] = Counter()
        self.close_codes: Counter[int] = Counter()

    def get(self, identity: int) -> Connection | None:
        """Return the connection of that id if messages can be sent on it. From any thread."""
        slot = slot_of(identity)
        by_slot = self.by_slot
        connection = by_slot[slot] if slot < len(by_slot) else None
        return connection if connection is not None and connection.id == identity else None

    def receiving(self) -> list[Connection]:
        """Return those that take messages."""
        return [connection for connection in self.by_slot if connection is not None]

    def make_room(self, identity: int) -> None:
        """Lengthen the list so that it has that connection's slot."""
        while len(self.by_slot) <= slot_of(identity) + 1:
            self.by_slot.append(None)

    def begin_closing(self, connection: Connection, closing: Closing, *, aborted: bool) -> None:
        """Note that a connection has begun to close, or was aborted; `on_close` is to come."""
        slot = slot_of(connection.id)
        if self.by_slot[slot] is connection:
            self.by_slot[slot] = None
            self.ending[slot] = connection
        if self.ending.get(slot) is connection:
            self.closings[connection] = closing
            if aborted:
                self.aborted.add(slot)
