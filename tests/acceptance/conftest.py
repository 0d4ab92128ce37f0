from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.client import Rest, close_all
from tests.acceptance.demo import Demo, environment
from tests.acceptance.town import Town
from tests.services import MariaDB

SHOWN_CHARACTERS = 4_000

_used: pytest.StashKey[list[Demo]] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the servers of a failed test printed meanwhile."""
    report = yield
    if report.failed:
        for demo in item.stash.get(_used, []):
            report.sections.append((f"server on port {demo.port}", demo.output()[-SHOWN_CHARACTERS:]))
    return report


def _uses(request: pytest.FixtureRequest, demo: Demo) -> None:
    request.node.stash.setdefault(_used, []).append(demo)


@pytest.fixture(scope="session")
def _shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(
        tmp_path_factory.mktemp("demo"),
        allowed_origins="https://app.example.org",
        linger_seconds=1,
    )
    with demo:
        yield demo


@pytest.fixture
def demo_server(_shared_demo: Demo, request: pytest.FixtureRequest) -> Demo:
    """A running demo that all tests share which leave it as they found it."""
    _uses(request, _shared_demo)
    return _shared_demo


@pytest.fixture
def start_demo(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Demo]]:
    """Starts demos of the test's own, to be killed, broken or limited; takes what :class:`Demo` takes."""
    started: list[Demo] = []

    def start(*arguments: str, **settings: Any) -> Demo:
        demo = Demo(tmp_path_factory.mktemp("demo"), arguments, **settings)
        started.append(demo)
        _uses(request, demo)
        demo.start()
        return demo

    yield start
    for demo in started:
        demo.kill()


def _on_mysql(mariadb: MariaDB, directory: Path) -> dict[str, Any]:
    """Settings of a demo on an empty MySQL database with the schema in place."""
    name = asyncio.run(mariadb.create_database())
    settings = {"database_url": mariadb.url(name), "database_tls": "off"}
    migrate = [sys.executable, "-m", "server", "migrate"]
    subprocess.run(migrate, check=True, cwd=directory, env=environment(**settings), timeout=60)
    return settings


@pytest.fixture
def mysql_settings(mariadb: MariaDB, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """Makes a database for a demo of the test's own."""
    return lambda: _on_mysql(mariadb, tmp_path)


@pytest.fixture(scope="session")
def _mysql_demo(mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    directory = tmp_path_factory.mktemp("mysql-demo")
    with Demo(directory, linger_seconds=1, **_on_mysql(mariadb, directory)) as demo:
        yield demo


@pytest.fixture(params=["sqlite", "mysql"])
def either_demo(request: pytest.FixtureRequest) -> Demo:
    """The shared demo on each kind of database, one after the other."""
    demo: Demo = request.getfixturevalue("_shared_demo" if request.param == "sqlite" else "_mysql_demo")
    _uses(request, demo)
    return demo


@pytest.fixture(autouse=True)
async def _no_socket_stays() -> AsyncIterator[None]:
    yield
    await close_all()


@pytest.fixture
async def rest(demo_server: Demo) -> AsyncIterator[Rest]:
    async with Rest(demo_server.base) as client:
        yield client


@pytest.fixture
async def town(demo_server: Demo) -> AsyncIterator[Town]:
    """Everybody of the demo on a socket, nobody on a job; what they leave undone is cancelled."""
    async with Town(demo_server.base) as people:
        yield people
