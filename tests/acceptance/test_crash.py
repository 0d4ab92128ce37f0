"""kill -9 at random moments under load; a checker then compares what every client saw with what the database says.

Each person of the load is a client as an SDK would be: it reconnects, resumes every channel where it stood, and sends a
command again under its key until it gets an answer. A command whose reply was cut off is *unknown* until then: it may
have had its effect or not, but never twice.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import aiohttp
import pytest

from tests.acceptance.client import ADMIN, CAMDEN, CUSTOMER, JSON, PROVIDERS, Closed, Refused, Rest, Socket, new_key
from tests.acceptance.demo import Demo

STEPS = ("en_route", "arrived", "in_progress", "completed")
SETTLE_SECONDS = 20.0
OPEN_JOBS = 3
"""Jobs of one customer at a time, so that the load waits for the providers."""


@dataclass(slots=True)
class Ledger:
    """What all clients tried, and how it went."""

    tried: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    accepted: dict[str, list[str]] = field(default_factory=dict)
    booked: dict[str, str] = field(default_factory=dict)
    messages: dict[str, JSON] = field(default_factory=dict)
    longest_gap_seconds: float = 0.0
    connections: int = 0


class Person:
    """One client that never gives up."""

    def __init__(self, demo: Demo, email: str, ledger: Ledger) -> None:
        self.demo = demo
        self.email = email
        self.ledger = ledger
        self.events: list[JSON] = []
        self.times: list[float] = []
        self.positions: dict[str, JSON] = {}
        self.began: dict[str, JSON] = {}
        self.ended: dict[str, int] = {}
        self.not_recovered: list[str] = []
        self.socket: Socket | None = None
        self.user_id = ""
        self._token = ""
        self._here = asyncio.Event()

    async def live(self) -> None:
        """Keeps a socket until cancelled."""
        lost_at: float | None = None
        try:
            while True:
                try:
                    await self._come_back()
                except (aiohttp.ClientError, OSError, TimeoutError, Closed):
                    await asyncio.sleep(random.uniform(0.05, 0.2))
                    continue
                assert self.socket is not None
                if lost_at is not None:
                    self.ledger.longest_gap_seconds = max(self.ledger.longest_gap_seconds, time.monotonic() - lost_at)
                self.ledger.connections += 1
                if not self.socket.ended:
                    self._here.set()
                await self.socket.gone()
                self._here.clear()
                lost_at = time.monotonic()
                await self.socket.close()
        finally:
            if self.socket is not None:
                await self.socket.close()

    async def _come_back(self) -> None:
        if not self._token:
            async with Rest(self.demo.base) as rest:
                self._token = (await rest.login(self.email))["access_token"]
        socket = self.socket = await Socket.open(self.demo.base)
        stood = {name: dict(position) for name, position in self.positions.items()}
        socket.events, socket.times, socket.positions = self.events, self.times, self.positions
        try:
            connected = await socket.connect(self._token, stood)
            self.user_id = connected["user"]["id"]
            for name, channel in connected["channels"].items():
                self._judge(name, channel, stood)
            for name in stood.keys() - connected["channels"].keys():
                channel = await socket.call("channel.subscribe", {"channel": name, "resume": stood[name]})
                self._judge(name, channel, stood)
        except BaseException:
            await socket.close()
            raise

    def _judge(self, name: str, channel: JSON, stood: dict[str, JSON]) -> None:
        if name not in stood:
            self.began.setdefault(name, {"epoch": channel["epoch"], "offset": channel["offset"]})
        elif not channel["recovered"] or channel["epoch"] != self.began[name]["epoch"]:
            self.not_recovered.append(name)

    async def do(self, method: str, **params: object) -> JSON:
        """A command with a key, sent again until it is answered.

        Raises:
            Refused: that is the answer.
        """
        self.ledger.tried[method] += 1
        if method.partition(".")[0] != "channel":
            params["key"] = new_key()
        while True:
            await self._here.wait()
            assert self.socket is not None
            try:
                result = await self.socket.call(method, params)
            except (Closed, TimeoutError):
                self.ledger.cut_off += 1
                if self.socket.ended:
                    self._here.clear()
                # A send may fail before the reader has noticed: let it.
                await asyncio.sleep(0.01)
                continue
            except Refused as refused:
                if refused.error["data"]["retryable"]:
                    await asyncio.sleep(0.1)
                    continue
                self.ledger.refused[refused.type] += 1
                raise
            self.ledger.answered[method] += 1
            return result

    async def follow(self, *channels: str) -> None:
        for name in channels:
            result = await self.do("channel.subscribe", channel=name)
            self.began.setdefault(name, {"epoch": result["epoch"], "offset": result["offset"]})

    async def unfollow(self, *channels: str) -> None:
        """Sockets have room for a hundred channels."""
        for name in channels:
            await self.do("channel.unsubscribe", channel=name)
            self.ended[name] = self.positions.pop(name)["offset"]

    async def say(self, booking_id: str, text: str) -> None:
        sent = (await self.do("message.send", conversation_id=booking_id, text=text))["message"]
        assert sent["text"] not in self.ledger.messages
        self.ledger.messages[sent["text"]] = sent


async def book_and_talk(customer: Person, resting: asyncio.Event) -> None:
    """A customer's load: books, and writes to whoever comes."""
    open_jobs: set[str] = set()
    place = 0
    for number in itertools.count():
        while place < len(customer.events):
            event = customer.events[place]
            if event["type"] in ("booking.completed", "booking.cancelled", "booking.unfulfilled"):
                booking_id = event["data"]["booking_id"]
                if booking_id in open_jobs:
                    open_jobs.discard(booking_id)
                    await customer.unfollow(f"booking:{booking_id}", f"conversation:{booking_id}")
            place += 1
        if resting.is_set():
            return
        if len(open_jobs) >= OPEN_JOBS:
            await asyncio.sleep(0.02)
            continue
        notes = f"{customer.email} wants {number}"
        booking = (
            await customer.do("booking.create", service_id="plumbing", kind="on_demand", location=CAMDEN, notes=notes)
        )["booking"]
        customer.ledger.booked[notes] = booking["id"]
        open_jobs.add(booking["id"])
        await customer.follow(f"booking:{booking['id']}", f"conversation:{booking['id']}")
        await customer.say(booking["id"], f"{customer.email} about {number}")


async def accept_and_work(provider: Person, resting: asyncio.Event) -> None:
    """A provider's load: says yes to everything, and works what it wins."""
    place = 0
    while not resting.is_set():
        await asyncio.sleep(0.01)
        while place < len(provider.events) and not resting.is_set():
            event = provider.events[place]
            place += 1
            if event["type"] == "offer.made":
                await take(provider, event["data"]["offer"])


async def take(provider: Person, offer: JSON) -> None:
    try:
        booking = (await provider.do("offer.accept", offer_id=offer["id"]))["booking"]
    except Refused:
        return
    provider.ledger.accepted.setdefault(booking["id"], []).append(provider.email)
    await provider.follow(f"booking:{booking['id']}", f"conversation:{booking['id']}")
    for step in STEPS:
        booking = (
            await provider.do("booking.transition", booking_id=booking["id"], to=step, version=booking["version"])
        )["booking"]
        await provider.say(booking["id"], f"{provider.email} {step} {booking['id']}")
    await provider.unfollow(f"booking:{booking['id']}", f"conversation:{booking['id']}")


async def kill_now_and_then(demo: Demo, kills: int) -> None:
    for _ in range(kills):
        await asyncio.sleep(random.uniform(0.6, 2.0))
        demo.kill()
        await asyncio.to_thread(demo.start)
    await asyncio.sleep(1.0)


async def experiment(demo: Demo, kills: int) -> None:
    ledger = Ledger()
    async with Rest(demo.base) as rest:
        more = [await rest.register() for _ in range(2)]
    customers = [Person(demo, email, ledger) for email in (CUSTOMER, *more)]
    providers = [Person(demo, email, ledger) for email in PROVIDERS]
    people = [*customers, *providers, Person(demo, ADMIN, ledger)]
    resting = asyncio.Event()
    async with asyncio.TaskGroup() as lives:
        living = [lives.create_task(person.live()) for person in people]
        async with asyncio.TaskGroup() as load:
            for customer in customers:
                load.create_task(book_and_talk(customer, resting))
            for provider in providers:
                load.create_task(accept_and_work(provider, resting))
            await kill_now_and_then(demo, kills)
            resting.set()
        await settled(demo, people)
        for life in living:
            life.cancel()
    await check(demo, people, ledger)


async def settled(demo: Demo, people: list[Person]) -> None:
    """Until everybody has heard everything; what is still missing after a while is for the checker to say."""
    ends = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < ends:
        heads = dict(await demo.rows("SELECT channel, `offset` FROM channel_heads"))
        waiting = (await demo.rows("SELECT COUNT(*) FROM outbox"))[0][0]
        behind = [
            name
            for person in people
            for name, position in person.positions.items()
            if position["offset"] < heads.get(name, 0)
        ]
        if not waiting and not behind:
            return
        await asyncio.sleep(0.1)


async def check(demo: Demo, people: list[Person], ledger: Ledger) -> None:
    written: dict[str, dict[int, str]] = {}
    for channel, offset, frame in await demo.rows(
        "SELECT channel, `offset`, frame FROM log ORDER BY channel, `offset`"
    ):
        params = json.loads(frame)["params"]
        assert (params["channel"], params["offset"]) == (channel, offset)
        written.setdefault(channel, {})[offset] = params["id"]
    for channel, entries in written.items():
        assert list(entries) == list(range(1, len(entries) + 1)), f"a gap in the log of {channel}"

    latest_seconds = max(
        heard_at - datetime.fromisoformat(event["time"]).timestamp()
        for person in people
        for event, heard_at in zip(person.events, person.times, strict=True)
    )
    expected = seen = lost = doubled = disordered = phantom = 0
    for person in people:
        for channel, start in person.began.items():
            last = person.ended.get(channel, len(written.get(channel, {})))
            due = {place: id_ for place, id_ in written.get(channel, {}).items() if start["offset"] < place <= last}
            got = [
                (event["offset"], event["id"])
                for event in person.events
                if event["channel"] == channel and "offset" in event
            ]
            times = Counter(got)
            expected += len(due)
            seen += len(times)
            lost += len(set(due.items()) - set(times))
            doubled += sum(count - 1 for count in times.values())
            disordered += [place for place, _ in got] != sorted(place for place, _ in got)
            phantom += len(set(times) - set(due.items()))
    unrecovered = [(person.email, name) for person in people for name in person.not_recovered]

    print(f"commands tried {sum(ledger.tried.values())}, answered {sum(ledger.answered.values())}, ", end="")
    print(f"refused {dict(ledger.refused)}, cut off {ledger.cut_off}")
    print(f"events expected {expected}, seen {seen}, lost {lost}, doubled {doubled}, ", end="")
    print(f"out of order on {disordered} channels, never committed {phantom}")
    print(f"connections {ledger.connections}, longest gap {ledger.longest_gap_seconds:.1f} s, ", end="")
    print(f"latest event {latest_seconds:.1f} s after its commit")

    assert expected > 100
    assert (lost, doubled, disordered, phantom) == (0, 0, 0, 0)
    assert unrecovered == []

    # One winner per booking, and it is the one who was told so.
    winners = Counter(
        booking_id for (booking_id,) in await demo.rows("SELECT booking_id FROM offers WHERE status = 'accepted'")
    )
    assert not [booking_id for booking_id, count in winners.items() if count > 1]
    owners = dict(
        await demo.rows(
            "SELECT b.id, u.email FROM bookings b JOIN providers p ON p.id = b.provider_id"
            " JOIN memberships m ON m.organisation_id = p.organisation_id JOIN users u ON u.id = m.user_id"
        )
    )
    for booking_id, emails in ledger.accepted.items():
        assert emails == [owners[booking_id]]
    # Each wish became one booking, each acked message is there once, and nothing is there that nobody asked for.
    booked = await demo.rows("SELECT notes, id FROM bookings")
    assert dict(booked) == ledger.booked
    assert len(booked) == len(ledger.booked)
    kept = await demo.rows("SELECT text, id, `offset` FROM messages")
    assert len(kept) == len(ledger.messages)
    assert {text: (id_, offset) for text, id_, offset in kept} == {
        text: (sent["id"], sent["offset"]) for text, sent in ledger.messages.items()
    }


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
