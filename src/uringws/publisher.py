"""The calls of a reactor that concern many of its connections: topics and broadcasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from uringws.prepared import Frame, make_frame
from uringws.sending import ABSENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uringws.connection import Connection
    from uringws.core import Core
    from uringws.frames import AnyBuffer
    from uringws.sending import Payload
    from uringws.topics import History, OnFull, Topic, Topics

__all__ = ["Publisher"]


class Publisher:
    """The part of a `Reactor` that sends one message to many connections."""

    _core: Core
    _topics: Topics

    def topic(self, name: str, *, on_full: OnFull | None = None, history: History | None = None) -> Topic:
        """Return the topic of that name; make it if there is none.

        `on_full` is for members whose backlog a message would exceed (`Options.backlog_bytes_max`). "close" closes the
        member with 1008. "drop_new" leaves the message out for it. "drop_old" leaves out the oldest messages of the
        topic that wait for it, as many as are needed. "conflate" acts on each member that has a backlog: of the topic's
        messages that wait in a member's backlog only the newest is kept, in the order of the calls. A message of which
        a part has been sent is always sent to its end. `Handler.on_drop` tells of messages that were left out. None is
        the topic's own, "close" for a new one.

        `history` keeps the last messages for connections that come back (`Topic.add`). None is the topic's own, and
        none for a new one.

        A topic is there while the application has it or it has members or a history. Its name has 1 to 1,024
        characters.

        Raises ValueError if the topic was made with another `on_full` or `history`, or for a wrong name, LimitReached
        with more than 16 million topics, WrongThread, ReactorStateError once closed.
        """
        self._core.check_usable()
        self._core.check_thread()
        return self._topics.get(name, on_full, history)

    @overload
    def frame(self, payload: Payload, /) -> Frame: ...

    @overload
    def frame(self, opcode: int, payload: Payload) -> Frame: ...

    def frame(self, opcode: Any, payload: Any = ABSENT) -> Frame:
        """Return a message that is framed once and kept: `frame(payload)`, or `frame(opcode, payload)`.

        Use it for what is sent again and again. The payload is copied once, here; opcode and payload as for
        `Topic.publish`, whose TypeError and ValueError it raises; MemoryError if there is no memory. From any thread,
        also when the reactor is closed: a Frame belongs to no reactor.
        """
        return make_frame(opcode, payload)

    def broadcast(
        self, payload: Payload, opcode: int | None = None, *, to: Iterable[Connection] | AnyBuffer | None = None
    ) -> int:
        """Send a message to many connections; return how many of them were open. It is framed once. Never waits.

        `payload` and `opcode` as for `Topic.publish`. `to` is an iterable of connections, or an array of their ids (a
        numpy array of uint64, an `array.array("Q")`): each gets the message as often as it is there, and those that
        have closed are left out. None is all open connections of this reactor. `Options.on_full` of each connection
        says what happens if its backlog is full; "error" drops the message, as "drop" does.

        Raises ValueError for a connection of another reactor, otherwise as `Topic.publish`.
        """
        self._core.check_usable()
        self._core.check_thread()
        return self._topics.broadcast(payload, opcode, to)
