from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from domain.providers import Strategy
from tests.domain.marketplace import OPTIONS, Marketplace
from tests.kept_databases import KeptDatabase, KeptSqlite


@pytest.fixture(scope="session")
def sqlite_template(kept_sqlite: KeptSqlite) -> bytes:
    """A migrated SQLite file without data."""
    return kept_sqlite.template


@pytest.fixture
async def empty_market(kept_database: KeptDatabase) -> AsyncIterator[Marketplace]:
    """A marketplace in which there is nothing yet, on a database of each kind."""
    async with kept_database.emptied(OPTIONS) as database:
        yield Marketplace(database)


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
