"""uringws, a handler that takes batches and echoes them; with --records it first adds up a column of their records.

With --each the records go through on_message and struct.unpack one by one: the floor that batches are compared with.
"""

import argparse
import struct

import numpy as np

from uringws import Batch, BatchHandler, Connection, Handler, Message
from uringws_reactor import arguments, reactor

RECORD = np.dtype([("sensor", "<u4"), ("reading", "<f4"), ("when", "<f8"), ("rest", "V16")])
EACH = struct.Struct("<Ifd16x")


class Echo(BatchHandler):
    def on_batch(self, batch: Batch) -> None:
        batch.echo()


class Records(BatchHandler):
    total = 0.0

    def on_batch(self, batch: Batch) -> None:
        rows, _ = batch.records(RECORD)
        self.total += float(rows["reading"].sum())
        batch.echo()


class Each(Handler):
    total = 0.0

    def on_message(self, conn: Connection, message: Message) -> None:
        self.total += EACH.unpack(message.data)[1]
        conn.echo()


def add_handlers(options: argparse.ArgumentParser) -> None:
    which = options.add_mutually_exclusive_group()
    which.add_argument(
        "--records", dest="handler", action="store_const", const=Records, help="add up records of 32 bytes"
    )
    which.add_argument("--each", dest="handler", action="store_const", const=Each, help="the same, message by message")
    options.set_defaults(handler=Echo)


if __name__ == "__main__":
    chosen = arguments(__doc__, add_handlers)
    with reactor(chosen.handler(), chosen) as server:
        server.run()
