"""uringws, a Python handler that sends what it received: what an application with its own answers costs."""

from uringws import Connection, Handler, Message
from uringws_reactor import arguments, reactor


class Echo(Handler):
    def on_message(self, conn: Connection, message: Message) -> None:
        conn.send(message.opcode, message.data)


if __name__ == "__main__":
    with reactor(Echo(), arguments(__doc__)) as server:
        server.run()
