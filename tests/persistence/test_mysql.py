"""MySQL as production has it: over TLS, with bounds that the server keeps too, and migrated by several nodes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncmy.errors import OperationalError
from cryptography import x509
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import Unavailable
from persistence.database import Database, DatabaseOptions
from persistence.diagnosis import Fault, explain, fault_of
from persistence.migrate import current, newest, upgrade
from tests.acceptance.demo import environment
from tests.certificates import SecuredMariaDB, make_certificates
from tests.persistence.conftest import OPTIONS
from tests.services import MariaDB, free_port


@pytest.fixture(scope="module")
def secured() -> Iterator[SecuredMariaDB]:
    with SecuredMariaDB() as server:
        yield server


async def refusal(url: str, **options: Any) -> Unavailable:
    """How a ping fails."""
    database = Database(url, DatabaseOptions(**options))
    try:
        with pytest.raises(Unavailable) as caught:
            await database.ping(5)
    finally:
        await database.close()
    return caught.value


async def cipher(database: Database) -> str:
    async def work(connection: AsyncConnection) -> str:
        return str((await connection.execute(text("SHOW SESSION STATUS LIKE 'Ssl_cipher'"))).one()[1])

    written, read = await database.write(work), await database.read(work)
    assert written == read
    return written


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_connection_is_encrypted_when_the_certificate_is_good(secured: SecuredMariaDB, host: str) -> None:
    url = secured.url("mysql").replace("127.0.0.1", host)
    database = Database(url, DatabaseOptions(tls_ca_file=secured.ca_file))
    assert (await cipher(database)).startswith(("TLS_", "ECDHE"))
    await database.close()


async def test_an_authority_that_is_not_trusted_is_refused(secured: SecuredMariaDB, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    url = secured.url("mysql")
    for options in ({}, {"tls_ca_file": tmp_path / "ca.pem"}):
        error = await refusal(url, **options)
        assert fault_of(error) is Fault.CERTIFICATE
        line = explain(error, make_url(url))
        assert line.startswith(f"the certificate of MySQL at 127.0.0.1:{secured.port} is not accepted: ")
        assert "certificate" in line.rpartition(":")[2] or "signature" in line


async def test_a_certificate_for_another_host_is_refused() -> None:
    with SecuredMariaDB([x509.DNSName("elsewhere.example")]) as server:
        error = await refusal(server.url("mysql"), tls_ca_file=server.ca_file)
        assert fault_of(error) is Fault.CERTIFICATE
        assert "not valid for '127.0.0.1'" in explain(error, make_url(server.url("mysql")))


async def test_a_server_without_tls_is_refused_and_nothing_is_sent_in_plain_text(mysql_url: str) -> None:
    error = await refusal(mysql_url)
    assert fault_of(error) is Fault.PLAINTEXT
    where = make_url(mysql_url)
    assert explain(error, where) == f"MySQL at 127.0.0.1:{where.port} offers no TLS, which is required"


async def test_plain_text_has_to_be_asked_for_by_name(secured: SecuredMariaDB) -> None:
    database = Database(secured.url("mysql"), DatabaseOptions(tls="off"))
    assert await cipher(database) == ""
    await database.close()


async def test_a_server_that_insists_on_tls_gets_it() -> None:
    with SecuredMariaDB(insists=True) as server:
        # MariaDB calls it a wrong password, MySQL by its name.
        assert fault_of(await refusal(server.url("mysql"), tls="off")) is Fault.CREDENTIALS
        told_by_mysql = explain(OperationalError(3159, "Connections using insecure transport"), make_url("mysql://h/d"))
        assert told_by_mysql == "MySQL at h:3306 takes encrypted connections only"
        database = Database(server.url("mysql"), DatabaseOptions(tls_ca_file=server.ca_file))
        assert await cipher(database)
        await database.close()


# --- what else may be wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"username": "stranger", "password": "hidden-secret"}, "refuses 'stranger': a wrong password, or no right to"),
        ({"database": "nowhere"}, "has no database 'nowhere'"),
        ({"host": "no.such.host.invalid"}, "the name 'no.such.host.invalid' of the database's host cannot be resolved"),
        ({"port": None}, "does not answer"),
    ],
)
async def test_what_is_wrong_is_one_line_without_secrets(mysql_url: str, change: dict[str, Any], expected: str) -> None:
    url = make_url(mysql_url).set(**({"port": free_port()} if "port" in change else change))
    line = explain(await refusal(url.render_as_string(hide_password=False), tls="off"), url)
    assert expected in line
    assert "hidden-secret" not in line
    assert "\n" not in line


async def test_something_that_is_no_mysql_is_told_apart() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    stranger = await asyncio.start_server(greet, "127.0.0.1", 0)
    url = f"mysql+asyncmy://root@127.0.0.1:{stranger.sockets[0].getsockname()[1]}/fixnado"
    line = explain(await refusal(url, tls="off"), make_url(url))
    assert line == f"what answers at 127.0.0.1:{make_url(url).port} is not MySQL"
    stranger.close()
    await stranger.wait_closed()


BROKEN_GREETINGS = {
    "nothing": b"",
    "half a header": b"\x05",
    "no version": b"\x01\x00\x00\x00\x0a",
    "half a version": b"\x04\x00\x00\x00\x0a5.5",
    "no salt": b"\x0d\x00\x00\x00\x0a8.0.40\x00\x05\x00\x00\x00",
    "half an error": b"\x03\x00\x00\x00\xff\x15\x04",
    "another protocol": b"\x02\x00\x00\x00\x09x",
}


@pytest.mark.parametrize("greeting", BROKEN_GREETINGS.values(), ids=BROKEN_GREETINGS)
async def test_a_greeting_that_the_driver_trips_over_is_unavailable(greeting: bytes) -> None:
    """A server that is just dying, or a balancer without one; asyncmy raises whatever Python does at such bytes."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        writer.close()

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT 1"))

    dying = await asyncio.start_server(greet, "127.0.0.1", 0)
    url = f"mysql+asyncmy://root@127.0.0.1:{dying.sockets[0].getsockname()[1]}/fixnado"
    database = Database(url, OPTIONS)
    for attempt in (database.read(work), database.write(work), database.ping(), upgrade(url, OPTIONS)):
        with pytest.raises(Unavailable):
            await attempt
    await database.close()
    dying.close()
    await dying.wait_closed()


# --- bounds -----------------------------------------------------------------------------------------------------------


async def running(watcher: Database, marker: str) -> int:
    """Statements with this marker that the server is at."""

    async def work(connection: AsyncConnection) -> int:
        query = text(
            "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE :pattern AND id <> connection_id()"
        )
        return int((await connection.execute(query, {"pattern": f"%{marker}%"})).scalar_one())

    return await watcher.read(work)


@pytest.mark.parametrize("verb", ["read", "write"])
async def test_the_server_ends_a_statement_whose_caller_has_given_up(mysql: Database, verb: str) -> None:
    impatient = Database(
        mysql.url, DatabaseOptions(tls="off", transaction_timeout_seconds=0.5, statement_timeout_seconds=1.0)
    )
    marker = f"given up on {verb}"

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(text(f"SELECT SLEEP(50) /* {marker} */"))

    began = time.monotonic()
    with pytest.raises(Unavailable):
        await getattr(impatient, verb)(work)
    assert time.monotonic() - began < 3
    # Cancelling on this side leaves it running there: that is what the bound is for.
    async with asyncio.timeout(5):
        while await running(mysql, marker):  # noqa: ASYNC110 — the server tells nobody
            await asyncio.sleep(0.05)
    assert impatient.in_use == 0
    await impatient.close()


async def test_a_statement_that_the_server_ended_is_unavailable_and_not_retried(mysql_url: str) -> None:
    slow = Database(mysql_url, DatabaseOptions(tls="off", statement_timeout_seconds=0.3))
    attempts = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await connection.execute(text("SELECT SLEEP(50)"))

    with pytest.raises(Unavailable):
        await slow.write(work)
    assert attempts == 1
    assert slow.retries == {}
    await slow.ping(5)
    await slow.close()


async def test_a_migration_is_not_bounded(mysql: Database) -> None:
    async def limits(connection: AsyncConnection) -> tuple[float, float]:
        asked = text("SELECT @@max_statement_time, @@idle_transaction_timeout")
        statement, idle = (await connection.execute(asked)).one()
        return float(statement), float(idle)

    assert await mysql.read(limits) == (8.0, 8.0)
    unbounded = Database(mysql.url, DatabaseOptions(tls="off", statement_timeout_seconds=None))
    assert await unbounded.read(limits) == (0.0, 0.0)
    await unbounded.close()


# --- several nodes ----------------------------------------------------------------------------------------------------


async def test_many_processes_that_migrate_at_once_apply_each_step_once(mariadb: MariaDB, tmp_path: Path) -> None:
    url = mariadb.url(await mariadb.create_database())

    async def migrate() -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "migrate"),
            cwd=tmp_path,
            env=environment(database_url=url, database_tls="off"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    outputs = await asyncio.gather(*(migrate() for _ in range(4)))
    applied = [line for output in outputs for line in output.splitlines() if "applied" in line and line[:2] == "  "]
    assert len(applied) == len(set(applied)) > 0
    assert sum("The schema is up to date." in output for output in outputs) == 3
    database = Database(url, OPTIONS)
    assert await current(database) == newest()
    await database.close()
