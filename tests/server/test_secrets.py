"""Settings, credentials and flags from AWS Secrets Manager, against moto's server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest

from domain.errors import Unavailable
from domain.identity import Role
from domain.types import JSON
from persistence.database import Database, DatabaseOptions
from server.health import Degraded
from server.secrets import Secret, SecretReader, SecretUnreadable, SecretWatch, read_settings
from server.settings import Settings, SettingsError
from tests.channels.fakes import until
from tests.server.running import running
from tests.services import MariaDB, MotoServer

ID = "fixnado/test"


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    with MotoServer() as server:
        yield server


class Vault:
    """The secret as an operator changes it."""

    def __init__(self) -> None:
        self._client = boto3.client("secretsmanager")
        self._made = False

    def put(self, **shape: Any) -> None:
        self.put_text(json.dumps(shape))

    def put_text(self, text: str) -> None:
        if self._made:
            self._client.put_secret_value(SecretId=ID, SecretString=text)
        else:
            self._client.create_secret(Name=ID, SecretString=text)
        self._made = True

    def delete(self) -> None:
        if self._made:
            self._client.delete_secret(SecretId=ID, ForceDeleteWithoutRecovery=True)


@pytest.fixture
def vault(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    vault = Vault()
    yield vault
    vault.delete()


def reader() -> SecretReader:
    return SecretReader(ID, 1.0)


def test_the_secret_wins_over_the_environment_and_options_over_all(vault: Vault) -> None:
    vault.put(FIXNADO_PORT=9001, FIXNADO_DRAIN_SECONDS="1.5", somebody_elses="x", FIXNADO_HOST="")
    environ = {"FIXNADO_SECRETS_ID": ID, "FIXNADO_PORT": "7000", "FIXNADO_HOST": "10.0.0.1"}
    settings = Settings.load(environ, None, secrets=read_settings)
    assert (settings.port, settings.drain_seconds, settings.host) == (9001, 1.5, "10.0.0.1")
    assert Settings.load(environ, None, {"port": 1}, secrets=read_settings).port == 1
    assert Settings.load(environ, None).port == 7000, "no reader, no look"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "is not a JSON object"),
        ("no json", "is not a JSON object"),
        ('{"FIXNADO_PORT": {}}', "FIXNADO_PORT must be a string or a number"),
        ('{"flags": {"f": {"state": "maybe"}}}', "flags.f.state is not valid"),
    ],
)
def test_a_secret_that_means_nothing_stops_the_start_with_one_line(vault: Vault, text: str, why: str) -> None:
    vault.put_text(text)
    with pytest.raises(SettingsError) as error:
        Settings.load({"FIXNADO_SECRETS_ID": ID}, None, secrets=read_settings)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_or_wrong_setting_in_it_is_named_without_its_value(vault: Vault) -> None:
    for shape in ({"FIXNADO_PROT": "1"}, {"FIXNADO_DATABASE_URL": "mysql://u:hush@h/d"}):
        vault.put(**shape)
        with pytest.raises(SettingsError, match=next(iter(shape))) as error:
            Settings.load({"FIXNADO_SECRETS_ID": ID}, None, secrets=read_settings)
        assert "hush" not in str(error.value)


def test_a_secret_that_is_not_there_stops_the_start(vault: Vault) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_settings("fixnado/none")


async def test_changes_are_applied_once_and_what_fails_is_tried_again(vault: Vault) -> None:
    vault.put(FIXNADO_PORT="1")
    applied: list[Secret] = []
    failing: list[Exception] = []

    async def apply(secret: Secret) -> None:
        if failing:
            raise failing.pop()
        applied.append(secret)

    watch = SecretWatch(reader(), apply, 30)
    await watch.look()
    await watch.look()
    assert [secret.settings for secret in applied] == [{"FIXNADO_PORT": "1"}]
    vault.put(FIXNADO_PORT="2")
    failing.append(Unavailable("not yet"))
    await watch.look()
    with pytest.raises(Degraded, match="not yet"):
        await watch.check()
    await watch.look()
    await watch.check()
    assert [secret.settings["FIXNADO_PORT"] for secret in applied] == ["1", "2"]
    assert "FIXNADO_PORT" not in repr(applied[0])


async def test_while_aws_hangs_nothing_piles_up_and_readiness_says_so(
    vault: Vault, moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.put(FIXNADO_PORT="1")
    hanging = SecretReader(ID, 0.2)
    watch = SecretWatch(hanging, _nothing, 30)
    await watch.look()
    moto.pause()
    try:
        threads = threading.active_count()
        for _ in range(5):
            async with asyncio.timeout(2):
                await watch.look()
        assert threading.active_count() <= threads + 1
        with pytest.raises(Degraded, match="cannot be read"):
            await watch.check()
    finally:
        moto.resume()
    await until(lambda: not hanging._busy)
    await watch.look()
    await watch.check()
    hanging.close()


async def _nothing(_secret: Secret) -> None:
    """Applies nothing."""


async def test_a_reader_whose_last_call_hangs_refuses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    stuck = SecretReader(ID, 0.01)

    def read() -> Secret:
        gate.wait(5)
        raise SecretUnreadable("late")

    monkeypatch.setattr(stuck, "read", read)
    for why in ("no answer in time", "still hangs"):
        with pytest.raises(SecretUnreadable, match=why):
            await stuck.read_in_time()
    gate.set()
    await until(lambda: not stuck._busy)
    stuck.close()


# --- a running node ---------------------------------------------------------------------------------------------------


async def test_flags_of_the_secret_reach_clients_and_aws_away_is_degraded_but_ready(
    vault: Vault, moto: MotoServer, sqlite_url: str
) -> None:
    vault.put(flags={"new-map": {"state": "disabled"}})
    fast: JSON = {"secrets_id": ID, "secrets_poll_seconds": 0.1, "secrets_timeout_seconds": 0.2}
    async with running(sqlite_url, **fast) as server:
        await server.user("one@x.test", Role.CUSTOMER)
        async with await server.socket(await server.token("one@x.test")) as one:
            vault.put(flags={"new-map": {"state": "pilot", "percentage": 100}})
            assert (await one.hears("flag.updated"))["data"] == {"flag": "new-map", "on": True}
            moto.pause()
            try:
                watch = server.app.secret_watch
                assert watch is not None
                await until(lambda: watch.trouble is not None, 10)
                status, body = await server.get("/health/ready")
                assert (status, body["status"]) == (200, "ready")
                assert body["dependencies"]["secrets"]["status"] == "degraded"
                assert await one.call("flag.evaluate") == {"flags": {"new-map": True}}
            finally:
                moto.resume()


@pytest.fixture
def login(mariadb: MariaDB, mysql_url: str) -> Callable[[str], str]:
    """Makes a user of the test's database with this password; returns the URL."""
    database = mysql_url.rpartition("/")[2]
    made: list[str] = []

    def make(password: str) -> str:
        user = f"u{len(made)}_{database[-8:]}"
        made.append(user)
        return f"mysql+asyncmy://{user}:{password}@127.0.0.1:{mariadb.port}/{database}"

    return make


async def grant(mariadb: MariaDB, url: str) -> None:
    credentials, _, place = url.removeprefix("mysql+asyncmy://").partition("@")
    user, _, password = credentials.partition(":")
    await mariadb.execute(
        f"CREATE USER '{user}'@'127.0.0.1' IDENTIFIED BY '{password}'",
        f"GRANT ALL ON {place.rpartition('/')[2]}.* TO '{user}'@'127.0.0.1'",
    )


async def drop(mariadb: MariaDB, url: str) -> None:
    user = url.removeprefix("mysql+asyncmy://").partition(":")[0]
    await mariadb.execute(f"DROP USER '{user}'@'127.0.0.1'")


async def test_database_credentials_rotate_without_a_restart(
    vault: Vault, mariadb: MariaDB, login: Callable[[str], str]
) -> None:
    old, new = login("old-p4ss"), login("new-p4ss")
    await grant(mariadb, old)
    vault.put(FIXNADO_DATABASE_URL=old)
    fast: JSON = {"secrets_id": ID, "secrets_poll_seconds": 0.1, "secrets_timeout_seconds": 1}
    async with running(old, **fast) as server:
        await server.user("one@x.test", Role.CUSTOMER)
        token = await server.token("one@x.test")
        # Not there yet: the old ones stay, and readiness says why.
        vault.put(FIXNADO_DATABASE_URL=new)
        watch = server.app.secret_watch
        assert watch is not None
        await until(lambda: watch.trouble is not None, 10)
        assert (await server.get("/health/ready"))[1]["dependencies"]["secrets"] == {
            "status": "degraded",
            "why": "The database does not take the new credentials.",
        }
        assert (await server.rest(token, "service.list"))[0] == 200
        await grant(mariadb, new)
        user = new.removeprefix("mysql+asyncmy://").partition(":")[0]
        await until(lambda: server.app.database.url.username == user, 10)
        await drop(mariadb, old)
        for _ in range(20):
            assert (await server.rest(token, "service.list"))[0] == 200
        async with await server.socket(token) as socket:
            await socket.call("flag.evaluate")
        status, body = await server.get("/health/ready")
        assert (status, body["dependencies"]["secrets"]["status"]) == (200, "ok")
    await drop(mariadb, new)


async def test_a_rotation_replaces_connections_one_by_one_and_tears_no_work(
    mariadb: MariaDB, login: Callable[[str], str]
) -> None:
    old, new = login("old-p4ss"), login("new-p4ss")
    await grant(mariadb, old)
    await grant(mariadb, new)
    database = Database(old, DatabaseOptions(pool_size=2, tls="off"))
    try:
        entered, gate = asyncio.Event(), asyncio.Event()

        async def slow(connection: Any) -> str:
            entered.set()
            await gate.wait()
            return str((await connection.exec_driver_sql("SELECT CURRENT_USER()")).scalar_one())

        async def who(connection: Any) -> str:
            return str((await connection.exec_driver_sql("SELECT CURRENT_USER()")).scalar_one())

        running_work = asyncio.create_task(database.write(slow))
        await entered.wait()
        await database.rotate(new)
        gate.set()
        assert (await running_work).startswith("u0_"), "work finishes on what it holds"
        for once in (database.read, database.write):
            for _ in range(3):
                assert (await once(who)).startswith("u1_")
        with pytest.raises(Unavailable):
            await database.rotate(new.replace("new-p4ss", "wrong"))
        assert (await database.read(who)).startswith("u1_"), "what does not work is not taken"
        with pytest.raises(ValueError, match="only the user and the password"):
            await database.rotate(new + "_other")
    finally:
        await database.close()
        await drop(mariadb, old)
        await drop(mariadb, new)
