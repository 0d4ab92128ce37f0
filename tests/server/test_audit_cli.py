from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import update

from domain.security import SecurityFact, SecurityKind
from domain.types import Origin
from persistence.audit_log import append_to_audit_log
from persistence.database import Database
from persistence.migrate import upgrade
from persistence.tables import audit_log
from server import cli
from tests.domain.marketplace import START


async def _prepare(url: str, tamper: bool) -> None:
    await upgrade(url)
    database = Database(url)
    facts = [SecurityFact(SecurityKind.ROLE_CHANGED, "ada", f"u{number}") for number in range(3)]
    await database.write(lambda connection: append_to_audit_log(connection, facts, Origin("c"), START))
    if tamper:
        forge = update(audit_log).where(audit_log.c.number == 2).values(actor_id="eve")
        await database.write(lambda connection: connection.execute(forge))
    await database.close()


@pytest.mark.parametrize("tampered", [False, True])
def test_verify_says_whether_the_log_is_whole(
    tampered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'audit.db'}"
    asyncio.run(_prepare(url, tampered))
    monkeypatch.setenv("FIXNADO_DATABASE_URL", url)
    monkeypatch.setattr("sys.argv", ["fixnado", "audit", "verify"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    if tampered:
        assert ended.value.code == 1
        assert "broken at row 2" in said.err
    else:
        assert ended.value.code == 0
        assert "3 rows, all whole" in said.out
