"""Writes migration 0001 from the tables. For use until the first release; afterwards migrations are only added."""

from pathlib import Path
from typing import Any, Literal

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.autogenerate.api import AutogenContext
from alembic.migration import MigrationContext
from alembic.operations.ops import CreateTableOp, DropTableOp
from sqlalchemy import create_engine

from persistence.tables import JsonText, UtcDateTime, metadata

TARGET = Path(__file__).parent / "versions" / "0001_initial_schema.py"

HEAD = '''"""initial schema"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
'''

# A migration must mean the same for ever, so it names types, not the classes of this day's code.
FROZEN: dict[type, str] = {
    UtcDateTime: 'sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")',
    JsonText: 'sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")',
}


def render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    return FROZEN.get(type(item), False) if kind == "type" else False


def main() -> None:
    with create_engine("sqlite://").connect() as connection:
        context = MigrationContext.configure(connection)
        operations = produce_migrations(context, metadata)
        assert operations.upgrade_ops is not None
        body = render_python_code(operations.upgrade_ops, render_item=render_item)
        # Only tables: MySQL keeps an index that a foreign key needs, and a dropped table takes its indexes along.
        assert operations.downgrade_ops is not None
        tables = [op.table_name for op in operations.downgrade_ops.ops if isinstance(op, DropTableOp)]
        made = [op.table_name for op in operations.upgrade_ops.ops if isinstance(op, CreateTableOp)]
        assert sorted(made) == sorted(tables) == sorted(metadata.tables)
    lines = [line for line in body.splitlines() if not line.lstrip().startswith("#")]
    drops = [f'    op.drop_table("{table}")' for table in tables]
    TARGET.write_text(
        HEAD + "\n".join(["    " + lines[0].strip(), *lines[1:], "", "", "def downgrade() -> None:", *drops, ""])
    )


if __name__ == "__main__":
    main()
