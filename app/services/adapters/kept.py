"""Keeps an adapter that something is about to be made of. The caller owns the transaction."""

from app.core.access import Caller
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.session import Session
from app.core.db.tables import Checkpoint
from app.services import jobs


def keep_adapter(
    session: Session, caller: Caller, job_id: str, checkpoint: str | None
) -> Checkpoint:
    """Do as `jobs.get_adapter`, and let nobody delete the adapter before this transaction ends."""
    adapter = jobs.get_adapter(session, caller, job_id, checkpoint)
    if CheckpointRepository(session, caller.project_id).lock_to_continue(adapter.id):
        return adapter
    return jobs.get_adapter(session, caller, job_id, checkpoint)  # just deleted, and this says so
