from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import orjson
import pytest

from channels.deflate import Deflater
from channels.limits import Limits
from channels.protocol import CloseCode
from channels.session import Session
from channels.topics import CONTROL
from domain.errors import Unavailable
from domain.events import EventClass
from domain.types import JSON
from tests.channels.fakes import FakeTransport, House, Seconds, ephemeral, until

LIMITS = Limits(
    requests_in_flight=4, sockets_per_user=2, channels_per_socket=3, max_buffered_bytes=10_000, call_seconds=1.0
)


class Client:
    """A session with a socket in memory."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.transport = FakeTransport()
        self.session: Session = house.realtime.open(self.transport)
        self._id = 0

    def send(self, method: str, params: JSON | None = None, request_id: int | str | None = None) -> None:
        message: JSON = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        if request_id is not None:
            message["id"] = request_id
        self.session.received(orjson.dumps(message).decode())

    async def call(self, method: str, params: JSON | None = None) -> JSON:
        """The reply, result or error."""
        self._id += 1
        self.send(method, params, self._id)
        await until(lambda: any(message.get("id") == self._id for message in self.transport.messages))
        return self.transport.reply(self._id)

    async def connect(self, who: str = "customer:ada", **params: Any) -> JSON:
        reply = await self.call("session.connect", {"token": who, **params})
        result: JSON = reply["result"]
        return result

    async def subscribe(self, channel: str, **params: Any) -> JSON:
        reply = await self.call("channel.subscribe", {"channel": channel, **params})
        result: JSON = reply["result"]
        return result

    @property
    def closed_with(self) -> int | None:
        return self.transport.closed_with

    def offsets(self, channel: str) -> list[int]:
        return [event["offset"] for event in self.transport.events if event["channel"] == channel]


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
async def house(seconds: Seconds) -> AsyncIterator[House]:
    house = House(LIMITS, monotonic=seconds)
    await house.realtime.hub.start()
    await house.realtime.announcer.start()
    yield house
    # Nobody turns this clock, so waiting for it would never end.
    await house.realtime.stop(timeout_seconds=0)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def error_of(reply: JSON) -> tuple[int, str]:
    return reply["error"]["code"], reply["error"]["data"]["type"]


# Connecting


async def test_connecting_is_answered_as_the_contract_shows(house: House) -> None:
    client = Client(house)
    for _ in range(2):
        house.log.append("provider:p1")
    result = await client.connect("provider:bob:p1", client="ios-pro/5.2")
    session = result.pop("session")
    assert len(session) == 26
    assert result == {
        "user": {"id": "bob", "roles": ["provider"]},
        "heartbeat_seconds": 25,
        "expires_in_seconds": 900,
        "server_time": "2026-11-24T02:00:00.000Z",
        "channels": {
            "user:bob": {"epoch": "e1", "offset": 0, "recovered": False, "events": []},
            "provider:p1": {"epoch": "e1", "offset": 2, "recovered": False, "events": [], "state": {"as_of": 2}},
        },
    }
    assert house.connections.heard == [("opened", "bob")]


async def test_operations_hear_every_booking_without_asking(house: House) -> None:
    client = Client(house)
    assert (await client.connect("operations:eve"))["channels"].keys() == {"user:eve", "admin:bookings"}
    await house.commit("admin:bookings")
    await turn()
    assert client.offsets("admin:bookings") == [1]


@pytest.mark.parametrize("method", ["test.echo", "channel.subscribe", "session.refresh", "session.ack", "no.such"])
async def test_nothing_works_before_connecting(house: House, method: str) -> None:
    client = Client(house)
    assert error_of(await client.call(method, {"channel": "user:ada"})) == (-32001, "not_authenticated")
    assert house.desk.executed == []
    assert client.closed_with is None


async def test_commands_sent_right_behind_connect_are_run_after_it(house: House) -> None:
    client = Client(house)
    client.send("session.connect", {"token": "customer:ada"}, 1)
    client.send("test.echo", {"x": 1}, 2)
    await until(lambda: len(client.transport.messages) == 2)
    assert [message["id"] for message in client.transport.messages] == [1, 2]
    assert client.transport.reply(2)["result"]["user_id"] == "ada"


async def test_a_bad_token_is_answered_and_the_socket_closed(house: House) -> None:
    client = Client(house)
    assert error_of(await client.call("session.connect", {"token": "forged"})) == (-32001, "invalid_token")
    assert client.closed_with == 4500
    assert house.connections.heard == []


async def test_commands_behind_a_bad_token_have_no_effect(house: House) -> None:
    client = Client(house)
    client.send("session.connect", {"token": "forged"}, 1)
    client.send("test.echo", {}, 2)
    await until(lambda: client.closed_with is not None)
    await turn()
    assert house.desk.executed == []


async def test_one_who_is_signed_out_while_connecting_does_not_get_in(house: House) -> None:
    client = Client(house)
    revoked = house.log.append(CONTROL, {"session_ids": ["sign-in-ada"]}, "session.revoked")
    house.doorman.before_answer = lambda: house.realtime.hub.receive([revoked])
    assert error_of(await client.call("session.connect", {"token": "customer:ada"})) == (-32001, "invalid_token")
    assert client.closed_with == 4500


async def test_a_doorman_who_cannot_tell_does_not_close_the_socket(house: House) -> None:
    client = Client(house)
    house.doorman.failing = Unavailable()
    assert error_of(await client.call("session.connect", {"token": "customer:ada"})) == (-32603, "unavailable")
    house.doorman.failing = None
    assert (await client.connect())["user"]["id"] == "ada"


async def test_a_log_that_is_away_makes_the_client_come_back(house: House) -> None:
    client = Client(house)
    house.log.failing = True
    assert error_of(await client.call("session.connect", {"token": "customer:ada"})) == (-32603, "unavailable")
    assert client.closed_with == 4001
    await until(lambda: house.connections.heard == [("opened", "ada"), ("closed", "ada")])


async def test_connecting_twice_is_refused(house: House) -> None:
    client = Client(house)
    await client.connect()
    assert error_of(await client.call("session.connect", {"token": "customer:bob"})) == (-32000, "refused")
    assert client.closed_with is None


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"token": ""},
        {"token": 1},
        {"token": "x" * 9000},
        {"token": "customer:ada", "surprise": 1},
        {"token": "customer:ada", "client": 5},
        {"token": "customer:ada", "resume": []},
        {"token": "customer:ada", "resume": {"user:ada": {"epoch": "e1"}}},
        {"token": "customer:ada", "resume": {"user:ada": {"epoch": 1, "offset": 1}}},
        {"token": "customer:ada", "resume": {"user:ada": {"epoch": "e1", "offset": -1}}},
        {"token": "customer:ada", "resume": {"user:ada": {"epoch": "e1", "offset": True}}},
    ],
)
async def test_bad_params_of_connect_are_named(house: House, params: JSON) -> None:
    client = Client(house)
    reply = await client.call("session.connect", params)
    assert error_of(reply) == (-32602, "invalid_params")
    assert reply["error"]["data"]["errors"][0].keys() == {"where", "why"}
    assert house.doorman.seen == 0


async def test_too_many_sockets_of_a_user_are_refused_until_one_goes(house: House) -> None:
    first, second, third = Client(house), Client(house), Client(house)
    await first.connect()
    await second.connect()
    assert error_of(await third.call("session.connect", {"token": "customer:ada"})) == (-32029, "too_many_requests")
    assert third.closed_with == 4504
    first.session.lost()
    fourth = Client(house)
    await fourth.connect()
    assert fourth.closed_with is None


# Resuming


async def test_a_resumed_channel_has_exactly_what_was_missed(house: House) -> None:
    for _ in range(5):
        house.log.append("user:ada")
    client = Client(house)
    result = await client.connect(resume={"user:ada": {"epoch": "e1", "offset": 3}, "user:bob": None})
    channel = result["channels"]["user:ada"]
    assert (channel["recovered"], channel["offset"]) == (True, 5)
    assert [event["offset"] for event in channel["events"]] == [4, 5]
    assert channel["events"][0]["type"] == "booking.created"
    assert "user:bob" not in result["channels"]


@pytest.mark.parametrize(
    "resume",
    [{"epoch": "old", "offset": 3}, {"epoch": "e1", "offset": 99}, {"epoch": "e1", "offset": 1}, None],
    ids=["other epoch", "beyond the head", "below the floor", "nothing"],
)
async def test_what_cannot_be_resumed_gets_a_fresh_state(house: House, resume: JSON | None) -> None:
    house.access.let("booking:b", "ada")
    for _ in range(5):
        house.log.append("booking:b")
    house.log.floors["booking:b"] = 2
    client = Client(house)
    await client.connect()
    result = await client.subscribe("booking:b", **({"resume": resume} if resume else {}))
    assert result == {
        "channel": "booking:b",
        "epoch": "e1",
        "offset": 5,
        "recovered": False,
        "events": [],
        "state": {"as_of": 5},
    }


async def test_a_returning_client_gets_back_every_channel_that_is_still_its_own(house: House) -> None:
    house.access.let("booking:mine", "ada")
    house.access.let("booking:lost", "bob")
    for channel in ("booking:mine", "booking:mine", "booking:lost"):
        house.log.append(channel)
    client = Client(house)
    at_one = {"epoch": "e1", "offset": 1}
    resume = dict.fromkeys(("booking:mine", "booking:lost", "booking:nowhere", "no channel"), at_one)
    result = await client.connect(resume=resume)
    assert result["channels"].keys() == {"user:ada", "booking:mine"}
    assert [event["offset"] for event in result["channels"]["booking:mine"]["events"]] == [2]
    await house.commit("booking:mine")
    await house.commit("booking:lost")
    await turn()
    assert client.offsets("booking:mine") == [3]
    assert client.offsets("booking:lost") == []


async def test_a_right_that_ends_while_a_client_returns_costs_only_that_channel(house: House) -> None:
    house.access.let("booking:mine", "ada")
    house.log.append("booking:mine")

    def revoke() -> None:
        house.access.before_answer = None
        data = {"channels": ["booking:mine"], "user_ids": ["ada"], "provider_ids": []}
        house.realtime.hub.receive([house.log.append(CONTROL, data, "access.revoked")])

    house.access.before_answer = revoke
    client = Client(house)
    result = await client.connect(resume={"booking:mine": {"epoch": "e1", "offset": 1}})
    assert result["channels"].keys() == {"user:ada"}
    assert client.closed_with is None


async def test_an_ephemeral_event_during_a_subscription_follows_the_reply(house: House) -> None:
    house.access.let("booking:b", "ada")
    client = Client(house)
    await client.connect()
    house.access.before_answer = lambda: house.realtime.hub.receive([ephemeral("booking:b")])
    await client.subscribe("booking:b")
    kinds = [message.get("method", "reply") for message in client.transport.messages[1:]]
    assert kinds == ["reply", "event"]


async def test_resuming_at_the_head_is_recovered_with_nothing(house: House) -> None:
    house.log.append("user:ada")
    client = Client(house)
    result = await client.connect(resume={"user:ada": {"epoch": "e1", "offset": 1}})
    assert result["channels"]["user:ada"] == {"epoch": "e1", "offset": 1, "recovered": True, "events": []}


@pytest.mark.parametrize("limits", [Limits(replay_entries=3), Limits(replay_bytes=600)], ids=["entries", "bytes"])
async def test_too_much_to_replay_is_not_recovered(limits: Limits) -> None:
    house = House(limits)
    await house.realtime.start()
    for _ in range(4):
        house.log.append("user:ada")
    client = Client(house)
    result = await client.connect(resume={"user:ada": {"epoch": "e1", "offset": 0}})
    assert result["channels"]["user:ada"] == {"epoch": "e1", "offset": 4, "recovered": False, "events": []}
    await house.commit("user:ada")
    await turn()
    assert client.offsets("user:ada") == [5]
    await house.realtime.stop()


async def test_what_happens_while_subscribing_comes_once(house: House) -> None:
    house.access.let("booking:b", "ada")
    for _ in range(3):
        house.log.append("booking:b")
    client = Client(house)
    await client.connect()

    def happen() -> None:
        house.realtime.hub.receive([house.log.append("booking:b")])
        if len(house.log.entries["booking:b"]) >= 5:
            house.log.before_read = None

    house.access.before_answer = happen
    house.log.before_read = happen
    result = await client.subscribe("booking:b", resume={"epoch": "e1", "offset": 1})
    await house.commit("booking:b")
    await turn()
    seen = [event["offset"] for event in result["events"]] + client.offsets("booking:b")
    assert seen == list(range(2, len(house.log.entries["booking:b"]) + 1))
    assert len(seen) >= 5


async def test_live_events_follow_the_reply_that_announces_them(house: House) -> None:
    house.access.let("booking:b", "ada")
    client = Client(house)
    await client.connect()
    house.access.before_answer = lambda: house.realtime.hub.receive([house.log.append("booking:b")])
    client.send("channel.subscribe", {"channel": "booking:b"}, "s")
    await until(lambda: any(message.get("id") == "s" for message in client.transport.messages))
    await house.commit("booking:b")
    await turn()
    order = [message.get("id") or message["params"]["offset"] for message in client.transport.messages[1:]]
    assert order[0] == "s"
    reply = client.transport.reply("s")["result"]
    assert order[1:] == list(range(reply["offset"] + 1, 3))
    assert reply["state"]["as_of"] >= reply["offset"]


# Channels


@pytest.mark.parametrize(
    "channel", ["booking:theirs", "booking:none", "user:bob", "control", "admin:bookings", "x", "a:b:c"]
)
async def test_foreign_missing_and_nonsense_channels_are_refused_alike(house: House, channel: str) -> None:
    house.access.let("booking:theirs", "bob")
    client = Client(house)
    await client.connect()
    reply = await client.call("channel.subscribe", {"channel": channel})
    reply["error"]["data"].pop("correlation_id")
    assert reply["error"] == {
        "code": -32003,
        "message": "There is no such thing here, or it is not yours.",
        "data": {"type": "not_found", "status": 404, "retryable": False},
    }
    await house.commit(channel)
    await turn()
    assert client.transport.events == []


async def test_access_revoked_while_subscribing_wins(house: House) -> None:
    house.access.let("booking:b", "ada")
    client = Client(house)
    await client.connect()
    revoked = house.log.append(CONTROL, {"channels": ["booking:b"], "user_ids": ["ada"]}, "access.revoked")
    house.access.before_answer = lambda: house.realtime.hub.receive([revoked])
    reply = await client.call("channel.subscribe", {"channel": "booking:b"})
    assert error_of(reply) == (-32003, "not_found")
    await house.commit("booking:b")
    await turn()
    assert client.transport.events == []


async def test_access_revoked_later_ends_the_channel_and_leaves_the_socket(house: House) -> None:
    house.access.let("booking:b", "ada")
    client = Client(house)
    await client.connect()
    await client.subscribe("booking:b")
    await house.commit(CONTROL, {"channels": ["booking:b"], "user_ids": ["ada"]}, event_type="access.revoked")
    await house.commit("booking:b")
    await turn()
    assert client.transport.events == []
    assert client.session.channels == {"user:ada"}
    assert client.closed_with is None


async def test_unsubscribing_ends_a_channel(house: House) -> None:
    house.access.let("booking:b", "ada")
    client = Client(house)
    await client.connect()
    await client.subscribe("booking:b")
    assert (await client.call("channel.unsubscribe", {"channel": "booking:b"}))["result"] == {"channel": "booking:b"}
    assert (await client.call("channel.unsubscribe", {"channel": "never:had"}))["result"] == {"channel": "never:had"}
    await house.commit("booking:b")
    await turn()
    assert client.transport.events == []


async def test_a_socket_has_a_bounded_number_of_channels(house: House) -> None:
    client = Client(house)
    await client.connect()
    for n in range(3):
        house.access.let(f"booking:{n}", "ada")
    await client.subscribe("booking:0")
    await client.subscribe("booking:1")
    assert error_of(await client.call("channel.subscribe", {"channel": "booking:2"})) == (-32000, "refused")
    await client.subscribe("booking:1")


async def test_presence_lists_people_once_and_only_to_those_inside(house: House) -> None:
    house.access.let("booking:b", "ada", "zoe")
    ada, ada2, zoe, outside = (Client(house) for _ in range(4))
    await ada.connect()
    await ada2.connect()
    await zoe.connect("customer:zoe")
    await outside.connect("customer:bob")
    for client in (ada, ada2, zoe):
        await client.subscribe("booking:b")
    assert (await zoe.call("channel.presence", {"channel": "booking:b"}))["result"] == {
        "channel": "booking:b",
        "members": [
            {"user_id": "ada", "name": "Ada", "roles": ["customer"], "sockets": 2},
            {"user_id": "zoe", "name": "Zoe", "roles": ["customer"], "sockets": 1},
        ],
    }
    assert error_of(await outside.call("channel.presence", {"channel": "booking:b"})) == (-32003, "not_found")


# Commands


async def test_a_command_reaches_the_desk_with_its_params_and_a_new_correlation_id(house: House) -> None:
    client = Client(house)
    await client.connect()
    one, two = await client.call("test.echo", {"key": "k"}), await client.call("test.echo")
    assert one["result"]["params"] == {"key": "k"}
    assert one["result"]["correlation_id"] != two["result"]["correlation_id"]


async def test_the_trace_hook_surrounds_each_command(seconds: Seconds) -> None:
    from collections.abc import Iterator
    from contextlib import contextmanager

    from domain.types import Origin

    seen: list[tuple[str, str]] = []

    @contextmanager
    def trace(origin: Origin, session_id: str) -> Iterator[None]:
        seen.append(("in", origin.correlation_id))
        yield
        seen.append(("out", session_id))

    house = House(trace=trace)
    await house.realtime.start()
    client = Client(house)
    await client.connect()
    reply = await client.call("test.echo")
    await until(lambda: len(seen) == 4)
    assert seen[2:] == [("in", reply["result"]["correlation_id"]), ("out", client.session.id)]
    await house.realtime.stop()


async def test_refusals_and_unknown_methods_are_typed(house: House) -> None:
    client = Client(house)
    await client.connect()
    assert error_of(await client.call("test.refuse")) == (-32000, "refused")
    assert error_of(await client.call("no.such.method")) == (-32601, "unknown_method")


async def test_a_crash_shows_nothing_but_the_correlation_id_that_the_log_has(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(house)
    await client.connect()
    reply = await client.call("test.crash")
    assert "canary" not in str(reply)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert reply["error"] == {
        "code": -32603,
        "message": "Something went wrong on our side.",
        "data": {
            "type": "internal",
            "status": 500,
            "retryable": False,
            "correlation_id": record.__dict__["correlation_id"],
        },
    }
    assert (await client.call("test.echo"))["result"]["user_id"] == "ada", "the session lives"


async def test_a_command_that_takes_too_long_is_unavailable() -> None:
    house = House(Limits(command_seconds=0.02))
    await house.realtime.start()
    client = Client(house)
    await client.connect()
    assert error_of(await client.call("test.wait")) == (-32603, "unavailable")
    await house.realtime.stop()


async def test_commands_run_in_order_one_at_a_time_and_the_queue_is_bounded(house: House) -> None:
    client = Client(house)
    await client.connect()
    client.send("test.wait", {}, 10)
    await house.desk.started.wait()
    for n in range(11, 16):
        client.send("test.echo", {"n": n}, n)
    await turn()
    refused = [message for message in client.transport.messages if "error" in message]
    assert [message["id"] for message in refused] == [14, 15]
    assert error_of(refused[0]) == (-32029, "too_many_requests")
    assert refused[0]["error"]["data"]["retry_after_seconds"] > 0
    house.desk.gate.set()
    await until(lambda: len(client.transport.messages) == 7)
    assert [message["id"] for message in client.transport.messages if "result" in message] == [1, 10, 11, 12, 13]
    await until(lambda: not client.session.busy)
    assert client.session._queue is None, "an idle session keeps no queue"


async def test_a_pong_is_heard_while_a_command_runs(house: House, seconds: Seconds) -> None:
    client = Client(house)
    await client.connect()
    client.send("test.wait", {}, 10)
    await house.desk.started.wait()
    seconds.now += 30
    client.send("pong")
    seconds.now += 30
    client.session.due(seconds.now)
    assert client.closed_with is None
    house.desk.gate.set()


async def test_a_command_without_id_runs_and_is_not_answered(house: House) -> None:
    client = Client(house)
    await client.connect()
    client.send("test.echo", {"x": 1})
    client.send("test.refuse")
    await until(lambda: len(house.desk.executed) == 2)
    await turn()
    assert len(client.transport.messages) == 1


async def test_a_begun_command_is_finished_when_the_client_is_gone_and_waiting_ones_are_not(house: House) -> None:
    client = Client(house)
    await client.connect()
    client.send("test.wait", {}, 10)
    client.send("test.echo", {}, 11)
    await house.desk.started.wait()
    client.session.lost()
    assert house.connections.heard == [("opened", "ada")]
    house.desk.gate.set()
    await until(lambda: len(house.connections.heard) == 2)
    assert house.desk.finished == 1
    assert [method for method, _ in house.desk.executed] == ["test.wait"]
    assert house.connections.heard[-1] == ("closed", "ada")


async def test_acks_are_passed_on_for_channels_one_has(house: House) -> None:
    client = Client(house)
    await client.connect()
    assert (await client.call("session.ack", {"user:ada": 7, "user:bob": 9}))["result"] == {}
    assert house.acknowledgements.acked_offsets == [("ada", "user:ada", 7)]
    for bad in ({"user:ada": "7"}, {"user:ada": -1}, {"user:ada": True}):
        assert error_of(await client.call("session.ack", bad)) == (-32602, "invalid_params")


# Tokens


async def test_a_refresh_gives_the_session_new_time(house: House, seconds: Seconds) -> None:
    client = Client(house)
    await client.connect("customer:ada;100")
    assert (await client.call("session.refresh", {"token": "customer:ada;900"}))["result"] == {
        "expires_in_seconds": 900
    }
    seconds.now += 500
    client.send("pong")
    client.session.due(seconds.now)
    assert client.closed_with is None


@pytest.mark.parametrize("token", ["customer:bob", "forged"])
async def test_a_refresh_with_somebody_elses_or_no_good_token_changes_nothing(house: House, token: str) -> None:
    client = Client(house)
    await client.connect()
    assert error_of(await client.call("session.refresh", {"token": token})) == (-32001, "invalid_token")
    assert client.closed_with is None
    assert client.session.actor is not None
    assert client.session.actor.user_id == "ada"


async def test_a_refresh_that_lost_a_membership_loses_its_channel(house: House) -> None:
    client = Client(house)
    await client.connect("provider:bob:p1")
    await client.call("session.refresh", {"token": "provider:bob:p2"})
    await house.commit("provider:p1")
    await turn()
    assert client.transport.events == []


# Bad frames and floods


async def test_bad_frames_are_answered_and_too_many_close(house: House) -> None:
    client = Client(house)
    await client.connect()
    for _ in range(9):
        client.session.received("{nonsense")
    assert client.closed_with is None
    last = client.transport.messages[-1]
    assert (last["id"], *error_of(last)) == (None, -32700, "parse_error")
    client.session.received("[]")
    assert error_of(client.transport.messages[-1]) == (-32600, "invalid_request")
    assert client.closed_with == 4501


async def test_a_binary_frame_closes(house: House) -> None:
    client = Client(house)
    client.session.received_binary()
    assert client.closed_with == 4501


async def test_flooding_is_refused_then_closed_and_reconnecting_does_not_refill(house: House) -> None:
    client = Client(house)
    await client.connect()
    for n in range(300):
        client.send("ping", {}, n)
        if client.closed_with:
            break
    kinds = ["error" if "error" in message else "result" for message in client.transport.messages[1:]]
    assert kinds == ["result"] * 100 + ["error"] * 100
    assert error_of(client.transport.messages[-1]) == (-32029, "too_many_requests")
    assert client.closed_with == 4006
    again = Client(house)
    await again.connect()
    again.send("ping", {}, "x")
    assert again.closed_with == 4006


async def test_the_bucket_refills_with_time(house: House, seconds: Seconds) -> None:
    client = Client(house)
    await client.connect()
    for n in range(110):
        client.send("ping", {}, n)
    seconds.now += 10
    client.send("ping", {}, "later")
    assert client.transport.reply("later")["result"] == {}


async def test_a_stranger_may_not_send_much(house: House) -> None:
    client = Client(house)
    for n in range(21):
        client.send("test.echo", {}, n)
    assert client.closed_with == 4006


# Slow sockets


@pytest.fixture
async def slow(house: House) -> Client:
    house.access.let("booking:b", "ada")
    house.access.let("booking:c", "ada")
    client = Client(house)
    await client.connect()
    await client.subscribe("booking:b")
    await client.subscribe("booking:c")
    client.transport.writes.clear()
    client.session.paused()
    return client


Put = Callable[..., Any]


async def test_a_slow_socket_gets_no_ephemeral_events(house: House, slow: Client) -> None:
    await house.publish(ephemeral("booking:b"), house.log.append("booking:b"))
    await turn()
    slow.session.resumed()
    assert slow.offsets("booking:b") == [1]


async def test_a_slow_socket_gets_the_newest_of_each_kept_value(house: House, slow: Client) -> None:
    for n in range(6):
        key = ("eta", "status")[n % 2]
        await house.commit("booking:b", {"n": n}, event_class=EventClass.LATEST, key=key)
        await turn()
    assert slow.transport.writes == []
    slow.session.resumed()
    assert slow.offsets("booking:b") == [5, 6]
    assert len(slow.transport.writes) == 1


async def test_offsets_never_go_backwards_on_a_channel(house: House, slow: Client) -> None:
    await house.commit("booking:b", event_class=EventClass.LATEST, key="eta")
    await house.commit("booking:c", event_class=EventClass.LATEST, key="eta")
    await house.commit("booking:b")
    await house.commit("booking:b", event_class=EventClass.LATEST, key="eta")
    await turn()
    assert slow.offsets("booking:b") == [1, 2]
    assert slow.offsets("booking:c") == []
    slow.session.resumed()
    assert slow.offsets("booking:b") == [1, 2, 3]
    assert slow.offsets("booking:c") == [1]


async def test_kept_values_leave_in_the_form_that_was_negotiated() -> None:
    house = House(deflate=True)
    house.access.let("booking:b", "ada")
    await house.realtime.start()
    transport = FakeTransport()
    transport.deflates = True
    session = house.realtime.open(transport)
    for method, params in (
        ("session.connect", {"token": "customer:ada"}),
        ("channel.subscribe", {"channel": "booking:b"}),
    ):
        session.received(orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).decode())
        await until(lambda: not session.busy)
    transport.writes.clear()
    session.paused()
    kept = await house.commit("booking:b", {"text": "x" * 200}, event_class=EventClass.LATEST, key="eta")
    await turn()
    assert transport.writes == []
    durable = await house.commit("booking:b", {"text": "y" * 200})
    later = await house.commit("booking:b", {"text": "z" * 200}, event_class=EventClass.LATEST, key="eta")
    await turn()
    session.resumed()
    frame = Deflater().frame
    assert transport.writes == [frame(kept.frame) + frame(durable.frame), frame(later.frame)]
    await house.realtime.stop()


async def test_a_revoked_channel_leaves_nothing_kept(house: House, slow: Client) -> None:
    await house.commit("booking:b", event_class=EventClass.LATEST, key="eta")
    await turn()
    await house.commit(CONTROL, {"channels": ["booking:b"], "user_ids": ["ada"]}, event_type="access.revoked")
    slow.session.resumed()
    assert slow.transport.events == []


async def test_a_socket_that_cannot_take_durable_events_is_closed(house: House, slow: Client) -> None:
    slow.transport.buffered = 9_900
    await house.commit("booking:b", {"text": "x" * 200})
    await turn()
    assert slow.closed_with == 4003
    assert slow.transport.writes == []
    await house.commit("booking:b")
    await turn()
    assert slow.transport.writes == []


async def test_kept_values_count_as_buffered(house: House, slow: Client) -> None:
    for n in range(60):
        await house.commit("booking:b", {"text": "x" * 100}, event_class=EventClass.LATEST, key=f"k{n}")
    await turn()
    assert slow.closed_with == 4003


async def test_replies_that_nobody_reads_close_too(house: House, slow: Client) -> None:
    slow.transport.buffered = 9_990
    slow.send("test.echo", {}, 1)
    await until(lambda: slow.closed_with is not None)
    assert slow.closed_with == 4003


# The end


async def test_signing_out_closes_the_socket(house: House) -> None:
    client = Client(house)
    await client.connect()
    await house.commit(CONTROL, {"session_ids": ["sign-in-ada"], "user_ids": []}, event_type="session.revoked")
    assert client.closed_with == 4503
    await until(lambda: house.connections.heard == [("opened", "ada"), ("closed", "ada")])


async def test_a_lost_session_leaves_nothing_behind(house: House) -> None:
    house.access.let("booking:b", "ada")
    client = Client(house)
    await client.connect()
    await client.subscribe("booking:b")
    client.session.lost()
    client.session.lost()
    assert set(house.realtime.hub.held_channels()) == {CONTROL}
    assert house.realtime.sockets == 0
    assert house.realtime.hub.roster.sessions_of("ada") == ()
    client.session.received('{"jsonrpc":"2.0","id":9,"method":"test.echo"}')
    await turn()
    assert house.desk.executed == []
    await until(lambda: house.connections.heard == [("opened", "ada"), ("closed", "ada")])


async def test_a_client_that_goes_while_it_is_let_in_leaves_nothing_behind(house: House) -> None:
    client = Client(house)
    house.doorman.before_answer = client.session.lost
    client.send("session.connect", {"token": "customer:ada"}, 1)
    await until(lambda: not client.session.busy)
    assert set(house.realtime.hub.held_channels()) == {CONTROL}
    assert house.connections.heard == []


async def test_a_client_that_goes_while_its_channels_open_leaves_nothing_behind(house: House) -> None:
    client = Client(house)
    house.log.append("provider:p1")
    house.log.before_read = client.session.lost
    resume = {"provider:p1": {"epoch": "e1", "offset": 0}}
    client.send("session.connect", {"token": "provider:bob:p1", "resume": resume}, 1)
    await until(lambda: house.connections.heard == [("opened", "bob"), ("closed", "bob")])
    assert set(house.realtime.hub.held_channels()) == {CONTROL}


# Time


async def test_no_connect_in_time_closes(house: House, seconds: Seconds) -> None:
    client = Client(house)
    seconds.now += 9.9
    assert client.session.due(seconds.now) == pytest.approx(1010.0)
    seconds.now += 0.2
    assert client.session.due(seconds.now) is None
    assert client.closed_with == 4502


async def test_frames_of_a_stranger_do_not_move_the_deadline(house: House, seconds: Seconds) -> None:
    client = Client(house)
    for _ in range(11):
        seconds.now += 1
        client.send("pong")
    client.session.due(seconds.now)
    assert client.closed_with == 4502


async def test_pings_come_and_silence_ends_the_session(house: House, seconds: Seconds) -> None:
    client = Client(house)
    await client.connect()
    client.transport.writes.clear()
    seconds.now += 28
    client.session.due(seconds.now)
    assert client.transport.messages == [{"jsonrpc": "2.0", "method": "ping"}]
    client.send("pong")
    seconds.now += 34.9
    client.session.due(seconds.now)
    assert client.closed_with is None
    seconds.now += 0.2
    client.session.due(seconds.now)
    assert client.closed_with == 4005


async def test_an_ending_token_is_announced_once_and_then_ends_the_session(house: House, seconds: Seconds) -> None:
    client = Client(house)
    await client.connect("customer:ada;100")
    client.transport.writes.clear()

    def pass_by(span: float) -> None:
        seconds.now += span
        house.clock.moment += timedelta(seconds=span)
        client.send("pong")
        client.session.due(seconds.now)

    pass_by(51)
    pass_by(20)
    notices = [message for message in client.transport.messages if message["method"] == "session.expiring"]
    assert notices == [
        {"jsonrpc": "2.0", "method": "session.expiring", "params": {"expires_in_seconds": 49}},
    ]
    pass_by(30)
    pass_by(23)
    assert client.closed_with is None
    pass_by(2)
    assert client.closed_with == 4002


async def test_its_descriptor_is_there_only_while_it_may_be_written_to(house: House) -> None:
    transport = FakeTransport()
    transport.fd = 7
    session = house.realtime.open(transport)
    seen = [session.fd]
    for step in (session.paused, session.resumed, lambda: session.close(CloseCode.DRAIN), session.resumed):
        step()
        seen.append(session.fd)
    assert seen == [7, -1, 7, -1, -1]
