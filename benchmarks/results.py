"""What a work found out, and how it is told: a table in the terminal, an entry in ``RESULTS.md``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import machine

RESULTS = Path(__file__).with_name("RESULTS.md")
PICTURES = Path(__file__).with_name("results")

HEADER = """# Results

What `make bench` measured, oldest first; the bad ones too. How it is measured:
[docs/performance.md](../docs/performance.md). How cost grows, in the newest full run:

![P1: deliveries per second by sockets](results/p1-fanout.svg)
![P4: bytes per idle socket by sockets](results/p4-memory.svg)
![P7: log entries per second by nodes](results/p7-nodes.svg)
"""

FILE_COLUMNS = 170

BUSY_GENERATOR = 0.85
"""A share of one core from which the generator may be what is measured."""


@dataclass(slots=True)
class Figure:
    """One line of the table.

    Attributes:
        work: ``P1`` and so on.
        title: what was done.
        value: the figure, as shown; ``None`` when it was not measured.
        target: what it should be.
        reached: ``None`` when that cannot be told, or is no question (a point of a growth curve).
        ratios: to yardsticks of the same run: how many times theirs ours is.
        generator_share: CPU of the load generator, 1.0 is one core.
        notes: what must be known to read the figure; why it was not measured.
    """

    work: str
    title: str
    value: str | None
    target: str = ""
    reached: bool | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    generator_share: float | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def missing(cls, work: str, title: str, target: str, why: str) -> Figure:
        """A line that has no figure, and why."""
        return cls(work, title, None, target, notes=[why])

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return {True: "yes", False: "no", None: ""}[self.reached]


@dataclass(frozen=True, slots=True)
class Curve:
    """How something grows: points ``(x, y)`` under a name, for a picture."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(slots=True)
class Picture:
    """A chart of curves. ``x_log`` spreads x by its logarithm."""

    file: str
    title: str
    x_label: str
    y_label: str
    curves: list[Curve]
    x_log: bool = True


@dataclass(slots=True)
class Outcome:
    """All that one work brings home."""

    figures: list[Figure] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def median(values: Sequence[float]) -> float:
    """The middle one; of an even number, the lower of the two: no figure that was never seen."""
    return statistics.median_low(values)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank, of values in ascending order."""
    if not ordered:
        raise ValueError("no values")
    rank = max(1, -(-len(ordered) * share // 1))
    return ordered[min(len(ordered), int(rank)) - 1]


def quantity(value: float) -> str:
    """``193 k``, ``1.63 M``: three digits, as rates are read."""
    for factor, unit in ((1e6, " M"), (1e3, " k")):
        # From where three digits would round up to the next unit.
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def share(value: float | None) -> str:
    """CPU share, marked when the generator may be the bottleneck."""
    if value is None:
        return ""
    return f"{value:.0%}{' (!)' if value >= BUSY_GENERATOR else ''}"


def ratios(figure: Figure) -> str:
    """``2.1 × picows`` and so on."""
    return "; ".join(f"{ratio:.2f} × {name}" for name, ratio in figure.ratios.items())


def show(console: Console, figures: Sequence[Figure]) -> None:
    """The one table at the end; where nobody looks at it, as wide as it needs to be."""
    if not console.is_terminal:
        console = Console(file=console.file, width=FILE_COLUMNS)
    table = Table("work", "what", "figure", "target", "reached", "× yardsticks", "generator CPU", header_style="bold")
    colours = {"yes": "green", "no": "red", "not measured": "yellow"}
    for figure in figures:
        verdict = figure.verdict
        shown = f"[{colours[verdict]}]{verdict}[/]" if verdict else ""
        told = "\n".join([figure.title, *(f"[dim]{note}[/]" for note in figure.notes)])
        row = (figure.work, told, figure.value or "–", figure.target, shown, ratios(figure).replace("; ", "\n"))
        table.add_row(*row, share(figure.generator_share))
    console.print(table)


def entry(figures: Sequence[Figure], *, whole: bool, quick: bool, quiet_load: float) -> str:
    """What goes to ``RESULTS.md``.

    Args:
        whole: every work was asked for.
        quiet_load: the load average before the run: what else the machine was doing.
    """
    now = datetime.now(UTC)
    kind = "full run" if whole else f"{', '.join(sorted({figure.work for figure in figures}))} alone"
    if quick:
        kind = "quick run: rounds too short for a verdict, kept to show that the harness works"
    lines = [
        f"## {now:%Y-%m-%d %H:%M} UTC, {kind}",
        "",
        f"- machine: {machine.describe()}; load average before the run {quiet_load:.1f}",
        f"- speed of a core: a million additions in Python take {machine.loop_ms():.0f} ms",
        f"- software: {machine.versions()}",
        "",
        "| work | what | figure | target | reached | × yardsticks | generator CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for figure in figures:
        told = "; ".join([figure.title, *figure.notes])
        cells = (
            figure.work,
            told,
            figure.value or "–",
            figure.target,
            figure.verdict,
            ratios(figure),
            share(figure.generator_share),
        )
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def record(text: str, file: Path = RESULTS) -> None:
    """Add an entry, the newest at the end."""
    if not file.exists():
        file.write_text(HEADER)
    with file.open("a") as results:
        results.write("\n" + text)
