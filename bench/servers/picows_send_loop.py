"""picows on uvloop that publishes by a loop of sends, as its example of a broadcast server does."""

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready
from roles import AUDIENCE, AUDIENCES

members: dict[str, set[WSTransport]] = {audience: set() for audience in AUDIENCES}


class Rooms(WSListener):
    def __init__(self, path: str) -> None:
        self.role = path
        self.audience = AUDIENCE.get(path)

    def on_ws_connected(self, transport: WSTransport) -> None:
        if self.role in members:
            members[self.role].add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self.role in members:
            members[self.role].discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif self.audience is None:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())
        else:
            payload = frame.get_payload_as_bytes()
            for member in members[self.audience]:
                member.send(frame.msg_type, payload)


def rooms(request: WSUpgradeRequest) -> Rooms:
    return Rooms(request.path.decode())


async def main(host: str, port: int) -> None:
    server = await ws_create_server(rooms, host, port, max_frame_size=MESSAGE_BYTES_MAX, backlog=1024)
    ready(port)
    await server.serve_forever()


if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    uvloop.run(main(arguments.host, arguments.port))
