"""socketify (uWebSockets through cffi) that publishes by its topics, without compression."""

from typing import Any

from socketify import App, AppListenOptions, CompressOptions, OpCode, WebSocket

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready
from roles import AUDIENCE, AUDIENCES

if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    application = App()

    def upgrade(response: Any, request: Any, context: Any) -> None:
        key = request.get_header("sec-websocket-key")
        protocol = request.get_header("sec-websocket-protocol")
        extensions = request.get_header("sec-websocket-extensions")
        response.upgrade(key, protocol, extensions, context, request.get_url())

    def join(session: WebSocket) -> None:
        role = session.get_user_data()
        if role in AUDIENCES:
            session.subscribe(role)

    def publish(session: WebSocket, message: bytes | str, opcode: OpCode) -> None:
        audience = AUDIENCE.get(session.get_user_data())
        if audience is None:
            session.send(message, opcode)
        else:
            application.publish(audience, message, opcode)

    application.ws(
        "/*",
        {
            "compression": CompressOptions.DISABLED,
            "max_payload_length": MESSAGE_BYTES_MAX,
            "max_backpressure": 4 * MESSAGE_BYTES_MAX,
            "upgrade": upgrade,
            "open": join,
            "message": publish,
        },
    )
    application.listen(AppListenOptions(port=arguments.port, host=arguments.host), lambda options: ready(options.port))
    application.run()
