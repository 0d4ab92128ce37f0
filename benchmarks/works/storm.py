"""P8: everybody loses the connection at once and is back a second later: does everybody have everything?

While they are away, events are committed for each of them; while they come back, one more. Each client names the last
offset it has handled and must end with every offset up to the newest, once and in order: from the reply or live.
Clients behave like the SDKs: the first attempt after up to half a second, the next ones after a backoff with jitter.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import uvloop
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks import town
from benchmarks.machine import Share, raise_file_limit
from benchmarks.results import Figure, Outcome, percentile
from benchmarks.scene import Scene
from benchmarks.wire import JSON, Client, WireError
from domain.errors import Unavailable
from domain.events import Audience, Event
from domain.types import Origin, new_id
from persistence.database import Database
from persistence.outbox import append_to_outbox
from persistence.tables import outbox
from tests.services import ServiceMissing

T = TypeVar("T")

AWAY_SECONDS = 1.0
MISSED = 2
MOST_SECONDS = 15.0
GIVE_UP_SECONDS = 120.0
FIRST_ATTEMPT_SECONDS = 0.5
MOST_BACKOFF_SECONDS = 20.0
ATTEMPT_SECONDS = 10.0
ROWS = 500
CONCURRENCY = 100
BUSY_SECONDS = 0.1
SHOWN_FAILURES = 4
TITLE = "{people:,} sockets away for a second, each missed {missed} events; all resumed, {where}"
TARGET = "≤ 15 s, nothing lost"


class Guest:
    """One client through loss and return."""

    def __init__(self, citizen: town.Citizen, number: int) -> None:
        self.citizen = citizen
        self.channel = f"user:{citizen.user_id}"
        self.client: Client | None = None
        self.resumed_at = 0.0
        self.failures: list[str] = []
        self.recovered = True
        self.offsets: list[int] = []
        self._number = number
        self._epoch = ""

    async def arrive(self, port: int) -> None:
        """Connect for the first time: what was before is of no interest."""
        self.client = await Client.open(port, self.citizen.token, number=self._number, on_event=self._hear)
        self._handle(self.client.connected, fresh=True)

    async def return_to(self, port: int) -> None:
        """Connect again and again until it works, and resume.

        Raises:
            TimeoutError: it took too long altogether.
        """
        delay = random.uniform(0.0, FIRST_ATTEMPT_SECONDS)
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while True:
                await asyncio.sleep(delay)
                resume = {self.channel: {"epoch": self._epoch, "offset": self.offsets[-1]}}
                try:
                    self.client = await Client.open(
                        port,
                        self.citizen.token,
                        number=self._number + 7 * len(self.failures),
                        resume=resume,
                        on_event=self._hear,
                        timeout_seconds=ATTEMPT_SECONDS,
                    )
                except (WireError, OSError) as error:
                    # TimeoutError is an OSError too.
                    self.failures.append(str(error) or type(error).__name__)
                    most = min(MOST_BACKOFF_SECONDS, FIRST_ATTEMPT_SECONDS * 2.0 ** len(self.failures))
                    delay = random.uniform(0.0, most)
                else:
                    self._handle(self.client.connected, fresh=False)
                    self.resumed_at = time.monotonic()
                    return

    def _handle(self, connected: JSON, *, fresh: bool) -> None:
        reply = connected["channels"][self.channel]
        if fresh:
            self.offsets = [reply["offset"]]
        else:
            self.recovered = self.recovered and reply["recovered"] and reply["epoch"] == self._epoch
            # Live events may have come in the same read as the reply, and were noted first.
            live = [offset for offset in self.offsets if offset > reply["offset"]]
            before = [offset for offset in self.offsets if offset <= reply["offset"]]
            self.offsets = before + [event["offset"] for event in reply["events"]] + live
        self._epoch = reply["epoch"]

    def _hear(self, _client: Client, event: JSON, _arrived: float) -> None:
        if event["channel"] == self.channel:
            self.offsets.append(event["offset"])

    def whole(self, newest: int) -> bool:
        """Whether every offset came once, in order, up to the newest."""
        return self.recovered and self.offsets == list(range(self.offsets[0], newest + 1))


def run(scene: Scene) -> Outcome:
    """P8, embedded and in production's shape."""
    return uvloop.run(_all(scene))


async def _all(scene: Scene) -> Outcome:
    people = scene.pick(10_000, 1_000)
    outcome = Outcome()
    room = raise_file_limit() - 500
    if people > room:
        why = f"this machine allows {room:,} open files to a process (ulimit -n)"
        return Outcome([Figure.missing("P8", TITLE.format(people=people, missed=MISSED, where=""), TARGET, why)])
    with town.embedded() as backing:
        outcome.figures.append(await _measure(scene, backing, people))
    title = TITLE.format(people=people, missed=MISSED, where="MySQL + Redis")
    try:
        async with town.mysql([scene.cores.generator]) as backing:
            outcome.figures.append(await _measure(scene, backing, people))
    except town.NoRedisYet as error:
        outcome.figures.append(Figure.missing("P8", title, TARGET, f"not measured yet: {error}"))
    except ServiceMissing as error:
        outcome.figures.append(Figure.missing("P8", title, TARGET, f"not here: {error}"))
    return outcome


async def _measure(scene: Scene, backing: town.Backing, people: int) -> Figure:
    scene.tell(f"{backing.name}: settling", 0.0)
    citizens = await town.settle(backing, people)
    guests = [Guest(citizen, number) for number, citizen in enumerate(citizens)]
    async with town.nodes(backing, 1, [scene.cores.server]) as (node,):
        await town.login(node.base, citizens)
        database = town.open_database(backing)
        try:
            turn = asyncio.Semaphore(CONCURRENCY)

            async def arrive(guest: Guest) -> None:
                async with turn:
                    await guest.arrive(node.port)

            scene.tell(f"{backing.name}: {people:,} sockets connect", 0.2)
            await asyncio.gather(*(arrive(guest) for guest in guests))
            scene.tell(f"{backing.name}: all are away", 0.5)
            for guest in guests:
                assert guest.client is not None
                guest.client.abort()
            lost_at = time.monotonic()
            for _ in range(MISSED):
                await _commit(database, citizens)
            await _sequenced(database)
            away = max(AWAY_SECONDS, time.monotonic() - lost_at)
            await asyncio.sleep(max(0.0, lost_at + AWAY_SECONDS - time.monotonic()))
            scene.tell(f"{backing.name}: all come back", 0.7)
            share, began = Share(), time.monotonic()
            live = asyncio.create_task(_commit(database, citizens))
            await asyncio.gather(*(guest.return_to(node.port) for guest in guests))
            await live
            used = share.read()
            await _sequenced(database)
            lost = await _count_lost(guests)
        finally:
            await database.close()
    took = sorted(guest.resumed_at - began for guest in guests)
    figure = Figure(
        "P8",
        TITLE.format(people=people, missed=MISSED, where=backing.name),
        f"{took[-1]:.1f} s, {lost} lost",
        TARGET,
        took[-1] <= MOST_SECONDS and lost == 0,
        generator_share=used,
    )
    figure.notes.append(f"half were back after {percentile(took, 0.5):.1f} s; away for {away:.1f} s")
    failures = Counter(failure for guest in guests for failure in guest.failures)
    figure.notes += [f"{count} attempts failed: {why}" for why, count in failures.most_common(SHOWN_FAILURES)]
    return figure


async def _count_lost(guests: Sequence[Guest]) -> int:
    """How many do not have everything, a moment after everything was sequenced."""
    newest = [guest.offsets[0] + MISSED + 1 for guest in guests]
    lost = len(guests)
    for _ in range(100):
        lost = sum(not guest.whole(last) for guest, last in zip(guests, newest, strict=True))
        if not lost:
            break
        await asyncio.sleep(0.1)
    return lost


async def _commit(database: Database, citizens: Sequence[town.Citizen]) -> None:
    """One event for everybody, through the outbox, as any use case would record it."""
    origin = Origin("bench-storm")
    for start in range(0, len(citizens), ROWS):
        now = datetime.now(UTC)
        events = [
            Event(
                new_id(now),
                "notification.created",
                now,
                f"user/{citizen.user_id}",
                {"text": "Your booking was moved to another time."},
                Audience(users=(citizen.user_id,)),
            )
            for citizen in citizens[start : start + ROWS]
        ]

        async def work(connection: AsyncConnection, events: Sequence[Event] = events) -> None:
            await append_to_outbox(connection, events, origin)

        await _persistently(lambda: database.write(work))


async def _persistently(call: Callable[[], Awaitable[T]]) -> T:
    """Ask again while the database is busy: this is a storm, and whoever commits beside it has patience."""
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(BUSY_SECONDS)


async def _sequenced(database: Database) -> None:
    """Returns when the outbox is empty.

    Raises:
        TimeoutError: it does not get so.
    """

    async def waiting(connection: AsyncConnection) -> int:
        return int((await connection.execute(select(func.count()).select_from(outbox))).scalar_one())

    async with asyncio.timeout(GIVE_UP_SECONDS):
        while await _persistently(lambda: database.read(waiting)):  # noqa: ASYNC110 — the nodes are other processes
            await asyncio.sleep(0.05)
