from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from channels.broker import InProcessBroker
from channels.ephemeral import Announcer
from channels.limits import Limits
from channels.protocol import read_event
from domain.events import Audience, Event, EventClass
from domain.log import Entry
from domain.types import JSON, Origin, new_id
from tests.channels.broker_contract import Heard
from tests.channels.fakes import START, FixedClock, until

ORIGIN = Origin("c1")


def typing(event_type: str, user_id: str = "ada", conversation_id: str = "c") -> Event:
    data = {"conversation_id": conversation_id, "user_id": user_id, "name": user_id.title()}
    audience = Audience(conversation=conversation_id)
    return Event(
        new_id(START), event_type, START, f"conversation/{conversation_id}", data, audience, EventClass.EPHEMERAL
    )


class Bench:
    def __init__(self, limits: Limits) -> None:
        self.broker = InProcessBroker()
        self.heard = Heard()
        self.broker.attach(self.heard)
        self.announcer = Announcer(self.broker, FixedClock(), limits)

    @property
    def events(self) -> list[JSON]:
        return [read_event(entry.frame) for entry in self.heard.entries]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(Limits(typing_seconds=0.05, typers=3, announcements=4))
    await bench.broker.subscribe([f"conversation:{name}" for name in "cdefg"])
    await bench.announcer.start()
    yield bench
    await bench.announcer.stop()


async def test_an_announced_event_has_no_offset_and_goes_where_topics_says(bench: Bench) -> None:
    bench.announcer.announce([typing("typing.started")], ORIGIN)
    await until(lambda: bool(bench.heard.entries))
    entry = bench.heard.entries[0]
    assert (entry.channel, entry.offset, entry.sequence) == ("conversation:c", None, 0)
    assert entry.event_class is EventClass.EPHEMERAL
    assert "offset" not in bench.events[0]
    assert bench.events[0]["correlationid"] == "c1"


async def test_typing_stops_by_itself(bench: Bench) -> None:
    bench.announcer.announce([typing("typing.started")], ORIGIN)
    await until(lambda: bench.types == ["typing.started", "typing.stopped"])
    started, stopped = bench.events
    assert stopped["data"] == started["data"]
    assert stopped["id"] != started["id"]


async def test_renewing_keeps_one_typing(bench: Bench) -> None:
    for _ in range(4):
        bench.announcer.announce([typing("typing.started")], ORIGIN)
        await asyncio.sleep(0.02)
    assert "typing.stopped" not in bench.types
    await until(lambda: bench.types.count("typing.stopped") == 1)


async def test_stopping_is_not_said_twice(bench: Bench) -> None:
    bench.announcer.announce([typing("typing.started")], ORIGIN)
    bench.announcer.announce([typing("typing.stopped")], ORIGIN)
    bench.announcer.announce([typing("typing.started", "zoe")], ORIGIN)
    await until(lambda: any(event["data"]["user_id"] == "zoe" for event in bench.events if "stopped" in event["type"]))
    assert [event["type"] for event in bench.events if event["data"]["user_id"] == "ada"] == [
        "typing.started",
        "typing.stopped",
    ]


async def test_the_number_of_typers_is_bounded(bench: Bench) -> None:
    for name in "abcd":
        bench.announcer.announce([typing("typing.started", name)], ORIGIN)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(bench.announcer._typing._typers) == 3
    await until(lambda: "typing.stopped" in bench.types)
    first = next(event for event in bench.events if event["type"] == "typing.stopped")
    assert first["data"]["user_id"] == "a"


async def test_a_stuck_broker_makes_nobody_wait_and_the_oldest_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Limits(announcements=4))
    gate, batches = asyncio.Event(), []

    async def stuck(entries: Sequence[Entry]) -> None:
        batches.append([read_event(entry.frame)["data"]["user_id"] for entry in entries])
        await gate.wait()

    monkeypatch.setattr(bench.broker, "publish", stuck)
    await bench.announcer.start()
    bench.announcer.announce([typing("typing.stopped", "first")], ORIGIN)
    await until(lambda: len(batches) == 1)
    for n in range(10):
        bench.announcer.announce([typing("typing.stopped", f"u{n}")], ORIGIN)
    gate.set()
    await until(lambda: len(batches) == 2)
    assert batches[1] == ["u6", "u7", "u8", "u9"]
    await bench.announcer.stop()


async def test_a_failing_broker_is_survived(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(entries: Sequence[Entry]) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(bench.broker, "publish", fail)
        bench.announcer.announce([typing("typing.stopped")], ORIGIN)
        await until(lambda: "were lost" in caplog.text)
    bench.announcer.announce([typing("typing.stopped")], ORIGIN)
    await until(lambda: bool(bench.heard.entries))


async def test_an_event_no_channel_carries_is_a_defect_of_the_caller(bench: Bench) -> None:
    with pytest.raises(ValueError, match="no channel carries"):
        bench.announcer.announce([Event(new_id(START), "weather.changed", START, "sky/1", {})], ORIGIN)
