"""Topics: sets of connections to which one message goes. The shim knows their members, this module their names."""

from __future__ import annotations

import errno
import secrets
import weakref
from array import array
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from uringws.connection import Connection
from uringws.errors import ConnectionClosed, Gap, LimitReached, ReactorStateError, check
from uringws.prepared import Frame
from uringws.run_state import RunState
from uringws.seconds import check_seconds, milliseconds
from uringws.sending import check_publish
from uringws.shim import fast_publish, fast_publish_event, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uringws.core import Core
    from uringws.sending import Payload
    from uringws.turn import Turn

    class OnRing(Protocol):
        """A `uringws.asyncio.ServerConnection`."""

        @property
        def ring_connection(self) -> Connection:
            """The reactor's connection that it is."""

    Member: TypeAlias = Connection | OnRing

__all__ = ["History", "OnFull", "Topic", "TopicStats", "Topics", "check_name"]

OnFull: TypeAlias = Literal["close", "drop_new", "drop_old", "conflate"]

_ON_FULL: Final = {
    "close": int(lib.URS_TOPIC_CLOSE),
    "drop_new": int(lib.URS_TOPIC_DROP_NEW),
    "drop_old": int(lib.URS_TOPIC_DROP_OLD),
    "conflate": int(lib.URS_TOPIC_CONFLATE),
}
_NAME_LENGTH_MAX: Final = 1024
_SPARE_NAMES: Final = 64
_EPOCH_BITS: Final = 21
_MESSAGES_BITS: Final = 32
_POSITIONS: Final = 1 << (_EPOCH_BITS + _MESSAGES_BITS)
_STALE: Final[int] = lib.URS_ERROR_STALE
_NOT_EVENT: Final[int] = lib.URS_ERROR_STATE
_IDS: Final = ffi.typeof("uint64_t[]")
_BYTES: Final = ffi.typeof("uint8_t[]")


@dataclass(frozen=True, slots=True)
class History:
    """How many of its last messages a topic keeps, for connections that come back: the first limit reached counts.

    They are kept in memory, in the blocks that slow readers share, and count for `Options.memory_bytes_max`. If there
    is no memory for a message, the history begins again after it. A topic whose messages are kept stays although the
    application has let go of it and it has no members; with `seconds` None, until the reactor is closed.

    Raises ValueError or TypeError for anything but numbers in their range.
    """

    messages: int
    """1 to 1,000,000."""
    bytes: int = 1 << 20
    """Of all of them, with their frame headers (2 to 10 bytes each); at most 2 GiB."""
    seconds: float | None = None
    """The age at which a message is dropped; None is no limit."""

    def __post_init__(self) -> None:
        for name, most in ("messages", 1_000_000), ("bytes", 2**31 - 1):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"History.{name} is an int, not {type(value).__name__}")
            if not 1 <= value <= most:
                raise ValueError(f"History.{name} is 1 to {most}, not {value}")
        check_seconds(self.seconds)
        if self.seconds is not None and self.seconds < 0.001:
            raise ValueError(f"History.seconds is 0.001 or more, or None, not {self.seconds}")


class TopicStats(NamedTuple):
    """The counters of a topic. At any time `addressed == sent + queued + dropped + conflated + closed`."""

    published: int
    """Messages."""
    addressed: int
    """Deliveries: the members of each message, added up."""
    sent: int
    """Deliveries that the member's socket takes in the turn in which they are published."""
    queued: int
    """Deliveries that wait, or have waited, in the backlog of a slow reader."""
    dropped: int
    """Deliveries that were left out because the member's backlog was full."""
    conflated: int
    """Deliveries that a newer message replaced before their first byte was sent."""
    closed: int
    """Deliveries for which the member was closed, and those to a member that was lost in the same turn."""


class _Kind(NamedTuple):
    """All that is said of a topic when it is made."""

    name: str
    on_full: OnFull
    history: History | None


class Topic:
    """A named set of connections of one reactor: `Reactor.topic` makes it.

    A message that is published is framed once, whatever the number of members, and leaves with all else that a member
    is sent in the turn, in the order of the calls. A connection is a member until it is removed, or begins to close, or
    is lost: in `on_close` it is a member of no topic. A `uringws.asyncio.ServerConnection` on the ring of the loop
    (`mode == "ring"`) may take the place of a Connection. All methods belong to the reactor's thread; others use a
    Sender.

    It is hashable and compares by identity. While it exists, or has members, its name means the same topic; after that
    `Reactor.topic` makes a new one.
    """

    __slots__ = ("__weakref__", "_core", "_id", "_released", "_turn", "history", "name", "on_full")

    def __init__(self, topics: Topics, identity: int, kind: _Kind) -> None:
        """Only `Reactor.topic` makes topics."""
        self.name: Final = kind.name
        self.on_full: Final = kind.on_full
        self.history: Final = kind.history
        self._core: Final = topics._core
        self._turn: Final = topics._turn
        self._released: Final = topics._released
        self._id: Final = identity

    def add(self, connection: Member, since: int | None = None) -> int:
        """Make a connection a member; nothing if it is one. It gets the messages that are published from now on.

        With `since`, a `position` that the topic had, it first gets the messages that were published after that, in the
        same step: none is missing and none comes twice. Return how many these were. Raises Gap if the `history` does
        not have them all any more: then the connection is not added, and gets nothing.

        Raises ConnectionClosed for one that is not open, BacklogFull if the messages do not fit into its backlog or it
        is being sent a fragmented one, ValueError for one of another reactor, and for `since` with one that is a member
        already, TypeError for anything else, WrongThread.
        """
        identity, turn = self._identity_of(connection), self._turn
        if since is None:
            result = lib.urs_fanout_add(turn._handle, self._id, turn._index, identity)
        else:
            if isinstance(since, bool) or not isinstance(since, int):
                raise TypeError(f"since is a position, an int, not {type(since).__name__}")
            known = 0 <= since < _POSITIONS
            number = since if known else _POSITIONS
            result = lib.urs_fanout_add_since(turn._handle, self._id, turn._index, identity, number)
            if result == lib.URS_ERROR_STATE:
                raise Gap(since, *self._positions())
            if result == -errno.EALREADY:
                raise ValueError(
                    f"connection {identity} is a member of topic {self.name!r} already: since has no effect"
                )
        if result == _STALE:
            self._core.check_usable()
            raise ConnectionClosed(f"add connection {identity} to topic {self.name!r}: the connection is gone")
        check(result, f"add connection {identity} to topic {self.name!r}")
        return 0 if since is None else int(result)

    @property
    def position(self) -> int:
        """The place after the last message: below 2**53, so that JavaScript can keep it as a number.

        It grows by one per message and begins at random, so that a position of a topic of the same name that was made
        later, or in another process, is a Gap. Tell clients the position with each message or now and then; one that
        comes back tells the last one that it had, for `add`.
        """
        return self._positions()[1]

    def _positions(self) -> tuple[int, int]:
        """Return the oldest position from which `add` can go on, and the present one."""
        oldest, newest = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        self._checked(lib.urs_fanout_position(self._turn._handle, self._id, oldest, newest), "position")
        return int(oldest[0]), int(newest[0])

    def remove(self, connection: Member) -> bool:
        """End a membership; return whether the connection was a member. Messages that wait for it are still sent.

        Raises as `add`, except that a connection that has ended is no member.
        """
        identity = self._identity_of(connection)
        return bool(
            self._checked(lib.urs_fanout_remove(self._turn._handle, self._id, self._turn._index, identity), "remove")
        )

    def __contains__(self, connection: object) -> bool:
        """Whether a connection is a member."""
        connection = getattr(connection, "ring_connection", connection)
        if not isinstance(connection, Connection) or connection._turn is not self._turn:
            return False
        return bool(
            self._checked(lib.urs_fanout_has(self._turn._handle, self._id, self._turn._index, connection.id), "in")
        )

    def __len__(self) -> int:
        """How many members there are."""
        return self._checked(lib.urs_fanout_count(self._turn._handle, self._id, self._turn._index), "len")

    def __bool__(self) -> bool:
        """True, also without members."""
        return True

    def publish(self, payload: Payload, opcode: int | None = None, *, skip: Member | None = None) -> int:
        """Send a message to all members except `skip`; return how many it was addressed to. Never waits.

        `payload` and `opcode` as for `Connection.send`: without an opcode a str is text, a Message keeps its own, and
        everything else is binary. Only TEXT and BINARY can be published. To publish the message that is being handled,
        pass the Message: its payload is copied once. A Frame is not copied.

        `on_full` says what happens to a member whose backlog would exceed its `Options.backlog_bytes_max`; it counts as
        addressed, and `stats` has the number of such members. The same holds for a member to which a fragmented message
        is being sent, because no other message may come in between (RFC 6455 5.4): "close" closes it with 1011.

        Raises TypeError or ValueError for what cannot be sent, WrongThread, ReactorStateError once the reactor is
        closed, OSError (ENOMEM) if there is no memory: then no member gets it.
        """
        turn = self._turn
        skipped = 0 if skip is None else self._identity_of(skip)
        result = _NOT_EVENT
        message: object = turn  # to the application, the turn is the Message
        if payload is message and opcode is None:
            result = fast_publish_event(turn._address, self._id, turn._index, 0, skipped)
        elif type(payload) is Frame and opcode in (None, payload.opcode):
            result = lib.urs_publish_prepared(turn._handle, self._id, turn._index, payload._block, skipped)
        if result == _NOT_EVENT:
            number, data = check_publish(opcode, payload)
            if type(data) is bytes:
                result = fast_publish(turn._address, self._id, turn._index, number, data, skipped)
            else:
                with ffi.from_buffer(_BYTES, data) as buffer:  # no exception may keep it: see Connection._send_any
                    result = lib.urs_publish(turn._handle, self._id, turn._index, number, buffer, len(buffer), skipped)
        return result if result >= 0 else self._checked(result, "publish")

    def stats(self) -> TopicStats:
        """Return the topic's counters since it was made."""
        stats = ffi.new("struct urs_topic_stats *")
        self._checked(lib.urs_fanout_stats(self._turn._handle, self._id, stats), "stats")
        return TopicStats(*(int(getattr(stats, name)) for name in TopicStats._fields))

    def __repr__(self) -> str:
        """Name it for a log, from any thread."""
        return f"<Topic {self.name!r}>"

    def __del__(self) -> None:
        """Let the topic go once it has no members. Any thread may collect it, so that is noted for the reactor's."""
        if hasattr(self, "_id"):
            self._released.append(self._id)

    def _identity_of(self, connection: Any) -> int:
        connection = getattr(connection, "ring_connection", connection)  # of a coroutine's connection
        if not isinstance(connection, Connection):
            raise TypeError(f"a topic has connections, not {type(connection).__name__}")
        if connection._turn is not self._turn:
            raise ValueError(f"connection {connection.id} belongs to another reactor than topic {self.name!r}")
        return connection.id

    def _checked(self, result: int, what: str) -> int:
        """Return a result of the shim; 0 where the reactor is being closed, because no connection can be used then."""
        if result >= 0:
            return result
        if result == _STALE:
            self._core.check_usable()
            if self._core.state is RunState.CLOSING:
                return 0
            raise ReactorStateError(f"topic {self.name!r} is gone")
        return check(result, f"{what} of topic {self.name!r}")


def check_name(name: str) -> None:
    """Raise TypeError or ValueError for what cannot be the name of a topic."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a topic is a str, not {type(name).__name__}")
    if not 0 < len(name) <= _NAME_LENGTH_MAX:
        raise ValueError(f"the name of a topic has 1 to {_NAME_LENGTH_MAX} characters, not {len(name)}")


class Topics:
    """The topics of one reactor by name, and messages to connections that are in none."""

    def __init__(self, core: Core, turn: Turn) -> None:
        self._core = core
        self._turn = turn
        self._live: weakref.WeakValueDictionary[str, Topic] = weakref.WeakValueDictionary()
        """Those that the application has. The shim may have others, which have members."""
        self._identities: dict[str, int] = {}
        """Of all that the shim may have. One that it has freed stays here until the next sweep."""
        self._kinds: dict[int, _Kind] = {}
        self._kept = 0
        """How many the last sweep left."""
        self._released: deque[int] = deque()
        """Topics that the application no longer refers to. Only the thread of the reactor may release them in the
        shim."""

    def get(self, name: str, on_full: OnFull | None, history: History | None) -> Topic:
        """Return the topic of that name; make it if there is none. See `Reactor.topic`."""
        check_name(name)
        if on_full is not None and on_full not in _ON_FULL:
            raise ValueError(f"on_full={on_full!r}: must be one of {', '.join(map(repr, _ON_FULL))}")
        if history is not None and not isinstance(history, History):
            raise TypeError(f"history is a History, not {type(history).__name__}")
        self._release()
        topic = self._live.get(name) or self._hold(name) or self._make(_Kind(name, on_full or "close", history))
        for given, own in (on_full, topic.on_full), (history, topic.history):
            if given is not None and given != own:
                raise ValueError(f"topic {name!r} was made with {own!r}, not {given!r}")
        return topic

    def publish(self, name: str, payload: Payload, opcode: int | None) -> int:
        """Publish to the topic of that name; return 0 if there is none. See `Sender.publish`."""
        self._release()
        topic = self._live.get(name) or self._hold(name)
        return 0 if topic is None else topic.publish(payload, opcode)

    def of(self, identity: int) -> list[Topic]:
        """Return the topics of which a connection is a member."""
        handle, index = self._turn._handle, self._turn._index
        ids = ffi.new(_IDS, 8)
        count = self._count_topics(lib.urs_fanout_topics(handle, identity, index, ids, len(ids)))
        if count > len(ids):
            ids = ffi.new(_IDS, count)
            count = self._count_topics(lib.urs_fanout_topics(handle, identity, index, ids, count))
        self._release()
        return [self._named_topic(ids[place]) for place in range(count)]

    def take_drops(self, identity: int) -> list[tuple[Topic, int]]:
        """Return the topics of which messages were dropped for a connection, each with their number, and forget them.

        None for one that has ended: it is a member of no topic.
        """
        topic, count = ffi.new("uint64_t *"), ffi.new("uint32_t *")
        found = []
        while lib.urs_fanout_take_drop(self._turn._handle, identity, topic, count) > 0:
            found.append((self._named_topic(int(topic[0])), int(count[0])))
        return found

    def broadcast(self, payload: Payload, opcode: int | None, to: Any) -> int:
        """Send a message to connections. See `Reactor.broadcast`."""
        ids = None if to is None else self._ids_of(to)
        if type(payload) is Frame and opcode in (None, payload.opcode):
            result = self._broadcast_prepared(payload, ids)
        else:
            result = self._broadcast_bytes(*check_publish(opcode, payload), ids)
        if result == _STALE and self._core.state is RunState.CLOSING:
            return 0
        return check(result, "broadcast")

    def _broadcast_bytes(self, opcode: int, data: Any, ids: Any) -> int:
        turn = self._turn
        with ffi.from_buffer(_BYTES, data) as buffer:
            if ids is None:
                return int(lib.urs_send_all(turn._handle, turn._index, opcode, buffer, len(buffer)))
            with ffi.from_buffer(_IDS, ids) as numbers:
                return int(
                    lib.urs_send_many(turn._handle, numbers, len(numbers), turn._index, opcode, buffer, len(buffer))
                )

    def _broadcast_prepared(self, frame: Frame, ids: Any) -> int:
        turn = self._turn
        if ids is None:
            return int(lib.urs_send_all_prepared(turn._handle, turn._index, frame._block))
        with ffi.from_buffer(_IDS, ids) as numbers:
            return int(lib.urs_send_many_prepared(turn._handle, numbers, len(numbers), turn._index, frame._block))

    def _count_topics(self, result: int) -> int:
        return 0 if result == _STALE else check(result, "topics")

    def _ids_of(self, to: Any) -> Any:
        """Return the ids of connections as a buffer of uint64."""
        try:
            view = memoryview(to)
        except TypeError:
            return self._array_of(to)
        if view.format not in {"Q", "L"} or view.itemsize != 8 or view.ndim != 1 or not view.c_contiguous:
            raise TypeError(
                f"an array of ids is one-dimensional, contiguous and of uint64, not {view.ndim}-dimensional of "
                f"{view.format!r}"
            )
        return view or array("Q")

    def _array_of(self, to: Iterable[Connection]) -> array[int]:
        ids = array("Q")
        for connection in to:
            if not isinstance(connection, Connection):
                raise TypeError(f"to: an iterable of connections, not of {type(connection).__name__}")
            if connection._turn is not self._turn:
                raise ValueError(f"connection {connection.id} belongs to another reactor")
            ids.append(connection.id)
        return ids

    def _named_topic(self, identity: int) -> Topic:
        name = self._kinds[identity].name
        topic = self._live.get(name) or self._hold(name)
        assert topic is not None  # noqa: S101 - it has a member
        return topic

    def _hold(self, name: str) -> Topic | None:
        """Return the topic of that name if the shim has it."""
        identity = self._identities.get(name)
        if identity is None:
            return None
        result = lib.urs_fanout_hold(self._core.handle, identity)
        if result == _STALE:
            return None
        check(result, f"topic {name!r}")
        return self._keep(identity, self._kinds[identity])

    def _make(self, kind: _Kind) -> Topic:
        self._forget_stale()
        identity, limits = ffi.new("uint64_t *"), ffi.new("struct urs_history_limits *")
        if kind.history is not None:
            limits.messages_max = kind.history.messages
            limits.bytes_max = kind.history.bytes
            limits.age_ms_max = milliseconds(kind.history.seconds)
        begin = secrets.randbits(_EPOCH_BITS) << _MESSAGES_BITS
        result = lib.urs_fanout_open(self._core.handle, _ON_FULL[kind.on_full], limits, begin, identity)
        if result == lib.URS_ERROR_LIMIT:
            raise LimitReached(f"a reactor has at most {lib.URS_TOPICS_MAX} topics")
        check(result, f"topic {kind.name!r}")
        self._kinds.pop(self._identities.get(kind.name, 0), None)
        return self._keep(int(identity[0]), kind)

    def _keep(self, identity: int, kind: _Kind) -> Topic:
        topic = self._live[kind.name] = Topic(self, identity, kind)
        self._identities[kind.name] = identity
        self._kinds[identity] = kind
        return topic

    def _release(self) -> None:
        """Tell the shim of the topics that the application has let go of, unless it has asked for them again."""
        released = self._released
        while released:
            identity = released.popleft()
            kind = self._kinds.get(identity)
            if kind is None or kind.name not in self._live:
                lib.urs_fanout_release(self._core.handle, identity)

    def _forget_stale(self) -> None:
        """Forget the names of topics that the shim has freed, each time that there are twice as many names."""
        handle = self._core.handle
        if len(self._identities) <= 2 * self._kept + _SPARE_NAMES:
            return
        lib.urs_fanout_expire(handle)
        for name, identity in list(self._identities.items()):
            if lib.urs_fanout_count(handle, identity, self._turn._index) == _STALE:
                del self._identities[name]
                del self._kinds[identity]
        self._kept = len(self._identities)
