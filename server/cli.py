"""The command line: ``fixnado serve``, ``demo``, ``migrate``, ``user``, ``keys``, ``audit``, ``bench``, …"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, NoReturn

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from domain.accounts import Email
from domain.credentials import Credentials
from domain.errors import FixnadoError, Unavailable
from domain.identity import Role
from domain.types import Origin
from persistence.audit_log import Verdict, verify_audit_log
from persistence.database import Database
from persistence.leases import Leases
from persistence.log import renew_epochs as restore_epochs
from persistence.migrate import upgrade
from persistence.vault import WrongMasterKey
from server import demo as demo_market
from server import serving, specs
from server.app import Application, check_schema, database_options
from server.diagnosis import database_explained
from server.event_commands import event_commands
from server.key_commands import key_commands
from server.robot import RobotError
from server.secrets import read_settings
from server.settings import Settings, SettingsError
from server.simulator import firms_for, simulate
from server.telemetry import configure_logging
from server.watch import watch as watch_feed
from server.zone_commands import zone_commands

cli = typer.Typer(
    name="fixnado",
    help="Real-time server of a home-services marketplace.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
users = typer.Typer(help="Accounts.", no_args_is_help=True)
cli.add_typer(users, name="user")
epochs = typer.Typer(help="The numbering of events.", no_args_is_help=True)
cli.add_typer(epochs, name="epochs")


audit = typer.Typer(help="The audit log.", no_args_is_help=True)
cli.add_typer(audit, name="audit")
console = Console()
errors = Console(stderr=True)

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")]
Workers = Annotated[int | None, typer.Option(help="Processes; more than one needs Redis.")]

NEW_USER_PASSWORD = "FIXNADO_NEW_USER_PASSWORD"  # noqa: S105 — the name of a variable
WATCH_PASSWORD = "FIXNADO_WATCH_PASSWORD"  # noqa: S105 — as above
"""Options of commands rather than settings of the server."""


def main() -> None:
    """Entry point: whatever goes wrong is one line for a person, never a traceback."""
    try:
        cli()
    except (SettingsError, serving.CannotServe, RobotError, WrongMasterKey) as error:
        _fail(str(error))
    except FixnadoError as error:
        _fail(error.message)
    except OSError as error:
        _fail(f"{error.filename or 'the system says'}: {error.strerror or error}")


def _fail(line: str) -> NoReturn:
    errors.print(f"fixnado: {line}", style="red", highlight=False, soft_wrap=True)
    sys.exit(1)


def _settings(**overrides: Any) -> Settings:
    environ = {name: value for name, value in os.environ.items() if name not in {NEW_USER_PASSWORD, WATCH_PASSWORD}}
    settings = Settings.load(environ, overrides=overrides, secrets=read_settings)
    # Standard output is for what a command answers; a server sets its own level later.
    configure_logging(settings.log_format, "warning")
    return settings


cli.add_typer(key_commands(_settings, console), name="keys")
cli.add_typer(event_commands(_settings, console), name="events")
cli.add_typer(zone_commands(_settings, console, errors), name="zones")


@cli.command()
def serve(host: Host = None, port: Port = None, workers: Workers = None) -> None:
    """Serve."""
    serving.run(_settings(host=host, port=port, workers=workers))


@cli.command()
def demo(
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    traffic: Annotated[float, typer.Option(help="Simulated bookings a minute.", min=0, max=6000)] = 0,
) -> None:
    """Serve with a small marketplace to try: accounts, a zone, and traffic if you like."""
    settings = _settings(host=host, port=port, workers=workers)
    if not (settings.embedded or settings.master_key or settings.kms_key_id):
        # Nodes that share the demo's database start anywhere, and have no file to share a key by.
        settings = settings.model_copy(update={"master_key": demo_market.MASTER_KEY})
    serving.run(settings, partial(_prepare_demo, traffic), migrate=True)


async def _prepare_demo(traffic: float, app: Application, address: str) -> None:
    await demo_market.seed(app)
    _welcome(address, traffic)
    if traffic:
        crowd = await demo_market.seed_crowd(app, firms_for(traffic))
        app.workers.start("traffic", partial(simulate, address, crowd, traffic))


def _welcome(address: str, traffic: float) -> None:
    accounts = Table.grid(padding=(0, 2))
    for email, what in (
        (demo_market.CUSTOMER, "books jobs"),
        *((email, "gets offers") for email in demo_market.PROVIDERS),
        (demo_market.ADMIN, "watches everything"),
    ):
        accounts.add_row(f"[bold]{email}[/]", what)
    body = Table.grid(padding=(1, 0))
    body.add_row(f"Open [bold cyan]{address}/[/] — three people side by side, each on a live socket.")
    body.add_row(accounts)
    body.add_row(f"Password of all of them: [bold]{demo_market.PASSWORD}[/]")
    body.add_row(
        f"Traffic: {traffic:g} bookings a minute." if traffic else "For a lively feed: fixnado demo --traffic 20"
    )
    body.add_row("[dim]Ctrl+C stops. Live feed in another terminal: fixnado watch[/]")
    console.print(Panel(body, title="Fixnado Realtime", expand=False, border_style="cyan"))


@cli.command()
def migrate() -> None:
    """Bring the database schema up to date."""
    settings = _settings()
    applied: list[str] = []

    def progress(step: str) -> None:
        applied.append(step)
        console.print(f"  applied {step}", highlight=False)

    with console.status("Migrating …"), database_explained(settings):
        asyncio.run(upgrade(settings.database_url, database_options(settings), progress))
    console.print(f"Done: {len(applied)} applied." if applied else "The schema is up to date.")


@users.command("add")
def add_user(
    email: str,
    role: Annotated[Role, typer.Option(help="What the account is for.")],
    name: Annotated[str | None, typer.Option(help="Shown to others; the e-mail's first part by default.")] = None,
    password: Annotated[
        str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True, envvar=NEW_USER_PASSWORD)
    ] = "",
) -> None:
    """Open an account. The password is asked for, or taken from FIXNADO_NEW_USER_PASSWORD."""
    try:
        address = TypeAdapter[str](Email).validate_python(email)
    except ValidationError:
        _fail(f"{email} is no e-mail address")
    if not 12 <= len(password) <= 128:
        _fail("a password has 12 to 128 characters")

    settings = _settings()

    async def add() -> str:
        app = Application(settings)
        try:
            await app.check_schema()
            made = await app.accounts.add(
                address, password, name or address.partition("@")[0], frozenset({role}), Origin("cli")
            )
            return str(made["user"]["id"])
        finally:
            await app.database.close()
            app.passwords.close()

    with database_explained(settings):
        user_id = asyncio.run(add())
    console.print(f"Added {address} as {role.value}: {user_id}", highlight=False)


@epochs.command("renew")
def renew_epochs(
    confirmed: Annotated[bool, typer.Option("--yes", help="Do not ask whether every node is stopped.")] = False,
) -> None:
    """After restoring a backup, before any node starts: make every client ask for a fresh snapshot.

    A restored database gives out offsets a second time. Under new epochs no client takes them for what it has.
    """
    settings = _settings()
    if not confirmed:
        typer.confirm("Is every node stopped, and the database restored?", abort=True)

    async def renew() -> int:
        # One transaction over every channel there is: as long as it takes.
        patient = replace(database_options(settings), transaction_timeout_seconds=3600, statement_timeout_seconds=None)
        database = Database(settings.database_url, patient)
        try:
            await check_schema(database)
            holders = set((await Leases(database).held()).values())
            if holders:
                raise Unavailable(f"a node still runs ({', '.join(sorted(holders))}): stop every node first")
            return await restore_epochs(database)
        finally:
            await database.close()

    with database_explained(settings):
        channels = asyncio.run(renew())
    console.print(f"Done: {channels} channels have new epochs. Nodes may start.", highlight=False)


@users.command()
def disable(email: str) -> None:
    """Close an account: nobody signs in to it, and whoever is in is out within a second."""
    asyncio.run(_with_credentials(lambda credentials: credentials.disable(email, Origin("cli", actor_id="cli"))))
    console.print(f"{email} is disabled.", highlight=False)


@users.command()
def enable(email: str) -> None:
    """Open a disabled account again."""
    asyncio.run(_with_credentials(lambda credentials: credentials.enable(email, Origin("cli", actor_id="cli"))))
    console.print(f"{email} is enabled.", highlight=False)


async def _with_credentials(work: Callable[[Credentials], Awaitable[None]]) -> None:
    settings = _settings()
    # What is done here is a security event; its line goes where the server's would.
    app = Application(settings)
    try:
        with database_explained(settings):
            await app.checks()["schema"]()
            await work(app.credentials)
    finally:
        app.passwords.close()
        app.aws.close()
        await app.database.close()


@audit.command("verify")
def verify_audit() -> None:
    """Walk the audit log and say whether every row is as it was written; exit code 1 names the first that is not."""
    settings = _settings()

    async def walk(told: Callable[[int, int], None]) -> Verdict:
        database = Database(settings.database_url, database_options(settings))
        try:
            with database_explained(settings):
                return await verify_audit_log(database, told)
        finally:
            await database.close()

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("Walking the audit log", total=None)
        verdict = asyncio.run(walk(lambda done, total: bar.update(task, completed=done, total=total)))
    if verdict.broken is not None:
        _fail(f"the audit log is broken at row {verdict.broken}: {verdict.why}; the {verdict.rows} before it are whole")
    console.print(f"{verdict.rows} rows, all whole. Hash of the newest: {verdict.head_hash}", highlight=False)


@cli.command()
def watch(
    url: Annotated[str, typer.Option(help="Where the server is.")] = "http://127.0.0.1:8000",
    email: Annotated[str, typer.Option(help="An operations or admin account.")] = demo_market.ADMIN,
    password: Annotated[str, typer.Option(envvar=WATCH_PASSWORD)] = demo_market.PASSWORD,
    events: Annotated[int | None, typer.Option(help="Stop after so many events.")] = None,
) -> None:
    """The live booking feed in this terminal."""
    try:
        asyncio.run(watch_feed(url.rstrip("/"), email, password, console, events))
    except KeyboardInterrupt:
        return


@cli.command()
def bench(
    work: Annotated[list[str] | None, typer.Argument(help="P1 to P9; all when none is named.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short rounds, to see that everything works.")] = False,
    record: Annotated[
        bool | None, typer.Option(help="Add the table to benchmarks/RESULTS.md; quick runs do not by default.")
    ] = None,
) -> None:
    """Measure this server and its yardsticks, from a checkout."""
    if not (specs.ROOT / "benchmarks" / "__main__.py").exists():
        _fail("the benchmarks are not part of an installed package: run `make bench` in a checkout")
    options = ["--quick"] if quick else []
    if record is not None:
        options.append("--record" if record else "--no-record")
    # In place of this process, so that it starts without what this one has imported, and Ctrl+C reaches it.
    os.chdir(specs.ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *options, *(work or [])])  # noqa: S606 — no shell


@cli.command()
def settings() -> None:
    """Every setting: name, unit, default, meaning."""
    table = Table("name", "unit", "default", "meaning", header_style="bold")
    for row in Settings.describe():
        table.add_row(row.name, row.unit, row.default, row.meaning)
    console.print(table)


@cli.command("specs")
def write_specs(
    check: Annotated[bool, typer.Option("--check", help="Only say whether the files are stale.")] = False,
) -> None:
    """Write openapi/ and asyncapi/ from the catalogue."""
    if check:
        old = specs.stale()
        if old:
            _fail(f"stale: {', '.join(str(file.relative_to(specs.ROOT)) for file in old)}; run `make specs`")
        console.print("The specifications are current.")
        return
    for file in specs.write():
        console.print(f"wrote {file.relative_to(specs.ROOT)}", highlight=False)
