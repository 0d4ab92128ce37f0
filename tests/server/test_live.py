from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import orjson
import pytest

from domain.commands import Desk
from domain.context import Context
from domain.errors import Unavailable
from domain.events import EventClass
from domain.identity import Actor, Membership, MembershipRole, Role
from domain.log import Entry, EventLog, Head
from domain.types import Origin
from server.clock import SystemClock
from server.live import ProviderConnections, SocketAcknowledgements


class Diary(ProviderConnections):
    """Writes down what the domain is told, and takes its time over it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.running: set[str] = set()
        self.failures: list[Exception] = []
        self.slow = False
        super().__init__(cast(Desk, self), "node", SystemClock())

    async def run_as_system(self, step: Callable[[Any], Awaitable[None]], _origin: Origin) -> None:
        await step(None)

    def _opened(self, provider_id: str) -> Any:
        return self._note(provider_id, "opened")

    def _closed(self, provider_id: str) -> Any:
        return self._note(provider_id, "closed")

    def _note(self, provider_id: str, what: str) -> Callable[[Context], Awaitable[None]]:
        async def step(_: Context) -> None:
            assert provider_id not in self.running, "two at once"
            self.running.add(provider_id)
            try:
                for _step in range(random.randrange(4) if self.slow else 1):
                    await asyncio.sleep(0)
                if self.failures:
                    raise self.failures.pop(0)
                self.told.append((provider_id, what))
            finally:
                self.running.discard(provider_id)

        return step

    def of(self, provider_id: str) -> list[str]:
        return [what for each, what in self.told if each == provider_id]


def person(*provider_ids: str) -> Actor:
    memberships = tuple(Membership(f"org-{each}", each, MembershipRole.OWNER) for each in provider_ids)
    return Actor("u", "U", frozenset({Role.PROVIDER}), memberships, "s")


async def test_only_the_first_socket_and_the_last_are_told() -> None:
    diary, someone = Diary(), person("p")
    for _ in range(3):
        await diary.opened(someone)
    await diary.closed(someone)
    await diary.closed(someone)
    assert diary.of("p") == ["opened"]
    await diary.closed(someone)
    assert diary.of("p") == ["opened", "closed"]


async def test_each_provider_of_a_person_is_counted_by_itself() -> None:
    diary = Diary()
    await diary.opened(person("a", "b"))
    await diary.opened(person("b"))
    await diary.closed(person("a", "b"))
    assert (diary.of("a"), diary.of("b")) == (["opened", "closed"], ["opened"])


async def test_customers_are_not_counted() -> None:
    diary = Diary()
    await diary.opened(person())
    await diary.closed(person())
    assert diary.told == []


@pytest.mark.parametrize("seed", range(20))
async def test_quick_reconnects_are_told_one_after_the_other_and_end_as_they_stand(seed: int) -> None:
    random.seed(seed)
    diary, someone = Diary(), person("p", "q")
    diary.slow = True
    sockets = 0
    running: list[asyncio.Task[None]] = []
    for _ in range(200):
        if sockets and random.random() < 0.55:
            sockets -= 1
            running.append(asyncio.create_task(diary.closed(someone)))
        else:
            sockets += 1
            running.append(asyncio.create_task(diary.opened(someone)))
        for _step in range(random.randrange(4)):
            await asyncio.sleep(0)
    await asyncio.gather(*running)
    for provider_id in ("p", "q"):
        told = diary.of(provider_id)
        assert all(each != following for each, following in itertools.pairwise(told)), "told twice"
        assert told[-1] == ("opened" if sockets else "closed")
    for _ in range(sockets):
        await diary.closed(someone)
    assert diary.of("p")[-1] == "closed"
    assert diary._watched == {}, "what is over is forgotten"


async def test_what_could_not_be_told_is_told_later() -> None:
    diary, someone = Diary(), person("p", "q")
    diary.failures = [Unavailable()]
    with pytest.raises(Unavailable):
        await diary.opened(someone)
    await diary.catch_up()
    assert (diary.of("p"), diary.of("q")) == (["opened"], ["opened"])
    diary.failures = [Unavailable()]
    with pytest.raises(Unavailable):
        await diary.closed(someone)
    await diary.catch_up()
    await diary.catch_up()
    assert (diary.of("p"), diary.of("q")) == (["opened", "closed"], ["opened", "closed"])


async def test_a_provider_whose_opening_was_not_told_counts_right_afterwards() -> None:
    diary, someone = Diary(), person("p", "q")
    diary.failures = [Unavailable()]
    with pytest.raises(Unavailable):
        await diary.opened(someone)
    await diary.closed(someone)
    await diary.opened(someone)
    assert (diary.of("p"), diary.of("q")) == (["opened"], ["opened"])


# --- acknowledged offers ----------------------------------------------------------------------------------------------


class Channel:
    """A log of one channel, and the offers that were marked as delivered."""

    def __init__(self, types: Sequence[str]) -> None:
        self.entries = [
            Entry("provider:p", place, place, EventClass.DURABLE, None, frame(type_, f"offer-{place}"))
            for place, type_ in enumerate(types, start=1)
        ]
        self.marked: list[str] = []

    async def run_as_system(self, step: Callable[[Any], Awaitable[None]], _origin: Origin) -> None:
        await step(self)

    @property
    def uow(self) -> Channel:
        return self

    @property
    def offers(self) -> Channel:
        return self

    now = None

    async def delivered(self, offer_ids: Sequence[str], _now: object) -> None:
        self.marked += offer_ids

    async def heads(self, channels: Any) -> dict[str, Head]:
        return {channel: Head("e", len(self.entries)) for channel in channels}

    async def read(self, channel: str, after: int, limit: int) -> Sequence[Entry]:
        assert 0 <= after < 2**63
        assert 0 < limit <= SocketAcknowledgements.LOOK_BACK
        return self.entries[after : after + limit]


def frame(type_: str, offer_id: str) -> bytes:
    params = {"type": type_, "data": {"offer_id": offer_id}}
    return b'{"jsonrpc":"2.0","method":"event","params":' + orjson.dumps(params) + b"}"


def acknowledgements(log: Channel) -> SocketAcknowledgements:
    return SocketAcknowledgements(cast(Desk, log), cast(EventLog, log), SystemClock())


async def test_an_offer_is_delivered_once_it_is_acked() -> None:
    log = Channel(["offer.made", "availability.changed", "offer.made", "offer.made"])
    acks = acknowledgements(log)
    await acks.acked(person("p"), "provider:p", 3)
    assert log.marked == ["offer-1", "offer-3"]
    await acks.acked(person("p"), "provider:p", 3)
    await acks.acked(person("p"), "provider:p", 2)
    assert log.marked == ["offer-1", "offer-3"]
    await acks.acked(person("p"), "provider:p", 4)
    assert log.marked == ["offer-1", "offer-3", "offer-4"]


@pytest.mark.parametrize("offset", [5, 10**9, 2**63, 2**64 - 1])
async def test_an_ack_of_what_is_not_there_yet_spoils_nothing(offset: int) -> None:
    log = Channel(["offer.made"])
    acks = acknowledgements(log)
    await acks.acked(person("p"), "provider:p", offset)
    assert log.marked == ["offer-1"]
    log.entries += Channel(["offer.made"] * 2).entries[1:]
    await acks.acked(person("p"), "provider:p", 2)
    assert log.marked == ["offer-1", "offer-2"]


async def test_of_a_long_channel_only_the_newest_are_looked_at() -> None:
    log = Channel(["offer.made"] * 1000)
    acks = acknowledgements(log)
    await acks.acked(person("p"), "provider:p", 500)
    assert log.marked == [f"offer-{place}" for place in range(401, 501)]
    await acks.acked(person("p"), "provider:p", 1000)
    assert log.marked[-100:] == [f"offer-{place}" for place in range(901, 1001)]


async def test_somebody_elses_offers_are_not_acked() -> None:
    log = Channel(["offer.made"])
    acks = acknowledgements(log)
    await acks.acked(person("q"), "provider:p", 1)
    await acks.acked(person("p"), "user:p", 1)
    assert log.marked == []
