"""Running one process: bind, migrate when embedded, start, serve until a signal, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import uvicorn

from domain.errors import FixnadoError
from persistence.migrate import upgrade
from persistence.vault import WrongMasterKey
from server.app import Application, database_options
from server.diagnosis import database_explained
from server.processes import Processes, Worker, WorkerRefuses, WorkersFailed, own_listeners
from server.secrets_at_rest import require_master_key
from server.settings import Settings, SettingsError
from server.telemetry import configure_logging, logger
from server.uvicorn_protocol import DrainingServer, server_options

log = logger(__name__)

BACKLOG = 2_048

GARBAGE_THRESHOLDS = (50_000, 20, 100)
"""New objects before a look at the young ones, and how many of those looks before older ones are looked at, too."""


class CannotServe(Exception):
    """The process cannot start; the text is one line for a person."""


Prepare = Callable[[Application, str], Awaitable[None]]


def run(settings: Settings, prepare: Prepare | None = None, *, migrate: bool = False) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        migrate: bring the schema up to date first. An embedded database belongs to this process, so its schema always
            is; elsewhere that is for an operator to decide, with ``fixnado migrate``.
        prepare: called before the first connection is taken, with the address at which the server will be reached.

    Raises:
        CannotServe: the address is taken.
        SettingsError: there is no master key.
        FixnadoError: the database is away, or its schema is not the right one.
    """
    require_master_key(settings)
    configure_logging(settings.log_format, settings.log_level)
    listener = _listen(settings.host, settings.port)
    if settings.workers == 1:
        run_loop()(_serve(settings, [listener], prepare, migrate=migrate or settings.embedded))
        return
    if migrate:
        with database_explained(settings):
            asyncio.run(upgrade(settings.database_url, database_options(settings)))
    try:
        own = own_listeners(settings.host, settings.port, settings.workers)
        # As long as one process may take, and a moment to start up or tear down.
        stop_seconds = 2 * settings.shutdown_deadline_seconds + 5.0
        Processes(partial(_work, settings, prepare), listener, own, stop_seconds=stop_seconds).run()
    except WorkersFailed as error:
        raise CannotServe(str(error)) from None


def _work(settings: Settings, prepare: Prepare | None, worker: Worker) -> None:
    """One of several processes."""
    configure_logging(settings.log_format, settings.log_level)
    first_only = prepare if worker.number == 1 else None
    try:
        run_loop()(_serve(settings, worker.listeners, first_only, migrate=False, ready=worker.ready))
    except (FixnadoError, SettingsError, WrongMasterKey) as error:
        raise WorkerRefuses(error.message if isinstance(error, FixnadoError) else str(error)) from error


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        # Python adds the address to the error's own text; it is in ours already.
        why = os.strerror(error.errno) if error.errno else str(error)
        raise CannotServe(f"cannot listen on {host}:{port}: {why}. Choose another with --port.") from error


async def _serve(
    settings: Settings,
    listeners: Sequence[socket.socket],
    prepare: Prepare | None,
    *,
    migrate: bool,
    ready: Callable[[], None] = lambda: None,
) -> None:
    if migrate:
        with database_explained(settings):
            await upgrade(settings.database_url, database_options(settings))
    app = Application(settings)
    try:
        with database_explained(settings):
            await app.start()
        if prepare is not None:
            host, port = listeners[0].getsockname()[:2]
            await prepare(app, f"http://{f'[{host}]' if ':' in host else host}:{port}")
        options = server_options(
            header_seconds=settings.handshake_deadline_seconds,
            max_frame_bytes=settings.max_frame_bytes,
            deflate=settings.deflates,
        )
        config = uvicorn.Config(app.asgi, lifespan="off", log_config=None, backlog=BACKLOG, **options)
        settle_garbage()
        # uvicorn raises the signal that stopped it once more, at its very end. By default that would end the process
        # there and then: with nothing stopped below, and the sequencer's lease kept from the next process.
        _set_handlers(_ignore)
        ready()
        await DrainingServer(config, app.drain).serve(sockets=list(listeners))
    finally:
        _set_handlers(signal.SIG_DFL)
        async with asyncio.timeout(settings.shutdown_deadline_seconds):
            await app.stop()


def run_loop() -> Callable[[Coroutine[Any, Any, None]], None]:
    """What runs a coroutine on an event loop: uvloop's, or Python's own where uvloop cannot be had."""
    try:
        import uvloop
    except ImportError:
        log.warning("uvloop_is_missing", consequence="the event loop is Python's own, which is slower")
        return asyncio.run
    return uvloop.run


def settle_garbage() -> None:
    """Have the collector leave alone what was made at start, which stays, and come less often.

    By default it looks at everything young after each 700 new objects, and at everything there is when a quarter of it
    is new: with thousands of sockets that come back at once, a fifth of the time. Few objects here need it: most go
    when nothing refers to them any more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def _set_handlers(handler: signal.Handlers | Callable[[int, object], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _ignore(_number: int, _frame: object) -> None:
    """A handler, not SIG_IGN, so that uvicorn finds something to call."""
