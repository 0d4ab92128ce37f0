"""Who the fan-out is compared with, and how each is started. What is not here is said to be missing, never left out in
silence.

The Python ones run in an environment of their own, made when first needed: one of them brings a package named
``channels``, as the product does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.crowd import DEFLATING, FIXNADO, Dialect, socket_io, told_ready
from benchmarks.machine import Cores, pin
from benchmarks.native import library_path
from benchmarks.process import ROOT, Child, environment
from benchmarks.services import BenchRedis
from tests.services import Server, program

YARDSTICKS = Path(__file__).parent / "yardsticks"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SOCKET_IO_VERSION = "4.8.4"
NCHAN_MODULES = (
    Path("/usr/lib/nginx/modules/ngx_nchan_module.so"),
    Path("/usr/lib64/nginx/modules/ngx_nchan_module.so"),
)
INSTALL_SECONDS = 300.0
PUBLISH_SECONDS = 120.0


class NotHere(RuntimeError):
    """A yardstick cannot run on this machine; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server under measurement.

    Attributes:
        begin: has it send ``(turns, burst, bytes)``, without waiting for the end of it.
        started: waits for that end; returns the monotonic moment of the first message.
    """

    port: int
    pid: int
    begin: Callable[[int, int, int], None]
    started: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Rival:
    """A server that sends one message to many sockets.

    Attributes:
        name: as it is called in tables.
        dialect: how clients talk to it.
        run: a context manager that starts it; raises :class:`NotHere`.
        bursts: takes part where messages come in bursts.
    """

    name: str
    dialect: Dialect
    run: Callable[[Cores], AbstractContextManager[Running]]
    bursts: bool = True


def python() -> Path:
    """The Python of the yardsticks' environment, which is made when it is not there or not up to date.

    Raises:
        NotHere: the packages cannot be had.
    """
    directory = Path(sys.prefix) / "yardsticks"
    executable = directory / "bin" / "python"
    stamp = directory / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if executable.exists() and stamp.exists() and stamp.read_text() == wanted:
        return executable
    venv.create(directory, with_pip=True, clear=True)
    command = [str(executable), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
    _install(command, "the packages of benchmarks/requirements.txt cannot be installed")
    stamp.write_text(wanted)
    return executable


def _install(command: list[str], trouble: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=INSTALL_SECONDS, check=False, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHere(f"{trouble}: {error}") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise NotHere(f"{trouble}: {' '.join(last)}")


def _foreign() -> dict[str, str]:
    """An environment without anything that would put the product on their path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and "FIXNADO" not in name}


@contextmanager
def _commanded(command: list[str], cores: Cores, env: dict[str, str], cwd: Path) -> Iterator[Running]:
    with Child(command, [cores.server], env=env, cwd=cwd) as child:
        yield Running(
            child.port,
            child.pid,
            lambda turns, burst, size: child.tell("publish", turns=turns, burst=burst, size=size),
            lambda: float(child.answer(PUBLISH_SECONDS)["started"]),
        )


def _script(name: str) -> Callable[[Cores], AbstractContextManager[Running]]:
    def run(cores: Cores) -> AbstractContextManager[Running]:
        command = [str(python()), str(YARDSTICKS / f"{name}.py")]
        return _commanded(command, cores, _foreign(), YARDSTICKS)

    return run


def _fixnado(*arguments: str) -> Callable[[Cores], AbstractContextManager[Running]]:
    command = [sys.executable, "-m", "benchmarks.hub_server", *arguments]
    return lambda cores: _commanded(command, cores, environment(), ROOT)


def _c_loop(cores: Cores) -> AbstractContextManager[Running]:
    command = [sys.executable, str(YARDSTICKS / "c_send.py"), str(library_path())]
    return _commanded(command, cores, _foreign(), YARDSTICKS)


@contextmanager
def _django(cores: Cores) -> Iterator[Running]:
    executable = python()
    with BenchRedis([cores.generator]) as redis:
        command = [str(executable), str(YARDSTICKS / "django_channels.py"), str(redis.port)]
        with _commanded(command, cores, _foreign(), YARDSTICKS) as running:
            yield running


@contextmanager
def _node(cores: Cores) -> Iterator[Running]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise NotHere("node and npm are not installed")
    directory = Path(tempfile.gettempdir()) / f"fixnado-bench-{os.getuid()}" / f"socket.io-{SOCKET_IO_VERSION}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (directory / "node_modules" / "socket.io").exists():
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", ".", f"socket.io@{SOCKET_IO_VERSION}"]
        _install(command, "socket.io cannot be installed", directory)
    # Node looks for packages from where the script is.
    script = directory / "socket_io.cjs"
    script.write_text((YARDSTICKS / "socket_io.cjs").read_text())
    with _commanded([node, str(script)], cores, _foreign(), directory) as running:
        yield running


class _Nginx(Server):
    """nginx with nchan in one process."""

    name = "nginx"

    def __init__(self, module: Path) -> None:
        super().__init__()
        self._module = module

    def command(self) -> list[str]:
        configuration = self.directory / "nginx.conf"
        configuration.write_text(
            f"load_module {self._module}; daemon off; master_process off;"
            f"pid {self.directory}/pid; error_log stderr crit; worker_rlimit_nofile 65536;"
            "events { worker_connections 32768; multi_accept on; }"
            "http { access_log off; keepalive_requests 1000000000; nchan_shared_memory_size 256M;"
            f"server {{ listen 127.0.0.1:{self.port} backlog=4096;"
            "location = / { nchan_subscriber websocket; nchan_channel_id camden;"
            "nchan_subscriber_first_message newest; }"
            "location = /publish { nchan_publisher; nchan_channel_id camden; nchan_message_buffer_length 10000; }"
            "} }"
        )
        return [program("nginx", "nginx"), "-p", str(self.directory), "-c", str(configuration), "-e", "stderr"]

    def answers(self) -> bool:
        return self._ask(b"GET /nothing HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 404")


class _Publisher:
    """Posts to nchan from a thread of its own: a burst is pipelined in one write."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._thread: threading.Thread | None = None
        self._started = 0.0

    def begin(self, turns: int, burst: int, size: int) -> None:
        body = b"x" * size
        head = f"POST /publish HTTP/1.1\r\nHost: bench\r\nContent-Length: {size}\r\n\r\n".encode()
        self._thread = threading.Thread(target=self._publish, args=(turns, burst, head + body))
        self._thread.start()

    def _publish(self, turns: int, burst: int, request: bytes) -> None:
        self._started = time.monotonic()
        for _ in range(turns):
            self._sock.sendall(request * burst)
            answers = b""
            while answers.count(b"HTTP/1.1 2") < burst:
                answers += self._sock.recv(65_536)

    def started(self) -> float:
        assert self._thread is not None
        self._thread.join(PUBLISH_SECONDS)
        return self._started

    def close(self) -> None:
        self._sock.close()


@contextmanager
def _nchan(cores: Cores) -> Iterator[Running]:
    module = next((module for module in NCHAN_MODULES if module.exists()), None)
    if module is None or shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        raise NotHere("nginx with libnginx-mod-nchan is not installed")
    with _Nginx(module) as server:
        pin(server.pid, [cores.server])
        publisher = _Publisher(server.port)
        try:
            yield Running(server.port, server.pid, publisher.begin, publisher.started)
        finally:
            publisher.close()


_SOCKET_IO = Dialect("/socket.io/?EIO=4&transport=websocket", greet=socket_io)

OURS = Rival("Fixnado", FIXNADO, _fixnado())
OURS_DEFLATED = Rival("Fixnado, deflated", DEFLATING, _fixnado("--deflate"))
LIMIT = Rival("C send() loop", Dialect(), _c_loop)
PEERS = (
    Rival("picows", Dialect(), _script("picows_send")),
    Rival("websockets.broadcast", Dialect(), _script("websockets_broadcast")),
    Rival("ASGI send (uvicorn)", Dialect(), _script("asgi_send")),
    Rival("Socket.IO (node)", _SOCKET_IO, _node),
    Rival("nchan (nginx)", Dialect(), _nchan),
    Rival("python-socketio", _SOCKET_IO, _script("python_socketio")),
    # A burst to a thousand takes it seconds, and it falls further behind with each.
    Rival("Django Channels + Redis", Dialect(greet=told_ready), _django, bursts=False),
)
