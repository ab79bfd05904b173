"""The command line: `uringws doctor` and `uringws echo`, also as `python -m uringws`.

An error is one line on stderr and an exit status of 1 (2 for wrong arguments), never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from uringws.connection import Connection
from uringws.doctor import diagnose, look, render, try_backends
from uringws.errors import UringUnavailable
from uringws.handler import Handler
from uringws.message import Message
from uringws.reactor import Reactor
from uringws.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence


class Echo(Handler):
    """Sends each message back."""

    def on_message(self, conn: Connection, message: Message) -> None:
        """Send it back from where the kernel put it."""
        conn.echo()


def doctor(_: argparse.Namespace) -> int:
    """Print what `uringws.doctor` finds. Returns 0 if a reactor can run here on any backend."""
    trials = try_backends()
    print(render(diagnose(look(), trials)), flush=True)
    return 0 if any(trial.works for trial in trials.values()) else 1


def echo(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    with Reactor(Echo(), backend=arguments.backend) as reactor:
        host, port = reactor.bind(arguments.host, arguments.port)
        shown = f"[{host}]" if ":" in host else host
        print(f"listening on ws://{shown}:{port} ({reactor.backend})", flush=True)
        if arguments.mode == "c":
            reactor.run_echo()
        else:
            reactor.run()
    return 0


def port_number(text: str) -> int:
    """A TCP port; 0 asks the kernel for one."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 0 to 65535")
    return int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `command` is the function to run."""
    parser = argparse.ArgumentParser(prog="uringws", description="A WebSocket server for Linux on io_uring.")
    parser.add_argument("--version", action="version", version=f"uringws {__version__}")
    commands = parser.add_subparsers(required=True, metavar="doctor | echo")
    about = "say which backend works here and why, which limits matter, and what to do about it"
    commands.add_parser("doctor", help=about, description=f"{about[0].upper()}{about[1:]}.").set_defaults(run=doctor)
    server = commands.add_parser(
        "echo", help="serve WebSocket echo", description="Send every message back. Ctrl-C ends."
    )
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    server.add_argument("--port", type=port_number, default=9001, help="0 takes a free one (default: %(default)s)")
    server.add_argument("--backend", choices=("auto", "io_uring", "epoll"), default="auto")
    server.add_argument("--mode", choices=("c", "handler"), default="c", help="who echoes (default: %(default)s)")
    server.set_defaults(run=echo)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    options = parse(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # The reader of our output has ended: flushing the rest at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UringUnavailable as error:
        print(f"uringws: {error.strerror} ({error.reason}); remedy: {error.remedy}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"uringws: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
