"""Keeps what the broker listens to equal to what this node holds, without a call per subscriber.

Channels that are wanted at the same moment are subscribed in one call; those nobody wants any more are given up a
little later, because a page that reloads leaves and joins the same ones within a moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Container, Mapping

from channels.broker import Broker
from channels.lookups import Batch

logger = logging.getLogger(__name__)

LINGER_SECONDS = 1.0


class Listening:
    """The broker's subscriptions of one node.

    Args:
        held: the channels held at any moment, live.
        call_seconds: for one call to the broker.
    """

    def __init__(self, broker: Broker, held: Container[str], call_seconds: float) -> None:
        self._broker = broker
        self._held = held
        self._call_seconds = call_seconds
        # Keeps a channel that is joined just now from being unsubscribed after it.
        self._lock = asyncio.Lock()
        self._join: Batch[str, None] = Batch(self._subscribe, timeout_seconds=call_seconds)
        self._left: dict[str, None] = {}
        self._left_some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the task that gives channels up."""
        self._task = asyncio.create_task(self._give_up_for_ever(), name="listening")

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._join.close()

    async def join(self, names: Collection[str]) -> None:
        """Returns when the broker listens to these channels, which must be held already.

        Raises:
            Unavailable: the broker is away.
        """
        await self._join.get(names)

    def leave(self, name: str) -> None:
        """Nobody here wants this channel now."""
        self._left[name] = None
        self._left_some.set()

    async def _subscribe(self, names: list[str]) -> Mapping[str, None]:
        async with self._lock:
            await self._broker.subscribe(names)
        return dict.fromkeys(names)

    async def _give_up_for_ever(self) -> None:
        while True:
            await self._left_some.wait()
            await asyncio.sleep(LINGER_SECONDS)
            self._left_some.clear()
            left, self._left = self._left, {}
            try:
                async with self._lock, asyncio.timeout(self._call_seconds):
                    await self._broker.unsubscribe([name for name in left if name not in self._held])
            except Exception:
                logger.warning("the broker still listens to channels nobody wants", exc_info=True)
                self._left = left | self._left
                self._left_some.set()
