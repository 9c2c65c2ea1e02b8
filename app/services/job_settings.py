"""Every setting of a new job gets its value: the caller's, or the default that fits the model."""

import secrets
from typing import Any

from pydantic import ValidationError

from app.core.base_models import CatalogueEntry
from app.core.errors import InvalidRequestError
from app.core.job.training_config import LoraShape, TrainingConfig
from app.schemas.hyperparameters import LORA_WIRE_NAMES, WIRE_NAMES

DEFAULT_LEARNING_RATE: float = TrainingConfig.model_fields["learning_rate"].default


def resolve_config(
    knobs: dict[str, Any], entry: CatalogueEntry, *, seed: int | None
) -> TrainingConfig:
    """Give every setting its value.

    Args:
        knobs: what the caller set, under its names on the wire.

    Raises:
        InvalidRequestError: a setting is more than the base model allows, or two exclude each
            other.
    """
    values, lora = _defaults_for(entry)
    values |= {WIRE_NAMES[wire]: knobs[wire] for wire in knobs.keys() & WIRE_NAMES.keys()}
    lora |= {LORA_WIRE_NAMES[wire]: knobs[wire] for wire in knobs.keys() & LORA_WIRE_NAMES.keys()}
    if "lora_target_modules" in knobs:
        lora["target_modules"] = _target_modules(knobs["lora_target_modules"], entry)
    if "learning_rate_multiplier" in knobs:
        values["learning_rate"] = _multiplied_learning_rate(knobs)
    if "gradient_accumulation_steps" in knobs:
        values["batch_size"] = knobs.get("batch_size", 1) * knobs["gradient_accumulation_steps"]
    values["seed"] = secrets.randbelow(2**31) if seed is None else seed
    try:
        config = TrainingConfig(lora=LoraShape(**lora), **values)
    except ValidationError as error:  # of what was computed here; the rest was checked before
        first = error.errors()[0]
        name = str(first["loc"][-1])
        raise _bad_knob(name, f"'{name}' becomes {first['input']:g}. {first['msg']}.") from error
    check_limits(config, entry)
    return config


def check_limits(config: TrainingConfig, entry: CatalogueEntry) -> None:
    """Refuse what is more than the base model allows.

    Raises:
        InvalidRequestError: it is.
    """
    if config.lora.rank > entry.max_lora_rank:
        raise _bad_knob("lora_r", f"The highest rank for {entry.id} is {entry.max_lora_rank}.")
    if config.max_sequence_tokens > entry.context_length:
        raise _bad_knob(
            "context_length", f"{entry.id} reads at most {entry.context_length} tokens."
        )


def refuse_without_validation(config: TrainingConfig) -> None:
    """Refuse a setting that does something only with a validation file.

    Raises:
        InvalidRequestError: there is one.
    """
    for name in ("n_evals", "early_stopping_patience"):
        if getattr(config, name) is not None:
            raise _bad_knob(name, f"'{name}' needs a validation_file to evaluate on.")


def _defaults_for(entry: CatalogueEntry) -> tuple[dict[str, Any], dict[str, Any]]:
    """The defaults that this base model needs to be other than the reference's."""
    usual = LoraShape()
    usual_length: int = TrainingConfig.model_fields["max_sequence_tokens"].default
    targets = tuple(name for name in usual.target_modules if name in entry.target_modules)
    return (
        {"max_sequence_tokens": min(usual_length, entry.context_length)},
        {
            "rank": min(usual.rank, entry.max_lora_rank),
            "target_modules": targets or entry.target_modules,
        },
    )


def _target_modules(asked: list[str] | str, entry: CatalogueEntry) -> tuple[str, ...]:
    if asked == "all-linear":
        return entry.target_modules
    unknown = [name for name in asked if name not in entry.target_modules]
    if unknown or not asked:
        offered = ", ".join(entry.target_modules)
        what = f"{unknown[0][:80]!r} is not a module" if unknown else "Name at least one module"
        raise _bad_knob("lora_target_modules", f"{what} that LoRA may target here: {offered}.")
    return tuple(dict.fromkeys(asked))


def _multiplied_learning_rate(knobs: dict[str, Any]) -> float:
    if "learning_rate" in knobs:
        raise _bad_knob(
            "learning_rate_multiplier",
            "Give either 'learning_rate' or 'learning_rate_multiplier', not both.",
        )
    return DEFAULT_LEARNING_RATE * knobs["learning_rate_multiplier"]


def _bad_knob(name: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=f"hyperparameters.{name}")
