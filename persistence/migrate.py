"""Brings a database to the newest schema, and says where it stands.

Several nodes may start at once: one migrates, the others wait for it and find nothing left to do. On SQLite all
migrations are one transaction, begun with BEGIN IMMEDIATE; on MySQL, which commits at every DDL statement, a named
lock of the session (GET_LOCK) keeps the others out, and it is gone when its holder dies.

Until the first release the schema is one migration, made from the tables::

    python -m persistence.migrations.regenerate && ruff format persistence/migrations
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import Unavailable
from persistence.database import Database, DatabaseOptions
from persistence.driver_errors import trouble_of

Progress = Callable[[str], None]
"""Told each migration as it has been applied, e.g. ``0001 initial schema``."""

LOCK_WAIT_SECONDS = 60
"""How long a node waits for another that migrates."""

MIGRATION_SECONDS = 3600.0
"""How long all of it may take; adding an index to a large table does."""

_DRIVER_LOG = logging.getLogger("asyncmy")


async def upgrade(url: str, options: DatabaseOptions | None = None, on_progress: Progress = lambda _: None) -> None:
    """Apply what is missing, up to the newest migration.

    Raises:
        Unavailable: the database is away, or another node has migrated for longer than :data:`LOCK_WAIT_SECONDS`.
    """
    await _migrate(url, options, on_progress, lambda config: command.upgrade(config, "head"))


async def downgrade(
    url: str, revision: str, options: DatabaseOptions | None = None, on_progress: Progress = lambda _: None
) -> None:
    """Go back to a revision, ``base`` for an empty database. Data of dropped tables and columns is lost.

    Raises:
        Unavailable: as for :func:`upgrade`.
    """
    await _migrate(url, options, on_progress, lambda config: command.downgrade(config, revision))


async def current(database: Database) -> str | None:
    """The revision that the database is at, or ``None`` when no migration was ever applied."""

    def revision(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    async def work(connection: AsyncConnection) -> str | None:
        return await connection.run_sync(revision)

    return await database.read(work)


async def is_current(database: Database) -> bool:
    """Whether the database is at the newest migration this code knows."""
    return await current(database) == newest()


@cache
def newest() -> str | None:
    """The newest migration this code knows."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    return config


async def _migrate(
    url: str, options: DatabaseOptions | None, on_progress: Progress, run: Callable[[Config], None]
) -> None:
    patient = replace(
        options or DatabaseOptions(), lock_timeout_seconds=LOCK_WAIT_SECONDS, statement_timeout_seconds=None
    )
    database = Database(url, patient)
    config = _config()
    config.attributes["on_version_apply"] = lambda step, **_: on_progress(
        f"{step.up_revision_id} {step.up_revision.doc}"
    )

    def in_greenlet(connection: Connection) -> None:
        config.attributes["connection"] = connection
        run(config)

    _DRIVER_LOG.addFilter(_no_news)
    try:
        async with (
            asyncio.timeout(MIGRATION_SECONDS),
            database.schema_connection() as connection,
            _alone(database, connection),
        ):
            await connection.run_sync(in_greenlet)
            await connection.commit()
    except TimeoutError as error:
        raise Unavailable from error
    except CommandError as error:
        raise Unavailable("The database schema is of a newer version than this program.") from error
    except DBAPIError as error:
        if trouble_of(error) is None:
            raise
        raise Unavailable from error
    finally:
        _DRIVER_LOG.removeFilter(_no_news)
        await database.close()


def _no_news(record: logging.LogRecord) -> bool:
    """Alembic names the primary key of its own table, and MySQL warns that it calls all of them PRIMARY."""
    return "ignored for PRIMARY key" not in record.getMessage()


@asynccontextmanager
async def _alone(database: Database, connection: AsyncConnection) -> AsyncIterator[None]:
    if database.dialect == "sqlite":
        # Takes the write lock for the whole of what follows, and Alembic then leaves the transaction to us.
        await connection.execute(text("SELECT 1"))
        yield
        return
    name = f"fixnado.migrate.{database.url.database}"[:64]  # the longest name MySQL takes
    taken = await connection.scalar(text("SELECT GET_LOCK(:name, :wait)"), {"name": name, "wait": LOCK_WAIT_SECONDS})
    await connection.commit()
    if taken != 1:
        raise Unavailable("Another process is migrating the database.")
    try:
        yield
    finally:
        await connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": name})
        await connection.commit()
