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
def mysql_market_url(mariadb: MariaDB) -> Iterator[str]:
    """A migrated database that the tests of this room use one after the other: DDL is slow there."""
    name = asyncio.run(mariadb.create_database())
    url = mariadb.url(name)
    asyncio.run(upgrade(url, OPTIONS))
    yield url
    asyncio.run(mariadb.drop_database(name))


@pytest.fixture
def sqlite_market_url(sqlite_template: bytes, tmp_path: Path) -> str:
    path = tmp_path / "fixnado.db"
    path.write_bytes(sqlite_template)
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture(params=["sqlite", "mysql"])
def market_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_market_url")
    return url


@pytest.fixture
async def empty_market(market_url: str) -> AsyncIterator[Marketplace]:
    """A marketplace in which there is nothing yet, on a database of each kind."""
    database = Database(market_url, OPTIONS)
    try:
        if database.dialect == "mysql":
            await _wipe(database)
        yield Marketplace(database)
        assert database.in_use == 0, "a test leaked a connection"
    finally:
        await database.close()


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
