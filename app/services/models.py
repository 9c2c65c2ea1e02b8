"""What a caller may ask of models. The caller owns the transaction."""

from app.core.base_models import Catalogue, CatalogueEntry, InstalledModel
from app.core.db.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.models import TunedModel
from app.core.db.session import Session
from app.core.errors import InvalidRequestError

InstalledBase = tuple[CatalogueEntry, InstalledModel]


def list_models(session: Session, catalogue: Catalogue) -> list[InstalledBase | TunedModel]:
    """The base models that can be tuned here, then the tuned models, newest first."""
    found: list[InstalledBase | TunedModel] = []
    for entry in catalogue.entries:
        installed = catalogue.find_installed(entry.id)
        if installed is not None:
            found.append((entry, installed))
    return found + TunedModelRepository(session).list_all()


def get_model(session: Session, catalogue: Catalogue, name: str) -> InstalledBase | TunedModel:
    """The model of this name.

    Raises:
        NotFoundError: no tuned model and no installed base model has it.
    """
    entry = catalogue.find(name)
    installed = None if entry is None else catalogue.find_installed(entry.id)
    if entry is not None and installed is not None:
        return entry, installed
    return TunedModelRepository(session).get(name)


def delete_model(session: Session, catalogue: Catalogue, name: str) -> list[str]:
    """Forget a tuned model and its adapter; its job, the log and earlier checkpoints stay.

    Returns:
        The keys of the blobs to free once the transaction is committed.

    Raises:
        NotFoundError: no tuned model has this name.
        InvalidRequestError: it is a base model.
    """
    if catalogue.find(name) is not None:
        raise InvalidRequestError(
            f"{name} is a base model; only tuned models can be deleted here.",
            code="model_not_deletable",
            param="model",
        )
    models = TunedModelRepository(session)
    model = models.get(name)
    checkpoint = model.checkpoint
    models.delete(model)
    return CheckpointRepository(session).delete(checkpoint)
