"""uringws, a Python handler that calls conn.echo(): the payload goes back in place."""

from uringws import Connection, Handler, Message
from uringws_reactor import arguments, reactor


class Echo(Handler):
    def on_message(self, conn: Connection, message: Message) -> None:
        conn.echo()


if __name__ == "__main__":
    with reactor(Echo(), arguments(__doc__)) as server:
        server.run()
