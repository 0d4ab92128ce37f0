"""What runs beside the requests: timers, sweeps, measuring. Each worker has an owner that awaits it and starts it
again.

A worker that fails is logged and started anew after a jittered, growing pause; none can die silently. Everything they
do is decided in the database, so any number of nodes may run them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from channels.flags import FlagNews
from channels.hub import Hub
from domain import availability
from domain.commands import Desk
from domain.context import Context
from domain.errors import Unavailable
from domain.ports import Clock, Timer
from domain.types import JSON, Origin, new_id
from persistence.database import Database
from persistence.idempotency import prune_keys
from persistence.log import prune
from persistence.outbox import outbox_stats
from persistence.repositories import SqlUnitOfWork
from persistence.repositories.identity import prune_challenges, prune_refresh_tokens
from persistence.sequencer import Sequencer, SequencerCounts
from persistence.timers import overdue_timers
from persistence.unit_of_work import Transactions
from server.telemetry import Metrics, correlated, logger

log = logger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
PAUSE_BETWEEN_BATCHES_SECONDS = 0.05
ENDED_TOKENS_DAYS = 7
"""Refresh tokens stay for so long after their end, for whoever looks into what happened."""

TimerHandler = Callable[[Context, JSON], Awaitable[None]]


class Workers:
    """Owns the background tasks of one process."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def stopping(self) -> asyncio.Event:
        return self._stop

    def start(self, name: str, run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Runs a worker until :meth:`stop`; it gets the event that tells it to end."""
        self._tasks.append(asyncio.create_task(self._keep_running(name, run), name=name))

    async def stop(self, deadline_seconds: float = 5.0) -> None:
        """Asks every worker to end, waits, and cancels those that do not."""
        self._stop.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=deadline_seconds)
            for task in late:
                log.warning("worker_cancelled", worker=task.get_name())
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _keep_running(self, name: str, run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        clock = asyncio.get_running_loop().time
        while not self._stop.is_set():
            started = clock()
            try:
                await run(self._stop)
                return
            except Exception as error:
                if clock() - started > LONGEST_PAUSE_SECONDS:
                    # It had recovered: this is a new trouble, not the old one.
                    pause_seconds = FIRST_PAUSE_SECONDS
                # An outage is no defect of a worker: where it failed says nothing, times every worker and every retry.
                defect = not isinstance(error, Unavailable)
                tell = log.error if defect else log.warning
                why, again = repr(error), round(pause_seconds, 1)
                tell("worker_failed", worker=name, why=why, again_in_seconds=again, exc_info=defect)
            await pause(self._stop, random.uniform(pause_seconds / 2, pause_seconds))
            pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleeps, but not past the moment the process is asked to end."""
    # Not wait_for: on Python 3.11 it may swallow a cancellation that comes together with the result.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


class TimerWorker:
    """Does what durable timers ask for, when they ask for it.

    Each timer is claimed, handled and removed in one transaction, so it takes effect once; one that fails is put off
    with backoff and does not hold up the others.
    """

    LONGEST_SLEEP_SECONDS = 1.0
    """Timers set by other nodes are noticed within this."""

    SETTLE_SECONDS = 0.01
    """Between hearing that a timer is being set and looking for it: its transaction has yet to commit."""

    def __init__(
        self,
        desk: Desk,
        transactions: Transactions[SqlUnitOfWork],
        clock: Clock,
        handlers: Mapping[str, TimerHandler],
    ) -> None:
        self._desk = desk
        self._transactions = transactions
        self._clock = clock
        self._handlers = handlers
        self._wake = asyncio.Event()

    def note(self, due_at: datetime) -> None:
        """A transaction sets a timer; one that is due before the next look is waited for."""
        if due_at < self._clock.now() + timedelta(seconds=self.LONGEST_SLEEP_SECONDS):
            self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            while await self.run_once():
                pass
            next_at = await self._transactions.read(lambda uow: uow.timers.next_due_at())
            seconds = self.LONGEST_SLEEP_SECONDS
            if next_at is not None:
                seconds = min(seconds, max(self.SETTLE_SECONDS, (next_at - self._clock.now()).total_seconds()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(self.SETTLE_SECONDS)

    async def run_once(self) -> bool:
        """Handles the timer that has been due for longest; whether there was one."""
        next_at = await self._transactions.read(lambda uow: uow.timers.next_due_at())
        if next_at is None or next_at > self._clock.now():
            return False
        origin = Origin(new_id(self._clock.now()))
        claimed: list[Timer] = []

        async def work(ctx: Context) -> None:
            claimed[:] = await ctx.uow.timers.due(ctx.now, 1)
            for timer in claimed:
                await self._handlers[timer.kind](ctx, timer.data)
                await ctx.uow.timers.done(timer)

        with correlated(origin):
            try:
                await self._desk.run_as_system(work, origin)
            except Exception:
                # When the database itself is away, putting off fails as well, and the worker starts anew with a pause.
                log.exception("timer_failed", timers=[timer.name for timer in claimed])
                for timer in claimed:
                    await self._transactions.write(_put_off(timer, self._clock), origin)
        return bool(claimed)


def _put_off(timer: Timer, clock: Clock) -> Callable[[SqlUnitOfWork], Awaitable[None]]:
    async def work(uow: SqlUnitOfWork) -> None:
        await uow.timers.failed(timer, clock.now())

    return work


class SocketSweep:
    """Renews this node's claims on provider sockets, and gives providers of dead nodes their linger time.

    Args:
        catch_up: tells what could not be told when a socket came or went, before claims are renewed; see
            :meth:`server.live.ProviderConnections.catch_up`.
    """

    def __init__(
        self, desk: Desk, node_id: str, clock: Clock, catch_up: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._desk = desk
        self._node_id = node_id
        self._clock = clock
        self._catch_up = catch_up

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.run_once()
            await pause(stop, availability.SOCKET_CLAIM_SECONDS / 3)

    async def run_once(self) -> None:
        if self._catch_up is not None:
            await self._catch_up()
        await self._desk.run_as_system(self._sweep, Origin(new_id(self._clock.now())))

    async def _sweep(self, ctx: Context) -> None:
        until = ctx.now + timedelta(seconds=availability.SOCKET_CLAIM_SECONDS)
        await ctx.uow.market.renew_sockets(self._node_id, until)
        for provider_id in await ctx.uow.market.unreachable(ctx.now):
            await availability.expect_offline(ctx, provider_id)


class Pruner:
    """Forgets what nobody can ask for any more, in small batches: old log entries, old idempotency keys, challenges and
    refresh tokens that have ended.
    """

    def __init__(
        self, database: Database, clock: Clock, *, log_hours: float, log_entries: int, key_hours: float
    ) -> None:
        self._database = database
        self._clock = clock
        self._log_hours = log_hours
        self._log_entries = log_entries
        self._key_hours = key_hours

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await pause(stop, random.uniform(240, 360))
            await self.run_once(stop)

    async def run_once(self, stop: asyncio.Event) -> None:
        """Forgets all there is to forget now, or as much until told to stop."""
        now = self._clock.now()
        log_before = now - timedelta(hours=self._log_hours)
        keys_before = now - timedelta(hours=self._key_hours)
        tokens_before = now - timedelta(days=ENDED_TOKENS_DAYS)
        await self._in_batches(stop, partial(prune, self._database, log_before, self._log_entries))
        await self._in_batches(stop, partial(prune_keys, self._database, keys_before))
        await self._in_batches(stop, partial(prune_challenges, self._database, now - timedelta(hours=1)))
        await self._in_batches(stop, partial(prune_refresh_tokens, self._database, tokens_before))

    async def _in_batches(self, stop: asyncio.Event, batch: Callable[[], Awaitable[int]]) -> None:
        while not stop.is_set() and await batch():
            await pause(stop, PAUSE_BETWEEN_BATCHES_SECONDS)


class HubAudit:
    """Compares what this node's channels have with the log, so that a tail the broker lost stays lost for seconds
    only.
    """

    def __init__(self, hub: Hub, every_seconds: float = 5.0) -> None:
        self._hub = hub
        self._every_seconds = every_seconds

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            # Not all nodes at once.
            await pause(stop, self._every_seconds * random.uniform(0.8, 1.2))
            await self._hub.audit()


class FlagWatch:
    """Reads every flag now and then, for a node that missed one on the control channel."""

    def __init__(self, transactions: Transactions[SqlUnitOfWork], news: FlagNews, every_seconds: float = 60.0) -> None:
        self._transactions = transactions
        self._news = news
        self._every_seconds = every_seconds

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await pause(stop, self._every_seconds * random.uniform(0.8, 1.2))
            await self.run_once()

    async def run_once(self) -> None:
        self._news.take(await self._transactions.read(lambda uow: uow.flags.all()))


class OutboxWatch:
    """Measures how far sequencing and timers are behind.

    Attributes:
        oldest_seconds: age of the oldest event without an offset when last looked at.
    """

    def __init__(self, database: Database, sequencer: Sequencer, metrics: Metrics, every_seconds: float = 2.0) -> None:
        self._database = database
        self._sequencer = sequencer
        self._counted = SequencerCounts()
        self._metrics = metrics
        self.oldest_seconds = 0.0
        self._every_seconds = every_seconds

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            stats = await outbox_stats(self._database)
            self._metrics.outbox_rows.set(stats.rows)
            self._metrics.outbox_parked_rows.set(stats.parked)
            self._metrics.outbox_oldest_seconds.set(stats.oldest_age_seconds)
            self.oldest_seconds = stats.oldest_age_seconds
            overdue = await overdue_timers(self._database)
            self._metrics.timers_overdue.set(overdue.timers)
            self._metrics.timers_oldest_overdue_seconds.set(overdue.oldest_seconds)
            self._count()
            await pause(stop, self._every_seconds)

    def _count(self) -> None:
        now, before = replace(self._sequencer.counts), self._counted
        self._counted = now
        self._metrics.sequenced.inc(now.sequenced - before.sequenced)
        self._metrics.parked.inc(now.parked - before.parked)
        self._metrics.sequencing_failures.inc(now.failures - before.failures)
