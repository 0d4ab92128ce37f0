"""Memberships that come and go while a socket is open."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from channels.limits import Limits
from channels.topics import CONTROL
from domain.types import JSON
from tests.channels.fakes import House, Seconds, until
from tests.channels.test_session import Client, error_of, turn

REMOVED: JSON = {"channels": ["provider:p1"], "user_ids": ["bob"], "provider_ids": [], "organisation_id": "o-p1"}


def changed(role: str, provider_id: str = "p1") -> JSON:
    membership = {"organisation_id": f"o-{provider_id}", "provider_id": provider_id, "role": role}
    return {"user_ids": ["bob"], "membership": membership}


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House(Limits(call_seconds=1.0), monotonic=Seconds())
    await house.realtime.hub.start()
    await house.realtime.announcer.start()
    house.access.let("booking:b", "ada", provider_ids=["p1"])
    house.access.let("booking:own", "bob", provider_ids=["p1"])
    yield house
    await house.realtime.stop(timeout_seconds=0)


@pytest.fixture
async def bob(house: House) -> Client:
    client = Client(house)
    await client.connect("provider:bob:p1")
    return client


async def test_a_lost_membership_takes_every_channel_it_opened_before_the_next_event(house: House, bob: Client) -> None:
    await bob.subscribe("booking:b")
    await bob.subscribe("booking:own")
    revoked = house.log.append(CONTROL, REMOVED, "access.revoked")
    later = [house.log.append(name) for name in ("provider:p1", "booking:b", "booking:own", "user:bob")]
    await house.publish(revoked, *later)
    await turn()
    assert [event["channel"] for event in bob.transport.events] == ["booking:own", "user:bob"]
    assert bob.session.channels == {"user:bob", "booking:own"}
    assert bob.closed_with is None


async def test_commands_after_it_are_made_without_the_membership(house: House, bob: Client) -> None:
    await house.commit(CONTROL, REMOVED, event_type="access.revoked")
    assert bob.session.actor is not None
    assert bob.session.actor.memberships == ()
    for channel in ("booking:b", "provider:p1", "organisation:o-p1"):
        assert error_of(await bob.call("channel.subscribe", {"channel": channel})) == (-32003, "not_found")


async def test_others_keep_what_they_have(house: House, bob: Client) -> None:
    eve = Client(house)
    await eve.connect("provider:eve:p1")
    await house.commit(CONTROL, REMOVED, event_type="access.revoked")
    await house.commit("provider:p1")
    await turn()
    assert eve.offsets("provider:p1") == [1]
    assert bob.offsets("provider:p1") == []


async def test_a_lower_role_loses_the_managers_channel_and_nothing_else(house: House, bob: Client) -> None:
    house.access.let("organisation:o-p1")
    await bob.subscribe("organisation:o-p1")
    await house.commit(CONTROL, changed("technician"), event_type="access.changed")
    await house.commit("organisation:o-p1")
    await house.commit("provider:p1")
    await turn()
    assert [event["channel"] for event in bob.transport.events] == ["provider:p1"]
    await house.commit(CONTROL, changed("dispatcher"), event_type="access.changed")
    await bob.subscribe("organisation:o-p1")


async def test_a_new_membership_opens_its_channels_on_the_live_socket(house: House, bob: Client) -> None:
    assert error_of(await bob.call("channel.subscribe", {"channel": "provider:p2"})) == (-32003, "not_found")
    await house.commit(CONTROL, changed("technician", "p2"), event_type="access.changed")
    await bob.subscribe("provider:p2")
    await house.commit("provider:p2")
    await turn()
    assert bob.offsets("provider:p2") == [1]
    await until(lambda: len(house.connections.heard) == 3)
    assert [what for what, _ in house.connections.heard] == ["opened", "opened", "closed"], "new, then old"


async def test_a_subscription_under_way_is_judged_by_what_the_person_has_at_its_end(house: House, bob: Client) -> None:
    def remove() -> None:
        house.access.before_answer = None
        house.realtime.hub.receive([house.log.append(CONTROL, REMOVED, "access.revoked")])

    house.access.before_answer = remove
    reply = await bob.call("channel.subscribe", {"channel": "booking:b"})
    assert error_of(reply) == (-32003, "not_found")
    await house.commit("booking:b")
    await turn()
    assert bob.transport.events == []


async def test_ones_own_booking_survives_the_removal_while_it_is_subscribed(house: House, bob: Client) -> None:
    def remove() -> None:
        house.access.before_answer = None
        house.realtime.hub.receive([house.log.append(CONTROL, REMOVED, "access.revoked")])

    house.access.before_answer = remove
    await bob.subscribe("booking:own")
    await house.commit("booking:own")
    await turn()
    assert bob.offsets("booking:own") == [1]


async def test_a_membership_lost_while_signing_in_is_not_overlooked(house: House) -> None:
    def remove() -> None:
        house.doorman.before_answer = None
        house.realtime.hub.receive([house.log.append(CONTROL, REMOVED, "access.revoked")])

    house.doorman.before_answer = remove
    client = Client(house)
    await client.connect("provider:bob:p1")
    assert house.doorman.seen == 2, "the token is looked at again"


async def test_the_end_of_a_socket_is_told_for_the_providers_it_spoke_for_last(house: House, bob: Client) -> None:
    told: list[tuple[str, frozenset[str]]] = []

    async def opened(actor: object) -> None:
        told.append(("opened", actor.provider_ids))  # type: ignore[attr-defined]

    async def closed(actor: object) -> None:
        told.append(("closed", actor.provider_ids))  # type: ignore[attr-defined]

    house.connections.opened, house.connections.closed = opened, closed  # type: ignore[method-assign]
    await house.commit(CONTROL, REMOVED, event_type="access.revoked")
    bob.session.lost()
    await until(lambda: len(told) == 3)
    none: frozenset[str] = frozenset()
    assert sorted(told, key=str) == sorted([("opened", none), ("closed", frozenset({"p1"})), ("closed", none)], key=str)
