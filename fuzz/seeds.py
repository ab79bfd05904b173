"""The inputs that fuzzing begins with: for each target a few that reach far, in the target's own format."""

import zlib
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


# Streams as records describe them: valid input of a session, and violations.
STREAMS = (
    record(TEXT, b"hello") + record(BINARY, b"\x00\xff" * 20) + record(CLOSE, b"\x03\xe8bye"),
    record(TEXT_BEGINS, "é漢😀".encode()[:4]) + record(PING, b"ping") + record(ENDS, "é漢😀".encode()[4:]),
    record(BINARY_BEGINS, b"a" * 100) + record(GOES_ON) + record(GOES_ON, b"b" * 130) + record(ENDS) + record(PONG),
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


def deflate() -> Iterator[bytes]:
    """Eight bytes of decisions, then messages with their sizes: compressed ones to inflate, or plain ones to send."""
    texts = (b"", b"Hello", b"Hello, Hello, Hello", bytes(600), bytes(range(256)) * 2)
    last = bytes.fromhex("f348cdc9c9070000")  # BFINAL, RFC 7692 7.2.3.4
    stored = bytes.fromhex("000500faff48656c6c6f00")
    for bits, takeover, limit in product((9, 12, 15), (0, 8), (64, 4096)):
        stream = zlib.compressobj(6, zlib.DEFLATED, -bits)
        payloads = [(stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4] for text in texts]
        head = bytes([bits - 9 | takeover, 5]) + limit.to_bytes(2, "big") + bytes(4)
        yield head + b"".join(len(one).to_bytes(2, "big") + one for one in (*payloads, last, stored))
        sent = bytes([bits - 9 | takeover | 16, 50]) + bytes(6)
        yield sent + b"".join(len(text).to_bytes(2, "big") + text for text in texts)


def leaves() -> Iterator[bytes]:
    """Four bytes of decisions, then a header, a text or a request's head."""
    for rules, first, size in product((0, 1, 2, 4, 5), (TEXT, 0xC2, PING, 0x03), (5, 0x85, 0xFE, 0xFF)):
        yield bytes([rules, 0, 1, 2, first, size]) + bytes([0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4])
    for text in ("κόσμε", "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff" * 20, "a" * 200 + "é"):
        yield bytes([0, 3, 2, 9]) + text.encode()
    for bad in (b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xff"):
        yield bytes([0, 3, 2, 70]) + b"a" * 61 + bad + b"b" * 64
    request = b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n\x81\x80"
    for before in (b"", b"\r\n", b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n", b"\r\n\r\n\0\r\nQUIT\n!\x11\0\1x\r\n"):
        yield bytes([4, 0, 0, 6]) + before + request
        yield bytes([0, 0, 0, 6]) + before + request.replace(b"\r", b"")


def engine() -> Iterator[bytes]:
    """Rules and a limit, a seed, the chunks, memory and the allocation to fail, then the stream."""
    for number, stream in enumerate(STREAMS):
        frames, limit, chunk_log2 = number & 1, (24, 6)[number % 5 == 4], number % 12
        yield bytes([frames, limit, 0, number, chunk_log2, 0x10, 0, number]) + stream
        yield bytes([(2, 4)[number & 1], limit, 1, number, chunk_log2, 0, 9, 0]) + stream


def topics() -> Iterator[bytes]:
    """Operations of three or four bytes: the operation, the topic, the session, and for some a size."""
    add, remove, leave, publish, drop, consume, release, sweep, no_memory = range(9)
    joined = b"".join(bytes([add, topic, session]) for topic in range(6) for session in range(12))
    for topic in range(6):
        stalled = b"".join(bytes([publish, topic, 0, size]) for size in (1, 200, 30, 254) * 5)
        yield joined + stalled + bytes([drop, topic, 3, consume, 0, 3, 1, 0, drop, topic, 3]) + stalled
        yield joined + stalled + bytes([remove, topic, 5, leave, 0, 5, add, topic, 5]) + stalled + bytes([sweep, 0, 0])
        yield joined + bytes([no_memory, 0, topic]) + stalled + bytes([leave, 0, 1, release, topic, 0, sweep, 0, 0])


# Operations of the reactor's target (enum operation in fuzz/reactor.c), each with its peer in the upper half.
CONNECT, ADOPT, REQUEST, FRAME, RAW_BYTES, READ, HALF_CLOSE, HANG_UP = range(8)
TURN, TIME, COMMAND, FAULT, NO_MEMORY, END, SETTLE, ANSWER_PING = range(8, 16)

# The actions of a handler for COMMAND, and those of END.
SEND, BURST, PAUSE, RESUME, CLOSE_IT, ABORT = 0, 2, 3, 4, 5, 6
DRAIN, CUT, WAKE = 1, 2, 3
WATCH, UNWATCH, FILL, EMPTY = 128, 129, 130, 131  # a pipe that the reactor is not told to read


def do(operation: int, *arguments: int, peer: int = 0) -> bytes:
    """One operation."""
    return bytes([peer << 4 | operation, *arguments])


def command(what: int, number: int = 0) -> bytes:
    """Something that the handler of peer 0 does."""
    return do(COMMAND, what) + number.to_bytes(2, "big")


def opened(peer: int = 0) -> bytes:
    """A peer that connects and upgrades."""
    return do(CONNECT, peer=peer) + do(REQUEST, 0, peer=peer) + do(TURN, 0, 2) * 2


def framed(frame: bytes) -> bytes:
    """A frame, described as in STREAMS, that peer 0 writes."""
    return do(FRAME) + frame


TURNED, SETTLED = do(TURN, 1, 77), do(SETTLE, 0, 9)
FRAMES = framed(record(TEXT, b"one")) * 9
LARGE = framed(repeated(BINARY, 9000, 5))
PAUSED = command(PAUSE)

# Lives of sessions: ordinary ones, and those with an end of their own.
LIVES = (
    opened() + FRAMES + SETTLED + framed(record(CLOSE, b"\x03\xe8bye")) + SETTLED,
    opened() + framed(record(BINARY_BEGINS, b"a" * 70)) + TURNED + framed(record(ENDS, b"b" * 70)) + SETTLED,
    opened() + framed(record(PING, b"ping")) + FRAMES + do(HALF_CLOSE) + TURNED,
    opened() + LARGE * 4 + TURNED + LARGE * 4 + TURNED + SETTLED + do(HANG_UP) + TURNED,
    do(CONNECT) + do(REQUEST, 0) + FRAMES + TURNED + SETTLED,
    opened() + opened(1) + FRAMES + TURNED + PAUSED + FRAMES + TURNED + SETTLED,
    opened() + PAUSED + FRAMES + SETTLED + command(RESUME) + SETTLED,
    opened() + command(SEND, 0xFFFF) * 9 + TURNED + do(READ, 0xFF, 0xFF) * 9 + SETTLED + command(CLOSE_IT, 1),
    opened() + FRAMES + command(ABORT) + TURNED + opened(1) + SETTLED,
    do(ADOPT, 1) + record(TEXT, b"prefix") + FRAMES + SETTLED + do(END, DRAIN) + TURNED + SETTLED,
    opened() + do(TIME, 4, 0) * 3 + TURNED + do(TIME, 4, 0) * 9 + TURNED + SETTLED,
    opened() + do(TIME, 1, 0) + TURNED + SETTLED + do(ANSWER_PING, 6) + TURNED + do(ANSWER_PING, 9) + SETTLED,
    do(CONNECT) + do(RAW_BYTES, 3) + b"GET" + TURNED + do(TIME, 8, 0) + TURNED + SETTLED,
    do(CONNECT) + do(RAW_BYTES, 3) + b"\x16\x03\x01" + TURNED + do(READ, 1, 0),
    opened() + framed(record(TEXT, b"\xff")) + TURNED + SETTLED,
    opened() + FRAMES * 8 + TURNED + SETTLED + command(BURST) + TURNED + SETTLED,
    opened() + FRAMES + TURNED + do(FAULT, 4, 0) + TURNED + command(SEND, 30) + TURNED + SETTLED,
    opened() + LARGE * 9 + command(CLOSE_IT, 1) + (TURNED + LARGE * 9) * 9 + SETTLED,
    do(END, WATCH) + do(END, FILL) + SETTLED + opened() + FRAMES + SETTLED + do(END, EMPTY) + SETTLED,
    do(END, FILL) + do(END, WATCH) + TURNED + do(END, UNWATCH) + do(END, WATCH) + SETTLED + opened() + SETTLED,
    b"".join(opened(peer) for peer in range(16)) + do(END, CUT) + TURNED + do(END, WAKE) + TURNED,
)


def reactor() -> Iterator[bytes]:
    """Options, then operations."""
    roomy = bytes([0x40, 0xFF, 0, 0x3F, 20, 15])
    echo = bytes([0x01, 0x0F, 0, 0x3F, 20, 15])
    tight = bytes([0x80, 0x00, 0x1F, 0x3F, 12, 2])
    for options in (roomy, echo, tight):
        for life in LIVES:
            yield options + life
        for fault in range(0, 45, 3):
            yield options + opened() + do(FAULT, fault, 3) + FRAMES + LARGE + opened(1) + do(TIME, 0, 99) + SETTLED
        for allocation in range(1, 12, 2):
            yield options + opened() + do(NO_MEMORY, allocation) + FRAMES + LARGE + opened(1) + TURNED + SETTLED
