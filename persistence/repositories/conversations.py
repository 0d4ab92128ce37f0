"""Messages and read marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from domain.messaging import Conversation, Message
from persistence.repositories.audit import created, updated
from persistence.tables import conversations, messages, read_marks
from persistence.unit_of_work import UnitOfWork

_LOCK = (
    select(conversations.c.id, conversations.c.last_offset)
    .where(conversations.c.id == bindparam("conversation"))
    .with_for_update()
)
_OPEN = insert(conversations)
_APPEND = insert(messages)
_next_offset = conversations.c.last_offset + 1
_touched = (
    update(conversations)
    .where(conversations.c.id == bindparam("conversation"))
    .values({column: bindparam(f"new_{column}") for column in ("updated_at", "updated_by")})
)
# The lock, the new number and its way back in one statement: MySQL has no RETURNING, but tells what went through
# LAST_INSERT_ID.
_ADVANCE = {
    "sqlite": _touched.values(last_offset=_next_offset).returning(conversations.c.last_offset),
    "mysql": _touched.values(last_offset=func.last_insert_id(_next_offset)),
}
_MESSAGE = [messages.c[field.name] for field in fields(Message)]

_sqlite_mark = sqlite_insert(read_marks)
_mysql_mark = mysql_insert(read_marks)
_MARK = {
    "sqlite": _sqlite_mark.on_conflict_do_update(
        index_elements=["conversation_id", "user_id"], set_={"read_offset": _sqlite_mark.excluded.read_offset}
    ),
    "mysql": _mysql_mark.on_duplicate_key_update(read_offset=_mysql_mark.inserted.read_offset),
}


class SqlConversations:
    """See :class:`domain.ports.Conversations`."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit
        self._connection = unit.connection

    async def open(self, conversation_id: str) -> None:
        row = {"id": conversation_id, "last_offset": 0}
        await self._connection.execute(_OPEN, row | created(self._unit))

    async def lock(self, conversation_id: str) -> Conversation | None:
        row = (await self._connection.execute(_LOCK, {"conversation": conversation_id})).one_or_none()
        return None if row is None else Conversation(row.id, row.last_offset)

    async def advance(self, conversation_id: str) -> int:
        dialect = self._connection.dialect.name
        values = {f"new_{name}": value for name, value in updated(self._unit).items()}
        result = await self._connection.execute(_ADVANCE[dialect], {"conversation": conversation_id} | values)
        offset: int | None = result.scalar_one_or_none() if dialect == "sqlite" else result.lastrowid
        if not offset:
            raise LookupError(f"no conversation {conversation_id}")
        return offset

    async def append(self, message: Message) -> None:
        await self._connection.execute(_APPEND, asdict(message) | created(self._unit))

    async def page(self, conversation_id: str, before: int | None, limit: int) -> Sequence[Message]:
        query = (
            select(*_MESSAGE)
            .where(messages.c.conversation_id == conversation_id)
            .order_by(messages.c.offset.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(messages.c.offset < before)
        rows = (await self._connection.execute(query)).mappings().all()
        return [Message(**row) for row in reversed(rows)]

    async def read_marks(self, conversation_id: str) -> Mapping[str, int]:
        rows = await self._connection.execute(
            select(read_marks.c.user_id, read_marks.c.read_offset).where(
                read_marks.c.conversation_id == conversation_id
            )
        )
        return {row.user_id: row.read_offset for row in rows}

    async def set_read_mark(self, conversation_id: str, user_id: str, offset: int) -> None:
        row = {"conversation_id": conversation_id, "user_id": user_id, "read_offset": offset}
        await self._connection.execute(_MARK[self._connection.dialect.name], row)

    async def unread(self, conversation_id: str, user_id: str) -> int:
        mark = (
            select(read_marks.c.read_offset)
            .where(read_marks.c.conversation_id == conversation_id, read_marks.c.user_id == user_id)
            .scalar_subquery()
        )
        query = (
            select(func.count())
            .select_from(messages)
            .where(
                messages.c.conversation_id == conversation_id,
                messages.c.sender_id != user_id,
                messages.c.offset > func.coalesce(mark, 0),
            )
        )
        return int((await self._connection.execute(query)).scalar_one())
