"""``fixnado zones``: the map of the marketplace, from a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from domain.context import Context
from domain.errors import InvalidParams
from domain.types import Origin
from domain.zones import Imported, announce_change
from persistence.repositories import SqlUnitOfWork
from server.app import Application
from server.diagnosis import database_explained
from server.settings import Settings

PATIENT_SECONDS = 120.0
"""Ten thousand zones are one transaction."""


def zone_commands(settings: Callable[[], Settings], console: Console, errors: Console) -> typer.Typer:
    """The group of commands.

    Args:
        settings: reads the settings when a command runs.
    """
    zones = typer.Typer(help="The marketplace's areas.", no_args_is_help=True)

    @zones.callback()
    def group() -> None:
        """The marketplace's areas."""

    @zones.command("import")
    def import_file(
        file: Annotated[Path, typer.Argument(help="A GeoJSON FeatureCollection.", exists=True, dir_okay=False)],
        organisation: Annotated[
            str | None, typer.Option(help="Id of the organisation whose zones they are; the marketplace's own if none.")
        ] = None,
    ) -> None:
        """Add and change zones from a file: all of them, or none. Zones that are not in it stay."""
        chosen = settings().model_copy(update={"database_timeout_seconds": PATIENT_SECONDS})
        try:
            collection = orjson.loads(file.read_bytes())
            if not isinstance(collection, dict):
                raise InvalidParams.at("collection", "must be a GeoJSON FeatureCollection")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, console=errors, transient=True) as bars, database_explained(chosen):
                outcome = asyncio.run(_import(chosen, collection, organisation, _Told(bars)))
        except orjson.JSONDecodeError as error:
            errors.print(f"fixnado: {file} is not JSON: {error}", style="red", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error
        except InvalidParams as error:
            errors.print(f"fixnado: nothing was imported from {file}", style="red", highlight=False, soft_wrap=True)
            for problem in error.details["errors"]:
                where = problem["where"].removeprefix("collection.")
                errors.print(f"  {where}: {problem['why']}", highlight=False, markup=False, soft_wrap=True)
            raise typer.Exit(1) from error
        console.print(
            f"{outcome.created} zones created, {outcome.updated} updated, {outcome.unchanged} unchanged.",
            highlight=False,
        )

    return zones


class _Told:
    """Progress as bars, one per kind of work."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what.capitalize(), total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)


async def _import(settings: Settings, collection: dict[str, Any], organisation: str | None, told: _Told) -> Imported:
    app = Application(settings)

    async def work(ctx: Context) -> Imported:
        if organisation is not None and await ctx.uow.organisations.get(organisation) is None:
            raise InvalidParams.at("organisation", "there is no such organisation")
        assert isinstance(ctx.uow, SqlUnitOfWork)
        outcome = await ctx.uow.zones.put_all(collection, organisation, told)
        await announce_change(ctx, outcome)
        return outcome

    try:
        await app.check_schema()
        return await app.desk.run_as_system(work, Origin("cli", actor_id="cli"))
    finally:
        app.passwords.close()
        app.aws.close()
        await app.database.close()
