"""The command line which all servers of the bench have, and how they say that they are ready."""

import argparse
import os
import resource

MESSAGE_BYTES_MAX = 16 << 20
"""Every server accepts messages of this size, whatever its own default is."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The common options; a server may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1", help="IPv4 address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=9001, help="port to listen on (%(default)s)")
    parser.add_argument("--core", type=int, help="run on this CPU only")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line, and does what is the same for all: the CPU, and as many descriptors as are allowed."""
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return arguments


def ready(port: int) -> None:
    """Call when connections are accepted."""
    print(f"listening {port}", flush=True)
