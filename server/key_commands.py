"""``fixnado keys``: new keys while the servers run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from persistence.resealing import reseal
from server.app import Application
from server.keys import rotate_signing_key
from server.settings import Settings


def key_commands(settings: Callable[[], Settings], console: Console) -> typer.Typer:
    """The group of commands.

    Args:
        settings: reads the settings when a command runs.
    """
    keys = typer.Typer(help="Encryption and signing keys.", no_args_is_help=True)

    @keys.callback()
    def group() -> None:
        """Encryption and signing keys."""

    @keys.command()
    def rotate(
        signing: Annotated[
            bool, typer.Option("--signing", help="The key that signs access tokens, instead of the encryption key.")
        ] = False,
    ) -> None:
        """Encrypt stored secrets under a new data key; or, with --signing, announce a new signing key."""
        asyncio.run(_with_application(settings(), _rotate_signing if signing else _rotate_data))

    async def _rotate_data(app: Application) -> None:
        columns = (TextColumn("Re-encrypting"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("", total=None)
            done = await reseal(app.database, app.vault, lambda at, of: progress.update(bar, completed=at, total=of))
        console.print(f"{done.moved} secrets are under data key {done.version}.", highlight=False)
        if not done.new:
            console.print("That finished a rotation that had been interrupted; run it again for a new key.")

    async def _rotate_signing(app: Application) -> None:
        token_seconds = app.settings.access_token_seconds + app.settings.access_token_leeway_seconds
        kid, signs_from = await rotate_signing_key(app.database, app.vault, token_seconds)
        console.print(f"Key {kid} signs from {signs_from:%H:%M:%S} UTC.", highlight=False)
        console.print(f"Tokens of the one before it count {token_seconds:.0f} s longer.", highlight=False)

    return keys


async def _with_application(settings: Settings, work: Callable[[Application], Awaitable[None]]) -> None:
    app = Application(settings)
    try:
        await app.checks()["schema"]()
        await work(app)
    finally:
        app.passwords.close()
        app.aws.close()
        await app.database.close()
