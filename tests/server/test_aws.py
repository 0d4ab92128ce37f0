"""Calls to AWS, against moto's server: keys, e-mail and text messages; and what happens while AWS is slow or away."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pyotp
import pytest

from domain.accounts import Login
from domain.errors import Unavailable
from domain.identity import Role
from domain.letters import Letter, LetterKind, Medium
from domain.second_factor import ActivateParams, EnrolParams, VerifyParams
from domain.types import JSON, Origin
from persistence.database import Database, DatabaseOptions
from persistence.migrate import upgrade
from persistence.vault import DatabaseVault, LocalMasterKey, MasterKeys
from server.app import Application, database_options
from server.aws import Aws, AwsOptions, Circuit, KmsMasterKey
from server.carriers import Route, SesMail, SnsText
from server.messengers import QueuedMessenger, RoutedPost
from server.settings import Settings
from server.telemetry import Metrics
from tests.channels.fakes import until
from tests.server.running import PASSWORD, running
from tests.services import Server, free_port

SENDER = "no-reply@fixnado.test"


class Moto(Server):
    """AWS, as far as moto knows it."""

    name = "moto"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        return b"200 OK" in self._ask(b"GET /moto-api/ HTTP/1.0\r\n\r\n")


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with Moto() as server:
        yield server


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the machine has, tests use these; and no metadata service is looked for."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def aws(moto: Moto, credentials: None) -> AsyncIterator[Aws]:
    aws = Aws(AwsOptions("eu-west-2", moto.url))
    yield aws
    aws.close()


@pytest.fixture
async def database(sqlite_url: str) -> AsyncIterator[Database]:
    options = DatabaseOptions(tls="off")
    await upgrade(sqlite_url, options)
    database = Database(sqlite_url, options)
    yield database
    await database.close()


async def new_key(aws: Aws) -> str:
    key: str = (await aws.call("kms", "create_key"))["KeyMetadata"]["KeyId"]
    return key


async def test_vault_is_opened_by_kms_and_not_without_it(aws: Aws, moto: Moto, database: Database) -> None:
    key_id = await new_key(aws)
    sealed = await DatabaseVault(database, KmsMasterKey(aws, key_id)).seal(b"secret", owner="ann", purpose="p")
    assert await DatabaseVault(database, KmsMasterKey(aws, key_id)).open(sealed, owner="ann", purpose="p") == b"secret"
    away = Aws(AwsOptions("eu-west-2", f"http://127.0.0.1:{free_port()}", connect_seconds=0.2, tries=1))
    with pytest.raises(Unavailable):
        await DatabaseVault(database, KmsMasterKey(away, key_id)).open(sealed, owner="ann", purpose="p")
    away.close()


async def test_data_key_is_bound_to_its_version_in_kms(aws: Aws) -> None:
    master = KmsMasterKey(aws, await new_key(aws))
    wrapped = await master.wrap(b"k" * 32, version=1)
    assert await master.unwrap(wrapped, master.name, version=1) == b"k" * 32
    with pytest.raises(Unavailable):
        await master.unwrap(wrapped, master.name, version=2)


async def test_moving_from_a_local_key_to_kms_keeps_old_secrets_readable(aws: Aws, database: Database) -> None:
    local = LocalMasterKey(b"l" * 32)
    sealed = await DatabaseVault(database, local).seal(b"secret", owner="ann", purpose="p")
    both = DatabaseVault(database, MasterKeys(KmsMasterKey(aws, await new_key(aws)), local))
    assert await both.open(sealed, owner="ann", purpose="p") == b"secret"
    await both.add_version()
    moved = await both.seal(b"secret", owner="ann", purpose="p")
    assert await both.open(moved, owner="ann", purpose="p") == b"secret"


async def test_letters_go_out_by_ses_and_sns(aws: Aws) -> None:
    await aws.call("ses", "verify_email_identity", EmailAddress=SENDER)
    metrics = Metrics()
    routes = {Medium.EMAIL: Route([SesMail(aws, SENDER)]), Medium.SMS: Route([SnsText(aws)])}
    messenger = QueuedMessenger(RoutedPost(routes), metrics)
    stop = asyncio.Event()
    worker = asyncio.ensure_future(messenger.run(stop))
    await messenger.send(Letter(LetterKind.CODE, Medium.EMAIL, "ann@example.test", "123456"))
    await messenger.send(Letter(LetterKind.CODE, Medium.SMS, "+447700900123", "654321"))
    posted = b'fixnado_letters_total{medium="%s",outcome="posted"} 1.0'
    await until(lambda: all(posted % medium in metrics.render() for medium in (b"email", b"sms")), 10)
    stop.set()
    await worker
    quota = await aws.call("ses", "get_send_quota")
    assert quota["SentLast24Hours"] >= 1


async def test_dead_service_is_given_up_quickly_and_then_at_once(credentials: None) -> None:
    options = AwsOptions(
        "eu-west-2", f"http://127.0.0.1:{free_port()}", connect_seconds=0.2, tries=2, failures_to_open=2
    )
    aws = Aws(options)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await aws.call("kms", "list_keys")
    started = time.monotonic()
    for _ in range(100):
        with pytest.raises(Unavailable):
            await aws.call("kms", "list_keys")
    assert time.monotonic() - started < 0.1, "nobody waits for what is known to be away"
    aws.close()


async def test_service_that_hangs_is_not_waited_for_and_the_line_is_bounded(credentials: None) -> None:
    # The kernel takes connections, and nobody ever answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await _ask_in_vain(silent.getsockname()[1])


async def _ask_in_vain(port: int) -> None:
    options = AwsOptions(
        "eu-west-2", f"http://127.0.0.1:{port}", read_seconds=4.0, tries=1, call_seconds=0.3, threads=1, waiting=2,
        failures_to_open=100,
    )  # fmt: skip
    aws = Aws(options)
    started = time.monotonic()
    outcomes = await asyncio.gather(*(aws.call("kms", "list_keys") for _ in range(50)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert time.monotonic() - started < 3.0
    aws.close()


async def test_refusal_does_not_open_the_circuit_and_its_words_stay_inside(
    aws: Aws, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        with pytest.raises(Unavailable) as caught:
            await aws.call("ses", "send_raw_email", RawMessage={"Data": b"canary"}, Destinations=["canary@x.test"])
        assert "canary" not in str(caught.value) + repr(caught.value.__cause__)
    assert "canary" not in caplog.text
    await aws.call("ses", "verify_email_identity", EmailAddress=SENDER)


async def test_server_does_not_start_without_its_master_key(credentials: None, sqlite_url: str) -> None:
    settings = Settings(
        database_url=sqlite_url,
        kms_key_id="alias/fixnado",
        aws_region="eu-west-2",
        aws_endpoint_url=f"http://127.0.0.1:{free_port()}",
    )
    await upgrade(sqlite_url, database_options(settings))
    app = Application(settings)
    with pytest.raises(Unavailable, match="master key"):
        await app.start()
    await app.stop()


async def test_without_kms_no_authenticator_code_lets_anybody_in_and_a_recovery_code_does(
    aws: Aws, moto: Moto, sqlite_url: str
) -> None:
    kms: dict[str, Any] = {"kms_key_id": await new_key(aws), "aws_region": "eu-west-2", "aws_endpoint_url": moto.url}
    async with running(sqlite_url, master_key=None, **kms) as server:
        await server.user("ann@kms.test", Role.CUSTOMER)
        signed_in, origin = await server.actor("ann@kms.test"), Origin("test", address="192.0.2.1")
        people = server.app.second_factor
        begun = await people.enrol(signed_in, EnrolParams(), origin)
        totp = pyotp.TOTP(begun["secret"])
        codes = (await people.activate(signed_in, ActivateParams(code=totp.now()), origin))["recovery_codes"]

        async def answer(code: str) -> JSON:
            login = await server.app.accounts.login(Login(email="ann@kms.test", password=PASSWORD), origin)
            assert login["methods"] == ["totp", "recovery"], "that it is asked for does not hang on KMS"
            return await people.verify(VerifyParams(challenge=login["challenge"], code=code), origin)

        moto.kill()
        try:
            # The default: what was opened for the enrolment has ended when KMS has been away for a second.
            await asyncio.sleep(server.app.settings.data_key_seconds)
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await answer(totp.at(time.time() + 30))
            assert "access_token" in await answer(codes[0])
        finally:
            moto.start()


def test_circuit_lets_one_through_after_each_pause() -> None:
    now = [0.0]
    circuit = Circuit(2, 10, clock=lambda: now[0])
    for _ in range(2):
        assert circuit.lets_through()
        circuit.note(well=False)
    assert not circuit.lets_through()
    now[0] = 10
    assert [circuit.lets_through() for _ in range(3)] == [True, False, False]
    circuit.note(well=False)
    now[0] = 20
    assert circuit.lets_through()
    circuit.note(well=True)
    assert all(circuit.lets_through() for _ in range(3))
