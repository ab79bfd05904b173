"""Compiles the suite's C programs when they are first needed, and again when a source is newer than the program."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

BENCH = Path(__file__).resolve().parent
BUILD = BENCH.parent / "build" / "bench"

SOURCES = {
    "load": sorted((BENCH / "load").glob("*.c")),
    "bare_uring": [BENCH / "servers" / "bare_uring.c", BENCH / "load" / "ring.c"],
    "bare_fanout": [BENCH / "servers" / "bare_fanout.c", BENCH / "load" / "ring.c"],
}

# The package's own rule against -march=native does not hold here: these programs run where they are compiled.
FLAGS = ["-std=gnu11", "-O3", "-march=native", "-flto", "-g", "-Wall", "-Wextra"]

LIBURING_HINT = (
    "liburing's header and static library are missing; install liburing-dev (Debian, Ubuntu) or liburing-devel (Fedora)"
)


class BuildError(Exception):
    """A program could not be compiled; the message says what to install."""


def build(name: str) -> Path:
    """The path of the program `name` (a key of SOURCES), compiled if need be."""
    program = BUILD / name
    headers = BENCH.glob("*/*.h")
    newest = max(path.stat().st_mtime for path in [*SOURCES[name], *headers, Path(__file__)])
    if not program.exists() or program.stat().st_mtime < newest:
        compile_program(SOURCES[name], program, ["-Wl,-Bstatic", "-luring", "-Wl,-Bdynamic"])
    return program


def compile_program(sources: list[Path], output: Path, more: list[str]) -> None:
    """Runs the compiler; the output appears only when it is complete."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        raise BuildError(f"there is no C compiler {compiler[0]!r}; install gcc, or name one in CC")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(f".{os.getpid()}")
    command = [*compiler, *FLAGS, "-o", str(partial), *map(str, sources), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        if "liburing.h" in done.stderr or "-luring" in done.stderr:
            raise BuildError(LIBURING_HINT)
        raise BuildError(f"compiling {output.name} failed:\n{done.stderr.strip()}")
    partial.replace(output)
