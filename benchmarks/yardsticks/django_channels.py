"""Django Channels with its Redis layer: ``group_send``, served by uvicorn. Arguments: the port of a Redis."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from typing import Any

from asgi_server import serve  # type: ignore[import-not-found]  # beside this script
from control import message  # type: ignore[import-not-found]  # as above
from django.conf import settings  # type: ignore[import-not-found]  # of the yardsticks' own environment

settings.configure(
    SECRET_KEY="of a benchmark",
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            # Messages beyond the capacity would be dropped, not delayed.
            "CONFIG": {"hosts": [("127.0.0.1", int(sys.argv[1]))], "capacity": 100_000},
        }
    },
)
importlib.import_module("django").setup()
# By name: the product has a package that is called the same, and type checkers would take it for this one.
consumers: Any = importlib.import_module("channels.generic.websocket")
layers: Any = importlib.import_module("channels.layers")


class Consumer(consumers.AsyncWebsocketConsumer):  # type: ignore[misc]
    async def connect(self) -> None:
        await self.channel_layer.group_add("camden", self.channel_name)
        await self.accept()
        await self.send(text_data="ready")

    async def announce(self, event: dict[str, str]) -> None:
        await self.send(text_data=event["text"])


async def publish(turns: int, burst: int, size: int) -> dict[str, Any]:
    started = time.monotonic()
    layer = layers.get_channel_layer()
    for _ in range(turns):
        for _ in range(burst):
            await layer.group_send("camden", {"type": "announce", "text": message(size)})
        await asyncio.sleep(0)
    return {"started": started}


if __name__ == "__main__":
    serve(Consumer.as_asgi(), publish)
