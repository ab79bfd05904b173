"""permessage-deflate on the wire, RFC 7692: the vectors of the RFC, others' bugs, limits, and Python's zlib as oracle.

The engine alone is tested where the backend plays no part.
"""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import pytest

from codec import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, decode
from servers import ReactorThread, Recorder, no_listener, settle, tcp_pair
from uringws import Connection, Deflate, DeflateTerms, Handler, Message, Options, ServerEngine
from uringws.backend import Backend
from wire import Peer, close_frame, frame, upgrade_request

KEY = b"\x37\xfa\x21\x3d"
TAIL = b"\x00\x00\xff\xff"
TAKEOVER = DeflateTerms()
PLAIN = DeflateTerms(server_takeover=False, client_takeover=False)
OFFER = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]
HELLO = b"\xf2\x48\xcd\xc9\xc9\x07\x00"  # RFC 7692 7.2.3.1


class Deflater:
    """The compressor of a peer, with or without context takeover."""

    def __init__(self, bits: int = 15, *, takeover: bool = True, level: int = 6) -> None:
        self._settings = (level, zlib.DEFLATED, -bits)
        self._takeover = takeover
        self._stream = zlib.compressobj(*self._settings)

    def __call__(self, data: bytes) -> bytes:
        if not self._takeover:
            self._stream = zlib.compressobj(*self._settings)
        compressed = self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        assert compressed.endswith(TAIL)
        return compressed[:-4]


class Inflater:
    """The decompressor of a peer, with a window of exactly so many bits."""

    def __init__(self, bits: int = 15, *, takeover: bool = True) -> None:
        self._bits, self._takeover = bits, takeover
        self._stream = zlib.decompressobj(-bits)

    def __call__(self, received: Any) -> bytes:
        if not received.rsv:
            return bytes(received.payload)
        assert received.rsv == 4
        if not self._takeover:
            self._stream = zlib.decompressobj(-self._bits)
        return self._stream.decompress(received.payload + TAIL)


def masked(opcode: int, payload: bytes, *, rsv: int = 0, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin, rsv, KEY).encode()


def engine(terms: DeflateTerms = TAKEOVER, **settings: Any) -> ServerEngine:
    return ServerEngine(deflate=terms, **settings)


def messages(server: ServerEngine, *frames: bytes) -> list[Any]:
    """The messages that the server is given; a CLOSE event is an error."""
    columns = server.feed(b"".join(frames), 1024)
    assert CLOSE not in columns.opcodes, columns
    return [payload for opcode, payload in zip(columns.opcodes, columns.payloads, strict=True) if opcode <= BINARY]


def close_code(server: ServerEngine, *frames: bytes) -> int | None:
    """The code with which the server fails the connection."""
    columns = server.feed(b"".join(frames), 1024)
    (answer, *_), rest = decode(columns.reply)
    assert columns.opcodes.endswith(bytes([CLOSE]))
    assert (answer.opcode, rest) == (CLOSE, b"")
    assert struct.unpack_from("!H", answer.payload)[0] == server.close_code
    return server.close_code


# ---- the vectors of RFC 7692 7.2.3


@pytest.mark.parametrize(
    "payload",
    [
        HELLO,
        b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",  # stored
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",  # BFINAL
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",  # two blocks
        b"\xf3\x48\xcd\xc9\xc9\x07\x00",  # BFINAL without an empty block after it
        b"\x02\x00\x00\x00\xff\xff" * 20 + HELLO,  # empty blocks in front
    ],
)
@pytest.mark.parametrize("terms", [TAKEOVER, PLAIN])
def test_hello_in_every_form_that_the_rfc_has(payload: bytes, terms: DeflateTerms) -> None:
    server = engine(terms)
    for _ in range(2):
        assert messages(server, masked(TEXT, payload, rsv=4)) == ["Hello"]


def test_hello_in_two_fragments() -> None:
    parts = (masked(TEXT, HELLO[:3], rsv=4, fin=False), masked(CONTINUATION, HELLO[3:]))
    assert messages(engine(), *parts) == ["Hello"]


def test_window_is_shared_between_messages() -> None:
    server = engine()
    assert messages(server, masked(TEXT, HELLO, rsv=4)) == ["Hello"]
    assert messages(server, masked(TEXT, b"\xf2\x00\x11\x00\x00", rsv=4)) == ["Hello"]


@pytest.mark.parametrize("payload", [b"\x00", b""])
def test_empty_message(payload: bytes) -> None:
    """An empty payload with RSV1 is no stream, but some clients send it (dart-lang/sdk#35540)."""
    server = engine()
    assert messages(server, masked(BINARY, payload, rsv=4), masked(TEXT, HELLO, rsv=4)) == [b"", "Hello"]
    assert decode(server.encode(TEXT, ""))[0] == [Frame(TEXT, b"")]


def test_window_outlives_a_last_block() -> None:
    """A message may end with BFINAL, and the next one refer to it (RFC 7692 7.2.3.4); jetty and beast#923 lost it."""
    server = engine()
    assert messages(server, masked(TEXT, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", rsv=4)) == ["Hello"]
    assert messages(server, masked(TEXT, b"\xf2\x00\x11\x00\x00", rsv=4)) == ["Hello"]


# ---- RSV1 where it must not be, and where it need not be


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_rsv1_on_a_control_frame_is_refused(opcode: int) -> None:
    assert close_code(engine(), masked(opcode, b"", rsv=4)) == 1002


def test_rsv1_on_a_continuation_is_refused() -> None:
    """websockets accepted it until #1720."""
    first = masked(TEXT, HELLO[:3], rsv=4, fin=False)
    assert close_code(engine(), first, masked(CONTINUATION, HELLO[3:], rsv=4)) == 1002


def test_rsv1_that_was_not_agreed_on_is_refused() -> None:
    """nginx-push-stream#295: NSURLSession compresses without having been asked."""
    assert close_code(ServerEngine(), masked(TEXT, HELLO, rsv=4)) == 1002


@pytest.mark.parametrize("rsv", [1, 2, 5, 6, 7])
def test_other_reserved_bits_stay_refused(rsv: int) -> None:
    assert close_code(engine(), masked(TEXT, HELLO, rsv=rsv)) == 1002


def test_uncompressed_message_between_compressed_ones_leaves_the_window_alone() -> None:
    """ws#983 delivered garbage after one."""
    server, deflate = engine(), Deflater()
    parts = [masked(TEXT, deflate(b"one two three"), rsv=4), masked(TEXT, b"four"), masked(BINARY, b"", fin=False)]
    parts += [masked(CONTINUATION, b"five"), masked(TEXT, deflate(b"one two three"), rsv=4)]
    assert messages(server, *parts) == ["one two three", "four", b"five", "one two three"]


# ---- fragments


def test_control_frames_between_compressed_fragments_are_not_inflated() -> None:
    """lws#1253 fed them to its inflater."""
    ping = masked(PING, b"are you there")
    parts = (masked(TEXT, HELLO[:2], rsv=4, fin=False), ping, masked(CONTINUATION, HELLO[2:5], fin=False), ping)
    server = engine()
    columns = server.feed(b"".join((*parts, masked(CONTINUATION, HELLO[5:]))), 1024)
    assert columns.payloads == [b"are you there", b"are you there", "Hello"]
    assert decode(columns.reply)[0] == [Frame(PONG, b"are you there")] * 2


@pytest.mark.parametrize("cut", [0, len(HELLO)])
def test_first_or_last_fragment_may_be_empty(cut: int) -> None:
    parts = (masked(TEXT, HELLO[:cut], rsv=4, fin=False), masked(CONTINUATION, HELLO[cut:]))
    assert messages(engine(), *parts) == ["Hello"]


def test_compressed_message_comes_whole_where_fragments_are_asked_for() -> None:
    server = engine(frames=True)
    stream = masked(TEXT, HELLO[:3], rsv=4, fin=False) + masked(CONTINUATION, HELLO[3:]) + masked(TEXT, b"x", fin=False)
    columns = server.feed(stream, 1024)
    assert (columns.opcodes, columns.payloads, columns.fins) == (bytes([TEXT, TEXT]), [b"Hello", b"x"], b"\1\0")


@pytest.mark.parametrize("rsv", [0, 4])
def test_message_begun_inside_a_compressed_one_is_refused(rsv: int) -> None:
    assert close_code(engine(), masked(TEXT, HELLO[:3], rsv=4, fin=False), masked(TEXT, HELLO, rsv=rsv)) == 1002


def test_close_frame_inside_a_compressed_message_ends_the_connection() -> None:
    server = engine()
    server.feed(masked(TEXT, HELLO[:3], rsv=4, fin=False) + masked(CLOSE, struct.pack("!H", 1000)))
    assert (server.close_code, server.partial_len) == (1000, 0)


# ---- streams that are not valid


@pytest.mark.parametrize(
    "payload",
    [
        HELLO + TAIL,  # the tail was left on the wire: silently accepted, it would shift all later messages
        HELLO[:-1],  # cut
        HELLO[:3],
        HELLO + b"\x00\x00",
        b"\xff" * 20,  # no block type
        b"\x00\x05\x00\xfa\x00Hello\x00",  # stored, and the complement of its length is wrong
        b"\xf2\x00\x11\x00\x00",  # refers to a window that nothing is in
    ],
)
@pytest.mark.parametrize("terms", [TAKEOVER, PLAIN])
def test_stream_that_is_malformed_is_refused(payload: bytes, terms: DeflateTerms) -> None:
    assert close_code(engine(terms), masked(TEXT, payload, rsv=4)) == 1007


def test_thread_goes_on_inflating_after_a_malformed_stream() -> None:
    """All connections of a thread without takeover share one stream."""
    close_code(engine(PLAIN), masked(TEXT, HELLO[:3], rsv=4))
    assert messages(engine(PLAIN), masked(TEXT, HELLO, rsv=4)) == ["Hello"]


@pytest.mark.parametrize("cut", range(1, 4))
def test_utf8_is_checked_over_the_whole_inflated_text(cut: int) -> None:
    text = "\N{PILE OF POO}".encode()
    deflate = zlib.compressobj(wbits=-15)
    blocks = deflate.compress(text[:cut]) + deflate.flush(zlib.Z_FULL_FLUSH) + deflate.compress(text[cut:])
    payload = (blocks + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert messages(engine(), masked(TEXT, payload, rsv=4)) == [text.decode()]
    assert close_code(engine(), masked(TEXT, Deflater()(text[:cut]), rsv=4)) == 1007
    assert messages(engine(), masked(BINARY, Deflater()(text[:cut]), rsv=4)) == [text[:cut]]


# ---- limits


@pytest.mark.parametrize("size", [100, 65_535, 65_536, 65_537, 300_000])
@pytest.mark.parametrize("terms", [TAKEOVER, PLAIN])
def test_limit_is_that_of_the_inflated_message(size: int, terms: DeflateTerms) -> None:
    """netdata#22828 refused a message of exactly the limit."""
    within = masked(BINARY, Deflater()(bytes(size)), rsv=4)
    beyond = masked(BINARY, Deflater()(bytes(size + 1)), rsv=4)
    assert messages(engine(terms, message_bytes_max=size), within) == [bytes(size)]
    assert close_code(engine(terms, message_bytes_max=size), beyond) == 1009


@pytest.mark.parametrize("parts", [1, 50])
def test_bomb_is_refused_and_nothing_of_it_is_kept(parts: int) -> None:
    """CVE-2018-1000518 (websockets), CVE-2026-1526 (undici), nats-server#7625."""
    bomb = Deflater(level=9)(bytes(50_000_000))
    step = len(bomb) // parts + 1
    pieces = [bomb[at : at + step] for at in range(0, len(bomb), step)]
    frames = [
        masked(CONTINUATION if at else BINARY, piece, rsv=0 if at else 4, fin=at + 1 == len(pieces))
        for at, piece in enumerate(pieces)
    ]
    server = engine(message_bytes_max=100_000)
    assert close_code(server, *frames) == 1009
    assert server.partial_len == server._core.memory.bytes_used == 0


def test_compressed_bytes_are_limited_while_they_are_collected() -> None:
    """Empty blocks inflate to nothing, for ever."""
    server = engine(message_bytes_max=1000)
    part = masked(CONTINUATION, b"\x00\x00\x00\xff\xff" * 100, fin=False)
    assert close_code(server, masked(BINARY, b"", rsv=4, fin=False), *[part] * 4) == 1009


def test_incompressible_message_of_the_largest_size_passes() -> None:
    payload = random.Random(1).randbytes(100_000)
    part = masked(BINARY, Deflater()(payload), rsv=4)
    assert messages(engine(message_bytes_max=100_000), part) == [payload]


# ---- the oracle


def chunks(data: bytes, source: random.Random) -> list[bytes]:
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.choice([0, 0, 3])))
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def payload_of(source: random.Random) -> tuple[int, bytes]:
    size = source.choice([0, 1, 5, 100, 125, 126, 1000, 5000, 70_000])
    kind = source.choice(["words", "noise", "same"])
    if kind == "noise":
        return BINARY, source.randbytes(size)
    if kind == "same":
        return TEXT, b"x" * size
    words = [b"user", b"name", b"price", b"\xc3\xa4rger", b"1234", b"quantity", b'{"id":']
    return TEXT, b" ".join(source.choices(words, k=size // 6))


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("takeover", [False, True])
def test_both_directions_agree_with_zlib(bits: int, *, takeover: bool) -> None:
    """Windows are of exactly the agreed size: intel/zlib#31 used larger ones, which the peer could not read."""
    source = random.Random(bits)
    terms = DeflateTerms(
        server_window_bits=bits, client_window_bits=bits, server_takeover=takeover, client_takeover=takeover
    )
    settings = Deflate(level=source.randint(1, 9), bytes_min=0, memory_level=source.randint(1, 9))
    server = engine(terms, deflate_settings=settings, decode_text=False)
    deflate, inflate = Deflater(bits, takeover=takeover), Inflater(bits, takeover=takeover)
    for _ in range(60):
        opcode, data = payload_of(source)
        compressed = source.random() < 0.8
        parts = chunks(deflate(data) if compressed else data, source)
        frames = [
            masked(CONTINUATION if at else opcode, part, rsv=4 * compressed * (not at), fin=at + 1 == len(parts))
            for at, part in enumerate(parts)
        ]
        stream = b"".join(frames)
        found = [payload for piece in chunks(stream, source) for payload in server.feed(piece).payloads]
        assert found == [data]
        (answer,), rest = decode(server.encode(opcode, data, compress=source.random() < 0.8))
        assert (inflate(answer), answer.opcode, rest) == (data, opcode, b"")


@pytest.mark.parametrize("takeover", [False, True])
def test_small_messages_are_sent_as_they_are(*, takeover: bool) -> None:
    terms = DeflateTerms(server_takeover=takeover)
    server = engine(terms, deflate_settings=Deflate(bytes_min=100))
    for size, rsv in ((99, 0), (100, 4), (101, 4)):
        ((answer,), _) = decode(server.encode(BINARY, b"x" * size))
        assert answer.rsv == rsv


def test_message_that_does_not_get_smaller_is_sent_as_it_is() -> None:
    noise = random.Random(2).randbytes(1000)
    assert decode(engine(PLAIN).encode(BINARY, noise))[0] == [Frame(BINARY, noise)]


def test_fragments_are_sent_uncompressed() -> None:
    server = engine(deflate_settings=Deflate(bytes_min=0))
    sent = server.encode(TEXT, "x" * 1000, fin=False) + server.encode(CONTINUATION, "x" * 1000)
    assert [part.rsv for part in decode(sent)[0]] == [0, 0]


def test_engine_answers_in_place_and_by_copy_compressed_alike() -> None:
    server = engine(deflate_settings=Deflate(bytes_min=0))
    deflate, inflate = Deflater(), Inflater()
    written: list[bytes] = []
    data = b"again and again and again"
    server.process(masked(TEXT, deflate(data), rsv=4), written.append, lambda message: message.echo())
    server.process(masked(TEXT, data), written.append, lambda message: message.echo())
    server.process(masked(TEXT, data), written.append, lambda message: message.send(message))
    server.process(masked(TEXT, data), written.append, lambda message: message.send(message, compress=False))
    frames, rest = decode(b"".join(written))
    assert ([inflate(one) for one in frames], rest) == ([data] * 4, b"")
    assert [one.rsv for one in frames] == [4, 4, 4, 0]


# ---- through the reactor


class Answering(Recorder):
    """Echoes text in place, and sends binary."""

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.is_text:
            conn.echo()
        else:
            conn.send(message)


def reactor(backend: Backend, handler: Handler, **settings: Any) -> ReactorThread:
    options = Options(deflate=Deflate(bytes_min=0, **settings), message_bytes_max=1_000_000)
    return ReactorThread(handler, backend=backend, options=options)


@pytest.mark.parametrize("takeover", [False, True])
def test_reactor_answers_compressed_messages(backend: Backend, *, takeover: bool) -> None:
    source = random.Random(3)
    bits = 12 if takeover else 15
    deflate, inflate = Deflater(bits, takeover=takeover), Inflater(bits, takeover=takeover)
    with reactor(backend, Answering(), takeover=takeover) as server:
        peer = Peer.connect(server.address, headers=OFFER)
        assert ("no_context_takeover" in peer.response.headers["sec-websocket-extensions"]) is not takeover
        for _ in range(20):
            batch = [payload_of(source) for _ in range(source.randint(1, 5))]
            peer.write(b"".join(frame(opcode, deflate(data), rsv=4) for opcode, data in batch))
            answers = peer.read_frames(len(batch))
            assert [(answer.opcode, inflate(answer)) for answer in answers] == batch
        held = server.ask(server.reactor.stats).memory_bytes
        assert (held > 0) is takeover
        assert peer.shake_hands() == 1000
        peer.close()
        settle(server)


def test_run_echo_compresses_its_answers(backend: Backend) -> None:
    data = b"x" * 1000
    run: Any = lambda server: server.run_echo()  # noqa: E731
    options = Options(deflate=Deflate())
    with (
        ReactorThread(Handler(), backend=backend, options=options, run=run) as server,
        Peer.connect(server.address, headers=OFFER) as peer,
    ):
        deflate, inflate = Deflater(takeover=False), Inflater(takeover=False)
        peer.write(frame(TEXT, deflate(data), rsv=4) + frame(TEXT, b"small") + frame(TEXT, data))
        answers = peer.read_frames(3)
        assert [answer.rsv for answer in answers] == [4, 0, 4]
        assert [inflate(answer) for answer in answers] == [data, b"small", data]


def test_connection_shows_the_terms(backend: Backend) -> None:
    handler = Recorder()
    with reactor(backend, handler) as server, Peer.connect(server.address, headers=OFFER):
        handler.wait_for("open")
        with Peer.connect(server.address):
            handler.wait_for("open", 2)
            one, other = handler.connections.values()
            assert one.deflate == PLAIN
            assert other.deflate is None


def test_client_that_offers_nothing_is_sent_nothing_compressed(backend: Backend) -> None:
    with reactor(backend, Answering()) as server, Peer.connect(server.address) as peer:
        assert "sec-websocket-extensions" not in peer.response.headers
        peer.write(frame(TEXT, b"x" * 1000))
        assert peer.read_frame().rsv == 0
        peer.write(frame(TEXT, HELLO, rsv=4))
        assert peer.read_close() == 1002


def test_malformed_offer_is_answered_400(backend: Backend) -> None:
    with reactor(backend, Recorder()) as server, Peer.dial(server.address) as peer:
        peer.write(upgrade_request(headers=[("Sec-WebSocket-Extensions", 'permessage-deflate; a="')]))
        assert peer.read_response().status == 400


def test_bomb_costs_its_sender_the_connection_and_the_others_nothing(backend: Backend) -> None:
    bomb = frame(BINARY, Deflater(level=9)(bytes(5_000_000)), rsv=4)
    with (
        reactor(backend, Answering()) as server,
        Peer.connect(server.address, headers=OFFER) as bad,
        Peer.connect(server.address, headers=OFFER) as good,
    ):
        bad.write(bomb)
        good.write(frame(TEXT, HELLO, rsv=4))
        assert bad.read_close() == 1009
        assert good.read_frame().payload == b"Hello"
        assert server.ask(server.reactor.stats).memory_bytes == 0


def test_inflated_bytes_count_in_the_share_of_a_turn(backend: Backend) -> None:
    """Many small bombs in one read do not delay the other connections: each turn takes only some of them."""
    turns: list[int] = []

    class Counting(Handler):
        def on_message(self, conn: Connection, message: Message) -> None:
            turns.append(server.reactor.stats().turns)

    one = frame(BINARY, Deflater(takeover=False)(bytes(200_000)), rsv=4)
    with reactor(backend, Counting()) as server, Peer.connect(server.address, headers=OFFER) as peer:
        peer.write(one * 20)
        peer.shake_hands()
    assert len(turns) == 20
    assert max(turns.count(turn) for turn in turns) <= 2


def test_takeover_memory_counts_in_the_budget_and_messages_go_on_without_it(backend: Backend) -> None:
    """A compressor that gets no memory leaves its messages uncompressed; nothing is lost."""
    options = Options(
        deflate=Deflate(takeover=True, bytes_min=0, window_bits=15, memory_level=9),
        message_bytes_max=1000,
        memory_bytes_max=32 * 66 * 1024 + 600 * 1024,
    )
    with ReactorThread(Answering(), backend=backend, options=options) as server:
        peers = [Peer.connect(server.address, headers=OFFER) for _ in range(4)]
        seen = set()
        for peer in peers:
            peer.write(frame(TEXT, b"x" * 500))
            answer = peer.read_frame()
            seen.add(answer.rsv)
            assert Inflater()(answer) == b"x" * 500
        assert seen == {0, 4}
        for peer in peers:
            peer.close()
        settle(server)


def test_backlog_counts_what_a_message_takes_on_the_wire(backend: Backend) -> None:
    sizes: list[int] = []

    class Sending(Handler):
        def on_message(self, conn: Connection, message: Message) -> None:
            conn.send(b"x" * 10_000)
            sizes.append(conn.buffered_amount)
            conn.send(b"x" * 10_000, compress=False)
            sizes.append(conn.buffered_amount)

    with reactor(backend, Sending()) as server, Peer.connect(server.address, headers=OFFER) as peer:
        peer.send(TEXT, b"go")
        assert [one.rsv for one in peer.read_frames(2)] == [4, 0]
    assert sizes[0] < 100
    assert sizes[1] - sizes[0] == 10_004


def test_adopted_session_takes_the_terms_of_its_upgrade(backend: Backend) -> None:
    ours, theirs = tcp_pair()
    with ReactorThread(Answering(), backend=backend, prepare=no_listener) as server, Peer(theirs) as peer:
        server.sender.add_session(ours, deflate=DeflateTerms.from_response("permessage-deflate"))
        peer.write(frame(BINARY, Deflater()(b"x" * 1000), rsv=4))
        answer = peer.read_frame()
        assert answer.rsv == 4
        assert Inflater()(answer) == b"x" * 1000
        peer.write(close_frame())
        assert peer.read_close() == 1000


def test_sender_compresses_from_other_threads(backend: Backend) -> None:
    handler = Recorder()
    with reactor(backend, handler) as server, Peer.connect(server.address, headers=OFFER) as peer:
        ((_, number),) = handler.wait_for("open")
        server.sender.send(number, "x" * 1000)
        server.sender.send(number, "x" * 1000, compress=False)
        assert [one.rsv for one in peer.read_frames(2)] == [4, 0]
