"""uringws: a WebSocket server for Linux on io_uring."""

__all__: list[str] = []
