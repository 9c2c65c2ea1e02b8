"""Wire format of models: base models that can be tuned here, and tuned models."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class ModelLimits(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    context_length: int
    max_lora_rank: int
    target_modules: list[str]
    """Linear layers that LoRA may target."""
    supports_tools: bool


class ModelRead(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shutdown_date: str | None = None
    """Always null: Tunery switches no model off."""

    # From here on, ours.
    base_model: str | None = None
    """Id of the base model that a tuned model was made from. Null for a base model."""
    fine_tuning_job_id: str | None = None
    """Id of the job that made a tuned model. Null for a base model."""
    checkpoint_id: str | None = None
    """Id of the checkpoint that holds a tuned model's adapter. Null for a base model."""
    step_number: int | None = None
    """Optimizer step after which that checkpoint was saved. Null for a base model."""
    aliases: list[str] = []
    """Further names of a base model, which a job may give as its `model`."""
    repo: str | None = None
    """Hub repository of a base model. Null for a tuned model."""
    revision: str | None = None
    licence: str | None = None
    limits: ModelLimits | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelRead]


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
