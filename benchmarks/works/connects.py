"""P5: how many clients a second one core lets in: TCP, upgrade, token, session, own channel, reply."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial

import uvloop

from benchmarks import town
from benchmarks.machine import Share, cpu_seconds, no_collections
from benchmarks.results import Figure, Outcome, median, quantity
from benchmarks.scene import Scene
from benchmarks.wire import Client

PER_SECOND = 1_000
CONCURRENCY = 100
PAUSE_SECONDS = 0.5
TITLE = "authenticated connects on one core, 100 at a time (embedded)"
AGAIN = "the same people connect again with the tokens that the node has seen"
TARGET = "≥ 1,000/s"


@dataclass(slots=True)
class Rounds:
    """What rounds of one kind gave: connects a second, and the shares of their cores that generator and node used."""

    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)

    def figure(self, title: str) -> Figure:
        rate, busy = median(self.rates), median(self.used)
        figure = Figure("P5", title, f"{quantity(rate)}/s", generator_share=median(self.shares))
        figure.notes.append(f"the node used {busy:.0%} of its core: {quantity(rate / busy)} per CPU second")
        return figure


def run(scene: Scene) -> Outcome:
    """P5."""
    return uvloop.run(_measure(scene))


async def _measure(scene: Scene) -> Outcome:
    people, rounds = scene.pick(3_000, 600), scene.pick(5, 2)
    first, again = Rounds(), Rounds()
    with town.embedded() as backing:
        settling = partial(scene.tell, "settling")
        citizens = await town.settle(backing, people, fresh_tokens=rounds, progress=settling)
        async with town.nodes(backing, 1, [scene.cores.server]) as (node,):
            await town.login(node.base, citizens)
            scene.tell("warming up", 0.2)
            await _round(node, citizens, Rounds())
            for number in range(rounds):
                scene.tell(f"round {number + 1} of {rounds}", 0.2 + 0.8 * number / rounds)
                for citizen in citizens:
                    citizen.token = citizen.fresh_tokens[number]
                await _round(node, citizens, first)
                await _round(node, citizens, again)
    figure = first.figure(TITLE)
    figure.target, figure.reached = TARGET, median(first.rates) >= PER_SECOND
    return Outcome([figure, again.figure(AGAIN)])


async def _round(node: town.Node, citizens: list[town.Citizen], rounds: Rounds) -> None:
    with no_collections():
        share, cpu_before, began = Share(), cpu_seconds(node.pid), time.monotonic()
        clients = await _all(node.port, citizens)
        seconds = time.monotonic() - began
    rounds.rates.append(len(citizens) / seconds)
    rounds.shares.append(share.read())
    rounds.used.append((cpu_seconds(node.pid) - cpu_before) / seconds)
    for client in clients:
        client.abort()
    await asyncio.sleep(PAUSE_SECONDS)


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
