"""Secrets at rest: what opens, what does not, and what happens while the key is away or changes."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import Unavailable
from persistence import tables
from persistence.database import Database, DatabaseOptions
from persistence.migrate import upgrade
from persistence.resealing import reseal
from persistence.signing_keys import add_key, open_key, read_keys
from persistence.vault import (
    DatabaseVault,
    LocalMasterKey,
    MasterKeys,
    WrongMasterKey,
    master_key_from,
    master_key_in,
    version_of,
)

ONE, TWO = LocalMasterKey(b"1" * 32), LocalMasterKey(b"2" * 32)
OPTIONS = DatabaseOptions(tls="off")


class RemoteMasterKey(LocalMasterKey):
    """A key service that can be away; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(b"r" * 32)
        self.away = False
        self.asked = 0

    async def unwrap(self, wrapped: str, name: str, version: int) -> bytes:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable
        return await super().unwrap(wrapped, name, version)


@pytest.fixture
async def embedded(sqlite_url: str) -> AsyncIterator[Database]:
    await upgrade(sqlite_url, OPTIONS)
    database = Database(sqlite_url, OPTIONS)
    yield database
    await database.close()


async def test_secret_opens_for_its_owner_and_purpose_alone(database: Database) -> None:
    vault = DatabaseVault(database, ONE)
    sealed = await vault.seal(b"secret", owner="ann", purpose="mfa.totp")
    assert b"secret" not in sealed.encode()
    assert await vault.open(sealed, owner="ann", purpose="mfa.totp") == b"secret"
    for owner, purpose in (("bob", "mfa.totp"), ("ann", "signing_key"), ("annm", "fa.totp")):
        with pytest.raises(Unavailable):
            await vault.open(sealed, owner=owner, purpose=purpose)
    assert await vault.seal(b"secret", owner="ann", purpose="mfa.totp") != sealed, "a nonce is used once"


async def test_altered_or_relabelled_text_does_not_open(embedded: Database) -> None:
    vault = DatabaseVault(embedded, ONE)
    sealed = await vault.seal(b"secret", owner="ann", purpose="p")
    await vault.add_version()
    head, version, text = sealed.split(".")
    raw = bytearray(base64.urlsafe_b64decode(text))
    raw[-1] ^= 1
    altered = base64.urlsafe_b64encode(raw).decode()
    for wrong in (
        f"{head}.{version}.{altered}",
        f"{head}.2.{text}",
        f"{head}.9.{text}",
        "plain",
        "fxv1.1.%%%",
        f"{head}.1.",
    ):
        with pytest.raises(Unavailable):
            await vault.open(wrong, owner="ann", purpose="p")
    assert await vault.open(sealed, owner="ann", purpose="p") == b"secret"


async def test_version_is_bound_even_if_two_versions_had_the_same_key(embedded: Database) -> None:
    class Forgetful(LocalMasterKey):
        async def unwrap(self, wrapped: str, name: str, version: int) -> bytes:
            return b"k" * 32

    vault = DatabaseVault(embedded, Forgetful(b"m" * 32))
    sealed = await vault.seal(b"secret", owner="ann", purpose="p")
    await vault.add_version()
    assert await vault.open(sealed, owner="ann", purpose="p") == b"secret"
    with pytest.raises(Unavailable):
        await vault.open(sealed.replace("fxv1.1.", "fxv1.2."), owner="ann", purpose="p")


async def test_data_keys_are_stored_wrapped_and_nodes_that_start_together_share_one(database: Database) -> None:
    vaults = [DatabaseVault(database, ONE) for _ in range(4)]
    sealed = await asyncio.gather(*(vault.seal(b"secret", owner="ann", purpose="p") for vault in vaults))
    assert {version_of(text) for text in sealed} == {1}
    for text in sealed:
        assert await vaults[0].open(text, owner="ann", purpose="p") == b"secret"

    async def work(connection: AsyncConnection) -> Any:
        return (await connection.execute(select(tables.data_keys))).one()

    row = await database.read(work)
    assert row.wrapped_by == ONE.name
    with pytest.raises(Unavailable):
        await ONE.unwrap(row.wrapped, ONE.name, version=2)


async def test_wrong_master_key_is_said_in_one_line_and_opens_nothing(embedded: Database) -> None:
    sealed = await DatabaseVault(embedded, ONE).seal(b"secret", owner="ann", purpose="p")
    other = DatabaseVault(embedded, TWO)
    with pytest.raises(WrongMasterKey, match=r"FIXNADO_MASTER_KEY") as caught:
        await other.check()
    assert "\n" not in str(caught.value)
    with pytest.raises(WrongMasterKey):
        await other.open(sealed, owner="ann", purpose="p")


async def test_next_master_key_takes_over_while_the_last_still_opens(embedded: Database) -> None:
    sealed = await DatabaseVault(embedded, ONE).seal(b"secret", owner="ann", purpose="p")
    for both in (LocalMasterKey(b"2" * 32, b"1" * 32), MasterKeys(TWO, ONE)):
        vault = DatabaseVault(embedded, both)
        assert await vault.open(sealed, owner="ann", purpose="p") == b"secret"
        await vault.add_version()
        moved = await vault.seal(b"secret", owner="ann", purpose="p")
        assert await DatabaseVault(embedded, TWO).open(moved, owner="ann", purpose="p") == b"secret"


async def test_without_the_key_service_everything_fails_closed_once_what_is_kept_has_ended(embedded: Database) -> None:
    master, now = RemoteMasterKey(), [0.0]
    vault = DatabaseVault(embedded, master, keep_seconds=300, clock=lambda: now[0])
    sealed = await vault.seal(b"secret", owner="ann", purpose="p")
    crowd = (vault.open(sealed, owner="ann", purpose="p") for _ in range(20))
    assert set(await asyncio.gather(*crowd)) == {b"secret"}
    assert master.asked == 1, "a crowd asks once"
    master.away = True
    now[0] = 299
    assert await vault.open(sealed, owner="ann", purpose="p") == b"secret"
    now[0] = 300
    for _ in range(2):
        with pytest.raises(Unavailable):
            await vault.open(sealed, owner="ann", purpose="p")
        with pytest.raises(Unavailable):
            await vault.seal(b"other", owner="ann", purpose="p")
    master.away = False
    assert await vault.open(sealed, owner="ann", purpose="p") == b"secret"


# --- the master key's file --------------------------------------------------------------------------------------------


def test_key_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "var" / "master.key"
    made = master_key_in(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert master_key_in(file).name == made.name == master_key_from(file.read_text()).name
    assert os.listdir(file.parent) == ["master.key"], "nothing is left lying about"  # noqa: PTH208
    file.chmod(0o640)
    with pytest.raises(PermissionError, match="chmod 600"):
        master_key_in(file)


@pytest.mark.parametrize("text", ["", "short", base64.b64encode(b"x" * 31).decode(), "not base64!" * 4])
def test_what_is_no_master_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        master_key_from(text)


# --- rotation ---------------------------------------------------------------------------------------------------------


async def fill(database: Database, vault: DatabaseVault, people: int) -> None:
    """Authenticators of so many people, and a signing key."""
    now = datetime(2026, 11, 24, tzinfo=UTC)
    sealed = [await vault.seal(b"secret %d" % n, owner=f"user{n:04}", purpose="mfa.totp") for n in range(people)]

    async def work(connection: AsyncConnection) -> None:
        audit = {"created_at": now, "created_by": "t", "updated_at": now, "updated_by": "t"}
        for n in range(people):
            user = {"id": f"user{n:04}", "email": f"{n}@x.test", "name": "N", "password_hash": "-", "roles": []}
            await connection.execute(insert(tables.users), user | audit)
            factor = {"user_id": user["id"], "kind": "totp", "hint": "", "last_step": 0, "created_at": now}
            await connection.execute(insert(tables.factors), factor | {"secret": sealed[n], "confirmed_at": now})

    await database.write(work)
    await add_key(database, vault, "kid", b"pem")


async def texts(database: Database) -> dict[str, str]:
    async def work(connection: AsyncConnection) -> dict[str, str]:
        rows = await connection.execute(select(tables.factors.c.user_id, tables.factors.c.secret))
        return {row.user_id: row.secret for row in rows}

    return await database.read(work)


async def test_rotation_re_encrypts_everything_and_tells_how_far_it_is(database: Database) -> None:
    vault = DatabaseVault(database, ONE)
    await fill(database, vault, 120)
    told: list[tuple[int, int]] = []
    done = await reseal(database, vault, lambda at, of: told.append((at, of)))
    assert (done.version, done.moved, done.new) == (2, 121, True)
    assert told == [(at, 121) for at in range(122)]
    for user_id, sealed in (await texts(database)).items():
        assert version_of(sealed) == 2
        secret = await vault.open(sealed, owner=user_id, purpose="mfa.totp")
        assert secret == b"secret %d" % int(user_id.removeprefix("user"))
    (key,), _ = await read_keys(database)
    assert version_of(key.sealed) == 2
    assert await open_key(vault, key) == b"pem"


async def test_interrupted_rotation_goes_on_where_it_stopped(embedded: Database) -> None:
    vault = DatabaseVault(embedded, ONE)
    await fill(embedded, vault, 10)

    class Interrupted(Exception):
        pass

    def stop(at: int, _: int) -> None:
        if at == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        await reseal(embedded, vault, stop)
    moved = {user_id: text for user_id, text in (await texts(embedded)).items() if version_of(text) == 2}
    assert len(moved) == 4
    done = await reseal(embedded, DatabaseVault(embedded, ONE))
    assert (done.version, done.moved, done.new) == (2, 7, False)
    assert moved.items() <= (await texts(embedded)).items(), "what was done is left alone"


async def test_secret_changed_during_a_rotation_is_not_overwritten(
    embedded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = DatabaseVault(embedded, ONE)
    await fill(embedded, vault, 1)
    fresh = await vault.seal(b"fresh", owner="user0000", purpose="mfa.totp")
    opened = vault.open

    async def meddled(sealed: str, *, owner: str, purpose: str) -> bytes:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(update(tables.factors).values(secret=fresh))

        await embedded.write(work)
        return await opened(sealed, owner=owner, purpose=purpose)

    monkeypatch.setattr(vault, "open", meddled)
    await reseal(embedded, vault)
    assert await texts(embedded) == {"user0000": fresh}
