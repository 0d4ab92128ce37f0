from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from channels.broker import InProcessBroker
from channels.broker_redis import RedisBroker
from channels.hub import Hub
from channels.limits import Limits
from channels.presence import NodePresence
from channels.presence_redis import RedisPresence
from channels.redis_client import RedisClient
from tests.channels.fakes import ModelLog, customer, until
from tests.channels.presence_contract import Places, PresenceContract, enter
from tests.channels.test_broker_redis import connected
from tests.services import RedisServer


class TestNodePresence(PresenceContract):
    @pytest.fixture
    async def places(self) -> AsyncIterator[Places]:
        hub = Hub(ModelLog(), InProcessBroker(), Limits())
        await hub.start()
        yield Places(NodePresence(hub), hub, hub)
        await hub.stop()


@dataclass
class Town:
    """Nodes that know of each other."""

    nodes: set[str] = field(default_factory=set)
    hubs: dict[str, Hub] = field(default_factory=dict)
    presences: dict[str, RedisPresence] = field(default_factory=dict)
    clients: dict[str, RedisClient] = field(default_factory=dict)


@asynccontextmanager
async def town(url: str, *node_ids: str) -> AsyncIterator[Town]:
    places = Town(set(node_ids))
    async with AsyncExitStack() as stack:
        for node_id in node_ids:
            client = await stack.enter_async_context(connected(url))
            broker = RedisBroker(client)
            hub = Hub(ModelLog(), broker, Limits())
            await hub.start()
            stack.push_async_callback(hub.stop)
            presence = RedisPresence(node_id, broker, lambda: places.nodes)
            await presence.start(NodePresence(hub))
            stack.push_async_callback(presence.stop)
            places.hubs[node_id], places.presences[node_id], places.clients[node_id] = hub, presence, client
        yield places


class TestRedisPresence(PresenceContract):
    @pytest.fixture
    async def places(self, topology_url: str) -> AsyncIterator[Places]:
        async with town(topology_url, "n1", "n2") as two:
            yield Places(two.presences["n1"], two.hubs["n1"], two.hubs["n2"])


async def test_a_dead_node_stands_in_until_its_heartbeats_have_run_out(redis_url: str) -> None:
    async with town(redis_url, "n1", "n2") as two:
        await enter(two.hubs["n2"], "booking:1", customer("ada"))
        presence = two.presences["n1"]
        assert len(await presence.members("booking:1")) == 1
        await two.clients["n2"].stop()
        assert len(await presence.members("booking:1")) == 1
        two.nodes.discard("n2")
        assert len(await presence.members("booking:1")) == 0


async def test_with_redis_away_one_sees_ones_own_people_at_once() -> None:
    with RedisServer() as server:
        async with town(server.url, "n1", "n2") as two:
            await enter(two.hubs["n1"], "booking:1", customer("ada"))
            await enter(two.hubs["n2"], "booking:1", customer("bea"))
            server.kill()
            await until(lambda: not two.clients["n1"].connected)
            async with asyncio.timeout(0.1):
                members = await two.presences["n1"].members("booking:1")
            assert [member.user_id for member in members] == ["ada"]


async def test_questions_of_the_same_moment_share_a_round(redis_url: str) -> None:
    async with town(redis_url, "n1", "n2") as two:
        await enter(two.hubs["n2"], "booking:7", customer("ada"))
        before = two.clients["n1"].counts.answered
        found = await asyncio.gather(*(two.presences["n1"].members(f"booking:{n % 20}") for n in range(100)))
        assert [len(members) for members in found] == [1 if n % 20 == 7 else 0 for n in range(100)]
        assert two.clients["n1"].counts.answered - before <= 2
