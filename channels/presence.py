"""Who listens to a channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from channels.hub import Hub
from domain.identity import Actor
from domain.types import JSON


@dataclass(frozen=True, slots=True)
class Member:
    """One person on a channel, with however many sockets."""

    user_id: str
    name: str
    roles: tuple[str, ...]
    sockets: int

    def view(self) -> JSON:
        return {"user_id": self.user_id, "name": self.name, "roles": list(self.roles), "sockets": self.sockets}


class Presence(Protocol):
    """Tells who is on a channel, on any node."""

    async def members(self, channel: str) -> Sequence[Member]:
        """Each person once, ordered by name. May lag behind by what it takes nodes to tell each other."""


class NodePresence:
    """The presence of a single node, from its hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def members(self, channel: str) -> Sequence[Member]:
        sockets: dict[str, int] = {}
        actors: dict[str, Actor] = {}
        for subscriber in self._hub.subscribers(channel):
            actor = subscriber.actor
            if actor is not None:
                sockets[actor.user_id] = sockets.get(actor.user_id, 0) + 1
                actors[actor.user_id] = actor
        found = [
            Member(user_id, actor.name, tuple(sorted(actor.roles)), sockets[user_id])
            for user_id, actor in actors.items()
        ]
        return sorted(found, key=lambda member: (member.name, member.user_id))
