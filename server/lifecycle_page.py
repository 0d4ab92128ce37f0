"""The page about a booking's life, drawn from the table that the code obeys."""

from __future__ import annotations

from domain.bookings import ENDED, TRANSITIONS, Party, Status

HEAD = """# The life of a booking

*Generated from `domain/bookings.py` by `make specs`; CI fails when it is stale.*

Every step names the version it saw; a stale one gets `conflict`. A step that is not below gets `illegal_transition`.
"""


def page() -> str:
    """Markdown: a state diagram (Mermaid) and the table."""
    return "\n".join([HEAD, "```mermaid", *_diagram(), "```", "", *_table(), ""])


def _diagram() -> list[str]:
    lines = ["stateDiagram-v2", f"    [*] --> {Status.PENDING.value}: booking.created"]
    for row in TRANSITIONS:
        lines += [f"    {source.value} --> {row.target.value}: {row.event}" for source in sorted(row.sources)]
    lines += [f"    {status.value} --> [*]" for status in sorted(ENDED)]
    return lines


def _table() -> list[str]:
    lines = ["| from | to | who | event |", "|---|---|---|---|", "| – | `pending` | customer | `booking.created` |"]
    for row in TRANSITIONS:
        sources = ", ".join(f"`{status.value}`" for status in Status if status in row.sources)
        parties = ", ".join(party.value for party in Party if party in row.parties)
        reason = "; with a reason" if row.needs_reason else ""
        lines.append(f"| {sources} | `{row.target.value}` | {parties}{reason} | `{row.event}` |")
    return lines
