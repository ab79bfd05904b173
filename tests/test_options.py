"""options.py: the values that each field takes and refuses, and the rules between fields."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
import re
from ipaddress import ip_network
from typing import Annotated, Any, get_args, get_origin

import pytest

from servers import Silent
from uringws import Reactor
from uringws.errors import OptionsError
from uringws.options import _HINTS, Options
from uringws.shim import lib

RANGED = {name: hint for name, hint in _HINTS.items() if get_origin(hint) is Annotated}
NULLABLE = {name for name, hint in RANGED.items() if type(None) in get_args(get_args(hint)[0])}


def made(**fields: Any) -> Options:
    return Options(**fields)


def refused(**fields: Any) -> OptionsError:
    with pytest.raises(OptionsError) as caught:
        Options(**fields)
    return caught.value


def test_the_defaults_are_those_documented() -> None:
    options = Options()
    assert options.message_bytes_max == 16 * 1024 * 1024
    assert options.backlog_bytes_max == 32 * 1024 * 1024
    assert options.on_full == "close"
    assert options.handshakes_max == 1024
    assert (options.header_bytes_max, options.header_count_max) == (16384, 100)
    assert (options.handshake_seconds_max, options.close_seconds_max, options.idle_seconds_max) == (10.0, 5.0, None)
    assert (options.ping_interval_seconds, options.ping_timeout_seconds) == (20.0, 20.0)
    assert (options.receive_buffers, options.receive_buffer_bytes) == (32, 66 * 1024)
    assert (options.zero_copy, options.zero_copy_bytes_min) == ("auto", 16384)
    assert options.origins is None


def test_every_field_has_a_default_and_a_description() -> None:
    # A docstring below a field is not an attribute of the class: look for it in the source, as a reader does.
    source = inspect.getsource(Options)
    for field in dataclasses.fields(Options):
        assert field.default is not dataclasses.MISSING, field.name
        assert re.search(rf'\n    {field.name}: [^\n]+\n    """[A-Z]', source), field.name


def test_options_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().ring_entries = 8  # type: ignore[misc]
    with pytest.raises(TypeError):
        Options(1)  # type: ignore[call-arg]


def test_options_are_equal_hashable_and_picklable() -> None:
    options = Options(origins=["https://a.example", re.compile("x"), None], proxy_protocol_from=["10.0.0.0/8"])
    assert pickle.loads(pickle.dumps(options)) == options
    assert hash(dataclasses.replace(options)) == hash(options)


@pytest.mark.parametrize("name", RANGED)
def test_a_number_is_held_to_its_range(name: str) -> None:
    allowed = get_args(RANGED[name])[1]
    for value in (allowed.low - 1, allowed.high * 2, -1, math.nan, math.inf, -math.inf):
        error = refused(**{name: value})
        assert error.field == name
        assert error.value is value
        assert str(error).startswith(f"{name}={value!r}: must be ")
        assert str(allowed.low) in error.allowed


@pytest.mark.parametrize("name", RANGED)
@pytest.mark.parametrize("value", ["1", b"1", True, [1], 1j], ids=repr)
def test_a_number_is_a_number(name: str, value: object) -> None:
    assert refused(**{name: value}).field == name


@pytest.mark.parametrize("name", [name for name in RANGED if "_seconds" not in name])
def test_a_count_is_whole(name: str) -> None:
    assert "whole" in refused(**{name: 64.0}).allowed


@pytest.mark.parametrize("name", [name for name in RANGED if "_seconds" in name])
def test_seconds_may_be_int_or_float(name: str) -> None:
    assert getattr(made(**{name: 3}), name) == 3
    assert getattr(made(**{name: 0.25}), name) == 0.25


@pytest.mark.parametrize("name", RANGED)
def test_none_is_taken_where_it_means_something(name: str) -> None:
    if name in NULLABLE:
        assert getattr(made(**{name: None}), name) is None
    else:
        assert "None" not in refused(**{name: None}).allowed


@pytest.mark.parametrize("name", ["on_full", "zero_copy"])
@pytest.mark.parametrize("value", ["", "CLOSE", None, 1, True])
def test_a_choice_is_one_of_its_words(name: str, value: object) -> None:
    assert "one of" in refused(**{name: value}).allowed


@pytest.mark.parametrize("name", ["tcp_nodelay", "refuse_text", "refuse_binary"])
@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_a_switch_is_a_bool(name: str, value: object) -> None:
    assert refused(**{name: value}).field == name


def test_a_server_that_only_sends_may_refuse_both_types() -> None:
    assert Options(refuse_text=True, refuse_binary=True).refuse_text


@pytest.mark.parametrize("count", [2, 4, 64, 1024, 32768])
def test_receive_buffers_are_a_power_of_two(count: int) -> None:
    assert Options(receive_buffers=count).receive_buffers == count
    assert "power of two" in refused(receive_buffers=count - 1 if count > 2 else 6).allowed


@pytest.mark.parametrize(
    ("fields", "marks"),
    [
        ({}, (64 * 1024, 256 * 1024)),
        ({"backlog_bytes_max": 1000}, (250, 1000)),
        ({"backlog_high_bytes": 4096}, (1024, 4096)),
        ({"backlog_high_bytes": 4096, "backlog_low_bytes": 0}, (0, 4096)),
        ({"backlog_low_bytes": 4095, "backlog_high_bytes": 4096, "backlog_bytes_max": 4096}, (4095, 4096)),
        ({"backlog_bytes_max": 1}, (0, 1)),
    ],
)
def test_water_marks(fields: dict[str, int], marks: tuple[int, int]) -> None:
    assert made(**fields).water_marks() == marks


def test_water_marks_lie_in_order() -> None:
    assert refused(backlog_low_bytes=10, backlog_high_bytes=10).field == "backlog_low_bytes"
    assert refused(backlog_low_bytes=256 * 1024).field == "backlog_low_bytes"
    assert refused(backlog_high_bytes=11, backlog_bytes_max=10).field == "backlog_high_bytes"


def test_a_replaced_limit_moves_the_default_marks_with_it() -> None:
    assert dataclasses.replace(Options(), backlog_bytes_max=2000).water_marks() == (500, 2000)


def test_a_turn_holds_at_least_one_receive() -> None:
    assert refused(session_turn_bytes_max=66 * 1024 - 1).field == "session_turn_bytes_max"
    assert Options(session_turn_bytes_max=66 * 1024).session_turn_bytes_max == 66 * 1024


def test_the_memory_budget_holds_the_pool_and_the_largest_message() -> None:
    needed = 32 * 66 * 1024 + 3 * 16 * 1024 * 1024 + 256 * 1024
    assert Options(memory_bytes_max=needed).memory_bytes_max == needed
    assert str(needed) in refused(memory_bytes_max=needed - 1).allowed


def test_the_memory_budget_counts_the_pool_as_it_is_laid_out() -> None:
    """Buffers begin at whole cache lines: 1025 bytes take 1088."""
    fields: dict[str, Any] = {"receive_buffer_bytes": 1025, "message_bytes_max": 1}
    needed = 32 * 1088 + 3 + 256 * 1024
    assert str(needed) in refused(memory_bytes_max=needed - 1, **fields).allowed
    Reactor(Silent(), Options(memory_bytes_max=needed, **fields), backend="epoll").close()


NEEDED_BESIDE: dict[str, dict[str, Any]] = {
    "receive_buffer_bytes": {"session_turn_bytes_max": 2**30},
    "backlog_high_bytes": {"backlog_bytes_max": 2**31 - 1, "backlog_low_bytes": 0},
    "backlog_low_bytes": {"backlog_bytes_max": 2**31 - 1, "backlog_high_bytes": 2**31 - 1},
    "receive_buffers": {"receive_buffer_bytes": 1024},
}
"""Values of other fields that a field's extremes need."""
UNUSABLE = {("memory_bytes_max", "low"), ("backlog_low_bytes", "high"), ("session_turn_bytes_max", "low")}
"""Extremes that the rules between fields refuse: less than the pool, not below the high mark, less than a buffer."""


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("name", RANGED)
def test_a_reactor_is_made_with_any_value_that_options_take(name: str, end: str) -> None:
    value = getattr(get_args(RANGED[name])[1], end)
    fields = {**NEEDED_BESIDE.get(name, {}), name: value}
    if (name, end) in UNUSABLE:
        assert refused(**fields).field == name
    else:
        Reactor(Silent(), Options(**fields), backend="epoll").close()


@pytest.mark.parametrize(
    "name", ["message_bytes_max", "backlog_bytes_max", "session_turn_bytes_max", "zero_copy_bytes_min"]
)
def test_lengths_have_31_bits(name: str) -> None:
    assert getattr(made(**{name: 2**31 - 1}), name) == 2**31 - 1
    for value in (2**31, 2**32, 2**63 - 1):
        assert str(2**31 - 1) in refused(**{name: value}).allowed


@pytest.mark.parametrize(
    ("buffers", "buffer_bytes"), [(512, 16 << 20), (256, 16 << 20), (32768, 131072), (32768, 131009)]
)
def test_a_pool_of_4_gib_is_refused(buffers: int, buffer_bytes: int) -> None:
    """A message's place in the pool is given in 32 bits: beyond them it would be read from another session's buffer."""
    fields = {"receive_buffers": buffers, "receive_buffer_bytes": buffer_bytes, "session_turn_bytes_max": 16 << 20}
    error = refused(**fields)
    assert error.field == "receive_buffers"
    assert "4 GiB" in error.allowed
    assert lib.urs_pool_bytes(buffers, buffer_bytes) == 0


@pytest.mark.parametrize(("buffers", "buffer_bytes"), [(128, 16 << 20), (32768, 131008)])
def test_a_pool_just_below_4_gib_is_taken(buffers: int, buffer_bytes: int) -> None:
    assert 0 < lib.urs_pool_bytes(buffers, buffer_bytes) < 2**32 - 1
    assert made(receive_buffers=buffers, receive_buffer_bytes=buffer_bytes, session_turn_bytes_max=16 << 20)


def test_pings_can_be_turned_off_alone() -> None:
    assert Options(ping_interval_seconds=None).ping_timeout_seconds == 20.0


def test_sequences_become_tuples() -> None:
    subprotocols = ["chat", "v2.chat"]
    options = Options(subprotocols=subprotocols, origins=[None], proxy_protocol_from=["::1", "unix"])
    subprotocols.append("late")
    assert options.subprotocols == ("chat", "v2.chat")
    assert options.origins == (None,)
    assert options.proxy_protocol_from == (ip_network("::1"), "unix")


@pytest.mark.parametrize("name", ["subprotocols", "origins", "proxy_protocol_from"])
@pytest.mark.parametrize(
    "value", ["chat", b"chat", 1, {"chat"}, iter(["chat"])], ids=lambda value: type(value).__name__
)
def test_a_single_string_is_not_a_sequence(name: str, value: object) -> None:
    assert refused(**{name: value}).allowed == "a list or tuple"


@pytest.mark.parametrize("value", [[""], ["a b"], ["a,b"], ["é"], ["a\r\n"], [b"a"], [None], ["a", "a"]], ids=repr)
def test_subprotocols_are_distinct_tokens(value: list[Any]) -> None:
    assert refused(subprotocols=value).field == "subprotocols"


@pytest.mark.parametrize(
    "origin",
    [
        "https://a.example",
        "http://localhost:8080",
        "http://[::1]:80",
        "null",
        "chrome-extension://abc",
        None,
        re.compile("."),
    ],
    ids=repr,
)
def test_origins_taken(origin: str | re.Pattern[str] | None) -> None:
    assert Options(origins=[origin]).origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "a.example",
        "https://a.example/",
        "https://a.example/x",
        "HTTPS://a.example",
        "*",
        1,
        b"null",
        re.compile(b"."),
    ],
    ids=repr,
)
def test_origins_that_could_never_match_are_refused(origin: Any) -> None:
    assert refused(origins=[origin]).field == "origins"


@pytest.mark.parametrize("value", ["", "10.0.0.1/8", "10.0.0.0/33", "example.org", "::g", 1, None, b"::1"], ids=repr)
def test_proxies_are_addresses_or_networks(value: Any) -> None:
    error = refused(proxy_protocol_from=[value])
    assert error.field == "proxy_protocol_from"
    assert error.value == value


@pytest.mark.parametrize(
    ("proxies", "host", "expected"),
    [
        ((), "10.1.2.3", False),
        ((), "not an address", False),
        (("10.0.0.0/8",), "10.1.2.3", True),
        (("10.0.0.0/8",), "11.1.2.3", False),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("10.0.0.0/8",), "::1", False),
        (("192.0.2.1",), "192.0.2.1", True),
        (("fe80::/10", "10.0.0.0/8"), "fe80::1%eth0", True),
        ((ip_network("::1"),), "::1", True),
        (("10.0.0.0/8",), None, False),
        (("unix",), None, True),
        (("unix",), "127.0.0.1", False),
    ],
)
def test_the_peers_that_must_send_a_proxy_header(proxies: tuple[Any, ...], host: str | None, *, expected: bool) -> None:
    assert Options(proxy_protocol_from=proxies).takes_proxy_protocol_from(host) is expected


def test_a_host_that_is_not_an_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="localhost"):
        Options(proxy_protocol_from=["::1"]).takes_proxy_protocol_from("localhost")


@pytest.mark.parametrize("path", ["/", "/metrics", "/a/b-c_d.e~f", "/%20"])
def test_metrics_path_taken(path: str) -> None:
    assert Options(metrics_path=path).metrics_path == path


@pytest.mark.parametrize("path", ["", "metrics", "/a?b", "/a#b", "/a b", "/é", "/\n", b"/", 1], ids=repr)
def test_metrics_path_refused(path: Any) -> None:
    assert refused(metrics_path=path).field == "metrics_path"


@pytest.mark.parametrize("value", ["", " a", "a ", "a\r\nX: y", "a\0", "é", "\x7f", b"a", 1], ids=repr)
def test_server_header_cannot_break_out_of_its_line(value: Any) -> None:
    assert refused(server_header=value).field == "server_header"


def test_server_header_taken() -> None:
    assert Options(server_header="uringws/1 (Linux)").server_header == "uringws/1 (Linux)"
