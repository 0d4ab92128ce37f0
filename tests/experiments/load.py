"""The load of an experiment: people with real sockets who book, accept, work and talk, whatever happens to the servers.

Each person is a client as an SDK would be: it reconnects, to another node when its own is gone, resumes every channel
where it stood, and sends a command again under its key until it gets an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import aiohttp

from tests.acceptance.client import (
    ADMIN,
    CAMDEN,
    JSON,
    PROVIDERS,
    WAIT_SECONDS,
    Closed,
    Refused,
    Rest,
    Socket,
    new_key,
)
from tests.experiments.history import History, Outcome, Rows, Truth, Verdict, check

STEPS = ("en_route", "arrived", "in_progress", "completed")
OVER = ("booking.completed", "booking.cancelled", "booking.unfulfilled")
OPEN_JOBS = 2
"""Jobs of one customer at a time, so that the load waits for the providers."""

SETTLE_SECONDS = 20.0
GIVE_UP_SECONDS = 45.0
"""A command that gets no answer for so long, over all its retries, is a failure of the experiment."""

NETWORK_TROUBLE = (aiohttp.ClientError, OSError, TimeoutError, Closed)


class Person:
    """One client that never gives up.

    Args:
        bases: the nodes' addresses; it starts at the first and takes the next one when it loses its socket.
        seconds: how long it waits for a reply before it takes the connection for dead.
    """

    def __init__(self, bases: Sequence[str], email: str, history: History, seconds: float = WAIT_SECONDS) -> None:
        self.email = email
        self.history = history
        self.recorder = history.recorder(email)
        self.positions: dict[str, JSON] = {}
        self.socket: Socket | None = None
        self.user_id = ""
        self.token = ""
        self._bases = bases
        self._place = 0
        self._seconds = seconds
        self._here = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._here.is_set()

    @property
    def events(self) -> list[JSON]:
        return self.recorder.events

    async def live(self) -> None:
        """Keeps a socket until cancelled."""
        lost_at: float | None = None
        try:
            while True:
                try:
                    async with asyncio.timeout(self._seconds):
                        await self._come_back()
                except (*NETWORK_TROUBLE, Refused, AssertionError):
                    self._place += 1
                    await asyncio.sleep(random.uniform(0.05, 0.2))
                    continue
                assert self.socket is not None
                if lost_at is not None:
                    away = time.monotonic() - lost_at
                    self.history.longest_away_seconds = max(self.history.longest_away_seconds, away)
                self.history.connections += 1
                if not self.socket.ended:
                    self._here.set()
                await self.socket.gone()
                self._here.clear()
                lost_at = time.monotonic()
                self._place += 1
                await self.socket.close()
        finally:
            if self.socket is not None:
                await self.socket.close()

    async def _come_back(self) -> None:
        base = self._bases[self._place % len(self._bases)]
        if not self.token:
            async with Rest(base) as rest:
                self.token = (await rest.login(self.email))["access_token"]
        socket = self.socket = await Socket.open(base)
        stood = {name: dict(position) for name, position in self.positions.items()}
        socket.events, socket.times, socket.positions = self.recorder.events, self.recorder.times, self.positions
        try:
            connected = await socket.connect(self.token, stood)
            self.user_id = connected["user"]["id"]
            for name, channel in connected["channels"].items():
                self.recorder.judge(name, channel, stood.get(name))
            for name in stood.keys() - connected["channels"].keys():
                channel = await socket.call("channel.subscribe", {"channel": name, "resume": stood[name]})
                self.recorder.judge(name, channel, stood[name])
        except BaseException:
            await socket.cut()
            raise

    async def do(self, method: str, **params: object) -> JSON:
        """A command with a key, sent again until it is answered.

        Raises:
            Refused: that is the answer.
            TimeoutError: there was none.
        """
        command = self.history.invoked(self.email, method, dict(params))
        if method.partition(".")[0] != "channel":
            params["key"] = new_key()
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while True:
                await self._here.wait()
                socket = self.socket
                assert socket is not None
                try:
                    async with asyncio.timeout(self._seconds):
                        result = await socket.call(method, params)
                except (Closed, TimeoutError):
                    if not socket.ended:
                        await socket.cut()
                    if self.socket is socket:
                        self._here.clear()
                    continue
                except Refused as refused:
                    if refused.error["data"]["retryable"]:
                        await asyncio.sleep(random.uniform(0.1, 0.3))
                        continue
                    command.failed(refused.type)
                    raise
                command.ok(result)
                return result

    async def follow(self, *channels: str) -> None:
        for name in channels:
            self.recorder.judge(name, await self.do("channel.subscribe", channel=name), None)

    async def unfollow(self, *channels: str) -> None:
        """Sockets have room for a hundred channels."""
        for name in channels:
            await self.do("channel.unsubscribe", channel=name)
            self.recorder.ended[name] = self.positions.pop(name)["offset"]

    async def say(self, booking_id: str, text: str) -> None:
        await self.do("message.send", conversation_id=booking_id, text=f"{self.history.name} {text}")


class Play:
    """Customers, the demo's providers and an admin, at work.

    Args:
        bases: addresses of the nodes; people start spread over them.
        rows: reads the nodes' database.
        pause_seconds: of a person between two commands, on average.
    """

    def __init__(self, bases: Sequence[str], rows: Rows, *, pause_seconds: float = 0.02) -> None:
        self.history = History()
        self.bases = list(bases)
        self.customers: list[Person] = []
        self.providers: list[Person] = []
        self.others: list[Person] = []
        self.began_at = time.monotonic()
        self._rows = rows
        self._pause_seconds = pause_seconds
        self._resting = asyncio.Event()
        self._over = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._lives: list[asyncio.Task[None]] = []

    @property
    def people(self) -> list[Person]:
        return [*self.customers, *self.providers, *self.others]

    def person(self, email: str, start_at: int = 0, seconds: float = WAIT_SECONDS) -> Person:
        """One more person, who keeps a socket until the play ends."""
        assert self._group is not None
        turned = self.bases[start_at % len(self.bases) :] + self.bases[: start_at % len(self.bases)]
        person = Person(turned, email, self.history, seconds)
        self._lives.append(self._group.create_task(person.live()))
        return person

    async def until(self, holds: Callable[[], bool], seconds: float = 30.0) -> None:
        """Waits for something that nobody announces."""
        try:
            async with asyncio.timeout(seconds):
                while not holds():  # noqa: ASYNC110 — people and servers tell nobody
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"it did not come about within {seconds} s") from None

    async def more(self, commands: int, seconds: float = 30.0) -> None:
        """Waits until so many more commands were answered: work goes on."""
        goal = self.history.count(Outcome.OK) + commands
        try:
            await self.until(lambda: self.history.count(Outcome.OK) >= goal, seconds)
        except AssertionError:
            done = self.history.count(Outcome.OK)
            raise AssertionError(f"only {done - goal + commands} commands were answered in {seconds} s") from None

    async def run(self, trouble: Callable[[Play], Awaitable[None]], customers: int = 2) -> Verdict:
        """Plays while the trouble lasts, lets open jobs end and everybody hear everything, and checks."""
        emails = []
        async with Rest(self.bases[0]) as rest:
            emails = [await rest.register() for _ in range(customers)]
        async with asyncio.TaskGroup() as self._group:
            self.customers = [self.person(email, number) for number, email in enumerate(emails)]
            self.providers = [self.person(email, number) for number, email in enumerate(PROVIDERS)]
            self.others = [self.person(ADMIN, len(self.bases) - 1)]
            async with self._working():
                await trouble(self)
            await self._settled()
            for life in self._lives:
                life.cancel()
        return check(self.history, await Truth.read(self._rows))

    @asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as work:
            for provider in self.providers:
                work.create_task(self._accept_and_work(provider))
            await self.until(lambda: all(person.connected for person in self.people))
            async with asyncio.TaskGroup() as wishes:
                for customer in self.customers:
                    wishes.create_task(self._book_and_talk(customer))
                yield
                self._resting.set()
            self._over.set()

    async def _think(self) -> None:
        await asyncio.sleep(random.uniform(0.5, 1.5) * self._pause_seconds)

    async def _book_and_talk(self, customer: Person) -> None:
        """A customer's load: books, and writes to whoever comes."""
        open_jobs: set[str] = set()
        place = number = 0
        while not self._resting.is_set() or open_jobs:
            while place < len(customer.events):
                event = customer.events[place]
                place += 1
                booking_id = event["data"].get("booking_id")
                if event["type"] in OVER and booking_id in open_jobs:
                    open_jobs.discard(booking_id)
                    await customer.unfollow(f"booking:{booking_id}", f"conversation:{booking_id}")
            await self._think()
            if len(open_jobs) >= OPEN_JOBS or self._resting.is_set():
                continue
            number += 1
            wish = f"{self.history.name} {customer.email} wants {number}"
            made = await customer.do(
                "booking.create", service_id="plumbing", kind="on_demand", location=CAMDEN, notes=wish
            )
            booking_id = made["booking"]["id"]
            open_jobs.add(booking_id)
            await customer.follow(f"booking:{booking_id}", f"conversation:{booking_id}")
            await customer.say(booking_id, f"{customer.email} about {number}")

    async def _accept_and_work(self, provider: Person) -> None:
        """A provider's load: says yes to everything, and works what it wins."""
        place = 0
        while not self._over.is_set():
            await self._think()
            while place < len(provider.events) and not self._over.is_set():
                event = provider.events[place]
                place += 1
                if event["type"] == "offer.made":
                    with contextlib.suppress(Refused):
                        await self._take(provider, event["data"]["offer"])

    async def _take(self, provider: Person, offer: JSON) -> None:
        booking = (await provider.do("offer.accept", offer_id=offer["id"]))["booking"]
        channels = (f"booking:{booking['id']}", f"conversation:{booking['id']}")
        await provider.follow(*channels)
        for step in STEPS:
            await self._think()
            params = {"booking_id": booking["id"], "to": step, "version": booking["version"]}
            booking = (await provider.do("booking.transition", **params))["booking"]
            await provider.say(booking["id"], f"{provider.email} {step} {booking['id']}")
        await provider.unfollow(*channels)

    async def _settled(self) -> None:
        """Until everybody has heard everything; what is still missing after a while is for the checker to say."""
        ends = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < ends:
            heads = dict(await self._rows("SELECT channel, `offset` FROM channel_heads"))
            waiting = (await self._rows("SELECT COUNT(*) FROM outbox"))[0][0]
            behind = any(
                position["offset"] < heads.get(name, 0)
                for person in self.people
                for name, position in person.positions.items()
            )
            if not waiting and not behind and all(person.connected for person in self.people):
                return
            await asyncio.sleep(0.1)
