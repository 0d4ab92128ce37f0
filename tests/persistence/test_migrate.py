from __future__ import annotations

import asyncio
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.database import Database
from persistence.migrate import current, downgrade, is_current, newest, upgrade
from persistence.tables import metadata
from tests.persistence.conftest import OPTIONS


async def schema(database: Database) -> dict[str, Any]:
    """Every table as the database itself writes it down."""
    sqlite = "SELECT name || coalesce(tbl_name, ''), sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"

    async def work(connection: AsyncConnection) -> dict[str, Any]:
        if database.dialect == "sqlite":
            rows = (await connection.execute(text(sqlite))).all()
            found = {row[0]: sorted(line.strip(" \t,)") for line in (row[1] or "").splitlines()) for row in rows}
        else:
            found = {}
            for (table,) in (await connection.execute(text("SHOW TABLES"))).all():
                statement = (await connection.execute(text(f"SHOW CREATE TABLE `{table}`"))).one()[1]
                found[table] = sorted(line.strip(" ,") for line in statement.splitlines())
        return {name: lines for name, lines in found.items() if "alembic_version" not in name}

    return await database.read(work)


async def test_migrations_reproduce_the_tables(database: Database) -> None:
    def differences(connection: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))

    async def work(connection: AsyncConnection) -> list[Any]:
        return await connection.run_sync(differences)

    assert await database.read(work) == []


async def test_migrated_and_created_schemas_are_the_same_to_the_letter(database_url: str) -> None:
    await upgrade(database_url, OPTIONS)
    database = Database(database_url, OPTIONS)
    migrated = await schema(database)

    def recreate(connection: Connection) -> None:
        metadata.drop_all(connection)
        metadata.create_all(connection)

    async with database.schema_connection() as connection:
        await connection.run_sync(recreate)
        await connection.commit()
    assert await schema(database) == migrated
    await database.close()


async def test_every_migration_can_be_undone_and_done_again(database_url: str) -> None:
    steps: list[str] = []
    database = Database(database_url, OPTIONS)
    assert await current(database) is None
    assert not await is_current(database)
    await upgrade(database_url, OPTIONS, steps.append)
    assert await current(database) == newest()
    assert await is_current(database)
    await downgrade(database_url, "base", OPTIONS)

    async def tables(connection: AsyncConnection) -> list[str]:
        return await connection.run_sync(lambda sync: inspect(sync).get_table_names())

    assert await database.read(tables) == ["alembic_version"]
    await upgrade(database_url, OPTIONS, steps.append)
    assert await is_current(database)
    assert steps[0].startswith("0001 ")
    assert steps == steps[: len(steps) // 2] * 2
    await database.close()


async def test_nodes_that_start_together_migrate_once(database_url: str) -> None:
    steps: list[str] = []
    await asyncio.gather(*(upgrade(database_url, OPTIONS, steps.append) for _ in range(4)))
    assert len(steps) == len(set(steps)) > 0
