"""The common part of the uringws servers: their options, and a reactor that is bound."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from command_line import parse, parser, ready
from uringws import Handler, Options, Reactor


def arguments(
    description: str | None, add_own: Callable[[argparse.ArgumentParser], object] | None = None
) -> argparse.Namespace:
    options = parser(description)
    if add_own is not None:
        add_own(options)
    options.add_argument("--backend", choices=("io_uring", "epoll"), default="io_uring", help="default: %(default)s")
    options.add_argument(
        "--busy-poll-microseconds", type=int, default=0, help="look for work this long before sleeping (%(default)s)"
    )
    return parse(options)


@contextmanager
def reactor(handler: Handler, arguments: argparse.Namespace, **asked: Any) -> Iterator[Reactor]:
    # Options which are not asked for are not named, so that an older library can still be measured.
    if arguments.busy_poll_microseconds:
        asked["busy_poll_microseconds"] = arguments.busy_poll_microseconds
    with Reactor(handler, backend=arguments.backend, options=Options(**asked)) as bound:
        bound.bind(arguments.host, arguments.port)
        ready(arguments.port)
        yield bound
