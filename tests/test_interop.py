"""The clients people use, against the echo example: the sizes at which framing changes, text and binary, byte for byte.

Each client runs as its users start it, which for most means that it offers permessage-deflate and is refused. Three
conversations: *whole* waits for each answer; *fragmented* sends each message in pieces cut without regard for UTF-8;
*pipelined* sends everything while the answers are read on the side. Node's ``ws`` holds the same conversations in
``js/interop.mjs``, with the payloads of ``js/payloads.mjs``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import picows
import pytest
import websockets.asyncio.client

from servers import ServerProcess, missing, require_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from websockets.asyncio.client import ClientConnection

SIZES = [0, 1, 125, 126, 127, 2047, 2048, 2049, 4096, 16384, 65535, 65536, 1 << 20, 10 << 20]
JS = Path(__file__).parent / "js"

Message = str | bytes


def text_of(size: int) -> str:
    """A text of ``size`` bytes that mixes UTF-8 sequences of one to four bytes."""
    return "aé漢😀" * (size // 10) + "x" * (size % 10)


def binary_of(size: int) -> bytes:
    """No period that divides a power of two, so that a block out of place shows."""
    block = bytes(range(251))
    return (block * (size // len(block) + 1))[:size]


def messages() -> list[Message]:
    return [make(size) for size in SIZES for make in (text_of, binary_of)]


def pieces(message: Message) -> list[bytes]:
    """Cut into single bytes when short, else in seven with an empty piece between: fragments may be empty."""
    data = message.encode() if isinstance(message, str) else message
    step = 1 if len(data) <= 127 else len(data) // 7 + 1
    cut = [data[at : at + step] for at in range(0, len(data), step)]
    return [*cut[:2], b"", *cut[2:]]


class Client:
    """The methods of a client that the conversations use."""

    async def send(self, message: Message) -> None:
        raise NotImplementedError

    async def send_pieces(self, pieces: Sequence[bytes], *, text: bool) -> None:
        raise NotImplementedError

    async def receive(self) -> Message:
        raise NotImplementedError


class WebsocketsClient(Client):
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Client]:
        async with websockets.asyncio.client.connect(url, max_size=None, proxy=None) as connection:
            yield cls(connection)

    async def send(self, message: Message) -> None:
        await self._connection.send(message)

    async def send_pieces(self, pieces: Sequence[bytes], *, text: bool) -> None:
        await self._connection.send(pieces, text=text)

    async def receive(self) -> Message:
        return await self._connection.recv()


class AiohttpClient(Client):
    """aiohttp's client has no way to send a message in fragments."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Client]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, max_msg_size=0, compress=15) as socket,
        ):
            yield cls(socket)

    async def send(self, message: Message) -> None:
        await (self._socket.send_str(message) if isinstance(message, str) else self._socket.send_bytes(message))

    async def receive(self) -> Message:
        received = await self._socket.receive()
        assert isinstance(received.data, str | bytes), received
        return received.data


class PicowsClient(Client, picows.WSListener):
    _transport: picows.WSTransport

    def __init__(self) -> None:
        self._received: asyncio.Queue[Message] = asyncio.Queue()
        self._may_write = asyncio.Event()
        self._may_write.set()

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Client]:
        transport, client = await picows.ws_connect(cls, url)
        assert isinstance(client, cls)
        client._transport = transport
        try:
            yield client
        finally:
            transport.send_close(picows.WSCloseCode.OK)
            await transport.wait_disconnected()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is picows.WSMsgType.CLOSE:
            transport.disconnect()
            return
        assert frame.fin, "an answer in fragments"
        text = frame.msg_type is picows.WSMsgType.TEXT
        self._received.put_nowait(frame.get_payload_as_utf8_text() if text else frame.get_payload_as_bytes())

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def send(self, message: Message) -> None:
        text = isinstance(message, str)
        data = message.encode() if isinstance(message, str) else message
        self._transport.send(picows.WSMsgType.TEXT if text else picows.WSMsgType.BINARY, data)
        await self._may_write.wait()

    async def send_pieces(self, pieces: Sequence[bytes], *, text: bool) -> None:
        kind = picows.WSMsgType.TEXT if text else picows.WSMsgType.BINARY
        for number, piece in enumerate(pieces, 1):
            self._transport.send(kind, piece, fin=number == len(pieces))
            kind = picows.WSMsgType.CONTINUATION
        await self._may_write.wait()

    async def receive(self) -> Message:
        return await self._received.get()


async def whole(client: Client) -> None:
    for message in messages():
        await client.send(message)
        assert_same(await client.receive(), message)


async def fragmented(client: Client) -> None:
    for message in messages():
        await client.send_pieces(pieces(message), text=isinstance(message, str))
        assert_same(await client.receive(), message)


async def pipelined(client: Client) -> None:
    # Many small ones first: they share reads, and their answers share writes.
    sent = [make(size) for size in range(300) for make in (text_of, binary_of)] + messages()

    async def send_all() -> None:
        for message in sent:
            await client.send(message)

    sending = asyncio.create_task(send_all())
    for message in sent:
        assert_same(await client.receive(), message)
    await sending


def assert_same(received: Message, sent: Message) -> None:
    """Equality without a diff of ten megabytes in the report."""
    same = type(received) is type(sent) and received == sent
    assert same, f"{len(sent)} {type(sent).__name__} came back as {len(received)} {type(received).__name__}"


@pytest.mark.parametrize(
    ("connect", "converse"),
    [
        pytest.param(client.connect, converse, id=f"{name}-{converse.__name__}")
        for name, client, conversations in (
            ("websockets", WebsocketsClient, (whole, fragmented, pipelined)),
            ("aiohttp", AiohttpClient, (whole, pipelined)),
            ("picows", PicowsClient, (whole, fragmented, pipelined)),
        )
        for converse in conversations
    ],
)
def test_python_clients_get_their_messages_back(
    echo_server: ServerProcess,
    connect: Callable[[str], AbstractAsyncContextManager[Client]],
    converse: Callable[[Client], Any],
) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), connect(echo_server.url) as client:
            await converse(client)

    asyncio.run(main())


@pytest.fixture(scope="session")
def node_with_ws() -> str:
    """Node, with the ``ws`` that the lock file names installed beside the scripts."""
    node, npm = require_tool("node"), require_tool("npm")
    if not (JS / "node_modules" / "ws").is_dir():
        install = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=JS,
            capture_output=True,
            text=True,
            check=False,
        )
        if install.returncode != 0:
            missing(f"npm ci failed: {install.stderr.strip()}")
    return node


@pytest.mark.parametrize("conversation", ["whole", "fragmented", "pipelined"])
def test_node_ws_gets_its_messages_back(echo_server: ServerProcess, node_with_ws: str, conversation: str) -> None:
    run = subprocess.run(
        [node_with_ws, JS / "interop.mjs", echo_server.url, conversation, json.dumps(SIZES)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    report = json.loads(run.stdout)
    assert report == {"messages": report["messages"], "wrong": []}
    assert report["messages"] >= 2 * len(SIZES)
