"""Trackers that a job sends its metrics to, as a request names them and a job keeps them."""

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from app.core.job.frozen import Frozen

LABELS: dict[str, str] = {"wandb": "Weights & Biases", "mlflow": "MLflow"}
"""Name of each tracker as people know it."""

_Name = Annotated[str, Field(min_length=1, max_length=128)]


class WandbTarget(Frozen):
    """Run of Weights & Biases that gets the metrics of a job."""

    model_config = ConfigDict(strict=True)

    project: _Name
    """Project that the run belongs to."""
    entity: _Name | None = None
    """Team or user that owns the project. By default, that of the operator's API key."""
    name: _Name | None = None
    """Name of the run. By default, it is the id of the job."""
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] | None = Field(
        default=None, max_length=16
    )
    """Tags of the run, for filters."""


class MlflowTarget(Frozen):
    """Run of MLflow that gets the metrics of a job."""

    model_config = ConfigDict(strict=True)

    experiment: _Name
    """Experiment that the run belongs to. It is created if it does not exist."""
    name: _Name | None = None
    """Name of the run. By default, it is the id of the job."""


class Integration(Frozen):
    """One tracker of a job, with the settings that belong to its type."""

    model_config = ConfigDict(strict=True)

    type: str
    """Type of the tracker: `wandb` for Weights & Biases, `mlflow` for MLflow."""
    wandb: WandbTarget | None = None
    """Settings of an integration of the type `wandb`."""
    mlflow: MlflowTarget | None = None
    """Settings of an integration of the type `mlflow`."""

    @field_validator("type")
    @classmethod
    def _must_be_known(cls, value: str) -> str:
        if value not in LABELS:
            raise PydanticCustomError(
                "unsupported_integration",
                "The integration {type} is not known here; use 'wandb' or 'mlflow'",
                {"type": repr(value[:40])},
            )
        return value

    @model_validator(mode="after")
    def _must_have_its_settings(self) -> Self:
        if [name for name in LABELS if getattr(self, name) is not None] != [self.type]:
            raise PydanticCustomError(
                "integration_settings",
                "An integration of the type {type} needs the field {type} and no other",
                {"type": repr(self.type)},
            )
        return self

    @property
    def label(self) -> str:
        """Name of the tracker as people know it."""
        return LABELS[self.type]

    def as_json(self) -> dict[str, Any]:
        """The integration as a job keeps and shows it."""
        return self.model_dump(exclude_none=True)
