"""An echo server: every message goes back as it came. A browser gets a page to try it with.

    python examples/echo_uring.py [--host 127.0.0.1] [--port 9001] [--backend auto|io_uring|epoll] [--mode c|handler]

`--mode c` echoes without Python; `--mode handler` calls the handler below for each message. Ctrl-C ends it.
"""

import argparse
import sys
from pathlib import Path

from uringws import Connection, Handler, Message, Options, Reactor, Request, Response

PAGE = Path(__file__).with_suffix(".html")
PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:",
}
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a client here calls them


class Echo(Handler):
    """Sends each message back, without a copy."""

    def __init__(self, page: bytes) -> None:
        self._page = page

    def on_request(self, request: Request) -> Response:
        """Serve the page to a browser."""
        if request.path != "/":
            return Response(404, body="not found\n")
        return Response(200, PAGE_HEADERS, self._page)

    def on_message(self, conn: Connection, message: Message) -> None:
        """Send it back."""
        conn.echo()


def announce(host: str, port: int, backend: str) -> None:
    """Say where it listens, and how to try it."""
    shown, called = (f"[{name}]" if ":" in name else name for name in (host, EVERY_ADDRESS.get(host, host)))
    print(f"listening on ws://{shown}:{port} ({backend})")
    print(f"in a browser:  http://{called}:{port}/")
    print(f"in a terminal: {sys.executable} -m websockets ws://{called}:{port}/  # after: pip install websockets")
    sys.stdout.flush()


def main() -> int:
    """Serve until Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(description="A WebSocket echo server on io_uring.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9001, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--backend", choices=("auto", "io_uring", "epoll"), default="auto")
    parser.add_argument("--mode", choices=("c", "handler"), default="handler", help="who echoes (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        with Reactor(Echo(PAGE.read_bytes()), Options(), backend=arguments.backend) as reactor:
            host, port = reactor.bind(arguments.host, arguments.port)
            announce(host, port, reactor.backend)
            reactor.run_echo() if arguments.mode == "c" else reactor.run()
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as error:  # UringUnavailable is an OSError
        print(f"echo_uring: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
