"""Several processes that serve on one address: a parent that binds it, and workers that accept from it.

Each worker is the same single-process server (:mod:`server.serving`) with an event loop, a database pool and a Redis
connection of its own; what they have to tell each other goes through Redis. The parent serves nothing: it starts
workers, starts them again when they die, and hands a request to stop on to them.

* The parent keeps the listening socket, so connections that arrive while a worker is replaced wait in the kernel.
* A worker that dies is replaced after a growing pause, so that one that cannot live does not eat the machine.
* When no worker ever became ready, there is nothing to keep alive: the parent ends with the reason.
* When the parent is gone, its workers drain and end too.
* Each worker also listens on a port of its own, the one after the parent's and so on. Whatever is asked there, it
  answers itself: that is how its ``/metrics`` are scraped. On the shared port a scrape would meet any of them.

Concurrency: the parent is synchronous, one loop around one wait; it starts processes by ``spawn`` and shares no state
with them but sockets and a pipe each.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from server.telemetry import logger

log = logger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A worker that lived for so long is replaced as if it were the first to die."""


class WorkersFailed(Exception):
    """No worker can serve; the text is one line for a person."""


class WorkerRefuses(Exception):
    """Raised by a worker that cannot serve, for a reason that a person can mend; the text is one line."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What one worker is given.

    Attributes:
        number: from 1; stays the same when it is replaced.
        listeners: bound sockets to accept from: the shared one, then its own.
        ready: to be called once connections are being accepted.
    """

    number: int
    listeners: Sequence[socket.socket]
    ready: Callable[[], None]


Serve = Callable[[Worker], None]
"""Serves until SIGTERM, or raises :class:`WorkerRefuses`. It is pickled, so it must be a function of a module, or a
``functools.partial`` of one over values that can be pickled.
"""


@dataclass(slots=True)
class _Place:
    """Where a worker is, or will be again."""

    number: int
    listeners: Sequence[socket.socket]
    start_at: float = 0.0
    started_at: float = 0.0
    deaths: int = 0
    process: SpawnProcess | None = None
    pipe: Connection | None = None
    reason: str = ""


@dataclass(slots=True)
class _Signals:
    """Signals that ask to stop, turned into something one can wait for."""

    received: int = 0
    _wakes: socket.socket = field(init=False)
    _woken: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._woken, self._wakes = socket.socketpair()
        self._woken.setblocking(False)
        self._wakes.setblocking(False)

    def __enter__(self) -> _Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        signal.set_wakeup_fd(self._wakes.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        self._woken.close()
        self._wakes.close()

    def _receive(self, _number: int, _frame: object) -> None:
        self.received += 1

    @property
    def waitable(self) -> socket.socket:
        return self._woken

    def drain(self) -> None:
        """Forget the wake-ups; what was received stays counted."""
        try:
            while self._woken.recv(64):
                pass
        except BlockingIOError:
            return


class Processes:
    """See the module.

    Args:
        serve: what each worker does.
        shared: the bound socket that all accept from.
        own: a bound socket for each worker; their number is the number of workers.
        stop_seconds: how long workers may take to drain and end before they are killed.
    """

    def __init__(
        self, serve: Serve, shared: socket.socket, own: Sequence[socket.socket], *, stop_seconds: float
    ) -> None:
        self._serve = serve
        self._stop_seconds = stop_seconds
        self._places = [_Place(number, (shared, each)) for number, each in enumerate(own, start=1)]
        self._context = multiprocessing.get_context("spawn")
        self._once_ready = False
        self._failure: str | None = None
        self._kill_at: float | None = None
        self._heeded = 0

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a further one cuts the draining short.

        Raises:
            WorkersFailed: a worker ended before any was ready.
        """
        with _Signals() as signals:
            try:
                while True:
                    self._heed(signals)
                    self._start_due()
                    alive = [place for place in self._places if place.process is not None]
                    if self._kill_at is not None and not alive:
                        break
                    self._wait(signals, alive)
            finally:
                self._kill()
        if self._failure is not None:
            raise WorkersFailed(self._failure)

    # Starting

    def _start_due(self) -> None:
        if self._kill_at is not None:
            return
        now = time.monotonic()
        for place in self._places:
            if place.process is None and place.start_at <= now:
                self._start(place)

    def _start(self, place: _Place) -> None:
        place.pipe, far_end = self._context.Pipe(duplex=False)
        place.reason = ""
        place.started_at = time.monotonic()
        place.process = self._context.Process(
            target=_work, args=(self._serve, place.number, place.listeners, far_end), name=f"worker-{place.number}"
        )
        place.process.start()
        far_end.close()

    # Waiting

    def _wait(self, signals: _Signals, alive: Sequence[_Place]) -> None:
        pipes = {place.pipe: place for place in alive if place.pipe is not None and not place.pipe.closed}
        ends = {place.process.sentinel: place for place in alive if place.process is not None}
        times = [place.start_at for place in self._places if place.process is None]
        if self._kill_at is not None:
            times = [self._kill_at]
        patience = max(0.0, min(times) - time.monotonic()) if times else None
        awake = wait([signals.waitable, *pipes, *ends], patience)
        signals.drain()
        for pipe, place in pipes.items():
            if pipe in awake:
                self._listen(place, pipe)
        for end, place in ends.items():
            if end in awake:
                self._bury(place)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill()

    def _listen(self, place: _Place, pipe: Connection) -> None:
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            pipe.close()
            return
        if said is None:
            self._once_ready = True
            port = place.listeners[-1].getsockname()[1]
            log.info("worker_ready", worker=place.number, own_port=port)
        else:
            place.reason = str(said)

    def _bury(self, place: _Place) -> None:
        process, pipe = place.process, place.pipe
        assert process is not None
        assert pipe is not None
        while not pipe.closed and pipe.poll():
            self._listen(place, pipe)
        process.join()
        code = process.exitcode
        process.close()
        pipe.close()
        place.process = place.pipe = None
        if self._kill_at is not None:
            return
        why = place.reason or f"it ended with exit code {code}"
        if not self._once_ready:
            self._failure = place.reason or f"worker {place.number} {why.removeprefix('it ')} before it was ready"
            self._stop(signal.SIGTERM)
            return
        now = time.monotonic()
        place.deaths = 0 if now - place.started_at > STEADY_SECONDS else place.deaths + 1
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** max(0, place.deaths - 1), LONGEST_PAUSE_SECONDS)
        place.start_at = now + pause
        log.error("worker_died", worker=place.number, why=why, again_in_seconds=pause)

    # Stopping

    def _heed(self, signals: _Signals) -> None:
        while self._heeded < signals.received:
            self._heeded += 1
            # The server behind each worker drains at SIGTERM, and stops draining at a SIGINT after it.
            self._stop(signal.SIGTERM if self._kill_at is None else signal.SIGINT)

    def _stop(self, number: signal.Signals) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._stop_seconds
        for place in self._places:
            if place.process is not None and place.process.pid is not None:
                os.kill(place.process.pid, number)

    def _kill(self) -> None:
        for place in self._places:
            if place.process is not None:
                log.error("worker_killed", worker=place.number)
                place.process.kill()
                place.process.join()
                place.process.close()
                place.process = None


def own_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """A bound socket for each worker, on the ports after ``port``; on free ones when it is 0.

    Raises:
        WorkersFailed: one of the ports is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listeners: list[socket.socket] = []
    for number in range(1, count + 1):
        try:
            listeners.append(socket.create_server((host, port + number if port else 0), family=family))
        except OSError as error:
            for listener in listeners:
                listener.close()
            why = os.strerror(error.errno) if error.errno else str(error)
            raise WorkersFailed(
                f"cannot listen on {host}:{port + number}, where worker {number} shows its metrics: {why}. "
                "Choose another --port, or fewer --workers."
            ) from error
    return listeners


def _work(serve: Serve, number: int, listeners: Sequence[socket.socket], pipe: Connection) -> None:
    """A worker's life."""
    # Ctrl+C reaches every process of the terminal; until the server has handlers of its own, the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    try:
        serve(Worker(number, listeners, lambda: pipe.send(None)))
    except WorkerRefuses as error:
        pipe.send(str(error))
        raise SystemExit(1) from None
    except Exception as error:
        pipe.send(str(error) or type(error).__name__)
        log.exception("worker_failed", worker=number)
        # Not by raising: multiprocessing would print the traceback a second time.
        raise SystemExit(1) from None
    finally:
        pipe.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
