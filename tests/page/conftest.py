from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.acceptance.client import ADMIN, Rest
from tests.acceptance.demo import Demo
from tests.acceptance.town import end_all_bookings
from tests.page.three_people import ThreePeople
from tests.services import ServiceMissing


class FixnadoServer(Demo):
    """A server with the page."""

    @property
    def url(self) -> str:
        return f"{self.base}/"


StartServer = Callable[..., AbstractContextManager[FixnadoServer]]


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """Starts ``fixnado demo`` or ``serve`` with an empty database and settings of the test's own."""

    @contextmanager
    def start(command: str = "demo", **settings: Any) -> Iterator[FixnadoServer]:
        with FixnadoServer(tmp_path, command=command, **settings) as server:
            yield server

    return start


@pytest.fixture
def demo(start_server: StartServer) -> Iterator[FixnadoServer]:
    """A running demo of the test's own, without any booking yet; it may be killed."""
    with start_server() as server:
        yield server


@pytest.fixture(scope="session")
def _shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FixnadoServer]:
    # Nobody of one test is still online in the next.
    with FixnadoServer(tmp_path_factory.mktemp("page"), linger_seconds=0.5) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def shared_demo(_shared_demo: FixnadoServer) -> AsyncIterator[FixnadoServer]:
    """A running demo for tests that leave it as they found it; bookings still open are ended after each."""
    yield _shared_demo
    async with Rest(_shared_demo.url.rstrip("/")) as rest:
        await end_all_bookings(rest, str((await rest.login(ADMIN))["access_token"]))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The system's Chromium, headless. One for all: what a test opens is a context of its own, without memories."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise ServiceMissing("no Chromium is installed; run .ci/ensure-system, or type: apt-get install chromium")
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(
            executable_path=path,
            # Containers seldom let a browser make sandboxes of its own; only our own page is opened here.
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield launched
        await launched.close()


@pytest_asyncio.fixture(loop_scope="session")
async def people(shared_demo: FixnadoServer, browser: Browser) -> AsyncIterator[ThreePeople]:
    """The shared demo's page with everybody live."""
    async with ThreePeople.opened(browser, shared_demo.url) as opened:
        await opened.all_live()
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def first_people(demo: FixnadoServer, browser: Browser) -> AsyncIterator[ThreePeople]:
    """The page with everybody live on a demo of the test's own, in which nothing has happened yet."""
    async with ThreePeople.opened(browser, demo.url) as opened:
        await opened.all_live()
        yield opened
