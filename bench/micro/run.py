"""Microbenchmarks: unmasking, UTF-8, frame headers, the engine, dispatch, memberships of topics, sends.

Run `python bench/micro/run.py`; `--help` shows how to run a part of it. It compiles the shim's sources, as the package
does, with the timing loops beside this file; only dispatch and memberships need the package. Time is the thread's own
CPU time, and the rounds visit the candidates of a table in turn, so that a slow moment of the machine falls on all of
them. Each figure is the median of its rounds. The last column is the median of the rounds' ratios to the table's first
candidate (2.00x is twice as fast), or of their differences to the shim doing the same alone; a line of send also has
the kernel's notifications.
"""

from __future__ import annotations

import argparse
import importlib.util
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cffi

HERE = Path(__file__).resolve().parent
SHIM = HERE.parents[1] / "uring_shim"
sys.path[:0] = [str(HERE.parent), str(SHIM)]

import build_ffi  # noqa: E402
import machine  # noqa: E402
from dispatch import dispatch_tables  # noqa: E402
from memberships import membership_tables  # noqa: E402
from sends import send_tables  # noqa: E402
from tables import Candidate, Effort, Table, UnavailableError, report  # noqa: E402

COMPILED = (
    "mask",
    "utf8",
    "frame",
    "pages",
    "block",
    "chain",
    "engine",
    "outbound",
    "deflate",
    "session",
    "history",
    "topics",
)
DECLARED = ("mask", "utf8", "frame")  # called from here; loops.c calls the rest

# Payload sizes, and the header before each: its end decides how a payload is aligned, hardly ever by 16.
HEADER_BYTES = {20: 6, 64: 6, 125: 6, 1024: 8, 16 << 10: 8, 64 << 20: 14}
# Bytes per repeat: as many small frames as fit into half of a usual first-level cache, or one larger frame.
VISITED_BYTES = 16 << 10
# Bytes for the engine: half of a usual second-level cache, which is where a server's receive buffers are.
RECEIVED_BYTES = 512 << 10

TEXT_BYTES = (20, 64, 16 << 10)
TEXTS = {
    "ASCII": "The quick brown fox jumps over the lazy dog. ",
    "German": "Zwölf große Boxkämpfer jagen Viktor quer über den Sylter Deich. ",
    "JSON with a few accents": '{"id": 1234567, "name": "José", "tags": ["a", "b"], "price": 12.50, "unit": "€"} ',
    "Russian": "Съешь же ещё этих мягких французских булок, да выпей чаю. ",
    "Chinese": "我能吞下玻璃而不伤身体。",
    "emoji": "😀🎉🚀👩‍💻 ok ",
}


def compile_loops(directory: str) -> Any:
    """The loops and what they call as a cffi module, compiled into `directory`."""
    headers = [HERE / "loops.h", HERE / "memberships.h", HERE / "sends.h", *(SHIM / f"{name}.h" for name in DECLARED)]
    builder = cffi.FFI()
    for header in headers:
        builder.cdef(build_ffi.cut_cdef(header.read_text(encoding="utf-8"), header.name))
    builder.set_source(
        "micro_loops",
        "".join(f'#include "{header.name}"\n' for header in headers),
        sources=[*map(str, sorted(HERE.glob("*.c"))), *(str(SHIM / f"{name}.c") for name in COMPILED)],
        include_dirs=[str(HERE), str(SHIM)],
        extra_compile_args=list(build_ffi.COMPILE_FLAGS),
        libraries=list(build_ffi.LIBRARIES),
    )
    spec = importlib.util.spec_from_file_location("micro_loops", builder.compile(tmpdir=directory))
    if spec is None or spec.loader is None:
        raise ImportError("what was just compiled is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mask_table(module: Any, size: int, gap: int) -> Table:
    """Payloads unmasked where they lie, or, with a gap, that many bytes further down."""
    ffi, lib = module.ffi, module.lib
    stride = HEADER_BYTES[size] + size
    count = max(1, VISITED_BYTES // stride)
    buffers = [ffi.from_buffer(bytearray(stride * count + 2 * 64)) for _ in range(2)]

    def first_payload(buffer: Any) -> Any:
        """As if the first header began with a cache line."""
        return ffi.cast("uint8_t *", buffer) + -int(ffi.cast("uintptr_t", buffer)) % 64 + HEADER_BYTES[size]

    source, apart = map(first_payload, buffers)
    copied = ffi.new("struct loop_payloads *", (apart, source, size, count, stride))
    unmasked = ffi.new("struct loop_payloads *", (source - gap, source, size, count, stride))

    def copy(repeats: int, _alive: object = buffers) -> int:
        return int(lib.loop_memcpy(copied, repeats))

    def unmask(repeats: int, name: bytes) -> int:
        return -1 if lib.urs_mask_select(name) else int(lib.loop_mask(unmasked, repeats))

    candidates = [Candidate("memcpy", copy, count)]
    while (name := lib.urs_mask_available(len(candidates) - 1)) != ffi.NULL:
        candidates.append(Candidate(ffi.string(name).decode(), partial(unmask, name=ffi.string(name)), count))
    where = f"moved {gap} bytes down" if gap else "in place"
    return Table(f"unmask {size:,} bytes {where}", size, "GB/s", candidates)


def mask_tables(module: Any) -> list[Table]:
    """Unmasking in place, and while closing the gap that a header leaves."""
    return [mask_table(module, size, gap) for size in HEADER_BYTES for gap in (0, 4) if size < VISITED_BYTES or not gap]


def utf8_table(module: Any, title: str, size: int) -> Table:
    """Validation beside CPython's decoder, which makes a str as well."""
    sentence = TEXTS[title].encode()
    text = (sentence * (1 + size // len(sentence)))[:size].decode(errors="ignore").encode()

    def decode(repeats: int) -> int:
        start = time.thread_time_ns()
        for _ in range(repeats):
            text.decode()
        return time.thread_time_ns() - start

    def validate(repeats: int, name: bytes) -> int:
        return -1 if module.lib.urs_utf8_select(name) else int(module.lib.loop_utf8(text, len(text), repeats))

    names = [name for name in (b"automaton", b"avx2", b"neon") if module.lib.urs_utf8_select(name) == 0]
    candidates = [Candidate(name.decode(), partial(validate, name=name)) for name in names]
    return Table(
        f"UTF-8, {title}, {len(text):,} bytes", len(text), "GB/s", [Candidate("bytes.decode", decode), *candidates]
    )


def utf8_tables(module: Any) -> list[Table]:
    """Each text at each size."""
    return [utf8_table(module, title, size) for size in TEXT_BYTES for title in TEXTS]


def header_tables(module: Any) -> list[Table]:
    """Consecutive headers of a client: where the next one begins is known only after the one before is parsed."""
    count = 64
    frames = {
        "7-bit length": struct.pack("!BB4s", 0x82, 0x80 | 20, b"\x37\xfa\x21\x3d") + bytes(20),
        "16-bit length": struct.pack("!BBH4s", 0x82, 0x80 | 126, 200, b"\x37\xfa\x21\x3d") + bytes(200),
        "64-bit length": struct.pack("!BBQ4s", 0x82, 0x80 | 127, 65536, b"\x37\xfa\x21\x3d") + bytes(65536),
    }

    def candidate(name: str, frame: bytes) -> Candidate:
        data = frame * count
        return Candidate(name, lambda repeats: int(module.lib.loop_headers(data, len(data), repeats)), count)

    return [Table("frame headers", 1e3, "million/s", [candidate(name, frame) for name, frame in frames.items()])]


def engine_table(module: Any, size: int) -> Table:
    """From bytes received to bytes to send, beside a copy of each frame."""
    ffi, lib = module.ffi, module.lib
    length = struct.pack("!B", 0x80 | size) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
    frame = b"\x82" + length + b"\x37\xfa\x21\x3d" + bytes(size)
    answer_bytes = len(frame) - 4  # all but the masking key
    lib.urs_mask_select(b"auto")

    def candidate(name: str, frames: int, loop: Any) -> Candidate:
        """Reads of that many frames each; each read starts a cache line."""
        stride = -(-frames * len(frame) // 64) * 64
        reads = max(1, RECEIVED_BYTES // stride)
        received = ffi.from_buffer(bytearray(reads * stride))
        source = ffi.from_buffer(frame)
        described = ffi.new("struct loop_reads *", (received, source, len(frame), frames, reads, stride, answer_bytes))

        def run(repeats: int, _alive: object = (received, source)) -> int:
            return int(loop(described, repeats))

        return Candidate(name, run, reads * frames)

    answered = [candidate(f"{frames} a read", frames, lib.loop_engine) for frames in (1, 16, 64)]
    title = f"engine, frames of {size:,} bytes answered"
    return Table(title, 1e3, "million/s", [candidate("memcpy", 1, lib.loop_receive), *answered])


def engine_tables(module: Any) -> list[Table]:
    """Each size."""
    return [engine_table(module, size) for size in (20, 125, 1024, 16 << 10)]


TABLES: dict[str, Callable[[Any], Iterable[Table]]] = {
    "mask": mask_tables,
    "utf8": utf8_tables,
    "headers": header_tables,
    "engine": engine_tables,
    "dispatch": dispatch_tables,
    "memberships": membership_tables,
    "send": send_tables,
}


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        description="Microbenchmarks of the shim's parts, of Python's dispatch and of sends."
    )
    parser.add_argument("what", nargs="*", help=f"some of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=21, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=0.005, help="for each candidate in each round (default: %(default)s)"
    )
    parser.add_argument("--topic-tree", metavar="COMMAND", help="of memberships: another library's program")
    options = parser.parse_args()
    if unknown := set(options.what) - set(TABLES):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")

    tables = TABLES.copy()
    tables["memberships"] = partial(membership_tables, topic_tree=options.topic_tree)
    print(f"{machine.cpu_model()}, {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as directory:
        module = compile_loops(directory)
        for name in options.what or tables:
            try:
                for table in tables[name](module):
                    report(table, Effort(options.rounds, options.seconds))
            except UnavailableError as reason:
                print(f"\n{name}: not on this machine: {reason}")


if __name__ == "__main__":
    main()
