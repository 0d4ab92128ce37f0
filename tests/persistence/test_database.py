from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import bindparam, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import Unavailable
from persistence.database import MAX_RETRIES, Database, DatabaseOptions, OutcomeUnknown, RetryTransaction, database_now
from persistence.driver_errors import Trouble, trouble_of
from persistence.migrate import upgrade
from persistence.tables import read_marks
from tests.persistence.conftest import OPTIONS
from tests.services import MariaDB

_MARK = update(read_marks).where(read_marks.c.user_id == bindparam("who")).values(read_offset=bindparam("mark"))
_COUNT = select(func.count()).select_from(read_marks)


async def _add(connection: AsyncConnection, user: str, offset: int = 0) -> None:
    row = {"conversation_id": "c", "user_id": user, "read_offset": offset}
    await connection.execute(insert(read_marks), row)


def _adding(user: str) -> Callable[[AsyncConnection], Awaitable[None]]:
    return lambda connection: _add(connection, user)


async def _count(connection: AsyncConnection) -> int:
    return (await connection.execute(_COUNT)).scalar_one()


async def _two_rows(database: Database) -> None:
    async def work(connection: AsyncConnection) -> None:
        await _add(connection, "a")
        await _add(connection, "b")

    await database.write(work)


# --- ground rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "postgresql+asyncpg://h/d"])
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError):
        Database(url)


async def test_the_directory_of_the_database_file_is_made(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/var/deep/fixnado.db")
    await database.ping(5)
    await database.close()


async def test_work_that_fails_leaves_nothing_and_its_error_passes_through(database: Database) -> None:
    async def work(connection: AsyncConnection) -> None:
        await _add(connection, "a")
        raise KeyError("bug")

    with pytest.raises(KeyError):
        await database.write(work)
    assert await database.read(_count) == 0
    assert database.in_use == 0


async def test_a_duplicate_is_told_from_other_integrity_errors(database: Database) -> None:
    async def twice(connection: AsyncConnection) -> None:
        await _add(connection, "a")
        await _add(connection, "a")

    async def stranger(connection: AsyncConnection) -> None:
        await connection.execute(
            text(
                "INSERT INTO refresh_tokens (token_hash, session_id, issued_at, expires_at)"
                " VALUES ('x', 'y', '2026-11-24', '2026-11-25')"
            )
        )

    with pytest.raises(IntegrityError) as duplicate:
        await database.write(twice)
    assert trouble_of(duplicate.value) is Trouble.DUPLICATE
    with pytest.raises(IntegrityError) as foreign:
        await database.write(stranger)
    assert trouble_of(foreign.value) is None


async def test_names_tell_upper_from_lower_case_and_text_is_unicode(database: Database) -> None:
    async def work(connection: AsyncConnection) -> list[str]:
        for user in ("a", "A", "á", "🔧"):
            await _add(connection, user)
        rows = await connection.execute(select(read_marks.c.user_id).where(read_marks.c.user_id.in_(["a", "🔧"])))
        return sorted(rows.scalars())

    assert await database.write(work) == ["a", "🔧"]


async def test_the_databases_clock_is_aware_utc(database: Database) -> None:
    now = await database.read(database_now)
    assert now.tzinfo is UTC
    assert abs(datetime.now(UTC) - now) < timedelta(seconds=5)


async def test_a_reader_of_sqlite_sees_one_snapshot_and_cannot_write(sqlite_url: str) -> None:
    await upgrade(sqlite_url)
    database = Database(sqlite_url)

    async def read_twice(connection: AsyncConnection) -> tuple[int, int]:
        before = await _count(connection)
        await _two_rows(database)
        return before, await _count(connection)

    assert await database.read(read_twice) == (0, 0)
    assert await database.read(_count) == 2
    with pytest.raises(Unavailable):
        await database.read(lambda connection: _add(connection, "x"))
    await database.close()


async def test_sessions_of_mysql_are_set_up_as_promised(mysql: Database) -> None:
    names = ("time_zone", "tx_isolation", "character_set_client", "innodb_lock_wait_timeout", "sql_mode", "autocommit")

    async def work(connection: AsyncConnection) -> list[object]:
        return list((await connection.execute(text("SELECT " + ", ".join(f"@@{name}" for name in names)))).one())

    zone, isolation, charset, lock_wait, mode, autocommit = await mysql.write(work)
    assert (zone, isolation, charset, lock_wait, autocommit) == ("+00:00", "READ-COMMITTED", "utf8mb4", 1, 0)
    assert "STRICT_ALL_TABLES" in str(mode)
    assert (await mysql.read(work))[-1] == 1


async def test_many_more_writers_than_connections_all_get_their_turn(database: Database) -> None:
    small = Database(database.url, DatabaseOptions(tls="off", pool_size=2))
    await asyncio.gather(*(small.write(_adding(f"u{number}")) for number in range(50)))
    assert await small.read(_count) == 50
    await small.close()


# --- retries ----------------------------------------------------------------------------------------------------------


async def test_a_deadlock_is_broken_and_both_transactions_succeed(mysql: Database) -> None:
    await _two_rows(mysql)
    both_locked = asyncio.Barrier(2)
    attempts = 0

    async def cross(first: str, second: str, mark: int) -> None:
        tries = 0

        async def work(connection: AsyncConnection) -> None:
            nonlocal attempts, tries
            attempts += 1
            tries += 1
            await connection.execute(_MARK, {"who": first, "mark": mark})
            if tries == 1:
                await both_locked.wait()
            await connection.execute(_MARK, {"who": second, "mark": mark})

        await mysql.write(work)

    await asyncio.gather(cross("a", "b", 1), cross("b", "a", 2))
    assert mysql.retries == {"deadlock": 1}
    assert attempts == 3

    async def marks(connection: AsyncConnection) -> list[int]:
        return list((await connection.execute(select(read_marks.c.read_offset))).scalars())

    first, second = await mysql.read(marks)
    assert first == second


async def test_a_lock_timeout_starts_the_whole_transaction_over(mysql: Database) -> None:
    await _two_rows(mysql)
    locked, release = asyncio.Event(), asyncio.Event()
    other = Database(mysql.url, OPTIONS)

    async def hold(connection: AsyncConnection) -> None:
        await connection.execute(_MARK, {"who": "b", "mark": 1})
        locked.set()
        await release.wait()

    holding = asyncio.create_task(other.write(hold))
    await locked.wait()
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            release.set()
        # After 1205 this insert would still stand, and be committed twice, were only the statement repeated.
        await _add(connection, f"attempt-{attempts}")
        await connection.execute(_MARK, {"who": "b", "mark": 2})

    await mysql.write(work)
    await holding
    assert attempts == 2
    assert mysql.retries == {"lock_timeout": 1}
    assert await mysql.read(_count) == 3
    await other.close()


async def test_a_lock_that_is_never_released_ends_in_unavailable(mysql: Database) -> None:
    await _two_rows(mysql)
    impatient = Database(mysql.url, DatabaseOptions(tls="off", lock_timeout_seconds=1, transaction_timeout_seconds=1.5))

    async def hold(connection: AsyncConnection) -> None:
        await connection.execute(_MARK, {"who": "b", "mark": 1})
        with pytest.raises(Unavailable):
            await impatient.write(lambda other: _mark(other, "b"))

    await mysql.write(hold)
    assert impatient.in_use == 0
    await impatient.close()


async def _mark(connection: AsyncConnection, user: str) -> None:
    await connection.execute(_MARK, {"who": user, "mark": 9})


async def test_a_transaction_whose_client_is_gone_without_a_word_lets_go(mysql: Database) -> None:
    """As when a machine loses its power: nobody ends the transaction, and the connection stays for hours."""
    brief = Database(mysql.url, replace(OPTIONS, statement_timeout_seconds=1.0))
    row = read_marks.c.conversation_id == "c"

    async def prepare(connection: AsyncConnection) -> None:
        await connection.execute(insert(read_marks), {"conversation_id": "c", "user_id": "u", "read_offset": 0})

    async def take(connection: AsyncConnection) -> None:
        await connection.execute(update(read_marks).where(row).values(read_offset=1))

    await mysql.write(prepare)
    async with brief.schema_connection() as gone:
        await take(gone)
        began = time.monotonic()
        await mysql.write(take)
        assert 0.3 < time.monotonic() - began < 6.0
        # The driver is not told before it asks.
        with pytest.raises(DBAPIError):
            await gone.execute(text("SELECT 1"))
        await gone.invalidate()
    await brief.close()


async def test_another_process_that_holds_sqlites_lock_is_waited_for(sqlite_url: str) -> None:
    await upgrade(sqlite_url)
    database = Database(sqlite_url, DatabaseOptions(lock_timeout_seconds=1))
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite+aiosqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(_two_rows(database))
    async with asyncio.timeout(10):
        while not database.retries:  # noqa: ASYNC110  # a counter tells nobody that it has changed
            await asyncio.sleep(0.01)
    other.execute("COMMIT")
    other.close()
    await writing
    assert database.retries["lock_timeout"] >= 1
    await database.close()


async def test_retries_are_bounded(database: Database) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await _add(connection, "a")
        raise RetryTransaction

    with pytest.raises(Unavailable):
        await database.write(work)
    assert attempts == 1 + MAX_RETRIES
    assert await database.read(_count) == 0


# --- cancellation and timeouts ----------------------------------------------------------------------------------------


async def test_cancellation_at_any_moment_leaks_no_connection(database: Database) -> None:
    small = Database(database.url, DatabaseOptions(tls="off", pool_size=3))
    random.seed(7)
    finished = 0

    async def work(connection: AsyncConnection, number: int) -> None:
        await _add(connection, f"u{number}")
        await asyncio.sleep(0)
        await _mark(connection, f"u{number}")

    async def one(number: int) -> None:
        nonlocal finished
        await small.write(lambda connection: work(connection, number))
        finished += 1

    for start in range(0, 240, 12):
        tasks = [asyncio.create_task(one(number)) for number in range(start, start + 12)]
        for task in tasks:
            await asyncio.sleep(random.uniform(0, 0.002))
            if random.random() < 0.7:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert small.in_use == 0
    # A cancelled caller may have been committed; one that was told so has been.
    assert finished <= await small.read(_count) < 240
    await small.close()


async def test_a_second_cancellation_does_not_stop_the_rollback(database: Database) -> None:
    inside = asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        await _add(connection, "a")
        inside.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(database.write(work))
    await inside.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await _two_rows(database)
    assert await database.read(_count) == 2
    assert database.in_use == 0


async def test_work_that_goes_on_waiting_after_its_deadline_is_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a driver would that overhears the deadline while it connects, at a server that is frozen."""
    monkeypatch.setattr("persistence.deadline.AGAIN_SECONDS", 0.1)
    brief = Database(database.url, DatabaseOptions(tls="off", transaction_timeout_seconds=0.5))

    async def work(connection: AsyncConnection) -> None:
        await _count(connection)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    async with asyncio.timeout(10):
        for transaction in (brief.write, brief.read):
            with pytest.raises(Unavailable):
                await transaction(work)
    assert brief.in_use == 0
    await _two_rows(database)
    assert await brief.read(_count) == 2
    await brief.close()


async def test_a_dropped_connection_that_cannot_say_goodbye_holds_nobody_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: AsyncConnection) -> None:
        raise OSError("the rollback did not get through")

    async def hangs(_: AsyncConnection) -> None:
        await asyncio.sleep(3600)

    async def work(connection: AsyncConnection) -> None:
        await _count(connection)
        raise ValueError("own")

    with monkeypatch.context() as broken:
        broken.setattr("persistence.database.GOODBYE_SECONDS", 0.05)
        broken.setattr(AsyncConnection, "rollback", fails)
        broken.setattr(AsyncConnection, "invalidate", hangs)
        async with asyncio.timeout(10):
            with pytest.raises(ValueError, match="own"):
                await database.read(work)
    assert database.in_use == 0


async def test_a_cancellation_that_somebody_below_swallows_is_heeded_all_the_same(database: Database) -> None:
    """As asyncio.wait_for does, up to Python 3.11, when what it waits for is done at the same moment."""
    inside = asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        await _add(connection, "a")
        inside.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

    task = asyncio.create_task(database.write(work))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await database.read(_count) == 0


async def test_work_that_takes_too_long_is_rolled_back(database: Database) -> None:
    impatient = Database(database.url, DatabaseOptions(tls="off", transaction_timeout_seconds=0.3))

    async def work(connection: AsyncConnection) -> None:
        await _add(connection, "a")
        await asyncio.sleep(3600)

    with pytest.raises(Unavailable):
        await impatient.write(work)
    assert await database.read(_count) == 0
    await impatient.close()


async def test_a_timeout_of_the_work_itself_is_its_own(database: Database) -> None:
    async def work(connection: AsyncConnection) -> None:
        raise TimeoutError("somebody else's")

    with pytest.raises(TimeoutError, match="somebody else's"):
        await database.write(work)


# --- broken connections -----------------------------------------------------------------------------------------------


async def _kill(connection: AsyncConnection, killer: Database) -> None:
    victim = await connection.scalar(text("SELECT connection_id()"))

    async def kill(other: AsyncConnection) -> None:
        await other.execute(text(f"KILL {victim}"))

    await killer.write(kill)


async def test_a_connection_lost_before_commit_is_replaced_and_the_work_repeated(mysql: Database) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await _add(connection, "a")
        if attempts == 1:
            await _kill(connection, mysql)
        await _add(connection, "b")

    await mysql.write(work)
    assert attempts == 2
    assert mysql.retries == {"lost": 1}
    assert await mysql.read(_count) == 2


async def test_a_connection_lost_at_commit_is_an_unknown_outcome_and_not_repeated(mysql: Database) -> None:
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await _add(connection, "a")
        await _kill(connection, mysql)

    with pytest.raises(OutcomeUnknown):
        await mysql.write(work)
    assert attempts == 1
    assert mysql.in_use == 0


async def test_a_server_that_died_and_came_back_is_used_again(mariadb_of_its_own: MariaDB) -> None:
    url = mariadb_of_its_own.url(await mariadb_of_its_own.create_database())
    await upgrade(url, OPTIONS)
    database = Database(url, DatabaseOptions(tls="off", connect_timeout_seconds=1))
    await _two_rows(database)
    mariadb_of_its_own.kill()
    with pytest.raises(Unavailable):
        await database.ping(1)
    with pytest.raises(Unavailable):
        await database.read(_count)
    mariadb_of_its_own.start()
    await database.ping(5)
    assert await database.read(_count) == 2
    await database.write(lambda connection: _add(connection, "c"))

    mariadb_of_its_own.pause()
    began = time.monotonic()
    frozen = Database(url, DatabaseOptions(tls="off", transaction_timeout_seconds=0.5))
    await _silence(database)
    tasks = [frozen.write(_adding(f"f{number}")) for number in range(25)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert time.monotonic() - began < 8
    mariadb_of_its_own.resume()
    assert frozen.in_use == 0
    assert await frozen.read(_count) >= 3
    await frozen.close()
    await database.close()


async def _silence(database: Database) -> None:
    """Wait for a server that was sent SIGSTOP: threads on other processors stop a little later."""
    async with asyncio.timeout(5):
        while True:
            try:
                await database.ping(0.3)
            except Unavailable:
                return


@pytest.fixture
def mariadb_of_its_own() -> Iterator[MariaDB]:
    with MariaDB() as server:
        yield server


# --- kill -9 ----------------------------------------------------------------------------------------------------------

_WRITER = """
import asyncio, sys
from sqlalchemy import insert
from persistence.database import Database
from persistence.tables import read_marks

async def main():
    database = Database(sys.argv[1])
    for number in range(1_000_000):
        row = {"conversation_id": "c", "user_id": f"u{number}", "read_offset": 0}
        await database.write(lambda connection: connection.execute(insert(read_marks), row))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_kill_9_takes_back_nothing_that_was_committed(sqlite_url: str) -> None:
    await upgrade(sqlite_url)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, sqlite_url, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    told = 0
    while told < 200:
        told = int(await process.stdout.readline()) + 1
    process.send_signal(signal.SIGKILL)
    told += len((await process.stdout.read()).split(b"\n")) - 1
    await process.wait()
    database = Database(sqlite_url)
    # One more may have been committed than was told.
    assert await database.read(_count) in {told, told + 1}
    await database.close()
