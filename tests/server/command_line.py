"""``fixnado`` as somebody types it: in a process of its own, or within this one, which has imported everything."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from server.cli import main
from tests.acceptance.demo import environment


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class CommandLine(Protocol):
    """Runs ``fixnado`` in an empty directory with these settings and no others."""

    def __call__(self, *arguments: str, **settings: Any) -> Done: ...


def within_this_process(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """Quicker than a process of its own."""

    def run(*arguments: str, **settings: Any) -> Done:
        monkeypatch.chdir(directory)
        monkeypatch.setattr(sys, "argv", ["fixnado", *arguments])
        monkeypatch.setattr(os, "environ", environment(**settings))
        status = 0
        handlers, level = logging.root.handlers[:], logging.root.level
        try:
            main()
        except SystemExit as left:
            status = int(left.code or 0)
        finally:
            # `serve` sets logging up, on a stream that ends with this test.
            logging.root.handlers, logging.root.level = handlers, level
        return Done(status, *capsys.readouterr())

    return run


def process(directory: Path, *arguments: str, **settings: Any) -> Done:
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=directory,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)
