"""A real server: ``fixnado demo`` in a process of its own, with its files in a directory of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import asyncmy

from tests.processes import ROOT, Running, launch, spawn
from tests.services import free_port

START_SECONDS = 40.0


def environment(**settings: object) -> dict[str, str]:
    """The process's environment with these settings (``port=1`` is ``FIXNADO_PORT``) and none of the machine's own."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FIXNADO_")}
    ours |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "160", "NO_COLOR": "1"}
    return ours | {f"FIXNADO_{name.upper()}": str(value) for name, value in settings.items()}


class Demo:
    """A server that a test may kill and start again; port, files and settings stay the same.

    Args:
        directory: working directory, database and log go there.
        command, arguments: of ``fixnado``.
        program: what to start, such as ``python -m server``, in place of what :func:`tests.processes.launch` does.
        packages: where that imports the product from, in place of this checkout.
        settings: by field name; the database is a SQLite file in the directory unless they say otherwise.
    """

    def __init__(
        self,
        directory: Path,
        arguments: tuple[str, ...] = (),
        *,
        command: str = "demo",
        program: tuple[str, ...] = (),
        packages: Path = ROOT,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.database = directory / "fixnado.db"
        self.settings: dict[str, Any] = {
            "database_url": f"sqlite+aiosqlite:///{self.database}",
            "log_format": "json",
            "drain_seconds": 0.2,
            # Tests are quicker than people; those about the limits set them.
            "commands_per_second": 10_000,
            "commands_burst": 10_000,
            "max_sockets_per_user": 100,
        } | settings
        self._arguments = [command, *arguments, "--port", str(self.port)]
        self._program = program
        self._packages = packages
        self._process: Running | None = None

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def output(self) -> str:
        """Everything the process printed and logged, over all its lives."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, page: str = "/health/ready") -> None:
        """Starts and waits until the page answers 200: that it is ready, unless a test wants less.

        Raises:
            RuntimeError: it ended, or was not ready in time; the end of its output is in the message.
        """
        assert not self.is_running()
        self._process = self._started()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.is_running():
            if self.is_ready(page):
                return
            time.sleep(0.05)
        state = "was not ready in time" if self.is_running() else "ended at start"
        self.kill()
        raise RuntimeError(f"the demo {state}:\n{self.output()[-3000:]}")

    def _started(self) -> Running:
        settings = environment(**self.settings) | {"PYTHONPATH": str(self._packages)}
        if not self._program:
            return launch(self._arguments, self.log, self.directory, settings)
        return spawn([*self._program, *self._arguments], self.log, self.directory, settings)

    def is_ready(self, page: str = "/health/ready") -> bool:
        try:
            with urllib.request.urlopen(f"{self.base}{page}", timeout=2) as reply:  # noqa: S310 — http above
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def terminate(self, seconds: float = 15.0) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(seconds)

    def query(self, statement: str, *parameters: object) -> list[Any]:
        """Reads the SQLite file, beside the server or after it."""
        with sqlite3.connect(self.database, timeout=10) as connection:
            rows = connection.execute(statement, parameters).fetchall()
        connection.close()
        return rows

    async def rows(self, statement: str) -> list[Any]:
        """:meth:`query` on whichever database it is; names in backticks suit both."""
        url = str(self.settings["database_url"])
        if url.startswith("sqlite"):
            return await asyncio.to_thread(self.query, statement)
        parts = urlsplit(url)
        connection = await asyncmy.connect(
            host=parts.hostname, port=parts.port, user=parts.username, db=parts.path.lstrip("/"), connect_timeout=5
        )
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(statement)
                return list(await cursor.fetchall())
        finally:
            await connection.ensure_closed()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
