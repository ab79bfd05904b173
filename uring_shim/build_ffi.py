"""Describes the cffi module `uringws._shim` and builds it.

Imported by the build backend for wheels and editable installs; run as a script, `python uring_shim/build_ffi.py`, it
builds the module in place, into src/uringws. The declarations are cut out of the C headers: none is written here.

Environment: URING_SHIM_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer, URING_SHIM_FAULTS=1
with the fault injection that some tests need; both check the shim's assertions. CC, CFLAGS and LDFLAGS are heeded as
setuptools does.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import cffi
import setuptools
from setuptools.command.build_ext import build_ext

import build_description

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "uring_shim"

# Every header with a cdef zone, each after those whose types it uses. One that is not listed stops the build.
HEADERS = (
    "base.h",
    "signals.h",
    "block.h",
    "chain.h",
    "mask.h",
    "utf8.h",
    "frame.h",
    "deflate.h",
    "engine.h",
    "prepared.h",
    "outbound.h",
    "pool.h",
    "rules.h",
    "session.h",
    "history.h",
    "topics.h",
    "fault.h",
    "io.h",
    "reactor.h",
    "command.h",
    "batch.h",
    "fanout.h",
    "publish.h",
    "fast_send.h",
    "fast_engine.h",
)

ZONE_BEGIN = "/* cdef: begin */"
ZONE_END = "/* cdef: end */"

# One wheel for every CPython from 3.11 on: the limited API compiled against, and its name in the wheel's tag.
LIMITED_API = "0x030B0000"
LIMITED_API_TAG = "cp311"

COMPILE_FLAGS = ("-std=gnu11", "-O3", "-fvisibility=hidden")
LINK_FLAGS = ("-Wl,--exclude-libs,ALL",)  # static libraries stay private to the module
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
SANITIZE_COMPILE_FLAGS = (*SANITIZE, "-fno-omit-frame-pointer", "-O1", "-g", "-UNDEBUG")

# The requirements of a build: each has a probe that compiles where it is there, its name, and the packages that bring
# it.
REQUIREMENTS = (
    (
        "#include <stdlib.h>\n",
        "a C compiler with the C library's headers",
        "gcc (Debian, Ubuntu, Fedora, Arch), gcc and musl-dev (Alpine)",
    ),
    (
        "#include <Python.h>\n",
        "Python.h",
        "python3-dev (Debian, Ubuntu, Alpine), python3-devel (Fedora), python (Arch)",
    ),
    (
        "#include <liburing.h>\nvoid *probe(void) { return (void *)io_uring_prep_recv_multishot; }\n",
        "liburing.h, version 2.3 or later",
        "liburing-dev (Debian, Ubuntu; Alpine: and linux-headers), liburing-devel (Fedora), liburing (Arch)",
    ),
    (
        "#include <zlib.h>\n#if ZLIB_VERNUM < 0x12c0\n#error too old: CVE-2018-25032\n#endif\n",
        "zlib.h, version 1.2.12 or later",
        "zlib1g-dev (Debian, Ubuntu), zlib-devel (Fedora), zlib (Arch), zlib-dev and zlib-static (Alpine)",
    ),
)


class BuildError(SystemExit):
    """Ends the build with its message as the only line: the problem and its remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(f"uringws cannot be built: {message}")


def flag(name: str) -> bool:
    """Whether the environment variable `name` is set to something other than 0."""
    return os.environ.get(name, "0") not in ("", "0")


def cut_cdef(text: str, name: str) -> str:
    """Returns what stands between the cdef marks of the header `name`, or "" for a header without marks.

    A header may hold several zones. Each is preceded by a line directive, so that cffi's errors name the header's own
    lines.
    """
    zones: list[str] = []
    open_line = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() == ZONE_BEGIN:
            if open_line:
                raise BuildError(f"{name}:{number}: a cdef zone begins inside the one of line {open_line}")
            open_line = number
            zones.append(f'# {number + 1} "{name}"')
        elif line.strip() == ZONE_END:
            if not open_line:
                raise BuildError(f"{name}:{number}: a cdef zone ends that never began")
            open_line = 0
        elif open_line:
            zones.append(line)
    if open_line:
        raise BuildError(f"{name}:{open_line}: the cdef zone never ends")
    return "".join(line + "\n" for line in zones)


def cut_headers(shim: Path = SHIM) -> dict[str, str]:
    """Returns the cdef of every header in `shim` that has one, by file name, in the order of HEADERS."""
    found = {path.name: cut_cdef(path.read_text(encoding="utf-8"), path.name) for path in shim.glob("*.h")}
    unknown = sorted(name for name, cdef in found.items() if cdef and name not in HEADERS)
    if unknown:
        raise BuildError(f"{', '.join(unknown)}: add the name to HEADERS in uring_shim/build_ffi.py, in include order")
    return {name: found[name] for name in HEADERS if found.get(name)}


def compiler() -> list[str]:
    """The command that compiles, with the user's flags, as setuptools will run it."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return shlex.split(f"{command} {os.environ.get('CPPFLAGS', '')} {os.environ.get('CFLAGS', '')}")


def compiles(source: str) -> bool:
    """Whether the C `source` compiles, with Python's headers in reach."""
    includes = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    command = [*compiler(), *(f"-I{path}" for path in sorted(includes)), "-fsyntax-only", "-x", "c", "-"]
    try:
        return subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode == 0
    except OSError:  # there is no such program
        return False


def check_requirements() -> None:
    """Raises BuildError with one line, which names the packages, for the first thing missing."""
    for probe, what, packages in REQUIREMENTS:
        if not compiles(probe):
            raise BuildError(f"{what} not found; install {packages}")


# The libraries that the shim is linked with: from their archives where those are installed, so that the machine that
# runs a wheel needs none of them.
LIBRARIES = ("uring", "z")


def static_library(name: str) -> Path | None:
    """The archive of lib`name` that the compiler would link, or None where there is only a shared library."""
    command = [*compiler(), f"-print-file-name=lib{name}.a"]
    path = Path(subprocess.run(command, text=True, capture_output=True, check=True).stdout.strip())
    return path if path.is_absolute() else None  # a file that is not found comes back as the bare name


def preamble(headers: dict[str, str]) -> str:
    """The C that opens the generated source.

    It names the build's variant: the source then differs between two variants, and setuptools, which compares dates,
    builds again when the variant changes.
    """
    variant = " ".join(name for name in ("URING_SHIM_SANITIZE", "URING_SHIM_FAULTS") if flag(name))
    return f"/* variant: {variant or 'plain'} */\n" + "".join(f'#include "{name}"\n' for name in headers)


def ffibuilder() -> cffi.FFI:
    """The module's description, for the setup keyword `cffi_modules`.

    Paths are relative to the project's root, as setuptools wants them.
    """
    headers = cut_headers()
    ffi = cffi.FFI()
    ffi.cdef("".join(headers.values()))
    macros: list[tuple[str, str | None]] = [("Py_LIMITED_API", LIMITED_API)]
    if flag("URING_SHIM_FAULTS"):
        macros.append(("URS_FAULTS", None))
    if flag("URING_SHIM_FAULTS") or flag("URING_SHIM_SANITIZE"):
        macros.append(("URS_ASSERTIONS", None))
    ffi.set_source(
        "uringws._shim",
        preamble(headers),
        sources=sorted(f"uring_shim/{path.name}" for path in SHIM.glob("*.c")),
        depends=sorted(f"uring_shim/{path.name}" for pattern in ("*.h", "*.py") for path in SHIM.glob(pattern)),
        include_dirs=["uring_shim"],
        define_macros=macros,
        py_limited_api=True,
        extra_compile_args=[*COMPILE_FLAGS, *(SANITIZE_COMPILE_FLAGS if flag("URING_SHIM_SANITIZE") else ())],
        extra_link_args=[*LINK_FLAGS, *(SANITIZE if flag("URING_SHIM_SANITIZE") else ())],
    )
    return ffi


class BuildExtension(build_ext):
    """build_ext that first looks for what the compilation needs. An sdist or the metadata need none of it."""

    def pre_run(self, extension: setuptools.Extension, ffi: cffi.FFI) -> None:
        """Called by cffi just before it writes the generated source."""
        check_requirements()
        for name in LIBRARIES:
            archive = static_library(name)
            if archive:
                extension.extra_objects.append(str(archive))
            else:
                extension.libraries.append(name)
        if not (self.inplace or self.editable_mode or flag("URING_SHIM_SANITIZE")):
            extension.extra_link_args.append("-Wl,--strip-all")  # three quarters of a wheel would be symbols


def setup(arguments: list[str]) -> None:
    """Runs setuptools, with the `arguments` of its command line, and with what pyproject.toml cannot say."""
    address = build_description.repository()
    setuptools.setup(
        script_args=arguments,
        long_description=build_description.description((ROOT / "README.md").read_text(encoding="utf-8"), address),
        long_description_content_type="text/markdown",
        project_urls=build_description.project_urls(address),
        cffi_modules=["uring_shim/build_ffi.py:ffibuilder"],
        cmdclass={"build_ext": BuildExtension},
        options={"bdist_wheel": {"py_limited_api": LIMITED_API_TAG}},
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        raise SystemExit(__doc__)
    os.chdir(ROOT)
    setup(["--quiet", "build_ext", "--inplace"])
