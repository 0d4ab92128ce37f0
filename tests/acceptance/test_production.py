"""The server on production's parts: MySQL over TLS and Redis; what readiness says of each kind of trouble with them."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncmy
import pytest

from tests.acceptance.client import CAMDEN, JSON, PASSWORD, Rest, new_key, signed_in
from tests.acceptance.demo import Demo, environment
from tests.acceptance.town import Town
from tests.certificates import SecuredMariaDB, make_certificates
from tests.processes import ROOT
from tests.redis_topologies import ENCODED_PASSWORD, ReplicaServer, SecuredRedis, say
from tests.services import MariaDB, RedisServer, free_port

NAME = "Zoë 👩🏽‍🔧 Øst 株式会社"
TEXT = "Das Leck 💧 ist im 2. Stock – 左のドア 🚪 \U0001f9f0"


@pytest.fixture(scope="module")
def secured() -> Iterator[SecuredMariaDB]:
    with SecuredMariaDB() as server:
        yield server


@pytest.fixture(scope="module")
def production(
    secured: SecuredMariaDB, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer
) -> Iterator[Demo]:
    directory = tmp_path_factory.mktemp("production")
    database = asyncio.run(secured.create_database())
    asyncio.run(secured.execute("SET GLOBAL require_secure_transport = ON"))
    settings: dict[str, Any] = {
        "database_url": secured.url(database).replace("127.0.0.1", "localhost"),
        "database_ca_file": secured.ca_file,
        "redis_url": redis_server.url,
        "linger_seconds": 1,
    }
    migrate = [sys.executable, "-m", "server", "migrate"]
    subprocess.run(migrate, check=True, cwd=directory, env=environment(**settings), timeout=60)
    with Demo(directory, **settings) as demo:
        yield demo


async def readiness(base: str) -> tuple[int, JSON]:
    async with Rest(base) as rest:
        answer = await rest.get("/health/ready")
        return answer.status, answer.body


async def broker_is(base: str, status: str, why: str = "", seconds: float = 15) -> JSON:
    """Readiness, once it says this of the broker, and why: a pattern.

    The first sign of trouble may not name its cause.
    """
    async with asyncio.timeout(seconds):
        while True:
            _, body = await readiness(base)
            broker = body["dependencies"]["broker"]
            if broker["status"] == status and re.search(why, broker.get("why", "")):
                return body
            await asyncio.sleep(0.05)


async def metrics(base: str) -> dict[str, float]:
    async with Rest(base) as rest:
        lines = (await rest.get("/metrics")).raw.decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


async def test_every_connection_to_the_database_is_encrypted(production: Demo, secured: SecuredMariaDB) -> None:
    assert await readiness(production.base) == (
        200,
        {
            "status": "ready",
            "dependencies": {name: {"status": "ok"} for name in ("database", "schema", "broker", "sequencing", "node")},
        },
    )
    # The fixture has told the server to insist, after which plain text is refused.
    with pytest.raises(asyncmy.errors.OperationalError):
        await secured.execute("SELECT 1")


async def test_text_of_every_plane_survives_the_whole_way(production: Demo) -> None:
    """Names, notes, addresses and messages with characters of four bytes: stored, sent live, and read again."""
    async with Rest(production.base) as rest, Town(production.base) as town:
        email = f"{new_key()}@example.test"
        body = {"email": email, "password": PASSWORD, "name": NAME, "role": "customer"}
        assert (await rest.post("/auth/register", body)).status == 201
        async with signed_in(production.base, email) as person:
            assert (await rest.get("/auth/me", token=(await rest.login(email))["access_token"])).body["user"][
                "name"
            ] == NAME
            wish = {
                "service_id": "plumbing",
                "kind": "on_demand",
                "location": CAMDEN | {"address": f"12 {NAME}"},
                "notes": TEXT,
                "key": new_key(),
            }
            booking = (await person.call("booking.create", wish))["booking"]
            assert (booking["notes"], booking["location"]["address"]) == (TEXT, f"12 {NAME}")
            offer = await town.providers[0].event("offer.made", booking_id=booking["id"])
            accept = {"offer_id": offer["data"]["offer_id"], "key": new_key()}
            await town.providers[0].call("offer.accept", accept)
            talk = f"conversation:{booking['id']}"
            await town.providers[0].call("channel.subscribe", {"channel": talk})
            said = {"conversation_id": booking["id"], "text": TEXT, "key": new_key()}
            sent = (await person.call("message.send", said))["message"]
            assert (sent["text"], sent["sender_name"]) == (TEXT, NAME)
            heard = await town.providers[0].event("message.sent", talk)
            assert heard["data"]["message"] == sent
            assert (await person.call("message.send", said))["message"] == sent
            history = await person.call("conversation.history", {"conversation_id": booking["id"]})
            assert history["messages"] == [sent]
            resumed = await person.call("channel.subscribe", {"channel": talk, "resume": {"epoch": "x", "offset": 0}})
            assert resumed["state"]["messages"] == [sent]


async def test_metrics_say_how_database_and_redis_are(production: Demo) -> None:
    seen = await metrics(production.base)
    assert seen['fixnado_event_path{state="ok"}'] == 1
    assert seen['fixnado_event_path{state="tailing"}'] == 0
    assert seen["fixnado_redis_up"] == 1
    assert seen["fixnado_nodes_heard"] == 1
    assert seen["fixnado_sequencer_leading"] == 1
    assert seen['fixnado_redis_commands_total{result="answered"}'] > 0
    assert seen['fixnado_redis_messages_total{result="heard"}'] > 0
    assert seen['fixnado_log_cache_channels_total{result="hit"}'] >= 0
    assert seen['fixnado_database_retries_total{trouble="deadlock"}'] >= 0
    assert 0 <= seen["fixnado_database_connections_in_use"] <= seen["fixnado_database_connections_most"] == 20
    assert seen["fixnado_timers_overdue"] >= 0
    assert seen["fixnado_outbox_parked_rows"] == 0


async def test_every_metric_that_operators_read_of_is_there(production: Demo) -> None:
    documents = [ROOT / "docs" / "operations.md", ROOT / "docs" / "promises.md"]
    told = {name for document in documents for name in re.findall(r"\bfixnado_[a-z_]+", document.read_text())}
    async with Rest(production.base) as rest:
        text = (await rest.get("/metrics")).raw.decode()
    assert told
    assert told <= set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


async def test_the_rights_in_the_documentation_are_enough(tmp_path: Path, mariadb: MariaDB) -> None:
    text = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    (sentence,) = re.findall(r"`migrate` needs (.+?); `serve` needs these four only", text)
    more, four = sentence.split(" beside ")
    rights = {"serve": words(four), "migrate": words(more) + words(four)}
    assert rights["serve"] == ["SELECT", "INSERT", "UPDATE", "DELETE"]
    name = await mariadb.create_database()
    for user, some in rights.items():
        grant = f"GRANT {', '.join(some)} ON {name}.* TO '{user}_{name}'@'%' IDENTIFIED BY 'pw'"
        await mariadb.execute(grant)

    def settings(user: str) -> dict[str, Any]:
        return {"database_url": mariadb.url(name).replace("root@", f"{user}_{name}:pw@"), "database_tls": "off"}

    migrate = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "migrate"), cwd=tmp_path, env=environment(**settings("migrate"))
    )
    assert await migrate.wait() == 0
    demo = Demo(tmp_path, **settings("serve"))
    async with serving(demo), Town(demo.base) as town:
        await town.assigned()


def words(text: str) -> list[str]:
    return re.findall(r"[A-Z]{3,}", text)


async def test_redis_that_went_is_degraded_and_the_node_stays_ready(
    start_demo: Callable[..., Demo], mysql_settings: Callable[[], dict[str, Any]]
) -> None:
    with RedisServer() as redis:
        settings = await asyncio.to_thread(mysql_settings)
        demo = await asyncio.to_thread(partial(start_demo, redis_url=redis.url, linger_seconds=1, **settings))
        await broker_is(demo.base, "ok")
        redis.kill()
        body = await broker_is(demo.base, "degraded", r"^tailing: .*Redis.+; events come from the database")
        assert body["status"] == "ready"
        seen = await metrics(demo.base)
        async with asyncio.timeout(10):
            while not seen['fixnado_event_path{state="tailing"}']:
                await asyncio.sleep(0.05)
                seen = await metrics(demo.base)
        assert seen["fixnado_redis_up"] == 0
        assert seen["fixnado_tailing_periods_total"] == 1
        async with Town(demo.base) as town:
            await town.assigned()

        redis.start()
        await broker_is(demo.base, "ok")

        # It turns into something that will never do: those who serve go on.
        assert say(redis.port, f"REPLICAOF 127.0.0.1 {free_port()}").startswith(b"+OK")
        body = await broker_is(demo.base, "degraded", "is a replica")
        assert body["status"] == "ready"
    assert "Traceback" not in demo.output()


@asynccontextmanager
async def serving(demo: Demo) -> AsyncIterator[Demo]:
    """Starts it and waits until it answers, ready or not."""
    try:
        await asyncio.to_thread(demo.start, "/health/live")
        yield demo
    finally:
        demo.kill()


WRONG_REDIS = {
    "replica": r"Redis at 127\.0\.0\.1:\d+ is a replica \(read-only\): give the address of its primary",
    "password": r"Redis at localhost:\d+ refuses the user name or the password",
    "authority": r"the certificate of Redis at localhost:\d+ is not accepted: .+",
    "cluster": r"Redis at 127\.0\.0\.1:\d+ is not part of a cluster: use redis://HOST:PORT",
}


@pytest.fixture
def wrong_redis(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis that will never do."""
    match request.param:
        case "replica":
            with ReplicaServer(redis_server) as replica:
                yield replica.url
        case "password" | "authority":
            make_certificates(tmp_path)
            with SecuredRedis() as redis:
                if request.param == "password":
                    yield redis.url.replace(ENCODED_PASSWORD, "hidden-secret")
                else:
                    yield redis.url.replace(str(redis.ca_file), str(tmp_path / "ca.pem"))
        case "cluster":
            yield redis_server.url.replace("redis://", "redis+cluster://").removesuffix("/0")


@pytest.mark.parametrize("wrong_redis", list(WRONG_REDIS), indirect=True)
async def test_a_redis_that_will_never_do_is_red_by_name(
    wrong_redis: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    demo = Demo(tmp_path, command="serve", redis_url=wrong_redis)
    async with serving(demo):
        async with asyncio.timeout(15):
            while True:
                status, body = await readiness(demo.base)
                if "has not ended" not in body["dependencies"]["broker"].get("why", ""):
                    break
                assert status == 503
                await asyncio.sleep(0.05)
        expected = WRONG_REDIS[request.node.callspec.params["wrong_redis"]]
        assert status == 503
        assert body["status"] == "not_ready"
        assert body["dependencies"]["broker"]["status"] == "failing"
        assert re.fullmatch(expected, body["dependencies"]["broker"]["why"])
        assert all(body["dependencies"][name] == {"status": "ok"} for name in ("database", "schema"))
    assert "Traceback" not in demo.output()
    assert "hidden-secret" not in demo.output()


async def test_an_unreachable_redis_is_degraded_from_the_start(tmp_path: Path) -> None:
    port = free_port()
    demo = Demo(tmp_path, command="serve", redis_url=f"redis://:hidden-secret@127.0.0.1:{port}/0")
    async with serving(demo):
        body = await broker_is(demo.base, "degraded")
        assert body["status"] == "ready"
        assert f"Redis at 127.0.0.1:{port} is away" in body["dependencies"]["broker"]["why"]
    assert "Traceback" not in demo.output()
    assert "hidden-secret" not in demo.output()


async def test_a_redis_without_the_tls_that_is_asked_for_is_named(tmp_path: Path, redis_server: RedisServer) -> None:
    demo = Demo(tmp_path, command="serve", redis_url=redis_server.url.replace("redis://", "rediss://"))
    async with serving(demo):
        async with asyncio.timeout(15):
            why = ""
            while "one without TLS never will" not in why:
                await asyncio.sleep(0.05)
                why = (await readiness(demo.base))[1]["dependencies"]["broker"].get("why", "")
    assert "Traceback" not in demo.output()


async def test_a_database_that_went_is_red_by_name_and_comes_back(start_demo: Callable[..., Demo]) -> None:
    with MariaDB() as mariadb:
        url = mariadb.url(await mariadb.create_database())
        settings = {"database_url": url, "database_tls": "off", "database_timeout_seconds": 1}
        migrate = (sys.executable, "-m", "server", "migrate")
        await (await asyncio.create_subprocess_exec(*migrate, env=environment(**settings))).wait()
        demo = await asyncio.to_thread(partial(start_demo, **settings))
        mariadb.kill()
        status, body = await readiness(demo.base)
        assert (status, body["status"]) == (503, "not_ready")
        assert body["dependencies"]["database"] == {
            "status": "failing",
            "why": f"MySQL at 127.0.0.1:{mariadb.port} does not answer; "
            "FIXNADO_DATABASE_URL says where it is looked for",
        }
        assert body["dependencies"]["broker"] == {"status": "ok"}
        mariadb.start()
        async with asyncio.timeout(15):
            while (await readiness(demo.base))[0] != 200:  # noqa: ASYNC110 — another process tells nobody
                await asyncio.sleep(0.1)
