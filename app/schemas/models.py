"""Wire format of models: base models that can be tuned here, and tuned models."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from app.core.base_models import CatalogueEntry, InstalledModel
from app.core.db.tables import Checkpoint, Job, TunedModel
from app.core.job.lora_shape import ImportedArchive, ParentAdapter
from app.schemas.bodies import ResponseBody, UnixTime


class ModelLimits(ResponseBody):
    context_length: int
    """Maximum number of tokens in one training example."""
    max_lora_rank: int
    """Highest value of `lora_r`."""
    target_modules: list[str]
    """Names of the linear layers that LoRA can target."""
    supports_tools: bool
    """True if the model's chat template can show tools and tool calls."""


class ModelCommands(ResponseBody):
    vllm: str
    """For vLLM. DIR is the directory of the adapter; BASE, if it is there, that of the base
    model. If an adapter cannot be served, DIR is that of the merged model."""
    llama_server: str | None
    """For llama.cpp. BASE.gguf is the base model as GGUF, FILE.gguf the adapter from `GET
    .../adapter?format=gguf`. Null if llama.cpp cannot load the adapter."""


class ModelRead(ResponseBody):
    id: str
    object: Literal["model"] = "model"
    created: UnixTime
    owned_by: str
    shutdown_date: str | None = None
    """Always null, because Tunery never shuts a model down."""

    # From here on, ours.
    base_model: str | None = None
    """Id of the base model that a tuned model was made from. Null for a base model."""
    fine_tuning_job_id: str | None = None
    """Id of the job that made a tuned model. Null for a base model."""
    checkpoint_id: str | None = None
    """Id of the checkpoint that holds a tuned model's adapter. Null for a base model."""
    step_number: int | None = None
    """Optimizer step after which that checkpoint was saved. Null for a base model."""
    parent: ParentAdapter | None = None
    """Adapter that a tuned model continues. Null for a base model, and for a new adapter on one."""
    imported: ImportedArchive | None = None
    """Archive that a tuned model was imported from. Null for a base model, and for a model that a
    job has trained."""
    aliases: list[str] = Field(default=[])
    """Other names of a base model that a job can give as its `model`."""
    repo: str | None = None
    """Hub repository of a base model. Null for a tuned model."""
    revision: str | None = None
    """Hub commit that a base model's weights came from. Null for a tuned model, and for a base
    model that was not fetched from a hub."""
    licence: str | None = None
    limits: ModelLimits | None = None
    commands: ModelCommands | None = None
    """Commands that serve a tuned model in other programs. Null for a base model, and in lists."""

    @classmethod
    def of_base(cls, entry: CatalogueEntry, installed: InstalledModel) -> "ModelRead":
        return cls(
            id=entry.id,
            created=installed.installed_at,
            owned_by=installed.repo.partition("/")[0],
            aliases=list(entry.aliases),
            repo=installed.repo,
            revision=installed.revision,
            licence=installed.licence,
            limits=ModelLimits.model_validate(entry),
        )

    @classmethod
    def of_tuned(
        cls,
        name: str,
        source: TunedModel | Job,
        checkpoint: Checkpoint,
        created_at: datetime,
        organization: str,
        *,
        commands: ModelCommands | None = None,
    ) -> "ModelRead":
        """A tuned model, or one checkpoint of a job under its own name."""
        parent, imported = source.parent, source.imported
        return cls(
            id=name,
            created=int(created_at.timestamp()),
            owned_by=organization,
            base_model=source.base_model,
            fine_tuning_job_id=checkpoint.job_id,
            checkpoint_id=checkpoint.id,
            step_number=checkpoint.step,
            parent=None if parent is None else ParentAdapter.model_validate(parent),
            imported=None if imported is None else ImportedArchive.model_validate(imported),
            commands=commands,
        )


class ModelList(ResponseBody):
    object: Literal["list"] = "list"
    data: list[ModelRead]


class ModelDeleted(ResponseBody):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
