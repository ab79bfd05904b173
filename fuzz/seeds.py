"""The inputs that fuzzing begins with: for each target a few that reach far, in the target's own format."""

from collections.abc import Iterator
from itertools import product

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
TEXT_BEGINS, BINARY_BEGINS, GOES_ON, ENDS = 0x01, 0x02, 0x00, 0x80

REPEAT_64_BIT, LIE, RAW = 0xFD, 0xFE, 0xFF  # sizes of records: fuzz/support.h


def record(first: int, payload: bytes = b"") -> bytes:
    """A frame with the payload as it stands, at most 240 bytes."""
    return bytes([first, len(payload)]) + payload


def repeated(first: int, count: int, byte: int) -> bytes:
    """A frame of about 1.3 * `count` times the same byte."""
    return bytes([first, REPEAT_64_BIT]) + count.to_bytes(2, "big") + bytes([byte])


def lie(first: int, length: int) -> bytes:
    """A header that announces a payload which is not there."""
    return bytes([first, LIE]) + length.to_bytes(8, "big")


# Streams as records describe them: what a session may bring, and what it may not.
STREAMS = (
    record(TEXT, b"hello") + record(BINARY, b"\x00\xff" * 20) + record(CLOSE, b"\x03\xe8bye"),
    record(TEXT_BEGINS, "é漢😀".encode()[:4]) + record(PING, b"ping") + record(ENDS, "é漢😀".encode()[4:]),
    record(BINARY_BEGINS, b"a" * 100) + record(GOES_ON) + record(GOES_ON, b"b" * 130) + record(ENDS) + record(PONG, b"p"),
    b"".join(record(TEXT, bytes([65 + number])) for number in range(20)) + record(CLOSE),
    repeated(BINARY, 300, 7) + repeated(TEXT, 40_000, 65) + repeated(BINARY_BEGINS, 60_000, 1) + repeated(ENDS, 9, 2),
    record(TEXT, b"\xed\xa0\x80") + record(CLOSE, b"\x03\xe8\xff"),
    record(CLOSE, b"\x03"),
    record(CLOSE, b"\x03\xed"),
    record(ENDS, b"of nothing"),
    record(TEXT_BEGINS, b"a") + record(TEXT, b"b"),
    lie(BINARY, 2**63 - 1),
    lie(TEXT, 1 << 40),
    record(0xC1, b"rsv") + record(0x83),
    record(0x09, b"fragmented ping"),
    bytes([PING, RAW, 4, PING, 0xFE, 0x00, 0x80]),
    bytes([TEXT, RAW, 2, TEXT, 0x05]),
)


def leaves() -> Iterator[bytes]:
    """Four bytes of decisions, then a header or a text."""
    for rules, first, size in product((0, 1, 2, 4, 5), (TEXT, 0xC2, PING, 0x03), (5, 0x85, 0xFE, 0xFF)):
        yield bytes([rules, 0, 1, 2, first, size]) + bytes([0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4])
    for text in ("κόσμε", "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff" * 20, "a" * 200 + "é"):
        yield bytes([0, 3, 2, 9]) + text.encode()
    for bad in (b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xff"):
        yield bytes([0, 3, 2, 70]) + b"a" * 61 + bad + b"b" * 64


def engine() -> Iterator[bytes]:
    """Rules and a limit, a seed, the chunks, memory and the allocation to fail, then the stream."""
    for number, stream in enumerate(STREAMS):
        frames, limit, chunk_log2 = number & 1, (24, 6)[number % 5 == 4], number % 12
        yield bytes([frames, limit, 0, number, chunk_log2, 0x10, 0, number]) + stream
        yield bytes([(2, 4)[number & 1], limit, 1, number, chunk_log2, 0, 9, 0]) + stream


# Operations of the reactor's target (fuzz/reactor.c), each with its peer in the upper half.
CONNECT, ADOPT, REQUEST, FRAME, RAW_BYTES, READ, HALF_CLOSE, HANG_UP, TURN, TIME, COMMAND, FAULT, NO_MEMORY, END = range(14)
SETTLE, ANSWER_PING = 14, 15
SEND, BURST, PAUSE, RESUME, CLOSE_IT, ABORT = 0, 2, 3, 4, 5, 6


def do(operation: int, *arguments: int, peer: int = 0) -> bytes:
    """One operation."""
    return bytes([peer << 4 | operation, *arguments])


def opened(peer: int) -> bytes:
    """A peer that connects and upgrades."""
    turns = do(TURN, 0, 2) * 2
    return do(CONNECT, peer=peer) + do(REQUEST, 0, peer=peer) + turns


def framed(peer: int, frame: bytes) -> bytes:
    """A frame, described as in STREAMS, that a peer writes."""
    return do(FRAME, peer=peer) + frame


def reactor() -> Iterator[bytes]:
    """Options, then operations."""
    roomy = bytes([0x40, 0xFF, 0, 0x3F, 20, 15])
    echo = bytes([0x01, 0x0F, 0, 0x3F, 20, 15])
    tight = bytes([0x80, 0x00, 0x1F, 0x3F, 12, 2])
    read, settle, turn = do(READ, 0xFF, 0xFF), do(SETTLE, 0, 9), do(TURN, 1, 77)
    frames = b"".join(framed(0, record(TEXT, b"one")) for _ in range(9))
    fragments = framed(0, record(BINARY_BEGINS, b"a" * 70)) + turn + framed(0, record(ENDS, b"b" * 70))
    large = framed(0, repeated(BINARY, 9000, 5))
    close = framed(0, record(CLOSE, b"\x03\xe8bye"))
    for options in (roomy, echo, tight):
        yield options + opened(0) + frames + settle + close + settle
        yield options + opened(0) + fragments + framed(0, record(PING, b"ping")) + settle + do(HALF_CLOSE) + turn
        yield options + opened(0) + large * 4 + turn + large * 4 + turn + settle + do(HANG_UP) + turn
        yield options + do(REQUEST, 9, 4) + do(CONNECT) + do(REQUEST, 0) + frames + turn + settle
        yield options + opened(0) + opened(1) + frames + turn + do(COMMAND, PAUSE, 0, 0) + frames + turn + settle
        yield options + opened(0) + do(COMMAND, PAUSE, 0, 0) + frames + settle + do(COMMAND, RESUME, 0, 0) + settle
        yield options + opened(0) + do(COMMAND, SEND, 255, 255) * 9 + turn + read * 9 + settle + do(COMMAND, CLOSE_IT, 0, 1)
        yield options + opened(0) + frames + do(COMMAND, ABORT, 0, 0) + turn + opened(1) + settle
        yield options + do(ADOPT, 1) + record(TEXT, b"prefix") + frames + settle + do(END, 1) + turn + settle
        yield options + opened(0) + do(TIME, 4, 0) * 3 + turn + do(TIME, 4, 0) * 9 + turn + read + settle
        yield options + do(CONNECT) + do(RAW_BYTES, 3) + b"GET" + turn + do(TIME, 8, 0) + turn + settle
        yield options + do(CONNECT) + do(RAW_BYTES, 3) + b"\x16\x03\x01" + turn + read
        yield options + opened(0) + framed(0, record(TEXT, b"\xff")) + turn + settle
        yield options + opened(0) + do(TIME, 1, 0) + turn + settle + do(ANSWER_PING, 6) + turn + do(ANSWER_PING, 9) + settle
        yield options + opened(0) + frames * 8 + turn + settle + do(COMMAND, BURST, 0, 0) + turn + settle
        yield options + opened(0) + frames + turn + do(FAULT, 4, 0) + turn + do(COMMAND, SEND, 0, 30) + turn + settle
        yield options + opened(0) + large * 9 + do(COMMAND, CLOSE_IT, 0, 1) + (turn + large * 9) * 9 + settle
        for fault in range(0, 40, 3):
            yield options + opened(0) + do(FAULT, fault, 3) + frames + large + opened(1) + settle + do(TIME, 0, 99) + settle
        for allocation in range(1, 12, 2):
            yield options + opened(0) + do(NO_MEMORY, allocation) + frames + large + opened(1) + turn + settle
        yield options + b"".join(opened(peer) for peer in range(16)) + do(END, 2) + turn
