"""utf8.c against Python's own decoder: the same texts are valid, and the byte that proves one invalid is named."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fenced import fenced_memory
from uringws.shim import ffi, lib

GOOD = -1

# The bytes at which RFC 3629 section 4 begins and ends a range: all others behave like one of these.
EDGES = bytes.fromhex("00 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")

# One of these completes the beginning of any code point.
COMPLETIONS = [b"", *(bytes([second]) + b"\x80" * more for second in (0x80, 0x90, 0xA0) for more in range(3))]

ALL_CODE_POINTS = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000)))).encode()

IMPLEMENTATIONS = [name for name in ("automaton", "avx2", "neon") if lib.urs_utf8_select(name.encode()) == 0]
lib.urs_utf8_select(b"auto")


@contextmanager
def selected(name: str) -> Iterator[None]:
    assert lib.urs_utf8_select(name.encode()) == 0
    try:
        yield
    finally:
        lib.urs_utf8_select(b"auto")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each implementation that this CPU can run, in turn."""
    with selected(request.param):
        yield


def feed(*chunks: bytes) -> tuple[int, bool]:
    """The index, in all chunks together, of the byte that proves them bad, or GOOD; and whether the text may end."""
    utf8 = ffi.new("struct urs_utf8 *")
    before = 0
    for chunk in chunks:
        bad = lib.urs_utf8_feed(utf8, chunk, len(chunk))
        if bad != GOOD:
            return before + bad, False
        before += len(chunk)
    return GOOD, utf8.state == 0


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def expected(data: bytes) -> tuple[int, bool]:
    """The expected result of feed(), by Python's decoder and the definition: no valid text begins with bytes that are
    proved invalid. Python's incremental decoder cannot be used: it holds the first bytes of a surrogate back.
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        for index in range(error.start, len(data)):
            if not any(is_text(data[error.start : index + 1] + rest) for rest in COMPLETIONS):
                return index, False
        return GOOD, False
    return GOOD, True


@pytest.mark.parametrize(
    ("data", "bad"),
    [
        ("c0", 0),
        ("c1 bf", 0),
        ("f5", 0),
        ("ff", 0),
        ("80", 0),
        ("e0 80", 1),
        ("e0 9f bf", 1),
        ("ed a0 80", 1),
        ("f0 80", 1),
        ("f0 8f bf bf", 1),
        ("f4 90", 1),
        ("c3 28", 1),
        ("e4 b8 28", 2),
        ("f0 9f 98 28", 3),
        ("c3 a4 80", 2),
        ("61 c3 c3 a4", 2),
    ],
)
@pytest.mark.usefixtures("implementation")
def test_the_byte_that_proves_it(data: str, bad: int) -> None:
    assert feed(bytes.fromhex(data)) == (bad, False)
    assert feed(bytes.fromhex(data)[:bad])[0] == GOOD
    for filler in (b"x" * 100, "ä".encode() * 50, "中".encode() * 33, "😀".encode() * 25):
        assert feed(filler + bytes.fromhex(data) + filler) == (len(filler) + bad, False)


def sequences(length: int, prefix: bytes = b"") -> Iterator[bytes]:
    """All sequences of EDGES up to `length` bytes, but one step only beyond a prefix that is bad already."""
    for edge in EDGES:
        sequence = prefix + bytes([edge])
        yield sequence
        if len(sequence) < length and expected(sequence)[0] == GOOD:
            yield from sequences(length, sequence)


@pytest.mark.usefixtures("implementation")
def test_every_pair_of_bytes() -> None:
    for pair in (bytes([first, second]) for first in range(256) for second in range(256)):
        assert feed(pair) == expected(pair), pair.hex()


@pytest.mark.usefixtures("implementation")
def test_every_sequence_alone() -> None:
    for sequence in sequences(4):
        assert feed(sequence) == expected(sequence), sequence.hex()


# Where a vector of 16 or 32 bytes ends, and the next begins after the first three bytes of a text.
BLOCK_EDGES = (*range(4), *range(13, 22), *range(29, 38), *range(64, 70))


def filler(character: str, size: int) -> bytes:
    """Good text of `size` bytes: as many of `character` as fit, and ASCII before them."""
    return (character * (size // len(character.encode()))).encode().rjust(size, b"a")


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("after", [b"", b"b" * 140], ids=["at the end", "inside"])
@pytest.mark.parametrize("character", ["a", "中"])
def test_every_sequence_at_the_edges_of_blocks(character: str, after: bytes) -> None:
    """A code point may begin in one vector and end in the next, and the last vector overlaps the one before."""
    cases = [(sequence, *expected(sequence + after)) for sequence in sequences(4)]
    for size in BLOCK_EDGES:
        before = filler(character, size)
        for sequence, bad, complete in cases:
            data = before + sequence + after
            assert feed(data) == (bad if bad == GOOD else size + bad, complete), data.hex()


@pytest.mark.usefixtures("implementation")
def test_every_code_point() -> None:
    for shift in range(5):
        assert feed(b"a" * shift + ALL_CODE_POINTS) == (GOOD, True)


@pytest.mark.usefixtures("implementation")
def test_every_surrogate() -> None:
    for code_point in range(0xD800, 0xE000):
        surrogate = chr(code_point).encode(errors="surrogatepass")
        assert feed(surrogate) == (1, False)
        assert feed(b"x" * 60 + surrogate + b"x" * 60) == (61, False)


MIXED = "Zwölf Boxkämpfer, 中文字符, 😀🎉, ασφαλής; plain ASCII for a while, long enough for a block of it: ßß€€."


@pytest.mark.usefixtures("implementation")
def test_cut_anywhere() -> None:
    data = (MIXED * 2).encode()
    for first in range(len(data) + 1):
        assert feed(data[:first], data[first:]) == (GOOD, True)
        assert feed(data[:first]) == expected(data[:first])
        for second in range(first, min(first + 5, len(data))):
            assert feed(data[:first], data[first:second], data[second:]) == (GOOD, True)
    assert feed(*(data[i : i + 1] for i in range(len(data)))) == (GOOD, True)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("bad", [b"\x80", b"\xc0", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\xe4\xb8"])
def test_one_error_anywhere_cut_anywhere(bad: bytes) -> None:
    text = MIXED.encode()
    for at in (*range(0, len(text), 7), len(text)):
        data = text[:at] + bad + text[at:]
        answer = expected(data)
        for cut in range(0, len(data), 5):
            assert feed(data[:cut], data[cut:]) == answer, (at, cut)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("text", ["a", "ä", "中", "😀", MIXED])
def test_nothing_is_read_beyond_the_text(text: str) -> None:
    memory = fenced_memory(1)
    first = ffi.from_buffer("uint8_t[]", memory)
    utf8 = ffi.new("struct urs_utf8 *")
    for size in range(300):
        data = (text * (size + 1)).encode()[:size]
        for start in (0, len(memory) - size):
            memory[start : start + size] = data
            utf8.state = 0
            assert lib.urs_utf8_feed(utf8, first + start, size) == GOOD
            assert (utf8.state == 0) == expected(data)[1]


@given(
    text=st.text(max_size=200),
    changes=st.lists(st.tuples(st.integers(0, 800), st.sampled_from(list(EDGES))), max_size=3),
    cuts=st.lists(st.integers(0, 800), max_size=4),
    name=st.sampled_from(IMPLEMENTATIONS),
)
def test_like_python(text: str, changes: list[tuple[int, int]], cuts: list[int], name: str) -> None:
    data = bytearray(text.encode())
    for at, byte in changes:
        if at < len(data):
            data[at] = byte
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [bytes(data[begin:end]) for begin, end in pairwise(edges)]
    with selected(name):
        assert feed(*chunks) == expected(bytes(data))


@given(data=st.binary(max_size=200), name=st.sampled_from(IMPLEMENTATIONS))
def test_noise_like_python(data: bytes, name: str) -> None:
    with selected(name):
        assert feed(data) == expected(data)


def test_an_unknown_implementation() -> None:
    assert lib.urs_utf8_select(b"sse9") == -errno.EINVAL
