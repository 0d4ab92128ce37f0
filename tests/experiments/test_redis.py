"""Experiments with Redis: killed, stopped, deaf, out of one node's reach. Clients must notice nothing but a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.experiments.cluster import Cluster
from tests.experiments.load import Play

Report = Callable[..., None]

LATE_SECONDS = 3.0
"""So late may an event be while a node notices that Redis fails it: a heartbeat, the time to tail, a busy machine."""

NOTICED_SECONDS = 3.0
"""As docs/operations.md has it: ``ping_seconds`` and ``reply_seconds`` of ``RedisTimes``, and some time to look."""


async def test_experiment_03_redis_is_killed_and_comes_back_empty(town: Cluster, play: Play, report: Report) -> None:
    async def trouble(play: Play) -> None:
        await play.more(15)
        town.redis.kill()
        await town.measured('fixnado_event_path{state="tailing"}', 1)
        await play.more(30)
        await town.start(town.redis)
        await town.measured('fixnado_event_path{state="ok"}', 1)
        await play.more(15)

    verdict = await play.run(trouble)
    report(verdict)
    verdict.hold()
    assert play.history.connections == len(play.people), "nobody lost a socket"
    assert verdict.longest_gap_seconds < LATE_SECONDS


@pytest.mark.parametrize("seconds", [3.0, pytest.param(30.0, marks=[pytest.mark.soak, pytest.mark.timeout(180)])])
async def test_experiment_04_redis_hangs(town: Cluster, play: Play, report: Report, seconds: float) -> None:
    async def trouble(play: Play) -> None:
        await play.more(10)
        town.redis.pause()
        await town.measured('fixnado_event_path{state="tailing"}', 1)
        await asyncio.gather(play.more(20), asyncio.sleep(seconds))
        town.redis.resume()
        await town.measured('fixnado_event_path{state="ok"}', 1)
        await play.more(10)

    verdict = await play.run(trouble)
    report(verdict)
    verdict.hold()
    assert play.history.connections == len(play.people), "nobody lost a socket"
    assert verdict.longest_gap_seconds < LATE_SECONDS


async def test_experiment_05_one_node_hears_nothing_more_from_redis(town: Cluster, play: Play, report: Report) -> None:
    """A half-open connection: nothing is closed, and nothing arrives."""
    noticed = 0.0

    async def trouble(play: Play) -> None:
        nonlocal noticed
        await play.more(10)
        town.to_redis.swallowing = True
        noticed = await town.measured("fixnado_redis_up", 0, town.wired)
        await play.more(10)
        town.to_redis.swallowing = False
        await town.measured('fixnado_event_path{state="ok"}', 1)

    verdict = await play.run(trouble)
    report(verdict, f"noticed after {noticed:.2f} s")
    verdict.hold()
    assert noticed < NOTICED_SECONDS
    assert verdict.longest_gap_seconds < LATE_SECONDS


async def test_experiment_10_a_node_without_redis_serves_all_the_same(
    town: Cluster, play: Play, report: Report
) -> None:
    async def trouble(play: Play) -> None:
        await play.more(10)
        town.to_redis.refusing = True
        town.cut(town.to_redis)
        await town.measured("fixnado_redis_up", 0, town.wired)
        await play.more(25)
        assert town.wired.is_ready()

    verdict = await play.run(trouble)
    report(verdict)
    verdict.hold()
    assert play.history.connections == len(play.people), "nobody lost a socket"
    assert verdict.longest_gap_seconds < LATE_SECONDS
