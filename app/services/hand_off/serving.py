"""The commands that serve a tuned model in other programs."""

from app.core.base_models import Catalogue
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.hand_off.commands import llama_server, vllm_with_adapter, vllm_with_merged_model
from app.core.job.training_config import TrainingConfig
from app.core.stored_models.lookup import find_usable
from app.schemas.models import ModelCommands


def commands_of(session: Session, job: Job, catalogue: Catalogue) -> ModelCommands:
    """The commands for a job's adapter, or for its merged model if no adapter can be served."""
    shape = TrainingConfig.model_validate(job.config).lora
    name = job.fine_tuned_model
    if shape.use_dora or shape.modules_to_save:
        return ModelCommands(vllm=vllm_with_merged_model(name), llama_server=None)
    entry = catalogue.find(job.base_model)
    installed = None if entry is None else find_usable(session, catalogue, entry.id)
    repo, revision = (installed.repo, installed.revision) if installed else ("", None)
    vllm = vllm_with_adapter(repo, revision, rank=shape.saved_rank, name=name)
    return ModelCommands(vllm=vllm, llama_server=llama_server())
