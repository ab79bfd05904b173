"""Random arguments for the functions and values that need no reactor: frames, HTTP, options. See call_sequences.py."""

from __future__ import annotations

import array
import dataclasses
import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from call_sequences import Trail, expect, outcome
from uringws import (
    Accept,
    CloseCode,
    FrameHeader,
    Handler,
    HandshakeError,
    Incomplete,
    Opcode,
    Options,
    OptionsError,
    ProtocolError,
    Reject,
    Request,
    Response,
    ServerEngine,
    check_upgrade,
    encode_accept,
    encode_refusal,
    encode_response,
    handler_fn,
    parse_header,
    parse_request,
    unmask,
)
from wire import frame, upgrade_request, xor

CALLS = 40
FIELDS = [field.name for field in dataclasses.fields(Options)]
WRONG = (TypeError, ValueError, BufferError)
"""The exceptions for a wrong argument; KeyError, OverflowError and others would not name the argument."""

STRANGE: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: rng.choice((None, True, False)),
    lambda rng: rng.choice((-1, 0, 1, 2, 3, 125, 126, 200, 404, 1000, 65_535, 1 << 31, 1 << 32, 1 << 63, 1 << 70)),
    lambda rng: rng.choice((0.0, -1.0, 1.5, 1e300, float("nan"), float("inf"))),
    lambda rng: rng.randbytes(rng.randrange(20)),
    lambda rng: bytearray(rng.randbytes(rng.randrange(40))),
    lambda rng: memoryview(bytearray(rng.randbytes(20)))[::2],
    lambda rng: memoryview(rng.randbytes(8)),
    lambda rng: rng.choice(("", "a", "close", "127.0.0.1", "http://a", "\ud800", "a\r\nb: c", "é", "x" * 300)),
    lambda rng: rng.choice(([], ["a"], [("a", "b")], [("a", "b", "c")], [("", "")], [(1, 2)], ("a", None))),
    lambda rng: rng.choice(({}, {"a": "b"}, {"Connection": "close"}, {"a": None}, {1: 2})),
    lambda rng: rng.choice(
        (
            object(),
            Handler,
            Handler(),
            print,
            Options(),
            re.compile("a"),
            array.array("d", [1.0]),
            CloseCode.NORMAL,
            Opcode.TEXT,
        )
    ),
)


def strange(rng: random.Random) -> Any:
    return rng.choice(STRANGE)(rng)


def maybe(rng: random.Random, usual: Any) -> Any:
    """Mostly a valid value, sometimes any value."""
    return usual if rng.random() < 0.7 else strange(rng)


def call_parse_header(rng: random.Random, trail: Trail) -> None:
    opcode = rng.choice(list(Opcode))
    payload = rng.randbytes(rng.choice((0, 1, 125, 126, 65_535, 65_536)) if opcode < 8 else rng.randrange(126))
    whole = frame(opcode, payload, fin=opcode >= 8 or rng.random() < 0.5)
    data = maybe(rng, whole[: rng.randrange(len(whole) + 1)])
    from_client = maybe(rng, rng.choice((True, None)))
    result, _ = outcome(
        trail,
        f"parse_header({data!r:.60}, from_client={from_client!r})",
        lambda: parse_header(data, from_client=from_client),
        (*WRONG, ProtocolError),
    )
    if isinstance(data, bytes) and data == whole[: len(data)] and len(data) >= 14 and from_client in (True, None):
        expect(isinstance(result, FrameHeader), f"a whole header gave {result!r}")
        expect((result.opcode, result.payload_bytes) == (opcode, len(payload)), f"wrong header {result!r}")
    expect(result is None or isinstance(result, (FrameHeader, Incomplete)), f"parse_header gave {result!r}")


def call_unmask(rng: random.Random, trail: Trail) -> None:
    clear = rng.randbytes(rng.randrange(100))
    key = rng.randbytes(4)
    buffer, used_key = maybe(rng, bytearray(clear)), maybe(rng, key)
    offset = maybe(rng, rng.randrange(1 << 40))
    _, error = outcome(
        trail,
        f"unmask({buffer!r:.60}, {used_key!r}, {offset!r})",
        lambda: unmask(buffer, used_key, offset),
        WRONG,
    )
    if error is None and buffer is not clear and used_key is key and type(offset) is int and offset >= 0:
        again = bytearray(clear)
        unmask(again, key, offset)
        expect(again == xor(clear, key[offset % 4 :] + key[: offset % 4]), f"unmask gave {again!r}")


def a_request(rng: random.Random) -> Request:
    return parse_request(upgrade_request("/a?b=c", subprotocols=rng.choice(((), ("x", "y")))), header_count_max=20)


def call_parse_request(rng: random.Random, trail: Trail) -> None:
    head = bytearray(upgrade_request(rng.choice(("/", "/a?b=c", "/%ff"))))
    for _ in range(rng.choice((0, 1, 3))):
        head[rng.randrange(len(head))] = rng.randrange(256)
    if rng.random() < 0.2:
        del head[rng.randrange(len(head)) :]
    data, limit = maybe(rng, bytes(head)), maybe(rng, rng.choice((1, 5, 100)))
    peer = maybe(rng, rng.choice((None, ("127.0.0.1", 1))))
    request, _ = outcome(
        trail,
        f"parse_request({data!r:.200}, header_count_max={limit!r})",
        lambda: parse_request(data, header_count_max=limit, peer=peer),
        (*WRONG, HandshakeError),
    )
    if request is None:
        return
    for name in ("path", "headers", "origin", "subprotocols", "is_upgrade"):
        outcome(trail, f"request.{name}", partial(getattr, request, name))
    outcome(trail, "request.query_params()", request.query_params, WRONG)
    outcome(trail, "check_upgrade(request)", lambda: check_upgrade(request, Options()), (HandshakeError,))
    name = maybe(rng, "Host")
    outcome(trail, f"headers.get({name!r})", lambda: (request.headers.get(name), name in request.headers), WRONG)


def call_answers(rng: random.Random, trail: Trail) -> None:
    kind = rng.choice((Response, Reject))
    status, headers, body = maybe(rng, 404), maybe(rng, {"X-A": "b"}), maybe(rng, b"body")
    made, _ = outcome(
        trail,
        f"{kind.__name__}({status!r}, headers={headers!r}, body={body!r:.50})",
        lambda: kind(status, headers=headers, body=body),
        WRONG,
    )
    server = maybe(rng, rng.choice((None, "me")))
    if made is not None:
        head_only = rng.random() < 0.5
        wire, _ = outcome(
            trail,
            f"encode_response(server_header={server!r})",
            lambda: encode_response(made, head_only=head_only, server_header=server),
            WRONG,
        )
        expect(wire is None or wire.startswith(b"HTTP/1.1 "), f"no response: {wire!r}")
    refusal = HandshakeError(400, "bad")
    outcome(trail, f"encode_refusal({server!r})", lambda: encode_refusal(refusal, server_header=server), WRONG)


def call_accept(rng: random.Random, trail: Trail) -> None:
    subprotocol, headers = maybe(rng, "x"), maybe(rng, {"X-A": "b"})
    accept, _ = outcome(
        trail,
        f"Accept({subprotocol!r}, {headers!r})",
        lambda: Accept(subprotocol=subprotocol, headers=headers, data=strange(rng)),
        WRONG,
    )
    request = a_request(rng)
    key = check_upgrade(request, Options())
    offered = maybe(rng, request.subprotocols)
    wire, _ = outcome(
        trail,
        f"encode_accept({key!r}, {accept!r}, {offered!r})",
        lambda: encode_accept(key, accept or Accept(), offered=offered),
        WRONG,
    )
    expect(wire is None or wire.startswith(b"HTTP/1.1 101 "), f"no 101: {wire!r}")


def call_options(rng: random.Random, trail: Trail) -> None:
    chosen = {rng.choice(FIELDS): strange(rng) for _ in range(rng.choice((1, 1, 2)))}
    options, error = outcome(trail, f"Options({chosen!r:.120})", lambda: Options(**chosen), (OptionsError,))
    if options is None:
        expect(any(name in str(error) for name in FIELDS), f"no field is named: {error}")
        return
    outcome(trail, "water_marks", options.water_marks)
    host = maybe(rng, "127.0.0.1")
    outcome(trail, f"takes_proxy_protocol_from({host!r})", lambda: options.takes_proxy_protocol_from(host), WRONG)


def call_constructors(rng: random.Random, trail: Trail) -> None:
    limit, given = maybe(rng, 100), strange(rng)
    outcome(trail, f"ServerEngine({limit!r})", lambda: ServerEngine(message_bytes_max=limit), WRONG)
    outcome(trail, f"handler_fn({given!r:.60})", lambda: handler_fn(given), WRONG)
    outcome(trail, f"Opcode({given!r:.60})", lambda: Opcode(given), WRONG)


LEAVES = (
    call_parse_header,
    call_unmask,
    call_parse_request,
    call_answers,
    call_accept,
    call_options,
    call_constructors,
)


def leaf_sequence(rng: random.Random, trail: Trail) -> None:
    for _ in range(CALLS):
        rng.choice(LEAVES)(rng, trail)
