"""Names models, and finds an adapter by the name. The caller owns the transaction."""

import re

from app.core.access import Caller
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, Job

TUNED_PREFIX = "ft:"
"""What the name of every tuned model begins with. No base model has such a name."""

_CHECKPOINT_NAME = re.compile(r"(ft:.+):ckpt-step-([1-9]\d{0,8})", re.ASCII)

_NAME_LENGTH = 12
"""How many characters of a job's id end its model's name: 60 random bits."""


def find_checkpoint(session: Session, caller: Caller, name: str) -> tuple[Checkpoint, Job] | None:
    """The checkpoint with a name of the form `MODEL:ckpt-step-N`, and its job."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    if match is None:
        return None
    return CheckpointRepository(session, caller.project_id).find_of_model(match[1], int(match[2]))


def get_adapter_of(session: Session, caller: Caller, name: str) -> tuple[Checkpoint, Job]:
    """The checkpoint of a tuned model, or the one that `name` means, and its job.

    Raises:
        NotFoundError: no tuned model and no checkpoint has this name.
    """
    named = find_checkpoint(session, caller, name)
    if named is not None:
        return named
    model = TunedModelRepository(session, caller.project_id).get(name)
    return model.checkpoint, JobRepository(session, caller.project_id).get(model.job_id)


def name_model(base_model: str, organization: str, suffix: str | None, job_id: str) -> str:
    """A name in OpenAI's form. It has no slash, because some proxies rewrite slashes."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", (suffix or "").lower()).strip("-")
    return f"ft:{base_model}:{organization}:{slug}:{job_id[-_NAME_LENGTH:]}"
