"""Questions asked in the same moment share one query.

When ten thousand sockets come back at once, each wants heads, entries and facts. :class:`Batch` answers whoever asks
while a query runs with the *next* query, so the load grows with the database's speed and not with the number of
sockets, and a lone question starts at once.

Invariant: an answer comes from a query that began after the question was asked. Whoever registers first and asks then
can rely on what it hears (see :mod:`channels.subscriptions`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, TypeVar

from domain.errors import Unavailable

K = TypeVar("K")
V = TypeVar("V")


class _Round(Generic[K, V]):
    __slots__ = ("answer", "keys")

    def __init__(self) -> None:
        self.keys: dict[K, None] = {}
        self.answer: asyncio.Future[Mapping[K, V]] = asyncio.get_running_loop().create_future()
        # Everybody who asked may be gone by the time it fails; that is no reason for a warning.
        self.answer.add_done_callback(_retrieve)


def _retrieve(answer: asyncio.Future[Mapping[K, V]]) -> None:
    if not answer.cancelled():
        answer.exception()


class Batch(Generic[K, V]):
    """Collects keys while a query runs; one query at a time.

    Args:
        load: answers many keys at once. Keys it leaves out are missing from the answer.
        max_keys: in one query; more are asked in further queries of the same round.
        timeout_seconds: for each query.
    """

    def __init__(
        self,
        load: Callable[[list[K]], Awaitable[Mapping[K, V]]],
        *,
        max_keys: int = 500,
        timeout_seconds: float = 5.0,
    ) -> None:
        self._load = load
        self._max_keys = max_keys
        self._timeout_seconds = timeout_seconds
        self._open: _Round[K, V] | None = None
        self._runner: asyncio.Task[None] | None = None

    async def get(self, keys: Iterable[K]) -> Mapping[K, V]:
        """The answers to these keys, among others.

        Raises:
            Unavailable: the query took too long.
            Exception: what ``load`` raised.
        """
        if self._open is None:
            self._open = _Round()
        asked = self._open
        asked.keys.update(dict.fromkeys(keys))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        # One who stops waiting must not take the answer away from the others.
        return await asyncio.shield(asked.answer)

    async def _run(self) -> None:
        try:
            while True:
                # Let everything that asks in this loop turn in.
                await asyncio.sleep(0)
                asked, self._open = self._open, None
                if asked is None:
                    return
                await self._answer(asked)
        finally:
            self._runner = None

    async def _answer(self, asked: _Round[K, V]) -> None:
        keys = list(asked.keys)
        found: dict[K, V] = {}
        try:
            for start in range(0, len(keys), self._max_keys):
                async with asyncio.timeout(self._timeout_seconds):
                    found.update(await self._load(keys[start : start + self._max_keys]))
        except TimeoutError:
            asked.answer.set_exception(Unavailable())
        except asyncio.CancelledError:
            asked.answer.cancel()
            raise
        except Exception as error:
            asked.answer.set_exception(error)
        else:
            asked.answer.set_result(found)

    async def close(self) -> None:
        """Stop the running query; whoever waits for it is cancelled."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        if self._open is not None:
            self._open.answer.cancel()
            self._open = None
