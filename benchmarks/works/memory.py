"""P4: what an idle socket costs in resident memory, and whether that stays so with more of them."""

from __future__ import annotations

import asyncio

import uvloop

from benchmarks import town
from benchmarks.machine import Share, raise_file_limit, rss_bytes
from benchmarks.results import Curve, Figure, Outcome, Picture
from benchmarks.scene import Scene
from benchmarks.wire import Client

CHANNEL = "availability:plumbing:camden"
MOST_BYTES = 20_000
WARM_UP = 20
CONCURRENCY = 50
SETTLE_SECONDS = 3.0
TITLE = "memory per idle socket, signed in, on its own channel and a shared one, at {sockets:,} sockets"
TARGET = "≤ 20 KB RSS"


def run(scene: Scene) -> Outcome:
    """P4."""
    return uvloop.run(_measure(scene))


async def _measure(scene: Scene) -> Outcome:
    steps = scene.pick((1_000, 5_000, 15_000), (500, 1_500))
    room = raise_file_limit() - 500
    outcome = Outcome()
    with town.embedded() as backing:
        citizens = await town.settle(backing, steps[-1], progress=lambda share: scene.tell("settling", share * 0.2))
        async with town.nodes(backing, 1, [scene.cores.server]) as (node,):
            await town.login(node.base, citizens)
            for client in await _connect(node.port, citizens[:WARM_UP]):
                client.abort()
            await asyncio.sleep(SETTLE_SECONDS)
            empty = rss_bytes(node.pid)
            clients: list[Client] = []
            points = []
            share = Share()
            for sockets in steps:
                title = TITLE.format(sockets=sockets)
                if sockets > room:
                    why = f"this machine allows {room:,} open files to a process (ulimit -n)"
                    outcome.figures.append(Figure.missing("P4", title, TARGET, why))
                    continue
                scene.tell(f"{sockets:,} sockets", 0.2 + 0.8 * sockets / steps[-1])
                clients += await _connect(node.port, citizens[len(clients) : sockets])
                await asyncio.sleep(SETTLE_SECONDS)
                each = (rss_bytes(node.pid) - empty) / sockets
                gone = sum(client.closed_with is not None for client in clients)
                if gone:
                    raise RuntimeError(f"{gone} of {sockets} idle sockets were closed")
                points.append((float(sockets), each))
                figure = Figure("P4", title, f"{each / 1000:.1f} KB", TARGET, each <= MOST_BYTES)
                figure.generator_share = share.read()
                outcome.figures.append(figure)
            for client in clients:
                client.abort()
    if points:
        title = "P4: resident bytes per idle socket"
        curve = Curve("bytes per socket", points)
        outcome.pictures.append(Picture("p4-memory.svg", title, "sockets", "bytes", [curve], x_log=False))
    return outcome


async def _connect(port: int, citizens: list[town.Citizen]) -> list[Client]:
    turn = asyncio.Semaphore(CONCURRENCY)

    async def one(number: int, citizen: town.Citizen) -> Client:
        async with turn:
            client = await Client.open(port, citizen.token, number=number)
            await client.call("channel.subscribe", {"channel": CHANNEL})
            return client

    return await asyncio.gather(*(one(number, citizen) for number, citizen in enumerate(citizens)))
