"""What a database is asked, and what that costs it: statements, rows, pages."""

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event, text

from app.core.db.session import Database

_ROWS = text("""
SELECT sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del), sum(n_tup_hot_upd),
  sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))
FROM pg_stat_user_tables
""")


@dataclass
class Load:
    """What one database was asked while it was counted."""

    transactions: int = 0
    statements: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    hot: int = 0
    """Updates that changed no index."""
    read: int = 0
    """Rows of tables that were read; entries of indexes alone do not count."""
    wall_s: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict[str, int])
    """Statements by their first word."""

    def each(self, count: int) -> str:
        """Describe the load of one of so many things."""
        each = {
            "transactions": self.transactions,
            "statements": self.statements,
            "rows inserted": self.inserted,
            "updated": self.updated,
            "of them HOT": self.hot,
            "deleted": self.deleted,
            "read": self.read,
        }
        return ", ".join(f"{value / max(1, count):.1f} {name}" for name, value in each.items())


@contextmanager
def counting(database: Database) -> Generator[Load]:
    """Count what this process asks of a database, and the rows that the whole server touches."""
    load, lock = Load(), threading.Lock()

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        with lock:
            load.statements += 1
            word = statement.split(None, 1)[0]
            load.by_kind[word] = load.by_kind.get(word, 0) + 1

    def note_begin(_connection: Any) -> None:
        with lock:
            load.transactions += 1

    before = list(_rows(database))
    event.listen(database.engine, "before_cursor_execute", note)
    event.listen(database.engine, "begin", note_begin)
    began_s = time.perf_counter()
    try:
        yield load
    finally:
        load.wall_s = time.perf_counter() - began_s
        event.remove(database.engine, "before_cursor_execute", note)
        event.remove(database.engine, "begin", note_begin)
        after = list(_rows(database))
        changes = [now - then for now, then in zip(after, before, strict=True)]
        load.inserted, load.updated, load.deleted, load.hot, load.read = changes


def _rows(database: Database) -> Iterator[int]:
    with database.engine.connect() as connection:
        alone = connection.execution_options(isolation_level="AUTOCOMMIT")
        alone.execute(text("SELECT pg_stat_force_next_flush()"))
        alone.execute(text("SELECT pg_stat_clear_snapshot()"))
        for value in alone.execute(_ROWS).one():
            yield int(value or 0)
