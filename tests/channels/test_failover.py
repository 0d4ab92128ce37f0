from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from channels.failover import HEARTBEAT, FailoverTimes, Follower, State
from channels.redis_wire import Beat, pack_beat, unpack_beat
from domain.errors import Unavailable
from domain.log import Entry
from tests.channels.fakes import ModelLog, until

TIMES = FailoverTimes(
    beat_seconds=0.02,
    tail_after_seconds=0.1,
    rebuild_after_seconds=0.3,
    tail_seconds=0.01,
    page_entries=40,
    catch_up_entries=100,
    node_seconds=0.2,
)


class FakePulse:
    """The health of a broker, set by the test."""

    def __init__(self) -> None:
        self.connected = True
        self.told: list[Beat] = []
        self.rebuilds = 0
        self._handler: Callable[[bytes], None] | None = None
        self._listeners: list[Callable[[], None]] = []

    def tell(self, subject: str, payload: bytes) -> None:
        assert subject == HEARTBEAT
        self.told.append(unpack_beat(payload))

    async def hear(self, subject: str, handler: Callable[[bytes], None]) -> None:
        self._handler = handler

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def rebuild(self, reason: str) -> None:
        self.rebuilds += 1

    def beat(self, node_id: str, **positions: int) -> None:
        assert self._handler is not None
        self._handler(pack_beat(Beat(node_id, {int(name[1:]): position for name, position in positions.items()})))

    def change(self, connected: bool) -> None:
        self.connected = connected
        for listener in self._listeners:
            listener()


class FakeHub:
    """Remembers what it was told to follow."""

    def __init__(self) -> None:
        self.followed: list[Entry] = []
        self.channels: list[str] = []
        self.audits = 0
        self.losses = 0

    def follow(self, entries: Sequence[Entry]) -> None:
        self.followed += entries

    def held_channels(self) -> Collection[str]:
        return self.channels

    async def audit(self) -> None:
        self.audits += 1

    def lost(self) -> None:
        self.losses += 1


class TailedLog(ModelLog):
    """Counts tails, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.tails = 0

    async def tail(self, after: object, limit: int) -> Sequence[Entry]:
        self._check()
        self.tails += 1
        return await super().tail(after, limit)  # type: ignore[arg-type]


class Scene:
    def __init__(self) -> None:
        self.log, self.hub, self.pulse = TailedLog(), FakeHub(), FakePulse()
        self.leads: Collection[int] = ()
        self.follower = Follower("n1", self.hub, self.log, self.pulse, lambda: self.leads, TIMES)

    @asynccontextmanager
    async def running(self, beating: bool = True) -> AsyncIterator[None]:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self.follower.run(stop))]
        await until(lambda: self.hub.losses == 1)
        beats = asyncio.create_task(self._beat_for_ever()) if beating else None
        try:
            yield
        finally:
            stop.set()
            if beats is not None:
                beats.cancel()
                await asyncio.gather(beats, return_exceptions=True)
            await asyncio.gather(*tasks)

    async def _beat_for_ever(self) -> None:
        while True:
            self.pulse.beat("n2", p0=self.log.sequence)
            await asyncio.sleep(TIMES.beat_seconds)


async def test_a_quiet_system_asks_the_log_nothing() -> None:
    scene = Scene()
    scene.log.append("booking:1")
    async with scene.running():
        await asyncio.sleep(0.3)
        assert scene.log.tails == 0
        assert scene.follower.state is State.OK


async def test_a_lost_tail_is_betrayed_by_a_heartbeat() -> None:
    scene = Scene()
    async with scene.running():
        lost = scene.log.append("booking:1")
        await until(lambda: scene.hub.followed == [lost])
        assert scene.follower.state is State.OK
        assert scene.follower.counts.switches == 0


async def test_without_heartbeats_the_log_is_tailed_and_the_connection_rebuilt() -> None:
    scene = Scene()
    async with scene.running(beating=False):
        await until(lambda: scene.follower.state is State.TAILING)
        assert scene.pulse.rebuilds == 0, "tailing is cheap, rebuilding is not"
        entry = scene.log.append("booking:1")
        await until(lambda: scene.hub.followed == [entry])
        await until(lambda: scene.pulse.rebuilds >= 1)


async def test_heartbeats_without_sequences_are_signs_of_life_but_no_comfort() -> None:
    scene = Scene()
    async with scene.running(beating=False):
        for _ in range(25):
            scene.pulse.beat("n2")
            await asyncio.sleep(TIMES.beat_seconds)
        assert scene.follower.state is State.TAILING
        assert scene.pulse.rebuilds == 0


async def test_a_broken_connection_is_tailed_around_at_once_and_left_again() -> None:
    scene = Scene()
    async with scene.running():
        scene.pulse.change(connected=False)
        await until(lambda: scene.follower.state is State.TAILING, 0.09)
        entry = scene.log.append("booking:1")
        await until(lambda: scene.hub.followed == [entry])
        scene.pulse.change(connected=True)
        await until(lambda: scene.follower.state is State.OK)
        assert scene.follower.counts.switches == 1


async def test_a_log_that_is_away_too_leaves_the_node_blind_until_it_is_back() -> None:
    scene = Scene()
    async with scene.running():
        scene.log.failing = True
        scene.pulse.change(connected=False)
        await until(lambda: scene.follower.state is State.BLIND)
        scene.log.failing = False
        entry = scene.log.append("booking:1")
        await until(lambda: scene.hub.followed == [entry])
        assert scene.follower.state is State.TAILING


async def test_a_node_far_behind_compares_heads_instead_of_reading_everything() -> None:
    scene = Scene()
    async with scene.running():
        for _ in range(500):
            scene.log.append("booking:1")
        await until(lambda: scene.hub.audits == 1)
        assert scene.hub.followed == []
        entry = scene.log.append("booking:1")
        await until(lambda: scene.hub.followed == [entry])


async def test_a_node_that_tails_far_behind_gives_up_reading_after_a_bound() -> None:
    scene = Scene()
    async with scene.running(beating=False):
        await until(lambda: scene.follower.state is State.TAILING)
        for _ in range(500):
            scene.log.append("booking:1")
        await until(lambda: scene.hub.audits == 1)
        assert len(scene.hub.followed) < 200
        entry = scene.log.append("booking:1")
        await until(lambda: scene.hub.followed[-1] == entry)


async def test_who_sequences_names_its_newest_sequence() -> None:
    scene = Scene()
    async with scene.running():
        await until(lambda: Beat("n1", {}) in scene.pulse.told)
        scene.leads = [0]
        scene.log.append("booking:1")
        await until(lambda: Beat("n1", {0: 1}) in scene.pulse.told)


async def test_a_node_counts_as_gone_when_its_heartbeats_stop() -> None:
    scene = Scene()
    async with scene.running():
        await until(lambda: set(scene.follower.nodes) == {"n1", "n2"})
        scene.pulse.beat("n3")
        assert "n3" in scene.follower.nodes
        await until(lambda: set(scene.follower.nodes) == {"n1", "n2"})


async def test_there_is_no_following_without_a_cursor_to_begin_at() -> None:
    scene = Scene()

    async def unavailable() -> dict[int, int]:
        raise Unavailable

    scene.log.cursor = unavailable  # type: ignore[method-assign]
    try:
        await scene.follower.run(asyncio.Event())
    except Unavailable:
        return
    raise AssertionError
