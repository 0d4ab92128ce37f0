"""Rotation of signing keys: who signs, who verifies, and until when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import InvalidToken
from persistence import tables
from persistence.database import Database, DatabaseOptions
from persistence.migrate import upgrade
from persistence.signing_keys import StoredKey, read_keys
from persistence.vault import DatabaseVault, LocalMasterKey
from server import keys
from server.keys import ANNOUNCE_SECONDS, LOOK_SECONDS, KeyKeeper, rotate_signing_key
from server.tokens import KeyRing, Tokens

OPTIONS = DatabaseOptions(tls="off")
TOKEN_SECONDS = 900.0


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await upgrade(database_url, OPTIONS)
    database = Database(database_url, OPTIONS)
    yield database
    await database.close()


class Node:
    """One node's keeper and tokens. ``at`` is how far its database's time is ahead."""

    def __init__(self, database: Database) -> None:
        self.vault = DatabaseVault(database, LocalMasterKey(b"m" * 32))
        self.keeper = KeyKeeper(database, self.vault, "node")
        self.tokens: Tokens | None = None

    async def look(self) -> KeyRing:
        ring = await self.keeper.ring()
        if self.tokens is None:
            self.tokens = Tokens(ring, life_seconds=int(TOKEN_SECONDS), leeway_seconds=0)
        self.tokens.ring = ring
        return ring

    def issue(self, now: datetime) -> str:
        assert self.tokens is not None
        return self.tokens.issue("user", "session", now)[0]

    def takes(self, token: str, now: datetime) -> bool:
        assert self.tokens is not None
        try:
            self.tokens.verify(token, now)
        except InvalidToken:
            return False
        return True


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the time that keepers see, by as many seconds."""

    def move(seconds: float) -> None:
        async def read(database: Database) -> tuple[list[StoredKey], datetime]:
            found, now = await read_keys(database)
            now += timedelta(seconds=seconds)
            return [key for key in found if key.retires_at is None or key.retires_at > now], now

        monkeypatch.setattr(keys, "read_keys", read)

    return move


async def test_new_key_is_known_everywhere_before_it_signs_and_the_old_one_counts_until_its_deadline(
    database: Database, later: Callable[[float], None]
) -> None:
    one, two = Node(database), Node(database)
    first = (await one.look()).signing.kid
    assert (await two.look()).signing.kid == first, "one key for all nodes"
    now = datetime.now(UTC)
    old = one.issue(now)

    kid, signs_from = await rotate_signing_key(database, one.vault, TOKEN_SECONDS)
    assert kid != first
    assert abs((signs_from - now).total_seconds() - ANNOUNCE_SECONDS) < 5
    await one.look()
    await two.look()
    assert one.tokens is not None
    assert one.tokens.ring.signing.kid == first, "announced, but not signing yet"
    assert {key["kid"] for key in one.tokens.jwks()["keys"]} == {first, kid}

    later(ANNOUNCE_SECONDS + 1)
    await one.look()  # this node looks first; the other has only heard the announcement
    after = now + timedelta(seconds=ANNOUNCE_SECONDS + 1)
    new = one.issue(after)
    assert one.tokens.ring.signing.kid == kid
    assert two.takes(new, after)
    assert one.takes(old, after)
    assert two.takes(old, after)

    # The last token that a late node signs with the old key lives to its own end, and not longer.
    deadline = ANNOUNCE_SECONDS + TOKEN_SECONDS + ANNOUNCE_SECONDS
    late = two.issue(now + timedelta(seconds=ANNOUNCE_SECONDS + LOOK_SECONDS))
    assert one.takes(late, now + timedelta(seconds=ANNOUNCE_SECONDS + LOOK_SECONDS + TOKEN_SECONDS - 1))
    forged = one.tokens.ring.find(first, now + timedelta(seconds=deadline + 5))
    assert forged is None, "past the deadline it counts no longer, even where nobody has looked again"
    assert two.tokens is not None
    assert two.tokens.ring.find(first, now + timedelta(seconds=deadline + 5)) is None
    later(deadline + 5)
    assert set((await one.look())._keys) == {kid}


async def test_private_keys_are_stored_sealed(database: Database) -> None:
    node = Node(database)
    ring = await node.look()

    async def work(connection: AsyncConnection) -> str:
        return str((await connection.execute(select(tables.signing_keys.c.private_pem))).scalar_one())

    stored = await database.read(work)
    assert "PRIVATE" not in stored
    pem = await node.vault.open(stored, owner=ring.signing.kid, purpose="signing_key")
    assert pem == ring.signing.pem()
