"""A chat: each message goes to all members. The page to chat with is on the same port.

    python examples/chat_broker.py [--host 127.0.0.1] [--port 9002] [--backend auto|io_uring|epoll] [--tick-seconds 30]

Two ways to send to many: the handler does it for each message, in the reactor's thread; a clock in a thread of its own
does it through a `Sender`. Ctrl-C ends it.
"""

import argparse
import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from uringws import (
    Accept,
    Connection,
    Handler,
    Message,
    Opcode,
    Options,
    Reactor,
    Reject,
    Request,
    Response,
    Sender,
)

PAGE = Path(__file__).with_suffix(".html")
PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:",
}
NAME_LETTERS_MAX = 24
TEXT_LETTERS_MAX = 2000
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a client here calls them
TICK_SECONDS_MIN, TICK_SECONDS_MAX = 0.01, 86400

OPTIONS = Options(
    message_bytes_max=16 * 1024,  # a longer message ends its session with 1009
    refuse_binary=True,
    backlog_bytes_max=256 * 1024,  # a member that does not read for so long is closed with 1008, and delays no other
    idle_seconds_max=None,  # pings show which members are still there
)


class Member(NamedTuple):
    """A member of the chat: the `data` of its connection."""

    number: int
    name: str


class Broker(Handler):
    """Keeps the list of members, and sends to each of them."""

    def __init__(self, page: bytes) -> None:
        self._page = page
        self._members: dict[int, Connection] = {}
        self._numbers = 0

    def on_request(self, request: Request) -> Response | None:
        """Serve the page to a browser."""
        if request.path != "/":
            return Response(404, body="not found\n")
        return Response(200, PAGE_HEADERS, self._page)

    def on_upgrade(self, request: Request) -> Accept | Reject:
        """Take the name from ?name=, or make one up."""
        name = " ".join(request.query_params().get("name", [""])[0].split())
        if len(name) > NAME_LETTERS_MAX:
            return Reject(400, body=f"a name has at most {NAME_LETTERS_MAX} letters\n")
        self._numbers += 1
        return Accept(data=Member(self._numbers, name or f"Guest {self._numbers}"))

    def on_open(self, conn: Connection) -> None:
        """Tell the new member who it is, and all that it is here."""
        self._members[conn.id] = conn
        conn.send_text(json.dumps({"you": conn.data.number}))
        self.tell(f"{conn.data.name} is here")

    def on_message(self, conn: Connection, message: Message) -> None:
        """Send a member's text to all."""
        self.tell(message.text()[:TEXT_LETTERS_MAX], conn.data)

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        """Tell the others."""
        del self._members[conn.id]
        self.tell(f"{conn.data.name} has left")

    def tell(self, text: str, who: Member | None = None) -> None:
        """Send to every member; without `who` it is the broker itself that speaks."""
        said = {"who": who and who._asdict(), "text": text, "members": len(self._members), "time": time.time()}
        payload = json.dumps(said, ensure_ascii=False).encode()  # encoded once, not once for each
        for member in self._members.values():
            if member.is_open:  # not open once its close handshake has begun
                member.send(Opcode.TEXT, payload)

    def strike(self) -> None:
        """Say the time, if anybody listens."""
        if self._members:
            self.tell(time.strftime("It is %H:%M:%S"))


def clock(sender: Sender, broker: Broker, seconds: float, stop: threading.Event) -> None:
    """Strike until `stop`. The members belong to the reactor's thread: the clock has the striking done there."""
    with sender:  # released at the end; a reactor runs on while a Sender lives
        while not stop.wait(seconds):
            sender.call(broker.strike)


def serve(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    broker, stop = Broker(PAGE.read_bytes()), threading.Event()
    with Reactor(broker, OPTIONS, backend=arguments.backend) as reactor:
        host, port = reactor.bind(arguments.host, arguments.port)
        shown, called = (f"[{name}]" if ":" in name else name for name in (host, EVERY_ADDRESS.get(host, host)))
        striking = threading.Thread(target=clock, args=(reactor.sender(), broker, arguments.tick_seconds, stop))
        striking.start()
        try:
            print(f"listening on ws://{shown}:{port} ({reactor.backend})")
            print(f"in a browser:  http://{called}:{port}/", flush=True)
            reactor.run()
        finally:
            stop.set()
            striking.join()


def seconds(text: str) -> float:
    """A time of the command line: a number from 0.01 to a day."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not TICK_SECONDS_MIN <= value <= TICK_SECONDS_MAX:  # neither is nan
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give {TICK_SECONDS_MIN} to {TICK_SECONDS_MAX} seconds")
    return value


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="A WebSocket chat on io_uring, with its page.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9002, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--backend", choices=("auto", "io_uring", "epoll"), default="auto")
    parser.add_argument("--tick-seconds", type=seconds, default=30.0, help="of the clock (default: %(default)s)")
    try:
        serve(parser.parse_args())
    except KeyboardInterrupt:
        pass  # before the reactor ran; after that Ctrl-C drains it
    except (OSError, ValueError) as error:  # UringUnavailable is an OSError
        print(f"chat_broker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
