"""Every setting and limit of the server, as one frozen dataclass that is checked when it is made.

Other modules and the C shim act on the settings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

from uringws.errors import OptionsError
from uringws.extensions import Deflate
from uringws.field_docs import document_fields
from uringws.seconds import milliseconds
from uringws.shim import lib

__all__ = ["IPNetwork", "Options", "check_shared", "copy_deflate", "copy_options", "copy_rules"]

KIB: Final = 1024
MIB: Final = 1024 * KIB
_BYTES_MAX: Final = 2**31 - 1
"""The most bytes of one message, backlog or turn: lengths have 32 bits, and a send takes no more (MAX_RW_COUNT)."""
_DAY_SECONDS: Final = 86400.0
_ZERO_COPY: Final = ("never", "auto", "always")
_ON_FULL: Final = ("close", "drop", "error")
_GROWTH: Final = 3
"""A message may need this many times its size while it arrives: it moves to larger memory, whose size is rounded up."""
_GROWTH_INFLATED: Final = 5
"""The same with compression: the compressed message is there, too."""
_SPARE_BYTES: Final = 256 * KIB
"""Memory for small messages, and for the eighth of the budget that is kept free."""

_DEFLATE: Final = Deflate()
"""How messages are compressed where only an adopted session agreed on it."""

_SHARED: Final = (
    "sessions_max",
    "sessions_per_ip_max",
    "handshakes_max",
    "silent_seconds_max",
    "drain_seconds_max",
    "memory_bytes_max",
    "receive_buffers",
    "receive_buffer_bytes",
    "ring_entries",
    "busy_poll_microseconds",
    "fanout_turn_max",
    "zero_copy",
    "zero_copy_bytes_min",
    "sender_commands_max",
    "batch_messages_max",
    "batch_wait_microseconds",
)
"""The fields that hold for a reactor with all its connections."""

IPNetwork = IPv4Network | IPv6Network


class _Range(NamedTuple):
    """The numbers that a field may have, both ends included, in the unit of the field's name."""

    low: float
    high: float


_Bytes = _Range(1, _BYTES_MAX)
_MemoryBytes = _Range(1, 2**63 - 1)
_Seconds = _Range(0.001, 24 * _DAY_SECONDS)  # the shim counts milliseconds in 31 bits
_Count = _Range(1, 2**31 - 1)

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 5.6.2
_FIELD_TEXT: Final = re.compile(r"[!-~]([ !-~]*[!-~])?")  # RFC 9110 5.5, visible ASCII and inner spaces only
_ORIGIN_FORM: Final = re.compile(r"/[!$-;=@-Z_a-z~%&']*")  # RFC 9112 3.2.1, without a query


@document_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of a `Reactor`. `dataclasses.replace` makes a changed copy.

    Units are in the names: bytes, seconds (int or float), microseconds; every other number is a count. Where a
    field takes None, None means "no limit" or "off". Raises `OptionsError`, a ValueError, that names the field, its
    value and what is allowed.

    A listener and an adopted session may have options of their own (`Reactor.bind`, `Reactor.add_session`). They are
    made with `dataclasses.replace(reactor.options, ...)`, because all connections of a reactor share the limits on
    their number (`sessions_max`, `sessions_per_ip_max`, `handshakes_max`, `silent_seconds_max`), its memory
    (`memory_bytes_max`, `receive_buffers`, `receive_buffer_bytes`), its ring (`ring_entries`, `zero_copy`,
    `zero_copy_bytes_min`, `busy_poll_microseconds`), its batches (`batch_messages_max`, `batch_wait_microseconds`),
    `fanout_turn_max`, `sender_commands_max` and `drain_seconds_max`.
    """

    # Messages

    message_bytes_max: Annotated[int, _Bytes] = 16 * MIB
    """The largest payload of a received message, all fragments together. Refused with 1009 as soon as the announced
    length exceeds it."""

    refuse_text: bool = False
    """Answer text messages with close code 1003."""

    refuse_binary: bool = False
    """Answer binary messages with close code 1003."""

    deflate: Deflate | None = None
    """Compress messages (permessage-deflate, RFC 7692) where the client offers it. None: never. Compression reveals
    secrets by the size of a message whose other parts an attacker may choose (CRIME, BREACH): send such messages with
    `compress=False`."""

    deliver_while_closing: bool = False
    """Give `on_message` (`on_frame`, `on_pong`) also what the peer sent before it saw our close frame: all that comes
    between our close frame and the peer's. Nothing can be sent any more, and `pause_reading` has no effect, because the
    peer's close frame must be found; `close_seconds_max` bounds it. In `run_echo` such messages are dropped."""

    # Backpressure, per session

    backlog_bytes_max: Annotated[int, _Bytes] = 32 * MIB
    """The most bytes that may wait for a slow reader, the new message included. Control frames have a small reserve of
    their own. While 16 pongs wait, only the latest ping is answered (RFC 6455 5.5.3)."""

    backlog_high_bytes: Annotated[int | None, _Bytes] = None
    """A backlog of this size or more counts as high: `on_drain` is called once it has fallen to the low mark. None:
    256 KiB, or `backlog_bytes_max` if that is less."""

    backlog_low_bytes: Annotated[int | None, _Range(0, _BYTES_MAX)] = None
    """A high backlog that has fallen to this size is low again, and `on_drain` is called. None: a quarter of the high
    mark."""

    on_full: Literal["close", "drop", "error"] = "close"
    """The action of `send` for a message that would exceed `backlog_bytes_max`: close the session (1008), drop the
    message and return DROPPED, or raise `BacklogFull`."""

    # Admission

    sessions_max: Annotated[int | None, _Count] = None
    """The most sessions at a time, upgrades in progress included; a connection over the limit is answered 503."""

    sessions_per_ip_max: Annotated[int | None, _Count] = None
    """The most sessions at a time per peer address (the one that a trusted PROXY header names); over the limit 429."""

    handshakes_max: Annotated[int | None, _Count] = 1024
    """The most upgrades in progress at a time; over the limit a silent connection is closed (`silent_seconds_max`), or
    the new one is answered 503."""

    silent_seconds_max: Annotated[float | None, _Seconds] = 1.0
    """When `handshakes_max` is reached, the oldest connection that has sent nothing for this long is closed to make
    room for the new one. None: it is kept, and the new one gets 503."""

    header_bytes_max: Annotated[int, _Range(256, MIB)] = 16 * KIB
    """The largest head of an opening request, request line included; over the limit 431."""

    header_count_max: Annotated[int, _Range(8, 1_000)] = 100
    """The most field lines of an opening request; over the limit 431."""

    subprotocols: Sequence[str] = ()
    """The subprotocols the server speaks, the preferred one first. The default `on_upgrade` takes the first one that
    the client offers, and none if the client offers none of them."""

    refuse_silently: bool = False
    """Close without an answer what cannot be read as an HTTP request, and a request that did not end, or was not
    decided on, within `handshake_seconds_max`; else they are answered 400, 431 and 408. `stats()` counts both."""

    origins: Sequence[str | re.Pattern[str] | None] | None = None
    """Allowed values of Origin, as RFC 6454 writes them ("https://example.org", no slash at the end): strings are
    compared, patterns must match in full, and the element None allows requests without Origin. Others get 403. None in
    place of the sequence allows all, which makes cross-site WebSocket hijacking possible if cookies authenticate."""

    proxy_protocol_from: Sequence[str | IPNetwork] = ()
    """Peers that must begin with a PROXY protocol header (v1 or v2): addresses or networks ("10.0.0.0/8"), and the word
    "unix" for peers on Unix sockets. From all other peers such a header is an error."""

    listen_backlog: Annotated[int, _Range(1, 65_535)] = 4096
    """Connections the kernel may hold before they are accepted (capped by net.core.somaxconn)."""

    # Deadlines

    handshake_seconds_max: Annotated[float | None, _Seconds] = 10.0
    """From accept to the end of the opening request, even if bytes keep coming; then 408. A connection that has not
    sent a byte is closed without an answer."""

    close_seconds_max: Annotated[float | None, _Seconds] = 5.0
    """From when our close frame has left to the peer's close frame, and from there to the end of the peer's stream;
    also the time without progress while queued bytes are in front of the close frame, or in front of an HTTP answer's
    end. A peer that takes less than about 1 KiB per second of them makes no progress. A close that takes longer is
    ended by a reset."""

    idle_seconds_max: Annotated[float | None, _Seconds] = None
    """The longest time without a byte from the peer; then close code 1001. Bytes that we send do not count, unless they
    waited in the backlog and the peer takes them. The time while reading is paused does not count either."""

    ping_interval_seconds: Annotated[float | None, _Seconds] = 20.0
    """The time between pings of the server; None sends none. The first ping comes up to half of that early, by chance,
    so that sessions that opened at the same time are not pinged at the same time."""

    ping_timeout_seconds: Annotated[float | None, _Seconds] = 20.0
    """From when such a ping has left to its pong, or any other byte; then the connection is cut (1006). The clock
    starts again each time the peer takes some of the bytes in front of the ping. None sends pings and never
    cuts. It has no effect if no pings are sent, and while reading is paused."""

    session_seconds_max: Annotated[float | None, _Seconds] = None
    """The age at which a session is closed with 1001, so that long-lived clients spread over new servers."""

    drain_seconds_max: Annotated[float, _Range(0, 366 * _DAY_SECONDS)] = 10.0
    """The time that sessions have to close after SIGINT or SIGTERM in `run` (close code 1001), before they are cut."""

    # Memory and the ring

    memory_bytes_max: Annotated[int | None, _MemoryBytes] = None
    """The memory budget: the receive pool, partial messages and backlogs of all sessions together. It must be at least
    the pool, three times `message_bytes_max` and 256 KiB: a message takes more than its size while it grows. When
    sessions hold seven eighths of the budget without the pool, those that hold the most are closed until a quarter is
    free: with 1009, or, if unsent bytes are thrown away, with 1006 (no close frame). A message that still does not fit
    is answered 1013."""

    receive_buffers: Annotated[int, _Range(2, 32_768)] = 32
    """Buffers of the receive pool, a power of two. Few are faster than many, because they stay in the CPU's cache. All
    of them together must take less than 4 GiB."""

    receive_buffer_bytes: Annotated[int, _Range(1 * KIB, 16 * MIB)] = 66 * KIB
    """The size of one buffer, which is the most that a single receive brings. A message that fits is never copied."""

    session_turn_bytes_max: Annotated[int, _Range(1 * KIB, _BYTES_MAX)] = 256 * KIB
    """The most bytes of one session that one turn handles before it goes on with the other sessions. The middle of a
    large message does not count: putting it aside would cost as much as taking it in."""

    session_turn_messages_max: Annotated[int, _Range(1, 4096)] = 64
    """The most messages of one session, pings included, that one turn handles before it goes on with the other
    sessions. The rest is put aside until the next turn, at the cost of one copy of that input.
    In `run_echo`, which needs no handler, a run of small messages counts as one."""

    fanout_turn_max: Annotated[int, _Count] = 256
    """How many connections a turn sends published messages to before it looks for input; the others wait for the next
    turns. A small number answers other connections sooner while a large topic is served; a large one saves a system
    call per slice. Connections that have anything else to send do not count."""

    ring_entries: Annotated[int, _Range(8, 32_768)] = 512
    """Submission queue entries. The kernel rounds up to a power of two; if locked memory is short, a smaller ring is
    used."""

    busy_poll_microseconds: Annotated[int, _Range(0, 1_000_000)] = 0
    """How long the reactor looks for completions before it sleeps; 0 sleeps at once. Shorter round trips, at the cost
    of a busy core."""

    zero_copy: Literal["auto", "never", "always"] = "auto"
    """Whether large sends skip the copy into the kernel. "auto" stops for a session whose bytes the
    kernel copies anyway."""

    zero_copy_bytes_min: Annotated[int, _Bytes] = 16 * KIB
    """The smallest segment that `zero_copy="auto"` sends without a copy."""

    tcp_nodelay: bool = True
    """Set TCP_NODELAY on accepted sockets, and on those of `add_session`; False leaves them as they are."""

    sender_commands_max: Annotated[int, _Count] = 65_536
    """Commands of Senders of other threads that may wait for the reactor."""

    # Batches

    batch_messages_max: Annotated[int, _Range(1, 4096)] = 4096
    """The most messages that one call of `BatchHandler.on_batch` is given."""

    batch_wait_microseconds: Annotated[int, _Range(0, 100_000)] = 0
    """How long the reactor lets input gather, once it has nothing left to do: fewer turns with more messages each. That
    delays what comes in this time, also that of Senders. It ends early when `batch_messages_max` receives have come, or
    as many as three quarters of the free receive buffers; an idle reactor takes the first that comes after it at once.
    0 never waits for a second one. io_uring waits in one system call from Linux 6.12 on, in up to two before; epoll
    cannot wait for several, and sleeps for the whole time."""

    # Plain HTTP

    metrics_path: str | None = None
    """The path, "/metrics" for example, at which a plain GET is answered with `stats()` for Prometheus. Every
    client that reaches the port can read it."""

    server_header: str | None = None
    """The value of Server in HTTP answers; None sends none."""

    def __post_init__(self) -> None:
        for name, hint in _HINTS.items():
            _check_value(name, getattr(self, name), hint)
        self._normalise()
        self._check_texts()
        self._check_together()

    def water_marks(self) -> tuple[int, int]:
        """Return the low and the high water mark in bytes, with the defaults filled in."""
        high = self.backlog_high_bytes
        if high is None:
            high = min(256 * KIB, self.backlog_bytes_max)
        low = self.backlog_low_bytes
        return (high // 4 if low is None else low), high

    def takes_proxy_protocol_from(self, host: str | None) -> bool:
        """Return whether a peer at this IP address (None: on a Unix socket) has to send a PROXY protocol header.

        An IPv4 address that a dual-stack socket reports as ::ffff:a.b.c.d counts as a.b.c.d. Raises ValueError if
        `host` is not an IP address.
        """
        if not self.proxy_protocol_from:
            return False
        if host is None:
            return "unix" in self.proxy_protocol_from
        address = ip_address(host)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(not isinstance(network, str) and address in network for network in self.proxy_protocol_from)

    def _normalise(self) -> None:
        """Make tuples of the sequences, so that a list changed later changes nothing here."""
        put = object.__setattr__
        put(self, "subprotocols", _sequence("subprotocols", self.subprotocols))
        if self.origins is not None:
            put(self, "origins", _sequence("origins", self.origins))
        networks = _sequence("proxy_protocol_from", self.proxy_protocol_from)
        put(self, "proxy_protocol_from", tuple(_network(network) for network in networks))

    def _check_texts(self) -> None:
        if self.deflate is not None and not isinstance(self.deflate, Deflate):
            raise OptionsError("deflate", self.deflate, "None or a Deflate")
        for subprotocol in self.subprotocols:
            if not isinstance(subprotocol, str) or not _TOKEN.fullmatch(subprotocol):
                raise OptionsError("subprotocols", self.subprotocols, "a sequence of RFC 9110 tokens")
        if len(set(self.subprotocols)) != len(self.subprotocols):
            raise OptionsError("subprotocols", self.subprotocols, "without duplicates")
        for origin in self.origins or ():
            if not _origin_ok(origin):
                allowed = 'a sequence of "scheme://host[:port]", "null", str patterns or None; origins=None lets in all'
                raise OptionsError("origins", self.origins, allowed)
        if self.metrics_path is not None and not _text_matches(self.metrics_path, _ORIGIN_FORM):
            raise OptionsError("metrics_path", self.metrics_path, 'None or a path that begins with "/", no query')
        if self.server_header is not None and not _text_matches(self.server_header, _FIELD_TEXT):
            raise OptionsError("server_header", self.server_header, "None or printable ASCII")

    def _check_together(self) -> None:
        """Check the rules between fields."""
        low, high = self.water_marks()
        if high > self.backlog_bytes_max:
            raise OptionsError("backlog_high_bytes", high, f"at most backlog_bytes_max ({self.backlog_bytes_max})")
        if low >= high:
            raise OptionsError("backlog_low_bytes", low, f"less than backlog_high_bytes ({high})")
        if self.batch_wait_microseconds and self.busy_poll_microseconds:
            raise OptionsError(
                "batch_wait_microseconds",
                self.batch_wait_microseconds,
                "0 with busy_poll_microseconds, which takes the first input at once",
            )
        if self.receive_buffers & (self.receive_buffers - 1):
            raise OptionsError("receive_buffers", self.receive_buffers, "a power of two")
        if self.session_turn_bytes_max < self.receive_buffer_bytes:
            raise OptionsError(
                "session_turn_bytes_max",
                self.session_turn_bytes_max,
                f"at least receive_buffer_bytes ({self.receive_buffer_bytes})",
            )
        pool = lib.urs_pool_bytes(self.receive_buffers, self.receive_buffer_bytes)
        if not pool:
            raise OptionsError(
                "receive_buffers",
                self.receive_buffers,
                f"so few that they take less than 4 GiB, {self.receive_buffer_bytes} bytes each",
            )
        if self.memory_bytes_max is not None:
            growth = _GROWTH if self.deflate is None else _GROWTH_INFLATED
            needed = pool + growth * self.message_bytes_max + _SPARE_BYTES
            if self.memory_bytes_max < needed:
                raise OptionsError(
                    "memory_bytes_max",
                    self.memory_bytes_max,
                    f"at least {needed}: the receive pool, and the memory that a message takes as it grows",
                )


def check_shared(options: Options, own: Options) -> None:
    """Raise OptionsError if options of some connections differ from the reactor's `own` in what all of them share."""
    for name in _SHARED:
        value, shared = getattr(options, name), getattr(own, name)
        if value != shared:
            raise OptionsError(
                name,
                value,
                f"{shared!r} as in the reactor's own options, since all its connections share it: make these options "
                f"with dataclasses.replace(reactor.options, ...), or give {name} to the Reactor",
            )


def copy_options(options: Options, shim: Any, pool_bytes: int) -> None:
    """Write the settings that all sessions share into a `struct urs_reactor_options`. The pool takes `pool_bytes`."""
    shim.ring_entries = options.ring_entries
    shim.receive_buffers = options.receive_buffers
    shim.receive_buffer_bytes = options.receive_buffer_bytes
    # The shim counts the sessions' share: the pool is allocated once.
    shim.memory_bytes_max = 0 if options.memory_bytes_max is None else options.memory_bytes_max - pool_bytes
    shim.sessions_max = options.sessions_max or 0
    shim.sessions_per_ip_max = options.sessions_per_ip_max or 0
    shim.handshakes_max = options.handshakes_max or 0
    shim.silent_ms = milliseconds(options.silent_seconds_max)
    shim.busy_poll_us = options.busy_poll_microseconds
    shim.fanout_turn_max = options.fanout_turn_max
    shim.batch_wait_us = options.batch_wait_microseconds
    shim.batch_messages_max = options.batch_messages_max
    shim.zero_copy = _ZERO_COPY.index(options.zero_copy)
    shim.zero_copy_bytes_min = options.zero_copy_bytes_min


def copy_rules(options: Options, rules: Any) -> None:
    """Write the settings of a connection that the shim acts on into a `struct urs_rules`."""
    low, high = options.water_marks()
    rules.engine.message_bytes_max = options.message_bytes_max
    rules.engine.refuse_text = options.refuse_text
    rules.engine.refuse_binary = options.refuse_binary
    copy_deflate(options.deflate or _DEFLATE, rules.engine.deflate)
    rules.backlog_bytes_max = options.backlog_bytes_max
    rules.backlog_high_bytes = high
    rules.backlog_low_bytes = low
    rules.on_full = _ON_FULL.index(options.on_full)
    rules.session_turn_bytes_max = options.session_turn_bytes_max
    rules.session_turn_messages_max = options.session_turn_messages_max
    rules.header_bytes_max = options.header_bytes_max
    rules.handshake_ms = milliseconds(options.handshake_seconds_max)
    rules.idle_ms = milliseconds(options.idle_seconds_max)
    rules.ping_interval_ms = milliseconds(options.ping_interval_seconds)
    rules.ping_timeout_ms = milliseconds(options.ping_timeout_seconds)
    rules.close_ms = milliseconds(options.close_seconds_max)
    rules.session_ms = milliseconds(options.session_seconds_max)
    rules.deliver_while_closing = options.deliver_while_closing
    rules.proxy_protocol = bool(options.proxy_protocol_from)
    rules.tcp_nodelay = options.tcp_nodelay


def copy_deflate(deflate: Deflate, shim: Any) -> None:
    """Write the settings of the compressor into a `struct urs_deflate_rules`."""
    shim.bytes_min, _, shim.memory_level = deflate.effective()
    shim.level = deflate.level


_HINTS: Final[dict[str, Any]] = get_type_hints(Options, include_extras=True)


def _check_value(name: str, value: object, hint: Any) -> None:
    """Check one value against its annotation: Annotated with a range, Literal, or bool. Other fields have own rules."""
    if get_origin(hint) is Annotated:
        base, allowed = get_args(hint)
        none_allowed = type(None) in get_args(base)
        if value is None and none_allowed:
            return
        whole = base is int or int in get_args(base)
        types = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, types) or not allowed.low <= value <= allowed.high:
            kind = "a whole number" if whole else "a number"
            none = "None or " if none_allowed else ""
            raise OptionsError(name, value, f"{none}{kind} from {allowed.low} to {allowed.high}")
    elif get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise OptionsError(name, value, "one of " + ", ".join(map(repr, get_args(hint))))
    elif hint is bool and not isinstance(value, bool):
        raise OptionsError(name, value, "True or False")


def _sequence(name: str, value: object) -> tuple[Any, ...]:
    # A single string is a sequence of its letters: the most common mistake with such options.
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise OptionsError(name, value, "a list or tuple")
    return tuple(value)


def _network(value: object) -> IPNetwork | Literal["unix"]:
    if isinstance(value, (IPv4Network, IPv6Network)):
        return value
    if value == "unix":
        return "unix"
    # To ipaddress an int is an address; here it is a mistake.
    cause = None
    if isinstance(value, str):
        try:
            return ip_network(value)
        except ValueError as error:
            cause = error
    raise OptionsError("proxy_protocol_from", value, 'an IP address, an IP network or "unix"') from cause


def _origin_ok(value: object) -> bool:
    if isinstance(value, re.Pattern):
        return isinstance(value.pattern, str)
    if isinstance(value, str):
        return value == "null" or re.fullmatch(r"[a-z][a-z0-9+.\-]*://[^/?#\s]+", value) is not None
    return value is None


def _text_matches(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
