"""What changes somebody's access and the row in the audit log that says so are one transaction: neither is there
without the other, whenever a process dies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import Table, select

from domain.credentials import ResetParams
from domain.errors import TooManyRequests
from domain.identity import Actor
from persistence import audit_log, tables, unit_of_work
from tests.domain.marketplace import ORIGIN, Marketplace, refused
from tests.domain.office import ANN, PASSWORD, Office, from_address

NEW_PASSWORD = "another horse battery"


@dataclass
class Ann:
    """Somebody with a second factor and two sign-ins."""

    office: Office
    actor: Actor
    other: Actor
    secret: str
    codes: list[str]
    token: str


@pytest.fixture
async def ann(empty_market: Marketplace) -> Ann:
    office = Office(empty_market)
    actor = await office.person()
    secret, codes = await office.enrolled(actor)
    tokens = await office.verify(await office.challenge(), codes[0])
    device = {"id": "phone", "name": "Phone"}
    asked = await office.login(device=device)
    other = await office.actor(await office.verify(asked["challenge"], codes[1]))
    return Ann(office, actor, other, secret, codes, tokens["refresh_token"])


async def _reuse(ann: Ann) -> object:
    successor = await ann.office.refresh(ann.token)
    await ann.office.refresh(successor)
    return await refused(ann.office.refresh(ann.token))


async def _wrong_code(ann: Ann) -> object:
    return await refused(ann.office.verify(await ann.office.challenge(), "000000"))


async def _recovery(ann: Ann) -> object:
    return await ann.office.verify(await ann.office.challenge(), ann.codes[5])


async def _change(ann: Ann) -> None:
    await ann.office.change(ann.actor, NEW_PASSWORD)


async def _reset(ann: Ann) -> None:
    await ann.office.confirm_reset(await ann.office.reset_token(), NEW_PASSWORD)


async def _forget(ann: Ann) -> None:
    (device,) = (await ann.office.accounts.devices(ann.actor))["devices"]
    await ann.office.accounts.forget_device(ann.actor, device["id"], ORIGIN)


async def _stranger_enrols(ann: Ann) -> object:
    return await ann.office.enrolled(await ann.office.person(f"bob{ann.office.passwords.hashed}@example.test"))


DEEDS: dict[str, Callable[[Ann], Awaitable[object]]] = {
    "refresh_token_reused": _reuse,
    "mfa_failed": _wrong_code,
    "recovery_code_used": _recovery,
    "recovery_codes_replaced": lambda ann: ann.office.second_factor.new_recovery_codes(ann.actor, ORIGIN),
    "mfa_enabled": _stranger_enrols,
    "mfa_disabled": lambda ann: ann.office.disable(ann.actor, ann.office.code(ann.secret)),
    "password_changed": _change,
    "password_reset_asked": lambda ann: ann.office.reset_token(),
    "password_reset": _reset,
    "device_removed": _forget,
    "user_disabled": lambda ann: ann.office.credentials.disable(ANN, ORIGIN),
    "user_enabled": lambda ann: ann.office.credentials.enable(ANN, ORIGIN),
}


@pytest.mark.parametrize("kind", DEEDS)
async def test_deed_is_attested_and_is_undone_when_it_cannot_be(
    ann: Ann, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = ann.office
    before = await _access(office)
    attested = len(office.market.attested)
    append = audit_log.append_to_audit_log

    async def dies(connection: object, facts: object, *rest: object) -> object:
        # The process ends between what was done and the row that says so.
        if any(fact.kind == kind for fact in facts):  # type: ignore[attr-defined]
            raise ConnectionAbortedError
        return await append(connection, facts, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(unit_of_work, "append_to_audit_log", dies)
        with pytest.raises(ConnectionAbortedError):
            await DEEDS[kind](ann)
    assert kind not in [entry.kind for entry in office.market.attested[attested:]]
    for name, rows in (await _access(office)).items():
        # What came before the deed in the test (a challenge, a rotation) is committed by itself.
        if name in UNDONE[kind]:
            assert rows == before[name], name

    ann.token = (await office.verify(await office.challenge(), ann.codes[8]))["refresh_token"]
    office.clock.advance(60)
    await DEEDS[kind](ann)
    entry = next(entry for entry in reversed(office.market.attested) if entry.kind == kind)
    assert entry.subject_id is not None
    assert entry.correlation_id == ORIGIN.correlation_id, "whoever reads it finds the request"


KEPT: dict[str, tuple[Table, list[str]]] = {
    "users": (tables.users, ["id", "password_hash", "disabled_at"]),
    "revoked": (tables.sessions, ["id", "revoked_at"]),
    "factors": (tables.factors, ["user_id", "confirmed_at"]),
    "recovery": (tables.recovery_codes, ["code_hash", "used_at"]),
    "guards": (tables.code_guards, ["user_id", "failures"]),
    "devices": (tables.devices, ["id"]),
    "resets": (tables.challenges, ["token_hash", "used_at"]),
}

UNDONE: dict[str, set[str]] = {
    "refresh_token_reused": {"revoked"},
    "mfa_failed": {"guards"},
    "recovery_code_used": {"recovery", "revoked"},
    "recovery_codes_replaced": {"recovery"},
    "mfa_enabled": {"recovery"},
    "mfa_disabled": {"factors", "recovery", "revoked"},
    "password_changed": {"users", "revoked"},
    "password_reset_asked": {"resets"},
    "password_reset": {"users", "revoked"},
    "device_removed": {"devices", "revoked"},
    "user_disabled": {"users", "revoked"},
    "user_enabled": {"users"},
}


async def _access(office: Office) -> dict[str, set[tuple[object, ...]]]:
    """What access consists of, as it is stored."""
    found = {}
    for name, (table, columns) in KEPT.items():
        query = select(*(table.c[column] for column in columns))
        found[name] = {tuple(row) for row in await office.market.rows(query)}
    return found


async def test_flood_of_failures_from_one_address_costs_neither_hashes_nor_rows(empty_market: Marketplace) -> None:
    office = Office(empty_market)
    stranger = from_address("203.0.113.9")
    for number in range(100):
        await refused(office.login(f"nobody{number}@example.test", "wrong", stranger))
    spent = (len(office.passwords.verified), len(office.security.kinds()), office.passwords.hashed)
    outcomes = {await refused(office.login(f"more{number}@example.test", PASSWORD, stranger)) for number in range(150)}
    assert outcomes <= {"too_many_requests", "invalid_credentials"}
    now = (len(office.passwords.verified), len(office.security.kinds()), office.passwords.hashed)
    assert [after - before for before, after in zip(spent, now, strict=True)] == [1, 1, 0], (
        "one, when its delay is over"
    )


async def test_flood_of_resets_from_one_address_is_slowed_and_writes_little(empty_market: Marketplace) -> None:
    office = Office(empty_market)
    stranger = from_address("203.0.113.9")
    answers = []
    for number in range(150):
        try:
            await office.credentials.request_reset(ResetParams(email=f"nobody{number}@example.test"), stranger)
        except TooManyRequests:
            answers.append(number)
    assert len(answers) >= 99
    assert office.security.kinds().count("password_reset_asked") <= 51
    assert len(await office.market.rows(select(tables.challenges.c.token_hash))) <= 51
