"""What every presence must do. A test module subclasses :class:`PresenceContract` and gives it the fixture."""

from __future__ import annotations

from dataclasses import dataclass

from channels.hub import Hub
from channels.presence import Member, Presence
from domain.identity import Actor
from tests.channels.fakes import FakeSubscriber, customer, operations


@dataclass
class Places:
    """Two nodes with their hubs; the same one twice where there is but one process. ``presence`` is asked on the
    first.
    """

    presence: Presence
    here: Hub
    there: Hub


async def enter(hub: Hub, channel: str, actor: Actor | None) -> FakeSubscriber:
    """Somebody listens to a channel."""
    subscriber = FakeSubscriber(actor)
    await hub.join([channel], subscriber)
    head = (await hub.heads.get([channel]))[channel]
    hub.anchor(channel, head)
    hub.go_live(channel, subscriber, head.offset)
    return subscriber


class PresenceContract:
    async def test_nobody_is_on_a_channel_nobody_listens_to(self, places: Places) -> None:
        assert list(await places.presence.members("booking:1")) == []

    async def test_people_of_all_nodes_are_listed_by_name(self, places: Places) -> None:
        await enter(places.here, "booking:1", operations("eve"))
        await enter(places.there, "booking:1", customer("ada"))
        await enter(places.there, "booking:2", customer("zoe"))
        assert list(await places.presence.members("booking:1")) == [
            Member("ada", "Ada", ("customer",), 1),
            Member("eve", "Eve", ("operations",), 1),
        ]

    async def test_a_person_counts_once_with_all_sockets(self, places: Places) -> None:
        await enter(places.here, "booking:1", customer("ada"))
        await enter(places.there, "booking:1", customer("ada"))
        await enter(places.there, "booking:1", customer("ada"))
        assert list(await places.presence.members("booking:1")) == [Member("ada", "Ada", ("customer",), 3)]

    async def test_who_leaves_is_gone(self, places: Places) -> None:
        ada = await enter(places.there, "booking:1", customer("ada"))
        assert [member.user_id for member in await places.presence.members("booking:1")] == ["ada"]
        places.there.part("booking:1", ada)
        assert list(await places.presence.members("booking:1")) == []

    async def test_who_is_not_signed_in_is_nobody(self, places: Places) -> None:
        await enter(places.here, "booking:1", None)
        await enter(places.there, "booking:1", None)
        assert list(await places.presence.members("booking:1")) == []
