"""Runs the migrations: on the connection that it is given, or, from the alembic command, on
DATABASE__URL.
"""

from __future__ import annotations

from contextlib import closing

from alembic import context
from sqlalchemy import Connection

from trainer_app.settings import load_settings
from trainer_app.store.database import Database
from trainer_app.store.tables import Table


def migrate(connection: Connection) -> None:
    """Run them in the connection's transaction: all or none."""
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        # SQLite alters a table by copying it.
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with closing(Database(load_settings().database_url)) as db, db.write() as connection:
        migrate(connection)
