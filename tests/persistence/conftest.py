from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from persistence.database import Database, DatabaseOptions
from persistence.migrate import upgrade

OPTIONS = DatabaseOptions(tls="off", lock_timeout_seconds=1)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database of each kind."""
    await upgrade(database_url, OPTIONS)
    database = Database(database_url, OPTIONS)
    yield database
    assert database.in_use == 0, "a test leaked a connection"
    await database.close()


@pytest.fixture
async def mysql(mysql_url: str) -> AsyncIterator[Database]:
    """A migrated MariaDB."""
    await upgrade(mysql_url, OPTIONS)
    database = Database(mysql_url, OPTIONS)
    yield database
    assert database.in_use == 0, "a test leaked a connection"
    await database.close()
