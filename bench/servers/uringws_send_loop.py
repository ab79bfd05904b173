"""uringws that publishes by a loop of sends in the handler, as a program without topics does."""

from roles import AUDIENCE, AUDIENCES
from uringws import Accept, Connection, Handler, Message, Request
from uringws_reactor import arguments, reactor


class Rooms(Handler):
    def __init__(self) -> None:
        self.members: dict[str, set[Connection]] = {audience: set() for audience in AUDIENCES}

    def on_upgrade(self, request: Request) -> Accept:
        return Accept(data=request.path)

    def on_open(self, conn: Connection) -> None:
        if conn.data in self.members:
            self.members[conn.data].add(conn)

    def on_close(self, conn: Connection, code: int, reason: str) -> None:
        if conn.data in self.members:
            self.members[conn.data].discard(conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        audience = AUDIENCE.get(conn.data)
        if audience is None:
            conn.echo()
            return
        opcode, payload = message.opcode, bytes(message)
        for member in self.members[audience]:
            member.send(opcode, payload)


if __name__ == "__main__":
    with reactor(Rooms(), arguments(__doc__), ping_interval_seconds=None, on_full="drop") as server:
        server.run()
