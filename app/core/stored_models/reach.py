"""Which base models the workers of this machine can train: what is here or can be fetched."""

import time
from pathlib import Path

from app.core.base_models import Catalogue, HubSource
from app.core.db.repositories.base_models.stored import FETCH_PAUSE, StoredModels
from app.core.db.session import Session


def list_reachable(session: Session, catalogue: Catalogue, *, is_shared: bool) -> tuple[str, ...]:
    """Ids of the base models that are on this machine or that it can fetch.

    One whose fetch has just failed here is left to other machines for a moment.

    Args:
        session: of the transaction.
        catalogue: the base models of this machine.
        is_shared: whether other machines reach the store, so that base models are kept in it.
    """
    here = {entry.id for entry, _ in catalogue.list_installed()}
    if not is_shared:
        return tuple(sorted(here))
    pinned = {
        entry.id
        for entry in catalogue.entries
        if isinstance(entry.source, HubSource) and entry.source.revision is not None
    }
    away = pinned | StoredModels(session).list_ids()
    return tuple(sorted(here | {each for each in away if not _has_failed(catalogue, each)}))


def note_failure(catalogue: Catalogue, model_id: str) -> None:
    """Note that a base model could not be fetched, for all workers of the machine."""
    marker = _marker(catalogue, model_id)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _has_failed(catalogue: Catalogue, model_id: str) -> bool:
    try:
        age_s = time.time() - _marker(catalogue, model_id).stat().st_mtime
    except OSError:
        return False
    return age_s < FETCH_PAUSE.total_seconds()


def _marker(catalogue: Catalogue, model_id: str) -> Path:
    return catalogue.directory(model_id).with_name(f".{model_id}.away")
