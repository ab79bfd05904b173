"""Faults at the system-call boundary, each errno row of io.c among them, and shortages that are real.

After each: every session answered every byte or was closed and reported once, and nothing is left over.
"""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conftest import NO_URING
from faulty import (
    ACCEPT,
    ALWAYS,
    ARM,
    ENTER,
    GROW,
    NOTIFY,
    RECEIVE,
    SEND,
    SHUTDOWN,
    TASK_WORK,
    WATCH,
    ZERO_COPY,
    FaultyServer,
    Talk,
)
from servers import ROOT, missing, wait_until
from uringws.backend import Backend
from uringws.errors import REMEDIES, UnavailableReason
from wire import BINARY, PING, TEXT, Frame, Peer, distinct_payloads, frame, upgrade_request

MODES = ("c", "send")

# Every errno that the tables do not name ends that socket. These are the errors that TCP reports (tcp(7), ip(7)).
LOST = [errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN]


# The reaction to each errno, written from the manual pages, not from io.c, which must agree.
AGAIN, PAUSE = "try again at once", "try again after a pause"
FATES = {
    # accept(2), "Error handling": an error of the network on the new connection concerns that connection alone.
    "accept": {
        AGAIN: [
            errno.EAGAIN,
            errno.EINTR,
            errno.ECONNABORTED,
            errno.EPERM,
            errno.EPROTO,
            errno.ENETDOWN,
            errno.ENOPROTOOPT,
            errno.EHOSTDOWN,
            errno.ENONET,
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
            errno.ECANCELED,
        ],
        # Shortages, and other errors of a listening socket: connections in its queue must not be forgotten.
        PAUSE: [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EOPNOTSUPP, errno.EBADF, errno.EIO],
    },
    # recv(2). ENOBUFS is io_uring's: no receive buffer was free; the bytes are still in the socket.
    "receive": {AGAIN: [errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ECANCELED], PAUSE: [errno.ENOMEM]},
    # send(2). "Again" is as soon as the socket is writable.
    "send": {AGAIN: [errno.EAGAIN, errno.EINTR, errno.ECANCELED], PAUSE: [errno.ENOBUFS, errno.ENOMEM]},
}


def name_of(value: object) -> str | None:
    return errno.errorcode[value] if isinstance(value, int) and value in errno.errorcode else None


def errors(call: str) -> list[int]:
    """The errors of a call that its session, or the listening socket, survives."""
    return [error for fate in FATES[call].values() for error in fate]


def test_no_errno_is_treated_specially_without_being_tried_here() -> None:
    source = (ROOT / "uring_shim" / "io.c").read_text()
    for call, fates in FATES.items():
        (body,) = re.findall(rf"struct row {call}_rows\[\] = \{{(.*?)\n\}};", source, re.DOTALL)
        rows = {getattr(errno, name) for name in re.findall(r"\{(E\w+),", body)}
        assert rows
        assert rows <= {error for tried in fates.values() for error in tried}


@pytest.fixture(scope="module", params=MODES)
def server(
    request: pytest.FixtureRequest, backend: str, faulty_build: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FaultyServer]:
    """One server for many tests, each of which leaves it as it was."""
    with FaultyServer(faulty_build, tmp_path_factory.mktemp("server"), backend, request.param) as faulty:
        yield faulty


@pytest.fixture
def faulty(server: FaultyServer) -> Iterator[FaultyServer]:
    yield server
    server.clear()
    server.settle()


def talks(server: FaultyServer, count: int, payloads: list[bytes]) -> list[Talk]:
    """Sessions that have sent all they will, each with payloads of its own."""
    begun = []
    for number in range(count):
        frames = [Frame(BINARY, bytes([number]) + payload) for payload in payloads]
        begun.append(Talk(Peer.connect(server.address), frames))
    for talk in begun:
        talk.ask()
    return begun


def finish(begun: list[Talk]) -> int:
    """End them all; return how many were cut."""
    return sum(not talk.finish() for talk in begun)


# Sends

SMALL = b"nineteen byte reply"
LARGE = bytes(range(256)) * 800
LARGE_CUTS = [1, 2, 9, 10, 11, 4095, 65_536, len(LARGE) // 2, len(LARGE) + 9, len(LARGE) + 10]


@pytest.mark.parametrize("count", [1, ALWAYS], ids=["once", "always"])
@pytest.mark.parametrize("cut", range(1, len(SMALL) + 3))
def test_a_send_cut_to_any_length_is_completed(faulty: FaultyServer, cut: int, count: int) -> None:
    with Peer.connect(faulty.address) as peer:
        faulty.plan(SEND, cut, count=count)
        peer.send(BINARY, SMALL)
        assert peer.read_frame() == Frame(BINARY, SMALL)
        assert faulty.injected(SEND) >= 1
        faulty.clear()
        assert peer.shake_hands() == 1000


@pytest.mark.parametrize("cut", LARGE_CUTS)
def test_a_large_send_cut_anywhere_is_completed(faulty: FaultyServer, cut: int) -> None:
    with Peer.connect(faulty.address) as peer:
        faulty.plan(SEND, cut, count=3)
        peer.write(frame(BINARY, LARGE), frame(TEXT, b"behind it"))
        assert peer.read_frames(2) == [Frame(BINARY, LARGE), Frame(TEXT, b"behind it")]
        faulty.clear()
        assert peer.shake_hands() == 1000


@pytest.mark.parametrize("start", [1, 2, 5])
@pytest.mark.parametrize("error", errors("send"), ids=name_of)
def test_a_send_refused_for_now_is_tried_again(faulty: FaultyServer, error: int, start: int) -> None:
    begun = talks(faulty, 4, [])
    faulty.plan(SEND, -error, start=start, count=4)
    for talk in begun:
        talk.expected = [Frame(BINARY, payload) for payload in (*distinct_payloads(20), LARGE)]
        talk.ask()
    assert finish(begun) == 0
    assert faulty.injected(SEND) == 4


@pytest.mark.parametrize("error", LOST, ids=name_of)
@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["small", "large"])
def test_a_permanent_send_error_ends_only_its_session(faulty: FaultyServer, error: int, payload: bytes) -> None:
    before = faulty.look()["codes"]
    begun = talks(faulty, 4, [])
    faulty.plan(SEND, -error, start=2, count=2)
    for talk in begun:
        talk.expected = [Frame(BINARY, payload)]
        talk.ask()
    living = [talk for talk in begun if talk.answered()]
    assert len(living) == 2
    assert finish(living) == 0
    after = faulty.settle()["codes"]
    assert after["1006"] - before.get("1006", 0) == 2
    assert after["1000"] - before.get("1000", 0) == 2


def test_new_waiters_do_not_delay_earlier_waiters(faulty: FaultyServer) -> None:
    begun = talks(faulty, 15, [])
    faulty.plan(SEND, -errno.ENOBUFS, count=ALWAYS)
    for talk in begun:
        talk.expected = [Frame(BINARY, SMALL)]
        talk.ask()
        time.sleep(0.02)
    assert faulty.injected(SEND) > len(begun) + 5
    faulty.clear()
    assert finish(begun) == 0


def tries_in_half_a_second(faulty: FaultyServer, point: int) -> int:
    """How often the call that always fails was made; check that the server slept in between."""
    before = faulty.look()
    time.sleep(0.5)
    after = faulty.look()
    assert after["stats"]["turns"] - before["stats"]["turns"] <= 60, "a few for the looks, and one in 50 ms"
    assert after["cpu_seconds"] - before["cpu_seconds"] < 0.25
    tries: int = after["injected"][point] - before["injected"][point]
    return tries


@pytest.mark.parametrize("error", FATES["send"][PAUSE], ids=name_of)
def test_a_send_that_meets_a_shortage_does_not_spin(faulty: FaultyServer, error: int) -> None:
    begun = talks(faulty, 5, [])
    faulty.plan(SEND, -error, count=ALWAYS)
    for talk in begun:
        talk.expected = [Frame(BINARY, SMALL)]
        talk.ask()
    assert 1 <= tries_in_half_a_second(faulty, SEND) <= 12 * len(begun)
    faulty.clear()
    assert finish(begun) == 0


def test_sessions_that_end_while_they_wait_for_a_shortage_to_pass_leave_no_trace(faulty: FaultyServer) -> None:
    """Those that come after them, in the same moment, are not mistaken for them."""
    for _ in range(3):
        begun = talks(faulty, 20, [])
        faulty.plan(SEND, -errno.ENOBUFS, count=ALWAYS)
        for talk in begun:
            talk.expected = [Frame(BINARY, SMALL)]
            talk.ask()
        while faulty.injected(SEND) < len(begun):
            pass
        faulty.clear()
        for talk in begun:
            talk.peer.reset()
        assert finish(talks(faulty, 20, [SMALL])) == 0


# Receives


@pytest.mark.parametrize("start", range(1, 7))
@pytest.mark.parametrize("error", errors("receive"), ids=name_of)
def test_a_receive_refused_for_now_loses_nothing(faulty: FaultyServer, error: int, start: int) -> None:
    faulty.plan(RECEIVE, -error, start=start, count=2)
    begun = talks(faulty, 3, [*distinct_payloads(10), LARGE])
    assert finish(begun) == 0
    assert faulty.injected(RECEIVE) == 2


@pytest.mark.parametrize("error", FATES["receive"][PAUSE], ids=name_of)
def test_a_receive_that_meets_a_shortage_does_not_spin(faulty: FaultyServer, error: int) -> None:
    begun = talks(faulty, 5, [])
    faulty.plan(RECEIVE, -error, count=ALWAYS)
    for talk in begun:
        talk.expected = [Frame(BINARY, SMALL)]
        talk.ask()
    assert 1 <= tries_in_half_a_second(faulty, RECEIVE) <= 12 * len(begun)
    faulty.clear()
    assert finish(begun) == 0


@pytest.mark.parametrize("error", LOST, ids=name_of)
def test_a_permanent_receive_error_ends_only_its_session(faulty: FaultyServer, error: int) -> None:
    before = faulty.look()["codes"]
    begun = talks(faulty, 3, [SMALL])
    for talk in begun:
        assert talk.peer.read_frame() == talk.expected.pop()
    faulty.plan(RECEIVE, -error)
    victim = begun.pop(0)
    victim.expected = [Frame(BINARY, b"my last")]
    victim.ask()
    if victim.answered():  # on io_uring it is the next try that fails
        assert victim.is_cut()
    assert finish(begun) == 0
    after = faulty.settle()["codes"]
    assert after["1006"] - before.get("1006", 0) == 1


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 13, 64])
def test_input_may_come_in_pieces_of_any_length(faulty: FaultyServer, cut: int) -> None:
    faulty.plan(RECEIVE, cut, count=ALWAYS)
    begun = talks(faulty, 2, [SMALL, bytes(1000)])
    assert finish(begun) == 0


# Accepting


@pytest.mark.parametrize("error", FATES["accept"][AGAIN], ids=name_of)
def test_a_connection_that_failed_before_it_was_accepted_is_that_peers_affair(faulty: FaultyServer, error: int) -> None:
    faulty.plan(ACCEPT, -error, count=3)
    assert finish(talks(faulty, 6, [SMALL])) == 0
    assert faulty.injected(ACCEPT) == 3


@pytest.mark.parametrize("error", FATES["accept"][PAUSE], ids=name_of)
def test_accepting_pauses_and_goes_on(faulty: FaultyServer, error: int) -> None:
    before = faulty.look()
    faulty.plan(ACCEPT, -error, count=4)
    for _ in range(3):
        with Peer.connect(faulty.address) as peer:
            assert peer.shake_hands() == 1000
    after = faulty.look()
    assert after["injected"][ACCEPT] == 4
    assert after["stats"]["accept_pauses"] - before["stats"]["accept_pauses"] == 4


def test_accepting_without_descriptors_does_not_spin(faulty: FaultyServer) -> None:
    faulty.plan(ACCEPT, -errno.EMFILE, count=ALWAYS)
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer.dial(faulty.address)) for _ in range(20)]
        for peer in peers:
            peer.write(upgrade_request())
        before = faulty.look()
        time.sleep(0.5)
        after = faulty.look()
        # One try in 50 ms, and the turns of the two looks.
        assert after["injected"][ACCEPT] - before["injected"][ACCEPT] <= 11
        assert after["stats"]["turns"] - before["stats"]["turns"] <= 40
        assert after["cpu_seconds"] - before["cpu_seconds"] < 0.1
        faulty.clear()
        assert [peer.read_response().status for peer in peers] == [101] * 20


# Arming and waiting


@pytest.mark.parametrize("start", range(1, 5))
@pytest.mark.parametrize("count", [1, 3])
def test_a_request_that_cannot_be_armed_is_armed_later(faulty: FaultyServer, start: int, count: int) -> None:
    faulty.plan(ARM, -errno.ENOMEM, start=start, count=count)
    begun = talks(faulty, 3, [SMALL, LARGE])
    assert finish(begun) == 0


WAIT_ERRORS = {"io_uring": [errno.EINTR, errno.EAGAIN, errno.EBUSY], "epoll": [errno.EINTR]}


@pytest.mark.parametrize("start", range(1, 4))
@pytest.mark.parametrize("count", [1, 50])
def test_a_wait_that_fails_for_now_loses_nothing(faulty: FaultyServer, backend: str, start: int, count: int) -> None:
    for error in WAIT_ERRORS[backend]:
        faulty.plan(ENTER, -error, start=start, count=count)
        assert finish(talks(faulty, 3, [SMALL, LARGE])) == 0
        assert faulty.injected(ENTER) == count


BEYOND_USE = """
import errno, os, socket, sys
sys.path.insert(0, sys.argv[1])
from uringws import Handler, Reactor
from uringws.shim import lib

class Last(Handler):
    def on_close(self, conn, code, reason):
        print("closed", code)

before = os.listdir("/proc/self/fd")
ours, theirs = socket.socketpair()
with theirs, Reactor(Last(), backend=sys.argv[2]) as reactor:
    reactor.bind("127.0.0.1", 0)
    reactor.add_session(ours)
    reactor.run_once(0)
    lib.urs_fault_plan(lib.URS_FAULT_ENTER, 1, 1 << 60, -errno.EBADR)
    try:
        reactor.run()
    except OSError as error:
        print("raised", error.errno == errno.EBADR)
    reactor.close()
    print("end", theirs.recv(100))
print("descriptors", os.listdir("/proc/self/fd") == before)
"""


def run(build: Path, source: str, *arguments: str) -> list[str]:
    """The output of a program that ran on the build with faults."""
    command = [sys.executable, "-c", source, str(build), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()


def test_a_backend_beyond_use_raises_and_can_be_closed(backend: str, faulty_build: Path) -> None:
    """EBADR: the kernel lost a completion (io_uring_enter(2))."""
    told = run(faulty_build, BEYOND_USE, backend)
    assert told == ["raised True", "closed 1006", "end b''", "descriptors True"]


# A ring that cannot be made

SET_UP = """
import logging, sys
sys.path.insert(0, sys.argv[1])
from uringws import Handler, Options, Reactor, UringUnavailable
from uringws.shim import lib

logging.basicConfig(format="%(message)s")
start, count, error = map(int, sys.argv[3:])
lib.urs_fault_plan(lib.URS_FAULT_SETUP, start, count, -error)
try:
    with Reactor(Handler(), Options(ring_entries=512), backend=sys.argv[2]) as reactor:
        opened = reactor._core.opened
        print(opened.name, opened.ring_entries, opened.reduced, opened.refused and opened.refused.reason)
except UringUnavailable as error:
    print("raised", error.errno, error.reason, error.remedy)
"""

REASONS = {
    errno.EPERM: "seccomp_or_container",
    errno.EACCES: "seccomp_or_container",
    errno.ENOSYS: "kernel_too_old",
    errno.EINVAL: "kernel_too_old",
    errno.ENOMEM: "memlock",
    errno.EMFILE: "fd_limit",
    errno.ENFILE: "fd_limit",
    errno.EIO: "unknown",
}


@pytest.mark.parametrize("error", REASONS, ids=name_of)
def test_a_ring_that_cannot_be_made_says_why(faulty_build: Path, error: int) -> None:
    arguments = ("1", str(ALWAYS), str(error))
    reason = REASONS[error]
    assert run(faulty_build, SET_UP, "auto", *arguments) == [f"epoll 0 False {reason}"]
    (told,) = run(faulty_build, SET_UP, "io_uring", *arguments)
    assert told == f"raised {error} {reason} {REMEDIES[UnavailableReason(reason)]}"


@pytest.mark.parametrize(
    ("error", "count", "entries"),
    [
        pytest.param(errno.EINVAL, 1, 512, id="a-flag-too-many"),
        pytest.param(errno.ENOMEM, 1, 256, id="half-the-memory"),
        pytest.param(errno.ENOMEM, 3, 64, id="an-eighth"),
    ],
)
def test_a_ring_is_made_of_less(faulty_build: Path, error: int, count: int, entries: int) -> None:
    for backend in ("auto", "io_uring"):
        (told,) = run(faulty_build, SET_UP, backend, "1", str(count), str(error))
        assert told == f"io_uring {entries} True None"


# A socket whose requests do not end when it is shut down


def test_a_request_that_outlasts_its_socket_is_ended_by_name(backend: str, faulty_build: Path, tmp_path: Path) -> None:
    """Otherwise its session and descriptor would stay for ever."""
    limits: dict[str, Any] = {"ping_interval_seconds": 0.1, "ping_timeout_seconds": 0.1, "close_seconds_max": 0.2}
    with FaultyServer(faulty_build, tmp_path, backend, **limits) as server, Peer.connect(server.address) as silent:
        server.plan(SHUTDOWN, -errno.ENOTCONN, count=ALWAYS)
        server.settle()
        assert server.injected(SHUTDOWN) >= 1
        assert silent.read_frame().opcode == PING
        silent.read_eof()


LINGERING = """
import errno, socket, sys
sys.path.insert(0, sys.argv[1])
from uringws import Handler, Options, Reactor
from uringws.shim import lib

class Last(Handler):
    def on_close(self, conn, code, reason):
        print("closed", code)

ours, theirs = socket.socketpair()
with theirs, Reactor(Last(), Options(close_seconds_max=3600), backend=sys.argv[2]) as reactor:
    reactor.add_session(ours)
    reactor.run_once(0)
    lib.urs_fault_plan(lib.URS_FAULT_SHUTDOWN, 1, 1 << 60, -errno.ENOTCONN)
    reactor.drain(0.1)
    print("drained")
"""


def test_a_drain_that_cut_ends_even_while_requests_last(backend: str, faulty_build: Path) -> None:
    assert run(faulty_build, LINGERING, backend) == ["closed 1006", "drained"]


# Zero copy, whose bytes belong to the kernel until it says otherwise


@pytest.fixture
def zero_copy(faulty_build: Path, tmp_path: Path) -> Iterator[FaultyServer]:
    """Small and medium-sized messages leave from the receive pool, larger ones from blocks of their own."""
    if NO_URING is not None:
        missing(NO_URING)
    with FaultyServer(faulty_build, tmp_path, "io_uring", "c", zero_copy="always", receive_buffers=16) as server:
        yield server
        server.clear()
        server.settle()


SIZES = [20, 16_000, 100_000]


def rounds(begun: list[Talk], count: int) -> None:
    """Questions and answers, one at a time in each session."""
    for number in range(count):
        for size in SIZES:
            for index, talk in enumerate(begun):
                talk.expected = [Frame(BINARY, bytes([number, index]) * (size // 2))]
                talk.ask()
            assert sum(talk.answered() for talk in begun) == len(begun)


@pytest.mark.parametrize("turns", [1, 3, 40])
def test_a_zero_copy_send_with_a_late_notification_keeps_its_bytes(zero_copy: FaultyServer, turns: int) -> None:
    begun = talks(zero_copy, 8, [])
    zero_copy.plan(NOTIFY, turns, count=ALWAYS)
    rounds(begun, 5)
    assert zero_copy.injected(NOTIFY) >= 5
    assert finish(begun) == 0
    for _ in range(turns):
        zero_copy.look()


@pytest.mark.parametrize("cut", [1, 19, 9_999, 99_999])
def test_a_zero_copy_send_cut_short_is_completed(zero_copy: FaultyServer, cut: int) -> None:
    begun = talks(zero_copy, 3, [])
    zero_copy.plan(SEND, cut, count=20)
    rounds(begun, 3)
    assert finish(begun) == 0
    assert zero_copy.look()["stats"]["zero_copy_sends"] > 0


@pytest.mark.parametrize("error", [*errors("send"), errno.EINVAL, errno.EOPNOTSUPP], ids=name_of)
def test_a_zero_copy_send_that_is_refused_is_done_plainly_or_later(zero_copy: FaultyServer, error: int) -> None:
    begun = talks(zero_copy, 3, [])
    zero_copy.plan(SEND, -error)
    rounds(begun, 2)
    assert zero_copy.injected(SEND) == 1
    assert finish(begun) == 0


def test_a_zero_copy_send_that_finds_the_peer_gone_gives_its_buffer_back(zero_copy: FaultyServer) -> None:
    begun = talks(zero_copy, 3, [])
    zero_copy.plan(SEND, -errno.ECONNRESET)
    for talk in begun:
        talk.expected = [Frame(BINARY, bytes(16_000))]
        talk.ask()
    assert finish(begun) == 1


@pytest.mark.parametrize("start", [1, 2])
def test_a_buffer_is_not_given_back_while_the_kernel_still_sends_from_it(
    faulty_build: Path, tmp_path: Path, start: int
) -> None:
    """Two messages of one buffer are answered in two sends; the kernel is done with one of them much sooner."""
    if NO_URING is not None:
        missing(NO_URING)
    options = {"zero_copy": "always", "on_full": "drop"}
    with (
        FaultyServer(faulty_build, tmp_path, "io_uring", "echo-between-flushes", **options) as server,
        Peer.connect(server.address) as sink,
    ):
        sink.send(TEXT, b"I am the sink")
        with Peer.connect(server.address) as peer:
            for number in range(5):
                payloads = [bytes([number, part]) * 8000 for part in (1, 2)]
                server.plan(NOTIFY, 20, start=start)
                peer.write(*(frame(BINARY, payload) for payload in payloads))
                assert peer.read_frames(2) == [Frame(BINARY, payload) for payload in payloads]
                stats = server.look()["stats"]
                # On loopback every such send ends with the report that its bytes were copied.
                lent = stats["zero_copy_sends"] - stats["zero_copy_copied"]
                assert (stats["pool_in_use"] > 0) == (lent > 0)
            assert stats["zero_copy_sends"] >= 5
            for _ in range(25):
                server.look()
            assert peer.shake_hands() == 1000


def ask_in_turn(begun: list[Talk], size: int) -> None:
    """One question after the other, each answered before the next is asked."""
    for index, talk in enumerate(begun):
        talk.expected = [Frame(BINARY, bytes([index]) * size)]
        talk.ask()
        assert talk.answered()


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_a_kernel_without_zero_copy_is_asked_once(faulty_build: Path, tmp_path: Path, mode: str) -> None:
    """Kernels before 6.2 answer -EINVAL: from then on all sessions send plainly, the first one without delay."""
    if NO_URING is not None:
        missing(NO_URING)
    with FaultyServer(faulty_build, tmp_path, "io_uring", "c", zero_copy=mode) as server:
        begun = talks(server, 5, [])
        server.plan(ZERO_COPY, -errno.EINVAL, count=ALWAYS)
        ask_in_turn(begun, 20_000)
        now = server.look()
        assert now["stats"]["sends_short"] == server.before["stats"]["sends_short"]
        ask_in_turn(begun, 200_000)
        now = server.look()
        assert now["injected"][ZERO_COPY] == 1
        assert now["stats"]["zero_copy_sends"] == 0
        assert finish(begun) == 0


def test_a_socket_without_zero_copy_is_asked_once(zero_copy: FaultyServer) -> None:
    """A refusal that concerns the socket (EOPNOTSUPP) leaves zero copy to the other sessions."""
    begun = talks(zero_copy, 3, [])
    zero_copy.plan(ZERO_COPY, -errno.EOPNOTSUPP)
    for _ in range(3):
        ask_in_turn(begun, 16_000)
    now = zero_copy.look()
    assert now["injected"][ZERO_COPY] == 1
    assert now["stats"]["zero_copy_sends"] - zero_copy.before["stats"]["zero_copy_sends"] == 2 * 3
    assert finish(begun) == 0


# No memory for completions


@pytest.mark.parametrize("held", [False, True], ids=["coming", "at-once"])
def test_nothing_is_lost_where_the_list_of_completions_cannot_grow(
    faulty_build: Path, tmp_path: Path, backend: Backend, *, held: bool
) -> None:
    """More completions are ready at once than the list has room for: the rest stays in the kernel until there is
    room.
    """
    sessions, payloads = 300, distinct_payloads(20)
    options = {"receive_buffers": 512, "receive_buffer_bytes": 1024, "session_turn_bytes_max": 4096}
    with FaultyServer(faulty_build, tmp_path, backend, "send", **options) as server, ExitStack() as stack:
        server.plan(GROW, errno.ENOMEM, count=ALWAYS)
        server.plan(TASK_WORK, 1, count=ALWAYS)
        if held:
            server.hold(0.5)  # meanwhile they all connect, and wait to be accepted at once
        peers = [stack.enter_context(Peer.dial(server.address)) for _ in range(sessions)]
        for peer in peers:
            peer.write(upgrade_request())
        for peer in peers:
            assert peer.read_response().status == 101
        if held:
            server.hold(0.5)
        for peer in peers:
            peer.write(b"".join(frame(BINARY, payload) for payload in payloads))
        for peer in peers:
            assert peer.read_frames(len(payloads)) == [Frame(BINARY, payload) for payload in payloads]
        # io_uring keeps what is not taken in: its list grows only for what comes among the completions of sends.
        assert server.injected(GROW) > 0 or backend == "io_uring"
        for peer in peers:
            assert peer.shake_hands() == 1000
        stack.close()
        assert server.settle()["opened"] == sessions


@pytest.mark.parametrize(
    ("point", "fault"),
    [(WATCH, errno.ENOMEM), (WATCH, errno.EBADF), (ARM, errno.ENOMEM), (ENTER, errno.EINTR)],
    ids=["poll-ENOMEM", "poll-EBADF", "arm-ENOMEM", "enter-EINTR"],
)
def test_a_watched_descriptor_is_reported_however_watching_it_fails(
    faulty_build: Path, tmp_path: Path, backend: Backend, point: int, fault: int
) -> None:
    with FaultyServer(faulty_build, tmp_path, backend) as server:
        server.watch()
        server.ring(1)
        wait_until(lambda: server.rung() == 1)
        server.plan(point, -fault, count=3)
        server.ring(4)
        wait_until(lambda: server.rung() == 5)
        if point == WATCH:
            assert server.injected(WATCH) == 3
        server.clear()
        server.plan(ARM, -errno.ENOMEM, count=2)
        server.watch(wanted=False)
        server.ring(1)
        with Peer.connect(server.address) as peer:
            assert peer.shake_hands() == 1000
        assert server.rung() == 5
        server.clear()
