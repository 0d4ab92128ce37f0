"""The checker on histories that are made up: a sound one passes, and each lie is found by the rule that is for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.experiments.history import RULES, Booking, Command, Entry, History, Message, Offer, Outcome, Truth, check

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
TALK = "conversation:b1"


class Forgery:
    """A sound history of one booking, one offer and two messages, heard by two people. Tests bend it."""

    def __init__(self) -> None:
        history = self.history = History()
        wish, said = f"{history.name} wish", f"{history.name} hello"
        self.booking = self._command("ann", "booking.create", {"notes": wish}, {"booking": {"id": "b1"}})
        self.accept = self._command(
            "pat", "offer.accept", {"offer_id": "o1"}, {"booking": {"id": "b1", "provider_id": "p1"}}
        )
        self.refused = history.invoked("joe", "offer.accept", {"offer_id": "o2"})
        self.refused.failed("offer_taken")
        sent = {"id": "m1", "conversation_id": "b1", "offset": 1, "text": said}
        self.said = self._command("ann", "message.send", {"text": said}, {"message": sent})
        self.unanswered = history.invoked("ann", "message.send", {"text": f"{history.name} unanswered"})
        self.people = [history.recorder(who) for who in ("ann", "pat")]
        for person in self.people:
            person.began[TALK] = {"epoch": "e", "offset": 1}
            for offset in (2, 3):
                person.events.append(self.event(offset))
                person.times.append(NOON.timestamp() + offset)
        self.truth = Truth(
            log={
                TALK: {
                    1: Entry("before", "durable"),
                    2: Entry("event-2", "durable", "m1"),
                    3: Entry("event-3", "durable", "m2"),
                    4: Entry("event-4", "latest"),
                }
            },
            bookings=[Booking("b1", "assigned", "p1", wish, NOON, NOON + timedelta(hours=1))],
            accepted=[Offer("o1", "b1", "p1")],
            messages=[Message("m1", "b1", 1, said), Message("m2", "b1", 2, f"{history.name} unanswered")],
            people={"p1": {"pat"}, "p2": {"joe"}},
            live_leaves={"s1": 1},
        )

    def _command(self, who: str, method: str, params: dict[str, object], result: dict[str, object]) -> Command:
        command = self.history.invoked(who, method, params)
        command.ok(result)
        return command

    @staticmethod
    def event(offset: int) -> dict[str, object]:
        message = {"id": f"m{offset - 1}", "offset": offset - 1}
        return {
            "channel": TALK,
            "offset": offset,
            "id": f"event-{offset}",
            "type": "message.sent",
            "time": NOON.isoformat(),
            "data": {"message": message},
        }

    def broken_rules(self) -> set[str]:
        return {violation.partition(":")[0] for violation in check(self.history, self.truth).violations}


def test_a_sound_history_passes_and_its_figures_are_right() -> None:
    forged = Forgery()
    verdict = check(forged.history, forged.truth)
    verdict.hold()
    assert (verdict.tried, verdict.ok, verdict.failed, verdict.unknown) == (5, 3, 1, 1)
    assert (verdict.expected, verdict.seen, verdict.lost, verdict.duplicated) == (4, 4, 0, 0)
    assert verdict.longest_gap_seconds == 3.0


def test_what_is_unknown_may_have_happened_or_not() -> None:
    forged = Forgery()
    del forged.truth.messages[1]
    forged.truth.log[TALK] = {offset: forged.truth.log[TALK][offset] for offset in (1, 2)}
    for person in forged.people:
        del person.events[1], person.times[1]
    forged.booking.outcome = Outcome.UNKNOWN
    forged.accept.outcome = Outcome.UNKNOWN
    check(forged.history, forged.truth).hold()
    forged.truth.bookings.clear()
    forged.truth.accepted.clear()
    check(forged.history, forged.truth).hold()


def test_nothing_is_owed_before_one_came_nor_after_one_left() -> None:
    forged = Forgery()
    ann, pat = forged.people
    ann.began[TALK] = {"epoch": "e", "offset": 2}
    del ann.events[0], ann.times[0]
    pat.ended[TALK] = 2
    del pat.events[1], pat.times[1]
    check(forged.history, forged.truth).hold()


def two_winners(forged: Forgery) -> None:
    forged.truth.accepted.append(Offer("o9", "b1", "p2"))


def winner_that_the_database_does_not_know(forged: Forgery) -> None:
    forged.truth.bookings[0] = replace(forged.truth.bookings[0], provider_id="p2")


def winner_whose_firm_it_is_not(forged: Forgery) -> None:
    forged.truth.people["p1"] = {"joe"}


def loser_who_won(forged: Forgery) -> None:
    forged.truth.accepted.append(Offer("o2", "b1", "p1"))


def two_who_were_told_they_won(forged: Forgery) -> None:
    forged.refused.ok({"booking": {"id": "b1", "provider_id": "p2"}})


def overlap(forged: Forgery) -> None:
    start = NOON + timedelta(minutes=59)
    forged.truth.bookings.append(Booking("b2", "scheduled", "p1", "another's", start, start + timedelta(hours=1)))


def booking_that_was_lost(forged: Forgery) -> None:
    forged.truth.bookings.clear()


def booking_that_came_twice(forged: Forgery) -> None:
    forged.truth.bookings.append(replace(forged.truth.bookings[0], id="b2", start=None))


def booking_that_was_refused(forged: Forgery) -> None:
    forged.booking.failed("not_served")


def booking_that_nobody_wanted(forged: Forgery) -> None:
    forged.truth.bookings.append(Booking("b2", "pending", None, f"{forged.history.name} not asked for"))


def unknown_that_came_twice(forged: Forgery) -> None:
    forged.unanswered.outcome = Outcome.UNKNOWN
    forged.truth.messages.append(replace(forged.truth.messages[1], id="m3", offset=3))


def message_that_was_lost(forged: Forgery) -> None:
    forged.truth.messages[0] = replace(forged.truth.messages[0], text="another's")


def message_under_another_id(forged: Forgery) -> None:
    forged.truth.messages[0] = replace(forged.truth.messages[0], id="m9")


def gap_in_a_conversation(forged: Forgery) -> None:
    forged.truth.messages[1] = replace(forged.truth.messages[1], offset=3)


def message_that_one_never_saw(forged: Forgery) -> None:
    del forged.people[1].events[0], forged.people[1].times[0]


def message_that_was_never_told(forged: Forgery) -> None:
    forged.truth.log[TALK][2] = Entry("event-2", "durable")


def messages_in_the_wrong_order(forged: Forgery) -> None:
    first, second = forged.people[0].events
    first["data"], second["data"] = second["data"], first["data"]


def gap_in_the_log(forged: Forgery) -> None:
    entries = forged.truth.log[TALK]
    entries[5] = entries.pop(4)


def event_left_in_the_outbox(forged: Forgery) -> None:
    forged.truth.unsequenced = 1


def lost_event(forged: Forgery) -> None:
    del forged.people[0].events[1], forged.people[0].times[1]


def event_that_came_twice(forged: Forgery) -> None:
    forged.people[0].events.append(forged.people[0].events[-1])
    forged.people[0].times.append(0.0)


def events_in_the_wrong_order(forged: Forgery) -> None:
    forged.people[0].events.reverse()


def event_that_was_never_committed(forged: Forgery) -> None:
    forged.people[0].events.append(forged.event(9))
    forged.people[0].times.append(0.0)


def event_with_anothers_id(forged: Forgery) -> None:
    forged.people[0].events[1]["id"] = "event-x"


def resume_that_was_refused(forged: Forgery) -> None:
    stood = {"epoch": "e", "offset": 3}
    forged.people[0].judge(TALK, {"epoch": "e", "offset": 4, "recovered": False}, stood)


def resume_under_another_epoch(forged: Forgery) -> None:
    forged.people[0].judge(TALK, {"epoch": "f", "offset": 4, "recovered": True}, {"epoch": "e", "offset": 3})


def two_refresh_tokens(forged: Forgery) -> None:
    forged.truth.live_leaves["s1"] = 2


LIES: dict[str, list[Callable[[Forgery], None]]] = {
    "one_winner_per_booking": [
        two_winners,
        winner_that_the_database_does_not_know,
        winner_whose_firm_it_is_not,
        loser_who_won,
        two_who_were_told_they_won,
    ],
    "no_overlapping_jobs": [overlap],
    "bookings_made_once": [
        booking_that_was_lost,
        booking_that_came_twice,
        booking_that_was_refused,
        booking_that_nobody_wanted,
    ],
    "messages_kept_once": [
        message_that_was_lost,
        message_under_another_id,
        gap_in_a_conversation,
        unknown_that_came_twice,
    ],
    "messages_seen_by_participants": [
        message_that_one_never_saw,
        message_that_was_never_told,
        messages_in_the_wrong_order,
    ],
    "log_without_gaps": [gap_in_the_log, event_left_in_the_outbox],
    "events_seen_once_in_order": [
        lost_event,
        event_that_came_twice,
        events_in_the_wrong_order,
        event_that_was_never_committed,
        event_with_anothers_id,
        resume_that_was_refused,
        resume_under_another_epoch,
    ],
    "one_live_refresh_token": [two_refresh_tokens],
}


@pytest.mark.parametrize(
    ("rule", "lie"),
    [(rule, lie) for rule, lies in LIES.items() for lie in lies],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_lie_is_found_by_the_rule_that_is_for_it(rule: str, lie: Callable[[Forgery], None]) -> None:
    forged = Forgery()
    lie(forged)
    assert rule in forged.broken_rules()


def test_every_rule_has_a_lie() -> None:
    assert set(LIES) == {rule.__name__ for rule in RULES}


def test_lost_and_doubled_events_are_counted() -> None:
    forged = Forgery()
    lost_event(forged)
    forged.people[1].events.append(forged.people[1].events[-1])
    forged.people[1].times.append(0.0)
    verdict = check(forged.history, forged.truth)
    assert (verdict.expected, verdict.seen, verdict.lost, verdict.duplicated) == (4, 3, 1, 1)
    with pytest.raises(AssertionError, match="never heard"):
        verdict.hold()
