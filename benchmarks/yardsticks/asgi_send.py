"""ASGI as everybody writes it: uvicorn, and ``await send(…)`` for each client in turn."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import uvicorn
import uvloop
from control import message, obey  # type: ignore[import-not-found]  # beside this script

sends: list[Any] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    sends.append(send)
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def publish(turns: int, burst: int, size: int) -> dict[str, Any]:
    started = time.monotonic()
    for _ in range(turns):
        for _ in range(burst):
            event = {"type": "websocket.send", "text": message(size)}
            for send in sends:
                await send(event)
        await asyncio.sleep(0)
    return {"started": started}


async def main() -> None:
    config = uvicorn.Config(
        app,
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
