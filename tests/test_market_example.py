"""The market data example over the wire: quick and slow subscribers, and its page."""

from __future__ import annotations

import json
import re
import time

from servers import ServerProcess
from wire import Peer, http, upgrade_request


def read_price(peer: Peer) -> dict[str, float]:
    price: dict[str, float] = json.loads(peer.read_frame().payload)
    return price


def market(*arguments: str) -> ServerProcess:
    return ServerProcess("examples/market_data.py", "--port", "0", *arguments)


def test_a_quick_subscriber_gets_every_price_and_a_slow_one_only_newer_ones_of_each_share() -> None:
    with (
        market("--subscribers", "0", "--prices", "1000") as server,
        Peer.connect(server.address, "/prices") as quick,
        Peer.connect(server.address, "/prices") as slow,
    ):
        numbers = [read_price(quick)["number"] for _ in range(1000)]
        assert numbers == list(range(int(numbers[0]), int(numbers[0]) + 1000))
        seen: dict[object, float] = {}
        while max(seen.values(), default=0) < numbers[-1]:
            price = read_price(slow)
            assert price["number"] > seen.get(price["share"], 0), "never an older price after a newer one"
            seen[price["share"]] = price["number"]


def test_a_thousand_subscribers_are_served_at_once() -> None:
    with market("--subscribers", "1000", "--prices", "50") as server, Peer.connect(server.address, "/page") as page:
        deadline = time.monotonic() + 30
        figures: dict[str, float] = {}
        while figures.get("subscribers", 0) < 1002:
            assert time.monotonic() < deadline, figures
            message = read_price(page)
            figures = message if "subscribers" in message else figures
        assert figures["deliveries"] > 1000


def test_the_page_is_served_and_other_paths_are_not() -> None:
    with market("--subscribers", "0") as server:
        response = http(server.address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert response.status == 200
        assert not re.search(rb"(src|href)=\"?(https?:)?//", response.body)
        assert b"innerHTML" not in response.body
        assert http(server.address, upgrade_request("/elsewhere")).status == 404
