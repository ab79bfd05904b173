"""Things that a reactor shares: listening sockets, adopted sockets, and all its memory with a forked child."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from servers import BACKENDS, EchoRecorder, ReactorThread
from test_connections import pairs
from uringws import Reactor
from uringws.backend import Backend
from wire import TEXT, Frame, Peer


def is_blocking(sock: socket.socket) -> bool:
    """As its open file description is; Python's own idea of it may differ."""
    return not fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK


def greet(address: tuple[str, int], count: int = 1) -> None:
    for _ in range(count):
        with Peer.connect(address) as peer:
            peer.send(TEXT, b"hello")
            assert peer.read_frame() == Frame(TEXT, b"hello")
            assert peer.shake_hands() == 1000


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_listening_socket_stays_as_blocking_as_it_is(backend: Backend, *, blocking: bool) -> None:
    """On io_uring; epoll cannot accept from a blocking socket that other processes accept from as well."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(blocking)
        ours = listener.dup()
        with ReactorThread(EchoRecorder(), backend=backend, prepare=lambda reactor: reactor.bind_socket(ours)):
            greet(listener.getsockname())
            assert is_blocking(listener) == (blocking and backend == "io_uring")
        assert is_blocking(listener) == (blocking and backend == "io_uring")


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_an_adopted_socket_stays_as_blocking_as_it_is(backend: Backend, *, blocking: bool) -> None:
    """asyncio's transport may still have the same socket, by another descriptor."""
    recorder = EchoRecorder()
    with pairs(1) as ((ours, peer),), ours.dup() as shared:
        shared.setblocking(blocking)
        with ReactorThread(recorder, backend=backend) as server:
            server.sender.add_session(ours)
            for size in (10, 100_000):
                peer.send(TEXT, b"x" * size)
                assert peer.read_frame() == Frame(TEXT, b"x" * size)
            assert is_blocking(shared) == blocking


@pytest.mark.parametrize("other", BACKENDS)
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_reactors_that_share_a_listening_socket_all_go_on(backend: Backend, other: Backend, *, blocking: bool) -> None:
    """Like workers that inherited the socket: a connection that one accepts wakes all, and none may wait in accept."""
    recorders = [EchoRecorder(), EchoRecorder()]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(blocking)
        address = listener.getsockname()
        first, second = listener.dup(), listener.dup()
        with (
            ReactorThread(recorders[0], backend=backend, prepare=lambda reactor: reactor.bind_socket(first)) as one,
            ReactorThread(recorders[1], backend=other, prepare=lambda reactor: reactor.bind_socket(second)) as two,
        ):
            clients = [threading.Thread(target=greet, args=(address, 20)) for _ in range(4)]
            for client in clients:
                client.start()
            for _ in range(20):  # neither is stuck, at any time
                assert one.ask(lambda: 1) == two.ask(lambda: 1) == 1
            for client in clients:
                client.join()
            turns = one.ask(one.reactor.stats).turns
            time.sleep(0.1)
            assert one.ask(one.reactor.stats).turns - turns < 20  # nor does it spin while no connection comes
    assert sum(len(recorder.of("open")) for recorder in recorders) == 80


def test_listening_sockets_are_as_many_as_descriptors_allow(backend: Backend) -> None:
    def prepare(reactor: Reactor) -> None:
        for _ in range(20):
            reactor.bind("127.0.0.1", 0)

    with ReactorThread(EchoRecorder(), backend=backend, prepare=prepare) as server:
        server.ask(lambda: [server.reactor.bind("127.0.0.1", 0) for _ in range(50)])
        addresses = server.reactor.addresses
        assert len(addresses) == 70
        for address in addresses:
            assert isinstance(address, tuple)
            greet(address)


FORK = """
import ctypes, gc, os, sys
from uringws import Handler, Reactor

class Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

def bytes_allocated():
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Memory
    found = mallinfo2()
    return found.hblkhd + found.uordblks

reactor = Reactor(Handler(), backend=sys.argv[1])
reactor.bind("127.0.0.1", 0)
reactor.run_once(0)
child = os.fork()
if child == 0:
    gc.collect()
    before = bytes_allocated()
    reactor.close()
    os._exit(bytes_allocated() < before - 65_536)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
reactor.close()
sys.exit(status)
"""


def test_a_child_frees_next_to_nothing_of_its_parents_reactor(backend: Backend) -> None:
    """The fork may have come in the middle of a turn, from another thread: lists are half changed then."""
    run = subprocess.run([sys.executable, "-c", FORK, backend], capture_output=True, text=True, timeout=20, check=False)
    if "mallinfo2" in run.stderr:
        pytest.skip("the C library has no mallinfo2")
    assert (run.returncode, run.stderr) == (0, "")


FORKS_AT_WORK = """
import gc, os, socket, sys, threading
from uringws import Handler, Opcode, Reactor

class Echo(Handler):
    def on_message(self, conn, message):
        conn.echo()

reactor = Reactor(Echo(), backend=sys.argv[1])
sender = reactor.sender()
thread = threading.Thread(target=reactor.run)
thread.start()
pairs = [socket.socketpair() for _ in range(20)]
ids = [sender.add_session(ours) for ours, _ in pairs]
failed = 0
for _ in range(15):
    for id_, (_, theirs) in zip(ids, pairs):
        theirs.sendall(b"\\x81\\x82\\0\\0\\0\\0ok" * 50)
    child = os.fork()
    if child == 0:
        reactor.close()
        del reactor, sender
        gc.collect()
        os._exit(0)
    failed += os.waitpid(child, 0)[1] != 0
    for id_, (_, theirs) in zip(ids, pairs):
        assert len(theirs.recv(200, socket.MSG_WAITALL)) == 200
sender.release()
reactor.stop()
thread.join()
reactor.close()
sys.exit(failed)
"""


def test_another_thread_may_fork_while_the_reactor_works(backend: Backend) -> None:
    subprocess.run([sys.executable, "-c", FORKS_AT_WORK, backend], timeout=30, check=True)
