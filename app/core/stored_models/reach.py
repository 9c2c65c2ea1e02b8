"""Which base models the workers of this machine can train: what is here or can be fetched."""

import time
from contextlib import suppress
from pathlib import Path

from app.core.base_models import Catalogue, HubSource
from app.core.db.repositories.base_models.stored import FETCH_PAUSE, StoredModels
from app.core.db.session import Session

_AWAY = ".away"


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
    return tuple(sorted(here | (away - set(list_failed(catalogue)))))


def note_failure(catalogue: Catalogue, model_id: str) -> None:
    """Note that a base model could not be fetched, for all workers of the machine."""
    marker = _marker(catalogue, model_id)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def forget_failure(catalogue: Catalogue, model_id: str) -> None:
    """Note that a base model was fetched."""
    _marker(catalogue, model_id).unlink(missing_ok=True)


def list_failed(catalogue: Catalogue) -> list[str]:
    """Ids of the base models whose fetch has just failed here.

    Work that needs one may be tried again after `FETCH_PAUSE`. Then other machines come first.
    """
    limit_s = time.time() - 2 * FETCH_PAUSE.total_seconds()
    failed: list[str] = []
    any_marker = _marker(catalogue, "*")
    for marker in any_marker.parent.glob(any_marker.name):
        with suppress(FileNotFoundError):  # it was fetched at this moment
            if marker.stat().st_mtime > limit_s:
                failed.append(marker.name.removeprefix(".").removesuffix(_AWAY))
    return failed


def _marker(catalogue: Catalogue, model_id: str) -> Path:
    return catalogue.directory(model_id).with_name(f".{model_id}{_AWAY}")
