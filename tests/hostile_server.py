"""The server that hostile.py attacks: every message goes back, by echo() or by send(); a plain GET returns its figures.

python tests/hostile_server.py --backend epoll --core 0
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from uringws import Connection, Handler, Message, Reactor, Request, Response


class Echo(Handler):
    """Odd lengths leave from where they lie, even ones are copied."""

    reactor: Reactor

    def on_message(self, conn: Connection, message: Message, /) -> None:
        if len(message) % 2:
            conn.echo()
        else:
            conn.send(message)

    def on_request(self, request: Request, /) -> Response:
        return Response(200, body=json.dumps(asdict(self.reactor.stats())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("io_uring", "epoll"), required=True)
    parser.add_argument("--core", type=int, required=True, help="the CPU that it runs on")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    handler = Echo()
    with Reactor(handler, backend=arguments.backend) as reactor:
        handler.reactor = reactor
        host, port = reactor.bind("127.0.0.1", 0)
        print(f"listening on ws://{host}:{port} ({reactor.backend})", flush=True)
        reactor.run()


if __name__ == "__main__":
    main()
