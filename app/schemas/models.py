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

    # From here on, ours.
    base_model: str | None = None
    """Of a tuned model: what it was tuned from."""
    fine_tuning_job_id: str | None = None
    """Of a tuned model: the job that made it."""
    repo: str | None = None
    """Of a base model: its repository on the hub."""
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
