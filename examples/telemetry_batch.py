"""Sensors send records of 12 bytes, one per message, and a page shows their statistics. The page is on the same port.

    python examples/telemetry_batch.py [--host 127.0.0.1] [--port 9006] [--backend auto|io_uring|epoll] [--sensors 24]

`on_batch` is given all messages of a turn in one call. numpy reads their records as one array and updates the
statistics of all sensors at once. A message that is not a record is counted as refused, and its connection is closed
with 1003. The page gets a summary twice a second, through a topic that conflates. Simulated sensors run in a process
of their own; `--sensors 0` leaves them out, for sensors of yours that send to /sensor. Ctrl-C ends the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import numpy as np
except ImportError:
    sys.exit('telemetry_batch: numpy is not installed: run pip install "uringws[batch]"')
from uringws import Accept, Batch, BatchHandler, CloseCode, Connection, Options, Reactor, Reject, Request, Response

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE = Path(__file__).with_suffix(".html")
PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a client here calls them

RECORD = np.dtype([("sensor", "<u4"), ("celsius", "<f4"), ("humidity", "<f4")])
REFUSAL = f"a message is one record of {RECORD.itemsize} bytes, of a known sensor, with values in range"
SENSORS_MAX = 100
SUMMARY_SECONDS = 0.5
SENSOR_SECONDS, SENSOR_RECORDS = 0.1, 10  # how often a simulated sensor sends records, and how many
OPTIONS = Options(message_bytes_max=1024, batch_wait_microseconds=2000, drain_seconds_max=1.0)


class Statistics:
    """Statistics of all that the sensors have measured of one quantity. Element i of each array is of sensor i."""

    def __init__(self) -> None:
        self.count = np.zeros(SENSORS_MAX, np.int64)
        self.sum = np.zeros(SENSORS_MAX)
        self.min = np.full(SENSORS_MAX, np.inf)
        self.max = np.full(SENSORS_MAX, -np.inf)
        self.last = np.zeros(SENSORS_MAX)

    def add(self, sensors: NDArray[np.intp], values: NDArray[np.float64]) -> None:
        """Take measurements in their order: `values[i]` is of sensor `sensors[i]`, which may be there several times."""
        np.add.at(self.count, sensors, 1)
        np.add.at(self.sum, sensors, values)
        np.minimum.at(self.min, sensors, values)
        np.maximum.at(self.max, sensors, values)
        self.last[sensors] = values  # of several values of one sensor, numpy keeps the last

    def of(self, sensors: NDArray[np.intp]) -> dict[str, list[float]]:
        """Return the statistics of some sensors, each of which has measured something."""
        columns = {"mean": self.sum / np.maximum(self.count, 1), "min": self.min, "max": self.max, "last": self.last}
        return {name: column[sensors].round(2).tolist() for name, column in columns.items()}


class Telemetry(BatchHandler):
    """Keeps the statistics of all sensors, and publishes them for the pages."""

    def __init__(self) -> None:
        self._page = PAGE.read_bytes()
        self._quantities = {"celsius": Statistics(), "humidity": Statistics()}
        self._heard = np.zeros(SENSORS_MAX)  # when each sensor's last record came
        self._batches = self._refused = 0

    def begin(self, reactor: Reactor) -> None:
        """Publish a summary from time to time."""
        self._summary = reactor.topic("summary", on_full="conflate")
        reactor.call_every(SUMMARY_SECONDS, self._publish)

    def on_request(self, request: Request) -> Response:
        """Serve the page to a browser."""
        return Response(200, PAGE_HEADERS, self._page) if request.path == "/" else Response(404, body="not found\n")

    def on_upgrade(self, request: Request) -> Accept | Reject:
        """Take /sensor or /page."""
        if request.path not in {"/sensor", "/page"}:
            return Reject(404, body="send records to /sensor, or open / in a browser\n")
        return Accept(data=request.path)

    def on_open(self, conn: Connection) -> None:
        """Let a page have the summaries."""
        if conn.data == "/page":
            self._summary.add(conn)

    def on_batch(self, batch: Batch) -> None:
        """Update the statistics with all records of a turn."""
        rows, good = batch.records(RECORD)
        good &= (rows["sensor"] < SENSORS_MAX) & (abs(rows["celsius"]) <= 100)  # "not a number" is in no range
        good &= (rows["humidity"] >= 0) & (rows["humidity"] <= 100)
        if not good.all():
            self._refused += int(np.count_nonzero(~good))
            batch.close(~good, CloseCode.UNSUPPORTED_DATA, REFUSAL)
            rows = rows[good]
        sensors = rows["sensor"].astype(np.intp)
        for name, statistics in self._quantities.items():
            statistics.add(sensors, rows[name].astype(np.float64))
        self._heard[sensors] = time.monotonic()
        self._batches += 1

    def _publish(self) -> None:
        counts = self._quantities["celsius"].count
        sensors = np.flatnonzero(counts)
        summary: dict[str, Any] = {name: statistics.of(sensors) for name, statistics in self._quantities.items()}
        summary |= {"sensors": sensors.tolist(), "counts": counts[sensors].tolist()}
        summary |= {"silent": (time.monotonic() - self._heard[sensors]).round(1).tolist(), "time": time.monotonic()}
        summary |= {"records": int(counts.sum()), "batches": self._batches, "refused": self._refused}
        self._summary.publish(json.dumps(summary, separators=(",", ":")))


def simulate(address: tuple[str, int], sensors: int) -> None:
    """Be so many sensors, until the server closes one of them or is gone."""
    # Binary messages (RFC 6455 5.2) with a masking key of zeros, which leaves the records as they are.
    frames = np.zeros(SENSOR_RECORDS, np.dtype([("head", "u1", 6), ("record", RECORD)]))
    frames["head"][:, :2] = 0x82, 0x80 | RECORD.itemsize
    upgrade = (
        "GET /sensor HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    noise = np.random.default_rng()
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        sockets = [stack.enter_context(socket.create_connection(address)) for _ in range(sensors)]
        for sock in sockets:
            sock.sendall(upgrade.encode())
            while (answer := sock.recv(4096)) and not answer.endswith(b"\r\n\r\n"):
                pass
        while sockets:
            ready, _, _ = select.select(sockets, [], [], SENSOR_SECONDS)
            # A ping needs no answer, because each record shows that its sensor is alive. Anything else is the end.
            if any(sock.recv(4096)[:1] != b"\x89" for sock in ready):
                return
            for number, sock in enumerate(sockets):
                phase = time.monotonic() / 10 + number
                frames["record"]["sensor"] = number
                frames["record"]["celsius"] = noise.normal(21 + np.sin(phase), 0.3, SENSOR_RECORDS)
                frames["record"]["humidity"] = noise.normal(50 + 8 * np.cos(phase), 1.5, SENSOR_RECORDS)
                sock.sendall(frames.tobytes())


def serve(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    telemetry = Telemetry()
    with Reactor(telemetry, OPTIONS, backend=arguments.backend) as reactor:
        telemetry.begin(reactor)
        host, port = reactor.bind(arguments.host, arguments.port)
        called = EVERY_ADDRESS.get(host, host)
        simulate = ["--simulate", "--host", called, "--port", str(port), "--sensors", str(arguments.sensors)]
        with subprocess.Popen([sys.executable, __file__, *simulate], start_new_session=True) as simulation:
            try:
                shown, called = (f"[{name}]" if ":" in name else name for name in (host, called))
                print(f"listening on ws://{shown}:{port} ({reactor.backend})")
                print(f"in a browser:  http://{called}:{port}/", flush=True)
                reactor.run()
            finally:
                simulation.kill()


def main() -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description="Statistics of many sensors on io_uring, with a page.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9006, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--backend", choices=("auto", "io_uring", "epoll"), default="auto")
    parser.add_argument("--sensors", type=int, default=24, help="run by the example (default: %(default)s)")
    parser.add_argument("--simulate", action="store_true", help=argparse.SUPPRESS)  # in the child process
    arguments = parser.parse_args()
    if not 0 <= arguments.sensors <= SENSORS_MAX:
        parser.error(f"--sensors {arguments.sensors}: give a whole number from 0 to {SENSORS_MAX}")
    try:
        if arguments.simulate:
            simulate((arguments.host, arguments.port), arguments.sensors)
        else:
            serve(arguments)
    except KeyboardInterrupt:
        pass  # before the reactor ran; after that Ctrl-C drains it
    except (OSError, ValueError) as error:  # UringUnavailable is an OSError
        print(f"telemetry_batch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
