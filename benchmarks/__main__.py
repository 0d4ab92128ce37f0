"""``python -m benchmarks [WORK …]``: runs works, shows how far they are, and ends with one table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks import machine, results
from benchmarks.pictures import svg
from benchmarks.results import Figure, Outcome
from benchmarks.scene import Scene
from benchmarks.works import bookings, connects, fanout, latency, memory, spread, stalled, storm

Run = Callable[[Scene], Outcome]

WORKS: dict[str, Run] = {
    "P1": lambda scene: fanout.run(scene, ["P1"]),
    "P2": lambda scene: fanout.run(scene, ["P2"]),
    "P3": spread.run,
    "P4": memory.run,
    "P5": connects.run,
    "P6": latency.run,
    "P7": bookings.run,
    "P8": storm.run,
    "P9": stalled.run,
}
"""What can be asked for, in the order in which it runs."""

BUSY_LOAD_PER_CORE = 0.25
SHOWN_CHARACTERS = 300

console = Console()
cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def plan(wanted: Sequence[str]) -> list[tuple[str, Run]]:
    """What to run, by name in any case; everything for nothing. P1 and P2 share their servers when both are asked for.

    Raises:
        KeyError: there is no such work.
    """
    names = [name.upper() for name in wanted] or list(WORKS)
    for name in names:
        if name not in WORKS:
            raise KeyError(name)
    chosen = [name for name in WORKS if name in names]
    if {"P1", "P2"} <= set(chosen):
        rest = [(name, WORKS[name]) for name in chosen if name not in {"P1", "P2"}]
        return [("P1, P2", fanout.run), *rest]
    return [(name, WORKS[name]) for name in chosen]


def perform(name: str, run: Run, scene: Scene) -> Outcome:
    """Run one work; whatever goes wrong becomes a line of the table that says so."""
    # P7 shares the cores with what it measures, every other work keeps to its own.
    machine.pin(0, scene.cores.both if name == "P7" else [scene.cores.generator])
    try:
        return run(scene)
    except Exception as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        text = " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN_CHARACTERS]
        return Outcome([Figure.missing(name, "failed", "", text)])


@cli.command()
def bench(
    work: Annotated[list[str] | None, typer.Argument(help="P1 to P9; all when none is named.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short rounds, to see that everything works.")] = False,
    record: Annotated[
        bool | None, typer.Option(help="Add the table to benchmarks/RESULTS.md; quick runs do not by default.")
    ] = None,
) -> None:
    """Measure this server and its yardsticks in one run."""
    try:
        planned = plan(work or [])
    except KeyError as error:
        console.print(f"There is no work {error.args[0]}: choose from {', '.join(WORKS)}.", style="red")
        raise typer.Exit(2) from None
    cores, load = machine.cores(), machine.load_average()
    limit = machine.raise_file_limit()
    console.print(f"{machine.describe()}; {limit:,} open files. {machine.versions()}", highlight=False)
    if not cores.separate:
        console.print("One core only: server and generator share it, and the figures say little.", style="yellow")
    if load > BUSY_LOAD_PER_CORE * len(cores.both):
        console.print(f"The machine is busy (load {load:.1f}): trust ratios at most.", style="yellow")
    figures, pictures = [], []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for name, run in planned:
            bar = progress.add_task(name, total=1.0, now="")
            outcome = perform(name, run, Scene(cores, quick, _teller(progress, bar)))
            progress.update(bar, completed=1.0, now="done")
            figures += outcome.figures
            pictures += outcome.pictures
    machine.pin(0, cores.both)
    results.show(console, figures)
    if record if record is not None else not quick:
        results.PICTURES.mkdir(exist_ok=True)
        for picture in pictures:
            (results.PICTURES / picture.file).write_text(svg(picture))
        results.record(results.entry(figures, whole=len(planned) == len(plan([])), quick=quick, quiet_load=load))
        console.print(f"Added to {results.RESULTS}", highlight=False)


def _teller(progress: Progress, bar: TaskID) -> Callable[[str, float], None]:
    def tell(text: str, share: float) -> None:
        progress.update(bar, completed=share, now=text)

    return tell


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line, also behind ``fixnado bench``. Ends the process."""
    cli(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="fixnado bench")


if __name__ == "__main__":
    main()
