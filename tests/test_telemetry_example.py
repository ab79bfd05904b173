"""The telemetry example over the wire: the statistics of what sensors send, and messages that are not records."""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any

from servers import ServerProcess
from uringws.backend import Backend
from wire import BINARY, TEXT, Peer, frame, http, upgrade_request

RECORD = struct.Struct("<Iff")


def telemetry(*arguments: str) -> ServerProcess:
    return ServerProcess("examples/telemetry_batch.py", "--port", "0", *arguments)


def read_summary(page: Peer, *, records: int = 0, refused: int = 0) -> dict[str, Any]:
    """The first summary that counts so many."""
    while True:
        summary: dict[str, Any] = json.loads(page.read_frame().payload)
        if summary["records"] >= records and summary["refused"] >= refused:
            assert (summary["records"], summary["refused"]) == (records, refused)
            return summary


def test_each_sensor_has_the_statistics_of_its_own_records(backend: Backend) -> None:
    """Two connections send interleaved records; one of them is of a sensor that both of them know."""
    sent = {
        3: [(20.5, 40.0), (-7.25, 100.0), (21.0, 0.0)],
        0: [(19.0, 55.5), (25.0, 52.0)],
        99: [(100.0, 50.0)],
    }
    with (
        telemetry("--sensors", "0", "--backend", backend) as server,
        Peer.connect(server.address, "/page") as page,
        Peer.connect(server.address, "/sensor") as one,
        Peer.connect(server.address, "/sensor") as two,
    ):
        one.write(*(frame(BINARY, RECORD.pack(sensor, *sent[sensor][0])) for sensor in (3, 0)))
        one.write(*(frame(BINARY, RECORD.pack(3, *values)) for values in sent[3][1:]))
        read_summary(page, records=4)
        two.write(frame(BINARY, RECORD.pack(0, *sent[0][1])), frame(BINARY, RECORD.pack(99, *sent[99][0])))
        summary = read_summary(page, records=6)
    assert summary["sensors"] == sorted(sent)
    assert summary["counts"] == [len(sent[sensor]) for sensor in sorted(sent)]
    for column, quantity in enumerate(("celsius", "humidity")):
        values = [[record[column] for record in sent[sensor]] for sensor in sorted(sent)]
        assert summary[quantity] == {
            "mean": [round(sum(of_one) / len(of_one), 2) for of_one in values],
            "min": [min(of_one) for of_one in values],
            "max": [max(of_one) for of_one in values],
            "last": [of_one[-1] for of_one in values],
        }


WRONG = {
    "empty": (BINARY, b""),
    "too long": (BINARY, RECORD.pack(1, 20, 50) + b"more"),
    "text": (TEXT, b"twelve bytes"),
    "unknown sensor": (BINARY, RECORD.pack(100, 20, 50)),
    "not a number": (BINARY, RECORD.pack(1, math.nan, 50)),
    "infinite": (BINARY, RECORD.pack(1, 20, math.inf)),
    "signalling": (BINARY, struct.pack("<III", 1, 0x7F800001, 0x7F800001)),
}


def test_a_message_that_is_not_a_record_is_counted_and_closes_its_sender_alone() -> None:
    good = frame(BINARY, RECORD.pack(7, 20, 50))
    with (
        telemetry("--sensors", "0") as server,
        Peer.connect(server.address, "/page") as page,
        Peer.connect(server.address, "/sensor") as other,
    ):
        for name, (opcode, payload) in WRONG.items():
            with Peer.connect(server.address, "/sensor") as bad:
                bad.write(good, frame(opcode, payload))
                answer = bad.read_frame()
            assert (name, answer.close_code) == (name, 1003)
            assert b"12 bytes" in answer.payload
            other.write(good)
        summary = read_summary(page, records=2 * len(WRONG), refused=len(WRONG))
        assert (summary["sensors"], summary["counts"]) == ([7], [2 * len(WRONG)])
        assert other.shake_hands() == 1000
        assert "Warning" not in server.output


def test_the_simulated_sensors_are_heard_and_end_with_the_server() -> None:
    with telemetry("--sensors", "5") as server, Peer.connect(server.address, "/page") as page:
        summary: dict[str, Any] = {}
        while summary.get("sensors") != [0, 1, 2, 3, 4]:
            summary = json.loads(page.read_frame().payload)
        assert summary["refused"] == 0
        for quantity, least, most in (("celsius", 15, 27), ("humidity", 30, 70)):
            assert least < min(summary[quantity]["min"]) <= max(summary[quantity]["max"]) < most


def test_the_page_is_served_and_other_paths_are_not() -> None:
    with telemetry("--sensors", "0") as server:
        response = http(server.address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert response.status == 200
        assert not re.search(rb"(src|href)=\"?(https?:)?//", response.body)
        assert b"innerHTML" not in response.body
        assert http(server.address, b"GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 404
        assert http(server.address, upgrade_request("/elsewhere")).status == 404
