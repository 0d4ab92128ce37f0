"""The program that :func:`tests.processes.launch` forks servers off: it has imported what ``fixnado`` does, and waits.

It has one thread, reads a line of JSON for each server from its standard input, and answers with a line.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pkgutil
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1


def _import_everything() -> None:
    # As the entry point does: nothing of it is garbage.
    gc.disable()
    import channels
    import domain
    import persistence
    import server

    for package in (domain, channels, persistence, server):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__") and ".migrations." not in module.name:
                __import__(module.name)
    for name in ("uvloop", "aiosqlite", "asyncmy", "uvicorn.loops.uvloop", "uvicorn.lifespan.on", "httptools"):
        __import__(name)
    gc.freeze()


def _serve() -> dict[str, Any] | None:
    """Forks off a process for each job until nobody is there to give one; returns the job in the process it is for."""
    while line := sys.stdin.buffer.readline():
        job: dict[str, Any] = json.loads(line)
        if "reap" in job:
            answer = os.waitstatus_to_exitcode(os.waitpid(job["reap"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                return job
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    return None


def _become(job: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = ["fixnado", *job["arguments"]]


if __name__ == "__main__":
    _import_everything()
    if (given := _serve()) is not None:
        _become(given)
        from server.__main__ import main

        main()
