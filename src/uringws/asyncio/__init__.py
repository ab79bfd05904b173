"""asyncio on uringws: an event loop whose iterations are turns of a reactor."""

from uringws.asyncio.loop import EventLoop, new_event_loop, run

__all__ = ["EventLoop", "new_event_loop", "run"]
