"""uringws that publishes by topics, with one call per message for any number of members."""

from roles import AUDIENCE, AUDIENCES
from uringws import Accept, Connection, Handler, Message, Request, Topic
from uringws_reactor import arguments, reactor


class Rooms(Handler):
    topics: dict[str, Topic]

    def on_upgrade(self, request: Request) -> Accept:
        return Accept(data=request.path)

    def on_open(self, conn: Connection) -> None:
        topic = self.topics.get(conn.data)
        if topic is not None:
            topic.add(conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        audience = AUDIENCE.get(conn.data)
        if audience is None:
            conn.echo()
        else:
            self.topics[audience].publish(message)


if __name__ == "__main__":
    handler = Rooms()
    with reactor(handler, arguments(__doc__), ping_interval_seconds=None) as server:
        handler.topics = {audience: server.topic(audience, on_full="drop_new") for audience in AUDIENCES}
        server.run()
