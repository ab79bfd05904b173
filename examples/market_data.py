"""Prices for 1,000 subscribers, and what becomes of those who read slowly. The page is on the same port.

    python examples/market_data.py [--host 127.0.0.1] [--port 9005] [--backend auto|io_uring|epoll]
                                   [--subscribers 1000] [--prices 200]

Each share is a topic, and each price a message to it. The topics conflate: a subscriber whose socket takes no more has
at most one price of each share waiting, the newest. It is late only by what its socket already holds, which is why the
listening socket has a small send buffer.

Beside the subscribers there are two slow readers, real clients on real sockets that read 2 KB per second: one of the
conflating topics, and one of the same prices in topics that queue. All that they read is published for the page, which
shows both beside the prices that it gets itself. Ctrl-C ends the server.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import resource
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uringws import Accept, Connection, Handler, Options, Reactor, Reject, Request, Response, Topic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uringws import Sender

PAGE = Path(__file__).with_suffix(".html")
PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
SHARES = {"ACME": 101.0, "BIRCH": 27.5, "CEDAR": 340.0, "DELTA": 12.2, "ELM": 88.0, "FJORD": 64.3, "GROVE": 230.0}
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a client here calls them

SEND_BUFFER_BYTES = 16 * 1024
"""Of each socket. Prices in the kernel's buffer cannot be replaced by newer ones any more."""
SLOW_RECEIVE_BYTES = 4096
SLOW_BYTES = 512  # per read
SLOW_PAUSE_SECONDS = 0.25
SILENT_SECONDS = 3.0
"""A slow reader waits no longer for a server that has stopped; prices come at least once per second."""
FIGURES_SECONDS = 1.0
DESCRIPTORS_SPARE = 100

OPTIONS = Options(
    message_bytes_max=1024,
    backlog_bytes_max=64 * 1024,
    backlog_high_bytes=32 * 1024,
    backlog_low_bytes=8 * 1024,
    drain_seconds_max=1.0,
)
FIGURES = "figures"
"""The topic of how the market runs."""
SLOW_READERS = "slow readers"
"""The topic of the prices that the slow readers got."""


def encode(**message: Any) -> str:
    """Return a message to the page."""
    return json.dumps(message, separators=(",", ":"))


class Market(Handler):
    """Publishes prices at a fixed rate, each to both topics of its share."""

    def __init__(self, page: bytes) -> None:
        self._page = page
        self._prices = dict(SHARES)
        self._count = 0
        self._random = random.Random()  # noqa: S311 - prices, not secrets
        self._reactor: Reactor
        self._conflating: dict[str, Topic]
        self._queueing: dict[str, Topic]
        self._before = (0.0, 0.0, 0, 0)  # when the figures were last told: the clock, CPU seconds, prices, messages

    def begin(self, reactor: Reactor, prices: float) -> None:
        """Open the market: so many prices per second."""
        self._reactor = reactor
        self._conflating = {share: reactor.topic(share, on_full="conflate") for share in SHARES}
        self._queueing = {share: reactor.topic(f"{share} queued", on_full="drop_new") for share in SHARES}
        self._figures = reactor.topic(FIGURES, on_full="conflate")
        self._slow_readers = reactor.topic(SLOW_READERS, on_full="drop_old")
        reactor.call_every(1 / prices, self._trade)
        reactor.call_every(FIGURES_SECONDS, self._tell_figures)

    def on_request(self, request: Request) -> Response | None:
        """Serve the page to a browser."""
        if request.path != "/":
            return Response(404, body="not found\n")
        return Response(200, PAGE_HEADERS, self._page)

    def on_upgrade(self, request: Request) -> Accept | Reject:
        """Take /prices, /queued or /page."""
        if request.path not in {"/prices", "/queued", "/page"}:
            return Reject(404, body="subscribe to /prices, or open / in a browser\n")
        return Accept(data=request.path)

    def on_open(self, conn: Connection) -> None:
        """Subscribe to every share."""
        for topic in (self._queueing if conn.data == "/queued" else self._conflating).values():
            topic.add(conn)
        if conn.data == "/page":
            self._figures.add(conn)
            self._slow_readers.add(conn)

    def _trade(self) -> None:
        """Let a share have a new price."""
        share = self._random.choice(tuple(SHARES))
        price = self._prices[share] = max(1.0, self._prices[share] * (1 + self._random.gauss(0, 0.002)))
        self._count += 1
        payload = encode(share=share, price=round(price, 2), number=self._count, time=time.time())
        self._conflating[share].publish(payload)
        self._queueing[share].publish(payload)

    def _tell_figures(self) -> None:
        stats = self._reactor.stats()
        now = (time.monotonic(), time.process_time(), self._count, stats.messages_out)
        seconds, cpu, prices, messages = (new - old for new, old in zip(now, self._before, strict=True))
        conflated = sum(topic.stats().conflated for topic in self._conflating.values())
        if self._before[0]:
            self._figures.publish(
                encode(
                    subscribers=len(self._conflating["ACME"]),
                    prices=round(prices / seconds),
                    deliveries=round(messages / seconds),
                    cpu=round(100 * cpu / seconds, 1),
                    conflated=conflated,
                )
            )
        self._before = now


# ---- clients: the subscribers, in a process of their own, and the slow readers, each in a thread


def subscribe(address: tuple[str, int], path: str, receive_bytes: int | None = None) -> socket.socket:
    """Return a WebSocket (RFC 6455 4.1), its handshake done to the last byte and no further."""
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    sock.settimeout(SILENT_SECONDS)
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.connect(address)
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionError("the server refused a subscriber")
        head += byte
    return sock


def payloads(stream: bytearray) -> Iterator[bytes]:
    """Take the whole frames off the front of what a server sent (RFC 6455 5.2), and yield the texts among them."""
    while len(stream) >= 2:
        size, start = stream[1], 2
        if size == 126:
            if len(stream) < 4:
                return
            (size,) = struct.unpack_from("!H", stream, 2)
            start = 4
        if len(stream) < start + size:
            return
        if stream[0] & 15 == 1:
            yield bytes(stream[start : start + size])
        del stream[: start + size]


def read_slowly(address: tuple[str, int], path: str, name: str, sender: Sender, stop: threading.Event) -> None:
    """Read a little now and then, and publish for the page what came."""
    stream = bytearray()
    with contextlib.suppress(OSError), sender, subscribe(address, path, SLOW_RECEIVE_BYTES) as sock:
        while not stop.wait(SLOW_PAUSE_SECONDS):
            chunk = sock.recv(SLOW_BYTES)
            if not chunk:
                return
            stream += chunk
            got = [json.loads(payload) for payload in payloads(stream)]
            if got:
                sender.publish(SLOW_READERS, encode(reader=name, got=got, read_at=time.time()))


def read_quickly(address: tuple[str, int], count: int) -> None:
    """Be so many subscribers who take everything, until the server closes them. The loop of the child process."""
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            selector.register(subscribe(address, "/prices"), selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)  # noqa: S101 - for the type checker
                try:
                    chunk = sock.recv(65536)
                except OSError:
                    chunk = b""
                # The server's close frame, 1001 without a reason, is the last that it sends.
                if not chunk or chunk.endswith(b"\x88\x02\x03\xe9"):
                    selector.unregister(sock)
                    sock.close()


def raise_descriptors(count: int) -> None:
    """Let this process and its children have so many more open files, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + DESCRIPTORS_SPARE
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ValueError(f"{count} subscribers need {wanted} open files, and the hard limit is {hard} (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# ---- the server


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket whose connections have small send buffers."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ValueError(f"{host}: {error.strerror}") from None
    sock = socket.create_server(address[:2], family=family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return sock


@contextlib.contextmanager
def clients(reactor: Reactor, address: tuple[str, int], count: int) -> Iterator[None]:
    """Run the subscribers and both slow readers."""
    stop = threading.Event()
    readers = [
        threading.Thread(target=read_slowly, args=(address, path, name, reactor.sender(), stop))
        for path, name in (("/prices", "conflating"), ("/queued", "queueing"))
    ]
    command = [sys.executable, __file__, "--read-from", *map(str, address), "--subscribers", str(count)]
    crowd = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) if count else None
    for reader in readers:
        reader.start()
    try:
        yield
    finally:
        stop.set()
        if crowd is not None:
            crowd.kill()
            crowd.wait()
        for reader in readers:
            reader.join()


def serve(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    raise_descriptors(arguments.subscribers)
    market = Market(PAGE.read_bytes())
    with Reactor(market, OPTIONS, backend=arguments.backend) as reactor:
        listening = listen(arguments.host, arguments.port)
        host, port = listening.getsockname()[:2]
        reactor.bind_socket(listening)
        shown, called = (f"[{name}]" if ":" in name else name for name in (host, EVERY_ADDRESS.get(host, host)))
        market.begin(reactor, arguments.prices)
        with clients(reactor, (called.strip("[]"), port), arguments.subscribers):
            print(f"listening on ws://{shown}:{port} ({reactor.backend})")
            print(f"in a browser:  http://{called}:{port}/")
            print(f"in a terminal: python -m websockets ws://{called}:{port}/prices", flush=True)
            reactor.run()


def whole(least: int, most: int) -> Any:
    """Return a check of a whole number on the command line."""

    def check(text: str) -> int:
        value = int(text) if text.isdecimal() else -1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from {least} to {most}")
        return value

    return check


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="Prices for many subscribers on io_uring, with a page.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=whole(0, 65535), default=9005, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--backend", choices=("auto", "io_uring", "epoll"), default="auto")
    parser.add_argument(
        "--subscribers", type=whole(0, 100_000), default=1000, help="run by the example (default: %(default)s)"
    )
    parser.add_argument("--prices", type=whole(1, 1000), default=200, help="per second (default: %(default)s)")
    parser.add_argument("--read-from", nargs=2, help=argparse.SUPPRESS)  # in the child process
    arguments = parser.parse_args()
    try:
        if arguments.read_from is not None:
            read_quickly((arguments.read_from[0], int(arguments.read_from[1])), arguments.subscribers)
        else:
            serve(arguments)
    except KeyboardInterrupt:
        pass  # before the reactor ran; after that Ctrl-C drains it
    except (OSError, ValueError) as error:  # UringUnavailable is an OSError
        print(f"market_data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
