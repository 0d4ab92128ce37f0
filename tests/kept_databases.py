"""Databases that tests use one after the other: what SQLAlchemy has compiled stays from test to test, and the schema is
made once, for DDL is slow on MySQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import exists, insert, literal, select, union_all

from persistence.database import Database, DatabaseOptions
from persistence.migrate import upgrade
from persistence.tables import metadata
from tests.services import MariaDB

OPTIONS = DatabaseOptions(tls="off")


class KeptDatabase:
    """A migrated database, and one :class:`Database` for each set of options.

    Attributes:
        url: where it is; the same for as long as this lives.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._faces: dict[DatabaseOptions, Database] = {}

    @asynccontextmanager
    async def emptied(self, options: DatabaseOptions) -> AsyncIterator[Database]:
        """The database as the migrations leave it. No connection outlives the block."""
        if options not in self._faces:
            self._faces[options] = Database(self.url, options)
        database = self._faces[options]
        database.retries.clear()
        await self._empty(database)
        try:
            yield database
            assert database.in_use == 0, "a test leaked a connection"
        finally:
            await database.close()

    async def _empty(self, database: Database) -> None:
        raise NotImplementedError  # each kind has a quickest way


class KeptSqlite(KeptDatabase):
    """One name for a file of each test's own: a connection that is still being closed, and takes its journals with it,
    must not meet the next test's file.

    Attributes:
        template: the bytes of a migrated file without data.
    """

    def __init__(self, directory: Path) -> None:
        first = directory / "0.db"
        asyncio.run(upgrade(f"sqlite+aiosqlite:///{first}", OPTIONS))
        self.template = first.read_bytes()
        self._name = directory / "fixnado.db"
        self._file = first
        self._numbers = count(1)
        super().__init__(f"sqlite+aiosqlite:///{self._name}")

    async def _empty(self, database: Database) -> None:
        for leftover in self._file.parent.glob(f"{self._file.name}*"):
            leftover.unlink(missing_ok=True)
        self._file = self._file.with_name(f"{next(self._numbers)}.db")
        self._file.write_bytes(self.template)
        self._name.unlink(missing_ok=True)
        self._name.symlink_to(self._file)


class KeptMysql(KeptDatabase):
    """A database whose rows are deleted. Numbers that it gave out are not given out again."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        asyncio.run(upgrade(url, OPTIONS))
        self._seeds = asyncio.run(self._rows())

    async def _rows(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        database = Database(self.url, OPTIONS)
        try:
            async with database.schema_connection() as connection:
                found = {
                    table.name: [dict(row) for row in (await connection.execute(select(table))).mappings()]
                    for table in metadata.sorted_tables
                }
        finally:
            await database.close()
        return {name: rows for name, rows in found.items() if rows}

    async def _empty(self, database: Database) -> None:
        tables = list(reversed(metadata.sorted_tables))
        # Most of them are empty, and an empty DELETE costs a round trip each.
        filled = union_all(*(select(literal(table.name)).where(exists(select(table))) for table in tables))
        async with database.schema_connection() as connection:
            names = set((await connection.execute(filled)).scalars())
            for table in tables:
                if table.name in names:
                    await connection.execute(table.delete())
            for name, rows in self._seeds.items():
                await connection.execute(insert(metadata.tables[name]), list(rows))
            await connection.commit()


@contextmanager
def kept_mysql(server: MariaDB) -> Iterator[KeptMysql]:
    """A kept database on the server, which is dropped in the end."""
    name = asyncio.run(server.create_database())
    yield KeptMysql(server.url(name))
    asyncio.run(server.drop_database(name))
