"""Admission: limits on sessions, addresses, handshakes and origins, trusted proxies, and no free descriptors."""

from __future__ import annotations

import json
import re
import socket
import struct
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.utils import formatdate, parsedate_to_datetime

import pytest

from servers import EchoRecorder, ReactorThread, Recorder, ServerProcess, no_listener, wait_until
from uringws import Connection, LimitReached, Options, Reactor, Request, Stats
from uringws.backend import Backend
from wire import TEXT, Address, Frame, Peer, Response, http, upgrade_request

HERE, THERE = "127.0.0.1", "127.0.0.2"


@contextmanager
def serving(backend: Backend, options: Options, recorder: Recorder | None = None) -> Iterator[ReactorThread]:
    with ReactorThread(recorder or EchoRecorder(), backend=backend, options=options) as server:
        yield server


def stats(server: ReactorThread) -> Stats:
    return server.ask(server.reactor.stats)


def ask(address: Address, *, source: str = HERE, before: bytes = b"", origin: str | None = None) -> tuple[Peer, int]:
    """Ask for an upgrade from that address; return the peer and the status of the answer."""
    peer = Peer(socket.create_connection(address, 10.0, source_address=(source, 0)))  # type: ignore[arg-type]
    peer.write(before + upgrade_request(headers=[] if origin is None else [("Origin", origin)]))
    return peer, peer.read_response().status


def status(address: Address, *, source: str = HERE, before: bytes = b"", origin: str | None = None) -> int:
    """As `ask`, of a peer that leaves at once."""
    peer, answer = ask(address, source=source, before=before, origin=origin)
    peer.close()
    return answer


# How many


def test_sessions_max_counts_those_that_are_not_upgraded_yet(backend: Backend) -> None:
    with serving(backend, Options(sessions_max=3)) as server, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Peer.dial(server.address))
        wait_until(lambda: stats(server).handshakes == 2)
        stack.enter_context(Peer.connect(server.address))
        for _ in range(5):
            assert status(server.address) == 503
        assert stats(server).rejected == {"sessions_max": 5}
        assert stats(server).sessions == 1


def test_sessions_max_holds_for_adopted_sessions(backend: Backend) -> None:
    with ReactorThread(EchoRecorder(), backend=backend, options=Options(sessions_max=2), prepare=no_listener) as server:
        pairs = [socket.socketpair() for _ in range(3)]
        for ours, _ in pairs[:2]:
            server.ask(lambda ours=ours: server.reactor.add_session(ours))  # type: ignore[misc]
        with pytest.raises(LimitReached):
            server.ask(lambda: server.reactor.add_session(pairs[2][0]))
        assert pairs[2][0].fileno() >= 0, "a refused socket stays its owner's"
        for pair in pairs:
            for end in pair:
                end.close()


def test_handshakes_max_is_a_limit_on_upgrades_in_progress_only(backend: Backend) -> None:
    with serving(backend, Options(handshakes_max=2)) as server, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Peer.connect(server.address))
        pending = [stack.enter_context(Peer.dial(server.address)) for _ in range(2)]
        wait_until(lambda: stats(server).handshakes == 2)
        assert status(server.address) == 503
        assert stats(server).rejected == {"handshakes_max": 1}
        pending[0].write(upgrade_request())
        assert pending[0].read_response().status == 101
        assert status(server.address) == 101
        pending[1].reset()
        wait_until(lambda: stats(server).handshakes == 0)


def test_sessions_per_ip_max_limits_each_address_separately(backend: Backend) -> None:
    with serving(backend, Options(sessions_per_ip_max=2)) as server, ExitStack() as stack:
        here = [stack.enter_context(Peer.connect(server.address)) for _ in range(2)]
        for _ in range(3):
            assert status(server.address) == 429
        for _ in range(2):
            peer, answer = ask(server.address, source=THERE)
            stack.enter_context(peer)
            assert answer == 101
        assert status(server.address, source=THERE) == 429
        assert status(server.address, source="127.0.0.3") == 101
        assert stats(server).rejected == {"sessions_per_ip_max": 4}
        here[0].reset()
        wait_until(lambda: stats(server).sessions == 3)
        assert status(server.address) == 101
        assert status(server.address, source=THERE) == 429


def test_sessions_per_ip_max_counts_many_addresses(backend: Backend) -> None:
    with serving(backend, Options(sessions_per_ip_max=1)) as server:
        addresses = [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(300)]
        with ExitStack() as stack:
            for address in addresses:
                peer, answer = ask(server.address, source=address)
                stack.enter_context(peer)
                assert answer == 101
            for address in addresses[::10]:
                assert status(server.address, source=address) == 429
        wait_until(lambda: stats(server).sessions == 0)
        for address in addresses[::10]:
            assert status(server.address, source=address) == 101


# The answers to connections that are refused

WORDS = {
    "sessions_max": (503, b"too many sessions\n"),
    "handshakes_max": (503, b"too many handshakes in progress\n"),
    "sessions_per_ip_max": (429, b"too many sessions from this address\n"),
    "timeout": (408, b"the request took too long\n"),
    "draining": (503, b"the server is shutting down\n"),
}
TOLD: dict[str, dict[str, object]] = {
    "sessions_max": {"sessions_max": 1},
    "handshakes_max": {"handshakes_max": 1},
    "sessions_per_ip_max": {"sessions_per_ip_max": 1},
    "timeout": {"handshake_seconds_max": 0.2},
    "draining": {},
}


def refusal_of(server: ReactorThread, reason: str, stack: ExitStack) -> Response:
    """The answer to a connection that is refused for that reason, with the options of TOLD."""
    pending = stack.enter_context(Peer.dial(server.address))
    pending.write(b"GET /")
    wait_until(lambda: stats(server).handshakes == 1 or reason == "timeout")
    if reason == "draining":
        server.sender.call(server.reactor.drain)
    refused = pending if reason in ("timeout", "draining") else stack.enter_context(Peer.dial(server.address))
    response = refused.read_response()
    refused.read_eof()
    return response


@pytest.mark.parametrize("reason", TOLD)
@pytest.mark.parametrize("server_header", [None, "tests/1"])
def test_a_refused_peer_gets_the_reason(backend: Backend, reason: str, server_header: str | None) -> None:
    options = Options(server_header=server_header, **TOLD[reason])  # type: ignore[arg-type]
    with serving(backend, options) as server, ExitStack() as stack:
        response = refusal_of(server, reason, stack)
        assert (response.status, response.body) == WORDS[reason]
        assert response.headers.get("server") == server_header
        assert response.headers["connection"] == "close"
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        if reason != "draining":
            assert stats(server).rejected == {reason: 1}


@pytest.mark.parametrize("reason", ["sessions_max", "timeout"])
def test_an_answer_has_the_date_of_its_moment(backend: Backend, reason: str) -> None:
    with serving(backend, Options(**TOLD[reason])) as server, ExitStack() as stack:  # type: ignore[arg-type]
        opened = int(time.time())
        wait_until(lambda: int(time.time()) > opened)
        before = int(time.time())
        response = refusal_of(server, reason, stack)
        said = parsedate_to_datetime(response.headers["date"])
        assert before <= said.timestamp() <= time.time()
        assert response.headers["date"] == formatdate(said.timestamp(), usegmt=True)


# Origins


ORIGINS = {
    ("https://example.org",): {
        "https://example.org": 101,
        "https://example.org.evil.net": 403,
        "http://example.org": 403,
        "https://example.org:444": 403,
        "null": 403,
        None: 403,
    },
    ("https://example.org", None): {"https://example.org": 101, "https://evil.net": 403, None: 101},
    (re.compile(r"https://[a-z]+\.example\.org"),): {
        "https://chat.example.org": 101,
        "https://chat.example.org.evil.net": 403,
        "https://evil.net/https://chat.example.org": 403,
        None: 403,
    },
    ("null",): {"null": 101, None: 403},
    (): {"https://example.org": 403, None: 403},
}


@pytest.mark.parametrize("number", range(len(ORIGINS)))
def test_origins(backend: Backend, number: int) -> None:
    origins, answers = list(ORIGINS.items())[number]
    with serving(backend, Options(origins=origins)) as server:
        for origin, answer in answers.items():
            assert status(server.address, origin=origin) == answer, origin
        refused = sum(answer == 403 for answer in answers.values())
        assert stats(server).rejected == ({"origin": refused} if refused else {})


# PROXY protocol

V1 = b"PROXY TCP4 192.0.2.1 192.0.2.99 4711 443\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::1 2001:db8::99 4711 443\r\n"
V1_UNKNOWN = b"PROXY UNKNOWN\r\n"


def v2(command: int, family: int, block: bytes) -> bytes:
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x20 | command, family, len(block)) + block


def v2_ipv4(source: str = "192.0.2.1", port: int = 4711, more: bytes = b"") -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton("192.0.2.99")
    return v2(1, 0x11, addresses + struct.pack("!HH", port, 443) + more)


MAPPED = bytes(10) + b"\xff\xff"
V1_MAPPED = b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.99 4711 443\r\n"
V2_MAPPED = v2(
    1,
    0x21,
    MAPPED + socket.inet_aton("192.0.2.1") + MAPPED + socket.inet_aton("192.0.2.99") + struct.pack("!HH", 4711, 443),
)
V2_IPV6 = v2(
    1,
    0x21,
    socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::99")
    + struct.pack("!HH", 4711, 443),
)
NAMED = {
    "v1": (V1, ("192.0.2.1", 4711)),
    "v1-ipv6": (V1_IPV6, ("2001:db8::1", 4711)),
    "v1-mapped": (V1_MAPPED, ("192.0.2.1", 4711)),
    "v1-unknown": (V1_UNKNOWN, None),
    "v2": (v2_ipv4(), ("192.0.2.1", 4711)),
    "v2-extensions": (v2_ipv4(more=b"\x04\x00\x04\r\n\r\n"), ("192.0.2.1", 4711)),
    "v2-ipv6": (V2_IPV6, ("2001:db8::1", 4711)),
    "v2-mapped": (V2_MAPPED, ("192.0.2.1", 4711)),
    "v2-local": (v2(0, 0, b""), None),
}
"""Headers, and the clients that they name; None: only the proxy itself."""


class Peers(EchoRecorder):
    """Keeps the peer's address of a request, before the upgrade and after it."""

    def on_upgrade(self, request: Request) -> None:
        self.record("upgrade", request.peer)

    def on_open(self, conn: Connection) -> None:
        super().on_open(conn)
        self.record("opened", conn.peer)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("cut", ["whole", "cut"])
def test_a_trusted_proxy_names_the_peer(backend: Backend, name: str, cut: str) -> None:
    header, named = NAMED[name]
    recorder = Peers()
    options = Options(proxy_protocol_from=["127.0.0.0/8"])
    with serving(backend, options, recorder) as server, Peer.dial(server.address) as peer:
        request = header + upgrade_request()
        for part in [request] if cut == "whole" else [request[at : at + 1] for at in range(len(request))]:
            peer.write(part)
        assert peer.read_response().status == 101
        conn = recorder.connections[recorder.wait_for("open")[0][1]]
        assert server.ask(lambda: conn.peer) == (named or peer.sock.getsockname())
        peer.send(TEXT, b"through the proxy")
        assert peer.read_frame() == Frame(TEXT, b"through the proxy")
        assert recorder.of("upgrade") == [("upgrade", named or peer.sock.getsockname())]


def dual_stack(reactor: Reactor) -> None:
    """For `ReactorThread.prepare`: listen on one socket for IPv6 and IPv4."""
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    reactor.bind_socket(listener)


def test_a_peer_has_its_plain_address_on_a_socket_for_both_families(backend: Backend) -> None:
    recorder = Peers()
    options = Options(sessions_per_ip_max=1)
    with ReactorThread(recorder, backend=backend, options=options, prepare=dual_stack) as server, ExitStack() as stack:
        peers = []
        for host in (HERE, "::1", THERE):
            peer, answer = ask((HERE if "." in host else host, server.address[1]), source=host)  # type: ignore[arg-type]
            assert answer == 101
            peers.append(stack.enter_context(peer).sock.getsockname()[:2])
        assert [host for host, _ in peers] == [HERE, "::1", THERE]
        assert recorder.wait_for("upgrade", 3) == [("upgrade", peer) for peer in peers]
        assert recorder.wait_for("opened", 3) == [("opened", peer) for peer in peers]
        for host in (HERE, "::1", THERE):
            address = (HERE if "." in host else host, server.address[1])
            assert status(address, source=host) == 429  # type: ignore[arg-type]


def test_an_adopted_session_has_its_plain_address_too(backend: Backend) -> None:
    recorder = Peers()
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with (
        listener,
        ReactorThread(recorder, backend=backend, prepare=no_listener) as server,
        socket.create_connection((HERE, listener.getsockname()[1])) as theirs,
    ):
        server.sender.add_session(listener.accept()[0])
        assert recorder.wait_for("opened") == [("opened", theirs.getsockname())]


def test_the_mapped_form_is_the_same_peer_to_the_limit(backend: Backend) -> None:
    options = Options(proxy_protocol_from=[HERE], sessions_per_ip_max=1)
    with serving(backend, options) as server:
        peer, answer = ask(server.address, before=V1_MAPPED)
        with peer:
            assert answer == 101
            for header in (V1, V1_MAPPED, v2_ipv4(), V2_MAPPED):
                assert status(server.address, before=header) == 429
            assert status(server.address, before=v2_ipv4("192.0.2.2")) == 101


@pytest.mark.parametrize("name", NAMED)
def test_only_a_trusted_proxy_may_name_the_peer(backend: Backend, name: str) -> None:
    header, _ = NAMED[name]
    with serving(backend, Options(proxy_protocol_from=[THERE])) as server:
        assert status(server.address, before=header) == 400
        assert status(server.address) == 101
        assert status(server.address, source=THERE, before=header) == 101
    with serving(backend, Options()) as server:
        assert status(server.address, before=header) == 400


BROKEN = {
    "none": b"",
    "v1-bad-address": b"PROXY TCP4 192.0.2.256 192.0.2.99 4711 443\r\n",
    "v1-bad-port": b"PROXY TCP4 192.0.2.1 192.0.2.99 65536 443\r\n",
    "v1-endless": b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
    "v2-version": v2_ipv4().replace(b"\x21\x11", b"\x31\x11", 1),
    "v2-short": v2(1, 0x11, b"\x7f\0\0\1"),
    "v2-udp": v2_ipv4().replace(b"\x21\x11", b"\x21\x12", 1),
    "twice": V1 + V1,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_trusted_proxy_must_send_a_valid_header(backend: Backend, name: str) -> None:
    with serving(backend, Options(proxy_protocol_from=[HERE])) as server:
        assert status(server.address, before=BROKEN[name]) == 400
        assert status(server.address, before=V1) == 101


def test_sessions_per_ip_max_goes_by_the_address_that_the_proxy_names(backend: Backend) -> None:
    with serving(backend, Options(proxy_protocol_from=[HERE], sessions_per_ip_max=2)) as server, ExitStack() as stack:
        for _ in range(2):
            peer, answer = ask(server.address, before=v2_ipv4("192.0.2.1"))
            stack.enter_context(peer)
            assert answer == 101
        assert status(server.address, before=v2_ipv4("192.0.2.1")) == 429
        assert status(server.address, before=V1) == 429
        assert status(server.address, before=v2_ipv4("192.0.2.2")) == 101
        assert stats(server).rejected == {"sessions_per_ip_max": 2}
        # One network of IPv6 (a /64) is one peer.
        for host in (b"\5", b"\6"):
            header = V2_IPV6.replace(b"\x0d\xb8" + bytes(11) + b"\1", b"\x0d\xb8" + bytes(11) + host)
            peer, answer = ask(server.address, before=header)
            stack.enter_context(peer)
            assert answer == 101
        assert status(server.address, before=V2_IPV6) == 429


def test_sessions_per_ip_max_holds_for_strangers_beside_proxies(backend: Backend) -> None:
    options = Options(proxy_protocol_from=[THERE], sessions_per_ip_max=2)
    with serving(backend, options) as server, ExitStack() as stack:
        for _ in range(2):
            peer, answer = ask(server.address)
            stack.enter_context(peer)
            assert answer == 101
        assert status(server.address) == 429
        for number in range(4):  # the proxy's own address does not count
            peer, answer = ask(server.address, source=THERE, before=v2_ipv4(f"192.0.2.{number}"))
            stack.enter_context(peer)
            assert answer == 101
        assert stats(server).rejected == {"sessions_per_ip_max": 1}


def test_a_proxy_on_a_unix_socket(backend: Backend, recorder: EchoRecorder, tmp_path: object) -> None:
    path = f"{tmp_path}/s"
    with (
        ReactorThread(
            recorder,
            backend=backend,
            options=Options(proxy_protocol_from=["unix"]),
            prepare=lambda reactor: reactor.bind_unix(path),
        ) as server,
        Peer.dial(path) as peer,
    ):
        peer.write(V1 + upgrade_request())
        assert peer.read_response().status == 101
        conn = recorder.connections[recorder.wait_for("open")[0][1]]
        assert server.ask(lambda: conn.peer) == ("192.0.2.1", 4711)
        assert http(path, upgrade_request()).status == 400


# Out of descriptors

SCARCE = """
    import json, os, resource, sys, time
    from uringws import Handler, Reactor

    class Figures(Handler):
        def on_message(self, conn, message):
            stats = reactor.stats()
            conn.send_text(json.dumps({
                "turns": stats.turns, "pauses": stats.accept_pauses, "cpu": time.process_time(),
                "sessions": stats.sessions,
            }))

    with Reactor(Figures(), backend=sys.argv[1]) as reactor:
        _, port = reactor.bind("127.0.0.1", 0)
        most = max(map(int, os.listdir("/proc/self/fd"))) + 1 + 6
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        print(f"listening on ws://127.0.0.1:{port} ({reactor.backend})")
        reactor.run()
"""


def figures(peer: Peer) -> dict[str, float]:
    peer.send(TEXT, b"?")
    read: dict[str, float] = json.loads(peer.read_frame().payload)
    return read


def test_without_descriptors_accepting_pauses_and_resumes_and_does_not_spin(backend: Backend) -> None:
    with ServerProcess("-c", textwrap.dedent(SCARCE), backend) as server, ExitStack() as stack:
        peers = [stack.enter_context(Peer.dial(server.address)) for _ in range(16)]
        for peer in peers:
            peer.write(upgrade_request())
        inside = [peer for peer in peers if answered(peer)]
        waiting = [peer for peer in peers if peer not in inside]
        assert 3 <= len(inside) <= 8, "the limit is real"

        before = figures(inside[0])
        start = time.monotonic()
        time.sleep(0.5)
        after = figures(inside[0])
        seconds = time.monotonic() - start
        assert after["pauses"] > before["pauses"] > 0, "it tries again"
        assert after["turns"] - before["turns"] <= 10 + 3 * seconds / 0.05, "about one attempt in 50 ms"
        assert after["cpu"] - before["cpu"] < seconds / 4

        keep = inside.pop(0)
        while waiting:  # a peer that leaves makes room for the next one in the queue
            inside.pop(0).close()
            wait_until(lambda: any(answered(peer, 0.01) for peer in waiting))
            come = next(peer for peer in waiting if answered(peer, 0.01))
            waiting.remove(come)
            inside.append(come)
        assert figures(keep)["sessions"] >= 3


def answered(peer: Peer, seconds: float = 0.2) -> bool:
    """Whether the upgrade was answered, with 101."""
    if hasattr(peer, "response"):
        return True
    if peer.quiet(seconds):
        return False
    peer.response = peer.read_response()
    assert peer.response.status == 101
    return True
