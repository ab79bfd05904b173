"""uringws for stalled.py: echoes binary messages; a text is an order, of that many bytes or of the reactor's figures.

Figures are read between turns, when no message is being handled: `figures` is answered a moment later.
"""

import dataclasses
import json
import socket
import threading

from command_line import parse, parser, ready
from uringws import Connection, Handler, Message, Opcode, Options, Reactor, Sender

CHUNK = bytes(128 * 1024)
LATER_SECONDS = 0.05
SEND_BYTES = 64 * 1024
"""The send buffer of a socket: the kernel's default would grow to megabytes, and a thousand sockets would use up all of
its memory for TCP."""


class OnDemand(Handler):
    sender: Sender

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.opcode == Opcode.BINARY:
            conn.echo()
        elif bytes(message.data) == b"figures":
            threading.Timer(LATER_SECONDS, self.sender.call, (lambda: self.tell(conn),)).start()
        else:
            for _ in range(int(bytes(message.data)) // len(CHUNK)):
                conn.send_binary(CHUNK)

    def tell(self, conn: Connection) -> None:
        conn.send_text(json.dumps(dataclasses.asdict(reactor.stats())))


def listener(host: str, port: int) -> socket.socket:
    """A socket whose children have small buffers; the backlog is what is left to fill."""
    bound = socket.create_server((host, port))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    return bound


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--backend", choices=("io_uring", "epoll"), default="io_uring", help="default: %(default)s")
    options.add_argument("--backlog-bytes-max", type=int, default=256 * 1024, help="per session (%(default)s)")
    arguments = parse(options)
    # A peer that does not read does not answer pings either, and has to stay nevertheless.
    limits = Options(backlog_bytes_max=arguments.backlog_bytes_max, on_full="drop", ping_interval_seconds=None)
    handler = OnDemand()
    with Reactor(handler, limits, backend=arguments.backend) as reactor, reactor.sender() as handler.sender:
        reactor.bind_socket(listener(arguments.host, arguments.port))
        ready(arguments.port)
        reactor.run()
