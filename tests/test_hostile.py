"""Hostile inputs by name: the cost of each is bounded while it lasts, and nothing is leaked afterwards.

Other files test peers that leave at every byte (test_departures), that do not read, or that write to a paused session
(test_backpressure), that never end a handshake or stay silent (test_liveness); shapes of requests and of frames, each
on its own (test_handshake, test_frame, test_engine).
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from codec import encode_header
from servers import EchoRecorder, ReactorThread, Recorder, settle, wait_until
from uringws import Connection, Message, Options, handler_fn
from uringws.backend import Backend
from wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    Peer,
    close_frame,
    frame,
    server_frame,
    upgrade_request,
)

KEY = b"\x37\xfa\x21\x3d"
MIB = 1 << 20

OPTIONS = Options(message_bytes_max=MIB, handshake_seconds_max=1.0, close_seconds_max=0.5)


def echo(conn: Connection, _: Message) -> None:
    conn.echo()


@pytest.fixture
def server(backend: Backend) -> Iterator[ReactorThread]:
    """An echo server that may hold nothing once the hostile peers have gone."""
    with ReactorThread(handler_fn(echo), backend=backend, options=OPTIONS) as server:
        yield server
        settle(server)


def memory_bytes(server: ReactorThread) -> int:
    """The memory of all sessions now."""
    return server.ask(lambda: server.reactor.stats().memory_bytes)


def header(opcode: int, payload_bytes: int, *, fin: bool = True) -> bytes:
    """The header of a frame whose payload need not exist."""
    return encode_header(opcode, payload_bytes, fin=fin, key=KEY)


@contextlib.contextmanager
def writing(peer: Peer, data: bytes, times: int = 1) -> Iterator[threading.Thread]:
    """Write in a thread of its own, until the context is left or the server ends it."""

    def write() -> None:
        with contextlib.suppress(OSError):
            for _ in range(times):
                peer.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield thread
    finally:
        with contextlib.suppress(OSError):
            peer.sock.shutdown(socket.SHUT_RDWR)
        thread.join()


FOR_EVER = 1 << 40


def assert_alive(server: ReactorThread) -> None:
    """Other sessions are served as usual."""
    with Peer.connect(server.address) as peer:
        peer.send(TEXT, b"alive?")
        assert peer.read_frame() == Frame(TEXT, b"alive?")
        assert peer.shake_hands() == 1000


# ---- lengths that lie


@pytest.mark.parametrize(
    ("bomb", "code"),
    [
        pytest.param(header(BINARY, (1 << 63) - 1), 1009, id="2**63-1"),
        pytest.param(header(TEXT, 1 << 62), 1009, id="2**62"),
        pytest.param(header(BINARY, 1 << 32), 1009, id="2**32"),
        pytest.param(header(BINARY, MIB + 1), 1009, id="one-over-the-limit"),
        pytest.param(header(BINARY, 1 << 63), 1002, id="2**63"),
        pytest.param(header(BINARY, (1 << 64) - 1), 1002, id="2**64-1"),
        pytest.param(header(PING, (1 << 63) - 1), 1002, id="ping-of-2**63-1"),
        pytest.param(frame(TEXT, b"x", fin=False) + header(CONTINUATION, (1 << 63) - 1), 1009, id="sum-of-2**63"),
        pytest.param(frame(TEXT, b"x", fin=False) + header(CONTINUATION, MIB), 1009, id="sum-one-over"),
    ],
)
def test_a_length_bomb_is_refused_at_its_header(server: ReactorThread, bomb: bytes, code: int) -> None:
    with Peer.connect(server.address) as peer:
        peer.write(bomb)
        assert peer.read_close() == code
        assert memory_bytes(server) == 0
        peer.read_eof()
    assert_alive(server)


def test_announced_lengths_cost_nothing_until_their_bytes_come(server: ReactorThread) -> None:
    with contextlib.ExitStack() as peers:
        for _ in range(100):
            peer = peers.enter_context(Peer.connect(server.address))
            peer.write(header(BINARY, MIB) + b"x")
        with Peer.connect(server.address) as last:  # served after all of them
            last.shake_hands()
        assert memory_bytes(server) <= 100 * 8192
    assert_alive(server)


# ---- fragments


def test_a_million_fragments_of_one_byte(server: ReactorThread) -> None:
    count = 1_000_000
    stream = (
        frame(BINARY, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) * (count - 2) + frame(CONTINUATION, b"c")
    )
    with Peer.connect(server.address) as peer, writing(peer, stream):
        assert peer.read_frame() == Frame(BINARY, b"a" + b"b" * (count - 2) + b"c")
        wait_until(lambda: memory_bytes(server) == 0)  # buffers of zero-copy sends are released a little later


def test_fragments_without_end_are_refused_at_the_limit(server: ReactorThread) -> None:
    with Peer.connect(server.address) as peer:
        fragments = frame(TEXT, b"x" * 1000, fin=False) + frame(CONTINUATION, b"x" * 1000, fin=False) * 3000
        with writing(peer, fragments):
            assert peer.read_close() == 1009
        assert memory_bytes(server) == 0
    assert_alive(server)


def test_empty_fragments_without_end_cost_nothing(server: ReactorThread) -> None:
    with Peer.connect(server.address) as peer:
        peer.write(frame(TEXT, b"begun", fin=False))
        with writing(peer, frame(CONTINUATION, b"", fin=False) * 200_000) as writer:
            writer.join()
            peer.send(PING, b"all seen?")
            assert peer.read_frame() == Frame(PONG, b"all seen?")
            assert memory_bytes(server) < 8192
            peer.send(CONTINUATION, b", ended")
            assert peer.read_frame() == Frame(TEXT, b"begun, ended")


# ---- control frames


def test_a_flood_of_pings_from_a_peer_that_reads_is_answered_in_order(server: ReactorThread) -> None:
    pings = [struct.pack("!I", number) for number in range(50_000)]
    with Peer.connect(server.address) as peer, writing(peer, b"".join(frame(PING, ping) for ping in pings)):
        expected = b"".join(server_frame(PONG, ping) for ping in pings)
        assert peer.read_exactly(len(expected)) == expected


def test_a_flood_of_pongs_is_borne_in_silence(server: ReactorThread) -> None:
    with (
        Peer.connect(server.address) as peer,
        writing(peer, frame(PONG, b"nobody asked") * 50_000 + frame(TEXT, b"end")),
    ):
        assert peer.read_frame() == Frame(TEXT, b"end")


def test_control_frames_between_all_fragments(server: ReactorThread) -> None:
    count = 5000
    parts = [frame(PING, struct.pack("!I", number)) + frame(CONTINUATION, b"x", fin=False) for number in range(count)]
    stream = frame(TEXT, b"", fin=False) + b"".join(parts) + frame(PONG, b"") + frame(CONTINUATION, b"")
    with Peer.connect(server.address) as peer, writing(peer, stream):
        expected = b"".join(server_frame(PONG, struct.pack("!I", number)) for number in range(count))
        assert peer.read_exactly(len(expected)) == expected
        assert peer.read_frame() == Frame(TEXT, b"x" * count)


ILLEGAL_CLOSES: dict[str, tuple[bytes, int]] = {
    "one-byte": (frame(CLOSE, b"\x03"), 1002),
    **{f"code-{code}": (frame(CLOSE, struct.pack("!H", code)), 1002) for code in (0, 1, 999, 1004, 1005, 1006, 1015)},
    **{f"code-{code}": (frame(CLOSE, struct.pack("!H", code)), 1002) for code in (1016, 1100, 2000, 2999, 5000, 65535)},
    "reason-not-utf-8": (frame(CLOSE, b"\x03\xe8\xff\xfe"), 1007),
    "reason-cut-in-a-character": (frame(CLOSE, b"\x03\xe8" + "é".encode()[:1]), 1007),
    "reason-a-surrogate": (frame(CLOSE, b"\x03\xe8\xed\xa0\x80"), 1007),
    "126-bytes": (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "64-bit-length": (header(CLOSE, 1 << 40), 1002),
    "fragmented": (frame(CLOSE, b"\x03\xe8", fin=False), 1002),
    "reserved-bit": (frame(CLOSE, b"\x03\xe8", rsv=4), 1002),
    "unmasked": (frame(CLOSE, b"\x03\xe8", key=None), 1002),
}


def test_close_frames_of_every_illegal_shape(server: ReactorThread) -> None:
    for name, (illegal, code) in ILLEGAL_CLOSES.items():
        with Peer.connect(server.address) as peer:
            peer.write(frame(TEXT, b"before") + illegal + frame(TEXT, b"after"))
            assert peer.read_frame() == Frame(TEXT, b"before"), name
            assert peer.read_close() == code, name
            peer.read_eof()


def test_data_after_a_close_frame_is_not_heard(backend: Backend, recorder: EchoRecorder) -> None:
    with ReactorThread(recorder, backend=backend, options=OPTIONS) as server:
        with Peer.connect(server.address) as peer:
            with writing(peer, close_frame(1000, "bye") + frame(TEXT, b"late") * 100_000 + close_frame(4000)):
                assert peer.read_close() == 1000
                assert memory_bytes(server) == 0
            recorder.wait_for("close")
        settle(server)
    assert [event[0] for event in recorder.events] == ["open", "close"]


class CloseAtOnce(Recorder):
    """A handler that closes at the first message."""

    def on_message(self, conn: Connection, message: Message) -> None:
        super().on_message(conn, message)
        conn.close(4000)


@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
def test_a_peer_that_floods_after_our_close_frame_is_cut(backend: Backend, *, paused: bool) -> None:
    class Handler(CloseAtOnce):
        def on_message(self, conn: Connection, message: Message) -> None:
            if paused:
                conn.pause_reading()
            super().on_message(conn, message)

    recorder = Handler()
    with ReactorThread(recorder, backend=backend, options=OPTIONS) as server:
        with Peer.connect(server.address) as peer:
            peer.send(TEXT, b"first")
            assert peer.read_close() == 4000
            start = time.monotonic()
            with writing(peer, frame(BINARY, bytes(10_000)) * 100, FOR_EVER):
                most = 0
                while (stats := server.ask(server.reactor.stats)).sessions:
                    assert time.monotonic() - start < 5, stats
                    most = max(most, stats.memory_bytes)
            assert recorder.wait_for("close")[0][2] == 1006
        # Input beyond the session's share of a turn is held: at most the pool, in a block twice the size.
        assert most <= 2 * OPTIONS.receive_buffers * OPTIONS.receive_buffer_bytes
        settle(server)
    assert len(recorder.of("message")) == 1


# ---- text


BAD_TEXTS = [
    b"\xff",
    b"ok\x80",
    b"\xc0\xaf",
    b"\xc1\xbf",
    b"\xe0\x80\xaf",
    b"\xe0\x9f\xbf",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xf0\x80\x80\xaf",
    b"\xf0\x8f\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xc3\x28",
    b"\xe2\x82\x28",
    b"\xe2\x28\xa1",
    b"\xf0\x28\x8c\xbc",
    b"cut \xe2\x82",
    b"cut \xf0\x9f\x98",
]


def test_invalid_utf_8_split_at_each_position(server: ReactorThread) -> None:
    for bad in BAD_TEXTS:
        for at in range(len(bad) + 1):
            fragments = frame(TEXT, bad[:at], fin=False), frame(CONTINUATION, bad[at:])
            whole = frame(TEXT, bad)
            for first, second in (fragments, (whole[: 6 + at], whole[6 + at :])):
                with Peer.connect(server.address) as peer:
                    peer.write(first)
                    peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    with contextlib.suppress(ConnectionError):  # it may be refused already
                        peer.write(second)
                    assert peer.read_close() == 1007, (bad, at)


# ---- requests


def read_all(peer: Peer) -> bytes:
    """All bytes until the server closes; a reset ends them too, because the server did not read the rest of a bomb."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := peer.sock.recv(65536):
            received += chunk
    return received


def only_answer(server: ReactorThread, request: bytes) -> int:
    """The status of the one response that the bytes get before the server ends the connection."""
    with Peer.dial(server.address) as peer, writing(peer, request):
        received = read_all(peer)
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", received)) == 1, received
    assert re.search(rb"(?im)^connection: .*\bclose\r$", received)
    return int(received.split()[1])


def request_with(*lines: str) -> bytes:
    return upgrade_request().removesuffix(b"\r\n") + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


HEADER_BOMBS: dict[str, bytes] = {
    "one-long-line": request_with("X-Long: " + "x" * 17_000),
    "one-line-without-end": upgrade_request().removesuffix(b"\r\n") + b"X-Endless: " + b"x" * MIB,
    "one-request-line-without-end": b"GET /" + b"x" * MIB,
    "many-short-lines": request_with(*["A: b"] * 2500),
    "more-lines-than-allowed": request_with(*[f"X-{number}: y" for number in range(101)]),
    "lines-without-end": upgrade_request().removesuffix(b"\r\n") + b"A: b\r\n" * 100_000,
}


@pytest.mark.parametrize("bomb", HEADER_BOMBS)
def test_a_header_bomb_is_answered_431(server: ReactorThread, bomb: str) -> None:
    assert only_answer(server, HEADER_BOMBS[bomb]) == 431
    assert memory_bytes(server) < 3 * OPTIONS.header_bytes_max + OPTIONS.receive_buffer_bytes
    assert_alive(server)


def test_slow_header_bombs_hold_only_their_bytes(server: ReactorThread) -> None:
    with contextlib.ExitStack() as peers:
        for _ in range(100):
            peer = peers.enter_context(Peer.dial(server.address))
            peer.write(b"GET / HTTP/1.1\r\nX-Trickle: x")
        with Peer.connect(server.address) as last:
            last.shake_hands()
        assert memory_bytes(server) <= 100 * 4200
    assert_alive(server)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
PLAIN = b"GET / HTTP/1.1\r\nHost: localhost\r\n"

SMUGGLING: dict[str, bytes] = {
    "content-length": PLAIN + b"Content-Length: 5\r\n\r\n" + b"12345" + SMUGGLED,
    "content-length-and-chunked": PLAIN
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    + SMUGGLED,
    "chunked-and-content-length": PLAIN
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    + SMUGGLED,
    "two-content-lengths": PLAIN + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + SMUGGLED,
    "content-length-list": PLAIN + b"Content-Length: 0, 44\r\n\r\n" + SMUGGLED,
    "content-length-signed": PLAIN + b"Content-Length: +44\r\n\r\n" + SMUGGLED,
    "chunked-obscured": PLAIN + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked-twice": PLAIN + b"Transfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "space-before-colon": PLAIN + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "folded-line": PLAIN + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "nul-in-a-line": PLAIN + b"X: a\0b\r\n\r\n" + SMUGGLED,
    "bare-cr": PLAIN + b"X: a\rTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED,
    "two-hosts": PLAIN + b"Host: elsewhere\r\n\r\n" + SMUGGLED,
    "post": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 44\r\n\r\n" + SMUGGLED,
    "connect": b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22\r\n\r\n" + SMUGGLED,
    "http-0.9": b"GET /\r\n\r\n" + SMUGGLED,
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "two-requests": PLAIN + b"\r\n" + SMUGGLED,
    "many-requests": (PLAIN + b"\r\n") * 1000,
    "head-then-get": b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED,
    "empty-lines-before": b"\r\n\r\n" + SMUGGLED + SMUGGLED,
}


@pytest.mark.parametrize("shape", SMUGGLING)
def test_bytes_after_a_request_are_never_another_request(server: ReactorThread, shape: str) -> None:
    assert only_answer(server, SMUGGLING[shape]) >= 400


@pytest.mark.parametrize("field", ["Content-Length: 44", "Transfer-Encoding: chunked"])
def test_an_upgrade_with_a_body_is_refused(server: ReactorThread, field: str) -> None:
    assert only_answer(server, request_with(field) + SMUGGLED) == 413


@pytest.mark.parametrize("next_request", [SMUGGLED, upgrade_request()], ids=["get", "upgrade"])
def test_a_request_after_an_upgrade_is_read_as_frames(server: ReactorThread, next_request: bytes) -> None:
    with Peer.connect(server.address, then=next_request) as peer:
        assert peer.read_close() == 1002
        peer.read_eof()


CLIENT_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(range(154))
NOISE: dict[str, bytes] = {
    "tls-client-hello": CLIENT_HELLO,
    "tls-first-byte": CLIENT_HELLO[:1],
    "ssl-2": bytes.fromhex("802e010002001500000010"),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "smtp": b"EHLO localhost\r\n\r\n",
    "websocket-frame": frame(TEXT, b"too soon"),
    "zeros": bytes(1000),
    "rdp": bytes.fromhex("0300001300000000000000000000"),
    "lower-case-method": b"get / HTTP/1.1\r\n\r\n",
    "proxy-v1": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + upgrade_request(),
    "proxy-v2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12) + upgrade_request(),
}


@pytest.mark.parametrize("noise", NOISE)
def test_bytes_other_than_http_are_refused_at_once(server: ReactorThread, noise: str) -> None:
    start = time.monotonic()
    assert only_answer(server, NOISE[noise]) == 400
    assert time.monotonic() - start < OPTIONS.handshake_seconds_max / 2  # type: ignore[operator]


def test_slow_loris_is_cut_at_the_deadline_at_any_rate(server: ReactorThread) -> None:
    request = upgrade_request(headers=[("X-Padding", "x" * 1000)])

    def trickle(pause: float, statuses: dict[float, tuple[int, float]]) -> None:
        start = time.monotonic()
        with Peer.dial(server.address) as peer:
            peer.sock.settimeout(pause)
            for at in range(len(request) - 1):
                peer.write(request[at : at + 1])
                with contextlib.suppress(TimeoutError):
                    statuses[pause] = int(peer.sock.recv(4096).split()[1]), time.monotonic() - start
                    return

    statuses: dict[float, tuple[int, float]] = {}
    pauses = (0.002, 0.01, 0.05, 0.2, 0.45)
    loris = [threading.Thread(target=trickle, args=(pause, statuses)) for pause in pauses]
    for thread in loris:
        thread.start()
    for thread in loris:
        thread.join()
    assert sorted(statuses) == sorted(pauses)
    for status, seconds in statuses.values():
        assert status == 408
        assert 0.9 < seconds < 3
    assert_alive(server)


# ---- all at once


FLOODS: dict[str, tuple[bytes, bytes]] = {  # input that comes once, and input that comes again and again
    "fragments": (frame(TEXT, fin=False), frame(CONTINUATION, b"x", fin=False) * 1000),
    "empty-fragments": (frame(TEXT, fin=False), frame(CONTINUATION, fin=False) * 1000),
    "pings": (b"", frame(PING, bytes(125)) * 100),
    "messages": (b"", frame(BINARY, bytes(60_000))),
    "tiny-messages": (b"", frame(TEXT) * 1000),
    "after-its-close-frame": (close_frame(), frame(TEXT, b"late") * 1000),
}


def test_a_lively_neighbour_is_served_among_all_floods(backend: Backend) -> None:
    """The flooding peers do not read. All of them, and the server, are threads of this process."""
    options = Options(message_bytes_max=64 * MIB, backlog_bytes_max=2 * MIB, on_full="drop", close_seconds_max=0.5)
    with ReactorThread(handler_fn(echo), backend=backend, options=options) as server:
        with contextlib.ExitStack() as attackers, Peer.connect(server.address) as lively:
            for first, again in FLOODS.values():
                peer = attackers.enter_context(Peer.connect(server.address))
                peer.write(first)
                attackers.enter_context(writing(peer, again, FOR_EVER))
            waits = []
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                start = time.monotonic()
                lively.send(TEXT, b"and I?")
                assert lively.read_frame() == Frame(TEXT, b"and I?")
                waits.append(time.monotonic() - start)
            assert memory_bytes(server) < 2 * 64 * MIB + len(FLOODS) * 4 * MIB
            assert sorted(waits)[len(waits) // 2] < 0.2
            assert lively.shake_hands() == 1000
        settle(server)
