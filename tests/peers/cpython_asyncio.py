"""CPython's own tests of selectors and of event loops, on this project's: a module for `python -m unittest`.

The backend is that of the environment variable URINGWS_BACKEND. `test_cpython.py` runs it.
"""

import os
from typing import Any

from test import test_selectors
from test.test_asyncio import test_events
from test.test_asyncio import utils as test_utils

import uringws.asyncio
from uringws import Handler, Reactor
from uringws.asyncio.selector import ReactorSelector
from uringws.driver import Driver

BACKEND: Any = os.environ["URINGWS_BACKEND"]


class EpollSelector(ReactorSelector):
    """Has the name by which a test of CPython's knows what to patch, and the attribute that this test looks at."""

    def __init__(self) -> None:
        reactor = Reactor(Handler(), backend=BACKEND)
        super().__init__(reactor, Driver(reactor))

    @property
    def _map(self) -> Any:
        return self.get_map()

    def close(self) -> None:
        super().close()
        self._reactor.close()


class SelectorTests(test_selectors.EpollSelectorTestCase):
    """The 19 tests of every selector, 1 of those that scale, 1 of epoll."""

    SELECTOR = EpollSelector


class EventLoopTests(test_events.UnixEventLoopTestsMixin, test_events.SubprocessTestsMixin, test_utils.TestCase):
    """The tests of every event loop on Unix, and those of its subprocesses."""

    def create_event_loop(self) -> Any:
        """Called by the tests' setUp."""
        return uringws.asyncio.new_event_loop(backend=BACKEND)


del test_selectors.EpollSelectorTestCase
