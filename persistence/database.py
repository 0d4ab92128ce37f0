"""The database: engines, connections and one transaction at a time.

Two databases, one face. :meth:`Database.write` and :meth:`Database.read` run a piece of work in one transaction and
retry the *whole* of it when the database asks for that, so the work must have no effect outside its connection.

SQLite (embedded, one process): WAL; one writer connection, first come, first served, whose transactions start with
BEGIN IMMEDIATE, so that they never fail half-way; several readers, each transaction one snapshot.
``synchronous=NORMAL``: a commit is in the operating system's hands when it returns, so ``kill -9`` takes nothing back
that was delivered; power loss may take back the last commits (never corrupt). ``FULL`` closes that too, at one fsync
a commit: 215 µs in place of 21 µs where this was measured, some milliseconds on an ordinary disk, twice for each
event (the command's commit and the sequencer's).

MySQL and MariaDB: READ COMMITTED, session times in UTC, strict mode, TLS unless turned off by name. Writers and readers
have pools of their own. Readers run in autocommit: READ COMMITTED gives every statement its own snapshot anyway, and a
single-statement read then costs one round trip.

Credentials can change while it runs (:meth:`Database.rotate`): connections made from then on use the new ones, and each
older connection is replaced the next time somebody takes it from its pool. Work that holds one finishes on it, so both
must count for a moment.

Concurrency: safe for any number of tasks of one event loop. A task that is cancelled rolls back, and its connection
returns to the pool, or is dropped when it is no longer in step with the server. Never nest a ``write`` inside a
``write``: on SQLite the inner one waits for the outer.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import ColumnElement, event, literal_column, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool
from sqlalchemy.sql import Select

from domain.errors import Unavailable
from persistence.deadline import Deadline
from persistence.driver_errors import Trouble, trouble_of
from persistence.sqlite_driver import SqliteConnection
from persistence.tables import UtcDateTime
from persistence.turns import Turns

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

MAX_RETRIES = 3
"""Retries after the first attempt; a fourth collision in a row means too much contention to wait out."""

ROLLBACK_SECONDS = 2.0
"""Wait for a rollback; past it the connection is dropped, and the server rolls back by itself."""

GOODBYE_SECONDS = 1.0
"""Wait for a connection that is dropped to close in order; past it, it is torn down."""

_RETRYABLE = frozenset({Trouble.DEADLOCK, Trouble.LOCK_TIMEOUT, Trouble.LOST})


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """How to reach the database and how long to wait for it.

    Attributes:
        pool_size: connections per pool; one pool reads, one writes (on SQLite the writer is a single connection).
        pool_timeout_seconds: wait for a free connection.
        most_waiting: how many may wait for one.
        connect_timeout_seconds: wait for TCP to connect.
        lock_timeout_seconds: wait for a row lock (MySQL) or for another process's lock (SQLite). MySQL takes whole
            seconds.
        transaction_timeout_seconds: bound of one transaction with all its retries, and so of every answer it waits for.
        statement_timeout_seconds: after which MySQL itself ends a statement; ``None`` for no bound. A statement whose
            caller has given up goes on at the server otherwise. MariaDB ends any statement, MySQL only a SELECT; one
            that changes rows waits for locks at most ``lock_timeout_seconds`` there. MariaDB also ends a transaction
            that does nothing for so long.
        recycle_seconds: age at which an idle MySQL connection is replaced; below the server's ``wait_timeout`` and
            the idle limit of what stands between (NAT and load balancers drop after 350 s or so).
        tls: ``required``: encrypted and the server's certificate checked, else no connection. ``off``: plaintext.
        tls_ca_file: certificate authority of the server in PEM; the system's store when not given.
        sqlite_synchronous: see the module's note.
    """

    pool_size: int = 10
    pool_timeout_seconds: float = 5.0
    most_waiting: int = 1000
    connect_timeout_seconds: float = 5.0
    lock_timeout_seconds: int = 2
    transaction_timeout_seconds: float = 8.0
    statement_timeout_seconds: float | None = 8.0
    recycle_seconds: int = 280
    tls: Literal["required", "off"] = "required"
    tls_ca_file: Path | None = None
    sqlite_synchronous: Literal["normal", "full"] = "normal"


class OutcomeUnknown(Unavailable):
    """The connection broke while COMMIT was under way: the transaction may be done or not. Retry with the same key."""


class NotConnected(Exception):
    """The driver tripped while it connected: over half a greeting, or over what is none. It never leaves this module.

    asyncmy raises whatever Python does then (``struct.error``, ``UnboundLocalError``, …), and SQLAlchemy passes it on.
    """


class RetryTransaction(Exception):
    """Raised by work that must start over in a new transaction, because a concurrent one has just decided its question.

    A request to the loop in :meth:`Database.write`; it never leaves it.
    """


class Database:
    """One database behind a URL.

    Args:
        url: ``sqlite+aiosqlite:///path`` or ``mysql+asyncmy://user:password@host/name``.

    Attributes:
        dialect: ``sqlite`` or ``mysql`` (MariaDB too).
        retries: how often whole transactions were retried, by trouble; for metrics.

    Raises:
        ValueError: the URL names another driver, or an in-memory SQLite (which two connections cannot share).
    """

    def __init__(self, url: str | URL, options: DatabaseOptions | None = None) -> None:
        self.url = make_url(url)
        self.options = options or DatabaseOptions()
        self.retries: Counter[str] = Counter()
        self._cleanups: set[asyncio.Task[None]] = set()
        self._generation = 0
        self._writer: AsyncEngine
        self._reader: AsyncEngine
        if self.url.drivername == "sqlite+aiosqlite":
            self.dialect = "sqlite"
            self._writer, self._reader = _sqlite_engines(self.url, self.options)
        elif self.url.drivername == "mysql+asyncmy":
            self.dialect = "mysql"
            self._writer, self._reader = _mysql_engines(self.url, self.options)
            for engine in (self._writer, self._reader):
                event.listen(engine.sync_engine, "do_connect", self._present_credentials)
                event.listen(engine.sync_engine, "checkout", self._refuse_outdated)
        else:
            raise ValueError(f"no support for {self.url.drivername}; use sqlite+aiosqlite or mysql+asyncmy")
        bounds = (self.options.most_waiting, self.options.pool_timeout_seconds)
        self._write_turns = Turns(1 if self.dialect == "sqlite" else self.options.pool_size, *bounds)
        self._read_turns = Turns(self.options.pool_size, *bounds)

    async def write(self, work: Work[T], *, urgent: bool = False) -> T:
        """Run work in one read-write transaction and commit; start over when it collided with another.

        Returns what the work returned in the attempt that was committed. On a deadlock, a lock timeout, a connection
        lost before COMMIT or :class:`RetryTransaction`, the work runs again, at most :data:`MAX_RETRIES` times, after
        a jittered pause. Any other exception of the work rolls back and passes through, a duplicate key as
        SQLAlchemy's ``IntegrityError`` (:func:`persistence.driver_errors.trouble_of` tells it from others).

        Args:
            urgent: goes before all that wait for a connection; for the few things that everybody waits for.

        Raises:
            OutcomeUnknown: the connection broke during COMMIT.
            Unavailable: no connection, no turn or no luck within the bounds.
        """
        return await self._persist(self._write_once, work, urgent)

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads. On SQLite all of it sees one snapshot, on MySQL each statement its own.

        Raises:
            Unavailable: as for :meth:`write`.
        """
        return await self._persist(self._read_once, work, False)

    async def ping(self, timeout_seconds: float = 1.0) -> None:
        """Ask the database for one row.

        Raises:
            Unavailable: it did not answer in time.
        """
        try:
            async with Deadline(timeout_seconds):
                await self._read_once(_ping, True)
        except (TimeoutError, DBAPIError, PoolTimeoutError, NotConnected) as error:
            raise Unavailable("The database does not answer.") from error

    async def rotate(self, url: str | URL) -> None:
        """Use another user and password from now on. The new ones are tried first.

        Raises:
            ValueError: the URL is another database, or one without credentials.
            Unavailable: the new credentials do not work (yet); the old ones stay.
        """
        fresh = make_url(url)
        if self.dialect != "mysql" or _place(fresh) != _place(self.url):
            raise ValueError("only the user and the password can change while the process runs")
        probe = create_async_engine(fresh, connect_args=_mysql_arguments(self.options), poolclass=NullPool)
        try:
            async with Deadline(self.options.transaction_timeout_seconds):
                connection = await _connected(probe)
                try:
                    await _ping(connection)
                finally:
                    await connection.close()
        except (TimeoutError, DBAPIError, NotConnected) as error:
            raise Unavailable("The database does not take the new credentials.") from error
        finally:
            await probe.dispose()
        self.url = fresh
        self._generation += 1

    def _present_credentials(self, _dialect: Any, record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        record.info["generation"] = self._generation
        # The URL's own, which the engine was made with, may be outdated.
        parameters |= {"user": self.url.username, "password": self.url.password or ""}

    def _refuse_outdated(self, _connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.get("generation") != self._generation:
            raise DisconnectionError  # the pool replaces this connection and hands out the new one

    async def close(self) -> None:
        """Finish pending rollbacks and close every connection."""
        while self._cleanups:
            await asyncio.wait(self._cleanups)
        await self._writer.dispose()
        await self._reader.dispose()

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for a connection at this moment."""
        return self._write_turns.waiting + self._read_turns.waiting

    @property
    def in_use(self) -> int:
        """Connections that work holds at this moment."""
        return sum(
            engine.sync_engine.pool.checkedout()
            for engine in (self._writer, self._reader)
            if isinstance(engine.sync_engine.pool, AsyncAdaptedQueuePool)
        )

    @asynccontextmanager
    async def schema_connection(self) -> AsyncIterator[AsyncConnection]:
        """A writer's connection with no transaction around it, for migrations (MySQL commits at each DDL statement)."""
        try:
            connection = await _connected(self._writer)
        except NotConnected as error:
            raise Unavailable from error
        try:
            yield connection
        finally:
            await connection.close()

    async def _persist(self, once: Callable[[Work[T], bool], Awaitable[T]], work: Work[T], urgent: bool) -> T:
        bound = Deadline(self.options.transaction_timeout_seconds)
        try:
            async with bound:
                return await self._retry(once, work, urgent)
        except TimeoutError as error:
            if bound.expired():
                raise Unavailable from error
            raise

    async def _retry(self, once: Callable[[Work[T], bool], Awaitable[T]], work: Work[T], urgent: bool) -> T:
        retries = 0
        while True:
            cause: Exception
            try:
                return await once(work, urgent)
            except RetryTransaction as error:
                trouble, cause = Trouble.DUPLICATE, error
            except NotConnected as error:
                trouble, cause = Trouble.LOST, error
            except (DBAPIError, PoolTimeoutError) as error:
                found = trouble_of(error)
                if found is None or found is Trouble.DUPLICATE:
                    raise
                if found not in _RETRYABLE:
                    raise Unavailable from error
                trouble, cause = found, error
            if retries == MAX_RETRIES:
                raise Unavailable from cause
            self.retries[trouble] += 1
            await asyncio.sleep(random.uniform(0.005, 0.02) * 2**retries)
            retries += 1

    async def _write_once(self, work: Work[T], urgent: bool) -> T:
        await self._write_turns.take(urgent=urgent)
        try:
            return await self._transact(work)
        finally:
            # After a second cancellation the rollback may still be under way; then the next one waits in the pool.
            self._write_turns.give()

    async def _transact(self, work: Work[T]) -> T:
        cancellations = _cancellations()
        connection = await _connected(self._writer)
        try:
            result = await work(connection)
            _heed_cancellation(cancellations)
            try:
                await connection.commit()
            except DBAPIError as error:
                if trouble_of(error) in {Trouble.LOST, None}:
                    raise OutcomeUnknown from error
                raise
            await connection.close()
        except BaseException:
            await self._abandon(connection)
            raise
        _heed_cancellation(cancellations)
        return result

    async def _read_once(self, work: Work[T], urgent: bool) -> T:
        await self._read_turns.take(urgent=urgent)
        cancellations = _cancellations()
        try:
            connection = await _connected(self._reader)
            try:
                result = await work(connection)
                await connection.close()
            except BaseException:
                await self._abandon(connection)
                raise
            _heed_cancellation(cancellations)
            return result
        finally:
            self._read_turns.give()

    async def _abandon(self, connection: AsyncConnection) -> None:
        """Give a connection back after a failure; a cancellation of the caller does not stop that half-way."""
        cleanup = asyncio.create_task(self._give_back(connection))
        self._cleanups.add(cleanup)
        cleanup.add_done_callback(self._cleanups.discard)
        await asyncio.shield(cleanup)

    async def _give_back(self, connection: AsyncConnection) -> None:
        if connection.closed:
            return
        try:
            async with Deadline(ROLLBACK_SECONDS):
                await connection.rollback()
        except Exception:  # whatever it was, this connection's state is not known any more
            with suppress(TimeoutError):
                # The driver says goodbye first, behind whatever the server has not taken yet.
                async with Deadline(GOODBYE_SECONDS):
                    await connection.invalidate()
        await connection.close()


async def _connected(engine: AsyncEngine) -> AsyncConnection:
    """A connection of the pool, or a new one.

    Raises:
        DBAPIError, PoolTimeoutError: as SQLAlchemy has them.
        NotConnected: for all that the driver forgot to wrap.
    """
    try:
        return await engine.connect()
    except SQLAlchemyError:
        raise
    except Exception as error:
        raise NotConnected from error


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _heed_cancellation(before: int) -> None:
    """Raise a cancellation that somebody below has swallowed (asyncio.wait_for does, up to Python 3.11).

    Drivers and pools wait with it while they connect. Without this a cancelled task would run on, and a shutdown that
    waits for it would hang.
    """
    if _cancellations() > before:
        raise asyncio.CancelledError


def _place(url: URL) -> tuple[object, ...]:
    """A URL without its credentials."""
    return (url.drivername, url.host, url.port, url.database, url.query)


async def _ping(connection: AsyncConnection) -> None:
    await connection.execute(_PING)


_PING: Select[Any] = select(literal_column("1"))


def utc_now(dialect: str) -> ColumnElement[datetime]:
    """The database's clock as an expression; the same for all of one statement."""
    if dialect == "sqlite":
        return literal_column("strftime('%Y-%m-%d %H:%M:%f000', 'now')", UtcDateTime)
    return literal_column("UTC_TIMESTAMP(6)", UtcDateTime)


async def database_now(connection: AsyncConnection) -> datetime:
    """The database's clock, aware UTC: one clock for all nodes (milliseconds on SQLite, microseconds on MySQL)."""
    moment: datetime = (await connection.execute(select(utc_now(connection.dialect.name)))).scalar_one()
    return moment


def _sqlite_engines(url: URL, options: DatabaseOptions) -> tuple[AsyncEngine, AsyncEngine]:
    if not url.database or ":memory:" in url.database:
        raise ValueError("SQLite needs a file: writer and readers are connections of their own")
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    pragmas = [
        "PRAGMA journal_mode=WAL",
        f"PRAGMA synchronous={options.sqlite_synchronous.upper()}",
        "PRAGMA foreign_keys=ON",
        "PRAGMA temp_store=MEMORY",
    ]

    def engine(begin: str, size: int, more: list[str]) -> AsyncEngine:
        async def connect(*_: Any, **__: Any) -> SqliteConnection:
            connection = SqliteConnection(str(path), begin, pragmas + more, options.lock_timeout_seconds)
            # The interpreter must be able to end although a connection was not closed.
            connection._thread.daemon = True  # noqa: SLF001
            await connection
            return connection

        return create_async_engine(
            url,
            connect_args={"async_creator_fn": connect},
            poolclass=AsyncAdaptedQueuePool,
            pool_size=size,
            max_overflow=0,
            pool_timeout=options.pool_timeout_seconds,
            pool_reset_on_return=None,  # every path above ends its transaction itself
        )

    return engine("BEGIN IMMEDIATE", 1, []), engine("BEGIN", options.pool_size, ["PRAGMA query_only=ON"])


def _mysql_arguments(options: DatabaseOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "charset": "utf8mb4",
        "connect_timeout": options.connect_timeout_seconds,
        # asyncmy's own read_timeout is asyncio.wait_for around every read: a task for each, and up to Python 3.11 a
        # cancellation that arrives together with the data is swallowed. The timeout around the transaction does it.
        "read_timeout": None,
        "init_command": (
            "SET time_zone = '+00:00', sql_notes = 0, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',"
            f" innodb_lock_wait_timeout = {int(options.lock_timeout_seconds)}"
            f"{_limits(options.statement_timeout_seconds)}"
        ),
    }
    if options.tls == "required":
        # asyncmy asks for TLS whatever the server offers, and the handshake fails where it offers none: no fallback.
        arguments["ssl"] = ssl.create_default_context(cafile=options.tls_ca_file)
    return arguments


def _mysql_engines(url: URL, options: DatabaseOptions) -> tuple[AsyncEngine, AsyncEngine]:
    arguments = _mysql_arguments(options)

    def engine(isolation: str, **more: Any) -> AsyncEngine:
        return create_async_engine(
            url,
            connect_args=arguments,
            isolation_level=isolation,
            pool_size=options.pool_size,
            max_overflow=0,
            pool_timeout=options.pool_timeout_seconds,
            # No ping before use: a stale connection shows at the first statement, is dropped with its whole pool
            # generation, and the transaction is retried. That saves a round trip on every transaction.
            pool_recycle=options.recycle_seconds,
            pool_reset_on_return=None,
            **more,
        )

    return engine("READ COMMITTED"), engine("AUTOCOMMIT", skip_autocommit_rollback=True)


def _limits(seconds: float | None) -> str:
    """The end of a SET statement: how long a statement may take, and how long a transaction may do nothing.

    One whose client is gone without a word, like a machine without power, so lets go of its locks. MySQL has no such
    limit; there the network's keepalive decides. The two servers have different names, and each runs only its own
    comment: MariaDB skips those with MySQL's version numbers from 5.7 on.
    """
    if seconds is None:
        return ""
    milliseconds = max(1, round(seconds * 1000))
    mariadb = (
        f"/*M!100101 , max_statement_time = {milliseconds / 1000:g} */"
        f" /*M!100300 , idle_transaction_timeout = {math.ceil(seconds)} */"
    )
    mysql = f"/*!50708 , max_execution_time = {milliseconds} */"
    return f" {mariadb} {mysql}"
