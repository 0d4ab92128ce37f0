"""Private redis-server and mariadbd processes on free ports, with their files in temporary directories.

Nothing here touches a service of the machine. A server dies with the process that started it, even if that is killed
(``setpriv --pdeathsig``, where the system has it). Tests may :meth:`~Server.kill`, :meth:`~Server.pause` and
:meth:`~Server.start` a server again; port and files stay the same.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import asyncmy

from tests.processes import spawn

START_SECONDS = 60.0


class ServiceMissing(RuntimeError):
    """A program that the tests start is not installed; the message says what to type."""


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str, package: str) -> str:
    """The path of a system program.

    Raises:
        ServiceMissing: it is not installed.
    """
    # Debian keeps servers in sbin, which is not on everybody's PATH.
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ServiceMissing(f"{name} is not installed; run .ci/ensure-system, or type: apt-get install {package}")
    return found


def faketime() -> Path:
    """The library that shows a process another time, to be preloaded.

    Raises:
        ServiceMissing: it is not installed.
    """
    for place in ("lib*", "lib*/*"):
        for found in sorted(Path("/usr").glob(f"{place}/faketime/libfaketime.so.1")):
            return found
    raise ServiceMissing("libfaketime is not installed; run .ci/ensure-system, or type: apt-get install libfaketime")


class Server:
    """One process with a port and a directory of its own. A context manager: entering starts, leaving kills it."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.port = free_port()
        self._directory = tempfile.TemporaryDirectory(prefix=f"fixnado-{self.name}-", ignore_cleanup_errors=True)
        self.directory = Path(self._directory.name)
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError  # each server says how it is started

    def answers(self) -> bool:
        """Whether this very process is ready, not another that took the port; may raise ``OSError`` while it is not."""
        raise NotImplementedError  # each server says how it greets

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts and waits until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time; the end of its log is in the message.
        """
        if self.is_running():
            raise RuntimeError(f"{self.name} already runs")
        self._process = spawn(self.command(), self._log, self.directory)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.is_running():
            try:
                if self.answers():
                    return
            except OSError:
                pass  # not listening yet
            time.sleep(0.02)
        state = "did not answer in time" if self.is_running() else "ended at start"
        self.kill()
        raise RuntimeError(f"{self.name} {state}:\n{self._log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, as a crash would; the files stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kills it and removes its files."""
        self.kill()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _ask(self, send: bytes = b"") -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(send)
            return connection.recv(4096)


class RedisServer(Server):
    """Redis that keeps nothing on disk: a restarted one is empty."""

    name = "redis"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self.directory}
        executable = program("redis-server", "redis-server")
        return [executable, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]

    def answers(self) -> bool:
        return f"process_id:{self.pid}\r\n".encode() in self._ask(b"INFO server\r\n")

    def flush(self) -> None:
        """Empties it."""
        assert self._ask(b"FLUSHALL\r\n").startswith(b"+OK")


class MariaDB(Server):
    """MariaDB without TLS, whose ``root`` has no password. What was committed survives :meth:`~Server.kill`."""

    name = "mariadb"

    def url(self, database: str) -> str:
        return f"mysql+asyncmy://root@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        if not self._data.exists():
            self._install()
        super().start()

    def command(self) -> list[str]:
        return [
            program("mariadbd", "mariadb-server-core"),
            *self._options(),
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.directory / 'socket'}",
            f"--pid-file={self._pid_file}",
            "--max-connections=500",
            "--character-set-server=utf8mb4",
            # At commit the log goes to the operating system but not to the disk: a killed server loses nothing.
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-flush-method=nosync",
        ]

    def answers(self) -> bool:
        # The file is written once the port is open, and the handshake packet says protocol version 10.
        ours = self._pid_file.exists() and self._pid_file.read_text().strip() == str(self.pid)
        return ours and self._ask()[4:5] == b"\x0a"

    async def create_database(self) -> str:
        """Makes an empty database with a name of its own, within milliseconds; returns the name."""
        name = f"test_{secrets.token_hex(6)}"
        await self.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return name

    async def drop_database(self, name: str) -> None:
        """Removes it.

        Raises:
            asyncmy.errors.Error: somebody still holds a lock in it after two seconds.
        """
        await self.execute("SET lock_wait_timeout = 2", f"DROP DATABASE {name}")

    async def execute(self, *statements: str) -> None:
        """Runs statements as root, on one connection of their own."""
        connection = await asyncmy.connect(
            host="127.0.0.1", port=self.port, user="root", autocommit=True, connect_timeout=5, read_timeout=30
        )
        try:
            async with connection.cursor() as cursor:
                for statement in statements:
                    await cursor.execute(statement)
        finally:
            await connection.ensure_closed()

    @property
    def _pid_file(self) -> Path:
        return self.directory / "pid"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _options(self) -> list[str]:
        options = ["--no-defaults", f"--datadir={self._data}", "--innodb-log-file-size=32M", "--skip-name-resolve"]
        # A server that starts clears its directory for temporary tables, also of those of others.
        options.append(f"--tmpdir={self.directory}")
        # mariadbd does not run as root unless told so.
        return [*options, "--user=root"] if os.geteuid() == 0 else options

    def _install(self) -> None:
        program("mariadbd", "mariadb-server-core")
        done = subprocess.run(
            [
                program("mariadb-install-db", "mariadb-server-core"),
                *self._options(),
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"mariadb-install-db failed:\n{done.stdout.decode(errors='replace')[-2000:]}")


class MotoServer(Server):
    """AWS's APIs in memory; what tests point ``AWS_ENDPOINT_URL`` at."""

    name = "moto"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes boto3 speak to this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "eu-west-2",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        return b"200 OK" in self._ask(b"GET /moto-api/data.json HTTP/1.1\r\nHost: moto\r\nConnection: close\r\n\r\n")
