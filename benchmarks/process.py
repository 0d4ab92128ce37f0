"""Child processes under measurement: started, pinned, commanded line by line, ended with this process."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.machine import pin

ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0


class ChildFailed(RuntimeError):
    """A process that is measured ended, or did not answer; the end of its log is in the message."""


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with these settings (``port=1`` is ``FIXNADO_PORT``) and no other of the product's."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FIXNADO_")}
    ours |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return ours | {f"FIXNADO_{name.upper()}": str(value) for name, value in settings.items()}


class Child:
    """A process pinned to cores; a context manager that kills it at the end.

    Args:
        commanded: it says ``{"port": …}`` on its first line of output and then answers each line of JSON by one.
    """

    def __init__(
        self,
        command: Sequence[str],
        where: Iterable[int],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        commanded: bool = True,
    ) -> None:
        self._command = list(command)
        self._where = frozenset(where)
        self._env = env
        self._cwd = cwd
        self._commanded = commanded
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 — closed in close()
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self.port = 0

    def start(self) -> None:
        """Starts it, and waits for its first line if it has one.

        Raises:
            ChildFailed: see there.
        """
        guard = shutil.which("setpriv")
        prefix = [guard, "--pdeathsig", "KILL"] if guard else []
        self._process = subprocess.Popen(
            [*prefix, *self._command],
            stdin=subprocess.PIPE if self._commanded else subprocess.DEVNULL,
            stdout=subprocess.PIPE if self._commanded else self._log,
            stderr=self._log,
            env=self._env,
            cwd=self._cwd,
        )
        # Before it has threads, so that they inherit it.
        pin(self.pid, self._where)
        if self._commanded:
            self.port = int(self._line(START_SECONDS)["port"])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tell(self, command: str, **arguments: Any) -> None:
        """Give a command without waiting for its answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": command} | arguments).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended") from None

    def answer(self, timeout_seconds: float = 60.0) -> dict[str, Any]:
        """The answer to the oldest unanswered command.

        Raises:
            ChildFailed: see there.
        """
        return self._line(timeout_seconds)

    def ask(self, command: str, timeout_seconds: float = 60.0, **arguments: Any) -> dict[str, Any]:
        """A command and its answer."""
        self.tell(command, **arguments)
        return self.answer(timeout_seconds)

    def _line(self, timeout_seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._failed("did not answer in time")
                data = os.read(self._process.stdout.fileno(), 65_536)
                if not data:
                    raise self._failed("ended")
                self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildFailed(f"{self._name}: {answer['error']}")
        return answer

    @property
    def _name(self) -> str:
        return " ".join(Path(part).name for part in self._command[:4])

    def _failed(self, what: str) -> ChildFailed:
        return ChildFailed(f"{self._name} {what}:\n{self.log()[-2000:]}")

    def log(self) -> str:
        """What it wrote to standard error, and to standard output when that is not for answers."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def close(self) -> None:
        """Kills it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
        self._log.close()

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
