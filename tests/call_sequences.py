"""Random sequences of calls on the public objects: a call without a right result or a documented exception is a fault.

The sequences are seeded. A fault is reported with its seed and the calls that led to it; a crash leaves them in the
file of --trail, and a hang ends with the tracebacks of all threads. The tests run each kind in a process of its own:

    python tests/call_sequences.py leaves --first 1 --count 500
    python tests/call_sequences.py engine --first 17 --count 1 --trail /tmp/trail
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import sys
import traceback
from collections.abc import Callable
from typing import Any

HANG_SECONDS = 40.0
TRAIL_SHOWN = 60


class FaultError(AssertionError):
    """A call that had neither a right result nor a documented exception."""


class Trail:
    """The calls of a sequence, kept to show what led to a fault, even if it is a crash."""

    def __init__(self, path: str | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if path else None
        self.calls: list[str] = []

    def begin(self) -> None:
        self.calls.clear()
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)

    def note(self, what: str) -> None:
        self.calls.append(what)
        if self._file is not None:
            os.write(self._file, what.encode(errors="replace") + b"\n")


def outcome(
    trail: Trail, what: str, call: Callable[[], Any], allowed: tuple[type[BaseException], ...] = ()
) -> tuple[Any, BaseException | None]:
    """The result of a call, or the allowed exception that it raised. Raises FaultError for any other exception."""
    trail.note(what)
    try:
        result = call()
    except FaultError:
        raise
    except allowed as error:
        trail.note(f"  raised {type(error).__name__}: {error}")
        if not str(error):
            raise FaultError(f"{what} raised {type(error).__name__} without a word") from error
        return None, error
    except Exception as error:
        raise FaultError(f"{what} raised {type(error).__name__}: {error}") from error
    trail.note(f"  returned {short(result)}")
    return result, None


def expect(condition: object, what: str) -> None:
    if not condition:
        raise FaultError(what)


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def play(kind: str, sequence: Callable[[random.Random, Trail], None], seeds: range, trail: Trail) -> int:
    """Play the sequences of those seeds; return the exit status."""
    for seed in seeds:
        trail.begin()
        trail.note(f"{kind}, seed {seed}")
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            sequence(random.Random(seed), trail)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the fault that was looked for
            print(*trail.calls[-TRAIL_SHOWN:], sep="\n", file=sys.stderr)
            traceback.print_exc()
            print(f"FAULT: {kind}, seed {seed}: {error!r:.300}", file=sys.stderr, flush=True)
            return 1
        finally:
            faulthandler.cancel_dump_traceback_later()
    print(f"{kind}: {len(seeds)} sequences, no fault")
    return 0


def main() -> int:
    from calls_of_engine import engine_sequence  # noqa: PLC0415 - they import this module
    from calls_of_leaves import leaf_sequence  # noqa: PLC0415
    from calls_of_reactor import reactor_sequence  # noqa: PLC0415

    kinds: dict[str, Callable[[random.Random, Trail], None]] = {
        "leaves": leaf_sequence,
        "engine": engine_sequence,
        "io_uring": lambda rng, trail: reactor_sequence("io_uring", rng, trail),
        "epoll": lambda rng, trail: reactor_sequence("epoll", rng, trail),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--first", type=int, default=1, help="the first seed (%(default)s)")
    parser.add_argument("--count", type=int, default=100, help="of seeds (%(default)s)")
    parser.add_argument("--trail", help="a file for the calls, in case of a crash")
    arguments = parser.parse_args()
    faulthandler.enable()
    seeds = range(arguments.first, arguments.first + arguments.count)
    return play(arguments.kind, kinds[arguments.kind], seeds, Trail(arguments.trail))


if __name__ == "__main__":
    sys.modules["call_sequences"] = sys.modules["__main__"]
    sys.exit(main())
