"""Builds the fuzz targets with clang's libFuzzer, ASan and UBSan, runs each for a while, and prints what was covered.

    python fuzz/fuzz.py                          every target, 10 seconds each, as in CI
    python fuzz/fuzz.py --seconds 3600 reactor   one target, for long
    python fuzz/fuzz.py --replay FILE engine     one input again, with its report

Everything goes to build/fuzz/<target>/: the program, the corpus (a later run begins with what an earlier one found),
and inputs that failed, as crash-*, leak-*, timeout-* or oom-*. The exit status is 0 if nothing failed. Needs clang;
with llvm-profdata and llvm-cov beside it, --coverage counts the lines reached.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import seeds

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "fuzz"
SHIM = ROOT / "uring_shim"
BUILD = ROOT / "build" / "fuzz"

SANITIZERS = "address,undefined"
FLAGS = (
    "-std=gnu11",
    "-DURS_ASSERTIONS",
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fno-sanitize-recover=undefined",
    f"-I{SHIM}",
)
WARNINGS = ("-Wall", "-Wextra", "-Werror")
COVERAGE = ("-fprofile-instr-generate", "-fcoverage-mapping")

# The shim asks these of the system; in the targets that define them, it asks the target.
ALLOCATION = ("malloc", "calloc", "realloc")
CLOCK = ("clock_gettime",)


@dataclass(frozen=True)
class Target:
    """A libFuzzer program: fuzz/<name>.c and the files of the shim that it is linked with."""

    name: str
    files: tuple[str, ...]
    seeds: Callable[[], Iterator[bytes]]
    input_bytes_max: int
    replaced: tuple[str, ...] = ()
    macros: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        """Where everything of this target goes."""
        return BUILD / self.name


CODEC = ("block", "chain", "deflate", "engine", "frame", "mask", "outbound", "pages", "utf8")
NOT_FUZZED = {"io_uring", "fast_engine", "fast_send"}  # which need a kernel, and Python
REACTOR = tuple(sorted({path.stem for path in SHIM.glob("*.c")} - NOT_FUZZED))
TARGETS = {
    target.name: target
    for target in (
        Target("leaves", ("frame", "head", "mask", "utf8"), seeds.leaves, 512),
        Target("deflate", ("block", "deflate", "pages"), seeds.deflate, 2048, ALLOCATION),
        Target("engine", CODEC, seeds.engine, 1024, ALLOCATION),
        Target("topics", (*CODEC, "history", "session", "topics"), seeds.topics, 2048, ALLOCATION),
        Target("reactor", REACTOR, seeds.reactor, 2048, (*ALLOCATION, *CLOCK), ("URS_FAULTS",)),
    )
}


def run(command: list[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and keeps what it prints."""
    return subprocess.run(
        command,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        env={**os.environ, **environment},
    )


def build(target: Target, program: str, instrumentation: tuple[str, ...]) -> Path:
    """Compiles and links what has changed since the last time; returns the program's path."""
    objects = target.directory / f"{program}.o"
    objects.mkdir(parents=True, exist_ok=True)
    headers = max(header.stat().st_mtime for header in (*SHIM.glob("*.h"), *FUZZ.glob("*.h"), Path(__file__)))
    macros = [f"-D{macro}" for macro in target.macros]
    renamed = [f"-D{name}=fuzz_{name}" for name in target.replaced]

    def compile_one(source: Path) -> Path:
        output = objects / f"{source.parent.name}-{source.stem}.o"
        if not output.exists() or output.stat().st_mtime < max(headers, source.stat().st_mtime):
            names = renamed if source.parent == SHIM else []
            check(["clang", *FLAGS, *WARNINGS, *instrumentation, *macros, *names, "-c", source, "-o", output])
        return output

    sources = [FUZZ / f"{target.name}.c", *(SHIM / f"{name}.c" for name in target.files)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(compile_one, sources))
    path = target.directory / program
    check(["clang", *FLAGS, *instrumentation, *compiled, "-lz", "-o", path])
    return path


def check(command: list[str | Path]) -> str:
    """Runs a command that has to succeed; returns what it printed."""
    result = run(command)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stdout}")
    return result.stdout


def write_seeds(target: Target) -> Path:
    """Writes the seed corpus again; returns its directory."""
    directory = target.directory / "seeds"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for number, seed in enumerate(target.seeds()):
        (directory / f"{number:03}").write_bytes(seed)
    return directory


def figure(pattern: str, output: str) -> int:
    """The number in the last match of `pattern`, 0 for none."""
    found = re.findall(pattern, output)
    return int(found[-1]) if found else 0


def fuzz(target: Target, seconds: int) -> bool:
    """Runs a target for a while and prints its figures; returns whether nothing failed."""
    program = build(target, "fuzz", (f"-fsanitize=fuzzer,{SANITIZERS}",))
    corpus = target.directory / "corpus"
    corpus.mkdir(exist_ok=True)
    result = run(
        [
            program,
            f"-max_total_time={seconds}",
            f"-max_len={target.input_bytes_max}",
            f"-artifact_prefix={target.directory}/",
            "-timeout=20",
            "-print_final_stats=1",
            corpus,
            write_seeds(target),
        ]
    )
    output = result.stdout
    executions = figure(r"stat::number_of_executed_units: (\d+)", output)
    edges, features = figure(r"cov: (\d+)", output), figure(r"ft: (\d+)", output)
    inputs = sum(1 for _ in corpus.iterdir())
    print(f"{target.name}: {executions} executions, {edges} edges, {features} features, {inputs} inputs in the corpus")
    if result.returncode == 0:
        return True
    print(output)
    for artifact in re.findall(r"Test unit written to (\S+)", output):
        print(f"run it again: python fuzz/fuzz.py --replay {os.path.relpath(artifact)} {target.name}")
    return False


def report_coverage(target: Target) -> None:
    """Replays the corpus in a build that counts lines, and prints which share of each file of the shim ran."""
    if shutil.which("llvm-profdata") is None or shutil.which("llvm-cov") is None:
        print("lines are not counted: llvm-profdata and llvm-cov are not installed")
        return
    program = build(target, "coverage", ("-fsanitize=fuzzer", *COVERAGE))
    raw, data = target.directory / "raw.profile", target.directory / "profile"
    run([program, "-runs=0", target.directory / "corpus", target.directory / "seeds"], LLVM_PROFILE_FILE=str(raw))
    check(["llvm-profdata", "merge", "-sparse", raw, "-o", data])
    export = check(["llvm-cov", "export", "-summary-only", f"-instr-profile={data}", program])
    total = {"lines": [0, 0], "branches": [0, 0]}
    for file in json.loads(export)["data"][0]["files"]:
        path = Path(file["filename"])
        if path.parent != SHIM:
            continue
        shares = []
        for kind, (count, covered) in total.items():
            summary = file["summary"][kind]
            total[kind] = [count + summary["count"], covered + summary["covered"]]
            shares.append(f"{kind} {summary['covered']}/{summary['count']}")
        print(f"  {path.name:12} {', '.join(shares)}")
    shares = [f"{kind} {covered}/{count} ({covered / count:.1%})" for kind, (count, covered) in total.items()]
    print(f"  {'all':12} {', '.join(shares)}")


def main() -> int:
    """Does what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], metavar="target", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=10, help="for each target (default: 10)")
    parser.add_argument("--coverage", action="store_true", help="count the lines that the corpus reaches")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input and nothing else")
    arguments = parser.parse_args()
    targets = [TARGETS[name] for name in arguments.targets or TARGETS]
    if arguments.replay:
        (target,) = targets
        program = build(target, "fuzz", (f"-fsanitize=fuzzer,{SANITIZERS}",))
        return subprocess.run([program, arguments.replay], check=False).returncode
    passed = True
    for target in targets:
        passed = fuzz(target, arguments.seconds) and passed
        if arguments.coverage:
            report_coverage(target)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
