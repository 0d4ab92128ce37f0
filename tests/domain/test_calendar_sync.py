"""Jobs as a feed, read back by another parser; busy times from files, and what they leave free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import vobject

from domain import calendar_sync
from domain.calendar_sync import MOST_SOURCES, Busy, feed
from domain.context import SYSTEM
from domain.errors import Forbidden
from domain.types import Interval, wire_time
from persistence import tables
from persistence.icalendars import IcalendarReader, write_jobs
from server.calendar_fetch import CalendarSync
from tests.domain.marketplace import CENTRE, START, Firm, Marketplace, refusal, refused
from tests.domain.test_slots import NINE_TO_TWELVE, at, book_hold, hold, plan, planned_firm, starts, week


def text(*events: str) -> str:
    """A calendar with these events, each the lines between BEGIN and END."""
    inside = "".join(
        f"BEGIN:VEVENT\nUID:{number}\nDTSTAMP:20260101T000000Z\n{lines}\nEND:VEVENT\n"
        for number, lines in enumerate(events)
    )
    return f"BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:x\n{inside}END:VCALENDAR\n".replace("\n", "\r\n")


async def issue(market: Marketplace, person: Any, **params: str) -> str:
    token: str = (await market.call(person, "calendar.issue_feed", **params))["token"]
    return token


async def shown(market: Marketplace, token: str) -> Any:
    """What a calendar program makes of the feed."""
    jobs = await market.transactions.read(lambda uow: feed(market.desk.context(SYSTEM, uow), token))
    return vobject.readOne(write_jobs(jobs).decode())


async def opens(market: Marketplace, token: str) -> bool:
    try:
        await shown(market, token)
    except Forbidden:
        return False
    return True


async def bring(market: Marketplace, firm: Firm, ics: str, name: str = "Home") -> Any:
    params = {"provider_id": firm.provider_id, "name": name, "ics": ics}
    return (await market.call(firm.person, "calendar.import", **params))["source"]


async def busy_times(market: Marketplace, firm: Firm, days: float = 31) -> list[tuple[str, str]]:
    within = {"from": START.isoformat(), "to": (START + timedelta(days=days)).isoformat()}
    shape = (await week(market, firm, **within))["busy"]
    return [(time["start"], time["end"]) for time in shape]


async def test_feed_shows_jobs_to_another_parser_and_follows_them(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    notes = "Second bell; mind the dog,\nplease — thanks"
    place = CENTRE.view() | {"address": "12 Inverness Street, London; at the back"}
    held = await hold(market, customer, 9)
    booking = await book_hold(market, customer, held, location=place, notes=notes)
    token = await issue(market, firm.person)
    (event,) = (await shown(market, token)).vevent_list
    uid, sequence = event.uid.value, int(event.sequence.value)
    assert (event.dtstart.value, event.dtend.value) == (at(9), at(10))
    assert (event.summary.value, event.status.value) == ("Plumbing", "CONFIRMED")
    assert (event.location.value, event.description.value) == (place["address"], notes)
    params = {"booking_id": booking["id"], "version": booking["version"], "start": at(10).isoformat()}
    await market.call(customer, "booking.reschedule", **params)
    (event,) = (await shown(market, token)).vevent_list
    assert (event.uid.value, event.dtstart.value) == (uid, at(10))
    assert int(event.sequence.value) > sequence
    sequence = int(event.sequence.value)
    await market.call(customer, "booking.cancel", booking_id=booking["id"], reason="no")
    (event,) = (await shown(market, token)).vevent_list
    assert (event.uid.value, event.status.value) == (uid, "CANCELLED")
    assert int(event.sequence.value) > sequence


async def test_feed_opens_by_its_newest_token_alone_and_only_for_members(market: Marketplace) -> None:
    firm = await market.firm()
    technician = await market.member(firm)
    first, other = await issue(market, technician), await issue(market, firm.person)
    second = await issue(market, technician)
    assert second.startswith("fxc_")
    assert [await opens(market, token) for token in (first, second, other, "fxc_guessed")] == [False, True, True, False]
    stored = repr(await market.rows(tables.calendar_feeds.select()))
    assert second not in stored, "only a hash is kept"
    assert second not in repr(await market.rows(tables.idempotency_keys.select()))
    await market.call(firm.person, "calendar.revoke_feed")
    assert not await opens(market, other)
    member = {"organisation_id": firm.organisation_id, "user_id": technician.user_id}
    await market.call(firm.person, "member.remove", **member)
    assert not await opens(market, second), "whoever left sees no more"


async def test_feed_of_somebody_who_was_disabled_is_closed(market: Marketplace) -> None:
    firm = await market.firm()
    token = await issue(market, firm.person)
    await market.write(lambda uow: uow.people.disable(firm.person.user_id, START))
    assert not await opens(market, token)


async def test_feed_shows_nobody_elses_jobs(market: Marketplace) -> None:
    firm, other, customer = await planned_firm(market), await market.firm(), await market.customer()
    await book_hold(market, customer, await hold(market, customer, 9))
    assert not hasattr(await shown(market, await issue(market, other.person)), "vevent")
    assert len((await shown(market, await issue(market, firm.person))).vevent_list) == 1


async def test_feed_of_a_busy_provider_shows_what_is_to_come_before_what_has_been(
    market: Marketplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    firm, customer = await market.firm(max_daily_jobs=100), await market.customer()
    for ahead in (1, 2, 3, 30, 31):
        job = await market.book_slot(customer, ahead)
        await market.give(job, firm, "scheduled")
    token = await issue(market, firm.person)
    market.clock.advance(24 * 3600)

    async def hours() -> list[float]:
        events = (await shown(market, token)).vevent_list
        return [(event.dtstart.value - START) / timedelta(hours=1) for event in events]

    assert await hours() == [1, 2, 3, 30, 31]
    monkeypatch.setattr(calendar_sync, "MOST_JOBS", 3)
    assert await hours() == [3, 30, 31]
    monkeypatch.setattr(calendar_sync, "MOST_JOBS", 1)
    assert await hours() == [30]


async def test_busy_times_of_a_file_are_not_free(market: Marketplace) -> None:
    firm, customer = await planned_firm(market), await market.customer()
    source = await bring(market, firm, text("DTSTART:20261125T100000Z\nDTEND:20261125T103000Z"))
    assert (source["times"], source["skipped"], source["kind"]) == (1, 0, "file")
    assert await starts(market, customer) == [9, 10.5, 11]
    assert await refused(hold(market, customer, 9.5)) == "slot_closed"
    changed = (await market.events("availability.changed"))[-1].data
    assert changed["reason"] == "busy_times_changed"
    assert await busy_times(market, firm) == [(wire_time(at(10)), wire_time(at(10.5)))]
    await bring(market, firm, text("DTSTART:20261125T113000Z\nDTEND:20261125T120000Z"))
    assert await starts(market, customer) == [9, 9.5, 10, 10.5], "a source of the same name is replaced"
    (source,) = (await market.call(firm.person, "calendar.list_sources", provider_id=firm.provider_id))["sources"]
    await market.call(firm.person, "calendar.remove_source", source_id=source["id"])
    assert await starts(market, customer) == [9, 9.5, 10, 10.5, 11]


async def test_events_are_read_as_calendar_programs_mean_them(market: Marketplace) -> None:
    firm = await market.firm()
    await plan(market, firm, NINE_TO_TWELVE)  # in London: whole days are London's
    source = await bring(
        market,
        firm,
        text(
            "DTSTART;VALUE=DATE:20261126\nSUMMARY:a whole day",
            "DTSTART;TZID=America/New_York:20261127T090000\nDURATION:PT1H",
            "DTSTART:20261128T080000\nDTEND:20261128T090000\nSUMMARY:floating",
            "DTSTART:20261129T100000Z\nDTEND:20261129T110000Z\nTRANSP:TRANSPARENT",
            "DTSTART:20261129T100000Z\nDTEND:20261129T110000Z\nSTATUS:CANCELLED",
            "DTSTART:20200106T100000Z\nDTEND:20200106T110000Z\nRRULE:FREQ=WEEKLY;UNTIL=20261207\nEXDATE:20261130T100000Z",
            "DTSTART:20261201T100000Z\nDTEND:20261201T110000Z\nRRULE:FREQ=SECONDLY",
            "SUMMARY:no time at all",
        ),
    )
    assert source["skipped"] == 2
    assert await busy_times(market, firm) == [
        ("2026-11-26T00:00:00.000Z", "2026-11-27T00:00:00.000Z"),
        ("2026-11-27T14:00:00.000Z", "2026-11-27T15:00:00.000Z"),
        ("2026-11-28T08:00:00.000Z", "2026-11-28T09:00:00.000Z"),
        ("2026-12-07T10:00:00.000Z", "2026-12-07T11:00:00.000Z"),
    ]


async def test_moved_instance_of_a_repeated_event_counts_where_it_is(market: Marketplace) -> None:
    firm = await market.firm()
    weekly = "BEGIN:VEVENT\nUID:w\nDTSTAMP:20260101T000000Z\nDTSTART:20261125T100000Z\nDURATION:PT1H\n"
    ics = text().replace(
        "END:VCALENDAR",
        f"{weekly}RRULE:FREQ=WEEKLY;COUNT=2\nEND:VEVENT\n"
        f"{weekly.replace('1125T10', '1203T15')}RECURRENCE-ID:20261202T100000Z\nEND:VEVENT\nEND:VCALENDAR",
    )
    await bring(market, firm, ics)
    assert [start for start, _ in await busy_times(market, firm)] == [wire_time(at(10)), "2026-12-03T15:00:00.000Z"]


async def test_what_is_no_calendar_is_refused_and_changes_nothing(market: Marketplace) -> None:
    firm = await market.firm()
    before = await bring(market, firm, text("DTSTART:20261125T100000Z\nDTEND:20261125T103000Z"))
    for nonsense in ("", "hello", "BEGIN:VCALENDAR\nBEGIN:VEVENT\n", "BEGIN:VEVENT\nEND:VEVENT\n", "\x00" * 50):
        assert await refused(bring(market, firm, nonsense)) == "unreadable_calendar", nonsense
    (source,) = (await market.call(firm.person, "calendar.list_sources", provider_id=firm.provider_id))["sources"]
    assert source == before


async def test_provider_brings_along_so_many_calendars_at_most(market: Marketplace) -> None:
    firm = await market.firm()
    for number in range(MOST_SOURCES):
        await bring(market, firm, text(), f"calendar {number}")
    assert await refused(bring(market, firm, text(), "one more")) == "too_many_sources"
    await bring(market, firm, text(), "calendar 3")


async def test_address_is_shown_by_its_host_alone(market: Marketplace) -> None:
    firm = await market.firm()
    params = {"provider_id": firm.provider_id, "name": "Work"}
    secret = "https://calendar.example.test/private-8f2a/basic.ics"
    source = (await market.call(firm.person, "calendar.subscribe", **params, url=secret))["source"]
    assert source["host"] == "calendar.example.test"
    assert "8f2a" not in repr(source)
    for url in ("https://user:pw@example.test/", "https://example.test:8443/", "https:///x", "https://[::1"):
        error = await refusal(market.call(firm.person, "calendar.subscribe", **params, url=url))
        assert error.type == "invalid_params", url


HOSTILE = [
    "RECURRENCE-ID:PT1H",
    "RECURRENCE-ID:foo",
    "RECURRENCE-ID;VALUE=TIME:101010",
    "RECURRENCE-ID;VALUE=PERIOD:20261124T100000Z/PT1H",
    "RECURRENCE-ID;VALUE=DATE:00010101",
    "RECURRENCE-ID:20261125T100000Z\nRECURRENCE-ID:20261126T100000Z",
]


async def test_events_that_move_from_no_time_are_passed_over(market: Marketplace) -> None:
    firm = await market.firm()
    await plan(market, firm, NINE_TO_TWELVE | {"tzid": "Europe/Berlin"})
    nine = "DTSTART:20261125T090000Z\nDTEND:20261125T100000Z"
    source = await bring(market, firm, text(nine, *(f"DTSTART:20261125T110000Z\nDURATION:PT1H\n{h}" for h in HOSTILE)))
    assert (source["times"], source["skipped"]) == (1, len(HOSTILE))


@pytest.mark.parametrize(
    ("rule", "days"),
    [
        ("DTSTART;TZID=America/New_York:20261125T220000\nRRULE:FREQ=DAILY;UNTIL=20261126", [26, 27]),
        ("DTSTART;TZID=America/New_York:20261125T220000\nRRULE:FREQ=DAILY;UNTIL=20261126T220000", [26, 27]),
        ("DTSTART;TZID=America/New_York:20261125T220000\nRRULE:FREQ=DAILY;UNTIL=20261127T030000Z", [26, 27]),
        ("DTSTART:20261129T030000Z\nRRULE:FREQ=DAILY;UNTIL=99991231T235959Z", [29, 30]),
        ("DTSTART:20261126T030000Z\nRDATE:20261128T030000Z,20261129T030000Z\nEXDATE:20261129T030000Z", [26, 28]),
        ("DTSTART:20261126T030000Z\nRRULE:FREQ=DAILY;COUNT=2\nRDATE:20261129T030000Z", [26, 27, 29]),
        ("DTSTART:20261126T030000Z\nRDATE;VALUE=PERIOD:20261128T030000Z/20261128T040000Z", [26, 28]),
    ],
)
async def test_repetition_counts_on_its_last_and_its_additional_days(
    market: Marketplace, rule: str, days: list[int]
) -> None:
    firm = await market.firm()
    await bring(market, firm, text(f"{rule}\nDURATION:PT1H"))
    november = [start for start, _ in await busy_times(market, firm) if start < "2026-12"]
    assert november == [f"2026-11-{day}T03:00:00.000Z" for day in days]


class Elsewhere:
    """Answers with what it is told to; counts who asks."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self.answer = answer
        self.asked = 0
        self.waiting = asyncio.Event()

    async def fetch(self, url: str) -> bytes:
        self.asked += 1
        try:
            return self.answer(self.asked)
        except BlockingIOError:
            self.waiting.set()
            await asyncio.Event().wait()
            raise


BUSY = text("DTSTART:20261125T100000Z\nDTEND:20261125T110000Z").encode()


async def subscribers(market: Marketplace, number: int) -> list[Firm]:
    firms = await market.firms(number)
    for firm in firms:
        params = {"provider_id": firm.provider_id, "name": "Work", "url": "https://calendar.example.test/"}
        await market.call(firm.person, "calendar.subscribe", **params)
    return firms


async def sources(market: Marketplace, *columns: str) -> list[tuple[Any, ...]]:
    table = tables.calendar_sources
    return sorted(
        (tuple(row) for row in await market.rows(table.select().with_only_columns(*(table.c[c] for c in columns)))),
        key=str,
    )


async def test_calendar_that_breaks_the_reader_keeps_nobody_elses_waiting(market: Marketplace) -> None:
    await subscribers(market, 3)

    def answer(number: int) -> bytes:
        if number == 1:
            raise RuntimeError("whatever nobody thought of")
        return BUSY

    elsewhere = Elsewhere(answer)
    sync = CalendarSync(market.desk, market.transactions, elsewhere)
    assert await sync.run_once() == 3
    assert await sources(market, "times", "problem") == [(0, "unreadable_calendar"), (1, None), (1, None)]
    assert (await sync.run_once(), elsewhere.asked) == (0, 3), "each is read again in an hour"


async def test_calendars_that_were_claimed_and_not_read_are_due_again_at_once(market: Marketplace) -> None:
    await subscribers(market, 3)

    def answer(number: int) -> bytes:
        if number == 2:
            raise BlockingIOError
        return BUSY

    elsewhere = Elsewhere(answer)
    interrupted = asyncio.create_task(CalendarSync(market.desk, market.transactions, elsewhere).run_once())
    await elsewhere.waiting.wait()
    interrupted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await interrupted
    assert await CalendarSync(market.desk, market.transactions, Elsewhere(lambda _: BUSY)).run_once() == 2
    assert await sources(market, "times") == [(1,), (1,), (1,)]


async def test_nobody_waits_while_a_file_is_read(market: Marketplace, monkeypatch: pytest.MonkeyPatch) -> None:
    firm = await market.firm()
    read = IcalendarReader.busy

    async def meanwhile(reader: IcalendarReader, ics: bytes, within: Interval, tzid: str) -> Busy:
        async with asyncio.timeout(2):
            await market.customer()  # a write, which on SQLite would wait for the end of any other
        return await read(reader, ics, within, tzid)

    monkeypatch.setattr(IcalendarReader, "busy", meanwhile)
    assert (await bring(market, firm, BUSY.decode()))["times"] == 1
    customer = await market.customer()
    theirs = {"provider_id": firm.provider_id, "name": "Home", "ics": "no calendar"}
    assert await refused(market.call(customer, "calendar.import", **theirs)) == "not_found"
    stranger = await market.firm()
    assert await refused(market.call(stranger.person, "calendar.import", **theirs)) == "not_found"


async def test_what_repeats_in_a_file_comes_within_reach_as_time_passes(market: Marketplace) -> None:
    firm = await market.firm()
    zone = (
        "BEGIN:VTIMEZONE\nTZID:Ours\nBEGIN:STANDARD\nDTSTART:20200101T000000\nTZOFFSETFROM:+0100\nTZOFFSETTO:+0100\n"
        "END:STANDARD\nEND:VTIMEZONE\n"
    )
    weekly = text(
        "SUMMARY:Chemo\n therapy\nLOCATION:St Mary\nATTENDEE:mailto:a@b.test\n"
        "DTSTART;TZID=\n Ours:20261125T100000\nDURATION:PT1H\nRRULE:FREQ=WEEKLY\nEXDATE;TZID=Ours:20261202T100000"
    ).replace("BEGIN:VEVENT", f"{zone}BEGIN:VEVENT".replace("\n", "\r\n"), 1)
    times = (await bring(market, firm, weekly))["times"]
    first = await busy_times(market, firm)
    assert [start[:16] for start, _ in first[:2]] == ["2026-11-25T09:00", "2026-12-09T09:00"]
    kept = repr(await sources(market, "text"))
    assert "FREQ=WEEKLY" in kept
    assert not any(word in kept for word in ("Chemo", "therapy", "Mary", "mailto"))
    nobody = Elsewhere(lambda _: b"")
    sync = CalendarSync(market.desk, market.transactions, nobody)
    assert await sync.run_once() == 0
    market.clock.advance(timedelta(days=7).total_seconds())
    assert (await sync.run_once(), await sync.run_once(), nobody.asked) == (1, 0, 0)
    assert await busy_times(market, firm) == first[1:], "what is to come stays"
    market.clock.advance(timedelta(days=28).total_seconds())
    assert await sync.run_once() == 1
    ends = [row.end for row in await market.rows(tables.busy_times.select())]
    assert max(ends) > market.clock.now() + timedelta(days=170)
    assert abs(len(ends) - times) <= 1


async def test_times_of_a_file_stay_until_the_address_in_its_place_has_been_read(market: Marketplace) -> None:
    firm = await market.firm()
    await bring(market, firm, BUSY.decode())
    before = await busy_times(market, firm)
    params = {"provider_id": firm.provider_id, "name": "Home", "url": "https://calendar.example.test/"}
    source = (await market.call(firm.person, "calendar.subscribe", **params))["source"]
    assert (source["kind"], await busy_times(market, firm)) == ("address", before)
    await CalendarSync(market.desk, market.transactions, Elsewhere(lambda _: b"not yet")).run_once()
    assert await busy_times(market, firm) == before
    market.clock.advance(3600)
    later = BUSY.replace(b"T10", b"T12").replace(b"T11", b"T13")
    await CalendarSync(market.desk, market.transactions, Elsewhere(lambda _: later)).run_once()
    assert await busy_times(market, firm) == [(wire_time(at(12)), wire_time(at(13)))]
    assert await sources(market, "text", "problem") == [(None, None)]


async def test_what_was_read_of_a_source_that_was_replaced_meanwhile_counts_for_nothing(market: Marketplace) -> None:
    (firm,) = await subscribers(market, 1)

    class Slow:
        async def fetch(self, url: str) -> bytes:
            await bring(market, firm, text(), "Work")
            return BUSY

    assert await CalendarSync(market.desk, market.transactions, Slow()).run_once() == 1
    assert await busy_times(market, firm) == []
    assert await sources(market, "kind", "times") == [("file", 0)]
