"""``fixnado keys`` and ``fixnado user disable`` as an operator types them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from persistence.database import Database, DatabaseOptions
from persistence.migrate import upgrade
from persistence.signing_keys import read_keys
from persistence.vault import DatabaseVault, LocalMasterKey, version_of
from tests.server.command_line import CommandLine, Done

OPTIONS = DatabaseOptions(tls="off")
MASTER = "MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE="
OTHER = "MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI="


class Operator:
    """Types commands in a directory with a migrated database."""

    def __init__(self, directory: Path, fixnado: CommandLine) -> None:
        self.directory = directory
        self.url = f"sqlite+aiosqlite:///{directory / 'fixnado.db'}"
        self._fixnado = fixnado
        asyncio.run(upgrade(self.url, OPTIONS))

    def type(self, *words: str, master: str | None = None) -> Done:
        settings = {"database_url": self.url, "new_user_password": "long-enough-password"}
        settings |= {"master_key": master} if master else {}
        return self._fixnado(*words, **settings)

    def versions(self) -> list[int]:
        """The data keys that the signing keys are sealed under."""

        async def look() -> list[int]:
            database = Database(self.url, OPTIONS)
            try:
                return [version_of(key.sealed) for key in (await read_keys(database))[0]]
            finally:
                await database.close()

        return asyncio.run(look())


@pytest.fixture
def operator(tmp_path: Path, fixnado: CommandLine) -> Operator:
    return Operator(tmp_path, fixnado)


def test_keys_are_rotated_by_two_commands(operator: Operator) -> None:
    for _ in range(2):
        announced = operator.type("keys", "rotate", "--signing")
        assert announced.returncode == 0, announced.stderr
        assert "signs from" in announced.stdout
    assert operator.versions() == [1, 1]
    rotated = operator.type("keys", "rotate")
    assert rotated.returncode == 0, rotated.stderr
    assert "2 secrets are under data key 2" in rotated.stdout
    assert operator.versions() == [2, 2]
    assert (operator.directory / "master.key").stat().st_mode & 0o777 == 0o600


def test_wrong_master_key_is_one_line_and_changes_nothing(operator: Operator) -> None:
    assert operator.type("keys", "rotate", "--signing", master=MASTER).returncode == 0
    wrong = operator.type("keys", "rotate", master=OTHER)
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert LocalMasterKey(b"1" * 32).name in wrong.stderr
    assert MASTER not in wrong.stderr
    assert operator.versions() == [1]
    # The next key in front of the last one: everything moves under it, and the last one is needed no longer.
    assert operator.type("keys", "rotate", master=f"{OTHER},{MASTER}").returncode == 0

    async def opens() -> bytes:
        database = Database(operator.url, OPTIONS)
        try:
            (key,), _ = await read_keys(database)
            vault = DatabaseVault(database, LocalMasterKey(b"2" * 32))
            return await vault.open(key.sealed, owner=key.kid, purpose="signing_key")
        finally:
            await database.close()

    assert b"PRIVATE KEY" in asyncio.run(opens())


def test_account_is_disabled_and_enabled_by_its_address(operator: Operator) -> None:
    assert operator.type("user", "add", "ann@example.test", "--role", "customer").returncode == 0
    for word in ("disable", "enable"):
        done = operator.type("user", word, "ann@example.test")
        assert (done.returncode, done.stdout) == (0, f"ann@example.test is {word}d.\n"), done.stderr
    unknown = operator.type("user", "disable", "nobody@example.test")
    assert (unknown.returncode, unknown.stderr) == (1, "fixnado: There is no such account.\n")
