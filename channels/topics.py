"""The one page to audit for leaks: the channel grammar, who may subscribe, and which event goes to which channels.

Three pure parts. :func:`parse` reads a channel name. :func:`may_subscribe` decides for a person and the facts about the
thing behind the channel. :func:`route` turns an event's audience into channel names. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from domain.events import Event
from domain.identity import Actor, Permission, permissions_of


class Kind(StrEnum):
    """The subjects a channel can be about."""

    USER = "user"
    PROVIDER = "provider"
    BOOKING = "booking"
    CONVERSATION = "conversation"
    ORGANISATION = "organisation"
    ZONE = "zone"
    AVAILABILITY = "availability"
    ADMIN = "admin"
    CONTROL = "control"


ADMIN_BOOKINGS = "admin:bookings"
ADMIN_SECURITY = "admin:security"
ADMIN_ZONES = "admin:zones"
CONTROL = "control"
"""Read by nodes only; no client can name it."""

_ID = r"[A-Za-z0-9_-]{1,64}"
_GRAMMAR = re.compile(
    rf"(?:(?P<kind>user|provider|booking|conversation|organisation|zone):(?P<id>{_ID})"
    rf"|availability:(?P<service>{_ID}):(?P<zone>{_ID})"
    r"|admin:(?P<admin>bookings|security|zones))"
)


@dataclass(frozen=True, slots=True)
class Topic:
    """A channel name, understood. ``zone_id`` is set for availability channels only (``id`` is then the service)."""

    kind: Kind
    id: str
    zone_id: str | None = None

    @property
    def channel(self) -> str:
        if self.kind is Kind.AVAILABILITY:
            return f"availability:{self.id}:{self.zone_id}"
        return f"{self.kind}:{self.id}"


def parse(channel: str) -> Topic | None:
    """The topic of a channel that clients may name, or ``None`` when the grammar does not know it."""
    match = _GRAMMAR.fullmatch(channel)
    if match is None:
        return None
    if match["admin"]:
        return Topic(Kind.ADMIN, match["admin"])
    if match["service"]:
        return Topic(Kind.AVAILABILITY, match["service"], match["zone"])
    return Topic(Kind(match["kind"]), match["id"])


@dataclass(frozen=True, slots=True)
class Facts:
    """What the database knows about the thing behind a channel.

    Attributes:
        exists: whether there is such a thing.
        user_ids: people who belong to it by name (a booking's customer).
        provider_ids: providers that belong to it (the assigned one; those covering a zone).
    """

    exists: bool
    user_ids: frozenset[str] = frozenset()
    provider_ids: frozenset[str] = frozenset()


UNKNOWN = Facts(exists=False)


def own_channels(actor: Actor) -> list[str]:
    """The channels a session gets without asking."""
    channels = [f"user:{actor.user_id}"]
    channels += [f"provider:{membership.provider_id}" for membership in actor.memberships if membership.provider_id]
    if actor.is_operations:
        channels.append(ADMIN_BOOKINGS)
    return channels


def needs_facts(topic: Topic) -> bool:
    """Whether :func:`may_subscribe` depends on the database."""
    return topic.kind in {Kind.BOOKING, Kind.CONVERSATION, Kind.ZONE, Kind.AVAILABILITY, Kind.ORGANISATION}


def may_subscribe(actor: Actor, topic: Topic, facts: Facts) -> bool:
    """Whether this person may hear this channel. What does not exist is refused like what is not theirs."""
    match topic.kind:
        case Kind.USER:
            return topic.id == actor.user_id
        case Kind.PROVIDER:
            return topic.id in actor.provider_ids
        case Kind.BOOKING | Kind.CONVERSATION:
            return facts.exists and (
                actor.is_operations or actor.user_id in facts.user_ids or bool(actor.provider_ids & facts.provider_ids)
            )
        case Kind.ORGANISATION:
            return any(
                membership.organisation_id == topic.id
                and Permission.HEAR_ORGANISATION in permissions_of(membership.role)
                for membership in actor.memberships
            )
        case Kind.ZONE:
            return facts.exists and (actor.is_operations or bool(actor.provider_ids & facts.provider_ids))
        case Kind.AVAILABILITY:
            return facts.exists
        case Kind.ADMIN:
            return actor.may(Permission.ADMINISTER if topic.channel == ADMIN_SECURITY else Permission.OPERATE)
        case Kind.CONTROL:
            return False


def route(event: Event) -> Sequence[str]:
    """The channels an event goes to, each once. Pure: the same event always takes the same way."""
    to = event.audience
    subject = event.type.partition(".")[0]
    if event.type in CONTROL_EVENTS:
        return (CONTROL,)
    channels: list[str] = []
    match subject:
        case "booking" | "sla" | "dispute":
            channels += [f"booking:{to.booking}"] if to.booking else []
            channels += [f"user:{user}" for user in to.users]
            channels += [f"organisation:{organisation}" for organisation in to.organisations]
            # That a deadline was met, operators see from the booking's own event.
            if event.type != "sla.met":
                channels.append(ADMIN_BOOKINGS)
        case "offer":
            channels += [f"provider:{provider}" for provider in to.providers]
            channels.append(ADMIN_BOOKINGS)
        case "eta" | "location":
            channels += [f"booking:{to.booking}"] if to.booking else []
        case "message" | "receipt" | "typing":
            channels += [f"conversation:{to.conversation}"] if to.conversation else []
        case "availability":
            channels += [f"provider:{provider}" for provider in to.providers]
        case "presence":
            channels += [f"organisation:{organisation}" for organisation in to.organisations]
            channels.append(ADMIN_BOOKINGS)
        case "membership" | "invitation":
            channels += [f"user:{user}" for user in to.users]
            channels += [f"organisation:{organisation}" for organisation in to.organisations]
        case "security":
            channels.append(ADMIN_SECURITY)
        case "notification" | "session" | "flag" | "series":
            channels += [f"user:{user}" for user in to.users]
        case "zone" if event.type == "zone.heat_updated":
            # Where single providers are is nothing for their competitors, who hear the zone.
            channels.append(ADMIN_ZONES)
        case "zone" | "announcement":
            channels += [f"zone:{zone}" for zone in to.zones]
        case "slot":
            channels += [f"availability:{service}:{zone}" for service, zone in to.slots]
        case _:
            raise ValueError(f"no channel carries {event.type}")
    return tuple(dict.fromkeys(channels))


CONTROL_EVENTS = frozenset({"access.revoked", "access.changed", "session.revoked", "flag.changed", "zones.changed"})
"""Events that only nodes read; see :meth:`channels.hub.Hub` for what a node does with them."""
