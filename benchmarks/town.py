"""A marketplace full of people for the works that drive the real server: accounts, sign-ins, tokens, and its nodes.

Signing in over REST costs an Argon2 hash each, on purpose; thousands of them would be the benchmark. So sign-ins are
written as rows and their tokens signed with the database's own key, and :data:`REAL_LOGINS` of the people sign in over
REST all the same: everybody has the same password, hashed as the product does.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.crowd import Progress, no_progress
from benchmarks.process import START_SECONDS, Child, ChildFailed, environment
from benchmarks.scene import Scene
from benchmarks.services import BenchMariaDB, BenchRedis
from domain.bookings import Booking, Kind, Status
from domain.identity import Role, SignIn
from domain.types import Money, Origin, Point, new_id
from persistence.database import Database
from persistence.migrate import upgrade
from persistence.repositories import SqlUnitOfWork
from persistence.tables import sessions, users
from server import demo
from server.app import Application, database_options
from server.robot import post
from server.settings import Settings
from tests.services import free_port

ROWS = 1_000
REAL_LOGINS = 10
TOKEN_SECONDS = 86_400
MASTER_KEY = base64.b64encode(os.urandom(32)).decode()
"""Of this run's databases; settling and the nodes must have the same."""


@dataclass(slots=True)
class Citizen:
    """A signed-in customer.

    Attributes:
        booking_id: a finished job of theirs, whose conversation goes on; empty when they have none.
        fresh_tokens: more tokens of the same sign-in, which no node has seen.
    """

    user_id: str
    email: str
    token: str
    booking_id: str = ""
    fresh_tokens: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Backing:
    """What a node stands on.

    Attributes:
        name: as it is called in tables.
        redis: ``None`` without one; a node on MySQL then works alone.
        database_pid: of a database that is a process of its own.
    """

    name: str
    database_url: str
    redis: BenchRedis | None = None
    database_pid: int | None = None

    def settings(self, **more: object) -> dict[str, object]:
        """Settings of a node by field name."""
        chosen: dict[str, object] = {
            "database_url": self.database_url,
            "database_tls": "off",
            "master_key": MASTER_KEY,
            "access_token_seconds": TOKEN_SECONDS,
            "max_sockets_per_ip": 1_000_000,
            "max_sockets_per_user": 10_000,
            "commands_per_second": 100_000,
            "commands_burst": 100_000,
            "log_level": "warning",
            "drain_seconds": 0,
        }
        if self.redis is not None:
            chosen["redis_url"] = self.redis.url
        return chosen | more


class NoRedisYet(RuntimeError):
    """The nodes of this build do not use the Redis they were given."""


@contextmanager
def embedded() -> Iterator[Backing]:
    """SQLite in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="fixnado-bench-") as directory:
        yield Backing("embedded", f"sqlite+aiosqlite:///{directory}/fixnado.db")


@asynccontextmanager
async def mysql(where: Iterable[int], *, with_redis: bool = True) -> AsyncIterator[Backing]:
    """MariaDB and Redis on these cores.

    Raises:
        ServiceMissing: one of them is not installed.
    """
    cores = frozenset(where)
    with ExitStack() as stack:
        server = stack.enter_context(BenchMariaDB(cores))
        redis = stack.enter_context(BenchRedis(cores)) if with_redis else None
        name = await server.create_database()
        yield Backing(
            "MySQL + Redis" if redis else "MySQL, one node without Redis", server.url(name), redis, server.pid
        )


async def settle(
    backing: Backing,
    people: int,
    *,
    with_bookings: bool = False,
    fresh_tokens: int = 0,
    progress: Progress = no_progress,
) -> list[Citizen]:
    """The demo's marketplace, and so many customers with a sign-in and so many spare tokens each."""
    chosen = {name: value for name, value in backing.settings().items() if name != "redis_url"}
    settings = Settings.load(environ={}, env_file=None, overrides=chosen)
    # The driver repeats MariaDB's remark that it names primary keys itself.
    logging.getLogger("asyncmy").setLevel(logging.ERROR)
    await upgrade(settings.database_url, database_options(settings))
    app = Application(settings)
    await app.start()
    try:
        await demo.seed(app)
        password_hash = await app.passwords.hash(demo.PASSWORD)
        citizens: list[Citizen] = []
        for start in range(0, people, ROWS):
            progress(start / people)
            citizens += await _add_people(app, password_hash, start, min(ROWS, people - start), with_bookings)
        for citizen in citizens:
            session_id = app.tokens.verify(citizen.token).session_id
            issued = [app.tokens.issue(citizen.user_id, session_id, datetime.now(UTC)) for _ in range(fresh_tokens)]
            citizen.fresh_tokens = [token for token, _ in issued]
        return citizens
    finally:
        await app.stop()


async def _add_people(
    app: Application, password_hash: str, start: int, count: int, with_bookings: bool
) -> list[Citizen]:
    now = datetime.now(UTC)
    audit = {"created_at": now, "created_by": "bench", "updated_at": now, "updated_by": "bench"}
    people, sign_ins = [], []
    citizens: list[Citizen] = []
    for number in range(start, start + count):
        user_id, session_id = new_id(now), new_id(now)
        email = f"citizen{number}@bench.test"
        people.append(
            {
                "id": user_id,
                "email": email,
                "name": f"Citizen {number}",
                "password_hash": password_hash,
                "roles": [Role.CUSTOMER.value],
                "disabled_at": None,
            }
            | audit
        )
        sign_ins.append(asdict(SignIn(session_id, user_id, {}, now, now, now + timedelta(days=30))))
        token, _ = app.tokens.issue(user_id, session_id, now)
        citizen = Citizen(user_id, email, token)
        if with_bookings:
            citizen.booking_id = new_id(now)
        citizens.append(citizen)

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(insert(users), people)
        await connection.execute(insert(sessions), sign_ins)

    await app.database.write(work)
    await app.transactions.write(lambda uow: _add_jobs(uow, citizens, now), Origin("bench"))
    return citizens


async def _add_jobs(uow: SqlUnitOfWork, citizens: Sequence[Citizen], now: datetime) -> None:
    """The finished jobs of those who have one, and their conversations."""
    for citizen in citizens:
        if citizen.booking_id:
            job = Booking(
                id=citizen.booking_id,
                status=Status.COMPLETED,
                version=9,
                kind=Kind.ON_DEMAND,
                service_id="plumbing",
                zone_id=demo.ZONE_ID,
                customer_id=citizen.user_id,
                location=Point(51.539, -0.1426),
                address=None,
                slot=None,
                notes=None,
                price=Money(8_500, "GBP"),
                created_at=now,
                updated_at=now,
                completed_at=now,
            )
            await uow.bookings.add(job)
            await uow.conversations.open(job.id)


async def login(base: str, citizens: Sequence[Citizen]) -> None:
    """The first few sign in over REST and use what they get."""
    for citizen in citizens[:REAL_LOGINS]:
        answer = await post(base, "/auth/login", {"email": citizen.email, "password": demo.PASSWORD})
        citizen.token = answer["access_token"]


class Node:
    """A real ``fixnado serve`` process."""

    def __init__(self, backing: Backing, where: Iterable[int], **settings: object) -> None:
        self.port = free_port()
        env = environment(**backing.settings(port=self.port, **settings))
        self._directory = tempfile.TemporaryDirectory(prefix="fixnado-bench-")
        command = [sys.executable, "-m", "server", "serve"]
        self.child = Child(command, where, env=env, cwd=Path(self._directory.name), commanded=False)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.child.pid

    def start(self) -> None:
        """Returns when it is ready.

        Raises:
            ChildFailed: it is not.
        """
        self.child.start()
        deadline = time.monotonic() + START_SECONDS
        while self.child.running and time.monotonic() < deadline:
            if self._ready():
                return
            time.sleep(0.05)
        raise ChildFailed(f"a node did not become ready:\n{self.child.log()[-2000:]}")

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base}/health/ready", timeout=2) as reply:  # noqa: S310 — http above
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def close(self) -> None:
        self.child.close()
        self._directory.cleanup()


@asynccontextmanager
async def nodes(backing: Backing, count: int, where: Iterable[int], **settings: object) -> AsyncIterator[list[Node]]:
    """So many nodes, ready.

    Raises:
        ChildFailed: one does not start.
        NoRedisYet: they were given a Redis and do not listen to it.
    """
    cores = frozenset(where)
    started: list[Node] = []
    try:
        for _ in range(count):
            node = Node(backing, cores, **settings)
            started.append(node)
            await asyncio.to_thread(node.start)
        if backing.redis is not None and not await _listened(backing.redis, count):
            raise NoRedisYet("the nodes do not listen to Redis")
        yield started
    finally:
        for node in started:
            node.close()


async def _listened(redis: BenchRedis, count: int) -> bool:
    for _ in range(20):
        if redis.listeners() >= count:
            return True
        await asyncio.sleep(0.1)
    return False


def open_database(backing: Backing) -> Database:
    """Beside the nodes: to commit events that they did not cause, and to look at the log. The caller closes it."""
    chosen = {name: value for name, value in backing.settings().items() if name != "redis_url"}
    settings = Settings.load(environ={}, env_file=None, overrides=chosen)
    return Database(settings.database_url, database_options(settings))


def server_cores(scene: Scene) -> list[int]:
    """Where a measured node runs."""
    return [scene.cores.server]
