"""Events through a whole server to EventBridge and SQS, as far as moto knows them; and told again by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from domain.identity import Role
from domain.types import JSON
from server.aws import Aws, AwsOptions
from server.cli import cli
from server.settings import SettingsError
from tests.server.running import running
from tests.services import MotoServer

REGION = "eu-west-2"


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    with MotoServer() as server:
        yield server


class Cloud:
    """A FIFO queue, and a bus whose every event goes to another queue."""

    def __init__(self, moto: MotoServer) -> None:
        self.aws = Aws(AwsOptions(REGION, moto.url))
        self.fifo = self.behind_bus = ""

    async def make(self) -> None:
        fifo = {"FifoQueue": "true"}
        self.fifo = (await self.aws.call("sqs", "create_queue", QueueName="all.fifo", Attributes=fifo))["QueueUrl"]
        self.behind_bus = (await self.aws.call("sqs", "create_queue", QueueName="bus"))["QueueUrl"]
        await self.aws.call("events", "create_event_bus", Name="fixnado")
        pattern = orjson.dumps({"source": ["fixnado"]}).decode()
        await self.aws.call("events", "put_rule", Name="all", EventBusName="fixnado", EventPattern=pattern)
        target = {"Id": "1", "Arn": f"arn:aws:sqs:{REGION}:123456789012:bus"}
        await self.aws.call("events", "put_targets", Rule="all", EventBusName="fixnado", Targets=[target])

    async def received(self, queue: str, at_least: int) -> list[JSON]:
        """Messages with their attributes, once there are so many."""
        found: list[JSON] = []
        async with asyncio.timeout(15):
            while len(found) < at_least:
                answer = await self.aws.call(
                    "sqs", "receive_message", QueueUrl=queue, MaxNumberOfMessages=10, AttributeNames=["All"]
                )
                for message in answer.get("Messages", ()):
                    found.append({"body": orjson.loads(message["Body"]), "attributes": message["Attributes"]})
                    gone = {"QueueUrl": queue, "ReceiptHandle": message["ReceiptHandle"]}
                    await self.aws.call("sqs", "delete_message", **gone)
                await asyncio.sleep(0.02)
        return found


async def test_events_reach_the_queue_and_the_bus_and_can_be_told_again(
    sqlite_url: str, moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    cloud = Cloud(moto)
    await cloud.make()
    settings: dict[str, Any] = {"sqs_queue_url": cloud.fifo, "eventbridge_bus": "fixnado", "aws_region": REGION}
    async with running(sqlite_url, **settings) as server:
        person = await server.user("ann@x.test", Role.CUSTOMER)
        await server.user("ops@x.test", Role.OPERATIONS)
        ops = await server.token("ops@x.test")
        # The first look of a new target says where it begins.
        async with asyncio.timeout(10):
            while not all(it.leading for it in server.app.exporters):  # noqa: ASYNC110 — there is no event for it
                await asyncio.sleep(0.01)
        for number in range(12):
            notice = {"user_id": person, "category": "service", "title": f"N{number}", "text": "x", "key": f"k{number}"}
            status, _ = await server.rest(ops, "notification.send", **notice)
            assert status == 200
        messages = await cloud.received(cloud.fifo, 12)
        bus = await cloud.received(cloud.behind_bus, 12)
        async with server.http.get(f"{server.url}/metrics") as answer:
            told = await answer.text()
        assert 'fixnado_export_events_total{outcome="sent",target="sqs"} 12.0' in told
    titles = [message["body"]["data"]["notification"]["title"] for message in messages]
    assert sorted(titles) == sorted(f"N{number}" for number in range(12))
    for message in messages:
        body, attributes = message["body"], message["attributes"]
        assert (body["specversion"], body["type"]) == ("1.0", "notification.raised")
        assert attributes["MessageGroupId"] == body["source"]
        assert attributes["MessageDeduplicationId"] == body["id"]
    assert {event["body"]["detail-type"] for event in bus} == {"notification.raised"}
    assert sorted(event["body"]["detail"]["id"] for event in bus) == sorted(it["body"]["id"] for it in messages)

    environment = {"FIXNADO_DATABASE_URL": sqlite_url} | {
        f"FIXNADO_{name.upper()}": value for name, value in settings.items()
    }

    def run(words: list[str]) -> Any:
        return CliRunner().invoke(cli, words, env=environment)

    async def fixnado(*words: str) -> Any:
        # In a thread: the command has a loop of its own.
        return await asyncio.to_thread(run, ["events", "replay", *words])

    replay = ("--from", "2026-01-01T00:00Z", "--channel", f"user:{person}", "--type", "notification.raised")
    done = await fixnado(*replay, "--target", "eventbridge")
    assert "eventbridge: 12 events taken, 0 refused." in done.stdout, done.output
    again = await cloud.received(cloud.behind_bus, 12)
    assert {event["body"]["detail"]["id"] for event in again} == {message["body"]["id"] for message in messages}
    done = await fixnado("--dead-letters")
    assert "sqs: 0 events taken, 0 refused." in done.stdout, done.output
    wrong = await fixnado("--from", "yesterday")
    assert "is no time" in str(wrong.exception)
    cloud.aws.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dead-letters", "--channel", "booking:1"], "leave out --channel and --to"),
        (["--dead-letters", "--to", "2026-11-24T12:00Z"], "leave out --channel and --to"),
        (["--dead-letters", "--from", "2026-11-24T12:00Z"], "or --dead-letters"),
        (["--to", "2026-11-24T12:00Z"], "with --from"),
    ],
)
def test_replay_refuses_what_it_would_not_heed(words: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["events", "replay", *words])
    assert isinstance(done.exception, SettingsError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
