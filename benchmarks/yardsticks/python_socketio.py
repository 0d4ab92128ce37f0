"""python-socketio: ``emit`` to a room, WebSocket transport only, served by uvicorn."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import socketio  # type: ignore[import-not-found]  # of the yardsticks' own environment
import uvicorn
import uvloop
from control import message, obey  # type: ignore[import-not-found]  # beside this script

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


async def main() -> None:
    config = uvicorn.Config(
        socketio.ASGIApp(sio),
        host="127.0.0.1",
        port=0,
        lifespan="off",
        log_config=None,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        backlog=4096,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 — it has no event for it
        await asyncio.sleep(0.01)
    await obey(server.servers[0].sockets[0].getsockname()[1], {"publish": publish})
    serving.cancel()


if __name__ == "__main__":
    uvloop.run(main())
