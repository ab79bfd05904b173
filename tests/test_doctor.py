"""The command line: the findings of `doctor` about a machine, and that no command ends in a traceback.

`test_fallback.py` tests the doctor's reason and remedy where io_uring is really refused.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from servers import BACKENDS, MODES, ROOT, ServerProcess, missing
from uringws.__main__ import main
from uringws.backend import DEFER_TASKRUN, Opened, why_not
from uringws.doctor import (
    FEATURES,
    SETUP_FLAGS,
    Finding,
    Level,
    Machine,
    Trial,
    diagnose,
    look,
    render,
    try_backends,
)
from uringws.errors import REMEDIES, UnavailableReason
from wire import TEXT, Frame, Peer

NO_IOWAIT = 1 << 17
MIN_TIMEOUT = 1 << 15

GOOD = Machine(
    files_max=1 << 20,
    files_hard_max=1 << 20,
    memlock_bytes_max=8 << 20,
    memlock_exempt=False,
    somaxconn=4096,
    tcp_pages=(100_000, 200_000, 300_000),
    tcp_send_bytes=(4096, 16384, 4 << 20),
    uring_disabled=0,
    seccomp=0,
)
URING = Opened(
    None, "io_uring", 512, DEFER_TASKRUN, NO_IOWAIT | MIN_TIMEOUT, reduced=False, zero_copy=True, refused=None
)
EPOLL = Opened(None, "epoll", 0, 0, 0, reduced=False, zero_copy=False, refused=None)
WORKS = {"io_uring": Trial(URING, None), "epoll": Trial(EPOLL, None)}
NO_EPOLL = Trial(None, OSError(errno.EMFILE, "epoll: epoll_create1: Too many open files"))


def about(findings: list[Finding], word: str) -> Finding:
    """The one finding whose text has that word."""
    (found,) = (finding for finding in findings if word in finding.text)
    return found


def trials(**changed: Trial) -> dict[str, Trial]:
    return {**WORKS, **changed}


def test_a_good_machine_needs_no_remedy() -> None:
    findings = diagnose(GOOD, WORKS)
    assert [finding for finding in findings if finding.remedy or finding.level in (Level.LOW, Level.NO)] == []
    assert about(findings, "auto").text == 'backend="auto" takes io_uring'


def test_every_low_or_refused_finding_has_a_remedy() -> None:
    poor = Machine(
        files_max=256,
        files_hard_max=4096,
        memlock_bytes_max=64 << 10,
        memlock_exempt=False,
        somaxconn=128,
        tcp_pages=None,
        tcp_send_bytes=None,
        uring_disabled=None,
        seccomp=None,
    )
    old = dataclasses.replace(URING, setup_flags=0, features=0, ring_entries=64, reduced=True, zero_copy=False)
    findings = diagnose(poor, trials(io_uring=Trial(old, None)))
    low = [finding for finding in findings if finding.level is Level.LOW]
    assert len(low) == 6
    assert all(finding.remedy for finding in low)
    assert render(low).count("remedy: ") == 6


def test_the_price_of_waiting_for_more_is_named() -> None:
    assert "takes one system call" in about(diagnose(GOOD, WORKS), "batch_wait_microseconds").text
    older = dataclasses.replace(URING, features=NO_IOWAIT)
    assert "a second call" in about(diagnose(GOOD, trials(io_uring=Trial(older, None))), "batch_wait_micro").text


@pytest.mark.parametrize("reason", list(UnavailableReason))
def test_a_refusal_is_named_with_its_remedy_once(reason: UnavailableReason) -> None:
    refused = why_not(-errno.EPERM, "io_uring_setup")
    refused.reason, refused.remedy = reason, REMEDIES[reason]
    findings = diagnose(GOOD, trials(io_uring=Trial(None, refused)))
    assert about(findings, "auto").text == 'backend="auto" takes epoll'
    report = render(findings)
    assert report.count(REMEDIES[reason]) == 1
    assert f"io_uring_setup failed: Operation not permitted ({reason})" in report


def test_a_ring_that_fails_at_its_first_turn_is_not_called_good() -> None:
    failed = Trial(URING, OSError(errno.EPERM, "io_uring start: Operation not permitted"))
    found = about(diagnose(GOOD, trials(io_uring=failed)), "auto")
    assert found.level is Level.NO
    assert found.remedy is not None
    assert 'backend="epoll"' in found.remedy


def test_doctor_reports_that_no_backend_works() -> None:
    nothing = trials(io_uring=Trial(None, why_not(-errno.EMFILE, "io_uring_setup")), epoll=NO_EPOLL)
    assert "no server can run here" in render(diagnose(GOOD, nothing))


@pytest.mark.parametrize(
    ("soft", "hard", "says", "remedy"),
    [
        (1024, 524_288, "about 960 sessions", "run ulimit -n 65536 before the server"),
        (1024, resource.RLIM_INFINITY, "about 960 sessions", "run ulimit -n 65536 before the server"),
        (1024, 4096, "about 960 sessions", "run ulimit -n 4096 before the server, the most without privileges"),
        (64, 64, "about 0 sessions", "the hard limit is 64 too, so ulimit -n alone does not help"),
        (1 << 20, 1 << 20, "1048576 open files", None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "without limit", None),
    ],
)
def test_open_files_are_counted_in_sessions_and_the_remedy_helps(
    soft: int, hard: int, says: str, remedy: str | None
) -> None:
    machine = dataclasses.replace(GOOD, files_max=soft, files_hard_max=hard)
    found = about(diagnose(machine, WORKS), "RLIMIT_NOFILE")
    assert says in found.text
    if remedy is None:
        assert (found.level, found.remedy) == (Level.OK, None)
    else:
        assert found.level is Level.LOW
        assert found.remedy is not None
        assert found.remedy.startswith(remedy)
        assert "LimitNOFILE=65536" in found.remedy


SESSIONS_MAX = """
import sys
from uringws import Handler, Options, Reactor
with Reactor(Handler(), Options(sessions_max=int(sys.argv[1]))) as reactor:
    host, port = reactor.bind("127.0.0.1", 0)
    print(f"listening on ws://{host}:{port} ({reactor.backend})", flush=True)
    reactor.run()
"""


@pytest.mark.parametrize(
    ("files", "sessions_max", "warning"),
    [
        (64, 1000, "more files can be opened (RLIMIT_NOFILE is 64)"),
        (64, 20, None),
        (1024, 1000, None),
        (1024, 2000, "sessions_max is 2000, and only"),
    ],
)
def test_a_server_warns_where_it_can_open_too_few_files(files: int, sessions_max: int, warning: str | None) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with ServerProcess("-c", SESSIONS_MAX, str(sessions_max), preexec_fn=limit) as server, Peer.connect(server.address):
        pass  # it can serve nevertheless
    if warning is None:
        assert "RLIMIT_NOFILE" not in server.output
    else:
        assert warning in server.output
        assert "remedy: the hard limit is" in server.output


@pytest.mark.parametrize(
    ("limit", "exempt", "level"),
    [
        (64 << 10, False, Level.LOW),
        (64 << 10, True, Level.OK),
        (8 << 20, False, Level.OK),
        (resource.RLIM_INFINITY, False, Level.OK),
    ],
)
def test_locked_memory_matters_to_those_it_binds(limit: int, exempt: bool, level: Level) -> None:  # noqa: FBT001
    machine = dataclasses.replace(GOOD, memlock_bytes_max=limit, memlock_exempt=exempt)
    assert about(diagnose(machine, WORKS), "RLIMIT_MEMLOCK").level is level


def test_switches_that_explain_a_refusal_are_shown() -> None:
    machine = dataclasses.replace(GOOD, uring_disabled=1, seccomp=2)
    texts = " ".join(finding.text for finding in diagnose(machine, WORKS))
    assert "kernel.io_uring_disabled = 1" in texts
    assert "io_uring_group" in texts
    assert "seccomp filter" in texts


def test_looking_reads_proc(tmp_path: Path) -> None:
    for path, text in {
        "self/status": "Name:\tpython\nCapEff:\t0000000000004000\nSeccomp:\t2\n",
        "sys/net/core/somaxconn": "128\n",
        "sys/net/ipv4/tcp_mem": "1\t2\t3\n",
        "sys/net/ipv4/tcp_wmem": "4096\t16384\t4194304\n",
        "sys/kernel/io_uring_disabled": "2\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    machine = look(tmp_path)
    assert machine.memlock_exempt
    assert machine.seccomp == 2
    assert machine.somaxconn == 128
    assert machine.tcp_pages == (1, 2, 3)
    assert machine.tcp_send_bytes == (4096, 16384, 4 << 20)
    assert machine.uring_disabled == 2
    assert machine.files_max == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_looking_does_without_proc(tmp_path: Path) -> None:
    machine = look(tmp_path)
    unread = (machine.somaxconn, machine.tcp_pages, machine.uring_disabled, machine.seccomp)
    assert all(value is None for value in unread)
    assert "net.core.somaxconn" not in render(diagnose(machine, WORKS))


def test_both_backends_are_really_tried() -> None:
    found = try_backends()
    assert set(found) == set(BACKENDS)
    assert found["epoll"].works
    if found["io_uring"].opened is not None:
        assert found["io_uring"].opened.ring_entries > 0


@pytest.mark.parametrize(("prefix", "names"), [("IORING_SETUP", SETUP_FLAGS), ("IORING_FEAT", FEATURES)])
def test_flags_have_the_kernels_names(prefix: str, names: tuple[str, ...]) -> None:
    """Held against liburing's copy of the kernel's header, which may be older than the names here."""
    headers = [Path("/usr/include/liburing/io_uring.h"), Path("/usr/include/linux/io_uring.h")]
    texts = [header.read_text() for header in headers if header.exists()]
    if not texts:
        missing("liburing's headers are not installed")
    for text in texts:
        defined = re.findall(rf"#define {prefix}_(\w+)\s+\(1U << (\d+)\)", text)
        assert defined
        assert [name for name, bit in defined if int(bit) < len(names) and names[int(bit)] != name] == []


# The command line


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "uringws", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )


def assert_one_line(stderr: str) -> None:
    assert stderr.startswith("uringws: ")
    assert stderr.count("\n") == 1, stderr


def test_doctor_begins_with_the_versions() -> None:
    done = run("doctor")
    assert done.returncode == 0
    assert done.stderr == ""
    first, second, *_ = done.stdout.splitlines()
    assert re.match(r"uringws \S+ on CPython \S+, with cffi \S+, httptools \S+, numpy \S+$", first)
    assert second.startswith(f"Linux {os.uname().release} ")
    assert re.search(r"unmasked with \w+", done.stdout)


def test_doctor_says_that_only_batch_handlers_need_a_numpy_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = importlib.metadata.version

    def without_numpy(package: str) -> str:
        if package == "numpy":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("importlib.metadata.version", without_numpy)
    first, _, third, *_ = render([]).splitlines()
    assert "numpy" not in first
    assert third == 'numpy is not installed: only batch handlers (on_batch) need it; pip install "uringws[batch]"'


def test_doctor_fails_where_no_server_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = trials(io_uring=Trial(None, why_not(-errno.ENOSYS, "io_uring_setup")), epoll=NO_EPOLL)
    monkeypatch.setattr("uringws.__main__.try_backends", lambda: nothing)
    assert main(["doctor"]) == 1
    assert "no server can run here" in capsys.readouterr().out


def test_doctor_stops_when_its_reader_does() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:  # noqa: PTH123 - a descriptor, not a path
        done = subprocess.run(
            [sys.executable, "-m", "uringws", "doctor"],
            stdout=closed, stderr=subprocess.PIPE, timeout=20, check=False,
        )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("echo", "--port", "65536"), ("echo", "--port", "http"), ("echo", "--backend", "kqueue")],
)
def test_wrong_arguments_are_reported_and_exit_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("echo", "--port", str(port))
    assert done.returncode == 1
    assert_one_line(done.stderr)
    assert f"127.0.0.1:{port}: Address already in use" in done.stderr


def test_a_host_that_is_none_is_one_line() -> None:
    done = run("echo", "--host", "no.such.host.invalid", "--port", "0")
    assert done.returncode == 1
    assert_one_line(done.stderr)
    assert "no.such.host.invalid" in done.stderr


def test_io_uring_refused_is_one_line_with_its_remedy() -> None:
    confined = [sys.executable, str(ROOT / "tests" / "confined.py"), "--refuse", "EPERM", "--"]
    program = ["-m", "uringws", "echo", "--backend", "io_uring"]
    done = subprocess.run([*confined, *program], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert_one_line(done.stderr)
    assert REMEDIES[UnavailableReason.SECCOMP_OR_CONTAINER] in done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_echo_echoes_until_ctrl_c(backend: str, mode: str) -> None:
    """``ServerProcess`` holds it to ending with 0 and without a traceback."""
    server = ServerProcess("-m", "uringws", "echo", "--port", "0", "--backend", backend, "--mode", mode)
    with server, Peer.connect(server.address) as peer:
        assert server.backend == backend
        peer.send(TEXT, b"hello")
        assert peer.read_frame() == Frame(TEXT, b"hello")
        assert peer.shake_hands() == 1000
