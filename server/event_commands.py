"""``fixnado events``: tell other systems again what the log still has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from persistence.database import Database
from persistence.export import ExportStore, LogRange, entries_of, range_of
from server.app import check_schema, database_options
from server.aws import Aws, AwsOptions
from server.exporter import Outgoing, Replayed, Target, events_of, outgoing, tell_all
from server.outbound import Outbound
from server.settings import Settings, SettingsError

PAGE = 200


class TargetName(StrEnum):
    """Which of the systems that are set up."""

    ALL = "all"
    EVENTBRIDGE = "eventbridge"
    SQS = "sqs"


def event_commands(settings: Callable[[], Settings], console: Console) -> typer.Typer:
    """The group of commands.

    Args:
        settings: reads the settings when a command runs.
    """
    events = typer.Typer(help="Events for other systems.", no_args_is_help=True)

    @events.callback()
    def group() -> None:
        """Events for other systems."""

    @events.command()
    def replay(
        since: Annotated[
            str | None, typer.Option("--from", help="RFC 3339, such as 2026-11-24T09:00Z. UTC where it says nothing.")
        ] = None,
        until: Annotated[str | None, typer.Option("--to", help="The same, excluded; by default all there is.")] = None,
        channel: Annotated[str | None, typer.Option(help="Events of one channel, such as booking:01J….")] = None,
        types: Annotated[
            list[str] | None, typer.Option("--type", help="Events of this type; may be given several times.")
        ] = None,
        target: Annotated[TargetName, typer.Option(help="To whom.")] = TargetName.ALL,
        dead_letters: Annotated[
            bool, typer.Option("--dead-letters", help="Instead: what was refused too often, all of it.")
        ] = False,
    ) -> None:
        """Tell EventBridge and SQS again, in order, what was written to the log in a time.

        Events keep their ids. A FIFO queue drops those it got in the last five minutes.
        """
        if (since is None) is not dead_letters:
            raise SettingsError("say since when, with --from; or --dead-letters")
        if dead_letters and (channel is not None or until is not None):
            raise SettingsError("--dead-letters are of all channels and times: leave out --channel and --to")
        again = Replay(settings(), console, channel, frozenset(types or ()))
        if dead_letters:
            asyncio.run(again.dead_letters(target))
        else:
            asyncio.run(again.since(target, _moment(since or ""), _moment(until) if until else None))

    return events


class Replay:
    """One run of the command."""

    def __init__(self, settings: Settings, console: Console, channel: str | None, types: frozenset[str]) -> None:
        self._settings = settings
        self._console = console
        self._channel = channel
        self._types = types
        self._database = Database(settings.database_url, database_options(settings))
        self._aws = Aws(AwsOptions(settings.aws_region, settings.aws_endpoint_url))

    async def since(self, name: TargetName, since: datetime, until: datetime | None) -> None:
        """Everything that was written in a time."""
        try:
            await check_schema(self._database)
            part = await range_of(self._database, since, until)
            for target in self._targets(name):
                if part is None:
                    self._console.print("The log has nothing of that time.")
                    return
                self._say(target, await self._replay(target, part))
        finally:
            await self._close()

    async def dead_letters(self, name: TargetName) -> None:
        """Everything that was put aside for good; what is taken now is forgotten."""
        try:
            await check_schema(self._database)
            for target in self._targets(name):
                store = ExportStore(self._database, target.name)
                after, taken, refused = 0, 0, dict[str, str]()
                while page := await store.dead(after, PAGE):
                    after = page[-1].sequence
                    chosen = self._chosen([outgoing(it.sequence, it.event) for it in page])
                    done = await tell_all(target, chosen)
                    taken, refused = taken + done.taken, {**refused, **done.refused}
                    told = {event.sequence for event in chosen if event.id not in done.refused}
                    await store.remove([it for it in page if it.sequence in told])
                self._say(target, Replayed(taken, refused))
        finally:
            await self._close()

    async def _replay(self, target: Target, part: LogRange) -> Replayed:
        taken, refused, after, last_id = 0, dict[str, str](), part.first - 1, ""
        columns = (TextColumn(f"Telling {target.name}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task("", total=part.last - part.first + 1)
            while entries := await entries_of(self._database, part, after, PAGE, self._channel):
                after = entries[-1].sequence
                events = events_of(entries, last_id)
                last_id = events[-1].id if events else last_id
                done = await tell_all(target, self._chosen(events))
                taken, refused = taken + done.taken, {**refused, **done.refused}
                progress.update(bar, completed=after - part.first + 1)
            progress.update(bar, completed=part.last - part.first + 1)
        return Replayed(taken, refused)

    def _chosen(self, events: Sequence[Outgoing]) -> list[Outgoing]:
        return [event for event in events if not self._types or event.type in self._types]

    def _targets(self, name: TargetName) -> Sequence[Target]:
        there = Outbound(self._settings, self._aws).targets
        chosen = [target for target in there if name in {TargetName.ALL, target.name}]
        if not chosen:
            raise SettingsError("no such target is set up: see FIXNADO_EVENTBRIDGE_BUS and FIXNADO_SQS_QUEUE_URL")
        return chosen

    def _say(self, target: Target, done: Replayed) -> None:
        self._console.print(f"{target.name}: {done.taken} events taken, {len(done.refused)} refused.", highlight=False)
        for event_id, why in list(done.refused.items())[:20]:
            self._console.print(f"  {event_id}: {why}", highlight=False)

    async def _close(self) -> None:
        self._aws.close()
        await self._database.close()


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{text!r} is no time; write it as in 2026-11-24T09:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
