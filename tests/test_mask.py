"""mask.c: every implementation, at every size and alignment, in place and moving, up to the edge of its memory."""

from __future__ import annotations

import errno
import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import codec
from fenced import fenced_memory
from uringws.shim import ffi, lib

KEY = bytes.fromhex("37fa213d")
NOISE = np.random.default_rng(6455).bytes(1 << 16)
NAMES = ("scalar", "sse2", "avx2", "avx512", "neon")


def available() -> Iterator[str]:
    for index in count():
        name = lib.urs_mask_available(index)
        if name == ffi.NULL:
            return
        yield ffi.string(name).decode()


AVAILABLE = list(available())


@contextmanager
def selected(name: str) -> Iterator[None]:
    assert lib.urs_mask_select(name.encode()) == 0
    try:
        assert ffi.string(lib.urs_mask_selected()) == name.encode()
        yield
    finally:
        lib.urs_mask_select(b"auto")


@pytest.fixture(params=AVAILABLE)
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each implementation that this CPU can run, in turn."""
    with selected(request.param):
        yield


def pointer(memory: Any) -> Any:
    return ffi.from_buffer("uint8_t[]", memory)


# The choice


def test_every_cpu_has_scalar_and_its_familys_own() -> None:
    assert AVAILABLE[0] == "scalar"
    assert {"x86_64": "sse2", "aarch64": "neon"}.get(os.uname().machine, "scalar") in AVAILABLE
    assert set(AVAILABLE) <= set(NAMES)


@pytest.mark.parametrize("name", ["mmx", "", *(set(NAMES) - set(AVAILABLE))])
def test_selecting_an_unknown_implementation_changes_nothing(name: str) -> None:
    with selected("scalar"):
        assert lib.urs_mask_select(name.encode()) in (-errno.EINVAL, -errno.ENOTSUP)
        assert ffi.string(lib.urs_mask_selected()) == b"scalar"


def test_auto_is_the_fastest() -> None:
    assert lib.urs_mask_select(b"auto") == 0
    assert ffi.string(lib.urs_mask_selected()).decode() == AVAILABLE[-1]


# Sizes, offsets, alignments, the edge of the memory


@pytest.mark.usefixtures("implementation")
def test_every_size_and_offset_flush_against_a_fence() -> None:
    memory = fenced_memory(1)
    first = pointer(memory)
    for size in range(301):
        for start in (0, len(memory) - size):
            for offset in range(4):
                memory[start : start + size] = NOISE[:size]
                lib.urs_mask_move(first + start, first + start, size, KEY, offset)
                assert memory[start : start + size] == codec.mask(NOISE[:size], KEY, offset), (size, start, offset)


@pytest.mark.usefixtures("implementation")
def test_moving_between_fences() -> None:
    source, target = fenced_memory(1), fenced_memory(1)
    for size in range(301):
        for from_end, to_end in ((False, False), (False, True), (True, False), (True, True)):
            read = len(source) - size if from_end else 0
            write = len(target) - size if to_end else 0
            source[read : read + size] = NOISE[:size]
            lib.urs_mask_move(pointer(target) + write, pointer(source) + read, size, KEY, 0)
            assert target[write : write + size] == codec.mask(NOISE[:size], KEY), (size, read, write)
            assert source[read : read + size] == NOISE[:size]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("size", [1, 7, 16, 20, 65, 125, 127, 128, 129, 257, 1000, 4099])
def test_every_alignment_writes_nothing_beside_its_target(size: int) -> None:
    for start in range(65):
        memory = bytearray(NOISE[: size + 130])
        lib.urs_mask_move(pointer(memory) + start, pointer(memory) + start, size, KEY, start)
        expected = codec.mask(NOISE[start : start + size], KEY, start)
        assert memory == NOISE[:start] + expected + NOISE[start + size : size + 130], start


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("down", [*range(1, 36), *range(60, 70), 127, 128, 129, 200, 511, 1000])
def test_moving_down_over_itself(down: int) -> None:
    """As the engine does when it closes the gap that a header leaves."""
    for size in (*range(0, 140, 3), 255, 256, 257, 299, 300, 511, 1023, 1500):
        for target in (0, 1, 31):
            source = target + down
            memory = bytearray(NOISE[: source + size + 70])
            lib.urs_mask_move(pointer(memory) + target, pointer(memory) + source, size, KEY, 1)
            expected = bytearray(NOISE[: source + size + 70])
            expected[target : target + size] = codec.mask(NOISE[source : source + size], KEY, 1)
            assert memory == expected, (size, target)


@given(
    data=st.binary(max_size=2000),
    key=st.binary(min_size=4, max_size=4),
    offset=st.integers(0, 2**63),
    name=st.sampled_from(AVAILABLE),
)
def test_against_numpy(data: bytes, key: bytes, offset: int, name: str) -> None:
    keys = np.resize(np.roll(np.frombuffer(key, np.uint8), -(offset % 4)), len(data))
    expected = np.frombuffer(data, np.uint8) ^ keys
    buffer = bytearray(data)
    with selected(name):
        lib.urs_mask_move(pointer(buffer), pointer(buffer), len(buffer), key, offset)
    assert buffer == expected.tobytes()


@given(data=st.binary(max_size=600), cuts=st.lists(st.integers(0, 600), max_size=5), name=st.sampled_from(AVAILABLE))
def test_pieces_make_the_whole(data: bytes, cuts: list[int], name: str) -> None:
    buffer = bytearray(data)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        with selected(name):
            lib.urs_mask_move(pointer(buffer) + begin, pointer(buffer) + begin, end - begin, KEY, begin)
    assert buffer == codec.mask(data, KEY)


@pytest.mark.usefixtures("implementation")
def test_a_large_payload() -> None:
    data = NOISE * 20
    buffer = bytearray(data)
    lib.urs_mask_move(pointer(buffer) + 3, pointer(buffer) + 3, len(buffer) - 3, KEY, 2)
    assert buffer == data[:3] + codec.mask(data[3:], KEY, 2)


# Helpers


def test_the_fence_kills() -> None:
    """Otherwise the tests above would show nothing."""
    memory = fenced_memory(1)
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        lib.urs_mask_move(pointer(memory) + 1, pointer(memory) + 1, len(memory), KEY, 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
