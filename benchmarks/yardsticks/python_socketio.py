"""python-socketio: ``emit`` to a room, WebSocket transport only, served by uvicorn."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import socketio  # type: ignore[import-not-found]  # of the yardsticks' own environment
from asgi_server import serve  # type: ignore[import-not-found]  # beside this script
from control import message  # type: ignore[import-not-found]  # as above

sio = socketio.AsyncServer(async_mode="asgi", ping_interval=3600, ping_timeout=3600, http_compression=False)


@sio.event  # type: ignore[untyped-decorator]
async def connect(sid: str, environ: Any, auth: Any) -> None:
    await sio.enter_room(sid, "camden")


async def publish(turns: int, burst: int, size: int) -> dict[str, Any]:
    started = time.monotonic()
    for _ in range(turns):
        for _ in range(burst):
            await sio.emit("event", message(size), room="camden")
        await asyncio.sleep(0)
    return {"started": started}


if __name__ == "__main__":
    serve(socketio.ASGIApp(sio), publish)
