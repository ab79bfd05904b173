"""The bench of fan-out: the generator's members against servers good and bad, its cases, and a short comparison."""

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import bars
import compare
import contenders
import load
import processes
import results
import runner
from cases import CASES
from load import Load, LoadError
from summary import Measurement
from test_bench import CORES, TWO_CORES, compared

Publish = Callable[[list[socket.socket], bytes], None]


class Room:
    """A server of bare TCP: the letter of a new connection is sent back, and what the others send is published."""

    def __init__(self, publish: Publish) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.publish = publish
        self.members: dict[bytes, list[socket.socket]] = {b"m": [], b"c": []}
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, None)

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def run(self) -> None:
        """Until the listener is closed."""
        with contextlib.suppress(OSError, ValueError):
            while True:
                for key, _ in self.selector.select():
                    if key.data is None:
                        self.welcome(self.listener.accept()[0])
                    else:
                        self.receive(key.fileobj, key.data)  # type: ignore[arg-type]

    def welcome(self, connection: socket.socket) -> None:
        letter = connection.recv(1)
        connection.sendall(letter)
        if letter in self.members:
            self.members[letter].append(connection)
        self.selector.register(connection, selectors.EVENT_READ, letter)

    def receive(self, connection: socket.socket, letter: bytes) -> None:
        data = connection.recv(1 << 20)
        if data:
            self.publish(self.members[b"c" if letter == b"c" else b"m"], data)
            return
        self.selector.unregister(connection)
        connection.close()


@contextlib.contextmanager
def room(publish: Publish) -> Iterator[int]:
    served = Room(publish)
    thread = threading.Thread(target=served.run)
    thread.start()
    try:
        yield served.port
    finally:
        served.listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for key in list(served.selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        served.selector.close()


def to_all(members: list[socket.socket], data: bytes) -> None:
    for member in members:
        member.sendall(data)


def short(**options: object) -> Load:
    usual = {"mode": "fanout", "members": 3, "seconds": 0.1, "warmup_seconds": 0.02}
    return Load(**{**usual, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["uringws_publish", "websockets_broadcast"])
def server(request: pytest.FixtureRequest) -> Iterator[processes.Server]:
    with processes.started(contenders.CONTENDERS[request.param], CORES[0]) as server:
        yield server


class TestMembers:
    @pytest.mark.parametrize("payload_bytes", [0, 64, 65536])
    def test_every_byte_reaches_every_member(self, server: processes.Server, payload_bytes: int) -> None:
        asked = short(payload_bytes=payload_bytes, in_flight=3, verify=True)
        outcome = load.run(asked, server.port, watch=[server.pid])
        assert outcome.messages > 0
        assert outcome.messages % (3 * 3) == 0  # whole rounds of three messages, for three members
        assert outcome.server_cpu_microseconds_per_message > 0

    def test_chatters_hear_all_of_each_other(self, server: processes.Server) -> None:
        outcome = load.run(short(mode="chat", members=7, in_flight=2, verify=True, text=True), server.port)
        assert outcome.messages > 0
        assert outcome.messages % (7 * 7 * 2) == 0

    def test_members_that_do_not_read_delay_no_other(self, server: processes.Server) -> None:
        asked = short(members=4, stalled=1, payload_bytes=100_000, verify=True, spin=True)
        assert load.run(asked, server.port).messages % 3 == 0

    def test_echoes_beside_members(self, server: processes.Server) -> None:
        asked = short(mode="echo", connections=2, rate=200, members=5, publish_rate=50, seconds=0.3, verify=True)
        outcome = load.run(asked, server.port)
        assert outcome.messages == pytest.approx(60, abs=2)
        assert outcome.unanswered == 0

    def test_backlogs_are_read_to_the_last_byte(self, server: processes.Server) -> None:
        asked = short(mode="backlog", members=3, stalled=2, payload_bytes=10_000, publishes=300)
        with load.backlogs(asked, server.port) as publish:
            before = processes.resident_bytes(server.pid)
            publish()
            assert processes.resident_bytes(server.pid) > before


class TestBadServers:
    def test_a_server_in_order_is_no_error(self) -> None:
        with room(to_all) as port:
            assert load.run(short(protocol="tcp", verify=True), port).messages > 0
            assert load.run(short(protocol="tcp", verify=True, mode="chat"), port).messages > 0

    def test_a_byte_that_differs(self) -> None:
        def falsify(members: list[socket.socket], data: bytes) -> None:
            to_all(members[:2], data)
            members[2].sendall(data[:-1] + b"\0")

        with room(falsify) as port, pytest.raises(LoadError, match="member 2: byte 25 of published message 0 is 0x00"):
            load.run(short(protocol="tcp"), port)  # the first message is compared without verification as well

    def test_a_message_that_comes_twice(self) -> None:
        def repeat(members: list[socket.socket], data: bytes) -> None:
            to_all([*members, members[-1]], data)

        with room(repeat) as port, pytest.raises(LoadError, match="member 2"):
            load.run(short(protocol="tcp", verify=True), port)
        with room(repeat) as port, pytest.raises(LoadError, match="member 2 received more than was published"):
            load.run(short(protocol="tcp"), port)

    def test_a_chatter_that_hears_a_message_twice_in_place_of_another(self) -> None:
        heard: list[bytes] = []

        def confuse(members: list[socket.socket], data: bytes) -> None:
            heard.append(data)
            to_all(members, heard[-2] if len(heard) % 3 == 2 else data)

        with room(confuse) as port, pytest.raises(LoadError, match="as many messages as were sent, but not the same"):
            load.run(short(protocol="tcp", mode="chat", verify=True), port)

    def test_an_end(self) -> None:
        def leave(members: list[socket.socket], data: bytes) -> None:
            to_all(members, data)
            members[1].shutdown(socket.SHUT_RDWR)

        with room(leave) as port, pytest.raises(LoadError, match="the server ended member 1 after 1 published message"):
            load.run(short(protocol="tcp", in_flight=1), port)

    def test_a_backlog_that_was_dropped(self) -> None:
        """The last, stalled member gets other bytes than the rest: it is found when it reads them."""
        count = 0

        def falsify_later(members: list[socket.socket], data: bytes) -> None:
            nonlocal count
            count += 1
            to_all(members[:-1], data)
            members[-1].sendall(data if count < 5 else bytes(len(data)))

        asked = short(protocol="tcp", mode="backlog", members=2, stalled=1, publishes=10)
        with (
            room(falsify_later) as port,
            pytest.raises(LoadError, match="member 1: byte 0 of published message 4 is 0x00"),
            load.backlogs(asked, port) as publish,
        ):
            publish()

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (short(members=0), "--mode fanout needs --members"),
            (short(mode="upgrade"), "--members needs --mode fanout, chat, backlog or echo"),
            (short(mode="echo"), "needs --publish-rate"),
            (short(publish_rate=1), "--publish-rate needs --mode echo"),
            (short(stalled=3), "--stalled must leave a member that reads"),
            (short(mode="chat", stalled=1), "--stalled needs --mode fanout or backlog"),
            (short(publishes=1), "--publishes and --mode backlog belong together"),
        ],
    )
    def test_a_wrong_command_line(self, asked: Load, message: str) -> None:
        with room(to_all) as port, pytest.raises(LoadError, match=message):
            load.run(replace(asked, protocol="websocket" if asked.mode in {"echo", "upgrade"} else "tcp"), port)


class TestCases:
    def plan(self, *names: str) -> runner.Plan:
        peer = contenders.peer("peer=9100:/bin/server")
        return runner.Plan(
            contenders=[contenders.CONTENDERS[name] for name in names] + [peer],
            baseline="peer",
            cases=list(CASES.values()),
            modes=["capacity"],
            rounds=2,
            seconds=1.0,
            warmup_seconds=0.1,
            server_core=0,
            client_core=1,
        )

    def test_servers_take_part_where_they_offer_what_is_asked(self) -> None:
        plan = self.plan("uringws_echo", "uringws_publish", "bare_fanout")

        def names(case: str) -> list[str]:
            return [one.name for one in plan.taking_part(CASES[case])]

        assert names("100/20") == ["uringws_echo", "peer"]
        assert names("fanout-1000x16") == ["uringws_publish", "bare_fanout", "peer"]
        assert names("chat-320") == ["uringws_publish", "peer"]

    @pytest.mark.parametrize(
        ("options", "some", "none"),
        [
            ([], "100/20", "fanout-1000x1"),
            (["--peer", "peer=9100:/bin/server"], "100/20", "fanout-1000x1"),
            (["--servers", "fan-out", "--peer", "peer=9100:/bin/server"], "fanout-1000x1", "100/20"),
        ],
    )
    def test_the_usual_cases_are_those_of_the_servers(
        self, options: list[str], some: str, none: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.argv", ["compare.py", "--cores", TWO_CORES, *options])
        names = {case.name for case in compare.plan(*compare.arguments()).cases}
        assert some in names
        assert none not in names

    def test_memory_is_a_ratio_that_grows_as_the_server_needs_less(self) -> None:
        found = results.Results(baseline="b", machine={})
        key = "resident_bytes_of_backlogs"
        found.measurements.all += [
            Measurement(server=server, case="backlog-memory", mode="throughput", round=0, values={key: value})
            for server, value in (("uringws_publish", 50e6), ("b", 1e9))
        ]
        readings = {bar.what: bar.measure(found) for bar in bars.slow_readers()}
        assert [reading.value for reading in readings.values() if reading] == [20, 50]


def test_a_comparison(tmp_path: object) -> None:
    done = compared(
        *("--servers", "uringws_publish,bare_fanout", "--baseline", "bare_fanout", "--modes", "capacity"),
        *("--cases", "fanout-200x16KiB", "--rounds", "1", "--seconds", "0.05", "--warmup-seconds", "0"),
        *("--retries", "0", "--bars", "--output", os.fspath(tmp_path)),  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stderr
    assert "us CPU" in done.stdout
    assert "uringws_publish" in done.stdout
    assert "plot: " in done.stdout
