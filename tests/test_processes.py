"""Servers that are forked off a zygote are processes like any: they answer, end, are waited for, and outlive nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acceptance.demo import Demo, environment
from tests.processes import launch


def test_a_server_is_killed_waited_for_and_started_again(tmp_path: Path) -> None:
    with Demo(tmp_path) as demo:
        first = demo.pid
        assert Path(f"/proc/{first}/cwd").resolve() == tmp_path.resolve()
        demo.kill()
        assert not demo.is_running()
        demo.start()
        assert demo.pid != first
        assert demo.terminate() == 0
    assert demo.output().count("Started server process") == 2


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = launch(["demo", "--port", "none"], log, tmp_path, environment())
    assert server.wait(20) == 2
    assert "Input should be a valid integer" in log.read_text()
    assert server.poll() == 2
    server.send_signal(signal.SIGTERM)


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with Demo(tmp_path) as demo:
        assert demo._process is not None
        with pytest.raises(subprocess.TimeoutExpired):
            demo._process.wait(0.05)


def test_servers_die_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom tests.acceptance.demo import Demo\n"
        f"demo = Demo(Path({str(tmp_path)!r}))\ndemo.start()\nprint(demo.pid, flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        run.kill()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
