"""The requests for which a callback returned LATER, until they are answered or abandoned. dispatch.py carries out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from uringws.errors import ReactorStateError
from uringws.handshake import LATER, RequestHead
from uringws.http import Request

if TYPE_CHECKING:
    from uringws.handshake import Later
    from uringws.services import Service
    from uringws.upgrade import Decision, Upgrade

__all__ = ["Deferred"]

_IDS: Final = 1 << 64
_ANSWERED: Final = "the request was answered before: a request is answered once"


class Pending(NamedTuple):
    """A request that is decided on, and the service that does it."""

    upgrade: Upgrade
    service: Service


class Deferred:
    """Those of one reactor."""

    def __init__(self) -> None:
        self.waiting: dict[int, Pending] = {}
        """By connection id."""
        self._deciding: Pending | None = None

    def decide(self, upgrade: Upgrade, service: Service) -> tuple[Decision | Later, BaseException | None]:
        """Decide on a request, as `Upgrader.decide`, and keep it if the decision is LATER."""
        pending = self._deciding = Pending(upgrade, service)
        try:
            decision, error = service.upgrader.decide(upgrade)
            if decision is LATER:
                self.waiting[upgrade.identity] = pending
        finally:
            self._deciding = None
        return decision, error

    def find(self, request: Request | RequestHead | int) -> Pending | None:
        """Return the deferred request, named by its request or its id; None if it no longer awaits an answer.

        From any thread. Raises ReactorStateError for a request that was answered, or is not the one that the last
        callback was given; TypeError or ValueError for what is no request and no id.
        """
        identity = request.id if isinstance(request, (Request, RequestHead)) else request
        if isinstance(identity, bool) or not isinstance(identity, int):
            raise TypeError(f"a request is named by itself or by its id, an int, not by {type(identity).__name__}")
        if not 0 < identity < _IDS:
            raise ValueError(f"{identity} is no id of a request: request.id has it")
        deciding = self._deciding
        is_deciding = deciding is not None and deciding.upgrade.identity == identity
        pending = deciding if is_deciding else self.waiting.get(identity)
        if isinstance(request, int):
            return pending
        if request.is_answered:
            raise ReactorStateError(_ANSWERED)
        if pending is not None and pending.upgrade.asked is not request:
            raise ReactorStateError("this request awaits no answer: answer the one that the last callback was given")
        return pending

    def check_answer(self, request: Request | RequestHead | int, returned: object) -> bool:
        """Return whether a request awaits an answer; raise what `answer` would raise. From any thread."""
        pending = self.find(request)
        if pending is not None:
            pending.service.upgrader.check_answer(pending.upgrade, returned)
        return pending is not None

    def answer(self, pending: Pending, returned: object) -> Decision | Later:
        """Go on with a request; LATER if another callback leaves it for later, or its callback still runs.

        In the latter case it goes on when that has returned. Raises as `Upgrader.check_answer`, and ReactorStateError
        for a second answer.
        """
        upgrade, upgrader = pending.upgrade, pending.service.upgrader
        upgrader.check_answer(upgrade, returned)
        assert upgrade.asked is not None  # noqa: S101 - it was asked
        if upgrade.early:
            raise ReactorStateError(_ANSWERED)
        upgrade.asked.is_answered = True
        if upgrade.is_asked:
            upgrade.early = [returned]
            return LATER
        decision = upgrader.answer(upgrade, returned)
        if decision is not LATER:
            self.waiting.pop(upgrade.identity, None)
        return decision

    def drop(self, request: Request | RequestHead | int) -> None:
        """Forget a request whose answer came too late: its result says so. Raises as `find`."""
        pending = self.find(request)
        if pending is not None:
            self.waiting.pop(pending.upgrade.identity, None)

    def abandon(self, identity: int) -> None:
        """Tell the handler of a request that cannot be answered any more, if it waits."""
        pending = self.waiting.pop(identity, None)
        if pending is not None:
            pending.service.upgrader.abandon(pending.upgrade)
