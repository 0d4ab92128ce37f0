"""P6: from the commit of an event to the socket that hears it.

Messages are sent in conversations at a steady rate. Every person has two sockets; with two nodes one on each, so an
event crosses from node to node. The reply to the sender leaves in the very turn of the loop in which COMMIT returned,
so the time from the reply's arrival to the event's is that from the commit to the socket, but for the way of one frame
over loopback; the time from sending the command is shown as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvloop

from benchmarks import town
from benchmarks.machine import Share, cpu_seconds, no_collections
from benchmarks.results import Figure, Outcome, percentile
from benchmarks.scene import Scene
from benchmarks.wire import JSON, Client, WireError
from domain.types import new_id
from server.clock import SystemClock
from tests.services import ServiceMissing

SOCKETS = 1_000
EVENTS_PER_SECOND = 200.0
WARM_UP_SECONDS = 2.0
SETTLE_SECONDS = 3.0
P50_SECONDS, P99_SECONDS, EMBEDDED_P50_SECONDS = 0.008, 0.030, 0.004
CONCURRENCY = 50
TITLE = "commit → socket, {rate:.0f} events/s, {sockets:,} sockets, {where}"
TARGET = "p50 ≤ 8 ms, p99 ≤ 30 ms"
EMBEDDED_TARGET = "p50 ≤ 4 ms"


class Person:
    """Somebody with two sockets on their conversation."""

    def __init__(self, citizen: town.Citizen) -> None:
        self.citizen = citizen
        self.clients: list[Client] = []
        self.heard: dict[str, list[float]] = {}

    async def arrive(self, ports: Sequence[int], number: int) -> None:
        for place, port in enumerate((ports[0], ports[-1])):
            client = await Client.open(port, self.citizen.token, number=2 * number + place, on_event=self._hear)
            await client.call("channel.subscribe", {"channel": f"conversation:{self.citizen.booking_id}"})
            self.clients.append(client)

    def _hear(self, _client: Client, event: JSON, arrived: float) -> None:
        if event["type"] == "message.sent":
            self.heard.setdefault(event["data"]["message"]["id"], []).append(arrived)


class Sample:
    """One message: when it was sent, answered, and heard by both sockets. Seconds of the monotonic clock."""

    __slots__ = ("message_id", "person", "replied", "sent")

    def __init__(self, person: Person, sent: float, replied: float, message_id: str) -> None:
        self.person, self.sent, self.replied, self.message_id = person, sent, replied, message_id


def run(scene: Scene) -> Outcome:
    """P6, embedded and in production's shape."""
    return uvloop.run(_all(scene))


async def _all(scene: Scene) -> Outcome:
    outcome = Outcome()
    with town.embedded() as backing:
        outcome.figures.append(await _measure(scene, backing, 1))
    for count in (1, 2):
        where = f"MySQL + Redis, {count} node{'s' if count > 1 else ''}"
        title = TITLE.format(rate=EVENTS_PER_SECOND, sockets=SOCKETS, where=where)
        try:
            async with town.mysql([scene.cores.generator]) as backing:
                outcome.figures.append(await _measure(scene, backing, count))
        except town.NoRedisYet as error:
            outcome.figures.append(Figure.missing("P6", title, TARGET, f"not measured yet: {error}"))
        except ServiceMissing as error:
            outcome.figures.append(Figure.missing("P6", title, TARGET, f"not here: {error}"))
    return outcome


async def _measure(scene: Scene, backing: town.Backing, count: int) -> Figure:
    seconds = scene.pick(12.0, 3.0)
    where = backing.name if backing.redis is None else f"{backing.name}, {count} node{'s' if count > 1 else ''}"
    scene.tell(f"{where}: settling", 0.0)
    citizens = await town.settle(backing, SOCKETS // 2, with_bookings=True)
    async with town.nodes(backing, count, [scene.cores.server]) as nodes:
        await town.login(nodes[0].base, citizens)
        people = [Person(citizen) for citizen in citizens]
        turn = asyncio.Semaphore(CONCURRENCY)

        async def arrive(person: Person, number: int) -> None:
            async with turn:
                await person.arrive([node.port for node in nodes], number)

        await asyncio.gather(*(arrive(person, number) for number, person in enumerate(people)))
        scene.tell(f"{where}: warming up", 0.3)
        await _talk(people, WARM_UP_SECONDS)
        scene.tell(f"{where}: {seconds:.0f} s of messages", 0.5)
        share, cpu_before = Share(), sum(cpu_seconds(node.pid) for node in nodes)
        with no_collections():
            talk = await _talk(people, seconds)
        used = share.read()
        busy = (sum(cpu_seconds(node.pid) for node in nodes) - cpu_before) / seconds
        await asyncio.sleep(SETTLE_SECONDS)
    figure = _judge(backing, where, talk, used)
    figure.notes.append(f"nodes used {busy:.0%} of their core")
    return figure


@dataclass(slots=True)
class Talk:
    """Messages that were sent.

    Attributes:
        late: by how much the generator fell behind its plan at most, in seconds.
        refused: commands that were answered by an error: a server that cannot keep up says so.
    """

    samples: list[Sample] = field(default_factory=list)
    late: float = 0.0
    refused: int = 0


async def _talk(people: Sequence[Person], seconds: float) -> Talk:
    """Messages at the rate, from one person after the other, whatever the replies take."""
    talk = Talk()
    clock = SystemClock()

    async def send(person: Person) -> None:
        params = {"conversation_id": person.citizen.booking_id, "text": "On my way.", "key": new_id(clock.now())}
        sent = time.monotonic()
        try:
            reply = await person.clients[0].call("message.send", params)
        except WireError:
            talk.refused += 1
        else:
            talk.samples.append(Sample(person, sent, person.clients[0].arrived, reply["message"]["id"]))

    begin = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * EVENTS_PER_SECOND)):
            due = begin + number / EVENTS_PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            talk.late = max(talk.late, time.monotonic() - due)
            group.create_task(send(people[number % len(people)]))
    return talk


def _judge(backing: town.Backing, where: str, talk: Talk, used: float) -> Figure:
    """The figure; raises when an event did not reach both sockets, once each."""
    from_commit, from_send = [], []
    for sample in talk.samples:
        heard = sample.person.heard.get(sample.message_id, [])
        if len(heard) != 2:
            raise RuntimeError(f"a message was heard {len(heard)} times by two sockets")
        from_commit += [max(0.0, moment - sample.replied) for moment in heard]
        from_send += [moment - sample.sent for moment in heard]
    from_commit.sort()
    from_send.sort()
    p50, p99 = percentile(from_commit, 0.50), percentile(from_commit, 0.99)
    embedded = backing.name == "embedded"
    reached = p50 <= EMBEDDED_P50_SECONDS if embedded else p50 <= P50_SECONDS and p99 <= P99_SECONDS
    reached = reached and not talk.refused
    title = TITLE.format(rate=EVENTS_PER_SECOND, sockets=SOCKETS, where=where)
    value = f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms"
    figure = Figure("P6", title, value, EMBEDDED_TARGET if embedded else TARGET, reached, generator_share=used)
    sent50, sent99 = percentile(from_send, 0.50), percentile(from_send, 0.99)
    figure.notes.append(f"from sending the command: p50 {sent50 * 1e3:.1f} ms, p99 {sent99 * 1e3:.1f} ms")
    figure.notes.append(f"the generator was {talk.late * 1e3:.0f} ms behind its plan at most")
    if talk.refused:
        figure.notes.append(f"{talk.refused} of {talk.refused + len(talk.samples)} commands were refused")
    return figure
