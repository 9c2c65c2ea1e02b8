"""Runs migrations on the connection that `app.core.db.migrate` hands in, in its transaction."""

from alembic import context

from app.core.db import (  # noqa: F401 - they define the tables
    check_tables,
    project_tables,
    tables,
    worker_tables,
)
from app.core.db.base import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # on SQLite, too: `migrating` in app/core/db/sqlite.py begins it
    render_as_batch=True,
)
context.run_migrations()
