"""The contenders: one line per server. The servers themselves are in servers/."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from cases import CASES, Service
from load import Protocol

SERVERS = Path(__file__).resolve().parent / "servers"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A server that can be started; `command` lacks the port and the CPU, unless the port is fixed."""

    name: str
    command: tuple[str, ...]
    port: int | None = None
    protocol: Protocol = "websocket"
    cases: tuple[str, ...] | None = None
    """The only cases it is for; None: all."""
    services: tuple[Service, ...] = ("echo",)
    """Its services; a peer may have both."""
    group: str = "usual"
    """Which contenders it is named with; only the usual ones take part where none is named."""

    def command_line(self, port: int, core: int) -> list[str]:
        """The command that starts it on a port and a CPU."""
        if self.port is not None:
            return list(self.command)
        return [*self.command, "--port", str(port), "--core", str(core)]


def script(name: str, file: str, *options: str, group: str = "usual") -> Contender:
    """A contender that is a script in servers/, with the command line they all have."""
    return Contender(name=name, command=(sys.executable, str(SERVERS / f"{file}.py"), *options), group=group)


def publishing(
    name: str,
    *options: str,
    file: str | None = None,
    cases: tuple[str, ...] | None = None,
    protocol: Protocol = "websocket",
) -> Contender:
    """A script in servers/ that publishes to the members of rooms."""
    return Contender(
        name=name,
        command=(sys.executable, str(SERVERS / f"{file or name}.py"), *options),
        group="fan-out",
        services=("fan-out",),
        cases=cases,
        protocol=protocol,
    )


LIVELY = tuple(case.name for case in CASES.values() if case.kind == "fan-out" and not case.stalled)
"""The cases for servers that cannot keep messages for slow readers."""


CONTENDERS = {
    contender.name: contender
    for contender in (
        script("uringws_echo", "uringws_echo"),
        script("uringws_echo_epoll", "uringws_echo", "--backend", "epoll"),
        Contender(
            name="uringws_echo_busy_poll",
            command=(sys.executable, str(SERVERS / "uringws_echo.py"), "--busy-poll-microseconds", "50"),
            cases=("round-trip",),
        ),
        script("uringws_handler", "uringws_handler"),
        script("uringws_handler_epoll", "uringws_handler", "--backend", "epoll"),
        script("uringws_batch", "uringws_batch"),
        script("uringws_batch_records", "uringws_batch", "--records", group="batches"),
        script("uringws_batch_each", "uringws_batch", "--each", group="batches"),
        script("uringws_send", "uringws_send"),
        script("uringws_send_epoll", "uringws_send", "--backend", "epoll"),
        script("uringws_send_message", "uringws_send_message"),
        script("uringws_asyncio", "uringws_asyncio"),
        script("uringws_asyncio_uvloop", "uringws_asyncio", "--loop", "uvloop"),
        script("uringws_asyncio_stock", "uringws_asyncio", "--loop", "stock"),
        script("picows", "picows_echo"),
        script("picows_websockets", "picows_websockets_echo"),
        script("websockets", "websockets_echo"),
        script("aiohttp", "aiohttp_echo"),
        script("socketify", "socketify_echo"),
        script("uvicorn", "uvicorn_echo"),
        script("ws", "ws_echo"),
        Contender(
            name="bare_uring",
            command=(sys.executable, str(SERVERS / "bare.py"), "--program", "bare_uring"),
            protocol="tcp",
        ),
        script("fastapi_uvicorn_uvloop", "fastapi_echo", group="frameworks"),
        script("fastapi_uvicorn_sansio_uvloop", "fastapi_echo", "--ws", "websockets-sansio", group="frameworks"),
        script("fastapi_uringws", "fastapi_echo", "--ws", "uringws", "--loop", "uringws", group="frameworks"),
        script("fastapi_uringws_uvloop", "fastapi_echo", "--ws", "uringws", group="frameworks"),
        script("aiohttp_uringws", "aiohttp_echo", "--uringws", group="frameworks"),
        publishing("uringws_publish"),
        publishing("uringws_publish_epoll", "--backend", "epoll", file="uringws_publish"),
        publishing("uringws_send_loop"),
        publishing("picows_send_loop"),
        publishing("picows_websockets_broadcast", "--library", "picows.websockets", file="websockets_broadcast"),
        publishing("websockets_broadcast"),
        publishing("socketify_publish"),
        publishing("nchan_publish", cases=(*LIVELY, "chat-320")),
        publishing("bare_fanout", "--program", "bare_fanout", file="bare", cases=LIVELY, protocol="tcp"),
    )
}
CONTENDER_GROUPS = tuple(dict.fromkeys(contender.group for contender in CONTENDERS.values()))

PEER = re.compile(r"(?P<name>[\w.-]+)=(?P<port>\d+):(?P<command>.+)")


def peer(text: str) -> Contender:
    """A contender from the command line: name=port:command. Raises ValueError."""
    match = PEER.fullmatch(text)
    if match is None:
        raise ValueError(f"a peer is given as name=port:command, not {text!r}")
    port = int(match["port"])
    if not 0 < port < 65536:
        raise ValueError(f"{port} is not a port, in {text!r}")
    if match["name"] in {*CONTENDERS, *CONTENDER_GROUPS}:
        raise ValueError(f"{match['name']} is a contender or a group of the bench already; give the peer another name")
    return Contender(
        name=match["name"], command=tuple(shlex.split(match["command"])), port=port, services=("echo", "fan-out")
    )
