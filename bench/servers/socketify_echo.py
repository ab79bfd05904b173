"""socketify (uWebSockets through cffi), without compression."""

from socketify import App, AppListenOptions, CompressOptions, OpCode, WebSocket

from command_line import MESSAGE_BYTES_MAX, parse, parser, ready


def echo(session: WebSocket, message: bytes | str, opcode: OpCode) -> None:
    session.send(message, opcode)


if __name__ == "__main__":
    arguments = parse(parser(__doc__))
    application = App()
    application.ws(
        "/*",
        {
            "compression": CompressOptions.DISABLED,
            "max_payload_length": MESSAGE_BYTES_MAX,
            "max_backpressure": 4 * MESSAGE_BYTES_MAX,
            "message": echo,
        },
    )
    application.listen(AppListenOptions(port=arguments.port, host=arguments.host), lambda options: ready(options.port))
    application.run()
