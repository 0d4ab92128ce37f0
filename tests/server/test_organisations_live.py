"""Memberships end to end: real sockets, a real database, the sequencer and the control channel in between."""

from __future__ import annotations

from domain.identity import Role
from tests.channels.fakes import until
from tests.server.running import Running, running


async def test_a_member_who_is_removed_hears_nothing_more_and_keeps_the_socket(database_url: str) -> None:
    async with running(database_url) as server:
        await server.user("boss@firm.test", Role.PROVIDER)
        await server.user("new@firm.test", Role.CUSTOMER)
        boss_token, new_token = await server.token("boss@firm.test"), await server.token("new@firm.test")
        async with await server.socket(boss_token) as boss, await server.socket(new_token) as new:
            (organisation,) = (await boss.call("organisation.list"))["organisations"]
            here = {"organisation_id": organisation["id"]}
            provider = f"provider:{organisation['provider_id']}"
            await boss.call("channel.subscribe", channel=f"organisation:{organisation['id']}")
            await boss.call("organisation.invite", **here, email="new@firm.test", role="technician", key="k1")
            invited = await new.hears("invitation.created")
            issued = await boss.call("invitation.issue", invitation_id=invited["data"]["invitation_id"])
            joined = await new.call("invitation.accept", token=issued["token"], key="k2")
            await new.hears("membership.created")
            await boss.hears("membership.created")

            # The new place opens channels and commands on the socket that was open before.
            await until(lambda: _has_membership(server, joined["member"]["user_id"]))
            await new.call("channel.subscribe", channel=provider)
            await boss.call("presence.set", status="away")
            await new.hears("availability.changed")

            await boss.call("member.remove", **here, user_id=joined["member"]["user_id"], key="k3")
            # At once, whatever the control channel still carries.
            assert (await new.ask("offer.list"))["error"]["data"]["type"] == "not_found"
            await new.hears("membership.removed")
            heard = len(new.events)
            await boss.call("presence.set", status="online")
            await until(lambda: len([e for e in boss.events if e["type"] == "availability.changed"]) == 2)
            assert new.events[heard:] == []
            assert (await new.ask("channel.subscribe", channel=provider))["error"]["data"]["type"] == "not_found"
            assert (await new.call("organisation.list")) == {"organisations": []}, "the socket goes on"
        assert (await server.rest(new_token, "member.list", **here))[0] == 404


def _has_membership(server: Running, user_id: str) -> bool:
    sessions = server.app.realtime.hub.roster.sessions_of(user_id)
    return all(session.actor is not None and session.actor.memberships for session in sessions)
