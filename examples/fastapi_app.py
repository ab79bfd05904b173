"""A FastAPI application whose WebSockets are served on io_uring: pip install 'uringws[uvicorn]' fastapi.

    uvicorn examples.fastapi_app:app --ws uringws.uvicorn:WebSocketProtocol --loop uringws.asyncio:new_event_loop

The application is like any other of FastAPI; the two options of uvicorn are all that is needed. `python
examples/fastapi_app.py [--host 127.0.0.1] [--port 9005]` does the same. The WebSocket at / echoes to everybody.
"""

import argparse
import socket
import sys

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()
room: set[WebSocket] = set()


@app.get("/")
async def root() -> str:
    """Say what this is."""
    return f"This is FastAPI; a WebSocket at this address is served by uringws. {len(room)} are connected."


@app.websocket("/")
async def talk(session: WebSocket) -> None:
    """Send every text to all that are connected."""
    await session.accept()
    room.add(session)
    try:
        while True:
            text = await session.receive_text()
            for member in list(room):
                await member.send_text(text)
    except WebSocketDisconnect:
        pass
    finally:
        room.discard(session)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A FastAPI server whose WebSockets are served on io_uring.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9005, help="0 takes a free one (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        listener = socket.create_server((arguments.host, arguments.port))
    except (OSError, OverflowError) as error:
        sys.exit(f"fastapi_app: cannot listen on {arguments.host}:{arguments.port}: {error}")
    config = uvicorn.Config(app, ws="uringws.uvicorn:WebSocketProtocol", loop="uringws.asyncio:new_event_loop")
    try:
        config.load()
        config.get_loop_factory()  # loads the rest: Ctrl-C during an import may set the exit status
        print("listening on ws://{}:{}".format(*listener.getsockname()), "(uvicorn)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn raises the signal again once it has ended
