"""Whatever the broker does to entries: every live subscriber sees each offset once, in order, without gaps."""

from __future__ import annotations

import asyncio
import random

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.limits import Limits
from channels.subscriptions import Resume
from domain.errors import Unavailable
from domain.log import Entry
from tests.channels.fakes import FakeSubscriber, House, customer, until

CHANNELS = ["booking:1", "booking:2"]


async def scenario(
    seed: int, steps: int, loss: float, repeat: float, delay: float, waiting: int, catching: int
) -> None:
    rng = random.Random(seed)
    house = House(Limits(waiting_entries=waiting, catching_up_entries=catching, replay_entries=10_000))
    await house.realtime.start()
    hub, log = house.realtime.hub, house.log
    subscriptions = house.realtime._subscriptions
    for channel in CHANNELS:
        house.access.let(channel, "ada")
    under_way: list[Entry] = []
    subscribers: list[tuple[FakeSubscriber, str, int, list[int]]] = []
    opening: list[asyncio.Task[None]] = []

    def disturb(entry: Entry) -> None:
        if rng.random() < loss:
            return
        under_way.append(entry)
        if rng.random() < repeat:
            under_way.append(entry)

    async def subscribe() -> None:
        channel = rng.choice(CHANNELS)
        resume = rng.choice([None, rng.randint(0, len(log.entries[channel]))])
        subscriber = FakeSubscriber(customer("ada"))
        wanted = {channel: None if resume is None else Resume("e1", resume)}
        try:
            opened = await subscriptions.open(subscriber, customer("ada"), wanted)
        except Unavailable:
            # A channel may outrun a subscription whose buffer is this small; then there is none, and nothing was sent.
            assert catching < 1000
            assert subscriber not in hub.subscribers(channel)
            assert not subscriber.writes
            return
        reply = opened.replies[channel]
        before = [event["offset"] for event in orjson.loads(orjson.dumps(reply["events"]))]
        assert reply["recovered"] is (resume is not None)
        assert reply["offset"] == (resume if resume is not None else reply["offset"]) + len(before)
        start = reply["offset"] - len(before)
        if opened.trailing:
            subscriber.write(opened.trailing)
        if "state" in reply:
            assert reply["state"]["as_of"] >= reply["offset"]
        subscribers.append((subscriber, channel, start, before))

    for _ in range(steps):
        action = rng.random()
        if action < 0.35:
            disturb(log.append(rng.choice(CHANNELS)))
        elif action < 0.45 and len(subscribers) + len(opening) < 8:
            opening.append(asyncio.create_task(subscribe()))
        elif action < 0.65:
            if rng.random() < delay:
                rng.shuffle(under_way)
            some = under_way[: rng.randint(0, 4)]
            del under_way[: len(some)]
            hub.receive(some)
        elif action < 0.7:
            hub.follow(list(await log.tail({0: rng.randint(0, log.sequence)}, 50)))
        else:
            await asyncio.sleep(0)
    hub.receive(under_way)
    await asyncio.gather(*opening)
    hub.lost()

    def complete() -> bool:
        return all(
            [*before, *subscriber.offsets(channel)] == list(range(start + 1, len(log.entries[channel]) + 1))
            for subscriber, channel, start, before in subscribers
        )

    try:
        await until(complete, 2)
    except TimeoutError:
        for subscriber, channel, start, before in subscribers:
            expected = list(range(start + 1, len(log.entries[channel]) + 1))
            assert [*before, *subscriber.offsets(channel)] == expected, channel
    finally:
        await house.realtime.stop()


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    steps=st.integers(20, 200),
    loss=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    repeat=st.sampled_from([0.0, 0.5]),
    delay=st.sampled_from([0.0, 0.5]),
    waiting=st.sampled_from([0, 2, 1000]),
    catching=st.sampled_from([0, 2, 1000]),
)
def test_every_subscriber_sees_each_offset_once_in_order(
    seed: int, steps: int, loss: float, repeat: float, delay: float, waiting: int, catching: int
) -> None:
    asyncio.run(scenario(seed, steps, loss, repeat, delay, waiting, catching))
