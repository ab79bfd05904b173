"""Breaks the library on purpose, one line at a time, and sees whether the tests notice.

    python tests/mutate.py                      every mutant, about ten seconds each
    python tests/mutate.py --only echo-limit    one of them; --only may be given several times
    python tests/mutate.py --list               what there is
    python tests/mutate.py --check              only see whether each line and each test named is there
    python tests/mutate.py --table FILE         also write the results as a Markdown table

Each mutant in mutants.py is one change of the source that breaks one promise, and the tests that hold the promise.
The tree is copied to a temporary directory. There the tests of the chosen mutants are run once on the sources as they
are, where all must pass. Then each mutant is applied alone, the shim is rebuilt if it is written in C, and each test
named must fail, or it cannot fail. Tests that need fault points build their own shim from the copy.

The exit status is 0 if every mutant was killed, 1 if one survived, 2 if one could not be tried: its line is no longer
in the source, it does not compile, or its tests do not pass without it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "uring_shim", "licenses", "tests", "examples", "pyproject.toml", "README.md", "LICENSE")
LEFT_OUT = shutil.ignore_patterns("*.so", "__pycache__", "node_modules", "*.egg-info", "_shim.c", "build")
BUILD_SECONDS_MAX = 180.0
TEST_SECONDS_MAX = 120.0
PASSED, FAILED, INTERRUPTED = 0, 1, 2
"""Exit statuses of pytest; a crash of the interpreter is a negative number, any other status a test that did not
run."""


class NotTriedError(Exception):
    """A mutant that says nothing about its tests."""


@dataclass(frozen=True)
class Result:
    """The result of one mutant."""

    mutant: Mutant
    outcome: str
    """"killed", "SURVIVED" or "not tried"."""
    detail: str
    seconds: float


class Tree:
    """A copy of the repository that may be broken."""

    def __init__(self, directory: Path) -> None:
        """Copy what building and testing need."""
        self.directory = directory
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, directory / name, ignore=LEFT_OUT)
            else:
                shutil.copy(source, directory)

    def run(self, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
        """Run Python in the copy. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(self.directory / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )

    def build(self) -> None:
        """Build the shim in place. Raises NotTriedError with the compiler's last lines."""
        built = self.run("uring_shim/build_ffi.py", seconds=BUILD_SECONDS_MAX)
        if built.returncode != 0:
            raise NotTriedError("the shim does not compile:\n" + last_lines(built.stdout, 12))

    def failure(self, test: str) -> str | None:
        """Run one test, all its parameters; return how it failed, or None if it passed.

        Raises NotTriedError if it was not run.
        """
        try:
            run = self.run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test, seconds=TEST_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            return "time-out"
        if run.returncode == PASSED:
            if " passed" not in run.stdout:
                raise NotTriedError(f"{test} was skipped:\n{last_lines(run.stdout, 5)}")
            return None
        if run.returncode < 0:
            return f"crash (signal {-run.returncode})"
        if run.returncode == FAILED:
            failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED tests/", "ERROR tests/"))]
            return failed[0].partition(" - ")[0].rpartition("::")[2] if failed else "failed"
        if run.returncode == INTERRUPTED and "! KeyboardInterrupt !" in run.stdout:
            return "a KeyboardInterrupt that the test expects elsewhere"
        if "Timeout" in run.stdout:  # pytest-timeout in thread mode ends the process
            return "time-out"
        raise NotTriedError(f"{test} could not be run:\n{last_lines(run.stdout, 12)}")


def last_lines(text: str, count: int) -> str:
    """Return the end of a program's output, indented."""
    return "\n".join(f"    {line}" for line in text.splitlines()[-count:])


def mutated(mutant: Mutant, source: str) -> str:
    """Return the mutant's source file with its change. Raises NotTriedError unless its snippet is there once."""
    count = source.count(mutant.snippet)
    if count != 1:
        raise NotTriedError(f"the snippet is in {mutant.file} {count} times, not once: {mutant.snippet!r}")
    return source.replace(mutant.snippet, mutant.replacement)


def try_mutant(tree: Tree, mutant: Mutant, failing: dict[str, str]) -> tuple[str, str]:
    """Apply a mutant, run its tests, undo it; return the outcome and its detail."""
    for test in mutant.tests:
        if test in failing:
            return "not tried", f"{test} does not pass without a mutant: {failing[test]}"
    target = tree.directory / mutant.file
    source = target.read_text()
    is_c = mutant.file.startswith("uring_shim/")
    try:
        target.write_text(mutated(mutant, source))
        if is_c:
            tree.build()
        failures = {test: tree.failure(test) for test in mutant.tests}
    except NotTriedError as error:
        return "not tried", str(error)
    finally:
        target.write_text(source)
    passed = [test for test, failure in failures.items() if failure is None]
    if passed:
        return "SURVIVED", "passes all the same: " + ", ".join(passed)
    return "killed", "; ".join(failure for failure in failures.values() if failure is not None)


def failing_unbroken(tree: Tree, mutants: list[Mutant]) -> dict[str, str]:
    """Run every test of the mutants on the sources as they are; return those that do not pass, and how they failed."""
    tree.build()
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    print(f"{len(mutants)} mutants; their {len(tests)} tests on the sources as they are:", flush=True)
    failing = {}
    for number, test in enumerate(tests, 1):
        try:
            failure = tree.failure(test)
        except NotTriedError as error:
            failure = str(error)
        if failure is not None:
            failing[test] = failure
        print(f"  [{number}/{len(tests)}] {test}: {failure or 'passed'}", flush=True)
    return failing


def check_lines(mutants: list[Mutant]) -> int:
    """See whether every mutant can be applied, and has its tests; return the exit status."""
    status = 0
    for mutant in mutants:
        try:
            mutated(mutant, (ROOT / mutant.file).read_text())
            check_tests(mutant)
        except NotTriedError as error:
            print(f"{mutant.name}: {error}")
            status = 2
    return status


def check_tests(mutant: Mutant) -> None:
    """Raise NotTriedError unless the file of each of the mutant's tests defines it."""
    for test in mutant.tests:
        file, _, name = test.partition("::")
        function = name.partition("[")[0]
        if f"def {function}(" not in (ROOT / file).read_text():
            raise NotTriedError(f"{file} has no {function}")


def markdown(results: list[Result]) -> str:
    """Return the results as a table for docs/mutants.md."""
    lines = ["| mutant | where | broken promise | outcome |", "|---|---|---|---|"]
    for result in results:
        mutant = result.mutant
        failed = ", ".join(f"`{test.removeprefix('tests/')}`" for test in mutant.tests)
        outcome = f"killed by {failed}" if result.outcome == "killed" else f"**{result.outcome}**"
        lines.append(f"| `{mutant.name}` | `{mutant.file}` | {mutant.promise} | {outcome} |")
    return "\n".join(lines) + "\n"


def chosen(names: list[str]) -> list[Mutant]:
    """Return the mutants of these names, or all. Exits with a message for an unknown name."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    if len(known) != len(MUTANTS):
        sys.exit("two mutants have the same name")
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no such mutant: {', '.join(unknown)} (see --list)")
    return [known[name] for name in names] if names else list(MUTANTS)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Break the library one line at a time; every mutant must be noticed.")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="try this mutant; may be repeated")
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    parser.add_argument("--check", action="store_true", help="see whether each line and test named is there")
    parser.add_argument(
        "--trust", action="store_true", help="take it that the tests pass without a mutant, as they just have"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the results there as a Markdown table")
    return parser.parse_args()


def main() -> int:
    """Try the mutants; return the exit status."""
    options = arguments()
    mutants = chosen(options.only)
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name:32} {mutant.file:28} {mutant.promise}")
        return 0
    if options.check:
        return check_lines(mutants)
    results = []
    with tempfile.TemporaryDirectory(prefix="uringws-mutants-") as directory:
        tree = Tree(Path(directory))
        failing = {} if options.trust else failing_unbroken(tree, mutants)
        for number, mutant in enumerate(mutants, 1):
            start = time.monotonic()
            outcome, detail = try_mutant(tree, mutant, failing)
            results.append(Result(mutant, outcome, detail, time.monotonic() - start))
            print(
                f"[{number}/{len(mutants)}] {mutant.name}: {outcome} in {results[-1].seconds:.1f} s ({detail})",
                flush=True,
            )
    counts = {
        outcome: sum(result.outcome == outcome for result in results) for outcome in ("killed", "SURVIVED", "not tried")
    }
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    for result in results:
        if result.outcome != "killed":
            print(f"{result.mutant.name} ({result.mutant.promise}): {result.outcome}: {result.detail}")
    if options.table is not None:
        options.table.write_text(markdown(results))
    return 2 if counts["not tried"] else 1 if counts["SURVIVED"] else 0


if __name__ == "__main__":
    sys.exit(main())
