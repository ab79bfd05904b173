"""The project's rules that no linter knows: the direction of includes and imports, the layout of files, plain words.

A new file fails here until it has a layer.
"""

import ast
import graphlib
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import mutate
import uringws
from mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "uring_shim"
PACKAGE = ROOT / "src" / "uringws"

# A file may include files of its own layer and of those above it in this list, as long as there is no circle.
C_LAYERS = (
    {"base"},
    {"pages"},
    {"block", "fault", "frame", "head", "mask", "signals", "utf8", "wheel"},
    {"chain"},
    {"deflate"},
    {"engine", "prepared"},
    {"outbound"},
    {"pool"},
    {"io"},
    {"io_fault"},
    {"io_epoll", "io_uring"},
    {"rules", "session"},
    {"history", "topics"},
    {"backlog", "gate"},
    {"reactor.h"},
    {"core"},
    {"peers", "run", "work"},
    {"fast_engine", "intake", "invariants", "watch", "zero_copy"},
    {"deadline"},
    {"lifecycle"},
    {"admission", "budget", "flush"},
    {"apply", "upkeep"},
    {"feed"},
    {"turn"},
    {"command", "fanout", "publish", "reactor.c"},
    {"batch", "fast_send"},
)

PYTHON_LAYERS = (
    {"field_docs", "shim", "version"},
    {"kinds"},
    {
        "callbacks",
        "closing",
        "errors",
        "extensions",
        "limits",
        "options",
        "frames",
        "ownership",
        "run_state",
        "seconds",
        "sending",
        "signals",
        "sockets",
        "stats",
        "timers",
    },
    {"backend", "engine", "handshake", "http", "losses", "metrics", "proxy_protocol", "refusals"},
    {"core"},
    {"commands", "draining", "listeners", "services", "sessions", "upgrade", "watches"},
    {"batch", "connection", "deferred", "dispatch", "message", "prepared", "runs", "socket_view", "topics", "turn"},
    {"handler", "publisher", "sender"},
    {"driver", "reactor", "reactor_thread"},
    {"workers"},
    {"__init__"},
    {"asyncio", "doctor"},
    {"asgi", "links"},
    {"aiohttp", "gunicorn", "uvicorn"},
    {"__main__"},
)

# The engine and what it stands on do no I/O and know no clock: from the system they take memory and arithmetic.
PURE = {"base", "block", "chain", "engine", "frame", "head", "mask", "outbound", "prepared", "utf8", "wheel"}
PURE_HEADERS = re.compile(
    r"(assert|errno|limits|stdbool|stddef|stdint|stdlib|string|emmintrin|immintrin|arm_neon|cpuid)\.h|sys/auxv\.h"
)

# The I/O backends move bytes and do not know what the bytes mean.
PROTOCOL = {"engine.h", "frame.h", "mask.h", "outbound.h", "prepared.h", "utf8.h"}

ONLY_IN = {
    "liburing.h": "io_uring.c",
    "linux/io_uring.h": "io_uring.c",
    "sys/epoll.h": "io_epoll.c",
    "zlib.h": "deflate.c",
}

# A definition over several lines: it starts at the margin, its head holds no blank line, its brace ends at the margin.
FUNCTION = re.compile(
    r"^(?=\w)(?:__attribute__\(\(.*?\)\)\s)?(?:(?!\n\n)[^;={}(])+?(?P<name>\w+)\((?:(?!\n\n)[^;={}])*\)\s\{\n.*?^\}",
    re.MULTILINE | re.DOTALL,
)
C_FUNCTION_LINES_MAX = 45
PYTHON_FUNCTION_LINES_MAX = 50
FILE_LINES_MAX = 600

# Idioms that are hard for an engineer who learned English as a second language, each with a plainer wording.
PLAINER = {
    r"but for": "except",
    r"save for": "except",
    r"to be had": "available",
    r"of no (more )?use": "unusable",
    r"anew": "again",
    r"once more": "again",
    r"so too": "also",
    r"owe[sd]?": "say what must be sent",
    r"at hand": "name it",
    r"for good": "for ever, or say until when",
    r"for want of": "because ... is missing",
    r"hence|thus|thereof|lest": "so, of it, so that ... not",
    r"who(m|so)?ever|whichever": "name the thing",
    r"sees? to it": "ensures",
    r"behind": "after (for the order of bytes and list entries)",
    r"nobody|somebody": "name the code, thread or peer",
    r"as it were|in good order|beyond use": "say what is meant",
    r"(?:^|[.:;] )(What|Who)": "begin with the subject",
    r"(?:^|[.,:;] )should (a|an|the|it|they)": "if",
    r"were (it|there|they)": "if",
    r", for (he|it|nobody|others|they|who)": "because",
    r"(bytes|kind|many|messages|most|much|once|one|times?) an? "
    r"(connection|core|process|reactor|second|session|socket|turn)": "per",
}
PLAINER_PATTERN = re.compile("|".join(rf"(?:\b|^)(?:{pattern})\b" for pattern in PLAINER), re.IGNORECASE)
C_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|(?P<comment>/\*.*?\*/|//[^\n]*)', re.DOTALL)

# An attribute for its own class only. Those of a named tuple are public: its fields may not begin with an underscore.
PRIVATE = re.compile(r"_(?!_|(fields|replace|asdict|make)$)\w+")

SOURCE_SUFFIXES = {".c", ".h", ".js", ".mjs", ".py", ".sh"}
SOURCE_DIRECTORIES = ("bench", "examples", "fuzz", "src", "tests", "uring_shim")
NOT_OURS = {"__pycache__", "_build", "node_modules"}

C_FILES = sorted([*SHIM.glob("*.c"), *SHIM.glob("*.h")])
PYTHON_FILES = sorted(PACKAGE.rglob("*.py"))

# Function lengths are bounded here; a test may tell a long story.
BOUNDED_C = sorted([*SHIM.glob("*.c"), *(ROOT / "bench").rglob("*.c"), *(ROOT / "fuzz").glob("*.c")])
BOUNDED_PYTHON = sorted(
    path
    for name in ("bench", "examples", "fuzz", "src", "uring_shim")
    for path in (ROOT / name).rglob("*.py")
    if "node_modules" not in path.parts
)
C_SOURCES = sorted([*C_FILES, *(path for name in ("bench", "fuzz") for path in (ROOT / name).rglob("*.[ch]"))])
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def layer_of(name: str, layers: tuple[set[str], ...]) -> int:
    """The position in `layers` of the file `name`; a name without suffix stands for both of its files."""
    found = [index for index, layer in enumerate(layers) if {name, name.partition(".")[0]} & layer]
    assert found, f"{name} has no layer yet: add it to tests/test_structure.py"
    return found[0]


def assert_one_way(graph: dict[str, set[str]], layers: tuple[set[str], ...]) -> None:
    """Fails if a name of `graph` uses one of a later layer, or if names use each other in a circle."""
    for user, used in graph.items():
        wrong = [name for name in sorted(used) if layer_of(name, layers) > layer_of(user, layers)]
        assert not wrong, f"{user} may not use {', '.join(wrong)}"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def includes(path: Path) -> Iterator[tuple[str, bool]]:
    """The headers that a C file includes, each with whether it is one of the shim's own."""
    for mark, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), re.MULTILINE):
        yield name, mark == '"'


def own_includes(path: Path) -> set[str]:
    """The shim's headers that `path` includes."""
    return {name for name, own in includes(path) if own}


def is_type_checking(node: ast.AST) -> bool:
    """Whether `node` is `if TYPE_CHECKING:`, which imports nothing at run time."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports below `node` that happen at run time, those inside functions included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not is_type_checking(child):
            yield from import_nodes(child)


def imported_names(path: Path) -> Iterator[str]:
    """The dotted names that a Python file imports; `from a import b` gives "a.b"."""
    for node in import_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    """The name of a file of the package in PYTHON_LAYERS: its first part below uringws."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(path: Path) -> set[str]:
    """The package's modules that `path` imports, named as in PYTHON_LAYERS."""
    modules = {module_name(other) for other in PYTHON_FILES} | {"_shim"}
    parts = [name.split(".") for name in imported_names(path)]
    inside = {names[1] if names[1] in modules else "__init__" for names in parts if names[0] == "uringws" and names[1:]}
    return inside - {module_name(path)}


def c_functions(text: str) -> dict[str, int]:
    """The functions that a C file defines, each with its number of lines from its head to its closing brace."""
    return {match["name"]: match[0].count("\n") + 1 for match in FUNCTION.finditer(text)}


def c_comments(text: str) -> Iterator[tuple[int, str]]:
    """The comments of a C file, each with its line and its words on one line, without the marks."""
    for match in C_TOKEN.finditer(text):
        if match["comment"]:
            bare = re.sub(r"^/[*/]|\*/$|\n\s*\*?", " ", match["comment"])
            yield text.count("\n", 0, match.start()) + 1, " ".join(bare.split())


def python_comments(text: str) -> Iterator[tuple[int, str]]:
    """The comments and docstrings of a Python file, each with its line and its words on one line."""
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            above = comments.pop(token.start[0] - 1, "") if token.line.lstrip().startswith("#") else ""
            comments[token.start[0]] = f"{above} {token.string.lstrip('#! ')}"
    for line, words in comments.items():
        yield line, re.sub(r"`[^`]+`", "", words)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, re.sub(r"`[^`]+`", "", node.value.value)


def markdown_prose(text: str) -> Iterator[tuple[int, str]]:
    """The paragraphs of a Markdown page, each with its line; code is left out."""
    code = re.compile(r"^(```|:::).*?^\1$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
    bare = code.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in re.finditer(r"(?:^.*\S.*$\n?)+", bare, re.MULTILINE):
        yield bare.count("\n", 0, found.start()) + 1, found[0]


WORDY_NAME = re.compile(
    r"test_(what|who|whose|whoever|whatever|nobody|somebody)_|test_\w*_(owed|told|nobody|whoever)(_|$)"
)
READERS = {".py": python_comments, ".md": markdown_prose}
PLAIN_FILES = sorted(
    path
    for name in ("bench", "docs", "examples", "fuzz", "src", "tests", "uring_shim")
    for path in (ROOT / name).rglob("*")
    if path.suffix in READERS and not NOT_OURS & set(path.parts)
)
PLAIN_FILES += sorted(ROOT.glob("*.md"))


def wordy(text: str, suffix: str = ".c") -> list[str]:
    """The wordings of a file's prose for which PLAINER knows better, each with its line."""
    return [
        f"line {line}: {found[0].strip()!r} in {words!r}"
        for line, words in ((line, " ".join(words.split())) for line, words in READERS.get(suffix, c_comments)(text))
        for found in PLAINER_PATTERN.finditer(words)
    ]


def own_attributes(tree: ast.Module) -> set[str]:
    """The private attributes that a file's classes have: methods, slots, fields, and what is assigned to `self`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # of __slots__
    return {name for name in names if PRIVATE.fullmatch(name)}


def is_self(node: ast.AST) -> bool:
    """Whether `node` names the object, or the class, that a method belongs to."""
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_uses(tree: ast.Module) -> Iterator[str]:
    """The private attributes of other objects that a file uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr) and not is_self(node.value):
            yield node.attr


def source_files() -> list[Path]:
    """Every source file that is the project's own."""
    found = [path for directory in SOURCE_DIRECTORIES for path in (ROOT / directory).rglob("*")]
    return sorted(path for path in found if path.suffix in SOURCE_SUFFIXES and not NOT_OURS & set(path.parts))


def opening(path: Path) -> str:
    """The first line of a source file, or the second where the first is `#!`."""
    lines = path.read_text().splitlines() or [""]
    return lines[1] if lines[0].startswith("#!") and lines[1:] else lines[0]


def test_includes_go_one_way() -> None:
    assert_one_way({path.name: own_includes(path) for path in C_FILES}, C_LAYERS)


def test_c_files_use_each_other_in_no_circle() -> None:
    """A header and its source count as one file, except reactor.h: it is the interface that all of them fulfil."""
    graph: dict[str, set[str]] = {}
    for path in C_FILES:
        user = path.name if path.name == "reactor.h" else path.stem
        used = {name if name == "reactor.h" else name.removesuffix(".h") for name in own_includes(path)}
        graph.setdefault(user, set()).update(used - {user})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", [path for path in C_FILES if path.suffix == ".c"], ids=lambda path: path.name)
def test_c_functions_are_declared_in_the_header_of_their_file(path: Path) -> None:
    """Then no call is possible that the includes do not show."""
    declared = {
        header.name: set(
            re.findall(r"^(?!#|static)\w[^\n;{}()=]*?\b(urs_\w+)\([^;{}]*\);", header.read_text(), re.MULTILINE)
        )
        for header in SHIM.glob("*.h")
    }
    allowed = {f"{path.stem}.h", "reactor.h", "io.h"}  # backends and turn.c fulfil what those two promise
    text = path.read_text()
    heads = [match for match in FUNCTION.finditer(text) if not match[0].startswith("static")]
    exported = {match["name"] for match in heads if match["name"].startswith("urs_")} | set(
        re.findall(r"^(?!static)\w[^\n(;]*?\b(urs_\w+)\([^\n]*\{.*\}$", text, re.MULTILINE)
    )
    assert exported - set().union(*(declared[name] for name in allowed if name in declared)) == set()


@pytest.mark.parametrize("path", [path for path in C_FILES if path.suffix == ".c"], ids=lambda path: path.name)
def test_c_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < FILE_LINES_MAX


@pytest.mark.parametrize("path", [path for path in C_FILES if path.stem in PURE], ids=lambda path: path.name)
def test_engine_knows_no_system(path: Path) -> None:
    system = [name for name, own in includes(path) if not own]
    assert [name for name in system if not PURE_HEADERS.fullmatch(name)] == []


@pytest.mark.parametrize("path", [path for path in C_FILES if path.stem.startswith("io")], ids=lambda path: path.name)
def test_io_knows_no_frame(path: Path) -> None:
    assert own_includes(path) & PROTOCOL == set()


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_system_interface_stays_in_its_file(path: Path) -> None:
    strangers = [name for name, _ in includes(path) if ONLY_IN.get(name, path.name) != path.name]
    assert strangers == []


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_reference_counts_change_only_by_the_atomic_functions(path: Path) -> None:
    """Another thread may drop a view of a block at any time: a plain access would race with that."""
    uses = [line.strip() for line in path.read_text().splitlines() if "->references" in line]
    plain = [line for line in uses if "__atomic_" not in line]
    assert plain == (
        [] if path.name != "block.c" else ["block->references = 1;"]
    )  # a new block, which no other thread sees


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_answers_are_written_in_python_alone(path: Path) -> None:
    assert not re.search(r'"[^"\n]*HTTP/1\.1 \d', path.read_text()), "give the answer to the shim in its options"


@pytest.mark.parametrize("path", sorted(SHIM.glob("*.h")), ids=lambda path: path.name)
def test_header_guard(path: Path) -> None:
    guard = f"URS_{path.stem.upper()}_H"
    assert f"#ifndef {guard}\n#define {guard}\n" in path.read_text()


@pytest.mark.parametrize("path", BOUNDED_C, ids=lambda path: str(path.relative_to(ROOT)))
def test_c_functions_fit_one_screen(path: Path) -> None:
    functions = c_functions(path.read_text())
    assert functions, "no function found: a file without functions, or a layout that this test does not know"
    long = {name: lines for name, lines in functions.items() if lines > C_FUNCTION_LINES_MAX}
    assert not long


@pytest.mark.parametrize("path", BOUNDED_PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_functions_fit_one_screen(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTIONS)]
    sizes = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in nodes}
    assert not {name: lines for name, lines in sizes.items() if lines > PYTHON_FUNCTION_LINES_MAX}


def test_c_functions_are_counted() -> None:
    text = (
        "static const int table[] = {\n    1,\n};\n\n"
        "int one(void) { return 1; }\n\n"
        "DEFINE_IT(word)\n\n"
        "struct pair {\n    int a;\n};\n\n"
        "static int two(int a,\n               int b)\n{\n    return a + b;\n}\n\n"
        "__attribute__((cold)) static void three(void) {\n    one();\n}\n"
    )
    assert c_functions(text) == {"two": 5, "three": 3}


@pytest.mark.parametrize("path", C_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_c_comments_are_plain_english(path: Path) -> None:
    assert wordy(path.read_text()) == [], "PLAINER in tests/test_structure.py has a plainer wording for each"


@pytest.mark.parametrize("path", PLAIN_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain_english(path: Path) -> None:
    """Comments and docstrings of Python, and pages."""
    assert wordy(path.read_text(), path.suffix) == [], "PLAINER in tests/test_structure.py has a plainer wording"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.name)
def test_names_of_tests_are_sentences_with_a_subject(path: Path) -> None:
    names = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTIONS)]
    assert [name for name in names if WORDY_NAME.match(name)] == []


def test_wordy_prose_is_found() -> None:
    python = (
        '"""What it is."""\n\n\ndef f():\n    """Fine.\n\n    But nobody\n    sees."""\n    # all but\n    # for one\n'
    )
    assert [found.partition(" in ")[0] for found in wordy(python, ".py")] == [
        "line 10: 'but for'",
        "line 1: 'What'",
        "line 5: 'nobody'",
    ]
    page = "# A page\n\nFine, `at hand`.\n\n```python\nanew = 1  # anew\n```\n\nAll but\nfor one.\n"
    assert [found.partition(" in ")[0] for found in wordy(page, ".md")] == ["line 9: 'but for'"]


def test_wordy_comments_are_found() -> None:
    text = (
        'puts("/* but for */");  /* all but for\n * one */\n'
        "/* Sent once a turn. What is left stays. Should the peer go, end. */\n"
        "int owed;  // fine: it tells what is left, by the turn, once\n"
        "/* Bytes go behind others,\n   for they are new. */\n"
    )
    lines = [found.partition(" in ")[0] for found in wordy(text)]
    assert lines == [
        "line 1: 'but for'",
        "line 3: 'once a turn'",
        "line 3: '. What'",
        "line 3: '. Should the'",
        "line 5: 'behind'",
        "line 5: ', for they'",
    ]


def test_imports_go_one_way() -> None:
    graph: dict[str, set[str]] = {}
    for path in PYTHON_FILES:
        graph.setdefault(module_name(path), set()).update(own_imports(path) - {"_shim"})
    assert_one_way(graph, PYTHON_LAYERS)


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_attributes_stay_in_their_layer(path: Path) -> None:
    layer = PYTHON_LAYERS[layer_of(module_name(path), PYTHON_LAYERS)]
    friends = [other for other in PYTHON_FILES if module_name(other) in layer]
    known = {name for other in friends for name in own_attributes(ast.parse(other.read_text()))}
    assert set(private_uses(ast.parse(path.read_text()))) - known == set()


def test_private_attributes_are_found() -> None:
    tree = ast.parse(
        "class A:\n    __slots__ = ('_a',)\n    def _b(self): self._c = self._x\n"
        "def use(a): a._a, a._b(), a._c, a._d, a.__e__, a._fields"
    )
    assert own_attributes(tree) == {"_a", "_b", "_c"}
    assert sorted(private_uses(tree)) == ["_a", "_b", "_c", "_d"]


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < FILE_LINES_MAX


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_shim_touches_the_extension(path: Path) -> None:
    assert path.name == "shim.py" or "_shim" not in own_imports(path)


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_opens_with_its_description(path: Path) -> None:
    marks = {".py": ('"""', 'r"""'), ".sh": ("# ",)}.get(path.suffix, ("/* ", "// "))
    assert opening(path).startswith(marks)


@pytest.mark.parametrize("name", uringws.__all__)
def test_public_name_is_documented(name: str) -> None:
    thing = getattr(uringws, name)
    if callable(thing):
        assert (thing.__doc__ or "").strip(), f"uringws.{name} has no docstring"


@pytest.mark.parametrize("name", [name for name in uringws.__all__ if isinstance(getattr(uringws, name), type)])
def test_public_members_are_documented(name: str) -> None:
    members = vars(getattr(uringws, name)).items()
    own = {key: value for key, value in members if not key.startswith("_") and inspect.isroutine(value)}
    own |= {key: value for key, value in members if isinstance(value, property)}
    assert [key for key, value in own.items() if not (value.__doc__ or "").strip()] == []


@pytest.mark.parametrize("thing", [uringws.Options, uringws.Stats])
def test_every_field_is_documented(thing: type) -> None:
    """A docstring below each: Python does not keep them, but editors and readers find them."""
    (definition,) = ast.parse(inspect.getsource(thing)).body
    assert isinstance(definition, ast.ClassDef)
    bare = []
    for node, after in pairwise(definition.body):
        if isinstance(node, ast.AnnAssign) and not (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        ):
            bare.append(ast.unparse(node.target))
    assert bare == []


def test_every_mutant_has_its_line_and_its_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutate.check_lines(list(MUTANTS)) == 0, capsys.readouterr().out


def test_public_names_stand_once() -> None:
    assert sorted(set(uringws.__all__)) == sorted(uringws.__all__)
