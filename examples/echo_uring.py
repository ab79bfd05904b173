"""An echo server: every message goes back as it came.

    python examples/echo_uring.py [--host 127.0.0.1] [--port 9001] [--backend auto|io_uring|epoll] [--mode c|handler]

`--mode c` echoes without Python; `--mode handler` calls the handler below for each message. Ctrl-C ends it.
"""

import argparse
import sys

from uringws import Connection, Handler, Message, Options, Reactor, UringUnavailable


class Echo(Handler):
    """Sends each message back, without a copy."""

    def on_message(self, conn: Connection, message: Message) -> None:
        """Send it back."""
        conn.echo()


def main() -> int:
    """Serve until Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(description="A WebSocket echo server on io_uring.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9001, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--backend", choices=("auto", "io_uring", "epoll"), default="auto")
    parser.add_argument("--mode", choices=("c", "handler"), default="handler", help="who echoes (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        with Reactor(Echo(), Options(), backend=arguments.backend) as reactor:
            host, port = reactor.bind(arguments.host, arguments.port)
            shown = f"[{host}]" if ":" in host else host
            print(f"listening on ws://{shown}:{port} ({reactor.backend})", flush=True)
            reactor.run_echo() if arguments.mode == "c" else reactor.run()
    except KeyboardInterrupt:
        pass
    except (OSError, UringUnavailable) as error:
        print(f"echo_uring: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
