"""http.py and handshake.py: every shape of opening request by name, and answers that nothing can be smuggled into."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from email.utils import formatdate, parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uringws.errors import HandshakeError
from uringws.handshake import Accept, Reject, check_upgrade, encode_accept, refusal, select_subprotocol
from uringws.http import Headers, Request, Response, encode_refusal, encode_response, parse_request
from uringws.options import Options

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 1.3, as is its proof
PROOF = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
UPGRADE = {
    "Host": "a.example:9001",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY.decode(),
}
OPTIONS = Options()


def head_of(*lines: str, start: str = "GET / HTTP/1.1", host: bool = True) -> bytes:
    """Make a head of a request line and field lines, with a Host before them unless told not to."""
    return "\r\n".join([start, *(["Host: a"] if host else []), *lines, "", ""]).encode("latin-1")


def upgrade_of(*more: str, start: str = "GET / HTTP/1.1", **changed: str | None) -> bytes:
    """Make an upgrade's head; `sec_websocket_key="x"` changes a field, None takes it away, `more` adds lines."""
    fields = dict(UPGRADE)
    for name, value in changed.items():
        known = next(key for key in fields if key.lower() == name.replace("_", "-"))
        if value is None:
            del fields[known]
        else:
            fields[known] = value
    return head_of(*(f"{name}: {value}" for name, value in fields.items()), *more, start=start, host=False)


def parse(head: bytes, count: int = 100) -> Request:
    return parse_request(head, header_count_max=count)


def refused(head: bytes, status: int, *, options: Options = OPTIONS, count: int = 100) -> HandshakeError:
    """Hold that the head is refused with this status, by a plain answer of one short line that closes."""
    with pytest.raises(HandshakeError) as caught:
        check_upgrade(parse(head, count), options)
    error = caught.value
    assert error.status == status, error
    answer = encode_refusal(error)
    start, _, body = answer.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 %d " % status)
    assert re.search(rb"\r\nConnection: (Upgrade, )?close$", start)
    assert b"\r\nContent-Length: %d\r\n" % len(body) in start
    assert re.fullmatch(rb"[ -~]{5,120}\n", body)
    return error


# Requests that are taken


def test_the_example_of_the_rfc() -> None:
    head = head_of(
        "Host: server.example.com",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY.decode()}",
        "Origin: http://example.com",
        "Sec-WebSocket-Protocol: chat, superchat",
        "Sec-WebSocket-Version: 13",
        start="GET /chat HTTP/1.1",
        host=False,
    )
    request = parse_request(head, header_count_max=100, peer=("192.0.2.1", 5000))
    assert (request.method, request.target, request.http_version) == ("GET", "/chat", "1.1")
    assert (request.path, request.raw_path, request.query) == ("/chat", "/chat", "")
    assert request.origin == "http://example.com"
    assert request.subprotocols == ("chat", "superchat")
    assert request.peer == ("192.0.2.1", 5000)
    assert request.is_upgrade
    key = check_upgrade(request, OPTIONS)
    assert key == KEY
    subprotocol = select_subprotocol(request.subprotocols, ["superchat", "chat"])
    assert encode_accept(key, Accept(subprotocol), offered=request.subprotocols) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + PROOF + b"\r\n"
        b"Sec-WebSocket-Protocol: superchat\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(upgrade_of(upgrade="WebSocket", connection="upgrade"), id="tokens in any case"),
        pytest.param(upgrade_of(connection="keep-alive, Upgrade"), id="Firefox's Connection"),
        pytest.param(upgrade_of("Connection: keep-alive"), id="Connection over two lines"),
        pytest.param(upgrade_of(connection=" \t,, Upgrade ,"), id="empty list elements"),
        pytest.param(upgrade_of(upgrade="h2c, websocket"), id="another protocol offered too"),
        pytest.param(upgrade_of(host="[::1]:9001"), id="IPv6 Host"),
        pytest.param(upgrade_of(host="a:"), id="Host with an empty port"),
        pytest.param(upgrade_of("Content-Length: 0"), id="a body of no bytes"),
        pytest.param(upgrade_of("X: \xff\xfe"), id="obs-text"),
        pytest.param(upgrade_of("X:"), id="an empty value"),
        pytest.param(upgrade_of(sec_websocket_key=KEY.decode() + " \t "), id="whitespace after a value"),
        pytest.param(upgrade_of(sec_websocket_key="/+" * 11 + "=="), id="a key whose last bits are not zero"),
        pytest.param(b"\r\n" + upgrade_of(), id="one empty line before"),
        pytest.param(upgrade_of(start="GET http://A.example:9001/x?y HTTP/1.1"), id="absolute form, RFC 9112 3.2.2"),
        pytest.param(upgrade_of().replace(b"Sec-WebSocket-Key", b"SEC-WEBSOCKET-KEY"), id="names in any case"),
    ],
)
def test_upgrades_taken(head: bytes) -> None:
    request = parse(head)
    assert request.is_upgrade
    assert len(check_upgrade(request, OPTIONS)) == 24


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/", "/", "/", ""),
        ("/a/b?c=d?e", "/a/b", "/a/b", "c=d?e"),
        ("/?", "/", "/", ""),
        ("//a.example/x", "//a.example/x", "//a.example/x", ""),
        ("/caf%C3%A9%20x", "/café x", "/caf%C3%A9%20x", ""),
        ("/%ff%2F", "/�/", "/%ff%2F", ""),
        ("/%zz%", "/%zz%", "/%zz%", ""),
        ("http://a", "/", "/", ""),
        ("HTTPS://a/x?y", "/x", "/x", "y"),
        ("http://a?y", "/", "/", "y"),
    ],
)
def test_targets(target: str, path: str, raw_path: str, query: str) -> None:
    request = parse(head_of(start=f"GET {target} HTTP/1.1"))
    assert (request.target, request.path, request.raw_path, request.query) == (target, path, raw_path, query)


def test_query_params() -> None:
    request = parse(head_of(start="GET /?room=1&room=%C3%A9+x&blank=&flag&=y HTTP/1.1"))
    assert request.query_params() == {"room": ["1", "é x"], "blank": [""], "flag": [""], "": ["y"]}
    assert parse(head_of()).query_params() == {}


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://h:80/x", "h"),
        ("http://h/x", "h:80"),
        ("http://h:/x", "h"),
        ("http://h/x", "h:"),
        ("http://H:080/x", "h"),
        ("ws://h/x", "h"),
        ("ws://h:80/x", "h"),
        ("WSS://h:443/x", "h"),
        ("https://h/x", "h:443"),
        ("wss://h:8443/x", "h:8443"),
        ("http://[::1]/x", "[0:0::1]:80"),
        ("http://[fe80::1%25eth0]:9001/x", "[fe80::1]:9001"),
    ],
)
def test_a_target_and_a_host_that_mean_the_same_authority(target: str, host: str) -> None:
    # RFC 9110 4.2.3: the default port may be left out, and the host's case does not count.
    request = parse(upgrade_of(start=f"GET {target} HTTP/1.1", host=host))
    assert check_upgrade(request, OPTIONS) == KEY
    assert (request.target, request.raw_path, request.query) == (target, "/x", "")


def test_http_1_0_may_name_the_host_in_the_target_alone() -> None:
    request = parse(head_of(start="GET http://a/x HTTP/1.0", host=False))
    assert (request.raw_path, request.http_version) == ("/x", "1.0")


@pytest.mark.parametrize(
    ("sent", "host"),
    [
        ("[fe80::1%eth0]:9001", "[fe80::1]:9001"),  # as websockets, aiohttp and websocket-client send it
        ("[fe80::1%25eth0]", "[fe80::1]"),  # as RFC 6874 writes it
        ("[FE80::A:1%eth0.100]:80", "[FE80::A:1]:80"),
        ("[fe80::1%2]", "[fe80::1]"),
    ],
)
def test_a_zone_means_nothing_here_and_is_taken_from_host(sent: str, host: str) -> None:
    head = upgrade_of(host=sent)
    request = parse(head)
    assert check_upgrade(request, OPTIONS) == KEY
    assert request.headers["host"] == host
    assert request.headers.get_all("Host") == [host]
    assert request.headers.raw[0] == (b"Host", sent.encode()), "as it came"


@pytest.mark.parametrize(
    ("start", "path", "version"),
    [
        ("OPTIONS / HTTP/1.0", "/", "1.0"),  # HAProxy's health check
        ("OPTIONS /x?y HTTP/1.1", "/x", "1.1"),
        ("OPTIONS * HTTP/1.1", "*", "1.1"),  # RFC 9112 3.2.4: the server as a whole
    ],
)
def test_options_is_a_plain_request(start: str, path: str, version: str) -> None:
    request = parse(head_of(start=start, host=version == "1.1"))
    assert (request.method, request.path, request.http_version) == ("OPTIONS", path, version)
    with pytest.raises(HandshakeError) as caught:
        check_upgrade(request, OPTIONS)
    assert caught.value.status == 405


@pytest.mark.parametrize("start", ["GET /health HTTP/1.1", "HEAD /health HTTP/1.1", "GET /health HTTP/1.0"])
def test_plain_requests_are_parsed_and_then_asked_to_upgrade(start: str) -> None:
    request = parse(head_of(start=start))
    assert not request.is_upgrade
    assert request.http_version == start[-3:]
    assert request.origin is None
    assert request.subprotocols == ()
    with pytest.raises(HandshakeError):
        check_upgrade(request, OPTIONS)


def test_http_1_0_needs_no_host() -> None:
    assert parse(head_of(start="GET / HTTP/1.0", host=False)).headers.get("host") is None


def test_an_upgrade_field_of_http_1_0_says_nothing() -> None:
    head = upgrade_of(start="GET / HTTP/1.0")
    assert not parse(head).is_upgrade
    refused(head, 426)


def test_another_upgrade_is_a_plain_request() -> None:
    assert not parse(upgrade_of(upgrade="h2c")).is_upgrade
    assert not parse(upgrade_of(upgrade="websockets")).is_upgrade
    assert not parse(upgrade_of(upgrade="not websocket")).is_upgrade


@pytest.mark.parametrize(
    ("lines", "offered"),
    [
        (["a"], ("a",)),
        (["a, b,c"], ("a", "b", "c")),
        (["b", "a"], ("b", "a")),
        (["a, A, a"], ("a", "A")),
        (["", ","], ()),
    ],
)
def test_subprotocols_are_listed_in_order(lines: list[str], offered: tuple[str, ...]) -> None:
    request = parse(upgrade_of(*(f"Sec-WebSocket-Protocol: {line}" for line in lines)))
    check_upgrade(request, OPTIONS)
    assert request.subprotocols == offered


# Requests that are refused before they are a request


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"", 400, id="nothing"),
        pytest.param(b"abc", 400, id="three bytes"),
        pytest.param(b"\r\n\r\n", 400, id="empty lines"),
        pytest.param(b"\r\n\r\n\r\n", 400, id="more empty lines"),
        pytest.param(head_of()[:-1], 400, id="the last byte missing"),
        pytest.param(head_of() + b"x", 400, id="a byte too many"),
        pytest.param(head_of() + head_of(), 400, id="two pipelined requests"),
        pytest.param(head_of() + b"\r\n\r\n", 400, id="a second blank line"),
        pytest.param(bytes.fromhex("16030100f8010000f40303") + b"\0" * 60, 400, id="TLS ClientHello"),
        pytest.param(bytes.fromhex("16030100f8010000f40303") + b"\r\n\r\n", 400, id="TLS with a blank line"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400, id="SSH"),
        pytest.param(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, id="PROXY v1"),
        pytest.param(b"\r\n\r\n\0\r\nQUIT\n!\x11\0\0\x0c" + head_of(), 400, id="PROXY v2"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", 400, id="bare LF throughout"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, id="bare LF after the request line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nHost: a\r\n\r\n", 400, id="a response"),
        pytest.param(head_of(start="GET /"), 400, id="HTTP/0.9 without a version"),
        pytest.param(head_of(start="GET / HTTP/0.9"), 505, id="HTTP/0.9"),
        pytest.param(head_of(start="GET / HTTP/1.2"), 505, id="HTTP/1.2"),
        pytest.param(head_of(start="GET / HTTP/2.0"), 505, id="HTTP/2.0"),
        pytest.param(head_of(start="GET / HTTP/9.9"), 505, id="HTTP/9.9"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\n", 505, id="the HTTP/2 preface"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="the whole HTTP/2 preface"),
        pytest.param(head_of(start="GET / HTTP/1.10"), 400, id="HTTP/1.10"),
        pytest.param(head_of(start="GET / HTTP/11"), 400, id="HTTP/11"),
        pytest.param(head_of(start="GET / http/1.1"), 400, id="http in lower case"),
        pytest.param(head_of(start="DESCRIBE rtsp://a/ RTSP/1.0"), 400, id="RTSP"),
        pytest.param(head_of(start="SOURCE / ICE/1.0"), 400, id="ICE"),
        pytest.param(head_of(start="GET  / HTTP/1.1"), 400, id="two spaces before the target"),
        pytest.param(head_of(start="GET /  HTTP/1.1"), 400, id="two spaces after the target"),
        pytest.param(head_of(start="GET / HTTP/1.1 "), 400, id="a space after the version"),
        pytest.param(head_of(start=" GET / HTTP/1.1"), 400, id="a space before the method"),
        pytest.param(head_of(start="GET\t/\tHTTP/1.1"), 400, id="tabs"),
        pytest.param(head_of(start="GET /a b HTTP/1.1"), 400, id="a space in the target"),
        pytest.param(head_of(start="G(T / HTTP/1.1"), 400, id="a method that is no token"),
        pytest.param(head_of(start="POST / HTTP/1.1"), 405, id="POST"),
        pytest.param(head_of(start="CONNECT a:80 HTTP/1.1"), 405, id="CONNECT"),
        pytest.param(upgrade_of(start="OPTIONS / HTTP/1.1"), 405, id="OPTIONS that asks for an upgrade"),
        pytest.param(head_of(start="get / HTTP/1.1"), 405, id="get in lower case"),
        pytest.param(head_of(start="GETGET / HTTP/1.1"), 405, id="an unknown method"),
        pytest.param(head_of(start="GET /\0 HTTP/1.1"), 400, id="NUL in the target"),
        pytest.param(head_of(start="GET /\x7f HTTP/1.1"), 400, id="DEL in the target"),
        pytest.param(head_of(start="GET /\xe9 HTTP/1.1"), 400, id="a target that is not ASCII"),
        pytest.param(head_of(start="GET /#x HTTP/1.1"), 400, id="a fragment"),
        pytest.param(head_of(start="GET * HTTP/1.1"), 400, id="asterisk form"),
        pytest.param(head_of(start="GET a:80 HTTP/1.1"), 400, id="authority form"),
        pytest.param(head_of(start="GET x HTTP/1.1"), 400, id="a relative path"),
        pytest.param(head_of(start="GET ?x HTTP/1.1"), 400, id="a query alone"),
        pytest.param(head_of(start="GET http://b/ HTTP/1.1"), 400, id="absolute form, another host"),
        pytest.param(head_of(start="GET http://a:81/ HTTP/1.1"), 400, id="absolute form, another port"),
        pytest.param(head_of(start="GET http://a@b/ HTTP/1.1"), 400, id="absolute form with userinfo"),
        pytest.param(head_of(start="GET http:///x HTTP/1.1"), 400, id="absolute form without authority"),
        pytest.param(head_of(start="GET http://a:/ HTTP/1.1").replace(b"Host: a", b"Host: a:8080"), 400, id="no port"),
        pytest.param(head_of(start="GET https://a:80/ HTTP/1.1"), 400, id="absolute form, the port of another scheme"),
        pytest.param(head_of(start="GET http://a./ HTTP/1.1"), 400, id="absolute form, another name for the root"),
        pytest.param(head_of(start="GET http://%61/ HTTP/1.1"), 400, id="absolute form, an escaped name"),
        pytest.param(head_of(start="GET http://a:8x/ HTTP/1.1"), 400, id="absolute form, no number for a port"),
        pytest.param(head_of(start="GET ftp://a/ HTTP/1.1"), 400, id="absolute form of ftp"),
    ],
)
def test_start_lines_refused(head: bytes, status: int) -> None:
    refused(head, status)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        pytest.param(["X : y"], 400, id="a space before the colon"),
        pytest.param(["X\t: y"], 400, id="a tab before the colon"),
        pytest.param(["X: y", " z"], 400, id="obs-fold by a space"),
        pytest.param(["X: y", "\tz"], 400, id="obs-fold by a tab"),
        pytest.param(["X"], 400, id="no colon"),
        pytest.param([": y"], 400, id="no name"),
        pytest.param(["X(: y"], 400, id="a name that is no token"),
        pytest.param(["X\0: y"], 400, id="NUL in a name"),
        pytest.param(["X\xe9: y"], 400, id="a name that is not ASCII"),
        pytest.param(["X: a\0b"], 400, id="NUL in a value"),
        pytest.param(["X: a\x01b"], 400, id="a control character in a value"),
        pytest.param(["X: a\x7fb"], 400, id="DEL in a value"),
        pytest.param(["X: a\rb"], 400, id="bare CR in a value"),
        pytest.param(["X: a\nb"], 400, id="bare LF in a value"),
        pytest.param(["X: a\nHost: b"], 400, id="a field after a bare LF"),
        pytest.param(["X: a\rHost: b"], 400, id="a field after a bare CR"),
        pytest.param(["X: a\r\rY: b"], 400, id="CR CR"),
        pytest.param(["X: a\n"], 400, id="LF CR LF"),
        pytest.param(["Host: a"], 400, id="Host twice"),
        pytest.param(["host: b"], 400, id="two Hosts that differ"),
        pytest.param(["Transfer-Encoding: chunked"], 413, id="chunked"),
        pytest.param(["Transfer-Encoding: identity"], 400, id="identity"),
        pytest.param(["Transfer-Encoding: gzip"], 400, id="gzip"),
        pytest.param(["Transfer-Encoding: xchunked"], 400, id="xchunked"),
        pytest.param(["Transfer-Encoding: chunked", "Content-Length: 5"], 400, id="TE and CL"),
        pytest.param(["Content-Length: 5", "Transfer-Encoding: chunked"], 400, id="CL and TE"),
        pytest.param(["Content-Length: 5"], 413, id="a body"),
        pytest.param(["Content-Length: 5", "Content-Length: 5"], 400, id="CL twice"),
        pytest.param(["Content-Length: 0", "Content-Length: 5"], 400, id="two CLs that differ"),
        pytest.param(["Content-Length: 0, 5"], 400, id="a list of CLs"),
        pytest.param(["Content-Length: +5"], 400, id="CL with a sign"),
        pytest.param(["Content-Length: -1"], 400, id="a negative CL"),
        pytest.param(["Content-Length: 0x5"], 400, id="a hexadecimal CL"),
        pytest.param(["Content-Length: "], 400, id="an empty CL"),
        pytest.param(["Content-Length: 99999999999999999999999"], 400, id="CL over 64 bits"),
    ],
)
@pytest.mark.parametrize("upgrade", [False, True], ids=["plain", "upgrade"])
def test_fields_refused(lines: list[str], status: int, *, upgrade: bool) -> None:
    # llhttp checks the body of an upgrade request less, so that our own rule must catch some shapes.
    more = [f"{name}: {value}" for name, value in UPGRADE.items() if upgrade and name != "Host"]
    with pytest.raises(HandshakeError) as caught:
        parse(head_of("Y: z", *lines, *more))
    assert caught.value.status in ({status, 413} if upgrade else {status})


def test_a_space_before_the_first_name_is_refused() -> None:
    refused(head_of(" Host: a", host=False), 400)


@pytest.mark.parametrize(
    "host",
    [None, "", "a b", "a/b", "a@b", "a:b", "a, a", "[::1", "é", "a:1:2", "[::1%]", "[%eth0]", "[::1%a/b]"],
    ids=repr,
)
def test_host_is_required_and_valid(host: str | None) -> None:
    refused(upgrade_of(host=host), 400)


@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_header_count_max(count: int) -> None:
    lines = [f"X{number}: y" for number in range(count)]
    assert len(parse(head_of(*lines), count + 1).headers) == count + 1
    refused(head_of(*lines, "Z: z"), 431, count=count + 1)
    assert len(parse(b"\r\n" + head_of(*lines), count + 1).headers) == count + 1


def test_a_bomb_of_headers_is_not_even_parsed() -> None:
    refused(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 4000 + b"\r\n", 431)


# Requests that are not valid upgrades


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(upgrade_of(start="HEAD / HTTP/1.1"), 405, id="HEAD"),
        pytest.param(upgrade_of(upgrade=None), 426, id="no Upgrade"),
        pytest.param(upgrade_of(upgrade=""), 426, id="an empty Upgrade"),
        pytest.param(upgrade_of(upgrade="h2c"), 426, id="another Upgrade"),
        pytest.param(upgrade_of(upgrade="web socket"), 426, id="a misspelt Upgrade"),
        pytest.param(upgrade_of(connection=None), 400, id="no Connection"),
        pytest.param(upgrade_of(connection="close"), 400, id="Connection: close"),
        pytest.param(upgrade_of(connection="keep-alive"), 400, id="Connection: keep-alive"),
        pytest.param(upgrade_of(connection="Upgraded"), 400, id="a longer token in Connection"),
        pytest.param(upgrade_of(sec_websocket_version=None), 426, id="no version"),
        pytest.param(upgrade_of(sec_websocket_version="8"), 426, id="version 8"),
        pytest.param(upgrade_of(sec_websocket_version="013"), 426, id="version 013"),
        pytest.param(upgrade_of(sec_websocket_version="13, 8"), 426, id="a list of versions"),
        pytest.param(upgrade_of("Sec-WebSocket-Version: 13"), 400, id="two versions"),
        pytest.param(upgrade_of(sec_websocket_key=None), 400, id="no key"),
        pytest.param(upgrade_of(sec_websocket_key=""), 400, id="an empty key"),
        pytest.param(upgrade_of(sec_websocket_key="dGhlIHNhbXBsZQ=="), 400, id="a key of 10 bytes"),
        pytest.param(upgrade_of(sec_websocket_key="A" * 24), 400, id="a key of 18 bytes"),
        pytest.param(upgrade_of(sec_websocket_key="A" * 22), 400, id="a key without padding"),
        pytest.param(upgrade_of(sec_websocket_key="-_" * 11 + "=="), 400, id="a key in base64url"),
        pytest.param(upgrade_of(sec_websocket_key=f"{KEY.decode()}, {KEY.decode()}"), 400, id="a list of keys"),
        pytest.param(upgrade_of(f"Sec-WebSocket-Key: {KEY.decode()}"), 400, id="two keys"),
        pytest.param(upgrade_of("Sec-WebSocket-Protocol: a b"), 400, id="a subprotocol with a space"),
        pytest.param(upgrade_of("Sec-WebSocket-Protocol: \xe9"), 400, id="a subprotocol that is not ASCII"),
        pytest.param(upgrade_of("Sec-WebSocket-Protocol: a;q=1"), 400, id="a subprotocol with a parameter"),
    ],
)
def test_upgrades_refused(head: bytes, status: int) -> None:
    error = refused(head, status)
    assert error.reason == "bad_request"


def test_426_names_version_and_protocol() -> None:
    answer = encode_refusal(refused(upgrade_of(sec_websocket_version="12"), 426))
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer
    assert b"\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n" in answer


def test_405_names_the_allowed_methods() -> None:
    assert b"\r\nAllow: GET, HEAD, OPTIONS\r\n" in encode_refusal(refused(head_of(start="PUT / HTTP/1.1"), 405))
    assert b"\r\nAllow: GET\r\n" in encode_refusal(refused(upgrade_of(start="HEAD / HTTP/1.1"), 405))


@pytest.mark.parametrize(
    "field", [("X", "a\r\nSet-Cookie: b"), ("X\r\nY", "a"), ("X", "\N{SNOWMAN}"), ("Upgrade", "h2c")]
)
def test_the_fields_of_a_refusal_cannot_break_out_of_their_lines(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        encode_refusal(HandshakeError(400, "no", (field,)))


# Origins

RULES: list[str | re.Pattern[str] | None] = [
    "https://a.example",
    re.compile(r"https://[a-z]+\.b\.example(:\d+)?"),
    "null",
]


@pytest.mark.parametrize("origin", ["https://a.example", "https://x.b.example", "https://x.b.example:8443", "null"])
def test_origins_let_in(origin: str) -> None:
    options = Options(origins=RULES)
    assert check_upgrade(parse(upgrade_of(f"Origin: {origin}")), options) == KEY


@pytest.mark.parametrize(
    "origin",
    [
        "http://a.example",
        "https://a.example:443",
        "https://a.example.evil",
        "https://b.example",
        "https://x.b.example.evil",
        "https://evil/https://x.b.example",
        "https://a.example https://evil",
        "",
    ],
)
def test_origins_kept_out(origin: str) -> None:
    assert refused(upgrade_of(f"Origin: {origin}"), 403, options=Options(origins=RULES)).reason == "origin"


def test_requests_without_origin_need_a_none_among_the_rules() -> None:
    assert refused(upgrade_of(), 403, options=Options(origins=RULES)).reason == "origin"
    assert check_upgrade(parse(upgrade_of()), Options(origins=[*RULES, None])) == KEY
    refused(upgrade_of("Origin: https://c.example"), 403, options=Options(origins=[None]))
    refused(upgrade_of(), 403, options=Options(origins=[]))


def test_two_origins_are_refused() -> None:
    refused(upgrade_of("Origin: https://a.example", "Origin: https://a.example"), 400, options=Options(origins=RULES))


# Headers


def test_headers_are_a_case_insensitive_mapping() -> None:
    headers = parse(head_of("Cookie: a=1", "COOKIE: b=2", "X-Y: \xe9")).headers
    assert headers["host"] == headers["HOST"] == "a"
    assert headers["cookie"] == headers.get("Cookie") == "a=1; b=2"
    assert headers.get_all("Cookie") == ["a=1", "b=2"]
    assert headers.get("x-y") == "é"
    assert list(headers) == ["host", "cookie", "x-y"]
    assert len(headers) == 3
    assert dict(headers) == {"host": "a", "cookie": "a=1; b=2", "x-y": "é"}
    assert headers.raw == ((b"Host", b"a"), (b"Cookie", b"a=1"), (b"COOKIE", b"b=2"), (b"X-Y", b"\xe9"))
    assert "X-y" in headers
    assert repr(Headers([(b"A", b"b")])) == "Headers([(b'A', b'b')])"


def test_lines_of_one_name_are_joined_with_commas_but_cookies_with_semicolons() -> None:
    # RFC 9110 5.3; a comma may be part of a cookie's value, so that RFC 9113 8.2.3 joins these with "; ".
    headers = parse(head_of("X: a", "X: b, c", "Cookie: a=1; b=2", "Cookie: c=3,4")).headers
    assert headers["x"] == headers.get("X") == "a, b, c"
    assert headers["Cookie"] == headers.get("COOKIE") == "a=1; b=2; c=3,4"


@pytest.mark.parametrize("name", ["", "z", "é", "\u2603", "host\0"])
def test_headers_not_there(name: str) -> None:
    headers = parse(head_of()).headers
    assert name not in headers
    assert 1 not in headers  # type: ignore[comparison-overlap]
    assert headers.get(name) is None
    assert headers.get(name, "default") == "default"
    assert headers.get_all(name) == []
    with pytest.raises(KeyError, match=re.escape(repr(name))):
        headers[name]


def test_headers_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        parse(head_of()).headers["a"] = "b"  # type: ignore[index]


# Answers


def test_an_accept_with_everything() -> None:
    accept = Accept("b", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=\xe9")], data=object())
    assert encode_accept(KEY, accept, offered=["a", "b"], server_header="uringws") == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + PROOF + b"\r\n"
        b"Set-Cookie: a=1\r\n"
        b"Set-Cookie: b=\xe9\r\n"
        b"Sec-WebSocket-Protocol: b\r\n"
        b"Server: uringws\r\n"
        b"\r\n"
    )


def test_a_subprotocol_that_was_not_offered_is_the_callers_error() -> None:
    for offered in ((), ("a",), ("A",)):
        with pytest.raises(ValueError, match="was not offered"):
            encode_accept(KEY, Accept("b"), offered=offered)


@pytest.mark.parametrize(
    ("offered", "supported", "selected"),
    [
        (("a", "b"), ("b", "a"), "b"),
        (("a",), ("b", "a"), "a"),
        (("A",), ("a",), None),
        ((), ("a",), None),
        (("a",), (), None),
    ],
)
def test_the_server_prefers(offered: tuple[str, ...], supported: tuple[str, ...], selected: str | None) -> None:
    assert select_subprotocol(offered, supported) == selected


def undated(answer: bytes) -> bytes:
    """The answer without its one Date, which must be of now and in the form of RFC 9110 5.6.7."""
    head, end, body = answer.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Date: ")]
    (date,) = [line for line in head.split(b"\r\n") if line.lower().startswith(b"date:")]
    assert re.fullmatch(rb"Date: (Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date)
    assert abs(parsedate_to_datetime(date[6:].decode()).timestamp() - time.time()) < 60
    return b"\r\n".join(lines) + end + body


def test_a_response() -> None:
    response = Response(200, {"Content-Type": "application/json"}, b"{}")
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer: x\r\n"
        b"Content-Length: 2\r\nConnection: close\r\n\r\n"
    )
    assert undated(encode_response(response, server_header="x")) == head + b"{}"
    assert undated(encode_response(response, head_only=True, server_header="x")) == head


@pytest.mark.parametrize("moment", [0, 951_782_400, 1_709_209_799, 1_709_209_800, 4_102_444_799])
def test_the_date_is_that_of_the_answer(moment: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for now in (moment, moment + 0.999, moment + 1):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        expected = formatdate(int(now), usegmt=True).encode()
        assert b"\r\nDate: %b\r\n" % expected in encode_response(Response())
        assert b"\r\nDate: %b\r\n" % expected in encode_refusal(refusal("timeout"))


def test_a_date_given_by_the_handler_replaces_ours() -> None:
    answer = encode_response(Response(headers={"date": "Thu, 01 Jan 1970 00:00:00 GMT"}))
    assert answer.lower().count(b"date:") == 1
    assert b"\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n" in answer
    assert encode_response(Response(headers={"X-Date": "x"})).count(b"\r\nDate:") == 1
    assert encode_response(Response(headers={"X": "date: x"})).count(b"\r\nDate:") == 1


def test_a_response_of_text() -> None:
    assert undated(encode_response(Response(404, body="né\n"))) == (
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 4\r\nConnection: close\r\n\r\nn\xc3\xa9\n"
    )
    html = encode_response(Response(200, {"content-type": "text/html"}, "<p>"))
    assert html.count(b"ontent-") == 2
    assert b"\r\ncontent-type: text/html\r\n" in html


def test_a_response_without_body() -> None:
    def encode(status: int) -> bytes:
        return undated(encode_response(Response(status)))

    # RFC 9110 8.6: never with a 204; with a 304 it would have to be that of the 200 which it stands for.
    assert encode(204) == b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    assert encode(304) == b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n"
    # RFC 9110 15.3.6: a 205 says in this way that it ends here.
    assert encode(205) == b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert encode(299) == b"HTTP/1.1 299 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    for status in (204, 205, 304):
        with pytest.raises(ValueError, match="no body"):
            Response(status, body="x")


def test_a_rejection() -> None:
    assert (
        undated(encode_response(Reject()))
        == b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    assert b"\r\nLocation: /x\r\n" in encode_response(Reject(302, {"Location": "/x"}))
    assert b"\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n" in encode_response(Reject(426))


@pytest.mark.parametrize(("kind", "low"), [(Response, 200), (Reject, 300)])
def test_statuses(kind: type[Response], low: int) -> None:
    for status in (low, 599):
        assert encode_response(kind(status)).startswith(b"HTTP/1.1 %d " % status)
    for status in (-1, 0, 101, low - 1, 600, 1000):
        with pytest.raises(ValueError, match=str(status)):
            kind(status)


@pytest.mark.parametrize("status", ["200", 200.0, None, True], ids=repr)
def test_a_status_is_an_int(status: Any) -> None:
    with pytest.raises(TypeError, match="status"):
        Response(status)


@pytest.mark.parametrize("body", [None, 1, bytearray(b"x"), ["x"]], ids=repr)
def test_a_body_is_bytes_or_str(body: Any) -> None:
    with pytest.raises(TypeError, match="body"):
        Response(200, body=body)


def test_a_body_that_has_no_utf8_is_refused_when_it_is_made() -> None:
    with pytest.raises(UnicodeEncodeError):
        Response(200, body="\ud800")


KINDS = pytest.mark.parametrize(
    "make", [lambda h: Accept(headers=h), lambda h: Response(headers=h), lambda h: Reject(headers=h)]
)


@KINDS
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\nb"),
        ("X", "a\rb"),
        ("X", "a\0b"),
        ("X", "a\x7f"),
        ("X", "\u2603"),
        ("X\r\nY", "a"),
        ("X:", "a"),
        ("X Y", "a"),
        ("", "a"),
        ("é", "a"),
    ],
)
def test_headers_cannot_split_an_answer(make: Any, name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        make([(name, value)])
    with pytest.raises(ValueError, match="header"):
        make({name: value})


@KINDS
@pytest.mark.parametrize(
    "name",
    [
        "Upgrade",
        "connection",
        "CONTENT-LENGTH",
        "Transfer-Encoding",
        "Sec-WebSocket-Accept",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Extensions",
        "Server",
    ],
)
def test_managed_headers_cannot_be_overridden(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match="managed"):
        make({name: "x"})


@KINDS
@pytest.mark.parametrize("headers", [[("a", 1)], [(b"a", b"b")], {"a": None}], ids=repr)
def test_headers_are_of_str(make: Any, headers: Any) -> None:
    with pytest.raises(TypeError, match="must be str"):
        make(headers)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("bad_request", 400),
        ("origin", 403),
        ("handler", 500),
        ("timeout", 408),
        ("sessions_max", 503),
        ("sessions_per_ip_max", 429),
        ("handshakes_max", 503),
        ("memory", 503),
        ("draining", 503),
    ],
)
def test_refusals_that_lie_not_in_the_request(reason: Any, status: int) -> None:
    error = refusal(reason)
    assert (error.status, error.reason) == (status, reason)
    assert encode_refusal(error, server_header="x").startswith(b"HTTP/1.1 %d " % status)


def test_a_refused_head_request_gets_no_body() -> None:
    assert undated(encode_refusal(refusal("draining"), head_only=True)).endswith(b"\r\nConnection: close\r\n\r\n")


# Properties

field_names = st.from_regex(r"\A[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}\Z").map(str.encode)
field_values = st.from_regex(rb"\A([!-~\x80-\xff]([\t -~\x80-\xff]{0,20}[!-~\x80-\xff])?)?\Z")
NOT_LET_THROUGH = {b"host", b"transfer-encoding", b"content-length"}


@given(
    st.lists(st.tuples(field_names.filter(lambda name: name.lower() not in NOT_LET_THROUGH), field_values), max_size=20)
)
def test_fields_come_out_as_they_went_in(fields: list[tuple[bytes, bytes]]) -> None:
    lines = b"".join(b"%b:%b\r\n" % (name, b" \t" + value + b"\t ") for name, value in fields)
    request = parse(b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n")
    assert request.headers.raw == ((b"Host", b"a"), *fields)


def outcome(head: bytes) -> int:
    """Parse, check and answer any bytes; nothing but a HandshakeError may be raised."""
    try:
        request = parse(head)
        offered = request.subprotocols
        assert request.raw_path.startswith("/") or (request.method, request.raw_path) == ("OPTIONS", "*")
        assert isinstance(request.path, str)
        request.query_params()
        key = check_upgrade(request, OPTIONS)
        assert encode_accept(key, Accept(), offered=offered).endswith(b"\r\n\r\n")
    except HandshakeError as refused_by:
        error = refused_by
    else:
        return 101
    assert encode_refusal(error).startswith(b"HTTP/1.1 %d " % error.status)
    assert error.status in {400, 405, 413, 426, 431, 505}
    return error.status


@given(st.binary(max_size=300))
@example(b"GET / HTTP/1.1\r\n\r\n")
def test_any_bytes_are_refused(data: bytes) -> None:
    assert outcome(data) != 101
    assert outcome(data + b"\r\n\r\n") != 101


tokens_of_http = st.sampled_from(
    [
        *(f"{name}: {value}\r\n".encode() for name, value in UPGRADE.items()),
        *(
            b"GET",
            b"HEAD",
            b"OPTIONS",
            b"POST",
            b" ",
            b"*",
            b"/",
            b"/x?y",
            b"http://a/",
            b"HTTP/1.1",
            b"HTTP/1.0",
            b"HTTP/2.0",
        ),
        *(b"\r\n", b"\r", b"\n", b":", b",", b"\t", b"\0", b"Host: b\r\n", b"X: ", b"Connection", b"Upgrade", b"13"),
        *(b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"GET / HTTP/1.1\r\n", b"\r\n\r\n", b"\xff"),
    ]
)


@given(st.lists(tokens_of_http, max_size=16).map(b"".join))
def test_any_words_of_http_are_taken_or_refused(data: bytes) -> None:
    outcome(data)
    outcome(b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n")


@given(st.integers(0, len(upgrade_of()) - 1), st.integers(0, 255))
def test_one_wrong_byte(position: int, byte: int) -> None:
    head = bytearray(upgrade_of())
    head[position] = byte
    outcome(bytes(head))


@given(st.integers(0, len(upgrade_of()) - 1), st.binary(min_size=1, max_size=6))
def test_bytes_put_in_anywhere(position: int, data: bytes) -> None:
    head = upgrade_of()
    outcome(head[:position] + data + head[position:])


@given(st.integers(0, len(upgrade_of()) - 1))
def test_every_prefix_is_refused(length: int) -> None:
    assert outcome(upgrade_of()[:length]) == 400


@given(st.binary(min_size=16, max_size=16))
def test_every_key_has_its_proof(nonce: bytes) -> None:
    key = base64.b64encode(nonce)
    proof = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    request = parse(upgrade_of(sec_websocket_key=key.decode()))
    assert b"\r\nSec-WebSocket-Accept: %b\r\n\r\n" % proof in encode_accept(check_upgrade(request, OPTIONS), Accept())


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_header_adds_a_line(name: str, value: str) -> None:
    plain = encode_accept(KEY, Accept())
    try:
        accept = Accept(headers={name: value})
    except ValueError:
        return
    lines = encode_accept(KEY, accept).split(b"\r\n")
    assert len(lines) == len(plain.split(b"\r\n")) + 1
    assert not any(control in line for line in lines for control in (b"\r", b"\n", b"\0"))


@given(st.text(max_size=20))
def test_any_name_can_be_looked_up(name: str) -> None:
    headers = parse(head_of("X: y")).headers
    assert (name in headers) == (name.lower() in ("host", "x"))
    assert (headers.get(name) is not None) == (name in headers)


@pytest.mark.parametrize("answer", [Response, Reject, Accept])
@pytest.mark.parametrize("text", ["ok", b"ok"])
def test_a_text_in_the_place_of_the_headers_is_refused_with_the_remedy(answer: Any, text: object) -> None:
    with pytest.raises(TypeError, match="headers are a mapping or pairs"):
        answer(*([None] if answer is Accept else [403]), text)
