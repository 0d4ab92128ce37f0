from __future__ import annotations

import asyncio
import json
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from server import specs
from server.demo import MASTER_KEY
from server.settings import Settings
from tests.acceptance.client import ADMIN, CUSTOMER, PASSWORD, Rest, Socket, signed_in
from tests.acceptance.demo import Demo
from tests.server.command_line import CommandLine, Done, process
from tests.services import MariaDB, free_port

NEW_PASSWORD = "correct-horse-battery"


def the_line(done: Done) -> str:
    """The one line of a command that failed."""
    assert done.returncode == 1, done
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("fixnado: ")
    return lines[0].removeprefix("fixnado: ")


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_lists_every_setting(tmp_path: Path) -> None:
    done = process(tmp_path, "settings")
    assert done.returncode == 0
    for row in Settings.describe():
        assert re.search(rf"\b{row.name}\b", done.stdout), row.name
    assert "sqlite+aiosqlite:///var/fixnado.db" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        ((), {"port": "x"}, "FIXNADO_PORT='x': must be a whole number from 0 to 65535"),
        (("--port", "99999"), {}, "FIXNADO_PORT='99999': must be a whole number from 0 to 65535"),
        ((), {"prot": "1"}, "FIXNADO_PROT: there is no such setting; did you mean FIXNADO_PORT?"),
        (("--workers", "2"), {}, "FIXNADO_WORKERS=2: more than one process needs FIXNADO_REDIS_URL"),
        (
            ("--port", "0"),
            {"database_url": "mysql+asyncmy://root@127.0.0.1:1/fixnado"},
            "FIXNADO_MASTER_KEY or FIXNADO_KMS_KEY_ID must be set, the same on every node",
        ),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    fixnado: CommandLine, tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], expected: str
) -> None:
    assert the_line(fixnado("serve", *arguments, **settings)).startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_said(fixnado: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = the_line(fixnado("serve", "--port", str(port)))
    assert line == f"cannot listen on 127.0.0.1:{port}: Address already in use. Choose another with --port."


# --- the database -----------------------------------------------------------------------------------------------------


def assert_away(done: Done) -> None:
    line = r"MySQL at 127\.0\.0\.1:\d+ does not answer; FIXNADO_DATABASE_URL says where it is looked for"
    assert re.fullmatch(line, the_line(done))
    assert "hidden-secret" not in done.stdout + done.stderr


def away() -> dict[str, Any]:
    return {
        "database_url": f"mysql+asyncmy://root:hidden-secret@127.0.0.1:{free_port()}/fixnado",
        "database_tls": "off",
        "database_timeout_seconds": 0.5,
        "master_key": MASTER_KEY,
    }


@pytest.mark.parametrize("command", [("migrate",), ("user", "add", "a@b.test", "--role=admin")])
def test_a_database_that_is_away_is_said_and_its_password_is_not(
    fixnado: CommandLine, command: tuple[str, ...]
) -> None:
    assert_away(fixnado(*command, new_user_password=NEW_PASSWORD, **away()))


def test_a_server_without_its_database_does_not_start(tmp_path: Path) -> None:
    assert_away(process(tmp_path, "serve", "--port", "0", **away()))


def test_a_database_file_that_cannot_be_is_said(fixnado: CommandLine) -> None:
    done = fixnado("migrate", database_url="sqlite+aiosqlite:////proc/nowhere/fixnado.db")
    assert "/proc/nowhere" in the_line(done)


@pytest.mark.parametrize("arguments", [("serve",), ("serve", "--workers", "2")])
def test_a_file_that_is_no_database_is_said_in_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """In a process of its own: what is left of the driver speaks up when the interpreter ends."""
    (tmp_path / "broken.db").write_bytes(b"not a database" * 600)
    settings = {"redis_url": "redis://127.0.0.1:1", "port": 0, "database_url": "sqlite+aiosqlite:///broken.db"}
    done = process(tmp_path, *arguments, **settings)
    assert the_line(done) == "the database file broken.db cannot be used: file is not a database"
    assert "Traceback" not in done.stderr


def test_mysql_without_tls_is_said_with_the_setting_that_allows_it(fixnado: CommandLine, mariadb: MariaDB) -> None:
    line = the_line(fixnado("migrate", database_url=mariadb.url("mysql")))
    assert line == (
        f"MySQL at 127.0.0.1:{mariadb.port} offers no TLS, which is required; "
        "FIXNADO_DATABASE_TLS=off would allow plain text"
    )


def test_a_user_of_the_database_who_may_not_migrate_is_said(fixnado: CommandLine, mariadb: MariaDB) -> None:
    name = asyncio.run(mariadb.create_database())
    grant = f"GRANT SELECT ON {name}.* TO 'reader'@'%' IDENTIFIED BY 'hidden-secret'"
    asyncio.run(mariadb.execute(grant))
    url = mariadb.url(name).replace("root@", "reader:hidden-secret@")
    done = fixnado("migrate", database_url=url, database_tls="off")
    assert "refuses 'reader': a wrong password, or no right to the database" in the_line(done)
    assert "hidden-secret" not in done.stdout + done.stderr


def test_a_certificate_file_without_a_certificate_is_said(fixnado: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    line = the_line(fixnado("migrate", database_ca_file="ca.pem"))
    assert line == "FIXNADO_DATABASE_CA_FILE='ca.pem': must be the path of a readable PEM file with a certificate"


def test_a_schema_that_is_not_there_is_said(tmp_path: Path, mariadb: MariaDB) -> None:
    url = mariadb.url(asyncio.run(mariadb.create_database()))
    line = the_line(
        process(tmp_path, "serve", "--port", "0", database_url=url, database_tls="off", master_key=MASTER_KEY)
    )
    assert line == "The database schema is not up to date: run `fixnado migrate`."


def test_migrate_and_user_add(fixnado: CommandLine) -> None:
    def add(email: str, role: str, password: str = NEW_PASSWORD) -> Done:
        return fixnado("user", "add", email, "--role", role, new_user_password=password)

    assert the_line(add("ops@firm.test", "operations")).endswith("run `fixnado migrate`.")
    assert fixnado("migrate").returncode == 0
    again = fixnado("migrate")
    assert (again.returncode, again.stdout.strip()) == (0, "The schema is up to date.")

    done = add(" Ops@Firm.test ", "operations")
    assert done.returncode == 0, done
    assert re.fullmatch(r"Added ops@firm\.test as operations: [0-9A-Z]{26}\n", done.stdout)
    assert NEW_PASSWORD not in done.stdout + done.stderr
    assert the_line(add("ops@firm.test", "admin")) == "This e-mail address is already registered."
    assert the_line(add("nonsense", "admin")) == "nonsense is no e-mail address"
    assert the_line(add("b@firm.test", "admin", "short")) == "a password has 12 to 128 characters"
    role = add("b@firm.test", "king")
    assert role.returncode == 2
    assert "king" in role.stderr


def test_zones_are_imported_from_a_file_or_the_unfit_ones_are_named(fixnado: CommandLine, tmp_path: Path) -> None:
    assert fixnado("migrate").returncode == 0

    def feature(zone_id: str, west: float, *, closed: bool = True) -> dict[str, Any]:
        ring = [[west, 0], [west + 1, 0], [west + 1, 1], [west, 1], *([[west, 0]] if closed else [])]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        return {"type": "Feature", "id": zone_id, "properties": {"name": zone_id.title()}, "geometry": geometry}

    def imported(*features: dict[str, Any], file: str = "zones.geojson") -> Done:
        (tmp_path / file).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return fixnado("zones", "import", file)

    done = imported(feature("west", 0), feature("east", 1))
    assert (done.returncode, done.stdout) == (0, "2 zones created, 0 updated, 0 unchanged.\n")
    assert imported(feature("west", 0), feature("east", 1)).stdout == "0 zones created, 0 updated, 2 unchanged.\n"
    done = imported(feature("north", 10), feature("open", 20, closed=False), feature("west", 0.5))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "fixnado: nothing was imported from zones.geojson",
        "  features.1: Open: ring 0 must end where it begins",
    ]
    done = imported(feature("north", 10), feature("west", 0.5))
    assert done.stderr.strip().splitlines()[1].startswith("  features.1: West: overlaps the zone east by ")
    (tmp_path / "zones.geojson").write_text("{")
    assert "is not JSON" in fixnado("zones", "import", "zones.geojson").stderr
    with closing(sqlite3.connect(tmp_path / "var" / "fixnado.db")) as connection:
        assert connection.execute("SELECT id, version FROM zones ORDER BY id").fetchall() == [("east", 1), ("west", 1)]


def test_a_schema_of_a_newer_version_is_said(fixnado: CommandLine, tmp_path: Path) -> None:
    assert fixnado("migrate").returncode == 0
    with closing(sqlite3.connect(tmp_path / "var" / "fixnado.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "schema" in the_line(fixnado("migrate"))


def test_migrate_says_what_it_applies_and_nothing_else(fixnado: CommandLine, mariadb: MariaDB) -> None:
    url = mariadb.url(asyncio.run(mariadb.create_database()))
    done = fixnado("migrate", database_url=url, database_tls="off")
    assert (done.returncode, done.stderr) == (0, "")
    *applied, summary = done.stdout.splitlines()
    assert [re.fullmatch(r"  applied \d{4} \w.*", line) is not None for line in applied] == [True] * len(applied)
    assert summary == f"Done: {len(applied)} applied."


def test_epochs_are_renewed_only_when_every_node_is_stopped(fixnado: CommandLine, tmp_path: Path) -> None:
    def epochs() -> dict[str, str]:
        with closing(sqlite3.connect(tmp_path / "var" / "fixnado.db")) as connection:
            return dict(connection.execute("SELECT channel, epoch FROM channel_heads").fetchall())

    def change(statement: str) -> None:
        with closing(sqlite3.connect(tmp_path / "var" / "fixnado.db")) as connection, connection:
            connection.execute(statement)

    assert the_line(fixnado("epochs", "renew", "--yes")).endswith("run `fixnado migrate`.")
    assert fixnado("migrate").returncode == 0
    change("INSERT INTO channel_heads (channel, epoch, offset, floor) VALUES ('user:1', 'old', 7, 0)")
    change("INSERT INTO leases VALUES ('sequencer/0', 'node-a', 3, '2999-01-01 00:00:00.000000')")
    line = the_line(fixnado("epochs", "renew", "--yes"))
    assert line == "a node still runs (node-a): stop every node first"
    assert epochs() == {"user:1": "old"}
    change("UPDATE leases SET expires_at = '2020-01-01 00:00:00.000000'")
    done = fixnado("epochs", "renew", "--yes")
    assert (done.returncode, done.stdout.strip()) == (0, "Done: 1 channels have new epochs. Nodes may start.")
    assert epochs()["user:1"] != "old"


def test_epochs_are_not_renewed_without_a_yes(tmp_path: Path) -> None:
    done = process(tmp_path, "epochs", "renew")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


# --- a running demo ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with Demo(tmp_path_factory.mktemp("lively"), ("--traffic", "120")) as demo:
        yield demo


async def test_demo_traffic_makes_the_feed_live(lively: Demo) -> None:
    async with signed_in(lively.base, ADMIN) as admin:
        await admin.until(lambda: count(admin, "booking.created") >= 3, 20)
        await admin.event("offer.accepted", seconds=20)
        await admin.event("booking.en_route", seconds=20)
        assert count(admin, "offer.made") >= 3
    banner = lively.output()
    assert f"{lively.base}/" in banner
    assert "120 bookings a minute" in banner
    assert all(email in banner for email in (ADMIN, CUSTOMER, PASSWORD))


def count(socket: Socket, type_: str) -> int:
    return sum(event["type"] == type_ for event in socket.events)


def test_watch_shows_the_feed(lively: Demo) -> None:
    done = process(lively.directory, "watch", "--url", lively.base, "--events", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Fixnado live feed" in done.stdout
    assert len(re.findall(r"\d\d:\d\d:\d\d\.\d{3} +│ (?:booking|offer)\.[a-z_]+", done.stdout)) >= 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--email", CUSTOMER), f"not_found: {CUSTOMER} may not see the live feed; use an operations account"),
        (("--password", "wrong"), "invalid_credentials: The e-mail address or the password is not right."),
        (("--url", "http://127.0.0.1:1"), "unreachable: http://127.0.0.1:1/auth/login: "),
        (("--url", "nonsense"), "unreachable: nonsense/auth/login is no web address"),
    ],
)
def test_watch_says_why_it_cannot(fixnado: CommandLine, lively: Demo, options: tuple[str, ...], expected: str) -> None:
    arguments = options if "--url" in options else ("--url", lively.base, *options)
    assert the_line(fixnado("watch", *arguments)).startswith(expected)


async def test_an_operations_account_from_the_command_line_sees_the_feed(lively: Demo) -> None:
    done = await asyncio.to_thread(
        process,
        lively.directory,
        *("user", "add", "ops@firm.test", "--role", "operations", "--name", "Olu Ops"),
        **lively.settings | {"new_user_password": NEW_PASSWORD},
    )
    assert done.returncode == 0, done
    async with Rest(lively.base) as rest:
        user = (await rest.login("ops@firm.test", NEW_PASSWORD))["user"]
    assert (user["name"], user["roles"]) == ("Olu Ops", ["operations"])
    async with signed_in(lively.base, "ops@firm.test", NEW_PASSWORD) as operations:
        assert "admin:bookings" in operations.connected["channels"]


def test_serve_never_makes_the_demo_accounts(tmp_path: Path) -> None:
    served = Demo(tmp_path, command="serve")
    with served:
        assert served.query("SELECT COUNT(*) FROM users") == [(0,)]
        assert served.query("SELECT COUNT(*) FROM zones") == [(0,)]
    assert served.is_running() is False


def test_specs_check_says_whether_the_files_are_current(fixnado: CommandLine) -> None:
    done = fixnado("specs", "--check")
    assert (done.returncode, done.stdout.strip()) == (0, "The specifications are current.")


def test_bench_is_handed_over_to_the_benchmarks(tmp_path: Path) -> None:
    done = process(tmp_path, "bench", "p10", "--quick")
    assert done.returncode == 2
    assert "There is no work P10: choose from P1, P2" in done.stdout


def test_an_installed_package_has_no_benchmarks(
    fixnado: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specs, "ROOT", tmp_path)
    done = fixnado("bench")
    assert done.returncode == 1
    assert "run `make bench` in a checkout" in the_line(done)
