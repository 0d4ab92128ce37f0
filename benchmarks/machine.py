"""What the figures were measured on, and what a process costs: cores, versions, CPU seconds, memory."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.services import ServiceMissing, program

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PACKAGES = ("uvicorn", "uvloop", "websockets", "httptools", "orjson", "sqlalchemy", "asyncmy", "redis")
PROGRAMS = {"mariadbd": "--version", "redis-server": "--version", "node": "--version", "nginx": "-v"}
"""What is measured with, or against, beside packages; and what asks for its version."""
PROGRAM_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where. On a machine with one core, both run there, and the figures say little."""

    server: int
    generator: int

    @property
    def separate(self) -> bool:
        return self.server != self.generator

    @property
    def both(self) -> frozenset[int]:
        return frozenset({self.server, self.generator})


def cores() -> Cores:
    """The first and the last core this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[-1])


def pin(pid: int, where: Iterable[int]) -> None:
    """Keep a process (0: this one), its threads and its later children on these cores."""
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), set(where))
        except ProcessLookupError:
            continue  # a thread that has just ended


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


class Share:
    """How much of one core this process uses, since it was made or asked last."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> float:
        """0–1 for one core."""
        wall = time.monotonic() - self._wall
        return (time.process_time() - self._cpu) / wall if wall > 0 else 0.0


@contextmanager
def no_collections() -> Iterator[None]:
    """Around what is measured: a walk of the collector over all its clients takes a generator a tenth of a second, in
    which it sends and notes nothing, and which would be taken for the server's.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def raise_file_limit(wanted: int = 65_536) -> int:
    """As many open files as this process may have; returns how many. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in ((wanted, max(hard, wanted)), (min(wanted, hard), hard)):
        if limit[0] <= soft:
            return soft
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        except (ValueError, PermissionError, OSError):
            continue  # only root may lift the hard limit
        return limit[0]
    return soft


def version(package: str) -> str:
    """Of an installed package; ``-`` when it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def program_version(name: str) -> str:
    """Of a system program; ``-`` when it is not there or does not say."""
    try:
        asked = [program(name, name), PROGRAMS[name]]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=PROGRAM_SECONDS)
    except (ServiceMissing, OSError, subprocess.TimeoutExpired):
        return "-"
    # nginx tells it on standard error.
    found = re.search(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
    return found.group() if found else "-"


def describe() -> str:
    """One line about the hardware, without its name in any network."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores, {model}, {memory_gib:.0f} GiB, Linux {platform.release()}"


def versions() -> str:
    """One line about the software."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    programs = ", ".join(f"{name} {program_version(name)}" for name in PROGRAMS)
    return f"Python {platform.python_version()}, {packages}, {programs}"


def loop_ms() -> float:
    """How fast a core is at this moment: the best of five loops of a million additions in Python, in milliseconds."""
    best = float("inf")
    for _ in range(5):
        began, total = time.perf_counter(), 0
        for number in range(1_000_000):
            total += number
        best = min(best, time.perf_counter() - began)
    return best * 1e3


def load_average() -> float:
    """Of the last minute: on a quiet machine it is what this run itself makes."""
    return os.getloadavg()[0]
