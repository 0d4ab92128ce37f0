"""Feature flags on one node: kept current by the ``control`` channel, and told to the clients for whom they changed.

A flip reaches every node as ``flag.changed`` with the whole flag, so no node has to ask the database. The node compares
each person's answer before and after and says ``flag.updated`` on ``user:{id}`` where it is another. That is said on
this node only, to its own sockets (every node does the same), and not stored: a client asks
``flag.evaluate`` when it connects. A node that missed something reads all flags again now and then
(:meth:`FlagNews.take`).

Concurrency: one event loop. People are gone through in slices, so that a flip does not hold the loop up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from channels.hub import Hub
from channels.protocol import encode_data, encode_event
from domain.events import EventClass
from domain.flags import Flag, FlagBoard, read_view, updated
from domain.identity import Actor
from domain.log import Entry
from domain.ports import Clock

SLICE = 500
"""People compared in one turn of the loop."""


class FlagNews:
    """Follows the flags of one node.

    Attributes:
        board: every flag as this node knows it.
    """

    def __init__(self, hub: Hub, clock: Clock) -> None:
        self.board = FlagBoard()
        self._hub = hub
        self._clock = clock
        self._work: deque[tuple[Flag | None, Flag, deque[Actor]]] = deque()
        hub.listen(self._heard)

    def take(self, flags: Iterable[Flag]) -> None:
        """Take flags as the database has them; known or older ones change nothing."""
        for flag in flags:
            self._put(flag)

    def _heard(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "flag.changed":
            self._put(read_view(data["flag"]))

    def _put(self, flag: Flag) -> None:
        before = self.board.get(flag.name)
        if not self.board.put(flag):
            return
        sessions = self._hub.roster.everybody()
        people = {session.actor.user_id: session.actor for session in sessions if session.actor is not None}
        if people:
            self._work.append((before, flag, deque(people.values())))
            if len(self._work) == 1:
                asyncio.get_running_loop().call_soon(self._tell_some)

    def _tell_some(self) -> None:
        before, flag, people = self._work[0]
        entries = []
        for _ in range(min(SLICE, len(people))):
            actor = people.popleft()
            on = flag.is_on(actor)
            if on is not (before is not None and before.is_on(actor)):
                entries.append(self._entry(flag, actor.user_id, on=on))
        self._hub.receive(entries)
        if not people:
            self._work.popleft()
        if self._work:
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _entry(self, flag: Flag, user_id: str, *, on: bool) -> Entry:
        event = updated(flag, user_id, on=on, now=self._clock.now())
        channel = f"user:{user_id}"
        frame = encode_event(event, channel, None, None, encode_data(event.data))
        return Entry(channel, None, 0, EventClass.EPHEMERAL, event.key, frame)
