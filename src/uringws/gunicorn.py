"""A worker for gunicorn: `gunicorn -k uringws.gunicorn.Worker app:app`, for ASGI applications.

uvicorn serves HTTP in it, and uvicorn.py the WebSockets; nothing else may live here. It needs the package
uvicorn-worker.
"""

from __future__ import annotations

from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker

__all__ = ["Worker"]


class Worker(UvicornWorker):
    """uvicorn's worker for gunicorn, on our event loop and with our WebSocket class.

    Each worker process has an event loop and a ring of its own, which it makes after the fork. To change a setting of
    uvicorn, make a subclass with other `CONFIG_KWARGS`.
    """

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "http": "auto",
        "loop": "uringws.asyncio:new_event_loop",
        "ws": "uringws.uvicorn:WebSocketProtocol",
    }
