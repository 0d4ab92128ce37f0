"""The conversation of a booking: dense order, one message per key, read marks, and who belongs to it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from domain.identity import Actor
from domain.types import Origin
from persistence import tables
from tests.domain.marketplace import Firm, Marketplace, refused


async def talk(market: Marketplace) -> tuple[Actor, Firm, str]:
    customer, firm = await market.customer(), await market.firm()
    return customer, firm, await market.job(customer, firm)


async def say(market: Marketplace, actor: Actor, booking_id: str, text: str = "hello", **params: Any) -> Any:
    return (await market.call(actor, "message.send", conversation_id=booking_id, text=text, **params))["message"]


async def read(market: Marketplace, actor: Actor, booking_id: str, offset: int) -> tuple[int, int]:
    result = await market.call(actor, "message.read", conversation_id=booking_id, offset=offset)
    return result["read_offset"], result["unread"]


async def history(market: Marketplace, actor: Actor, booking_id: str, **params: Any) -> Any:
    return await market.call(actor, "conversation.history", conversation_id=booking_id, **params)


async def test_messages_sent_at_once_get_dense_offsets_and_events_in_that_order(market: Marketplace) -> None:
    customer, firm, booking_id = await talk(market)
    people = [customer, firm.person] * 12
    await market.warm()
    sent = await asyncio.gather(*(say(market, person, booking_id, f"{n}") for n, person in enumerate(people)))
    assert sorted(message["offset"] for message in sent) == list(range(1, 25))
    told = await market.events("message.sent")
    assert [event.data["message"]["offset"] for event in told] == list(range(1, 25))
    stored = (await history(market, customer, booking_id))["messages"]
    assert [event.data["message"] for event in told] == stored
    assert {message["text"] for message in stored} == {str(n) for n in range(24)}


async def test_there_is_no_next_offset_where_there_is_no_conversation(market: Marketplace) -> None:
    with pytest.raises(LookupError):
        await market.desk.run_as_system(lambda ctx: ctx.uow.conversations.advance("nowhere"), Origin("test"))


async def test_message_is_told_to_the_conversation_and_ends_typing(market: Marketplace) -> None:
    customer, _, booking_id = await talk(market)
    message = await say(market, customer, booking_id, "the key is\nunder the mat 🗝")
    (told,) = await market.events("message.sent")
    assert told.channels == {f"conversation:{booking_id}"}
    assert told.data == {"conversation_id": booking_id, "message": message}
    assert (message["sender_id"], message["sender_name"]) == (customer.user_id, customer.name)
    assert message["text"] == "the key is\nunder the mat 🗝"
    (stopped,) = market.announcer.of("typing.stopped")
    assert stopped.data["user_id"] == customer.user_id


async def test_same_key_sends_once_per_sender(market: Marketplace) -> None:
    customer, firm, booking_id = await talk(market)
    first = await say(market, customer, booking_id, key="k")
    assert await say(market, customer, booking_id, key="k") == first
    other = await say(market, firm.person, booking_id, key="k")
    assert (first["offset"], other["offset"]) == (1, 2)
    assert await market.count(tables.messages) == 2


async def test_read_mark_moves_forward_only_and_never_past_the_newest_message(market: Marketplace) -> None:
    customer, firm, booking_id = await talk(market)
    for _ in range(5):
        await say(market, firm.person, booking_id)
    assert await read(market, customer, booking_id, 3) == (3, 2)
    assert await read(market, customer, booking_id, 1) == (3, 2)
    assert await read(market, customer, booking_id, 3) == (3, 2)
    assert await read(market, customer, booking_id, 99) == (5, 0)
    told = await market.events("receipt.updated")
    assert [event.data["read_offset"] for event in told] == [3, 5], "only what moved is told"
    assert told[0].channels == {f"conversation:{booking_id}"}
    await say(market, firm.person, booking_id)
    assert await read(market, customer, booking_id, 0) == (5, 1), "a mark past the end did not read ahead"


async def test_read_mark_in_an_empty_conversation_stays_at_zero(market: Marketplace) -> None:
    customer, _, booking_id = await talk(market)
    assert await read(market, customer, booking_id, 7) == (0, 0)
    assert await market.events("receipt.updated") == []


async def test_read_marks_set_at_once_end_at_the_highest(market: Marketplace) -> None:
    customer, firm, booking_id = await talk(market)
    for _ in range(8):
        await say(market, firm.person, booking_id)
    await market.warm()
    await asyncio.gather(*(read(market, customer, booking_id, offset) for offset in (2, 8, 5, 3, 7, 1)))
    assert (await history(market, firm.person, booking_id))["read"] == {customer.user_id: 8}
    marks = [event.data["read_offset"] for event in await market.events("receipt.updated")]
    assert marks == sorted(set(marks))


async def test_unread_leaves_out_ones_own(market: Marketplace) -> None:
    customer, firm, booking_id = await talk(market)
    for person in (customer, firm.person, customer, customer, firm.person):
        await say(market, person, booking_id)
    assert (await history(market, customer, booking_id))["unread"] == 2
    assert (await history(market, firm.person, booking_id))["unread"] == 3
    await read(market, customer, booking_id, 2)
    assert (await history(market, customer, booking_id))["unread"] == 1


async def test_history_pages_backwards_without_holes(market: Marketplace) -> None:
    customer, _, booking_id = await talk(market)
    for n in range(7):
        await say(market, customer, booking_id, str(n))
    newest = await history(market, customer, booking_id, limit=3)
    assert [message["offset"] for message in newest["messages"]] == [5, 6, 7]
    assert newest["has_more"]
    older = await history(market, customer, booking_id, limit=4, before=5)
    assert [message["offset"] for message in older["messages"]] == [1, 2, 3, 4]
    assert not older["has_more"]
    assert (await history(market, customer, booking_id, before=1))["messages"] == []


async def test_membership_follows_the_assignment(market: Marketplace) -> None:
    customer, operator = await market.customer(), await market.operator()
    first = await market.firm(rating=5.0)
    booking_id = await market.book(customer)

    async def send(actor: Actor) -> None:
        await say(market, actor, booking_id)

    assert await refused(send(first.person)) == "not_found", "an offer makes nobody a participant"
    await market.accept(first, booking_id)
    await send(first.person)
    await send(operator)
    second = await market.firm(rating=1.0)
    await market.step(first.person, booking_id, "awaiting_assignment")
    await market.run_timers()
    await market.accept(second, booking_id)
    assert await refused(send(first.person)) == "not_found"
    assert await refused(history(market, first.person, booking_id)) == "not_found"
    assert await refused(read(market, first.person, booking_id, 1)) == "not_found"
    seen = (await history(market, second.person, booking_id))["messages"]
    assert [message["sender_id"] for message in seen] == [first.person.user_id, operator.user_id]


@pytest.mark.parametrize("typing", [True, False])
async def test_typing_is_told_but_not_stored(market: Marketplace, typing: bool) -> None:
    customer, _, booking_id = await talk(market)
    heard, told = await market.newest_event(), len(market.announcer.events)
    result = await market.call(customer, "typing.set", conversation_id=booking_id, typing=typing)
    assert result == {"conversation_id": booking_id, "typing": typing}
    (event,) = market.announcer.events[told:]
    assert event.type == ("typing.started" if typing else "typing.stopped")
    assert event.data == {"conversation_id": booking_id, "user_id": customer.user_id, "name": customer.name}
    assert event.event_class == "ephemeral"
    assert await market.events(after=heard) == []
