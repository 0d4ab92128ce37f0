"""Servers of the tests in processes of their own, which die with the process that started them, even if it is killed.

For that a program is started by ``setpriv``, where the system has it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "server")
_STARTING = threading.Lock()


def spawn(
    command: Sequence[str], log: Path, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A program; what it prints is appended to the log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [*_guard(), *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=environment
        )


def _guard() -> list[str]:
    guard = shutil.which("setpriv")
    return [guard, "--pdeathsig", "KILL"] if guard else []


class Process:
    """A server that was forked off; what it shares with :class:`subprocess.Popen` is named as there."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self._zygote = zygote
        # Names this process for good, even when its number is another's.
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None
        self._turns = threading.Lock()

    def poll(self) -> int | None:
        """Its exit status once it has ended: negative for a signal."""
        return self._ended(0)

    def wait(self, timeout: float) -> int:
        """Its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("fixnado", timeout)
        return status

    def send_signal(self, number: int) -> None:
        """As :class:`subprocess.Popen` does: nothing happens to a process that has ended."""
        if self._ended(0) is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, seconds: float) -> int | None:
        if self._status is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(seconds * 1000):
                self._reap()
        return self._status

    def _reap(self) -> None:
        with self._turns:
            if self._status is None:
                self._status = self._zygote.ask({"reap": self.pid})
                os.close(self._pidfd)


def launch(arguments: list[str], log: Path, cwd: Path, environment: dict[str, str]) -> Running:
    """``fixnado`` with these arguments; what it prints is appended to the log.

    Most of a server's start is Python reading modules, and the tests start some ninety servers. So the first call
    starts :mod:`tests.zygote`, and each server is a fork of it that runs the entry point of ``python -m server``. What
    the very start of a server is like is tested where it is started as people do.
    """
    if not hasattr(os, "pidfd_open"):  # not Linux
        return spawn([*PROGRAM, *arguments], log, cwd, environment)
    return Zygote.of_this_run(environment).start(arguments, log, cwd, environment)


class Zygote:
    """Starts servers; one for the whole run of a worker, made by :meth:`of_this_run`."""

    _kept: ClassVar[Zygote | None] = None

    def __init__(self, environment: dict[str, str]) -> None:
        self._turns = threading.Lock()
        # It ends with its input, and takes its servers along. By ``setpriv`` it would end with the thread that asked.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )

    @classmethod
    def of_this_run(cls, environment: dict[str, str]) -> Zygote:
        """The one that there is, or a new one that imports in this environment."""
        with _STARTING:
            if cls._kept is None:
                cls._kept = cls(environment)
                atexit.register(cls._kept.close)
            return cls._kept

    def close(self) -> None:
        """Ends it, and every server that still runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def start(self, arguments: list[str], log: Path, cwd: Path, environment: dict[str, str]) -> Process:
        """See :func:`launch`."""
        job = {"arguments": arguments, "log": str(log), "cwd": str(cwd), "environment": environment}
        return Process(self, self.ask(job))

    def ask(self, job: dict[str, Any]) -> int:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        with self._turns:
            requests.write(json.dumps(job).encode() + b"\n")
            requests.flush()
            return int(answers.readline())


Running = subprocess.Popen[bytes] | Process
"""What both kinds have in common is what tests need."""
