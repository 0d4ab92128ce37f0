from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from domain.commands import Desk
from domain.context import Context
from domain.errors import Refused, Unavailable
from domain.policy import Policy
from domain.types import JSON, Origin
from persistence.database import Database, DatabaseOptions
from persistence.geometry import ZoneIndex
from persistence.migrate import upgrade
from persistence.repositories import SqlUnitOfWork, Units
from persistence.unit_of_work import Transactions
from server import workers as workers_module
from server.clock import SystemClock
from server.workers import SocketSweep, TimerWorker, Workers

ORIGIN = Origin("test")


class Office:
    """A desk on a database, with timers of the test's own."""

    def __init__(self, database: Database) -> None:
        self.transactions: Transactions[SqlUnitOfWork] = Transactions(
            database, SystemClock(), Units(ZoneIndex(), self._timer_is_set)
        )
        self.desk = Desk({}, self.transactions, Policy())
        self.rung: list[JSON] = []
        self.worker = TimerWorker(
            self.desk, self.transactions, SystemClock(), {"ring": self._ring, "fail": self._fail, "away": self._away}
        )
        self.failures = 0

    def _timer_is_set(self, due_at: datetime) -> None:
        self.worker.note(due_at)

    async def set(self, name: str, kind: str, in_seconds: float, **data: object) -> None:
        due_at = datetime.now(UTC) + timedelta(seconds=in_seconds)
        await self.transactions.write(lambda uow: uow.timers.set(name, due_at, kind, data), ORIGIN)

    async def next_due_at(self) -> datetime | None:
        return await self.transactions.read(lambda uow: uow.timers.next_due_at())

    async def _ring(self, _: Context, data: JSON) -> None:
        self.rung.append(data)

    async def _fail(self, ctx: Context, data: JSON) -> None:
        self.failures += 1
        # What a failed attempt wrote must not stay.
        await ctx.uow.timers.set("left-behind", ctx.now, "ring", {"left": "behind"})
        raise Refused

    async def _away(self, _: Context, data: JSON) -> None:
        self.failures += 1
        raise Unavailable


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'fixnado.db'}"
    await upgrade(url, DatabaseOptions())
    database = Database(url, DatabaseOptions())
    yield Office(database)
    await database.close()


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        # Conditions of the workers' own; there is no event for them.
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --- timers -----------------------------------------------------------------------------------------------------------


async def test_a_timer_that_fails_is_put_off_and_the_others_go_on(office: Office) -> None:
    await office.set("bad", "fail", -3)
    await office.set("unknown", "no-such-kind", -2)
    await office.set("good", "ring", -1, n=1)
    with capture_logs() as log:
        while await office.worker.run_once():
            pass
    assert office.rung == [{"n": 1}]
    assert office.failures == 1
    assert [line["timers"] for line in log if line["event"] == "timer_failed"] == [["bad"], ["unknown"]]
    again_at = await office.next_due_at()
    assert again_at is not None
    assert 0 < (again_at - datetime.now(UTC)).total_seconds() <= 1.0


async def test_a_timer_takes_effect_once(office: Office) -> None:
    await office.set("bell", "ring", -1, n=1)
    other = TimerWorker(office.desk, office.transactions, SystemClock(), {"ring": office._ring})
    await asyncio.gather(office.worker.run_once(), other.run_once(), office.worker.run_once())
    assert office.rung == [{"n": 1}]
    assert await office.next_due_at() is None


async def test_a_timer_that_is_not_due_stays(office: Office) -> None:
    await office.set("later", "ring", 60)
    assert await office.worker.run_once() is False
    assert office.rung == []


async def test_a_worker_wakes_for_a_timer_that_is_set_while_it_sleeps(office: Office) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(office.worker.run(stop))
    await office.set("far", "ring", 3600)
    started = time.monotonic()
    await office.set("soon", "ring", 0.2, n=2)
    await until(lambda: bool(office.rung))
    assert office.rung == [{"n": 2}]
    assert 0.15 <= time.monotonic() - started < TimerWorker.LONGEST_SLEEP_SECONDS
    stop.set()
    await asyncio.wait_for(running, TimerWorker.LONGEST_SLEEP_SECONDS + 1)


async def test_a_timer_that_finds_something_away_is_put_off_and_holds_up_nobody(office: Office) -> None:
    await office.set("away", "away", -1)
    assert await office.worker.run_once()
    due_at = await office.next_due_at()
    assert due_at is not None
    assert due_at > datetime.now(UTC)


async def test_the_sweep_catches_up_before_it_renews(office: Office) -> None:
    told: list[str] = []

    async def catch_up() -> None:
        told.append("caught up")

    await SocketSweep(office.desk, "node", SystemClock(), catch_up).run_once()
    assert told == ["caught up"]


# --- the owner --------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "FIRST_PAUSE_SECONDS", 0.02)


def failing(times: int, starts: list[float]) -> Callable[[asyncio.Event], Awaitable[None]]:
    """A worker that fails so often and then works."""

    async def run(stop: asyncio.Event) -> None:
        starts.append(time.monotonic())
        if len(starts) <= times:
            raise RuntimeError("on purpose")
        await stop.wait()

    return run


@pytest.mark.usefixtures("quick")
async def test_a_failing_worker_is_started_again_after_growing_pauses() -> None:
    owner, starts = Workers(), list[float]()
    with capture_logs() as log:
        owner.start("shaky", failing(4, starts))
        await until(lambda: len(starts) == 5)
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.08), strict=True):
        assert pause >= least
    assert [(line["event"], line["worker"]) for line in log] == [("worker_failed", "shaky")] * 4
    await owner.stop()


async def test_the_pause_is_bounded_and_starts_anew_after_a_good_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(workers_module, "LONGEST_PAUSE_SECONDS", 0.2)
    runs = 0

    async def run(_: asyncio.Event) -> None:
        nonlocal runs
        runs += 1
        if runs == 4:
            await asyncio.sleep(0.3)
        raise RuntimeError("on purpose")

    owner = Workers()
    with capture_logs() as log:
        owner.start("shaky", run)
        await until(lambda: runs == 6)
    assert [line["again_in_seconds"] for line in log[:5]] == [0.1, 0.2, 0.2, 0.1, 0.2]
    await owner.stop()


@pytest.mark.usefixtures("quick")
async def test_one_failing_worker_does_not_stop_another() -> None:
    owner, starts = Workers(), list[float]()
    worked = asyncio.Event()

    async def fine(stop: asyncio.Event) -> None:
        worked.set()
        await stop.wait()

    owner.start("shaky", failing(1000, starts))
    owner.start("fine", fine)
    await asyncio.wait_for(worked.wait(), 5)
    await until(lambda: len(starts) > 2)
    await owner.stop()


async def test_stopping_waits_for_workers_that_finish() -> None:
    owner, finished = Workers(), False

    async def careful(stop: asyncio.Event) -> None:
        nonlocal finished
        await stop.wait()
        await asyncio.sleep(0.05)
        finished = True

    owner.start("careful", careful)
    await asyncio.sleep(0)
    await owner.stop()
    assert finished
    assert owner.stopping.is_set()


async def test_stopping_cancels_workers_that_do_not_and_ends_pauses_at_once() -> None:
    owner, starts, cancelled = Workers(), list[float](), False

    async def deaf(_: asyncio.Event) -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled = True
            raise

    owner.start("deaf", deaf)
    owner.start("pausing", failing(1000, starts))
    await until(lambda: bool(starts))
    began = time.monotonic()
    await owner.stop(0.1)
    assert cancelled
    assert time.monotonic() - began < 1.0
    assert not [task for task in asyncio.all_tasks() if task.get_name() in {"deaf", "pausing"}]
