"""A connected socket whose opening handshake was done elsewhere, as a `ServerConnection`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uringws.asyncio.transport import TransportLink

if TYPE_CHECKING:
    import socket

    from uringws.asyncio.connection import ServerConnection
    from uringws.asyncio.server import Server

__all__ = ["adopt"]


async def adopt(server: Server, sock: socket.socket) -> ServerConnection:
    """Take over a socket; the server's handler is called for it. The server does not have to listen."""
    link = TransportLink(server, is_open=True)
    await server.loop.create_connection(lambda: link, sock=sock)
    return link._connection
