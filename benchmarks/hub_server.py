"""The product's live side in a process of its own: real protocol class, sessions, hub and broker; nothing behind them.

The ports to the database answer from memory, because a fan-out does not touch the database: tokens are names, everybody
may hear every channel, and the log remembers heads. Commands are those of :mod:`benchmarks.yardsticks.control`, which
also starts it. Arguments: the URL of a Redis to hear events through, without which the broker is in process, and
``--deflate``, with which offers of permessage-deflate are taken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import string
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette

from benchmarks.yardsticks.control import obey
from channels.broker import Broker, InProcessBroker
from channels.broker_redis import RedisBroker
from channels.limits import Limits
from channels.ports import SignedIn
from channels.protocol import CloseCode, encode_data, encode_event
from channels.realtime import Ports, Realtime
from channels.redis_address import RedisAddress
from channels.redis_client import RedisClient
from channels.topics import Facts, Topic
from domain.catalogue import COMMANDS
from domain.errors import UnknownMethod
from domain.events import Event, EventClass
from domain.identity import Actor, Role
from domain.log import Entry, Head
from domain.types import JSON, Origin, new_id
from server import fanout
from server.clock import SystemClock
from server.door import Door, DoorPolicy
from server.live import LiveMetrics
from server.serving import settle_garbage
from server.telemetry import Metrics
from server.uvicorn_protocol import DrainingServer, server_options
from server.websocket import SocketEndpoint, WithSocket

NAMESPACE = "bench"

CHANNEL = "availability:plumbing:camden"
"""A channel that everybody may hear."""

LIMITS = Limits(heartbeat_seconds=3600.0, max_buffered_bytes=1024 * 1024)
"""Nobody answers pings while bytes are counted."""


class Heads:
    """A log of which only the heads are kept."""

    def __init__(self) -> None:
        self.offsets: dict[str, int] = {}
        self.sequence = 0

    def entry(self, channel: str, data: JSON) -> Entry:
        """The next event on a channel, encoded as the sequencer does."""
        self.offsets[channel] = self.offsets.get(channel, 0) + 1
        self.sequence += 1
        now = datetime.now(UTC)
        event = Event(new_id(now), "slot.opened", now, "slot/camden", data)
        offset = self.offsets[channel]
        frame = encode_event(event, channel, offset, Origin("bench"), encode_data(data))
        return Entry(channel, offset, self.sequence, EventClass.DURABLE, None, frame)

    async def heads(self, channels: Collection[str]) -> Mapping[str, Head]:
        return {name: Head("bench", offset, offset) for name in channels for offset in (self.offsets.get(name, 0),)}

    async def read(self, channel: str, after: int, limit: int) -> Sequence[Entry]:
        return ()

    async def read_many(self, after: Mapping[str, int], limit: int) -> Mapping[str, Sequence[Entry]]:
        return {}

    async def tail(self, after: Mapping[int, int], limit: int) -> Sequence[Entry]:
        return ()

    async def cursor(self) -> Mapping[int, int]:
        return {0: self.sequence}


def data_of(channel: str, size: int) -> JSON:
    """Data that makes a frame of ``size`` bytes at an offset of three digits.

    Raises:
        ValueError: the rest of an event takes more than that.
    """
    heads = Heads()
    heads.offsets[channel] = 99
    room = size - len(heads.entry(channel, {"text": ""}).frame)
    if room < 0:
        raise ValueError(f"an event on {channel} takes {size - room} bytes")
    # As ids are: nothing that deflates to nearly nothing.
    return {"text": "".join(random.Random(room).choices(string.ascii_uppercase + string.digits, k=room))}


class Everybody:
    """The other ports: whoever comes is let in, and nothing is known of anything."""

    async def authenticate(self, token: str) -> SignedIn:
        actor = Actor(token, token, frozenset({Role.CUSTOMER}), (), f"sign-in-{token}")
        return SignedIn(actor, datetime.now(UTC) + timedelta(days=1))

    async def execute(self, method: str, params: JSON, actor: Actor, origin: Origin, key: str | None = None) -> JSON:
        raise UnknownMethod

    async def facts(self, topics: Collection[Topic]) -> Mapping[Topic, Facts]:
        return {topic: Facts(exists=True) for topic in topics}

    async def state(self, actor: Actor, topic: Topic) -> JSON | None:
        return None

    async def opened(self, actor: Actor) -> None: ...

    async def closed(self, actor: Actor) -> None: ...

    async def acked(self, actor: Actor, channel: str, offset: int) -> None: ...


class Bench:
    """The commands."""

    def __init__(self, realtime: Realtime, broker: Broker, heads: Heads) -> None:
        self._realtime = realtime
        self._broker = broker
        self._heads = heads

    async def publish(self, turns: int, burst: int, size: int, channel: str = CHANNEL) -> JSON:
        data = data_of(channel, size)
        started = time.monotonic()
        for _ in range(turns):
            for _ in range(burst):
                await self._broker.publish([self._heads.entry(channel, data)])
            await asyncio.sleep(0)
        return {"started": started}

    async def pace(self, events: int, per_second: float, size: int, channel: str = CHANNEL) -> JSON:
        """One event at a time at a steady rate; ``published`` holds the moment of each in monotonic ns."""
        data = data_of(channel, size)
        published: list[int] = []
        begin = time.monotonic()
        for number in range(events):
            await asyncio.sleep(max(0.0, begin + number / per_second - time.monotonic()))
            published.append(time.monotonic_ns())
            await self._broker.publish([self._heads.entry(channel, data)])
        return {"published": published}

    async def prefix(self) -> JSON:
        """What begins the name of every channel in Redis."""
        assert isinstance(self._broker, RedisBroker)
        return {"prefix": self._broker.client.name("channel", "").decode()}

    async def stats(self) -> JSON:
        """Open sockets, and whose of them are congested."""
        sessions = self._realtime.hub.roster.everybody()
        congested = [session.actor.user_id for session in sessions if session.congested and session.actor is not None]
        return {"sockets": self._realtime.sockets, "congested": congested}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("redis", nargs="?")
    parser.add_argument("--deflate", action="store_true")
    arguments = parser.parse_args()
    heads, everybody, clock = Heads(), Everybody(), SystemClock()
    client: RedisClient | None = None
    broker: Broker = InProcessBroker()
    if arguments.redis is not None:
        client = RedisClient(RedisAddress.parse(arguments.redis))
        broker = RedisBroker(client)
        await client.start(NAMESPACE)
        async with asyncio.timeout(10):
            while not client.connected:  # noqa: ASYNC110 — it tells changes, and this is a benchmark's start
                await asyncio.sleep(0.01)
    realtime = Realtime(
        Ports(heads, broker, everybody, everybody, everybody, everybody, everybody, everybody, clock),
        LIMITS,
        metrics=LiveMetrics(Metrics(methods=COMMANDS, close_codes=list(CloseCode)), clock),
        write_each=fanout.in_c(fanout.LIBRARY),
        deflate=arguments.deflate,
    )
    policy = DoorPolicy(max_sockets=100_000, max_sockets_per_address=100_000)
    app = WithSocket(Starlette(), SocketEndpoint(realtime, Door(policy, lambda: False)))
    await realtime.start()
    settle_garbage()
    options = server_options(deflate=arguments.deflate)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off", backlog=4096, **options)
    server = DrainingServer(config, lambda: realtime.drain(0.0, 1.0))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 — it has no event for it
        await asyncio.sleep(0.01)
    bench = Bench(realtime, broker, heads)
    handlers: dict[str, Any] = {
        "publish": bench.publish,
        "pace": bench.pace,
        "prefix": bench.prefix,
        "stats": bench.stats,
    }
    await obey(server.servers[0].sockets[0].getsockname()[1], handlers)
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


if __name__ == "__main__":
    uvloop.run(main())
