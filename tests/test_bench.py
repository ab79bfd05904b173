"""The bench suite: its arithmetic, its load generator against servers good and bad, and a whole short comparison."""

import contextlib
import ctypes
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import bars
import compare
import contenders
import load
import native
import processes
import results
import runner
from cases import CASES, SHAPES
from load import Load, LoadError
from servers import wait_until
from summary import Measurement, Measurements, geometric_mean, spread

BENCH = Path(__file__).resolve().parent.parent / "bench"
CORES = sorted(os.sched_getaffinity(0))
TWO_CORES = f"{CORES[0]},{CORES[-1]}"


def measured(server: str, *values: float, case: str = "100/20", key: str = "messages_per_second") -> list[Measurement]:
    return [
        Measurement(server=server, case=case, mode="throughput", round=turn, values={key: value})
        for turn, value in enumerate(values)
    ]


class TestSummary:
    def test_spread_is_median_and_quartiles(self) -> None:
        found = spread([5, 1, 4, 2, 3])
        assert (found.median, found.low, found.high, found.count) == (3, 2, 4, 5)

    def test_few_values_have_their_extremes(self) -> None:
        assert (spread([2, 8]).low, spread([2, 8]).high) == (2, 8)

    def test_no_values_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            spread([])

    def test_geometric_mean(self) -> None:
        assert geometric_mean([2, 0.5]) == pytest.approx(1)

    def test_ratio_is_taken_within_each_round(self) -> None:
        # The machine slows down from round to round; in each, a is twice as good as b.
        found = Measurements(measured("a", 200, 20, 2) + measured("b", 100, 10, 1))
        ratio = found.ratio("a", "b", "100/20", "throughput")
        assert ratio is not None
        assert (ratio.median, ratio.low, ratio.high) == (2, 2, 2)

    def test_less_latency_is_better(self) -> None:
        key = "latency_p50_microseconds"
        found = Measurements(
            measured("a", 10, case="round-trip", key=key) + measured("b", 40, case="round-trip", key=key)
        )
        ratio = found.ratio("a", "b", "round-trip", "throughput")
        assert ratio is not None
        assert ratio.median == 4

    def test_missing_measurements_have_no_ratio(self) -> None:
        found = Measurements(measured("a", 1))
        assert found.ratio("a", "b", "100/20", "throughput") is None
        assert found.geometric_mean("a", "a", SHAPES, "throughput") is None

    def test_difference_round_by_round(self) -> None:
        found = Measurements(measured("a", 5, 50) + measured("b", 4, 49))
        difference = found.difference("a", "b", "100/20", "throughput", "messages_per_second")
        assert difference is not None
        assert difference.median == 1


class TestBars:
    def test_every_bar_answers_a_run_that_measured_nothing(self) -> None:
        empty = results.Results(baseline="picows", machine={})
        assert [bar.measure(empty) for bar in bars.bars()] == [None] * len(list(bars.bars()))

    def test_worst_shape_decides(self) -> None:
        found = results.Results(baseline="b", machine={})
        for shape, value in zip(SHAPES, (3, 2, 1.5, 4, 5), strict=True):
            found.measurements.all += measured("a", value, case=shape) + measured("b", 1, case=shape)
        reading = bars.worst("a", bars.BASELINE, SHAPES, "throughput")(found)
        assert reading is not None
        assert reading.value == 1.5
        assert "10/16384" in reading.detail

    def test_latency_must_not_exceed(self) -> None:
        [bar] = [bar for bar in bars.bars() if bar.what.startswith("round trip")]
        assert bar.met(0.9, bar.required)
        assert not bar.met(1.1, bar.required)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The generator's histogram, as Python can call it."""
    path = tmp_path_factory.mktemp("histogram") / "histogram.so"
    native.compile_program([BENCH / "load" / "histogram.c"], path, ["-shared", "-fPIC"])
    library = ctypes.CDLL(str(path))
    library.histogram_record.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
    library.histogram_quantile.argtypes = [ctypes.c_void_p, ctypes.c_double]
    library.histogram_quantile.restype = ctypes.c_uint64
    return library


class TestHistogram:
    @pytest.mark.parametrize("fraction", [0, 0.5, 0.9, 0.99, 0.999, 1])
    @pytest.mark.parametrize("magnitude", [1e2, 1e5, 1e9])
    def test_quantiles_are_within_a_bucket(self, library: ctypes.CDLL, fraction: float, magnitude: float) -> None:
        values = [int(random.Random(7).lognormvariate(0, 2) * magnitude) for _ in range(2000)]
        histogram = ctypes.create_string_buffer(1 << 16)
        for value in values:
            library.histogram_record(histogram, value, 1)
        exact = float(np.quantile(values, fraction, method="inverted_cdf"))
        found = library.histogram_quantile(histogram, fraction)
        assert exact <= found <= exact * (1 + 1 / 128)

    def test_maximum_is_exact_and_nothing_is_lost_above_the_range(self, library: ctypes.CDLL) -> None:
        histogram = ctypes.create_string_buffer(1 << 16)
        library.histogram_record(histogram, 123_456_789, 3)
        assert library.histogram_quantile(histogram, 1) == 123_456_789
        library.histogram_record(histogram, 2**60, 1)
        assert library.histogram_quantile(histogram, 1) == 2**40 - 1


@contextlib.contextmanager
def served(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that hands its first connection to `serve`, which may end as it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def short(**options: object) -> Load:
    return Load(**{"connections": 1, "seconds": 0.2, "warmup_seconds": 0.05, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server() -> Iterator[processes.Server]:
    with processes.started(contenders.CONTENDERS["websockets"], CORES[0]) as server:
        yield server


class TestLoad:
    @pytest.mark.parametrize("payload_bytes", [0, 20, 125, 126, 65535, 65536])
    @pytest.mark.parametrize("text", [False, True])
    def test_every_byte_comes_back(self, server: processes.Server, payload_bytes: int, *, text: bool) -> None:
        asked = short(connections=3, payload_bytes=payload_bytes, text=text, in_flight=3, verify=True)
        outcome = load.run(asked, server.port, watch=[server.pid])
        assert outcome.messages > 0
        assert 0 < outcome.latency_microseconds["p50"] <= outcome.latency_microseconds["max"]

    def test_cpu_time_is_that_of_the_window(self, server: processes.Server) -> None:
        outcome = load.run(short(connections=20), server.port, watch=processes.family(server.pid))
        assert 0 < outcome.server_cpu_share <= 1.1
        assert 0 < outcome.client_cpu_share <= 1.1
        assert outcome.server_cpu_microseconds_per_message > 1

    def test_more_connections_than_a_turn_holds(self, server: processes.Server) -> None:
        assert load.run(short(connections=1000, verify=True), server.port).messages > 0

    def test_upgrades(self, server: processes.Server) -> None:
        assert load.run(short(connections=10, mode="upgrade"), server.port).messages > 10

    def test_idle_sessions_take_memory(self) -> None:
        with processes.started(contenders.CONTENDERS["websockets"], CORES[0]) as fresh:
            before = processes.resident_bytes(fresh.pid)
            with load.hold(300, fresh.port):
                assert processes.resident_bytes(fresh.pid) > before + 300 * 1000

    def test_fixed_rate_is_kept(self, server: processes.Server) -> None:
        outcome = load.run(short(connections=7, rate=2000, seconds=0.5), server.port)
        assert outcome.messages_per_second == pytest.approx(2000, rel=0.02)
        assert outcome.unanswered == 0

    def test_a_stall_delays_all_messages_that_were_due(self) -> None:
        def stall(connection: socket.socket) -> None:
            begin = time.monotonic()
            while data := connection.recv(65536):
                if 0.3 < time.monotonic() - begin < 0.5:
                    time.sleep(0.4)
                connection.sendall(data)

        with served(stall) as port:
            asked = short(protocol="tcp", rate=1000, warmup_seconds=0.1, seconds=1)
            outcome = load.run(asked, port)
        # A client that waits for its answers would have counted one slow message; 400 were due meanwhile.
        assert outcome.messages == pytest.approx(1000, abs=2)
        assert outcome.latency_microseconds["p90"] > 200_000
        assert outcome.latency_microseconds["max"] > 390_000

    def test_messages_that_are_never_answered_count_with_their_age(self) -> None:
        def stop(connection: socket.socket) -> None:
            begin = time.monotonic()
            while data := connection.recv(65536):
                if time.monotonic() - begin < 0.4:
                    connection.sendall(data)

        with served(stop) as port:
            outcome = load.run(short(protocol="tcp", rate=1000, warmup_seconds=0, seconds=0.8), port)
        assert 300 < outcome.unanswered < 500
        assert outcome.latency_microseconds["p90"] > 1_000_000

    def test_a_byte_that_differs_is_seen_even_without_verification_of_all(self) -> None:
        def falsify(connection: socket.socket) -> None:
            for count in range(1000):
                data = connection.recv(65536)
                connection.sendall(data if count < 500 else data[:-1] + b"\0")

        with served(falsify) as port, pytest.raises(LoadError, match="byte 25 of answer 500 is 0x00"):
            load.run(short(protocol="tcp", seconds=20), port)

    def test_an_end_is_reported(self) -> None:
        def leave(connection: socket.socket) -> None:
            for _ in range(100):
                connection.sendall(connection.recv(65536))

        with served(leave) as port, pytest.raises(LoadError, match="the server ended connection 0 after 100 answers"):
            load.run(short(protocol="tcp", seconds=20), port)

    def test_a_refused_upgrade_is_reported(self) -> None:
        def refuse(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        with (
            served(refuse) as port,
            pytest.raises(LoadError, match=r"did not accept the upgrade: HTTP/1.1 404 Not Found"),
        ):
            load.run(short(), port)

    def test_a_port_without_a_server(self) -> None:
        with pytest.raises(LoadError, match="Connection refused"):
            load.run(short(), processes.free_port())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--port is needed"),
            (["--port", "x"], "--port must be a number"),
            (["--port", "1", "--connections", "1.5"], "must be a whole number"),
            (["--port", "1", "--mode", "fast"], "--mode does not know"),
            (["--port", "1", "--bogus"], "--bogus is not an option"),
            (["--port", "1", "extra"], "no positional arguments"),
            (["--port", "1", "--mode", "upgrade", "--protocol", "tcp"], "needs --protocol websocket"),
        ],
    )
    def test_a_wrong_command_line(self, arguments: list[str], message: str) -> None:
        command = [sys.executable, str(BENCH / "load.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr


class TestNative:
    def test_a_missing_compiler_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "no-such-compiler")
        with pytest.raises(native.BuildError, match="no-such-compiler"):
            native.compile_program([], tmp_path / "program", [])

    def test_a_missing_library_is_named(self, tmp_path: Path) -> None:
        source = tmp_path / "program.c"
        source.write_text('#error "fatal error: liburing.h: No such file or directory"\n')
        with pytest.raises(native.BuildError, match="install liburing-dev"):
            native.compile_program([source], tmp_path / "program", [])
        assert list(tmp_path.iterdir()) == [source]

    @pytest.mark.parametrize("name", native.SOURCES)
    def test_no_warnings(self, name: str, tmp_path: Path) -> None:
        strict = ["-Werror", "-Wshadow", "-Wconversion", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wvla"]
        system = ["-isystem", "/usr/include"]  # the inline functions of liburing do convert
        native.compile_program(native.SOURCES[name], tmp_path / name, [*strict, *system, "-luring"])


class TestProcesses:
    def test_why_a_server_did_not_start(self) -> None:
        failing = contenders.Contender(
            name="failing", command=(sys.executable, "-c", "import no_such_module"), port=processes.free_port()
        )
        with (
            pytest.raises(processes.ServerError, match="ModuleNotFoundError: No module named 'no_such_module'"),
            processes.started(failing, CORES[0]),
        ):
            pass

    def test_a_program_that_does_not_exist(self) -> None:
        missing = contenders.peer(f"missing={processes.free_port()}:/no/such/program")
        with pytest.raises(processes.ServerError, match="No such file"), processes.started(missing, CORES[0]):
            pass

    def test_a_server_is_gone_afterwards(self) -> None:
        with processes.started(contenders.CONTENDERS["bare_uring"], CORES[0]) as server:
            assert os.sched_getaffinity(server.pid) == {CORES[0]}
            assert server.pid in processes.family(os.getpid())
        assert not Path(f"/proc/{server.pid}").exists()
        processes.wait_until_free(server.port)

    def test_a_port_that_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(processes, "STOP_SECONDS_MAX", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = contenders.peer(f"peer={listener.getsockname()[1]}:/bin/true")
            with pytest.raises(processes.ServerError, match="is taken"), processes.started(peer, CORES[0]):
                pass

    def test_busy_loop_takes_its_cpu_and_ends(self) -> None:
        before = processes.family(os.getpid())
        with processes.busy_loop(CORES[-1]):
            [pid] = set(processes.family(os.getpid())) - set(before)
            assert os.sched_getaffinity(pid) == {CORES[-1]}
        assert processes.family(os.getpid()) == before

    def test_cpus_are_kept_awake_by_idle_class_loops(self) -> None:
        before = processes.family(os.getpid())
        with processes.kept_awake(*CORES[:2], CORES[0]):
            loops = set(processes.family(os.getpid())) - set(before)
            assert sorted(min(os.sched_getaffinity(pid)) for pid in loops) == sorted(set(CORES[:2]))
            assert {os.sched_getscheduler(pid) for pid in loops} == {os.SCHED_IDLE}
        assert processes.family(os.getpid()) == before


class TestContenders:
    @pytest.mark.parametrize("name", contenders.CONTENDERS)
    def test_each_has_the_same_command_line(self, name: str) -> None:
        [script] = [word for word in contenders.CONTENDERS[name].command if word.endswith(".py")]
        text = Path(script).read_text()
        assert "parse(" in text or "uringws_reactor import arguments" in text

    @pytest.mark.parametrize(
        ("options", "named", "left_out"),
        [
            ([], "uringws_echo aiohttp uvicorn", "fastapi_uringws aiohttp_uringws"),
            (["--servers", "frameworks"], "fastapi_uringws aiohttp_uringws", "aiohttp uvicorn"),
            (["--servers", "aiohttp,aiohttp_uringws"], "aiohttp aiohttp_uringws", "fastapi_uringws"),
        ],
    )
    def test_frameworks_take_part_where_they_are_named(
        self, options: list[str], named: str, left_out: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["compare.py", *options])
        chosen = {one.name for one in compare.chosen_contenders(*compare.arguments())[0]}
        assert chosen.issuperset(named.split())
        assert chosen.isdisjoint(left_out.split())

    def test_a_peer(self) -> None:
        found = contenders.peer("other=9100:/bin/server --port 9100")
        assert (found.name, found.port) == ("other", 9100)
        assert found.command_line(1, 0) == ["/bin/server", "--port", "9100"]

    @pytest.mark.parametrize("text", ["other", "other=9100", "other=99999:x", "picows=9100:x", "usual=9100:x"])
    def test_a_wrong_peer(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"peer|port"):
            contenders.peer(text)


class TestPlan:
    def plan(self, **changes: object) -> runner.Plan:
        usual: dict[str, object] = {
            "contenders": [contenders.CONTENDERS[name] for name in ("picows", "bare_uring", "uringws_echo_busy_poll")],
            "baseline": "picows",
            "cases": list(CASES.values()),
            "modes": ["throughput", "capacity"],
            "rounds": 2,
            "seconds": 1.0,
            "warmup_seconds": 0.1,
            "server_core": 0,
            "client_core": 1,
        }
        return runner.Plan(**{**usual, **changes})  # type: ignore[arg-type]

    def test_the_contenders(self) -> None:
        def names(case: str) -> list[str]:
            return [one.name for one in self.plan().taking_part(CASES[case])]

        assert names("100/20") == ["picows", "bare_uring"]
        assert names("round-trip") == ["picows", "bare_uring", "uringws_echo_busy_poll"]
        assert names("upgrades") == ["picows"]  # there is no upgrade in bare TCP

    def test_steps(self) -> None:
        assert self.plan(cases=[CASES["100/20"]]).steps() == 2 * 2 * 2  # two servers, modes, rounds
        assert self.plan(cases=[CASES["round-trip"]]).steps() == 3 * 2  # three servers in one mode


def test_the_baseline_is_visited_between_the_others() -> None:
    def server(name: str) -> processes.Server:
        return processes.Server(contenders.peer(f"{name}=1:/bin/true"), 1, 1)

    def names(servers: list[processes.Server]) -> str:
        return "".join(one.name for one in servers)

    assert names(runner.in_the_middle("a", [server(name) for name in "abcde"])) == "bcade"
    assert names(runner.in_the_middle("b", [server(name) for name in "ab"])) == "ba"
    assert names(runner.in_the_middle("x", [server(name) for name in "ab"])) == "ab"


class TestResults:
    def test_results_are_read_as_written(self, tmp_path: Path) -> None:
        path = tmp_path / "run.jsonl"
        [one] = measured("a", 1.5)
        with path.open("w") as file:
            writer = results.Writer(file, "a", {"kernel": "6.18"})
            writer.measurement(one)
            writer.skipped("b", "not installed")
        found = results.read(path)
        assert (found.baseline, found.machine) == ("a", {"kernel": "6.18"})
        assert found.measurements.all == [one]
        assert found.skipped == {"b": "not installed"}

    @pytest.mark.parametrize("text", ["", "[]\n", '{"type": "skipped"}\n', '{"baseline": "a"}\n', "no json\n"])
    def test_other_files_are_not_runs(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "run.jsonl"
        path.write_text(text)
        with pytest.raises(results.ResultsError, match=r"run\.jsonl"):
            results.read(path)


def compared(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, compare.__file__, "--cores", TWO_CORES, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)


class TestCompare:
    def test_two_servers(self, tmp_path: Path) -> None:
        absent = f"absent={processes.free_port()}:/no/such/program"
        done = compared(
            *("--servers", "websockets,bare_uring", "--peer", absent, "--baseline", "websockets"),
            *("--cases", "100/20,round-trip,rate-100/20,upgrades,idle-memory", "--rounds", "1"),
            *("--seconds", "0.1", "--warmup-seconds", "0.05", "--verify", "--output", str(tmp_path)),
        )
        assert done.returncode == 0, done.stderr
        assert "skipped: absent (/no/such/program: No such file or directory)" in done.stdout
        [picture] = tmp_path.glob("*.png")
        assert picture.read_bytes().startswith(b"\x89PNG")

        [path] = tmp_path.glob("*.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert lines[0]["machine"]["kernel"] == os.uname().release
        assert "/no/such/program" not in lines[0]
        visits = {(line["server"], line["case"], line["mode"]) for line in lines if line["type"] == "measurement"}
        for server in ("websockets", "bare_uring"):
            assert {(server, "100/20", mode) for mode in ("throughput", "capacity")} <= visits
            assert {(server, case, "throughput") for case in ("round-trip", "rate-100/20", "idle-memory")} <= visits
        assert ("websockets", "upgrades", "capacity") in visits

        again = compared("--from", str(path), "--bars")
        assert again.returncode == 0, again.stderr
        assert "not measured" in again.stdout
        ratio = results.read(path).measurements.ratio("bare_uring", "websockets", "100/20", "capacity")
        assert ratio is not None
        assert 1 < ratio.median < math.inf

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--servers", "nobody"], "there is no server 'nobody'; there are: uringws_echo"),
            (["--cases", "all"], "there is no case 'all'"),
            (["--modes", "fast"], "there is no mode 'fast'"),
            (["--baseline", "nobody"], "there is no server 'nobody'"),
            (["--peer", "x"], "a peer is given as name=port:command"),
            (["--cores", "0"], "--cores takes two CPUs"),
            (["--cores", "0,9999"], "CPU 9999 is not available"),
            (["--rounds", "0"], "at least one round"),
            (["--from", "/no/such/file"], "No such file"),
        ],
    )
    def test_a_wrong_command_line(
        self,
        arguments: list[str],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["compare.py", "--cores", TWO_CORES, *arguments])
        with pytest.raises(SystemExit, match="2"):
            compare.main()
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_leaves_no_process(self, tmp_path: Path, number: signal.Signals, status: int) -> None:
        command = [
            *(sys.executable, compare.__file__, "--cores", TWO_CORES, "--servers", "websockets,bare_uring"),
            *("--baseline", "websockets", "--cases", "100/20", "--modes", "capacity"),
            *("--rounds", "1000", "--seconds", "0.1", "--warmup-seconds", "0", "--output", str(tmp_path)),
        ]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            deadline = time.monotonic() + 20
            while not any('"measurement"' in path.read_text() for path in tmp_path.glob("*.jsonl")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            children = processes.family(process.pid)
            assert len(children) > 5  # itself, two servers, the busy loop, those that keep the CPUs awake
            process.send_signal(number)
            process.communicate(timeout=20)
        assert process.returncode == status
        # A load generator that was just being started when the signal came has no parent: it ends by itself.
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
