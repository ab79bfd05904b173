"""Sec-WebSocket-Extensions and the negotiation of permessage-deflate, against RFC 6455 9.1 and RFC 7692 7.1."""

from __future__ import annotations

import contextlib
import time

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uringws import Deflate, DeflateTerms, HandshakeError, Options, OptionsError
from uringws.extensions import negotiate, parse_extensions

TAKEOVER = Deflate(takeover=True, window_bits=15)
NONE = "server_no_context_takeover; client_no_context_takeover"
SAFARI = (
    b"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    b"Version/%b Safari/605.1.15"
)


def answer(*values: str, deflate: Deflate = TAKEOVER, user_agent: bytes = b"") -> str | None:
    """The value of Sec-WebSocket-Extensions in the 101 answer; None for no such field."""
    terms = negotiate([value.encode() for value in values], deflate, user_agent)
    return None if terms is None else terms.response


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        ("permessage-deflate", "permessage-deflate"),
        (" permessage-deflate\t", "permessage-deflate"),
        ("permessage-deflate; client_max_window_bits", "permessage-deflate; client_max_window_bits=15"),
        ('permessage-deflate; client_max_window_bits="10"', "permessage-deflate; client_max_window_bits=10"),
        (r'permessage-deflate; client_max_window_bits="1\0"', "permessage-deflate; client_max_window_bits=10"),
        ("permessage-deflate; server_max_window_bits=9", "permessage-deflate; server_max_window_bits=9"),
        ("permessage-deflate; server_max_window_bits=15", "permessage-deflate; server_max_window_bits=15"),
        ("permessage-deflate; server_no_context_takeover", "permessage-deflate; server_no_context_takeover"),
        ("permessage-deflate; client_no_context_takeover", "permessage-deflate; client_no_context_takeover"),
        ("x-webkit-deflate-frame, permessage-deflate", "permessage-deflate"),
        # Declined: an unknown, a repeated or a bad parameter, and a window that zlib cannot use.
        ("permessage-deflate; surprise", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_no_context_takeover=true", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-deflate; server_max_window_bits=08", None),
        ("permessage-deflate; client_max_window_bits=010", None),
        ("permessage-deflate; client_max_window_bits=ten", None),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("x-webkit-deflate-frame", None),
        ("", None),
        (" , ,", None),
        # The next offer stands in for a declined one.
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", "permessage-deflate"),
        (
            "permessage-deflate; surprise, permessage-deflate; server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover",
        ),
    ],
)
def test_offer_is_answered_by_the_rules(offer: str, expected: str | None) -> None:
    assert answer(offer) == expected


def test_window_of_8_bits_for_the_client_is_never_answered() -> None:
    """Many clients' zlib uses 9 where 8 was agreed."""
    terms = negotiate([b"permessage-deflate; client_max_window_bits=8"], TAKEOVER)
    assert terms is not None
    assert (terms.response, terms.client_window_bits) == ("permessage-deflate", 15)


def test_client_that_does_not_let_its_window_be_limited_keeps_15_bits() -> None:
    """Firefox offers no client_max_window_bits."""
    terms = negotiate([b"permessage-deflate"], Deflate(takeover=True, window_bits=10))
    assert terms is not None
    assert (terms.server_window_bits, terms.client_window_bits) == (10, 15)
    assert terms.response == "permessage-deflate; server_max_window_bits=10"


def test_offers_may_come_on_several_lines_of_which_the_first_acceptable_is_taken() -> None:
    assert answer("foo; bar", "permessage-deflate; server_max_window_bits=10", "permessage-deflate") == (
        "permessage-deflate; server_max_window_bits=10"
    )


def test_answer_without_takeover_binds_both_sides() -> None:
    offer = "permessage-deflate; client_max_window_bits"
    assert answer(offer, deflate=Deflate()) == f"permessage-deflate; {NONE}"
    terms = negotiate([offer.encode()], Deflate())
    assert terms is not None
    assert not terms.server_takeover
    assert not terms.client_takeover


@pytest.mark.parametrize(
    "value",
    [
        'permessage-deflate; client_max_window_bits="10',
        "permessage-deflate;",
        "permessage-deflate; =10",
        "permessage-deflate; client_max_window_bits=",
        'permessage-deflate; client_max_window_bits=""',
        'permessage-deflate; client_max_window_bits="1 0"',
        "permessage-deflate client_max_window_bits",
        ";",
        'a; b="\\',
        "permessage-deflate; client_max_window_bits=\x80",
    ],
)
def test_field_that_breaks_the_grammar_is_a_bad_request(value: str) -> None:
    with pytest.raises(HandshakeError) as caught:
        answer(value)
    assert caught.value.status == 400


@pytest.mark.parametrize("piece", ['a; b="', 'a; b="\\', "a; b=c, ", ", ", "a;b;", 'a; b="x" ', " \t"])
def test_parsing_takes_linear_time(piece: str) -> None:
    """CVE-2020-7662 and CVE-2020-7663: an unclosed quoted string took others quadratic time and worse."""
    value = (piece * 10_000).encode()
    began = time.process_time()
    with contextlib.suppress(ValueError):
        parse_extensions([value])
    assert time.process_time() - began < 2


@pytest.mark.parametrize("version", [b"15.0", b"15.1", b"15.2.1", b"15.3"])
def test_safari_15_gets_no_compression(version: bytes) -> None:
    assert answer("permessage-deflate", user_agent=SAFARI % version) is None


@pytest.mark.parametrize("version", [b"14.1", b"15.4", b"16.0", b"115.0"])
def test_other_safari_does(version: bytes) -> None:
    assert answer("permessage-deflate", user_agent=SAFARI % version) == "permessage-deflate"


bits = st.integers(9, 15)


flags = st.tuples(st.booleans(), st.booleans(), st.booleans())


@given(bits, st.one_of(st.none(), st.just(0), bits), st.one_of(st.none(), bits), flags)
def test_answer_keeps_to_the_offer_and_says_the_terms(
    own: int, client_bits: int | None, server_bits: int | None, flags: tuple[bool, bool, bool]
) -> None:
    server_no, client_no, takeover = flags
    parts = ["permessage-deflate"]
    if client_bits is not None:
        parts.append("client_max_window_bits" + (f"={client_bits}" if client_bits else ""))
    if server_bits is not None:
        parts.append(f"server_max_window_bits={server_bits}")
    parts += ["server_no_context_takeover"] * server_no + ["client_no_context_takeover"] * client_no
    deflate = Deflate(takeover=takeover, window_bits=own)
    terms = negotiate(["; ".join(parts).encode()], deflate)
    assert terms is not None
    assert terms.server_window_bits <= min(own, server_bits or 15)
    assert "client_max_window_bits" not in terms.response or client_bits is not None
    assert terms.client_window_bits <= (client_bits or 15) or "client_max_window_bits" not in terms.response
    assert terms.server_takeover == (takeover and not server_no)
    assert not (client_no and terms.client_takeover)
    assert (server_bits is None) or f"server_max_window_bits={terms.server_window_bits}" in terms.response
    assert DeflateTerms.from_response(terms.response) == terms


names = st.from_regex(r"[a-z0-9\-_]{1,12}", fullmatch=True)


@hypothesis.settings(max_examples=30)
@given(st.lists(st.tuples(names, st.lists(st.tuples(names, st.one_of(st.none(), names)), max_size=3)), max_size=4))
def test_parsing_gives_what_was_written(extensions: list[tuple[str, list[tuple[str, str | None]]]]) -> None:
    elements = []
    for number, (name, parameters) in enumerate(extensions):
        parts = [name]
        for key, value in parameters:
            quoted = f'"{value}"' if number % 2 else value
            parts.append(key if value is None else f"{key}={quoted}")
        elements.append("; ".join(parts))
    found = parse_extensions([", ".join(elements).encode()])
    assert [(extension.name, extension.parameters) for extension in found] == extensions


@hypothesis.settings(max_examples=50)
@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_value_error(value: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_extensions([value])


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"level": 0}, "level"),
        ({"level": 10}, "level"),
        ({"level": None}, "level"),
        ({"bytes_min": -1}, "bytes_min"),
        ({"window_bits": 8}, "window_bits"),
        ({"window_bits": 16}, "window_bits"),
        ({"memory_level": 0}, "memory_level"),
        ({"takeover": 1}, "takeover"),
    ],
)
def test_setting_out_of_range_is_named(settings: dict[str, int], field: str) -> None:
    with pytest.raises(OptionsError, match=rf"deflate\.{field}="):
        Deflate(**settings)  # type: ignore[arg-type]


def test_options_take_a_deflate_or_none() -> None:
    with pytest.raises(OptionsError, match="deflate="):
        Options(deflate=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["foo", ""])
def test_answer_without_permessage_deflate_has_no_terms(value: str) -> None:
    assert DeflateTerms.from_response(value) is None


@pytest.mark.parametrize("parameter", ["client_max_window_bits", "server_max_window_bits=8", "surprise"])
def test_answer_that_cannot_be_kept_is_refused(parameter: str) -> None:
    with pytest.raises(ValueError, match=r"bits|malformed"):
        DeflateTerms.from_response(f"permessage-deflate; {parameter}")
