from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import exists, literal, select, union_all

from domain.providers import Strategy
from persistence.database import Database
from persistence.migrate import upgrade
from persistence.tables import metadata
from tests.domain.marketplace import OPTIONS, Marketplace
from tests.services import MariaDB


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty migrated SQLite file; each test gets a copy, which is quicker than migrating."""
    path = tmp_path_factory.mktemp("template") / "fixnado.db"
    asyncio.run(upgrade(f"sqlite+aiosqlite:///{path}", OPTIONS))
    return path.read_bytes()


@pytest.fixture(scope="session")
def sqlite_database(sqlite_template: bytes, tmp_path_factory: pytest.TempPathFactory) -> Database:
    return Database(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('market') / 'fixnado.db'}", OPTIONS)


@pytest.fixture(scope="session")
def mysql_database(mariadb: MariaDB) -> Iterator[Database]:
    name = asyncio.run(mariadb.create_database())
    url = mariadb.url(name)
    asyncio.run(upgrade(url, OPTIONS))
    yield Database(url, OPTIONS)
    asyncio.run(mariadb.drop_database(name))


@pytest.fixture(params=["sqlite", "mysql"])
def kept_database(request: pytest.FixtureRequest) -> Database:
    """A database of each kind that the tests of this room use one after the other: what SQLAlchemy has compiled stays,
    and DDL is slow on MySQL.
    """
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


@pytest.fixture
async def market_database(kept_database: Database, sqlite_template: bytes) -> AsyncIterator[Database]:
    """A migrated, empty database of each kind. No connection outlives a test."""
    database = kept_database
    if database.dialect == "sqlite":
        path = Path(str(database.url.database))
        for rest in path.parent.glob(f"{path.name}-*"):
            rest.unlink()
        path.write_bytes(sqlite_template)
    else:
        await _wipe(database)
    database.retries.clear()
    try:
        yield database
        assert database.in_use == 0, "a test leaked a connection"
    finally:
        await database.close()


@pytest.fixture
def empty_market(market_database: Database) -> Marketplace:
    """A marketplace in which there is nothing yet, on a database of each kind."""
    return Marketplace(market_database)


@pytest.fixture
async def market(empty_market: Marketplace) -> Marketplace:
    """A marketplace with the zone ``camden`` (batched) and the service ``plumbing`` (an hour, GBP 85.00)."""
    await empty_market.zone()
    await empty_market.service()
    return empty_market


@pytest.fixture
async def broadcast_market(empty_market: Marketplace) -> Marketplace:
    """The same, but the zone asks everybody at once."""
    await empty_market.zone(strategy=Strategy.BROADCAST)
    await empty_market.service()
    return empty_market


async def _wipe(database: Database) -> None:
    kept = {"log_seed", "signing_keys"}
    tables = [table for table in reversed(metadata.sorted_tables) if table.name not in kept]
    # Most of them are empty, and an empty DELETE costs a round trip each.
    filled = union_all(*(select(literal(table.name)).where(exists(select(table))) for table in tables))
    async with database.schema_connection() as connection:
        names = set((await connection.execute(filled)).scalars())
        for table in tables:
            if table.name in names:
                await connection.execute(table.delete())
        await connection.commit()
