"""P5: how many clients a second one core lets in: TCP, upgrade, token, session, own channel, reply."""

from __future__ import annotations

import asyncio
import time

import uvloop

from benchmarks import town
from benchmarks.machine import Share, cpu_seconds
from benchmarks.results import Figure, Outcome, median, quantity
from benchmarks.scene import Scene
from benchmarks.wire import Client

PER_SECOND = 1_000
CONCURRENCY = 100
PAUSE_SECONDS = 1.0
TITLE = "authenticated connects on one core, 100 at a time (embedded)"
TARGET = "≥ 1,000/s"


def run(scene: Scene) -> Outcome:
    """P5."""
    return uvloop.run(_measure(scene))


async def _measure(scene: Scene) -> Outcome:
    people, rounds = scene.pick(3_000, 600), scene.pick(5, 2)
    rates, shares, used = [], [], []
    with town.embedded() as backing:
        citizens = await town.settle(backing, people, progress=lambda share: scene.tell("settling", share * 0.2))
        async with town.nodes(backing, 1, [scene.cores.server]) as (node,):
            await town.login(node.base, citizens)
            for number in range(rounds + 1):
                scene.tell(f"round {number} of {rounds}" if number else "warming up", 0.2 + 0.8 * number / rounds)
                share, cpu_before, began = Share(), cpu_seconds(node.pid), time.monotonic()
                clients = await _all(node.port, citizens)
                seconds = time.monotonic() - began
                if number:
                    rates.append(people / seconds)
                    shares.append(share.read())
                    used.append((cpu_seconds(node.pid) - cpu_before) / seconds)
                for client in clients:
                    client.abort()
                await asyncio.sleep(PAUSE_SECONDS)
    rate = median(rates)
    figure = Figure("P5", TITLE, f"{quantity(rate)}/s", TARGET, rate >= PER_SECOND, generator_share=median(shares))
    busy = median(used)
    figure.notes.append(f"the node used {busy:.0%} of its core: {quantity(rate / busy)} per CPU second")
    return Outcome([figure])


async def _all(port: int, citizens: list[town.Citizen]) -> list[Client]:
    """Everybody connects, :data:`CONCURRENCY` at a time."""
    waiting = list(enumerate(citizens))
    clients: list[Client] = []

    async def some() -> None:
        while waiting:
            number, citizen = waiting.pop()
            clients.append(await Client.open(port, citizen.token, number=number))

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(some())
    return clients
