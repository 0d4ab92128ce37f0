from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.acceptance.client import ADMIN, Rest
from tests.acceptance.town import end_all_bookings
from tests.page.three_people import ThreePeople
from tests.processes import Running, launch
from tests.services import ServiceMissing, free_port

START_SECONDS = 40.0


class FixnadoServer:
    """The product as a process of its own. It may be killed and started again on the same port and database."""

    def __init__(self, directory: Path, command: str, settings: dict[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._directory = directory
        self._log = directory / "server.log"
        self._arguments = [command, "--port", str(self.port)]
        self._environment = {
            **os.environ,
            "FIXNADO_DATABASE_URL": f"sqlite+aiosqlite:///{directory / 'page.db'}",
            "FIXNADO_DRAIN_SECONDS": "0.2",
            **settings,
        }
        self._process: Running | None = None

    def start(self) -> Self:
        self._process = launch(self._arguments, self._log, self._directory, self._environment)
        give_up_at = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise AssertionError(f"the server did not start:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        """As a crash or the kernel would: nothing is said to anybody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> None:
        """As an operator would: sockets are drained."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}health/ready", timeout=2) as answer:  # noqa: S310 — a URL of our own
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


StartServer = Callable[..., AbstractContextManager[FixnadoServer]]


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """Starts ``fixnado demo`` or ``serve`` with an empty database and settings of the test's own."""

    @contextmanager
    def start(command: str = "demo", **settings: str) -> Iterator[FixnadoServer]:
        server = FixnadoServer(tmp_path, command, settings).start()
        try:
            yield server
        finally:
            server.kill()

    return start


@pytest.fixture
def demo(start_server: StartServer) -> Iterator[FixnadoServer]:
    """A running demo of the test's own, without any booking yet; it may be killed."""
    with start_server() as server:
        yield server


@pytest.fixture(scope="session")
def _shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FixnadoServer]:
    # Nobody of one test is still online in the next.
    server = FixnadoServer(tmp_path_factory.mktemp("page"), "demo", {"FIXNADO_LINGER_SECONDS": "0.5"}).start()
    yield server
    server.kill()


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
