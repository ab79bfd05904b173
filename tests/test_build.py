"""The build: how the cdef is cut from headers, messages about missing tools, and the names that the module exports.

And that every C file compiles without a warning, for this machine and for arm64.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cffi
import pytest
from setuptools import Distribution, Extension

import build_ffi
from servers import missing
from uringws import _shim, shim

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "uring_shim"
C_FILES = sorted(SHIM.glob("*.c"))
WITH_PYTHON = {"fast_engine.c", "fast_send.c"}  # Python.h is there for this machine's architecture only
PYTHON_HEADERS = [f"-isystem{path}" for path in {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}]
HEADERS = sorted(SHIM.glob("*.h"))

# Strict, but GNU C: -Wpedantic would refuse the extensions that -std=gnu11 asks for. And -Wcast-align would refuse the
# intrinsics for unaligned loads, which take pointers to vectors, and -Wnull-dereference whatever liburing returns NULL
# for when its queue is full, checked or not; UBSan sees the loads that are really misaligned, and ASan the null ones.
STRICT = [
    *("-std=gnu11", "-O2", "-Werror", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wsign-conversion"),
    *("-Wstrict-prototypes", "-Wmissing-prototypes", "-Wold-style-definition", "-Wredundant-decls"),
    *("-Wcast-qual", "-Wpointer-arith", "-Wwrite-strings", "-Wformat=2", "-Wvla", "-Wundef"),
    *("-Wdouble-promotion", "-Wimplicit-fallthrough"),
]
VARIANTS = {"plain": [], "faults": ["-DURS_FAULTS"]}

FAKE_COMPILER = """#!/bin/sh
# A compiler for a machine where the header @HEADER@ is not installed.
if grep -q '@HEADER@'; then exit 1; fi
"""


def compile_strictly(compiler: str, path: Path, *flags: str) -> None:
    """Compiles one file to nowhere, and fails with the compiler's own words where it has any."""
    if shutil.which(compiler) is None:
        missing(f"{compiler} is not installed")
    command = [compiler, *STRICT, *flags, "-c", "-x", "c", str(path), "-o", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr


class Without:
    """Puts a fake compiler in CC."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = directory / "cc"
        self._monkeypatch = monkeypatch

    def __call__(self, header: str) -> None:
        """From now on, whatever includes `header` does not compile."""
        self._path.write_text(FAKE_COMPILER.replace("@HEADER@", header))
        self._path.chmod(0o755)
        self._monkeypatch.setenv("CC", str(self._path))


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Without:
    """Makes this machine look as if a header were missing."""
    return Without(tmp_path, monkeypatch)


# The cut


def test_cut_keeps_the_text_between_the_marks() -> None:
    text = "#define A 1\n/* cdef: begin */\nint f(void);\n/* cdef: end */\nint g(void);\n"
    assert build_ffi.cut_cdef(text, "a.h") == '# 3 "a.h"\nint f(void);\n'


def test_cut_takes_every_zone_with_its_own_line() -> None:
    zone = "/* cdef: begin */\nint f{0}(void);\n/* cdef: end */\n"
    cut = build_ffi.cut_cdef(zone.format(1) + "\n" + zone.format(2), "a.h")
    assert cut == '# 2 "a.h"\nint f1(void);\n# 6 "a.h"\nint f2(void);\n'


def test_cut_of_a_header_without_marks_is_empty() -> None:
    assert build_ffi.cut_cdef("int f(void);\n", "a.h") == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/* cdef: begin */\n", "a.h:1: the cdef zone never ends"),
        ("\n/* cdef: end */\n", "a.h:2: a cdef zone ends that never began"),
        ("/* cdef: begin */\n/* cdef: begin */\n", "a.h:2: a cdef zone begins inside the one of line 1"),
    ],
)
def test_cut_refuses_marks_out_of_order(text: str, says: str) -> None:
    with pytest.raises(build_ffi.BuildError, match=re.escape(says)):
        build_ffi.cut_cdef(text, "a.h")


def test_error_in_a_declaration_names_header_and_line() -> None:
    text = "\n\n/* cdef: begin */\nint good(void);\nint bad(;\n/* cdef: end */\n"
    with pytest.raises(cffi.CDefError, match=r"a\.h:5:"):
        cffi.FFI().cdef(build_ffi.cut_cdef(text, "a.h"))


def test_headers_come_in_include_order(tmp_path: Path) -> None:
    for name in ("utf8.h", "mask.h", "base.h"):
        (tmp_path / name).write_text("/* cdef: begin */\n/* cdef: end */\n")
    (tmp_path / "private.h").write_text("int f(void);\n")
    assert list(build_ffi.cut_headers(tmp_path)) == ["base.h", "mask.h", "utf8.h"]


def test_header_that_is_not_listed_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "new.h").write_text("/* cdef: begin */\nint f(void);\n/* cdef: end */\n")
    with pytest.raises(build_ffi.BuildError, match=r"new\.h: add the name to HEADERS in uring_shim/build_ffi\.py"):
        build_ffi.cut_headers(tmp_path)


@pytest.mark.parametrize("name", build_ffi.HEADERS)
def test_include_order_holds_for_this_header(name: str) -> None:
    later = build_ffi.HEADERS[build_ffi.HEADERS.index(name) + 1 :]
    included = re.findall(r'#include "(.*?)"', (SHIM / name).read_text())
    assert [other for other in included if other in later] == []


# The build


@pytest.mark.parametrize(
    ("header", "packages"),
    [
        ("stdlib.h", ["gcc", "musl-dev"]),
        ("Python.h", ["python3-dev", "python3-devel", "python (Arch)"]),
        ("liburing.h", ["liburing-dev", "liburing-devel", "liburing (Arch)"]),
        ("zlib.h", ["zlib1g-dev", "zlib-devel", "zlib (Arch)", "zlib-static"]),
    ],
)
def test_missing_tools_are_named_with_their_packages(without: Without, header: str, packages: list[str]) -> None:
    without(header)
    with pytest.raises(build_ffi.BuildError) as caught:
        build_ffi.check_requirements()
    message = str(caught.value)
    assert "\n" not in message
    for word in (*packages, "Debian", "Ubuntu", "Fedora", "Arch", "Alpine"):
        assert word in message


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(build_ffi.BuildError, match="a C compiler"):
        build_ffi.check_requirements()


def test_build_stops_with_one_line(without: Without, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("licenses", "uring_shim"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "src" / "uringws").mkdir(parents=True)
    shutil.copy(ROOT / "src" / "uringws" / "version.py", tmp_path / "src" / "uringws")
    without("liburing.h")
    script = tmp_path / "uring_shim" / "build_ffi.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(r"uringws cannot be built: liburing\.h.*\n", result.stderr)


@pytest.mark.parametrize(
    ("archives", "objects", "libraries"),
    [
        (["uring", "z"], ["/lib/liburing.a", "/lib/libz.a"], []),
        (["uring"], ["/lib/liburing.a"], ["z"]),
        ([], [], ["uring", "z"]),
    ],
)
def test_libraries_are_linked_statically_where_they_can_be(
    monkeypatch: pytest.MonkeyPatch, archives: list[str], objects: list[str], libraries: list[str]
) -> None:
    monkeypatch.setattr(
        build_ffi, "static_library", lambda name: Path(f"/lib/lib{name}.a") if name in archives else None
    )
    extension = Extension("uringws._shim", [])
    build_ffi.BuildExtension(Distribution()).pre_run(extension, cffi.FFI())
    assert (extension.extra_objects, extension.libraries) == (objects, libraries)


def test_two_variants_never_share_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URING_SHIM_SANITIZE", "URING_SHIM_FAULTS"):
        monkeypatch.delenv(name, raising=False)
    preambles = {build_ffi.preamble({})}
    monkeypatch.setenv("URING_SHIM_FAULTS", "1")
    preambles.add(build_ffi.preamble({}))
    monkeypatch.setenv("URING_SHIM_SANITIZE", "1")
    preambles.add(build_ffi.preamble({}))
    monkeypatch.setenv("URING_SHIM_FAULTS", "0")
    preambles.add(build_ffi.preamble({}))
    assert len(preambles) == 4


def test_extension_serves_every_python() -> None:
    assert Path(_shim.__file__).name == "_shim.abi3.so"


@pytest.mark.parametrize("name", build_ffi.LIBRARIES)
def test_extension_brings_its_libraries_along(name: str) -> None:
    if build_ffi.static_library(name) is None:
        missing(f"lib{name}.a is not installed")
    needed = subprocess.run(["readelf", "-d", _shim.__file__], capture_output=True, text=True, check=True).stdout
    assert f"[lib{name}.so" not in needed


def test_extension_exports_nothing_but_its_entry() -> None:
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", _shim.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[-1] for line in listing.splitlines()} == {"PyInit__shim"}


def test_every_name_of_the_shim_has_its_prefix() -> None:
    assert [name for name in dir(_shim.lib) if not name.startswith(("urs_", "URS_"))] == []


def test_the_functions_outside_cffi_check_their_arguments() -> None:
    """A wrong argument raises, and a closed reactor has no session."""
    assert shim.fast_send(0, 1 << 32, 0, 1, b"") == _shim.lib.URS_ERROR_STALE
    assert shim.fast_send_event(0, 1 << 32, 0, 1) == _shim.lib.URS_ERROR_STATE
    wrong: tuple[tuple[object, ...], ...] = (
        (),
        (0, 1, 0, 1),
        (0, 1, 0, 1, "str"),
        (0, 1, 0, 1, bytearray()),
        (0, "1", 0, 1, b""),
    )
    for arguments in wrong:
        with pytest.raises(TypeError):
            shim.fast_send(*arguments)
    with pytest.raises(TypeError):
        shim.fast_send_event(0, 1, 0)
    with pytest.raises(TypeError):
        shim.fast_copy(0)
    with pytest.raises(IndexError):
        shim.fast_copy(0, 0)
    with pytest.raises(OverflowError):
        shim.fast_send(0, -1, 0, 1, b"")
    with pytest.raises(RuntimeError):
        shim.fast_feed(None, 0, b"", 1)
    for arguments in ((), (None, 0, b""), (None, "0", b"", 1), (None, 0, b"", "1")):
        with pytest.raises(TypeError):
            shim.fast_feed(*arguments)
    for arguments in ((), (1, True), ("1", True, b""), (1, True, None)):
        with pytest.raises(TypeError):
            shim.fast_frame(*arguments)
    with pytest.raises(ValueError, match="opcode"):
        shim.fast_frame(11, True, b"")


# The compilers


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_compiles_without_a_warning(path: Path, compiler: str, variant: str) -> None:
    python = ["-DPy_LIMITED_API=" + build_ffi.LIMITED_API, *PYTHON_HEADERS] if path.name in WITH_PYTHON else []
    compile_strictly(compiler, path, *python, *VARIANTS[variant])


@pytest.mark.parametrize("path", HEADERS, ids=lambda path: path.name)
def test_header_stands_alone(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "alone.c"
    source.write_text(f'#include "{path.name}"\n#include "{path.name}"\n')
    compile_strictly("gcc", source, f"-I{SHIM}", "-D_GNU_SOURCE")  # which each file defines that needs it


@pytest.fixture(scope="module")
def library_headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The headers of liburing and zlib in a directory of their own.

    They are the same on every machine of 64 bits; those beside them are not.
    """
    includes = "#include <liburing.h>\n#include <zlib.h>\n"
    listing = subprocess.run(
        ["gcc", "-M", "-x", "c", "-"], input=includes, capture_output=True, text=True, check=True
    ).stdout
    target = tmp_path_factory.mktemp("include")
    for name in ("liburing.h", "zlib.h", "zconf.h"):
        shutil.copy(next(Path(word) for word in listing.split() if word.endswith(f"/{name}")), target)
    header = next(Path(word) for word in listing.split() if word.endswith("/liburing.h"))
    shutil.copytree(header.parent / "liburing", target / "liburing")
    return target


@pytest.mark.parametrize("path", [path for path in C_FILES if path.name not in WITH_PYTHON], ids=lambda path: path.name)
def test_compiles_for_arm64(path: Path, library_headers: Path) -> None:
    compile_strictly("aarch64-linux-gnu-gcc", path, "-isystem", str(library_headers))


def test_an_extension_that_was_not_built_is_said_to_be_missing() -> None:
    code = "import sys; sys.modules['uringws._shim'] = None; import uringws"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    last = process.stderr.splitlines()[-1]
    assert last.startswith("ImportError: the C extension uringws._shim cannot be loaded")
    assert "pip install ." in last
    assert "build_ffi.py" in last
