"""P7: how many durable log entries a second come of bookings that customers make over sockets as fast as they can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import uvloop
from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks import town
from benchmarks.machine import Share, cpu_seconds
from benchmarks.results import Curve, Figure, Outcome, Picture, median, quantity
from benchmarks.scene import Scene
from benchmarks.wire import JSON, Client, WireError
from channels import protocol, topics
from domain.events import Audience, Event
from domain.log import Entry
from domain.types import Origin, new_id
from persistence.database import Database
from persistence.outbox import append_to_outbox
from persistence.sequencer import Sequencer, SequencerOptions
from persistence.tables import log_cursors, outbox
from server import demo
from server.clock import SystemClock
from server.robot import post
from tests.services import ServiceMissing

CUSTOMERS = 64
WARM_UP_SECONDS = 2.0
ENTRIES_PER_SECOND = 1_000
OFFER_SECONDS = 3_600
"""Offers outlive the run, so that expiry is not measured along."""
DRAINED_SECONDS = 30.0
ALONE_SECONDS = 120.0
TITLE = "durable log entries/s, bookings over {customers} sockets, {where}, everything on {cores} cores"
TARGET = "≥ 1,000/s"
NODES = (1, 2, 4)
BACKLOG_ROWS = 500
BACKLOG_CHANNELS = 1_000
SINGLE_EVENTS = 200


def run(scene: Scene) -> Outcome:
    """P7 with 1, 2 and 4 nodes."""
    return uvloop.run(_all(scene))


async def _all(scene: Scene) -> Outcome:
    outcome = Outcome()
    points: list[tuple[float, float]] = []
    alone: Figure | None = None
    try:
        for number, count in enumerate(NODES):
            scene.tell(f"{count} nodes on MySQL + Redis", number / len(NODES))
            where = f"MySQL + Redis, {count} node{'s' if count > 1 else ''}"
            try:
                async with town.mysql(scene.cores.both) as backing:
                    figure, rate = await _measure(scene, backing, count, where)
                    points.append((count, rate))
                    if count == 1:
                        alone = await _sequencer_alone(scene, backing)
            except town.NoRedisYet as error:
                title = _title(scene, where)
                figure = Figure.missing("P7", title, TARGET, f"not measured yet: {error}")
            outcome.figures.append(figure)
        if not points:
            async with town.mysql(scene.cores.both, with_redis=False) as backing:
                figure, _ = await _measure(scene, backing, 1, backing.name)
                figure.reached = None
                outcome.figures.append(figure)
    except ServiceMissing as error:
        why = f"not here: {error}"
        outcome.figures.append(Figure.missing("P7", _title(scene, "MySQL + Redis"), TARGET, why))
    if alone is not None:
        outcome.figures.append(alone)
    if len(points) > 1:
        curve = Curve("entries/s", points)
        title = "P7: durable log entries per second"
        outcome.pictures.append(Picture("p7-nodes.svg", title, "nodes", "entries/s", [curve], x_log=False))
    return outcome


def _title(scene: Scene, where: str) -> str:
    return TITLE.format(customers=CUSTOMERS, where=where, cores=len(scene.cores.both))


async def _measure(scene: Scene, backing: town.Backing, count: int, where: str) -> tuple[Figure, float]:
    seconds = scene.pick(10.0, 3.0)
    citizens = await town.settle(backing, CUSTOMERS)
    async with town.nodes(backing, count, scene.cores.both, offer_on_demand_seconds=OFFER_SECONDS) as nodes:
        await town.login(nodes[0].base, citizens)
        providers = [await _provider(nodes[0].base, nodes[0].port, email) for email in demo.PROVIDERS]
        clients = [
            await Client.open(nodes[number % count].port, citizen.token, number=number)
            for number, citizen in enumerate(citizens)
        ]
        database = town.open_database(backing)
        booked = [0]
        try:
            customers = [asyncio.create_task(_book(client, booked)) for client in clients]
            await asyncio.sleep(WARM_UP_SECONDS)
            share, before, began = Share(), await _sequence(database), time.monotonic()
            booked[0] = 0
            pids = [node.pid for node in nodes] + [backing.database_pid or nodes[0].pid]
            cpu_before = [cpu_seconds(pid) for pid in pids]
            await asyncio.sleep(seconds)
            entries, made, waiting = await _sequence(database) - before, booked[0], await _waiting(database)
            took, used = time.monotonic() - began, share.read()
            *nodes_used, database_used = (
                (cpu_seconds(pid) - cpu) / took for pid, cpu in zip(pids, cpu_before, strict=True)
            )
            for customer in customers:
                customer.cancel()
            for result in await asyncio.gather(*customers, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
            await _until_drained(database)
        finally:
            for client in [*clients, *providers]:
                client.abort()
            await database.close()
    rate = entries / took
    title = _title(scene, where)
    figure = Figure("P7", title, f"{quantity(rate)}/s", TARGET, rate >= ENTRIES_PER_SECOND, generator_share=used)
    if not made:
        raise RuntimeError("no booking was made")
    each = entries / made
    figure.notes.append(f"{made / took:.0f} bookings/s of {each:.1f} entries; {waiting} events waited at the end")
    per_booking = sum(nodes_used) / made * took * 1e3, database_used / made * took * 1e3
    figure.notes.append(f"cores used: nodes {sum(nodes_used):.2f}, MySQL {database_used:.2f}")
    figure.notes.append(f"CPU of a booking: nodes {per_booking[0]:.1f} ms, MySQL {per_booking[1]:.1f} ms")
    return figure, rate


async def _sequencer_alone(scene: Scene, backing: town.Backing) -> Figure:
    """How fast one partition goes with nothing else to do: a backlog and then single events, a sequencer, no nodes."""
    rows = scene.pick(20_000, 4_000)
    scene.tell(f"the sequencer and a backlog of {rows:,} events", 0.3)
    database = town.open_database(backing)
    stop = asyncio.Event()
    published = [0]

    async def publish(entries: Sequence[Entry]) -> None:
        published[0] += len(entries)

    options = SequencerOptions()
    sequencer = Sequencer(
        database, "bench", route=topics.route, encode=protocol.encode_event, publish=publish, options=options
    )

    async def one(number: int) -> float | None:
        """Seconds from an event that stands alone to its entry; ``None`` when the sequencer came by unasked."""
        before = sequencer.counts.sequenced
        await _fill(database, range(number, number + 1))
        await asyncio.sleep(2 * options.pace_seconds)
        if sequencer.counts.sequenced > before:
            return None
        began = time.monotonic()
        sequencer.nudge()
        while sequencer.counts.sequenced == before:  # noqa: ASYNC110 — counts have no event
            await asyncio.sleep(0.0002)
        return time.monotonic() - began

    try:
        for start in range(0, rows, BACKLOG_ROWS):
            await _fill(database, range(start, start + BACKLOG_ROWS))
        async with asyncio.timeout(ALONE_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(sequencer.run(stop))
            while not sequencer.counts.sequenced:  # noqa: ASYNC110 — counts have no event
                await asyncio.sleep(0.001)
            # The first batch started the clock, so it does not count.
            first, began = sequencer.counts.sequenced, time.monotonic()
            while sequencer.counts.sequenced < rows:  # noqa: ASYNC110 — as above
                await asyncio.sleep(0.001)
            seconds = time.monotonic() - began
            alone = [await one(number) for number in range(scene.pick(SINGLE_EVENTS, 20))]
            stop.set()
        single = median([seconds for seconds in alone if seconds is not None])
    finally:
        await database.close()
    rate = (rows - first) / seconds
    # A full batch is followed by a pause in proportion, which is no work.
    full = options.batch_rows / rate / (1 + options.pace_share)
    each = (full - single) / (options.batch_rows - 1)
    title = f"one sequencer alone, a backlog of {rows:,} events of one entry, MySQL, {len(scene.cores.both)} cores"
    notes = [f"the ceiling of one partition; a batch of one takes {single * 1e3:.1f} ms, each more {each * 1e6:.0f} µs"]
    return Figure("P7", title, f"{quantity(rate)}/s", notes=notes)


async def _fill(database: Database, numbers: range) -> None:
    now = datetime.now(UTC)
    events = [
        Event(
            new_id(now),
            "notification.created",
            now,
            f"user/backlog{number % BACKLOG_CHANNELS}",
            {"text": "Your booking was moved to another time."},
            Audience(users=(f"backlog{number % BACKLOG_CHANNELS}",)),
        )
        for number in numbers
    ]
    await database.write(lambda connection: append_to_outbox(connection, events, Origin("bench-backlog")))


async def _provider(base: str, port: int, email: str) -> Client:
    """A provider of the demo, online: its offers are part of every booking."""
    tokens = await post(base, "/auth/login", {"email": email, "password": demo.PASSWORD})
    client = await Client.open(port, tokens["access_token"])
    await client.call("presence.set", {"status": "online"})
    return client


async def _book(client: Client, booked: list[int]) -> None:
    clock = SystemClock()
    while True:
        params: JSON = {
            "service_id": "plumbing",
            "kind": "on_demand",
            "location": {"lat": 51.539, "lon": -0.1426},
            "key": new_id(clock.now()),
        }
        try:
            await client.call("booking.create", params)
        except WireError as error:
            # Saturated, a command may meet its deadline; whatever else is refused ends the run.
            if str(error) != "unavailable":
                raise
            continue
        booked[0] += 1


async def _sequence(database: Database) -> int:
    query = select(func.coalesce(func.sum(log_cursors.c.sequence), 0))
    return await database.read(lambda connection: _scalar(connection, query))


async def _waiting(database: Database) -> int:
    query = select(func.count()).select_from(outbox)
    return await database.read(lambda connection: _scalar(connection, query))


async def _scalar(connection: AsyncConnection, query: Select[Any]) -> int:
    return int((await connection.execute(query)).scalar_one())


async def _until_drained(database: Database) -> None:
    """What was committed must be sequenced soon, or the sequencer does not keep up.

    Raises:
        RuntimeError: it is not.
    """
    deadline = time.monotonic() + DRAINED_SECONDS
    while await _waiting(database):
        if time.monotonic() > deadline:
            raise RuntimeError("the sequencer did not keep up with the bookings")
        await asyncio.sleep(0.1)
