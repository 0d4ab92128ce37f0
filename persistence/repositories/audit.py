"""The audit columns of business rows: when and by whom they were made and last changed."""

from __future__ import annotations

from typing import Any

from persistence.unit_of_work import UnitOfWork


def created(unit: UnitOfWork) -> dict[str, Any]:
    """For a row that is made now."""
    by = unit.origin.actor_id
    return {"created_at": unit.now, "created_by": by, "updated_at": unit.now, "updated_by": by}


def updated(unit: UnitOfWork) -> dict[str, Any]:
    """For a row that changes now."""
    return {"updated_at": unit.now, "updated_by": unit.origin.actor_id}
