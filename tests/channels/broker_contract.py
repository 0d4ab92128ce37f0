"""What every broker must do. A test module of a broker subclasses :class:`BrokerContract` and gives it the fixture."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from channels.broker import Broker
from domain.events import EventClass
from domain.log import Entry
from tests.channels.fakes import until


def entry(channel: str, offset: int | None = 1, frame: bytes = b'{"x":"\xc3\xa9"}', key: str | None = None) -> Entry:
    event_class = EventClass.EPHEMERAL if offset is None else EventClass.LATEST if key else EventClass.DURABLE
    return Entry(channel, offset, offset or 0, event_class, key, frame, partition=3)


@dataclass
class Heard:
    """A receiver that remembers."""

    entries: list[Entry] = field(default_factory=list)
    losses: int = 0

    def receive(self, entries: Sequence[Entry]) -> None:
        self.entries += entries

    def lost(self) -> None:
        self.losses += 1


@dataclass
class Pair:
    """Two brokers that hear each other; the same one twice where there is but one process."""

    near: Broker
    far: Broker
    heard: Heard


class BrokerContract:
    """``pair.far`` publishes, ``pair.near`` listens for ``pair.heard``."""

    async def test_entries_arrive_unaltered_and_in_order(self, pair: Pair) -> None:
        await pair.near.subscribe(["booking:1"])
        sent = [entry("booking:1", n, b"frame %d" % n, key="k" if n % 2 else None) for n in range(1, 50)]
        await pair.far.publish(sent[:10])
        await pair.far.publish(sent[10:])
        await until(lambda: len(pair.heard.entries) >= len(sent))
        assert pair.heard.entries == sent

    async def test_ephemeral_entries_arrive_too(self, pair: Pair) -> None:
        await pair.near.subscribe(["booking:1"])
        await pair.far.publish([entry("booking:1", None)])
        await until(lambda: bool(pair.heard.entries))
        assert pair.heard.entries == [entry("booking:1", None)]

    async def test_one_hears_what_one_publishes_oneself(self, pair: Pair) -> None:
        await pair.near.subscribe(["booking:1"])
        await pair.near.publish([entry("booking:1")])
        await until(lambda: bool(pair.heard.entries))

    async def test_channels_nobody_listens_to_are_not_delivered(self, pair: Pair) -> None:
        await pair.near.subscribe(["booking:1", "booking:2"])
        await pair.near.unsubscribe(["booking:2", "never:heard"])
        await pair.far.publish([entry("booking:2"), entry("booking:3"), entry("booking:1")])
        await until(lambda: bool(pair.heard.entries))
        assert [each.channel for each in pair.heard.entries] == ["booking:1"]

    async def test_subscribing_twice_delivers_once(self, pair: Pair) -> None:
        await pair.near.subscribe(["booking:1"])
        await pair.near.subscribe(["booking:1"])
        await pair.far.publish([entry("booking:1", 1), entry("booking:1", 2)])
        await until(lambda: len(pair.heard.entries) >= 2)
        assert [each.offset for each in pair.heard.entries] == [1, 2]

    async def test_subscribed_means_the_next_entry_is_heard(self, pair: Pair) -> None:
        for n in range(20):
            await pair.near.subscribe([f"booking:{n}"])
            await pair.far.publish([entry(f"booking:{n}")])
        await until(lambda: len(pair.heard.entries) == 20)

    async def test_publishing_nothing_is_fine(self, pair: Pair) -> None:
        await pair.far.publish([])
        await asyncio.sleep(0)
        assert pair.heard.entries == []
