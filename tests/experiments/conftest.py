from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.acceptance.client import close_all
from tests.experiments.cluster import Cluster, cluster
from tests.experiments.history import Verdict
from tests.experiments.load import Play
from tests.server.live_server import RawSocket

SHOWN_CHARACTERS = 4_000
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever experiment comes first starts the services and three nodes, which takes long on a busy machine."""
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="package")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
async def town(_cluster: Cluster) -> AsyncIterator[Cluster]:
    """Three nodes that are well, on services that an experiment may kill: they are started again for the next one."""
    await asyncio.to_thread(_cluster.heal)
    yield _cluster
    await close_all()
    await RawSocket.close_all()


@pytest.fixture
def play(town: Cluster) -> Play:
    """A load on all three nodes, to be run once."""
    return Play(town.bases, town.rows)


@pytest.fixture
def report(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Tells what an experiment found, in one line of the test run's summary."""

    def tell(verdict: Verdict | str, *more: str) -> None:
        record_property("experiment", f"{request.node.name}: " + "; ".join([str(verdict), *more]))

    return tell


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the nodes of a failed experiment logged meanwhile."""
    report = yield
    if report.failed and "town" in getattr(item, "funcargs", {}):
        for number, node in enumerate(item.funcargs["town"].nodes, start=1):  # type: ignore[attr-defined]
            report.sections.append((f"node {number}", node.output()[-SHOWN_CHARACTERS:]))
    return report
