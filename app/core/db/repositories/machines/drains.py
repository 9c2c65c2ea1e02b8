"""Every query on drained machines, whose workers take nothing."""

from datetime import datetime

from sqlalchemy import delete, select

from app.core.db.base import Repository
from app.core.db.worker_tables import DrainedMachine


class Drains(Repository):
    """The machines that are drained. One stays so until `undo`, whatever is restarted."""

    def is_drained(self, machine: str) -> bool:
        return self._session.get(DrainedMachine, machine) is not None

    def list_all(self) -> dict[str, datetime]:
        """Since when each of them is drained, by name."""
        rows = self._session.scalars(select(DrainedMachine).order_by(DrainedMachine.machine))
        return {row.machine: row.since for row in rows}

    def drain(self, machine: str, *, now: datetime) -> bool:
        """Let the workers of a machine take nothing more. False if it is drained already."""
        if self.is_drained(machine):
            return False
        self._session.add(DrainedMachine(machine=machine, since=now))
        self._session.flush()
        return True

    def undo(self, machine: str) -> bool:
        """Let its workers take jobs again. False if it was not drained."""
        rows = delete(DrainedMachine).where(DrainedMachine.machine == machine)
        return self._session.execute(rows.returning(DrainedMachine.machine)).first() is not None
