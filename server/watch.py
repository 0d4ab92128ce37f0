"""The live booking feed in a terminal."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from domain.types import JSON
from server.robot import Robot, RobotError

LINES = 18
COLOURS = {
    "created": "cyan",
    "dispatch_started": "blue",
    "assigned": "green",
    "completed": "bold green",
    "cancelled": "red",
    "unfulfilled": "red",
    "rescue_needed": "bold red",
    "made": "yellow",
    "accepted": "green",
    "declined": "magenta",
    "expired": "magenta",
    "withdrawn": "dim",
}


async def watch(base: str, email: str, password: str, console: Console, most_events: int | None = None) -> None:
    """Shows bookings by state and the newest events until interrupted; comes back by itself when the socket goes.

    Args:
        most_events: stop after so many events; ``None`` is for ever.

    Raises:
        RobotError: the login is refused, or the account may not see the feed.
    """
    states: dict[str, str] = {}
    lines: deque[JSON] = deque(maxlen=LINES)
    seen = 0
    with Live(console=console, refresh_per_second=8, transient=False) as live:
        while True:
            robot = await Robot.open(base, email, password, "fixnado-watch/1")
            try:
                feed = robot.connected["channels"].get("admin:bookings")
                if feed is None:
                    raise RobotError("not_found", f"{email} may not see the live feed; use an operations account")
                states.update({booking["id"]: booking["status"] for booking in feed["state"]["bookings"]})
                live.update(_picture(base, states, lines))
                async for event in robot.events():
                    if event["channel"] != "admin:bookings":
                        continue
                    booking = event["data"].get("booking")
                    if isinstance(booking, dict) and "status" in booking:
                        states[booking["id"]] = booking["status"]
                    if "offset" in event:
                        lines.append(event)
                        seen += 1
                    live.update(_picture(base, states, lines))
                    if most_events is not None and seen >= most_events:
                        return
            finally:
                await robot.close()
            live.update(Text("The connection went; coming back …", style="yellow"))
            await asyncio.sleep(1.0)


def _picture(base: str, states: dict[str, str], lines: deque[JSON]) -> Group:
    counts = Counter(states.values())
    head = Text.assemble(
        ("Fixnado live feed ", "bold"),
        (base, "dim"),
        "  ",
        "   ".join(f"{state.replace('_', ' ')} {number}" for state, number in sorted(counts.items())),
    )
    table = Table(expand=True, show_edge=False, header_style="dim")
    for column in ("time", "event", "booking", "what"):
        table.add_column(column)
    for event in reversed(lines):
        colour = COLOURS.get(event["type"].partition(".")[2], "white")
        table.add_row(
            event["time"][11:23], Text(event["type"], style=colour), event["data"]["booking_id"][-8:], _what(event)
        )
    return Group(head, table)


def _what(event: JSON) -> str:
    data = event["data"]
    if "booking" in data:
        booking = data["booking"]
        return f"{booking['service_id']} · {booking['status'].replace('_', ' ')}" + (
            f" · {data['reason']}" if data.get("reason") else ""
        )
    if "offer" in data:
        return f"to {data['provider_id'][-6:]} · wave {data['offer']['wave']} · rank {data['offer']['rank']:.2f}"
    return f"{data['provider_id'][-6:]}" + (f" · {data['reason']}" if data.get("reason") else "")
