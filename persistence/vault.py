"""Small secrets, encrypted so that the database alone, or a row moved to another owner, gives none of them away.

Envelope encryption: a secret is sealed with AES-256-GCM (NIST SP 800-38D) under a *data key*; data keys are stored
wrapped by a *master key* that is somewhere else (a key service, or an operator's setting). Invariants:

* the additional data of every seal is its owner, its purpose and the version of the data key: a ciphertext moved to
  another person, used for something else, or relabelled does not open;
* nonces are 96 random bits; a data key seals far fewer than 2^32 texts, so they do not repeat (section 8.3);
* opened data keys are kept in memory for a bounded time. While the key service is away and none is kept, everything
  that needs one fails with ``Unavailable``: nothing is ever stored or answered in clear instead;
* versions only grow, and the newest seals. An old one opens what it sealed, until :mod:`persistence.resealing` has
  moved that.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import Unavailable
from persistence.database import Database, database_now
from persistence.race import start_over_if_taken
from persistence.tables import data_keys

logger = logging.getLogger(__name__)

KEY_BYTES = 32
_NONCE_BYTES = 12
_FORMAT = "fxv1"


class WrongMasterKey(Exception):
    """The master key at hand is not the one that wrapped this database's data keys. One line for the operator."""


class MasterKey(Protocol):
    """Wraps data keys."""

    @property
    def name(self) -> str:
        """Which one it is; stored beside what it wrapped."""

    def knows(self, name: str) -> bool:
        """Whether it can unwrap what the key of this name wrapped."""

    async def wrap(self, key: bytes, version: int) -> str:
        """The data key as text.

        Raises:
            Unavailable: the key service does not answer.
        """

    async def unwrap(self, wrapped: str, name: str, version: int) -> bytes:
        """The opposite, for something that it :meth:`knows`.

        Raises:
            Unavailable: the key service does not answer, or refuses.
        """


class LocalMasterKey:
    """A master key in this process's memory.

    Args:
        keys: 32 bytes each. The first wraps; the others unwrap what they wrapped before it took their place.
    """

    def __init__(self, *keys: bytes) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"a master key has {KEY_BYTES} bytes")
        self._keys = {_fingerprint(key): AESGCM(key) for key in keys}
        self.name = _fingerprint(keys[0])

    def knows(self, name: str) -> bool:
        return name in self._keys

    async def wrap(self, key: bytes, version: int) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._keys[self.name].encrypt(nonce, key, _wrapping(version))
        return base64.b64encode(nonce + sealed).decode()

    async def unwrap(self, wrapped: str, name: str, version: int) -> bytes:
        raw = base64.b64decode(wrapped)
        try:
            return self._keys[name].decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _wrapping(version))
        except InvalidTag as error:
            raise Unavailable("A data key in the database is damaged.") from error


class MasterKeys:
    """Several master keys as one: the first wraps, each unwraps its own. For moving from one to the next."""

    def __init__(self, first: MasterKey, *others: MasterKey) -> None:
        self._all = (first, *others)
        self.name = first.name

    def knows(self, name: str) -> bool:
        return any(key.knows(name) for key in self._all)

    async def wrap(self, key: bytes, version: int) -> str:
        return await self._all[0].wrap(key, version)

    async def unwrap(self, wrapped: str, name: str, version: int) -> bytes:
        return await next(key for key in self._all if key.knows(name)).unwrap(wrapped, name, version)


@dataclass(frozen=True, slots=True)
class _DataKey:
    version: int
    cipher: AESGCM
    until: float


class DatabaseVault:
    """See :class:`domain.ports.Vault`; data keys are in the database.

    Args:
        keep_seconds: how long an opened data key stays in memory, and after how long a new version is noticed.
    """

    def __init__(
        self,
        database: Database,
        master: MasterKey,
        *,
        keep_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._master = master
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._kept: dict[int, _DataKey] = {}
        self._newest: tuple[int, float] | None = None
        self._turn = asyncio.Lock()

    async def seal(self, plain: bytes, *, owner: str, purpose: str) -> str:
        key = await self._data_key(await self.newest_version())
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = key.cipher.encrypt(nonce, plain, _about(owner, purpose, key.version))
        return f"{_FORMAT}.{key.version}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    async def open(self, sealed: str, *, owner: str, purpose: str) -> bytes:
        try:
            version = version_of(sealed)
            raw = base64.urlsafe_b64decode(sealed.split(".")[2])
        except (ValueError, IndexError, binascii.Error) as error:
            raise Unavailable("A stored secret cannot be read.") from error
        key = await self._data_key(version)
        try:
            return key.cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _about(owner, purpose, version))
        except (InvalidTag, ValueError) as error:
            # Damaged, or moved here from another owner. Neither is for a client to know.
            logger.exception("a sealed secret does not open", extra={"purpose": purpose})
            raise Unavailable("A stored secret cannot be read.") from error

    async def newest_version(self) -> int:
        """The version that seals now. The first one is made here.

        Raises:
            WrongMasterKey: the newest one was wrapped by another master key.
        """
        if self._newest is not None and self._clock() < self._newest[1]:
            return self._newest[0]
        version = await self._database.read(_newest)
        if version == 0:
            version = await self._add_after(0)
        self._newest = (version, self._clock() + self._keep_seconds)
        return version

    async def add_version(self) -> int:
        """Makes a new data key, which seals from now on; returns its version. Other nodes notice within
        ``keep_seconds``; until then they seal with the one before, which stays good.
        """
        version = await self._add_after(await self._database.read(_newest))
        self._newest = (version, self._clock() + self._keep_seconds)
        return version

    async def _add_after(self, before: int) -> int:
        """Makes the version after that one, unless another node has; returns the newest."""
        key = secrets.token_bytes(KEY_BYTES)
        wrapped = await self._master.wrap(key, before + 1)

        async def work(connection: AsyncConnection) -> int:
            newest = await _newest(connection)
            if newest == before:
                row = {"version": before + 1, "wrapped": wrapped, "wrapped_by": self._master.name}
                with start_over_if_taken("this version"):
                    await connection.execute(insert(data_keys), row | {"created_at": await database_now(connection)})
            # Else another node was quicker, and its key is as good.
            return max(newest, before + 1)

        return await self._database.write(work)

    async def check(self) -> None:
        """Whether the master key at hand is the right one, by opening the newest data key.

        Raises:
            WrongMasterKey: it is not.
            Unavailable: the key service does not answer.
        """
        await self._data_key(await self.newest_version())

    async def _data_key(self, version: int) -> _DataKey:
        kept = self._kept.get(version)
        if kept is not None and self._clock() < kept.until:
            return kept
        # One at a time: a crowd that signs in at once must not ask the key service once each.
        async with self._turn:
            kept = self._kept.get(version)
            if kept is not None and self._clock() < kept.until:
                return kept
            self._kept.pop(version, None)
            wrapped, name = await self._wrapped(version)
            if not self._master.knows(name):
                raise WrongMasterKey(
                    f"this database's secrets were sealed under the master key {name}, and the one at hand is "
                    f"{self._master.name}: set FIXNADO_MASTER_KEY or FIXNADO_KMS_KEY_ID to that one"
                )
            raw = await self._master.unwrap(wrapped, name, version)
            opened = _DataKey(version, AESGCM(raw), self._clock() + self._keep_seconds)
            self._kept[version] = opened
            return opened

    async def _wrapped(self, version: int) -> tuple[str, str]:
        query = select(data_keys.c.wrapped, data_keys.c.wrapped_by).where(data_keys.c.version == version)

        async def work(connection: AsyncConnection) -> Sequence[str] | None:
            return (await connection.execute(query)).one_or_none()

        row = await self._database.read(work)
        if row is None:
            raise Unavailable("A stored secret cannot be read.")
        return row[0], row[1]


def version_of(sealed: str) -> int:
    """The version of the data key that sealed it.

    Raises:
        ValueError: this is no sealed text.
    """
    parts = sealed.split(".")
    if len(parts) != 3 or parts[0] != _FORMAT or not parts[1].isdigit():
        raise ValueError("not a sealed text")
    return int(parts[1])


def master_key_from(text: str) -> LocalMasterKey:
    """The master keys of a setting: base64 of 32 bytes each, separated by commas, the one that wraps first.

    Raises:
        ValueError: it is not that.
    """
    return LocalMasterKey(*(base64.b64decode(part.strip(), validate=True) for part in text.split(",")))


def master_key_in(file: Path) -> LocalMasterKey:
    """The master key in a file that only its owner can read; it is made when it is not there. Blocking.

    Raises:
        PermissionError: others could read it.
        ValueError: there is something else in it.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, and never over another process's: written aside, then linked into place.
        descriptor, aside = tempfile.mkstemp(dir=file.parent, prefix=".master-key-")  # 0600 by itself
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
                out.flush()
                os.fsync(out.fileno())
            try:
                os.link(aside, file)
            except FileExistsError:
                pass  # another process was quicker: its key counts
        finally:
            Path(aside).unlink()
    if file.stat().st_mode & 0o077:
        raise PermissionError(13, "others can read the master key; type: chmod 600", str(file))
    return master_key_from(file.read_text(encoding="ascii"))


def _fingerprint(key: bytes) -> str:
    return "local:" + hashlib.sha256(b"fixnado master key" + key).hexdigest()[:16]


def _about(owner: str, purpose: str, version: int) -> bytes:
    # Lengths first: no two triples have the same bytes.
    return b"".join(len(part).to_bytes(4, "big") + part for part in (owner.encode(), purpose.encode(), b"%d" % version))


def _wrapping(version: int) -> bytes:
    return b"fixnado data key %d" % version


async def _newest(connection: AsyncConnection) -> int:
    query = select(data_keys.c.version).order_by(data_keys.c.version.desc()).limit(1)
    return int((await connection.execute(query)).scalar() or 0)
