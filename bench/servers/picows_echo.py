"""picows on uvloop: the echo of its README, which never leaves the data path and sends from the receive buffer."""

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


async def main(host: str, port: int) -> None:
    server = await ws_create_server(lambda _: Echo(), host, port, max_frame_size=MESSAGE_BYTES_MAX, backlog=1024)
    ready(port)
    await server.serve_forever()


if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    uvloop.run(main(arguments.host, arguments.port))
