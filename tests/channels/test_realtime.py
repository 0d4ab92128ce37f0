from __future__ import annotations

import asyncio

import orjson

from channels.limits import Limits
from domain.types import JSON
from tests.channels.fakes import FakeTransport, House, until


def connecting(params: JSON) -> str:
    return orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "session.connect", "params": params}).decode()


async def opened(house: House, count: int) -> list[FakeTransport]:
    transports = [FakeTransport() for _ in range(count)]
    for place, transport in enumerate(transports):
        session = house.realtime.open(transport)
        session.received(connecting({"token": f"customer:u{place}"}))
    await until(lambda: all(transport.messages for transport in transports))
    return transports


async def test_draining_tells_everybody_at_once_and_closes_them_one_by_one() -> None:
    house = House()
    await house.realtime.start()
    transports = await opened(house, 10)
    began = asyncio.get_running_loop().time()
    draining = asyncio.create_task(house.realtime.drain(0.5, 2))
    await until(lambda: all(len(transport.messages) == 2 for transport in transports), 0.2)
    assert house.realtime.draining
    delays = sorted(transport.messages[1]["params"]["reconnect_after_ms"] for transport in transports)
    assert delays == [50 * n for n in range(1, 11)]
    closed_at: dict[int, float] = {}
    while len(closed_at) < 10:
        await asyncio.sleep(0.005)
        for transport in transports:
            told = transport.messages[1]["params"]["reconnect_after_ms"]
            if transport.closed_with is not None and told not in closed_at:
                assert transport.closed_with == 4000
                closed_at[told] = asyncio.get_running_loop().time() - began
    for told, took in closed_at.items():
        assert told / 1000 - 0.001 <= took <= told / 1000 + 0.3
    await draining
    assert house.realtime.sockets == 0
    await house.realtime.stop()


async def test_a_running_command_is_answered_before_the_close() -> None:
    house = House()
    await house.realtime.start()
    transport = FakeTransport()
    session = house.realtime.open(transport)
    session.received(connecting({"token": "customer:ada"}))
    session.received('{"jsonrpc":"2.0","id":2,"method":"test.wait"}')
    await house.desk.started.wait()
    draining = asyncio.create_task(house.realtime.drain(0, 5))
    await asyncio.sleep(0.1)
    assert transport.messages[-1]["method"] == "drain", "told, and not yet closed"
    assert house.realtime.sockets == 1
    house.desk.gate.set()
    await draining
    assert transport.closed_with == 4000
    assert transport.reply(2)["result"] == {}
    await house.realtime.stop()


async def test_draining_ends_at_its_deadline_whatever_runs() -> None:
    house = House(Limits(command_seconds=60))
    await house.realtime.start()
    transport = FakeTransport()
    session = house.realtime.open(transport)
    session.received(connecting({"token": "customer:ada"}))
    session.received('{"jsonrpc":"2.0","id":2,"method":"test.wait"}')
    await house.desk.started.wait()
    await asyncio.wait_for(house.realtime.drain(0, 0.2), 1)
    assert transport.closed_with == 4000
    await asyncio.wait_for(house.realtime.stop(timeout_seconds=0.1), 1)
    assert house.realtime._node.tasks == set()


async def test_draining_an_empty_house_is_quick() -> None:
    house = House()
    await house.realtime.start()
    await asyncio.wait_for(house.realtime.drain(30, 60), 1)
    await house.realtime.stop()


async def test_sockets_that_come_back_at_once_share_queries() -> None:
    house = House()
    await house.realtime.start()
    for _ in range(3):
        house.log.append("admin:bookings")
    transports = [FakeTransport() for _ in range(300)]
    for place, transport in enumerate(transports):
        session = house.realtime.open(transport)
        resume = {"admin:bookings": {"epoch": "e1", "offset": place % 3}}
        session.received(connecting({"token": f"operations:u{place}", "resume": resume}))
    await until(lambda: all(transport.messages for transport in transports))
    for place, transport in enumerate(transports):
        channel = transport.messages[0]["result"]["channels"]["admin:bookings"]
        assert [event["offset"] for event in channel["events"]] == list(range(place % 3 + 1, 4))
    assert house.log.head_reads + house.log.reads < 20
    await house.realtime.stop()
