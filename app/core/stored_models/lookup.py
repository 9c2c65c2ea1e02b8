"""Which base models a service can tune: those that are in the store, and those of this machine."""

from dataclasses import dataclass
from pathlib import Path

from app.core.base_models import (
    BYTES_PER_PARAMETER,
    Catalogue,
    CatalogueEntry,
    InstalledModel,
    is_weights,
)
from app.core.db.repositories.base_models.stored import StoredModels
from app.core.db.session import Session
from app.core.hand_off.formats import read_layers, read_model_type


def find_usable(session: Session, catalogue: Catalogue, model_id: str) -> InstalledModel | None:
    """The base model that new jobs train, from the store or else of this machine.

    The one in the store comes first, because every machine can have it. None if there is none.
    """
    stored = StoredModels(session).find(model_id)
    return catalogue.find_installed(model_id) if stored is None else stored.installed


def find_same(
    session: Session, catalogue: Catalogue, model_id: str, sha256: str | None
) -> InstalledModel | None:
    """The base model with these files, wherever it is. None if it is nowhere.

    Without `sha256`, as `find_usable`.
    """
    if sha256 is None:  # in old rows
        return find_usable(session, catalogue, model_id)
    stored = StoredModels(session).find(model_id, sha256)
    found = catalogue.find_version(model_id, sha256)
    return stored.installed if stored else found and found[0]


def list_usable(
    session: Session, catalogue: Catalogue
) -> list[tuple[CatalogueEntry, InstalledModel]]:
    """The base models that new jobs can train, each with its entry."""
    stored = StoredModels(session).list_newest()
    found = (
        (entry, copy.installed if (copy := stored.get(entry.id)) else None)
        for entry in catalogue.entries
    )
    pairs = ((entry, model or catalogue.find_installed(entry.id)) for entry, model in found)
    return [(entry, model) for entry, model in pairs if model is not None]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What its files say of a base model."""

    architecture: str
    """`model_type` in its `config.json`. Empty if that names none."""
    weight_bytes: int
    layers: int | None = None
    """Number of its layers. None if its `config.json` is not on this machine or does not say."""

    @property
    def parameters(self) -> int | None:
        """Approximate number of parameters. None if it has no weights."""
        return self.weight_bytes // BYTES_PER_PARAMETER or None


def read_facts(session: Session, catalogue: Catalogue, installed: InstalledModel) -> ModelFacts:
    """What the files of a base model say, which may be in the store only."""
    stored = StoredModels(session).find(installed.id, installed.sha256)
    found = catalogue.find_version(installed.id, installed.sha256)
    if stored is not None:
        layers = found and read_layers(found[1])
        return ModelFacts(stored.architecture, stored.weight_bytes, layers)
    if found is None:  # it is being removed
        return ModelFacts("", 0)
    return read_files(found[1])


def read_files(directory: Path) -> ModelFacts:
    """What the files of a base model say, in the directory of it."""
    sizes = (path.stat().st_size for path in directory.iterdir() if is_weights(path.name))
    return ModelFacts(read_model_type(directory), sum(sizes), read_layers(directory))
