"""Calendars elsewhere: a provider's jobs as a feed for calendar programs, and busy times brought along from there.

A feed belongs to one member of an organisation and is opened by a token that is shown once; only its hash is kept. A
new token replaces the one before, and a member who leaves takes the feed along.

Busy times are copies. Each import replaces those of its source; they count in free slots, and take nothing that is
booked already. An address is read by a worker outside any transaction (:mod:`server.calendar_fetch`).
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Annotated, Protocol
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints

from domain import planning
from domain.availability import own_provider_id
from domain.bookings import Booking
from domain.calendars import Calendar, merged
from domain.context import Context
from domain.errors import Forbidden, InvalidParams, Refused
from domain.factors import token_hash
from domain.identity import Permission
from domain.planning import managed
from domain.providers import Provider
from domain.types import JSON, Interval, new_id, wire_time
from domain.views import Key, Params, View

TOKEN_PREFIX = "fxc_"  # noqa: S105 — names the kind, so that logs and secret scanners can recognise one
MOST_SOURCES = 10
MOST_TIMES = 1000
MOST_JOBS = 500
PAST, AHEAD = timedelta(days=30), timedelta(days=365)
BUSY_AHEAD = timedelta(days=180)


class SourceKind(StrEnum):
    """A file that somebody brought, or an address that is read every hour."""

    FILE = "file"
    ADDRESS = "address"


READ_EVERY = {SourceKind.ADDRESS: timedelta(hours=1), SourceKind.FILE: timedelta(days=7)}
"""A file stays what it is, but what repeats in it comes within reach as time passes."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where busy times come from.

    Attributes:
        times: busy times it has within reach.
        skipped: its events that repeat in a way that is not taken, or say no time.
        problem: why it could not be read the last time.
        next_fetch_at: when it is read again; another value says that it was replaced, or that somebody else reads it.
        text: of a file, what in it says when. Only there when it is being written or is to be read again.
    """

    id: str
    provider_id: str
    organisation_id: str
    name: str
    kind: SourceKind
    url: str | None
    times: int = 0
    skipped: int = 0
    problem: str | None = None
    fetched_at: datetime | None = None
    next_fetch_at: datetime | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Busy:
    """What was read of a calendar: times in no particular order, and how many events were passed over."""

    times: Sequence[Interval]
    skipped: int


@dataclass(frozen=True, slots=True)
class FeedJobs:
    """What a feed shows: the jobs, and the names of their services by id."""

    name: str
    jobs: Sequence[Booking]
    services: dict[str, str]


class UnreadableCalendar(Refused):
    """It is no iCalendar text (RFC 5545)."""

    type = "unreadable_calendar"
    status = 422
    default_message = "This cannot be read as a calendar."


class TooManySources(Refused):
    """A provider brings along so many calendars at most."""

    type = "too_many_sources"
    default_message = "The provider has as many calendars as it may bring along. Remove one first."


class CalendarReader(Protocol):
    """Reads iCalendar texts, off the loop."""

    async def busy(self, text: bytes, within: Interval, tzid: str) -> Busy:
        """The busy times in a calendar; whole days, and times without a zone, are read in ``tzid``.

        Raises:
            UnreadableCalendar: it is none.
        """

    def times_only(self, text: str) -> str:
        """The calendar without what does not matter for its busy times: titles, places, people."""


# --- the wire ---------------------------------------------------------------------------------------------------------

Id = Annotated[str, Field(max_length=64)]
SourceName = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]


class FeedRef(Params):
    """``provider_id`` is needed only by somebody who speaks for several."""

    provider_id: Id | None = None


class ImportCalendar(Params):
    """``ics`` is an iCalendar text (RFC 5545). A source of the same name is replaced."""

    provider_id: Id
    name: SourceName
    ics: Annotated[str, Field(max_length=60_000)]
    key: Key


class SubscribeCalendar(Params):
    """``url`` is read now and every hour. A source of the same name is replaced, its times once that was read."""

    provider_id: Id
    name: SourceName
    url: Annotated[str, StringConstraints(pattern=r"^https://[\x21-\x7e]+$", max_length=500)]
    key: Key


class SourcesRef(Params):
    """Names a provider."""

    provider_id: Id


class RemoveSource(Params):
    """Forgets a source and its times."""

    source_id: Id
    key: Key


class IssuedFeed(View):
    """Where one's feed is, shown this once. It replaces every earlier one of the caller's for this provider."""

    provider_id: str
    token: str
    path: str


class RevokedFeed(View):
    """The provider whose feed the caller has no longer."""

    provider_id: str


class SourceView(View):
    """Where busy times come from; of an address only the host is shown, as the rest of it may be a secret."""

    id: str
    provider_id: str
    name: str
    kind: SourceKind
    host: str | None = None
    times: int
    skipped: int
    problem: str | None = None
    fetched_at: str | None = None


class SourceResult(View):
    """One source."""

    source: SourceView


class SourceList(View):
    """A provider's sources by name."""

    sources: list[SourceView]


def source_view(source: Source) -> JSON:
    """A source on the wire."""
    shape: JSON = {
        "id": source.id,
        "provider_id": source.provider_id,
        "name": source.name,
        "kind": source.kind.value,
        "times": source.times,
        "skipped": source.skipped,
    }
    if source.url is not None:
        shape["host"] = urlsplit(source.url).hostname or ""
    if source.problem is not None:
        shape["problem"] = source.problem
    if source.fetched_at is not None:
        shape["fetched_at"] = wire_time(source.fetched_at)
    return shape


# --- feeds ------------------------------------------------------------------------------------------------------------


async def issue_feed(ctx: Context, params: FeedRef) -> JSON:
    """A new token for one's feed of a provider's jobs."""
    provider_id = own_provider_id(ctx, params.provider_id)
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    # Two requests of one person at once take turns.
    await ctx.uow.market.lock_provider(provider_id)
    await ctx.uow.calendar_sync.put_feed(provider_id, ctx.actor.user_id, token_hash(token))
    return {"provider_id": provider_id, "token": token, "path": f"/calendars/{token}.ics"}


async def revoke_feed(ctx: Context, params: FeedRef) -> JSON:
    """From now on the token opens nothing."""
    provider_id = own_provider_id(ctx, params.provider_id)
    await ctx.uow.calendar_sync.remove_feed(provider_id, ctx.actor.user_id)
    return {"provider_id": provider_id}


async def feed(ctx: Context, token: str) -> FeedJobs:
    """The jobs behind a token: those with an agreed time, from a month ago to a year ahead, cancelled ones included.

    Raises:
        Forbidden: no such token, or its owner is no longer a member or disabled.
    """
    provider_id = await ctx.uow.calendar_sync.provider_of_feed(token_hash(token))
    provider = None if provider_id is None else await ctx.uow.market.provider(provider_id)
    if provider is None:
        raise Forbidden
    within = Interval(ctx.now - PAST, ctx.now + AHEAD)
    jobs = await ctx.uow.calendar_sync.jobs(provider.id, within, ctx.now, MOST_JOBS)
    return FeedJobs(provider.name, jobs, {service.id: service.name for service in await ctx.uow.market.services()})


# --- busy times -------------------------------------------------------------------------------------------------------


async def read_calendar(ctx: Context, params: ImportCalendar) -> Callable[[], Awaitable[Busy | None]]:
    """The work of reading the file, for whoever may bring it; it takes a moment, and nobody should wait for it."""
    provider = await ctx.uow.market.provider(params.provider_id)
    if provider is None or not ctx.actor.may(Permission.MANAGE_AVAILABILITY, provider.organisation_id):
        # The use case refuses, or answers what it did before.
        return _nothing
    tzid = zone_of(await ctx.uow.calendars.get(provider.id))
    return partial(ctx.uow.calendar_reader.busy, params.ics.encode(), reach(ctx.now), tzid)


async def _nothing() -> None:
    return None


async def import_calendar(ctx: Context, params: ImportCalendar) -> JSON:
    """Takes the busy times of a file along, as :func:`read_calendar` found them.

    Raises:
        UnreadableCalendar: it is no calendar.
        TooManySources: there are too many.
    """
    provider = await managed(ctx, params.provider_id)
    busy: Busy | None = ctx.prepared
    if busy is None:
        raise Forbidden
    source = await _place(
        ctx, provider, params.name, SourceKind.FILE, text=ctx.uow.calendar_reader.times_only(params.ics)
    )
    return {"source": source_view(await take_times(ctx, provider, source, busy))}


async def subscribe_calendar(ctx: Context, params: SubscribeCalendar) -> JSON:
    """Has an address read every hour, beginning now.

    Raises:
        TooManySources: there are too many.
    """
    _check_address(params.url)
    provider = await managed(ctx, params.provider_id)
    source = await _place(ctx, provider, params.name, SourceKind.ADDRESS, url=params.url)
    return {"source": source_view(source)}


async def list_sources(ctx: Context, params: SourcesRef) -> JSON:
    """A provider's sources, for its members and staff."""
    provider = await ctx.uow.market.provider(params.provider_id)
    if provider is None or not ctx.actor.may(Permission.SEE_ORGANISATION, provider.organisation_id):
        raise Forbidden
    return {"sources": [source_view(each) for each in await ctx.uow.calendar_sync.sources(provider.id)]}


async def remove_source(ctx: Context, params: RemoveSource) -> JSON:
    """Forgets a source and its times."""
    source = await ctx.uow.calendar_sync.source(params.source_id)
    if source is None:
        raise Forbidden
    provider = await managed(ctx, source.provider_id)
    if await ctx.uow.calendar_sync.source(source.id) is None:
        raise Forbidden
    await ctx.uow.calendar_sync.remove_source(source.id)
    await planning.change(ctx, provider, await planning.calendar_of(ctx, provider), "busy_times_changed")
    return {"source": source_view(source)}


async def fetched(ctx: Context, claimed: Source, busy: Busy | None, problem: str | None) -> None:
    """What a worker read of a source that it had claimed, or why it could not; then the times before stay."""
    locked = await ctx.uow.market.lock_provider(claimed.provider_id)
    source = await ctx.uow.calendar_sync.source(claimed.id)
    if locked is None or source is None or source.next_fetch_at != claimed.next_fetch_at:
        return  # removed or replaced meanwhile
    if busy is not None:
        await take_times(ctx, locked, source, busy)
    elif problem != source.problem:
        await ctx.uow.calendar_sync.save_source(replace(source, problem=problem))
        await planning.change(ctx, locked, await planning.calendar_of(ctx, locked), "calendar_not_read")


async def take_times(ctx: Context, provider: Provider, source: Source, busy: Busy) -> Source:
    """Replaces the times of a source; nobody is told when they are the same."""
    times = merged(busy.times)[:MOST_TIMES]
    after = replace(source, times=len(times), skipped=busy.skipped, problem=None, fetched_at=ctx.now)
    await ctx.uow.calendar_sync.save_source(after)
    if await ctx.uow.calendar_sync.replace_times(source, times):
        await planning.change(ctx, provider, await planning.calendar_of(ctx, provider), "busy_times_changed")
    return after


async def _place(
    ctx: Context, provider: Provider, name: str, kind: SourceKind, *, url: str | None = None, text: str | None = None
) -> Source:
    """The source of this name, new or another one than before; what was busy stays so until it has been read."""
    there = await ctx.uow.calendar_sync.sources(provider.id)
    known = next((each for each in there if each.name == name), None)
    due = ctx.now if kind is SourceKind.ADDRESS else ctx.now + READ_EVERY[kind]
    if known is not None:
        source = replace(known, kind=kind, url=url, text=text, problem=None, next_fetch_at=due)
        await ctx.uow.calendar_sync.replace_source(source)
        return source
    if len(there) >= MOST_SOURCES:
        raise TooManySources
    source = Source(
        new_id(ctx.now), provider.id, provider.organisation_id, name, kind, url, next_fetch_at=due, text=text
    )
    await ctx.uow.calendar_sync.add_source(source)
    return source


def zone_of(calendar: Calendar | None) -> str:
    """In which zone a provider's whole days, and times without a zone, are read."""
    return calendar.tzid if calendar is not None else "UTC"


def reach(now: datetime) -> Interval:
    """From when to when busy times count."""
    return Interval(now - timedelta(days=1), now + BUSY_AHEAD)


def _check_address(url: str) -> None:
    """What can be seen without asking anybody; where the name leads is checked at each fetch."""
    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) and parts.port in {None, 443} and parts.username is None
    except ValueError:
        fine = False
    if not fine:
        raise InvalidParams.at("url", "must be https://HOST/PATH, without a port or a password")
