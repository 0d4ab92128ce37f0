"""kill -9 at random moments under load; the checker then compares what every client saw with what the database says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from tests.acceptance.client import JSON
from tests.acceptance.demo import Demo
from tests.experiments.load import Play


async def experiment(demo: Demo, kills: int) -> None:
    async def trouble(play: Play) -> None:
        for _ in range(kills):
            await asyncio.sleep(random.uniform(0.6, 2.0))
            demo.kill()
            await asyncio.to_thread(demo.start)
        await play.more(20)

    verdict = await Play([demo.base], demo.rows).run(trouble)
    print(verdict)
    verdict.hold()
    assert verdict.expected > 100


async def test_nothing_is_lost_or_doubled_when_the_server_is_killed(start_demo: Callable[..., Demo]) -> None:
    await experiment(start_demo(), kills=3)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "mysql"])
async def test_nothing_is_lost_or_doubled_over_many_kills(
    start_demo: Callable[..., Demo], kind: str, request: pytest.FixtureRequest
) -> None:
    settings: JSON = {}
    if kind == "mysql":
        settings = await asyncio.to_thread(request.getfixturevalue("mysql_settings"))
    await experiment(start_demo(**settings), kills=25)
