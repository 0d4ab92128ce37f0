"""Nodes of one process each with their own hub, Redis connection and sequencer, on one event log, and a checker."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from channels import topics
from channels.broker_redis import RedisBroker
from channels.failover import Follower
from channels.hub import Hub
from channels.limits import Limits
from channels.protocol import encode_event, read_event
from channels.redis_address import RedisAddress
from channels.redis_client import RedisClient
from domain.events import Audience, Event
from domain.types import Origin, new_id
from persistence.database import Database
from persistence.log import SqlEventLog
from persistence.sequencer import Sequencer
from persistence.unit_of_work import Transactions, UnitOfWork
from tests.channels.fakes import FakeSubscriber, parse_frames, until


class Watcher(FakeSubscriber):
    """A subscriber that notes what it saw and how long after its commit."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets_seen: dict[str, list[int]] = defaultdict(list)
        self.delays: list[float] = []
        self.write = self._note

    def _note(self, data: bytes) -> None:
        now = time.monotonic()
        for payload in parse_frames(data):
            event = read_event(payload)
            self.offsets_seen[event["channel"]].append(event["offset"])
            self.delays.append(now - event["data"]["committed_at"])


@dataclass
class LiveNode:
    """One node. Every watcher hears every channel of the test."""

    node_id: str
    hub: Hub
    client: RedisClient
    follower: Follower
    sequencer: Sequencer
    watcher: Watcher = field(default_factory=Watcher)

    async def watch(self, channels: Collection[str]) -> None:
        await self.hub.join(channels, self.watcher)
        heads = await self.hub.heads.get(channels)
        for channel in channels:
            self.hub.anchor(channel, heads[channel])
            self.hub.go_live(channel, self.watcher, heads[channel].offset)


class WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class Market:
    """Several nodes, and somebody who commits."""

    def __init__(self, database: Database, nodes: Sequence[LiveNode]) -> None:
        self.nodes = nodes
        self.committed = 0
        self._database = database
        self._transactions = Transactions(database, WallClock(), UnitOfWork, self._nudge)

    def _nudge(self) -> None:
        for node in self.nodes:
            node.sequencer.nudge()

    @property
    def leader(self) -> LiveNode:
        return next(node for node in self.nodes if node.sequencer.leading)

    async def commit(self, booking: str) -> None:
        async def work(unit: UnitOfWork) -> None:
            now = datetime.now(UTC)
            unit.record(
                Event(
                    id=new_id(now),
                    type="booking.changed",
                    time=now,
                    source=f"booking/{booking}",
                    data={"committed_at": time.monotonic()},
                    audience=Audience(booking=booking),
                )
            )

        await self._transactions.write(work, Origin("load-test"))
        self.committed += 1

    async def load(self, seconds: float, bookings: Sequence[str], per_second: float = 60.0) -> None:
        """Commit at a steady rate."""
        loop = asyncio.get_running_loop()
        began, number = loop.time(), 0
        while loop.time() < began + seconds:
            await self.commit(bookings[number % len(bookings)])
            number += 1
            await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))

    async def everybody_has_everything(self, channels: Collection[str], within_seconds: float) -> str:
        """Wait until each watcher saw each durable event; then each exactly once and in order. Returns the figures."""
        log = SqlEventLog(self._database)

        async def heads() -> dict[str, int]:
            return {name: head.offset for name, head in (await log.heads(channels)).items()}

        deadline = time.monotonic() + within_seconds
        expected = await heads()
        while any(len(node.watcher.offsets_seen[c]) < expected[c] for node in self.nodes for c in channels):
            assert time.monotonic() < deadline, self.figures(expected)
            await asyncio.sleep(0.02)
            expected = await heads()
        for node in self.nodes:
            for channel in channels:
                assert node.watcher.offsets_seen[channel] == list(range(1, expected[channel] + 1))
        return self.figures(expected)

    def figures(self, expected: dict[str, int]) -> str:
        total = sum(expected.values())
        parts = [
            f"{node.node_id}: saw {sum(map(len, node.watcher.offsets_seen.values()))} of {total}, "
            f"longest delay {max(node.watcher.delays, default=0):.2f} s, state {node.follower.state.value}, "
            f"{node.follower.counts}, {node.client.counts}"
            for node in self.nodes
        ]
        return f"{self.committed} commits; " + "; ".join(parts)

    def longest_delay(self) -> float:
        return max(max(node.watcher.delays) for node in self.nodes)


@asynccontextmanager
async def market(database: Database, redis_urls: Sequence[str], channels: Collection[str]) -> AsyncIterator[Market]:
    """A node for each URL, all watching the channels; ready for load when the block begins."""
    log = SqlEventLog(database)
    epoch = (await log.heads([topics.CONTROL]))[topics.CONTROL].epoch
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        nodes = [await _node(f"node-{n}", database, url, epoch) for n, url in enumerate(redis_urls)]
        for node in nodes:
            stack.push_async_callback(node.client.stop)
            stack.push_async_callback(node.hub.stop)
        tasks = [asyncio.create_task(run(stop)) for node in nodes for run in (node.sequencer.run, node.follower.run)]

        async def end() -> None:
            stop.set()
            await asyncio.wait(tasks, timeout=5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks)

        stack.push_async_callback(end)
        await until(lambda: any(node.sequencer.leading for node in nodes))
        for node in nodes:
            await node.watch(channels)
        yield Market(database, nodes)


async def _node(node_id: str, database: Database, url: str, epoch: str) -> LiveNode:
    log = SqlEventLog(database)
    client = RedisClient(RedisAddress.parse(url))
    broker = RedisBroker(client)
    hub = Hub(log, broker, Limits())
    sequencer = Sequencer(database, node_id, route=topics.route, encode=encode_event, publish=broker.publish)
    follower = Follower(node_id, hub, log, broker, lambda: {0} if sequencer.leading else ())
    await client.start(epoch)
    await until(lambda: client.connected)
    await hub.start()
    return LiveNode(node_id, hub, client, follower, sequencer)
