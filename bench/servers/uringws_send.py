"""uringws, a Python handler that sends the payload as its own message: the cost of an application with its own
answers.
"""

from uringws import Connection, Handler, Message
from uringws_reactor import arguments, reactor


class Echo(Handler):
    def on_message(self, conn: Connection, message: Message) -> None:
        conn.send(message.opcode, message.data)


if __name__ == "__main__":
    with reactor(Echo(), arguments(__doc__)) as server:
        server.run()
