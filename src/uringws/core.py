"""One reactor of the shim with the memory that it shares with Python, its state, and the thread that it belongs to.

Every module that calls the shim takes the handle from here. No callbacks and no policy.
"""

from __future__ import annotations

import logging
import mmap
import socket
import threading
from typing import TYPE_CHECKING, Final

from uringws.backend import Backend, open_core
from uringws.errors import LimitReached, ReactorStateError, WrongThread, check
from uringws.limits import warn_of_few_files
from uringws.options import Options, copy_options, copy_rules
from uringws.ownership import Owner
from uringws.refusals import Refusals, encode_refusals
from uringws.run_state import MAY_FOLLOW, RunState
from uringws.shim import CData, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from uringws.connection import Connection
    from uringws.http import Peer

__all__ = ["EVENTS_MAX", "Core", "slot_of"]

logger = logging.getLogger("uringws")

EVENTS_MAX: Final[int] = lib.URS_EVENTS_MAX
"""The most events of one turn, and the index that stands for "no event"."""

_INSIDE: Final = frozenset({RunState.DRAINING, RunState.READING_LAST, RunState.CUT})
_OVER: Final = frozenset({RunState.CLOSED, RunState.INHERITED})


def slot_of(identity: int) -> int:
    """Return the slot that a connection's id names; the rest of the id counts the slot's uses."""
    return identity & 0xFFFFFFFF


class Core:
    """The shim's reactor. Any thread may wake it and read its state; the rest is for the thread that owns it."""

    def __init__(self, backend: Backend, options: Options, *, frames: bool, pongs: bool, batch: int = 0) -> None:
        """Open it; `frames` asks for frames in place of whole messages, `pongs` for pongs as events.

        `batch` is the number of a batch handler, which is given runs of messages; 0 for any other handler.

        Raises as `Reactor` says.
        """
        pool_bytes = lib.urs_pool_bytes(options.receive_buffers, options.receive_buffer_bytes)
        # Python owns this memory: a view that a handler keeps shows stale bytes, never freed memory.
        self.memory = mmap.mmap(-1, pool_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.pool = memoryview(self.memory)
        self.echo_flags = bytearray(EVENTS_MAX)
        self.handled = ffi.new("uint32_t[1]")
        self._anchors = (ffi.from_buffer("uint8_t[]", self.memory), ffi.from_buffer("uint8_t[]", self.echo_flags))
        shim = ffi.new("struct urs_reactor_options *")
        shim.pool_memory, shim.echo_flags = self._anchors
        shim.handled = self.handled
        copy_options(options, shim, pool_bytes)
        self._refusals: dict[str | None, Refusals] = {}
        rules = self._encode_rules(options, frames=frames, pongs=pongs, batch=batch)
        self._rules = {bytes(ffi.buffer(rules)): 0}
        self._sessions_max = options.sessions_max
        self.batch_messages_max = options.batch_messages_max
        self.state = RunState.NEW
        self.on_failure: Callable[[str, Exception, Connection | None], object] | None = None
        """Called with each exception of a callback and a sentence about it; replaces the log."""
        self.owner: Final = Owner()
        self.renew_lock()
        self.opened: Final = open_core(backend, shim, rules)
        self.handle: CData = self.opened.core

    def _encode_rules(self, options: Options, *, frames: bool, pongs: bool, batch: int) -> CData:
        rules = ffi.new("struct urs_rules *")
        if options.server_header not in self._refusals:
            self._refusals[options.server_header] = encode_refusals(options.server_header)
        self._refusals[options.server_header].copy_to(rules, silently=options.refuse_silently)
        rules.engine.frames = frames
        rules.deliver_pongs = pongs
        rules.batch = batch
        copy_rules(options, rules)
        return rules

    def add_rules(self, options: Options, *, frames: bool, pongs: bool, batch: int = 0) -> int:
        """Return the index under which the shim knows the options of some connections. Equal ones have one index.

        `frames`, `pongs` and `batch` as for the core.

        Raises LimitReached for more than URS_RULES_MAX different ones, WrongThread, ReactorStateError.
        """
        with self.lock:
            self.check_lasting()
            self.check_thread()
            rules = self._encode_rules(options, frames=frames, pongs=pongs, batch=batch)
            key = bytes(ffi.buffer(rules))
            if key not in self._rules:
                if len(self._rules) == lib.URS_RULES_MAX:
                    raise LimitReached(
                        f"a reactor has at most {lib.URS_RULES_MAX} different Options: use some of them again"
                    )
                self._rules[key] = check(lib.urs_reactor_add_rules(self.handle, rules), "options")
            return self._rules[key]

    def renew_lock(self) -> None:
        """Make the lock that guards the handle: to free the handle, or to use it from any thread, hold the lock."""
        # Reentrant: a signal handler or a collection may wake a reactor that its thread is about to wake.
        self.lock = threading.RLock()

    # ---- its state

    def become(self, state: RunState) -> None:
        """Change the state: the only function that does."""
        assert state in MAY_FOLLOW[self.state], f"{state} after {self.state}"  # noqa: S101
        self.state = state

    @property
    def is_draining(self) -> bool:
        """Whether a drain has begun, and `close` has not."""
        return self.state in _INSIDE

    def check_usable(self) -> None:
        """Raise unless there is something to use."""
        if self.state in _OVER:
            self._refuse()

    def check_lasting(self) -> None:
        """Raise if no new work may begin: also in an `on_close` that `close` calls."""
        self.check_usable()
        if self.state is RunState.CLOSING:
            raise ReactorStateError("the reactor is being closed")

    def _refuse(self) -> None:
        if self.state is RunState.INHERITED:
            raise ReactorStateError("the reactor belongs to the parent process: make one after the fork")
        raise ReactorStateError("the reactor is closed")

    def check_thread(self) -> None:
        """Raise unless the caller's thread may use it."""
        if not self.owner.is_known or self.owner.is_caller:
            return
        if self.owner.has_ended:
            raise WrongThread("the thread that ran the reactor has ended: all that can be done with it is close()")
        raise WrongThread("a reactor belongs to the thread that first ran it: use reactor.sender() from others")

    def start(self) -> None:
        """Make the calling thread the owner, and begin to accept; nothing if it has an owner."""
        if not self.owner.is_known:
            self._start()

    def _start(self) -> None:
        warn_of_few_files(self._sessions_max)
        with self.lock:  # other threads may be adding sessions, starting it or closing it
            self.check_lasting()
            if self.owner.is_known:
                return
            check(lib.urs_reactor_start(self.handle), f"{self.opened.name} start")
            self.owner.take()
            self.become(RunState.SERVING)

    def flush(self) -> None:
        """End the turn: send what its callbacks sent. Raises OSError if the backend has become unusable."""
        check(lib.urs_reactor_flush(self.handle), f"{self.opened.name} flush")

    def take(self) -> None:
        """Make the calling thread the owner in place of one that has ended."""
        lib.urs_reactor_take(self.handle)
        self.owner.take()

    def free(self) -> None:
        """Free the shim's part. Views of the pool that Python keeps stay readable."""
        with self.lock:
            handle, self.handle = self.handle, ffi.NULL
            self.become(RunState.CLOSED)
        lib.urs_reactor_close(handle)

    def inherit(self) -> None:
        """Be a copy in a forked child: a ring belongs to the process that made it."""
        self.renew_lock()  # the thread that held it is not in this process
        if self.state is not RunState.CLOSED:
            self.become(RunState.INHERITED)
            lib.urs_reactor_forked(self.handle)

    def report(self, error: Exception, message: str, *arguments: object, connection: Connection | None = None) -> None:
        """Report an exception of a callback: to the event loop that runs the reactor, or to the log."""
        if self.on_failure is None:
            logger.error(message, *arguments, exc_info=error)
        else:
            self.on_failure(message % arguments, error, connection)

    # ---- what the shim knows

    def wake(self) -> None:
        """End the wait of the present turn, or the next one's. From any thread, at any time."""
        with self.lock:  # the reactor's thread may be about to free it
            if self.state not in _OVER:
                lib.urs_reactor_wake(self.handle)

    @property
    def sessions(self) -> int:
        """How many sessions there are, upgrades in progress included."""
        return int(lib.urs_reactor_sessions(self.handle))

    def peer(self, identity: int) -> Peer:
        """Return the address of a connection's peer; None for a Unix socket, or once gone."""
        peer = ffi.new("struct urs_peer *")
        result = lib.urs_command_peer(self.handle, identity, peer)
        if result == lib.URS_ERROR_STALE:
            return None
        check(result, "peer")
        address = bytes(ffi.buffer(peer.address))
        if peer.family == 4:
            return socket.inet_ntop(socket.AF_INET, address[:4]), int(peer.port)
        if peer.family == 6:
            return socket.inet_ntop(socket.AF_INET6, address), int(peer.port)
        return None
