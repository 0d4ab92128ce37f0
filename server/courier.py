"""The courier: takes due deliveries from the database and hands them to carriers, a bounded number at a time.

What is decided is decided in :mod:`domain.reaching`, in transactions of its own; calls to carriers are outside of them.
A courier that dies leaves its deliveries to the next one. While a carrier is away, deliveries wait in the database, and
nobody else waits for anything. One delivery takes :data:`DELIVERY_SECONDS` at most, so that how it went is noted while
it is still this courier's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial

from domain import reaching
from domain.commands import Desk
from domain.context import Context
from domain.errors import Unavailable
from domain.letters import Medium
from domain.notifications import DeliveryStatus
from domain.ports import Clock, Vault
from domain.proofs import DESTINATION
from domain.reaching import CLAIM_SECONDS, Errand, Report
from domain.types import Origin, new_id
from persistence.database import Database
from persistence.repositories import SqlUnitOfWork
from persistence.repositories.notifications import prune_notifications
from persistence.unit_of_work import Transactions
from server.carriers import Parcel, Route, Taken, Undeliverable
from server.fcm import Gone
from server.telemetry import Metrics, correlated, logger
from server.workers import pause

log = logger(__name__)

AT_ONCE = 32
"""Deliveries on their way, at most."""

DELIVERY_SECONDS = CLAIM_SECONDS / 2
"""For one delivery, to all devices of the person. Its carriers' time-outs come to less, and so does opening the seal of
a telephone number.
"""

STOP_SECONDS = 2.0
"""For deliveries on their way when the process ends; then they are cut off, and another courier's after their claim."""

LOOK_SECONDS = 1.0
"""Deliveries that other nodes have planned are noticed within this."""

KEPT_DAYS = 30
PRUNE_SECONDS = 3_600.0


class Courier:
    """Carries until told to stop. Any number of nodes may run one."""

    def __init__(
        self,
        desk: Desk,
        transactions: Transactions[SqlUnitOfWork],
        routes: Mapping[Medium, Route],
        vault: Vault,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._desk = desk
        self._transactions = transactions
        self._routes = routes
        self._vault = vault
        self._clock = clock
        self._metrics = metrics
        self._carrying: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        try:
            while not stop.is_set():
                if await self.run_once():
                    continue
                await self._rest(stop)
        finally:
            await self._finish()

    async def run_once(self) -> bool:
        """Takes what is due and may leave; whether there may be more. Does not wait for carriers."""
        room = AT_ONCE - len(self._carrying)
        if room <= 0:
            return False
        next_at = await self._transactions.read(lambda uow: uow.notifications.next_due_at())
        if next_at is None or next_at > self._clock.now():
            return False
        origin = Origin(new_id(self._clock.now()))
        looked, errands = await self._desk.run_as_system(partial(_claim, room), origin)
        for errand in errands:
            task = asyncio.create_task(self._deliver(errand, origin), name="delivery")
            self._carrying.add(task)
            task.add_done_callback(self._done)
        return looked == room

    async def settled(self) -> None:
        """Returns when nothing is on its way, for tests."""
        while self._carrying:
            await asyncio.wait(set(self._carrying))

    async def _finish(self) -> None:
        carrying = set(self._carrying)
        try:
            if carrying:
                await asyncio.wait(carrying, timeout=STOP_SECONDS)
        finally:
            for task in carrying:
                task.cancel()
            await asyncio.gather(*carrying, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._carrying.discard(task)
        self._freed.set()

    async def _rest(self, stop: asyncio.Event) -> None:
        self._freed.clear()
        next_at = await self._transactions.read(lambda uow: uow.notifications.next_due_at())
        seconds = LOOK_SECONDS
        if next_at is not None:
            seconds = min(seconds, max(0.05, (next_at - self._clock.now()).total_seconds()))
        if len(self._carrying) < AT_ONCE:
            await pause(stop, seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._freed.wait()

    async def _deliver(self, errand: Errand, origin: Origin) -> None:
        medium, about = errand.delivery.medium, errand.notification
        with correlated(origin):
            report: Report | None = None
            gone: list[str] = []
            try:
                async with asyncio.timeout(DELIVERY_SECONDS):
                    report, gone = await self._carried(errand)
            except Exception:
                # Whatever it was: as when no carrier is there, it is tried again later.
                log.exception("delivery_failed", notification=about.id, medium=medium.value)
            self._metrics.reached(medium.value, report.status.value if report else "put_off")

            async def note(ctx: Context) -> None:
                for token_hash in sorted(gone):
                    await ctx.uow.notifications.remove_push_token(token_hash)
                await reaching.note(ctx, about.id, medium, report)

            try:
                await self._desk.run_as_system(note, origin)
            except Unavailable:
                log.warning("delivery_not_noted", notification=about.id, medium=medium.value)
            except Exception:
                # A defect, of this one note: the delivery is claimed again, and the others go on.
                log.exception("delivery_not_noted", notification=about.id, medium=medium.value)

    async def _carried(self, errand: Errand) -> tuple[Report | None, list[str]]:
        """What the carrier says, ``None`` when no one takes it now; and the devices that are gone."""
        route = self._routes.get(errand.delivery.medium)
        if route is None:
            return Report(DeliveryStatus.SKIPPED, reason="no_carrier"), []
        if errand.delivery.medium is Medium.PUSH:
            return await self._push(route, errand)
        to = errand.address
        try:
            if errand.sealed_phone:
                owner = errand.notification.user_id
                to = (await self._vault.open(errand.sealed_phone, owner=owner, purpose=DESTINATION)).decode()
            taken = await route.carry(_parcel(errand, to))
        except Unavailable:
            return None, []
        except Undeliverable as error:
            return Report(DeliveryStatus.FAILED, reason=error.reason), []
        return Report(DeliveryStatus.HANDED_OVER, taken.carrier, taken.reference), []

    async def _push(self, route: Route, errand: Errand) -> tuple[Report | None, list[str]]:
        """To all devices of the person together; one that takes it is enough."""
        async with asyncio.TaskGroup() as group:
            pushes = [group.create_task(_pushed(route, _parcel(errand, token.token))) for token in errand.tokens]
        said = [push.result() for push in pushes]
        gone = [token.token_hash for token, answer in zip(errand.tokens, said, strict=True) if isinstance(answer, Gone)]
        for answer in said:
            if isinstance(answer, Taken):
                return Report(DeliveryStatus.HANDED_OVER, answer.carrier, answer.reference), gone
        if None in said:
            return None, gone
        reason = next((answer.reason for answer in said if isinstance(answer, Undeliverable)), None)
        return Report(DeliveryStatus.FAILED, reason=reason), gone


class NotificationPruner:
    """Forgets old notifications, in small batches."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await pause(stop, PRUNE_SECONDS)
            before = self._clock.now() - timedelta(days=KEPT_DAYS)
            while not stop.is_set() and await self._prune(before):
                await pause(stop, 0.05)

    async def _prune(self, before: datetime) -> int:
        return await self._database.write(lambda connection: prune_notifications(connection, before))


async def _claim(limit: int, ctx: Context) -> tuple[int, list[Errand]]:
    return await reaching.claim(ctx, limit)


async def _pushed(route: Route, parcel: Parcel) -> Taken | Undeliverable | None:
    """What is said of one device; ``None``: no carrier takes it now."""
    try:
        return await route.carry(parcel)
    except Undeliverable as error:
        return error
    except Unavailable:
        return None


def _parcel(errand: Errand, to: str) -> Parcel:
    about = errand.notification
    text = about.text if errand.delivery.medium is Medium.PUSH else f"{about.title}: {about.text}"
    return Parcel(to, about.title, text, about.data, about.id, about.thread, about.expires_at)
