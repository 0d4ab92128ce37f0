"""Flags flipped under live sockets."""

from __future__ import annotations

from domain.flags import Flag, FlagState
from domain.identity import Role
from tests.channels.fakes import until
from tests.server.running import running


async def test_those_for_whom_a_flag_changes_are_told_at_once_and_others_are_not(database_url: str) -> None:
    async with running(database_url) as server:
        for email, role in (("admin@x.test", Role.ADMIN), ("one@x.test", Role.CUSTOMER), ("two@x.test", Role.PROVIDER)):
            await server.user(email, role)
        admin = await server.token("admin@x.test")
        one, two = [await server.socket(await server.token(f"{name}@x.test")) for name in ("one", "two")]
        async with one, two:
            pilot = {"flag": "new-map", "state": "pilot", "roles": ["customer"]}
            status, _ = await server.rest(admin, "flag.set", **pilot, key="k1")
            assert status == 200
            told = await one.hears("flag.updated")
            assert told["data"] == {"flag": "new-map", "on": True}
            assert told["channel"] == f"user:{one.hello['user']['id']}"
            assert "offset" not in told
            assert await one.call("flag.evaluate") == {"flags": {"new-map": True}}

            await server.rest(admin, "flag.set", **(pilot | {"state": "enabled"}), key="k2")
            assert (await two.hears("flag.updated"))["data"] == {"flag": "new-map", "on": True}
            assert len([event for event in one.events if event["type"] == "flag.updated"]) == 1, "nothing new for one"
        board = server.app.flags.board
        flag = board.get("new-map")
        assert flag is not None
        assert flag.state is FlagState.ENABLED


async def test_a_node_reads_what_it_missed(sqlite_url: str) -> None:
    async with running(sqlite_url) as server:
        await server.user("one@x.test", Role.CUSTOMER)
        async with await server.socket(await server.token("one@x.test")) as one:
            server.app.flags.take([Flag("late", FlagState.ENABLED, version=4)])
            await one.hears("flag.updated")
            server.app.flags.take([Flag("late", FlagState.DISABLED, version=3)])
            server.app.flags.take([Flag("late", FlagState.DISABLED, version=5)])
            await until(lambda: len(one.events) == 2)
            assert [event["data"]["on"] for event in one.events] == [True, False]


async def test_the_security_channel_is_live_and_for_admins(sqlite_url: str) -> None:
    async with running(sqlite_url) as server:
        for email, role in (("admin@x.test", Role.ADMIN), ("ops@x.test", Role.OPERATIONS)):
            await server.user(email, role)
        admin_token = await server.token("admin@x.test")
        async with (
            await server.socket(admin_token) as admin,
            await server.socket(await server.token("ops@x.test")) as ops,
        ):
            refused = await ops.ask("channel.subscribe", channel="admin:security")
            assert refused["error"]["data"]["type"] == "not_found"
            assert "admin:security" not in admin.hello["channels"]
            await server.rest(admin_token, "flag.set", flag="f", state="enabled", key="k1")
            opened = await admin.call("channel.subscribe", channel="admin:security")
            assert [event["kind"] for event in opened["state"]["events"]] == ["flag_changed"]
            body = {"email": "admin@x.test", "password": "wrong"}
            async with server.http.post(f"{server.url}/auth/login", json=body) as answer:
                assert answer.status == 401
            # The first one may still come: a state is at least as new as its offset.
            await until(lambda: any(event["data"].get("number") == 2 for event in admin.events))
            assert admin.events[-1]["type"] == "security.event_recorded"
            assert admin.events[-1]["data"]["event"]["kind"] == "login_failed"
        async with server.http.get(f"{server.url}/metrics") as answer:
            metrics = await answer.text()
        assert 'fixnado_security_events_total{kind="login_failed"} 1.0' in metrics
