"""The parent of several workers, in processes of its own, with a worker that is a few lines."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.processes import Processes, Worker, WorkerRefuses, WorkersFailed, own_listeners

DRIVER = """
import functools, sys
from server.processes import WorkersFailed
from tests.server import test_processes
if __name__ == "__main__":
    try:
        test_processes.run_here(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    except WorkersFailed as error:
        print(f"fixnado: {error}", file=sys.stderr)
        sys.exit(1)
"""


def run_here(behaviour: str, count: int, stop_seconds: float) -> None:
    shared = socket.create_server(("127.0.0.1", 0))
    own = own_listeners("127.0.0.1", 0, count)
    print("ports", shared.getsockname()[1], *(each.getsockname()[1] for each in own), flush=True)
    Processes(functools.partial(work, behaviour), shared, own, stop_seconds=stop_seconds).run()


def work(behaviour: str, worker: Worker) -> None:
    """Answers each connection with its number and process id, until it is told to stop."""
    if behaviour == "refusing":
        raise WorkerRefuses("The database schema is not up to date.")
    if behaviour == "broken":
        raise RuntimeError("this is a bug")
    if behaviour == "crashing":
        os._exit(7)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    signal.signal(signal.SIGINT, lambda *_: os._exit(9))
    for listener in worker.listeners:
        listener.settimeout(0.02)
    worker.ready()
    while not stopping or behaviour == "stubborn":
        for listener in worker.listeners:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.sendall(f"{worker.number} {os.getpid()}".encode())
    print(f"drained {worker.number}", flush=True)


class Parent:
    def __init__(self, process: subprocess.Popen[str], shared: int, own: list[int]) -> None:
        self.process, self.shared, self.own = process, shared, own

    def ask(self, port: int) -> tuple[int, int]:
        """Who answers: a worker's number and process id."""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            number, pid = connection.recv(100).split()
            return int(number), int(pid)

    def end(self, signal_number: int = signal.SIGTERM, seconds: float = 15) -> tuple[int, str]:
        self.process.send_signal(signal_number)
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output


@contextmanager
def parent(behaviour: str, count: int = 2, stop_seconds: float = 5.0) -> Iterator[Parent]:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, behaviour, str(count), str(stop_seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert process.stdout is not None
        _, shared, *own = process.stdout.readline().split()
        yield Parent(process, int(shared), [int(port) for port in own])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Killed and waiting to be reaped by whoever inherited it.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_share_a_port_and_have_one_each_and_drain_on_sigterm() -> None:
    with parent("serving") as family:
        pids = [family.ask(port)[1] for port in family.own]
        assert [family.ask(port)[0] for port in family.own] == [1, 2]
        assert len(set(pids)) == 2
        assert family.ask(family.shared)[1] in pids
        code, output = family.end()
        assert code == 0
        assert "drained 1" in output
        assert "drained 2" in output
        assert all(gone(pid) for pid in pids)


def test_a_worker_that_dies_is_replaced_and_nobody_is_refused_meanwhile() -> None:
    with parent("serving") as family:
        first, second = (family.ask(port)[1] for port in family.own)
        os.kill(first, signal.SIGKILL)
        for _ in range(20):
            assert family.ask(family.shared)[0] in {1, 2}
        number, replacement = family.ask(family.own[0])
        assert (number, replacement != first) == (1, True)
        assert family.ask(family.own[1]) == (2, second)
        assert family.end()[0] == 0


@pytest.mark.parametrize(
    ("behaviour", "line", "traceback"),
    [("refusing", "The database schema is not up to date.", False), ("broken", "this is a bug", True)],
)
def test_workers_that_cannot_start_end_the_parent_with_their_reason(behaviour: str, line: str, traceback: bool) -> None:
    with parent(behaviour) as family:
        output, _ = family.process.communicate(timeout=20)
        assert family.process.returncode == 1
        assert output.splitlines()[-1] == f"fixnado: {line}"
        assert ("Traceback" in output) is traceback


def test_workers_that_crash_at_once_end_the_parent() -> None:
    with parent("crashing", count=1) as family:
        output, _ = family.process.communicate(timeout=20)
        assert family.process.returncode == 1
        assert "worker 1 ended with exit code 7 before it was ready" in output.splitlines()[-1]


def test_a_worker_that_does_not_drain_is_killed_at_the_deadline() -> None:
    with parent("stubborn", count=1, stop_seconds=0.5) as family:
        _, pid = family.ask(family.own[0])
        began = time.monotonic()
        code, _ = family.end()
        assert code == 0
        assert time.monotonic() - began < 3
        assert gone(pid)


def test_a_second_signal_cuts_the_draining_short() -> None:
    with parent("stubborn", count=1, stop_seconds=60) as family:
        _, pid = family.ask(family.own[0])
        family.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert not gone(pid)
        assert family.end(signal.SIGINT)[0] == 0


def test_workers_end_when_their_parent_is_gone() -> None:
    with parent("serving") as family:
        pids = [family.ask(port)[1] for port in family.own]
        family.process.kill()
        wait_for(lambda: all(gone(pid) for pid in pids))


def test_a_taken_port_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WorkersFailed, match=f"cannot listen on 127.0.0.1:{port}, where worker 1 shows its metrics"):
            own_listeners("127.0.0.1", port - 1, 1)
