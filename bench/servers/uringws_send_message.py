"""uringws, a Python handler that sends the message it received, as it is: no view of the payload is made."""

from uringws import Connection, Handler, Message
from uringws_reactor import arguments, reactor


class Echo(Handler):
    def on_message(self, conn: Connection, message: Message) -> None:
        conn.send(message)


if __name__ == "__main__":
    with reactor(Echo(), arguments(__doc__)) as server:
        server.run()
