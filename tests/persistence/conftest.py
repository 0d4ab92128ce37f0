from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from persistence.database import Database, DatabaseOptions
from tests.kept_databases import KeptDatabase, KeptMysql

OPTIONS = DatabaseOptions(tls="off", lock_timeout_seconds=1)


@pytest.fixture
async def database(kept_database: KeptDatabase) -> AsyncIterator[Database]:
    """A migrated, empty database of each kind."""
    async with kept_database.emptied(OPTIONS) as database:
        yield database


@pytest.fixture
async def mysql(kept_mysql: KeptMysql) -> AsyncIterator[Database]:
    """A migrated, empty MariaDB."""
    async with kept_mysql.emptied(OPTIONS) as database:
        yield database
