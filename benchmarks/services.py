"""The database and the Redis behind what is measured: private processes, pinned, with the settings of production.

The tests' MariaDB may lose commits with the machine's power, which makes it quicker; a benchmark may not.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.machine import pin
from tests.services import MariaDB, RedisServer, program

BUFFER_POOL_MIB = 512


class BenchRedis(RedisServer):
    """Redis on given cores; its one-second jobs and the rest as by default, nothing written to disk."""

    def __init__(self, where: Iterable[int]) -> None:
        super().__init__()
        self._where = frozenset(where)

    def start(self) -> None:
        super().start()
        pin(self.pid, self._where)

    def listeners(self) -> int:
        """How many connections have subscribed to something."""
        answer = self._ask(b"CLIENT LIST TYPE pubsub\r\n")
        return answer.count(b"id=")

    def cpu_pid(self) -> int:
        return self.pid


class BenchMariaDB(MariaDB):
    """MariaDB on given cores that flushes its log to disk at every commit (``innodb-flush-log-at-trx-commit=1``)."""

    def __init__(self, where: Iterable[int]) -> None:
        super().__init__()
        self._where = frozenset(where)

    def start(self) -> None:
        super().start()
        pin(self.pid, self._where)

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
            "--innodb-flush-log-at-trx-commit=1",
            f"--innodb-buffer-pool-size={BUFFER_POOL_MIB}M",
        ]
