"""A guard against getting slower unnoticed: calls, instructions, statements and bytes, which no busy machine changes.

Each bound is what was counted when it was written, on Python 3.11, plus the margin beside it. Other Pythons count a
little differently, hence no margin below a tenth. Whoever makes the path longer on purpose raises the bound in the same
commit and says why; whoever makes it shorter lowers it.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import CodeType
from typing import Any

import orjson
import pytest
from sqlalchemy import event, select, update
from sqlalchemy.engine import Engine

from benchmarks.hub_server import CHANNEL, Everybody, Heads, data_of
from channels.broker import InProcessBroker
from channels.hub import Hub
from channels.limits import Limits
from channels.realtime import Ports, Realtime
from channels.session import Session
from domain.errors import InvalidToken
from domain.identity import Actor, Role
from domain.log import Entry
from domain.types import Origin
from persistence.migrate import upgrade
from persistence.tables import providers, users
from server import demo, fanout
from server.app import Application, database_options
from server.clock import SystemClock
from server.settings import Settings
from server.tokens import KeyRing, SigningKey
from tests.benchmarks.counting import calls, instructions

SUBSCRIBERS = 100
BURST = 10


def within(counted: float, expected: float, margin: float) -> bool:
    """Whether a count is at most that share above what it was."""
    return counted <= expected * (1 + margin)


class Peer:
    """A transport whose write is one call into C, as a real one's is."""

    __slots__ = ("deflates", "fd", "write")

    def __init__(self, fd: int, deflates: bool) -> None:
        newest: deque[bytes] = deque(maxlen=1)
        self.write: Callable[[bytes], None] = newest.append
        self.fd = fd
        self.deflates = deflates

    def beat(self) -> bool:
        return False

    def buffered_bytes(self) -> int:
        return 0

    def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


class Node:
    """The live side on ports that answer at once."""

    def __init__(self, *, deflate: bool = False) -> None:
        self._deflate = deflate
        self.heads, everybody = Heads(), Everybody()
        self.broker = InProcessBroker()
        ports = Ports(
            log=self.heads,
            broker=self.broker,
            desk=everybody,
            doorman=everybody,
            access=everybody,
            snapshots=everybody,
            connections=everybody,
            acknowledgements=everybody,
            clock=SystemClock(),
        )
        self.realtime = Realtime(ports, Limits(), write_each=fanout.load(), deflate=deflate)
        # Everybody's descriptor: one that is never full, because what nobody reads of it is lost.
        self._nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._nobody.bind(("127.0.0.1", 0))
        self._everybody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._everybody.connect(self._nobody.getsockname())

    async def arrive(self, first: int, count: int, channel: str | None) -> list[Session]:
        """People connect, and subscribe if there is a channel."""
        sessions = []
        for number in range(first, first + count):
            session = self.realtime.open(Peer(self._everybody.fileno(), self._deflate))
            sessions.append(session)
            _say(session, "session.connect", {"token": f"user{number}"})
            if channel is not None:
                _say(session, "channel.subscribe", {"channel": channel})
        while any(session.busy for session in sessions):  # noqa: ASYNC110 — a session has no event for it
            await asyncio.sleep(0)
        assert all(session.actor is not None for session in sessions)
        return sessions

    def close(self) -> None:
        self._everybody.close()
        self._nobody.close()

    def entry(self) -> Entry:
        return self.heads.entry(CHANNEL, data_of(CHANNEL, 256))


def _say(session: Session, method: str, params: dict[str, Any]) -> None:
    session.received(orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).decode())


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    await node.realtime.start()
    yield node
    await node.realtime.stop()
    node.close()


async def test_a_delivery_takes_less_than_a_call(node: Node) -> None:
    await node.arrive(0, SUBSCRIBERS, CHANNEL)
    hub, entry = node.realtime.hub, node.entry()
    with calls() as counted:
        hub.receive([entry])
        hub.flush()
    per_delivery = (counted.calls + counted.c_calls) / SUBSCRIBERS
    assert within(per_delivery, 0.38, 0.10), f"{per_delivery:.2f} calls per delivery"


async def test_a_deflated_delivery_takes_less_than_a_call() -> None:
    node = Node(deflate=True)
    await node.realtime.start()
    await node.arrive(0, SUBSCRIBERS, CHANNEL)
    hub, entry = node.realtime.hub, node.entry()
    with calls() as counted:
        hub.receive([entry])
        hub.flush()
    per_delivery = (counted.calls + counted.c_calls) / SUBSCRIBERS
    assert within(per_delivery, 0.55, 0.10), f"{per_delivery:.2f} calls per delivery"
    await node.realtime.stop()
    node.close()


async def test_a_burst_takes_a_subscriber_less_than_two_calls(node: Node) -> None:
    await node.arrive(0, SUBSCRIBERS, CHANNEL)
    hub, entries = node.realtime.hub, [node.entry() for _ in range(BURST)]
    with calls() as counted:
        hub.receive(entries)
        hub.flush()
    per_delivery = (counted.calls + counted.c_calls) / SUBSCRIBERS / BURST
    assert within(per_delivery, 0.13, 0.10), f"{per_delivery:.2f} calls per delivery"


async def test_the_loop_of_a_fan_out_stays_short(node: Node) -> None:
    await node.arrive(0, SUBSCRIBERS, CHANNEL)
    hub, entry = node.realtime.hub, node.entry()
    loops = [Hub._deliver.__code__, Hub._write.__code__]
    loops += [code for loop in loops for code in loop.co_consts if isinstance(code, CodeType)]
    with instructions(*loops) as counted:
        hub.receive([entry])
        hub.flush()
    per_delivery = counted.instructions / SUBSCRIBERS
    assert within(per_delivery, 6.7, 0.40), f"{per_delivery:.1f} instructions per delivery"


async def test_an_event_on_a_channel_of_its_own_costs_few_calls(node: Node) -> None:
    await asyncio.gather(*(node.arrive(number, 1, f"user:user{number}") for number in range(SUBSCRIBERS)))
    entries = [node.heads.entry(f"user:user{number}", {"n": number}) for number in range(SUBSCRIBERS)]
    hub = node.realtime.hub
    with calls() as counted:
        hub.receive(entries)
        hub.flush()
    per_delivery = (counted.calls + counted.c_calls) / SUBSCRIBERS
    assert within(per_delivery, 23.2, 0.10), f"{per_delivery:.1f} calls per delivery"


async def test_a_connect_takes_few_calls(node: Node) -> None:
    await node.arrive(0, SUBSCRIBERS, None)
    counts = []
    for first in (1_000, 2_000, 3_000):
        with calls() as counted:
            await node.arrive(first, SUBSCRIBERS, None)
        counts.append(counted.own_calls / SUBSCRIBERS)
    # The fewest: the clock of the heartbeats may strike meanwhile, and then asks everybody.
    assert within(min(counts), 117, 0.10), f"{min(counts):.1f} calls of the product's functions per connect"


async def test_an_idle_session_is_small(node: Node) -> None:
    await node.arrive(0, 100, None)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        sessions = await node.arrive(1_000, 400, CHANNEL)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # With its transport, its actor, its own channel and its places in indexes; the protocol object is measured by P4.
    each = (after - before) / len(sessions)
    assert within(each, 4_825, 0.15), f"{each:.0f} bytes per session"


class Shop:
    """The composed application on SQLite, not started: commands run, nothing works in the background."""

    def __init__(self, app: Application, customer: Actor) -> None:
        self.app = app
        self.customer = customer
        self._keys = 0

    async def book(self) -> str:
        """A booking that three providers are asked for; returns its id."""
        params = {"service_id": "plumbing", "kind": "on_demand", "location": {"lat": 51.539, "lon": -0.1426}}
        result = await self._run("booking.create", params)
        booking_id: str = result["booking"]["id"]
        return booking_id

    async def message(self, booking_id: str) -> None:
        await self._run("message.send", {"conversation_id": booking_id, "text": "Hello"})

    async def _run(self, method: str, params: dict[str, Any]) -> Any:
        self._keys += 1
        keyed = {**params, "key": f"key-{self._keys:030}"}
        return await self.app.desk.execute(method, keyed, self.customer, Origin("counted-work"))


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    overrides = {"database_url": f"sqlite+aiosqlite:///{tmp_path}/fixnado.db"}
    settings = Settings.load(environ={}, env_file=None, overrides=overrides)
    await upgrade(settings.database_url, database_options(settings))
    app = Application(settings)
    await demo.seed(app)

    async def everybody_is_online(connection: Any) -> str:
        await connection.execute(update(providers).values(status="online"))
        found: str = (await connection.execute(select(users.c.id).where(users.c.email == demo.CUSTOMER))).scalar_one()
        return found

    user_id = await app.database.write(everybody_is_online)
    shop = Shop(app, Actor(user_id, "Casey", frozenset({Role.CUSTOMER}), (), "a-sign-in"))
    # Statements are compiled when first used.
    await shop.message(await shop.book())
    yield shop
    app.passwords.close()
    await app.database.close()


@pytest.fixture
def statements() -> Any:
    """What is sent to the database, as it is sent."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


async def test_a_booking_takes_few_statements(shop: Shop, statements: list[str]) -> None:
    await shop.book()
    assert len(statements) <= 12, "\n".join(statements)


async def test_a_message_takes_few_statements(shop: Shop, statements: list[str]) -> None:
    booking_id = await shop.book()
    statements.clear()
    await shop.message(booking_id)
    assert len(statements) <= 6, "\n".join(statements)


async def test_a_batch_of_the_sequencer_takes_few_statements_whatever_its_size(
    shop: Shop, statements: list[str]
) -> None:
    await shop.app.sequencer.run_once()
    for size in (1, 20):
        booking_id = await shop.book()
        for _ in range(size):
            await shop.message(booking_id)
        assert shop.app.sequencer.leading
        statements.clear()
        assert await shop.app.sequencer.run_once() > size
        assert len([sent for sent in statements if "leases" not in sent]) <= 6, "\n".join(statements)


async def test_those_who_come_together_are_looked_up_together(shop: Shop, statements: list[str]) -> None:
    tokens = shop.app.tokens
    tokens.ring = KeyRing(SigningKey.generate())
    now = datetime.now(UTC)
    issued = [tokens.issue(f"user{number}", f"sign-in{number}", now)[0] for number in range(50)]
    who = await asyncio.gather(*map(shop.app.doorman.authenticate, issued), return_exceptions=True)
    assert all(isinstance(answer, InvalidToken) for answer in who), "nobody has signed in"
    assert len(statements) == 1, "\n".join(statements)


async def test_a_booking_takes_few_calls(shop: Shop) -> None:
    with calls() as counted:
        await shop.book()
    assert within(counted.own_calls, 712, 0.10), f"{counted.own_calls} calls of the product's functions"
    assert within(counted.calls, 2_485, 0.15), f"{counted.calls} calls of Python functions"


async def test_a_message_takes_few_calls(shop: Shop) -> None:
    booking_id = await shop.book()
    with calls() as counted:
        await shop.message(booking_id)
    assert within(counted.own_calls, 256, 0.10), f"{counted.own_calls} calls of the product's functions"
    assert within(counted.calls, 1_211, 0.15), f"{counted.calls} calls of Python functions"
