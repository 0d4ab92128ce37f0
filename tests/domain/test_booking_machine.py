"""Random people do random things to bookings while time moves: what must hold always, holds after every step.

Every command goes through the desk to a real SQLite database, timers fire at their moments, and the recorded events
are followed through the table of transitions.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from domain import availability, types
from domain.bookings import Status
from domain.context import Context
from domain.errors import FixnadoError, Unavailable
from domain.identity import Actor
from domain.policy import Policy
from domain.providers import Strategy
from domain.types import Interval
from persistence import tables
from persistence.database import Database
from persistence.repositories import SqlUnitOfWork
from tests.domain.booking_table import CUSTOMER, EVENT_OF, OPERATIONS, PARTIES_OF, PROVIDER, SYSTEM, UNDER_WAY
from tests.domain.marketplace import CENTRE, FOREVER, OPTIONS, Firm, Marketplace, Recorded, north_of

T = TypeVar("T")

ANY = st.integers(0, 10**6)
"""An index into whatever there is, taken modulo its length."""

JOBS = st.lists(st.sampled_from([None, None, 1, 2.5, 4]), min_size=1, max_size=3)
"""Bookings to make: on demand, or in so many hours."""

MOST_BOOKINGS = 8
"""Enough to get in each other's way, and few enough that things happen to each of them."""

FORWARD = {
    "assigned": "en_route",
    "scheduled": "en_route",
    "en_route": "arrived",
    "arrived": "in_progress",
    "in_progress": "completed",
    "paused": "in_progress",
}


STARTED = {"arrived", "in_progress", "paused", "completed"}


class CountedBits:
    """In place of random bits in ids: hypothesis can shrink only what happens again in the same way."""

    def __init__(self) -> None:
        self.drawn = 0

    def randbits(self, bits: int) -> int:
        self.drawn += 1
        return self.drawn


@dataclass
class Known:
    """A booking as its events tell it."""

    status: str
    version: int
    provider_id: str | None
    customer_id: str


class MarketplaceMachine(RuleBasedStateMachine):
    template: ClassVar[bytes]
    bits: ClassVar[CountedBits]

    def __init__(self) -> None:
        super().__init__()
        self.bits.drawn = 0
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) / "fixnado.db"
        path.write_bytes(self.template)
        self.runner = asyncio.Runner()
        # Empty waves are tried again and drivers looked at less often than in earnest: a test that waits for days has
        # better things to do.
        policy = Policy(empty_wave_retry_seconds=120, stall_check_seconds=6 * 3600)
        self.market = Marketplace(Database(f"sqlite+aiosqlite:///{path}", OPTIONS), policy)
        self.known: dict[str, Known] = {}
        self.declined: dict[tuple[str, str], int] = {}
        self.heard = 0
        self.people: list[Actor] = []
        self.firms: list[Firm] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize(strategy=st.sampled_from(Strategy), jobs=JOBS)
    def open(self, strategy: Strategy, jobs: list[float | None]) -> None:
        self.run(self._open(strategy))
        self.hire(0, jobs)

    async def _open(self, strategy: Strategy) -> None:
        market = self.market
        await market.zone(strategy=strategy)
        await market.service()
        self.customers = [await market.customer(), await market.customer()]
        self.operator = await market.operator()
        self.firms = await market.firms(2)
        stranger = (await market.firms(1, skills=()))[0]
        self.people = [*self.customers, self.operator, stranger.person, *(firm.person for firm in self.firms)]

    def teardown(self) -> None:
        self.run(self.market.database.close())
        self.runner.close()
        self.directory.cleanup()

    # --- what people do ---

    @precondition(lambda self: len(self.known) < MOST_BOOKINGS)
    @rule(who=ANY, in_hours=st.sampled_from([None, None, 1, 1.5, 3]))
    def book(self, who: int, in_hours: float | None) -> None:
        customer = self.customers[who % 2]
        self.run(self._book(customer, in_hours))

    async def _book(self, customer: Actor, in_hours: float | None) -> None:
        await (self.market.book(customer) if in_hours is None else self.market.book_slot(customer, in_hours))
        await self._follow(customer, "booking.create")

    @precondition(lambda self: len(self.known) < MOST_BOOKINGS)
    @rule(who=ANY, jobs=JOBS)
    def hire(self, who: int, jobs: list[float | None]) -> None:
        """Books, and whoever was asked first takes it: the short way to jobs that go on beside each other."""
        for in_hours in jobs:
            self.book(who, in_hours)
            offers = self.run(self.market.offers(list(self.known)[-1], "sent"))
            if offers:
                person = self._person_of(offers[0].provider_id)
                self._attempt(person, "offer.accept", {"offer_id": offers[0].id})

    @precondition(lambda self: self.known)
    @rule(who=ANY, which=ANY, to=st.sampled_from(Status), stale=st.sampled_from([0, 0, 0, 1]))
    def step(self, who: int, which: int, to: Status, stale: int) -> None:
        booking_id = self._one_of(which)
        version = max(1, self.known[booking_id].version - stale)
        params = {"booking_id": booking_id, "to": to.value, "version": version, "reason": "because"}
        self._attempt(self.people[who % len(self.people)], "booking.transition", params)

    @precondition(lambda self: any(booking.status in FORWARD for booking in self.known.values()))
    @rule(which=ANY, steps=st.integers(1, 4))
    def go_forward(self, which: int, steps: int) -> None:
        going = [booking_id for booking_id, booking in self.known.items() if booking.status in FORWARD]
        booking_id = going[which % len(going)]
        for _ in range(steps):
            booking = self.known[booking_id]
            if booking.status in FORWARD:
                params = {"booking_id": booking_id, "to": FORWARD[booking.status], "version": booking.version}
                self._attempt(self._person_of(booking.provider_id), "booking.transition", params)

    @precondition(lambda self: any(booking.status in STARTED for booking in self.known.values()))
    @rule(which=ANY, by_customer=st.booleans())
    def dispute(self, which: int, by_customer: bool) -> None:
        started = [booking_id for booking_id, booking in self.known.items() if booking.status in STARTED]
        booking_id = started[which % len(started)]
        booking = self.known[booking_id]
        customer = next(person for person in self.customers if person.user_id == booking.customer_id)
        params = {"booking_id": booking_id, "to": "disputed", "version": booking.version}
        person = customer if by_customer else self._person_of(booking.provider_id)
        self._attempt(person, "booking.transition", params)

    @precondition(lambda self: any(booking.status == "disputed" for booking in self.known.values()))
    @rule(which=ANY, to=st.sampled_from(["in_progress", "completed", "cancelled"]))
    def settle(self, which: int, to: str) -> None:
        disputed = [booking_id for booking_id, booking in self.known.items() if booking.status == "disputed"]
        booking_id = disputed[which % len(disputed)]
        params = {"booking_id": booking_id, "to": to, "version": self.known[booking_id].version}
        self._attempt(self.operator, "booking.transition", params)

    @precondition(lambda self: self.known)
    @rule(who=ANY, which=ANY)
    def cancel(self, who: int, which: int) -> None:
        booking_id = self._one_of(which)
        # Not so often that no job gets anywhere.
        if which % 3 == 0 or self.known[booking_id].status == "awaiting_assignment":
            params = {"booking_id": booking_id, "reason": "because"}
            self._attempt(self.people[who % len(self.people)], "booking.cancel", params)

    @precondition(lambda self: self.known)
    @rule(who=ANY, which=ANY, firm=ANY)
    def assign(self, who: int, which: int, firm: int) -> None:
        params = {"booking_id": self._one_of(which), "provider_id": self.firms[firm % 2].provider_id}
        self._attempt([self.operator, *self.people][who % 4], "booking.assign", params)

    @precondition(lambda self: self.known)
    @rule(who=ANY, which=ANY, in_hours=st.sampled_from([0.5, 1, 2]))
    def reschedule(self, who: int, which: int, in_hours: float) -> None:
        booking_id = self._one_of(which)
        start = self.market.clock.now() + FOREVER * (in_hours / 87_600)
        params = {"booking_id": booking_id, "version": self.known[booking_id].version, "start": start.isoformat()}
        self._attempt(self.people[who % len(self.people)], "booking.reschedule", params)

    @precondition(lambda self: self.known)
    @rule(which=ANY, who=st.sampled_from([0, 0, 0, 1]), answer=st.sampled_from(["accept", "accept", "decline"]))
    def answer(self, which: int, who: int, answer: str) -> None:
        """Mostly by whoever was asked, for any offer that ever was, live ones first."""
        rows = self.run(
            self.market.rows(select(tables.offers.c.id, tables.offers.c.provider_id, tables.offers.c.status))
        )
        live = [row for row in rows if row.status in {"sent", "delivered"}]
        rows = live if live and which % 4 else rows
        if rows:
            offer = rows[which % len(rows)]
            person = self._person_of(offer.provider_id) if who == 0 else self.people[which % len(self.people)]
            params = {"offer_id": offer.id} | ({"reason": "because"} if answer == "decline" else {})
            self._attempt(person, f"offer.{answer}", params)

    @rule(firm=ANY, does=st.sampled_from(["online", "online", "online", "away", "offline", "connect", "leave"]))
    def come_or_go(self, firm: int, does: str) -> None:
        provider_id = self.firms[firm % 2].provider_id

        async def connect_or_leave(ctx: Context) -> None:
            if does == "connect":
                await availability.socket_opened(ctx, provider_id, "node")
                await ctx.uow.market.hold_socket(provider_id, "node", ctx.now + FOREVER)
            else:
                await availability.socket_closed(ctx, provider_id, "node")

        if does in {"connect", "leave"}:
            self.run(self.market.as_system(connect_or_leave))
            self.run(self._follow(None, "sockets"))
        else:
            self._attempt(self.firms[firm % 2].person, "presence.set", {"status": does})

    @precondition(lambda self: any(booking.status == "en_route" for booking in self.known.values()))
    @rule(firm=ANY, metres=st.sampled_from([0, 100, 2000]))
    def publish(self, firm: int, metres: int) -> None:
        fix = north_of(CENTRE, metres).view() | {"fix_at": self.market.clock.now().isoformat()}
        self._attempt(self.firms[firm % 2].person, "location.publish", fix)

    @rule(seconds=st.sampled_from([1, 31, 31, 91, 601, 4000, 15 * 86_400]))
    def wait(self, seconds: int) -> None:
        self.run(self.market.advance(seconds))
        self.run(self._follow(None, "timers"))

    def _one_of(self, which: int) -> str:
        return list(self.known)[which % len(self.known)]

    def _person_of(self, provider_id: str | None) -> Actor:
        return next(firm.person for firm in self.firms if firm.provider_id == provider_id)

    def _attempt(self, actor: Actor, method: str, params: dict[str, Any]) -> None:
        async def work() -> None:
            try:
                await self.market.call(actor, method, **params)
            except Unavailable:
                raise
            except FixnadoError:
                pass  # the rules may say no; then nothing may have happened
            await self._follow(actor, method)

        self.run(work())

    # --- what is told about it ---

    async def _follow(self, actor: Actor | None, method: str) -> None:
        for event in await self.market.events(after=self.heard):
            self.heard = event.number
            # A driver that stands still is news, and no step.
            if event.type.startswith(("booking.", "dispute.")) and event.type != "booking.stalled":
                self._follow_booking(event, actor, method)

    def _follow_booking(self, event: Recorded, actor: Actor | None, method: str) -> None:
        shown, source = event.data["booking"], event.data["from"]
        before = self.known.get(shown["id"])
        after = Known(shown["status"], shown["version"], shown.get("provider_id"), shown["customer_id"])
        self.known[shown["id"]] = after
        if before is None:
            assert (event.type, source, after.status, after.version) == ("booking.created", None, "pending", 1)
            return
        assert source == before.status, "the path through the table has a gap"
        if event.type == "booking.rescue_needed":
            assert (source, after) == ("awaiting_assignment", before)
            return
        assert after.version == before.version + 1
        if event.type == "booking.rescheduled":
            assert source == after.status
            assert source in {"awaiting_assignment", "scheduled"}
            return
        assert EVENT_OF.get((source, after.status)) == event.type, f"{source} -> {after.status} as {event.type}"
        assert PARTIES_OF[source, after.status] & _capacities(actor, method, before, after), (actor, method)

    # --- what always holds ---

    @invariant()
    def everything_fits_together(self) -> None:
        async def work(uow: SqlUnitOfWork) -> tuple[Sequence[Any], ...]:
            everything = (tables.bookings, tables.offers, tables.booking_declines, tables.providers)
            return tuple([(await uow.connection.execute(select(table))).all() for table in everything])

        bookings, offers, declines, providers = self.run(self.market.transactions.read(work))
        stored = {row.id: Known(row.status, row.version, row.provider_id, row.customer_id) for row in bookings}
        assert stored == self.known, "the rows are not what the events tell"
        self._check_jobs(bookings, providers)
        self._check_offers(offers, {(row.booking_id, row.provider_id) for row in declines})

    def _check_jobs(self, bookings: Sequence[Any], providers: Sequence[Any]) -> None:
        under_way = Counter(row.provider_id for row in bookings if row.status in UNDER_WAY)
        assert all(jobs == 1 for jobs in under_way.values()), "a provider has two live jobs"
        for provider in providers:
            if provider.status != "offline":
                assert (provider.status == "busy") is bool(under_way[provider.id]), "busy, or not, without cause"
            planned = sorted(
                (row.start, row.end) for row in bookings if (row.provider_id, row.status) == (provider.id, "scheduled")
            )
            for earlier, later in pairwise(planned):
                assert not Interval(*earlier).overlaps(Interval(*later)), "two confirmed jobs overlap"

    def _check_offers(self, offers: Sequence[Any], gave_back: set[tuple[str, str]]) -> None:
        for row in offers:
            if row.status in {"sent", "delivered"}:
                assert self.known[row.booking_id].status == "awaiting_assignment", "a live offer of a settled booking"
        accepted = Counter((row.booking_id, row.provider_id) for row in offers if row.status == "accepted")
        assert all(times == 1 for times in accepted.values()), "accepted twice by one"
        # Whoever gave a booking back keeps its accepted offer; of the others, one has won.
        winners = Counter(pair[0] for pair in accepted if pair not in gave_back)
        assert all(times == 1 for times in winners.values()), "two winners"
        asked = Counter((row.booking_id, row.provider_id) for row in offers)
        for pair in gave_back:
            assert asked[pair] == self.declined.setdefault(pair, asked[pair]), "asked again after a no"


def _capacities(actor: Actor | None, method: str, before: Known, after: Known) -> set[str]:
    """In which capacities this caller may have caused a step."""
    if actor is None:
        return {SYSTEM}
    capacities = set()
    if method in {"booking.create", "location.publish"}:
        capacities.add(SYSTEM)
    if actor.user_id == before.customer_id:
        capacities.add(CUSTOMER)
    if before.provider_id in actor.provider_ids or (
        method == "offer.accept" and after.provider_id in actor.provider_ids
    ):
        capacities.add(PROVIDER)
    if actor.is_operations:
        capacities.add(OPERATIONS)
    return capacities


@pytest.mark.timeout(600)  # shrinking a failure takes its time
@pytest.mark.parametrize("examples", [20, pytest.param(400, marks=pytest.mark.soak)])
def test_bookings_keep_to_their_table_whatever_people_do(
    sqlite_template: bytes, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    class Machine(MarketplaceMachine):
        template = sqlite_template
        bits = CountedBits()

    monkeypatch.setattr(types, "secrets", Machine.bits)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
