"""Keeps the live figures of zones: counts again what something happened in, and now and then what nobody told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from functools import partial
from typing import Any

from domain import zones
from domain.commands import Desk
from domain.context import Context
from domain.ports import Clock
from domain.types import Origin, new_id
from persistence.geometry import ZoneIndex
from persistence.repositories import SqlUnitOfWork
from persistence.unit_of_work import Transactions
from server.workers import pause


class ZoneMeter:
    """One node's part in counting.

    Whatever happens in a zone in ``every_seconds`` is counted once. A node that dies before it counts leaves figures
    that are not true: the sweep of any node finds and corrects them.
    """

    def __init__(
        self,
        desk: Desk,
        transactions: Transactions[SqlUnitOfWork],
        clock: Clock,
        *,
        every_seconds: float = 2.0,
        sweep_seconds: float = 60.0,
    ) -> None:
        self._desk = desk
        self._transactions = transactions
        self._clock = clock
        self._every_seconds = every_seconds
        self._sweep_seconds = sweep_seconds

    async def run(self, stop: asyncio.Event) -> None:
        now = asyncio.get_running_loop().time
        sweep_at = now()
        while not stop.is_set():
            if now() >= sweep_at:
                await self.sweep()
                # Not all nodes at once.
                sweep_at = now() + self._sweep_seconds * random.uniform(0.8, 1.2)
            await self.run_once()
            await pause(stop, self._every_seconds)

    async def run_once(self) -> int:
        """Counts the zones that something happened in since the last time; how many there were."""
        zone_ids, provider_ids = self._desk.pulse.take()
        try:
            if provider_ids:
                zone_ids |= set(await self._transactions.read(lambda uow: uow.zones.of_providers(provider_ids)))
            for zone_id in sorted(zone_ids):
                await self._count(zone_id)
        except BaseException:
            # The database is away: all of it again, once it is back.
            for zone_id in zone_ids:
                self._desk.pulse.zone(zone_id)
            for provider_id in provider_ids:
                self._desk.pulse.provider(provider_id)
            raise
        return len(zone_ids)

    async def sweep(self) -> None:
        """Counts zones whose demand or supply is not what was told."""
        for zone_id in sorted(await self._transactions.read(lambda uow: uow.zones.drifted())):
            await self._count(zone_id)

    async def _count(self, zone_id: str) -> None:
        await self._desk.run_as_system(partial(_recount, zone_id=zone_id), Origin(new_id(self._clock.now())))


async def _recount(ctx: Context, zone_id: str) -> None:
    await zones.recount(ctx, zone_id)


def follow_zones(index: ZoneIndex, kind: str, data: Mapping[str, Any]) -> None:
    """A control listener: zones that changed on any node are read anew."""
    if kind == "zones.changed":
        index.expect(int(data["generation"]))
