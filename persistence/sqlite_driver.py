"""A SQLite connection for SQLAlchemy's aiosqlite dialect that crosses to its thread once per statement.

aiosqlite crosses four times (make a cursor, execute, fetch, close), and each crossing costs more than the statement.
Here one crossing does it all, and it also opens the transaction: ``begin`` is what a transaction starts with, sent
before the first statement of each. (sqlite3's own implicit BEGIN is deferred and skips SELECT, so a transaction that
reads before it writes could see a newer writer and fail with SQLITE_BUSY_SNAPSHOT.)
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import aiosqlite

R = TypeVar("R")

AGAIN_SECONDS = 0.01
"""Between looks at a lock that SQLite does not wait for itself."""


class SqliteConnection(aiosqlite.Connection):
    """aiosqlite's connection with its own cursor.

    Args:
        path: the database file.
        begin: ``BEGIN IMMEDIATE`` for the writer, ``BEGIN`` for readers.
        pragmas: statements that set the connection up, run once in autocommit.
        busy_seconds: how long a statement waits for another process's lock.
    """

    def __init__(self, path: str, begin: str, pragmas: Sequence[str], busy_seconds: float) -> None:
        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, cached_statements=512)
            try:
                give_up_at = time.monotonic() + busy_seconds
                for pragma in pragmas:
                    _set_up(connection, pragma, give_up_at)
            except BaseException:
                connection.close()
                raise
            return connection

        super().__init__(connect, iter_chunk_size=64)
        self.begin = begin

    async def _connect(self) -> aiosqlite.Connection:
        try:
            return await super()._connect()
        except Exception:
            # The thread was told to end and has nothing else to do. A loop that is closed before it has said so, as
            # that of a process which cannot start, would have it print a traceback.
            self._thread.join()
            raise

    def cursor(self) -> SqliteCursor:  # type: ignore[override]  # not a coroutine: there is nothing to wait for yet
        return SqliteCursor(self)

    async def in_thread(self, call: Callable[[sqlite3.Connection], R]) -> R:
        """Run a call with the raw connection, in the connection's thread."""
        result: R = await self._execute(lambda: call(self._conn))  # type: ignore[no-untyped-call]
        return result


def _set_up(connection: sqlite3.Connection, pragma: str, give_up_at: float) -> None:
    """SQLite does not wait for the lock that a new file's change to WAL takes: of processes that start at once, each
    but one would fail.
    """
    while True:
        try:
            connection.execute(pragma).close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up_at:
                raise
            time.sleep(AGAIN_SECONDS)
        else:
            return


class SqliteCursor:
    """The part of a DBAPI cursor that SQLAlchemy's adapter asks for. Rows are read in the crossing that executes."""

    __slots__ = ("_connection", "_rows", "arraysize", "description", "lastrowid", "rowcount")

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.arraysize = 1
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> SqliteCursor:
        return self

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> SqliteCursor:
        begin = self._connection.begin

        def call(raw: sqlite3.Connection) -> None:
            if not raw.in_transaction:
                raw.execute(begin)
            cursor = raw.execute(sql, parameters)
            self.description = cursor.description
            self.lastrowid = cursor.lastrowid
            self._rows = cursor.fetchall() if cursor.description else []
            self.rowcount = cursor.rowcount
            cursor.close()

        await self._connection.in_thread(call)
        return self

    async def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> SqliteCursor:
        begin = self._connection.begin

        def call(raw: sqlite3.Connection) -> None:
            if not raw.in_transaction:
                raw.execute(begin)
            cursor = raw.executemany(sql, parameters)
            self.rowcount = cursor.rowcount
            cursor.close()

        await self._connection.in_thread(call)
        return self

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        self._rows = []
