from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from channels.limits import Limits
from channels.ports import SignedIn
from channels.protocol import CloseCode
from domain.errors import Unavailable
from tests.channels.fakes import House, Seconds, until
from tests.channels.test_session import Client


class Door:
    """Holds up everybody who is being let in, and may send them away for now."""

    def __init__(self, house: House) -> None:
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.refuses = False
        self._authenticate = house.doorman.authenticate
        house.doorman.authenticate = self.authenticate  # type: ignore[method-assign]

    async def authenticate(self, token: str) -> SignedIn:
        self.asked.append(token)
        await self.open.wait()
        if self.refuses:
            raise Unavailable
        return await self._authenticate(token)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House(Limits(connects_at_once=2, line_seconds=0.2))
    await house.realtime.start()
    yield house
    await house.realtime.stop()


def arrive(house: House, name: str) -> Client:
    client = Client(house)
    client.send("session.connect", {"token": f"customer:{name}"}, 1)
    return client


def is_in(client: Client) -> bool:
    return client.session.actor is not None and not client.session.busy


async def test_so_many_are_let_in_at_once_in_the_order_of_their_coming(house: House) -> None:
    door = Door(house)
    names = ["ada", "ben", "cai", "dov", "eve"]
    clients = [arrive(house, name) for name in names]
    await until(lambda: len(door.asked) == 2)
    await asyncio.sleep(0.01)
    assert door.asked == ["customer:ada", "customer:ben"]
    door.open.set()
    await until(lambda: all(map(is_in, clients)))
    assert door.asked == [f"customer:{name}" for name in names]


async def test_one_who_left_the_line_costs_nothing(house: House) -> None:
    door = Door(house)
    first, second, gone, last = (arrive(house, name) for name in ("ada", "ben", "cai", "dov"))
    await until(lambda: len(door.asked) == 2)
    gone.session.lost()
    door.open.set()
    await until(lambda: all(map(is_in, (first, second, last))))
    assert door.asked == ["customer:ada", "customer:ben", "customer:dov"]


async def test_one_who_stood_in_line_too_long_is_told_to_come_back(house: House) -> None:
    door = Door(house)
    first, second, late = (arrive(house, name) for name in ("ada", "ben", "cai"))
    await until(lambda: late.closed_with is not None)
    assert late.closed_with == CloseCode.SERVER_ERROR
    assert late.transport.reply(1)["error"]["data"]["type"] == "unavailable"
    door.open.set()
    await until(lambda: is_in(first) and is_in(second))
    again = arrive(house, "cai")
    await until(lambda: is_in(again))


async def test_one_who_is_refused_gives_the_place_back(house: House) -> None:
    for _ in range(3):
        stranger = Client(house)
        stranger.send("session.connect", {"token": "nobody"}, 1)
        await until(lambda stranger=stranger: stranger.closed_with is not None)  # type: ignore[misc]
    client = arrive(house, "ada")
    await until(lambda: is_in(client))


async def test_time_in_line_is_not_held_against_one_who_has_to_try_again() -> None:
    seconds = Seconds()
    house = House(Limits(connects_at_once=1), monotonic=seconds)
    await house.realtime.hub.start()
    door = Door(house)
    first, second = (arrive(house, name) for name in ("ada", "ben"))
    await until(lambda: len(door.asked) == 1)
    seconds.now += 12
    door.refuses = True
    door.open.set()
    await until(lambda: not second.session.busy)
    assert second.transport.reply(1)["error"]["data"]["type"] == "unavailable"
    assert second.session.due(seconds.now) == pytest.approx(seconds.now + 10)
    assert first.session.due(seconds.now) is None, "who stood in no line was that slow itself"
    assert (first.closed_with, second.closed_with) == (CloseCode.NO_CONNECT, None)
    door.refuses = False
    second.send("session.connect", {"token": "customer:ben"}, 2)
    await until(lambda: is_in(second))
    await house.realtime.stop(timeout_seconds=0)
