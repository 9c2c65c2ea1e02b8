"""Every query on the base models whose files are in the store."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select

from app.core.base_models import InstalledModel, is_weights
from app.core.db.base import Repository
from app.core.db.blob_keys import NamedBlob, blobs_of_model
from app.core.db.session import lock_names
from app.core.db.worker_tables import StoredModel

FETCH_PAUSE = timedelta(minutes=1)
"""Time after which work is tried again whose base model could not be fetched."""


@dataclass(frozen=True, slots=True)
class StoredCopy:
    """A base model in the store, as its row describes it."""

    installed: InstalledModel
    files: Mapping[str, NamedBlob]
    """Its files by name, with the record, `tunery.json`."""
    architecture: str
    """`model_type` in its `config.json`. Empty if that names none."""
    created_at: datetime

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    @property
    def weight_bytes(self) -> int:
        return sum(file.bytes for name, file in self.files.items() if is_weights(name))


class StoredModels(Repository):
    def find(self, model_id: str, sha256: str | None = None) -> StoredCopy | None:
        """The copy of a base model with these files. Without `sha256`, the newest one."""
        query = select(StoredModel).where(StoredModel.id == model_id)
        if sha256 is not None:
            query = query.where(StoredModel.sha256 == sha256)
        newest = query.order_by(StoredModel.created_at.desc(), StoredModel.sha256).limit(1)
        row = self._session.scalar(newest)
        return None if row is None else _copy_of(row)

    def list_newest(self) -> dict[str, StoredCopy]:
        """The newest copy of each base model, by its id."""
        rows = self._session.scalars(
            select(StoredModel).order_by(StoredModel.created_at, StoredModel.sha256.desc())
        )
        return {row.id: _copy_of(row) for row in rows}

    def list_ids(self) -> set[str]:
        """Ids of the base models that are in the store."""
        return set(self._session.scalars(select(StoredModel.id)))

    def add(self, copy: StoredCopy) -> bool:
        """Record a copy, all of whose files are in the store. False if there is one already."""
        installed = copy.installed
        lock_names(self._session, "stored model", installed.id, installed.sha256)
        if self.find(installed.id, installed.sha256) is not None:
            return False
        self._session.add(
            StoredModel(
                id=installed.id,
                sha256=installed.sha256,
                record=installed.model_dump(mode="json"),
                files={
                    name: {"key": file.key, "bytes": file.bytes, "sha256": file.sha256}
                    for name, file in copy.files.items()
                },
                architecture=copy.architecture,
                bytes=copy.bytes,
                created_at=copy.created_at,
            )
        )
        return True

    def remove(self, model_id: str) -> list[str]:
        """Delete every copy of a base model. Returns the keys of the blobs to delete afterwards."""
        gone = delete(StoredModel).where(StoredModel.id == model_id).returning(StoredModel.files)
        copies = self._session.scalars(gone).all()
        return [file["key"] for files in copies for file in files.values()]

    def remove_all(self) -> None:
        """Delete every row: a restored service has a store without base models."""
        self._session.execute(delete(StoredModel))


def _copy_of(row: StoredModel) -> StoredCopy:
    return StoredCopy(
        InstalledModel.model_validate(row.record),
        blobs_of_model(row),
        row.architecture,
        row.created_at,
    )
