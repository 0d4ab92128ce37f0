"""An ASGI application under uvicorn, set as evenly for all yardsticks as it goes, and commanded over standard input."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
import uvloop
from control import Handler, obey  # type: ignore[import-not-found]  # beside this script


def serve(app: Any, publish: Handler) -> None:
    """Serves on a free port until standard input ends."""
    uvloop.run(_serve(app, publish))


async def _serve(app: Any, publish: Handler) -> None:
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
