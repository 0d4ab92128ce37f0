from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import orjson
import pytest

from channels.broker import InProcessBroker
from channels.deflate import Deflater
from channels.hub import Hub
from channels.limits import Limits
from channels.ports import Metrics, NoMetrics, WriteEach, write_to_none
from channels.protocol import CloseCode, text_frame
from channels.topics import CONTROL
from domain.identity import Actor
from domain.log import Entry
from domain.types import JSON
from tests.channels.fakes import FakeSubscriber, ModelLog, customer, ephemeral, operations, provider, until

ROOM = "booking:1"
OTHER = "booking:2"


class Bench:
    """A hub on a model log, without any session."""

    def __init__(
        self,
        limits: Limits | None = None,
        write_each: WriteEach = write_to_none,
        metrics: Metrics | None = None,
        deflater: Deflater | None = None,
    ) -> None:
        self.log = ModelLog()
        self.broker = InProcessBroker()
        self.hub = Hub(self.log, self.broker, limits or Limits(), metrics, write_each, deflater)

    async def listen(self, *channels: str, actor: Actor | None = None, deflates: bool = False) -> FakeSubscriber:
        subscriber = FakeSubscriber(actor)
        subscriber.deflates = deflates
        for channel in channels:
            await self.hub.join([channel], subscriber)
            heads = await self.hub.heads.get([channel])
            self.hub.anchor(channel, heads[channel])
            self.hub.flush()
            self.hub.go_live(channel, subscriber, heads[channel].offset)
        return subscriber

    def revoke(self, event_type: str, **data: list[str]) -> Entry:
        return self.log.append(CONTROL, data, event_type)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.hub.start()
    yield bench
    await bench.hub.stop()


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_arrives_in_one_turn_leaves_in_one_write(bench: Bench) -> None:
    subscribers = [await bench.listen(ROOM) for _ in range(3)]
    for _ in range(10):
        await bench.broker.publish([bench.log.append(ROOM)])
    assert all(not subscriber.writes for subscriber in subscribers)
    await turn()
    for subscriber in subscribers:
        assert len(subscriber.writes) == 1
        assert subscriber.offsets(ROOM) == list(range(1, 11))
    assert subscribers[0].writes[0] is subscribers[1].writes[0], "joined once for all"


async def test_several_channels_of_a_turn_leave_in_one_write_in_order_of_arrival(bench: Bench) -> None:
    both, first, second = await bench.listen(ROOM, OTHER), await bench.listen(ROOM), await bench.listen(OTHER)
    order = [ROOM, OTHER, OTHER, ROOM, OTHER]
    await bench.broker.publish([bench.log.append(channel) for channel in order])
    await turn()
    assert len(both.writes) == 1
    assert [event["channel"] for event in both.events] == order
    assert first.offsets(ROOM) == [1, 2]
    assert second.offsets(OTHER) == [1, 2, 3]
    assert first.offsets(OTHER) == []


async def test_repeated_entries_are_dropped(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM)
    entries = [bench.log.append(ROOM) for _ in range(3)]
    bench.hub.receive(entries)
    bench.hub.receive(entries)
    bench.hub.follow(entries[1:])
    await turn()
    assert subscriber.offsets(ROOM) == [1, 2, 3]


async def test_a_gap_is_healed_from_the_log_in_order(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM)
    entries = [bench.log.append(ROOM) for _ in range(6)]
    bench.hub.receive([entries[0]])
    bench.hub.receive([entries[4]])
    bench.hub.receive([entries[5]])
    await turn()
    assert subscriber.offsets(ROOM)[:1] == [1]
    await until(lambda: len(subscriber.offsets(ROOM)) == 6)
    assert subscriber.offsets(ROOM) == [1, 2, 3, 4, 5, 6]
    assert bench.log.reads == 1


async def test_a_gap_that_closes_by_itself_needs_no_more(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM)
    entries = [bench.log.append(ROOM) for _ in range(3)]
    bench.hub.receive([entries[2], entries[0], entries[1]])
    await turn()
    assert subscriber.offsets(ROOM) == [1, 2, 3]


async def test_healing_outlives_an_unavailable_log(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM)
    entries = [bench.log.append(ROOM) for _ in range(3)]
    bench.log.failing = True
    bench.hub.receive([entries[2]])
    await asyncio.sleep(0.08)
    assert subscriber.offsets(ROOM) == []
    bench.log.failing = False
    await until(lambda: subscriber.offsets(ROOM) == [1, 2, 3])


async def test_more_than_may_wait_is_read_from_the_log() -> None:
    bench = Bench(Limits(waiting_entries=5))
    await bench.hub.start()
    subscriber = await bench.listen(ROOM)
    entries = [bench.log.append(ROOM) for _ in range(1200)]
    bench.hub.receive(entries[1:])
    await until(lambda: len(subscriber.offsets(ROOM)) == 1200)
    assert subscriber.offsets(ROOM) == list(range(1, 1201))
    await bench.hub.stop()


async def test_an_audit_finds_a_lost_tail(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM)
    for _ in range(3):
        bench.log.append(ROOM)
    await bench.hub.audit()
    await until(lambda: subscriber.offsets(ROOM) == [1, 2, 3])


async def test_a_loss_at_the_broker_leads_to_an_audit(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM)
    bench.log.append(ROOM)
    bench.hub.lost()
    await until(lambda: subscriber.offsets(ROOM) == [1])


async def test_rows_that_the_log_has_no_more_send_subscribers_to_reconnect(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM)
    entries = [bench.log.append(ROOM) for _ in range(5)]
    bench.log.floors[ROOM] = 4
    bench.hub.receive(entries[-1:])
    await until(lambda: subscriber.closed)
    assert subscriber.closed_with == CloseCode.SERVER_ERROR
    assert subscriber.offsets(ROOM) == []


async def test_a_new_epoch_sends_subscribers_to_reconnect(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM)
    bench.log.epochs[ROOM] = "e2"
    await bench.hub.audit()
    assert subscriber.closed_with == CloseCode.SERVER_ERROR


async def test_an_offset_beyond_the_log_does_not_block_the_channel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channels.healing.RETRY_SECONDS", (0.001,))
    subscriber = await bench.listen(ROOM)
    entry = bench.log.append(ROOM)
    forged = Entry(ROOM, 50, 50, entry.event_class, None, entry.frame)
    bench.hub.receive([forged])
    await until(lambda: bench.hub.offset(ROOM) == 1 and not bench.hub._gapped)
    bench.hub.receive([bench.log.append(ROOM)])
    await turn()
    assert subscriber.offsets(ROOM) == [1, 2]


async def test_ephemeral_entries_reach_live_subscribers_only(bench: Bench) -> None:
    live = await bench.listen(ROOM)
    catching = FakeSubscriber()
    await bench.hub.join([ROOM], catching)
    bench.hub.receive([ephemeral(ROOM), ephemeral(OTHER)])
    await turn()
    assert [event["type"] for event in live.events] == ["location.moved"]
    assert catching.writes == []


async def test_a_congested_subscriber_is_asked_and_others_are_not_delayed(bench: Bench) -> None:
    slow, quick = await bench.listen(ROOM), await bench.listen(ROOM)
    slow.congested = True
    bench.hub.receive([bench.log.append(ROOM), bench.log.append(ROOM)])
    await turn()
    assert [entry.offset for entry in slow.offered] == [1, 2]
    assert slow.writes == []
    assert quick.offsets(ROOM) == [1, 2]


async def test_what_a_descriptor_took_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def write_each(fds: Sequence[int], data: bytes) -> Mapping[int, int]:
        asked.append(list(fds))
        return {place: 3 if fd == 8 else 0 for place, fd in enumerate(fds) if fd != 7}

    monkeypatch.setattr("channels.hub.MANY_SUBSCRIBERS", 4)
    bench = Bench(write_each=write_each)
    await bench.hub.start()
    whole, part, none, slow = [await bench.listen(ROOM) for _ in range(4)]
    whole.fd, part.fd, slow.congested = 7, 8, True
    entry = bench.log.append(ROOM)
    bench.hub.receive([entry])
    await turn()
    frame = text_frame(entry.frame)
    assert [sorted(fds) for fds in asked] == [[-1, -1, 7, 8]]
    assert (whole.writes, part.writes, none.writes, slow.writes) == ([], [frame[3:]], [frame], [])
    assert slow.offered == [entry]
    await bench.hub.stop()


async def test_the_count_of_deliveries_survives_one_that_is_closed_by_them() -> None:
    """A subscriber alone on its channel that is too slow leaves it while it is offered to."""
    counted: list[int] = []

    class Counting(NoMetrics):
        def delivered(self, frames: int) -> None:
            counted.append(frames)

    bench = Bench(metrics=Counting())
    await bench.hub.start()
    slow = await bench.listen(ROOM)
    slow.congested = True
    slow.offer = lambda entries, frames: bench.hub.leave(slow, [ROOM])  # type: ignore[method-assign]
    bench.hub.receive([bench.log.append(ROOM), bench.log.append(ROOM)])
    await turn()
    assert bench.hub.subscribers(ROOM) == ()
    assert counted == [0]
    await bench.hub.stop()


async def test_who_has_a_part_gets_the_rest_before_anybody_is_offered_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(entries: Sequence[Entry], frames: Sequence[bytes]) -> None:
        raise RuntimeError("an offer went wrong")

    monkeypatch.setattr("channels.hub.MANY_SUBSCRIBERS", 4)
    bench = Bench(write_each=lambda fds, _data: dict.fromkeys(range(len(fds)), 3))
    await bench.hub.start()
    subscribers = [await bench.listen(ROOM) for _ in range(4)]
    subscribers[0].congested = True
    subscribers[0].offer = fail  # type: ignore[method-assign]
    entry = bench.log.append(ROOM)
    bench.hub.receive([entry])
    with pytest.raises(RuntimeError):
        bench.hub.flush()
    assert [each.writes for each in subscribers[1:]] == [[text_frame(entry.frame)[3:]]] * 3
    assert subscribers[0].closed_with == CloseCode.SERVER_ERROR, "it has lost an event, so it comes back for it"
    await bench.hub.stop()


async def test_one_who_cannot_be_offered_to_costs_nobody_else_an_event() -> None:
    """Whatever form or channels they have, and also when they are congested themselves."""

    def fail(entries: Sequence[Entry], frames: Sequence[bytes]) -> None:
        raise RuntimeError("an offer went wrong")

    bench = Bench(deflater=Deflater())
    await bench.hub.start()
    broken = [await bench.listen(ROOM, deflates=True), await bench.listen(ROOM, OTHER)]
    for each in broken:
        each.congested, each.offer = True, fail  # type: ignore[method-assign]
    slow = [await bench.listen(ROOM, deflates=True), await bench.listen(ROOM)]
    for each in slow:
        each.congested = True
    well = [await bench.listen(ROOM), await bench.listen(OTHER), await bench.listen(ROOM, OTHER)]
    entries = [bench.log.append(ROOM), bench.log.append(OTHER)]
    bench.hub.receive(entries)
    with pytest.raises(RuntimeError):
        bench.hub.flush()
    assert [len(each.events) for each in well] == [1, 1, 2]
    assert [each.offered for each in slow] == [entries[:1]] * 2
    assert [each.closed for each in broken] == [True, True]
    await bench.hub.stop()


async def test_an_event_is_deflated_once_whoever_hears_it_and_however_often() -> None:
    deflated: list[bytes] = []

    class Counting(Deflater):
        def _deflated(self, payload: bytes) -> bytes:
            deflated.append(payload)
            return super()._deflated(payload)

    bench = Bench(deflater=Counting())
    await bench.hub.start()
    both = [await bench.listen(ROOM, OTHER, deflates=True) for _ in range(10)]
    one = [await bench.listen(ROOM, deflates=True) for _ in range(10)]
    plain = [await bench.listen(ROOM) for _ in range(10)]
    entries = [bench.log.append(ROOM, {"text": "x" * 400}), bench.log.append(OTHER), bench.log.append(ROOM)]
    bench.hub.receive(entries)
    await turn()
    assert sorted(deflated) == sorted(entry.frame for entry in entries)
    frame = Deflater().frame
    for group, heard, form in ((both, entries, frame), (one, entries[::2], frame), (plain, entries[::2], text_frame)):
        for each in group:
            assert each.writes == [b"".join(form(entry.frame) for entry in heard)]
            assert each.writes[0] is group[0].writes[0], "joined once for all"
    # Nothing of it is kept.
    bench.hub.receive(entries[:0])
    assert bench.hub._deflater is not None
    assert not bench.hub._deflater._frames
    await bench.hub.stop()


async def test_nothing_is_deflated_for_those_who_cannot_read_it() -> None:
    class Failing(Deflater):
        def _deflated(self, payload: bytes) -> bytes:
            raise AssertionError("nobody asked for it")

    bench = Bench(deflater=Failing())
    await bench.hub.start()
    plain = [await bench.listen(ROOM) for _ in range(3)]
    bench.hub.receive([bench.log.append(ROOM)])
    await turn()
    assert [each.offsets(ROOM) for each in plain] == [[1]] * 3
    await bench.hub.stop()


async def test_a_sign_out_takes_effect_whatever_went_wrong_before_it(bench: Bench) -> None:
    def fail(entries: Sequence[Entry], frames: Sequence[bytes]) -> None:
        raise RuntimeError("an offer went wrong")

    broken = await bench.listen(ROOM)
    broken.congested, broken.offer = True, fail  # type: ignore[method-assign]
    ada = await bench.listen(OTHER, actor=customer("ada"))
    bench.hub.roster.enter(ada, customer("ada"))
    bench.hub.receive([bench.log.append(ROOM)])
    with pytest.raises(RuntimeError):
        bench.hub.receive([bench.revoke("session.revoked", session_ids=["sign-in-ada"], user_ids=[])])
    assert ada.closed


async def test_a_write_that_fails_does_not_reach_the_neighbours(bench: Bench) -> None:
    def fail(data: bytes) -> None:
        raise RuntimeError("handler is closed")

    subscribers = [await bench.listen(ROOM) for _ in range(5)]
    subscribers[2].write = fail
    bench.hub.receive([bench.log.append(ROOM)])
    await turn()
    assert [len(subscriber.writes) for subscriber in subscribers] == [1, 1, 0, 1, 1]


async def test_one_who_read_ahead_of_this_node_gets_nothing_twice(bench: Bench) -> None:
    behind, ahead = await bench.listen(ROOM), FakeSubscriber()
    entries = [bench.log.append(ROOM) for _ in range(4)]
    await bench.hub.join([ROOM], ahead)
    bench.hub.go_live(ROOM, ahead, 3)
    assert bench.hub.subscribers(ROOM) == [behind, ahead]
    bench.hub.receive(entries)
    await turn()
    assert behind.offsets(ROOM) == [1, 2, 3, 4]
    assert ahead.offsets(ROOM) == [4]


async def test_a_very_long_turn_is_written_in_parts(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM)
    bench.hub.receive([bench.log.append(ROOM) for _ in range(2500)])
    await turn()
    assert len(subscriber.writes) == 3
    assert subscriber.offsets(ROOM) == list(range(1, 2501))


async def test_the_broker_is_told_when_a_channel_is_left_and_not_when_it_is_rejoined(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channels.listening.LINGER_SECONDS", 0.01)
    first, second = await bench.listen(ROOM), await bench.listen(OTHER)
    bench.hub.part(ROOM, first)
    bench.hub.part(OTHER, second)
    again = await bench.listen(OTHER)
    await until(lambda: ROOM not in bench.broker._channels)
    assert OTHER in bench.broker._channels
    await bench.broker.publish([bench.log.append(OTHER)])
    await turn()
    assert again.offsets(OTHER) == [1]


# Control


async def test_revoked_access_ends_before_the_next_event(bench: Bench) -> None:
    removed = await bench.listen(ROOM, OTHER, actor=provider("bob", "p1"))
    stays = await bench.listen(ROOM, actor=provider("carl", "p2"))
    watcher = await bench.listen(ROOM, actor=operations())
    entries = [
        bench.log.append(ROOM),
        bench.revoke("access.revoked", channels=[ROOM], user_ids=[], provider_ids=["p1"]),
        bench.log.append(ROOM),
        bench.log.append(OTHER),
    ]
    await bench.broker.publish(entries)
    await turn()
    assert removed.offsets(ROOM) == [1]
    assert removed.offsets(OTHER) == [1]
    assert removed.taken_channels == [ROOM]
    assert stays.offsets(ROOM) == watcher.offsets(ROOM) == [1, 2]


async def test_operations_keep_a_channel_that_is_revoked_by_name(bench: Bench) -> None:
    watcher = await bench.listen(ROOM, actor=operations("eve"))
    await bench.broker.publish([bench.revoke("access.revoked", channels=[ROOM], user_ids=["eve"], provider_ids=[])])
    await bench.broker.publish([bench.log.append(ROOM)])
    await turn()
    assert watcher.offsets(ROOM) == [1]


async def test_a_revocation_reaches_a_subscription_on_its_way(bench: Bench) -> None:
    subscriber = FakeSubscriber(customer("ada"))
    catchups = await bench.hub.join([ROOM], subscriber)
    await bench.broker.publish([bench.revoke("access.revoked", channels=[ROOM], user_ids=["ada"])])
    assert catchups[ROOM].revoked


async def test_signing_out_closes_the_sessions_of_it(bench: Bench) -> None:
    actors = customer("ada", "s1"), customer("ada", "s2"), customer("bo")
    one, two, other = (FakeSubscriber(actor) for actor in actors)
    for subscriber in (one, two, other):
        assert subscriber.actor is not None
        bench.hub.roster.enter(subscriber, subscriber.actor)
    await bench.broker.publish([bench.revoke("session.revoked", session_ids=["s1"], user_ids=[])])
    assert (one.closed_with, two.closed_with, other.closed_with) == (CloseCode.REVOKED, None, None)
    await bench.broker.publish([bench.revoke("session.revoked", session_ids=[], user_ids=["ada"])])
    assert (two.closed_with, other.closed_with) == (CloseCode.REVOKED, None)


async def test_a_gap_in_control_holds_everything_back_until_it_is_healed(bench: Bench) -> None:
    removed = await bench.listen(ROOM, actor=customer("ada"))
    stays = await bench.listen(ROOM, actor=customer("bo"))
    bench.revoke("access.revoked", channels=[ROOM], user_ids=["ada"])
    next_control = bench.revoke("access.revoked", channels=[], user_ids=[])
    bench.hub.receive([next_control, bench.log.append(ROOM), ephemeral(ROOM)])
    await turn()
    await until(lambda: len(stays.events) == 2)
    assert removed.events == []
    assert [event.get("offset") for event in stays.events] == [1, None]


async def test_a_control_entry_nobody_can_read_stops_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    subscriber = await bench.listen(ROOM, actor=customer("ada"))
    broken = bench.log.append(CONTROL, {"channels": 7}, "access.revoked")
    await bench.broker.publish([broken, bench.revoke("access.revoked", channels=[ROOM], user_ids=["ada"])])
    await bench.broker.publish([bench.log.append(ROOM)])
    await turn()
    assert subscriber.offsets(ROOM) == []
    assert "a control entry failed" in caplog.text


async def test_listeners_hear_control_in_order(bench: Bench) -> None:
    heard: list[tuple[str, JSON]] = []
    bench.hub.listen(lambda event_type, data: heard.append((event_type, dict(data))))
    await bench.broker.publish(
        [bench.log.append(CONTROL, {"flag": "a"}, "flag.changed"), bench.revoke("session.revoked", user_ids=["ada"])]
    )
    assert heard == [("flag.changed", {"flag": "a"}), ("session.revoked", {"user_ids": ["ada"]})]


async def test_control_whose_past_is_gone_closes_every_session_and_goes_on(bench: Bench) -> None:
    subscriber = await bench.listen(ROOM, actor=customer("ada"))
    bench.hub.roster.enter(subscriber, customer("ada"))
    entries = [bench.revoke("access.revoked", channels=[]) for _ in range(4)]
    bench.log.floors[CONTROL] = 3
    bench.hub.receive(entries[-1:])
    await until(lambda: subscriber.closed)
    again = await bench.listen(ROOM, actor=customer("ada"))
    bench.hub.receive([bench.log.append(ROOM)])
    await until(lambda: again.offsets(ROOM) == [1])


async def test_an_unlucky_sign_in_is_known_to_be_revoked(bench: Bench) -> None:
    mark = bench.hub.roster.revocation
    assert not bench.hub.roster.revoked_since(mark, customer("ada", "s1"))
    await bench.broker.publish([bench.revoke("session.revoked", session_ids=["s1"])])
    assert bench.hub.roster.revoked_since(mark, customer("ada", "s1"))
    assert not bench.hub.roster.revoked_since(mark, customer("ada", "s2"))
    assert not bench.hub.roster.revoked_since(bench.hub.roster.revocation, customer("ada", "s1"))


async def test_too_many_sign_outs_to_remember_count_as_revoked(bench: Bench) -> None:
    mark = bench.hub.roster.revocation
    for n in range(1001):
        bench.hub.roster.sign_out([f"s{n}"], [])
    assert bench.hub.roster.revoked_since(mark, customer("somebody"))


def test_frames_are_the_bytes_of_the_log() -> None:
    log = ModelLog()
    assert orjson.loads(log.append(ROOM).frame)["params"]["offset"] == 1
