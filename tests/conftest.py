from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.kept_databases import KeptDatabase, KeptMysql, KeptSqlite, kept_mysql
from tests.services import MariaDB, RedisServer

# No deadline per example: the machine is shared, and a slow example says nothing about the code.
hypothesis.settings.register_profile("fixnado", deadline=None)
hypothesis.settings.load_profile("fixnado")


gc.disable()  # what is imported and collected stays: there is no garbage worth looking for yet


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 100)  # as a server does


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each experiment that ran: what was tried, and what came of it."""
    reports = [report for found in ("passed", "failed") for report in terminalreporter.getreports(found)]
    lines = [text for report in reports for name, text in report.user_properties if name == "experiment"]
    if lines:
        terminalreporter.section("experiments")
        for line in lines:
            terminalreporter.write_line(str(line))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for the whole run, started by the first test that asks. Tests that kill or stop it make their own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty Redis."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """One MariaDB for the whole run, started by the first test that asks. Tests that kill or stop it make their own."""
    with MariaDB() as server:
        yield server


@pytest.fixture
async def mysql_url(mariadb: MariaDB) -> AsyncIterator[str]:
    """An empty database of the test's own, without TLS."""
    name = await mariadb.create_database()
    yield mariadb.url(name)
    await mariadb.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The path of a database file that is not there yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'fixnado.db'}"


@pytest.fixture(params=["sqlite", "mysql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind that the product supports, one after the other."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="session")
def kept_sqlite(tmp_path_factory: pytest.TempPathFactory) -> KeptSqlite:
    return KeptSqlite(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="session", name="kept_mysql")
def kept_mysql_fixture(mariadb: MariaDB) -> Iterator[KeptMysql]:
    with kept_mysql(mariadb) as database:
        yield database


@pytest.fixture(params=["sqlite", "mysql"])
def kept_database(request: pytest.FixtureRequest) -> KeptDatabase:
    """A migrated database of each kind, which a test takes empty: ``async with kept_database.emptied(options)``."""
    database: KeptDatabase = request.getfixturevalue(f"kept_{request.param}")
    return database


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more worker than processors: the tests of servers and of the page spend half of their time waiting."""
    return (os.cpu_count() or 1) + 1
