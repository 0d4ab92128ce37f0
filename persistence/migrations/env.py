"""What Alembic runs for each command. :mod:`persistence.migrate` brings the connection; there is no alembic.ini."""

from alembic import context

from persistence.tables import metadata

config = context.config
context.configure(
    connection=config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    on_version_apply=config.attributes["on_version_apply"],
)
with context.begin_transaction():
    context.run_migrations()
