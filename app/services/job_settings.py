"""Resolves the hyperparameters of a new job: the caller's values, then the model's defaults."""

import secrets
from datetime import date
from typing import Any

from pydantic import ValidationError

from app.core.base_models import CatalogueEntry
from app.core.errors import InvalidRequestError
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import TrainingConfig
from app.schemas.hyperparameters import LORA_WIRE_NAMES, WIRE_NAMES

_ATTENTION_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "dense", "c_attn"}
)
_MLP_MODULES = frozenset(
    {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc"}
)
"""Names of linear layers in either half of a layer, over all architectures. A name that stands for
both, such as the `c_proj` of GPT-2, is in neither."""

DEFAULT_LEARNING_RATE: float = TrainingConfig.model_fields["learning_rate"].default


def resolve_config(
    given: dict[str, Any], entry: CatalogueEntry, *, seed: int | None, today: date
) -> TrainingConfig:
    """Give every hyperparameter its value.

    Args:
        given: the hyperparameters that the caller set, by their names on the wire.
        entry: the base model.
        seed: the seed that the caller set.
        today: the date in UTC.

    Raises:
        InvalidRequestError: a value is above the limit of the base model, or two of them exclude
            each other.
    """
    values, lora = _defaults_for(entry)
    values |= {WIRE_NAMES[wire]: given[wire] for wire in given.keys() & WIRE_NAMES.keys()}
    lora |= {LORA_WIRE_NAMES[wire]: given[wire] for wire in given.keys() & LORA_WIRE_NAMES.keys()}
    if "lora_target_modules" in given:
        lora["target_modules"] = _target_modules(given["lora_target_modules"], entry)
    if "learning_rate_multiplier" in given:
        values["learning_rate"] = _multiplied_learning_rate(given)
    if "gradient_accumulation_steps" in given:
        values["batch_size"] = given.get("batch_size", 1) * given["gradient_accumulation_steps"]
    values |= _learned_part(given)
    values.setdefault("template_date", today)
    values["seed"] = secrets.randbelow(2**31) if seed is None else seed
    try:
        config = TrainingConfig(lora=LoraShape(**lora), **values)
    except ValidationError as error:  # a computed value is invalid; the request itself is valid
        first = error.errors()[0]
        name = str(first["loc"][-1])
        raise _bad_value(name, f"'{name}' becomes {first['input']:g}. {first['msg']}.") from error
    _refuse_contradictions(config)
    check_limits(config, entry)
    choice = "best" if config.chooses_best else "final"
    return config.model_copy(update={"checkpoint_choice": choice})


def _refuse_contradictions(config: TrainingConfig) -> None:
    """Refuse hyperparameters that exclude each other or have no effect together."""
    kind = config.lr_scheduler
    if config.early_stopping_threshold and config.early_stopping_patience is None:
        raise _bad_value(
            "early_stopping_threshold",
            "'early_stopping_threshold' needs an 'early_stopping_patience'.",
        )
    if config.warmup_steps is not None and config.warmup_ratio:
        raise _bad_value("warmup_steps", "Give either 'warmup_steps' or 'warmup_ratio', not both.")
    if config.warmup_steps and kind == "constant":
        raise _bad_value(
            "warmup_steps",
            "An 'lr_scheduler' of 'constant' has no warmup. Use 'constant_with_warmup'.",
        )
    if config.lora.init_lora_weights == "orthogonal" and config.lora.rank % 2:
        raise _bad_value(
            "init_lora_weights",
            f"'orthogonal' needs an even 'lora_r', and it is {config.lora.rank}.",
        )
    if config.min_lr_ratio and kind not in ("linear", "cosine"):
        raise _bad_value(
            "min_lr_ratio", f"'min_lr_ratio' needs a rate that falls. '{kind}' does not."
        )


def check_limits(config: TrainingConfig, entry: CatalogueEntry) -> None:
    """Check that the base model allows the rank and the context length.

    Raises:
        InvalidRequestError: one of them is above the base model's limit.
    """
    if config.lora.rank > entry.max_lora_rank:
        raise _bad_value("lora_r", f"'lora_r' can be at most {entry.max_lora_rank} for {entry.id}.")
    if config.max_sequence_tokens > entry.context_length:
        raise _bad_value(
            "context_length",
            f"'context_length' can be at most {entry.context_length} tokens for {entry.id}.",
        )


def check_validation(config: TrainingConfig, *, has_file: bool) -> None:
    """Refuse two sources of validation data, and what has no effect without one.

    Raises:
        InvalidRequestError: such a hyperparameter is set.
    """
    if config.validation_split is not None and has_file:
        raise _bad_value(
            "validation_split", "Give either 'validation_split' or a validation_file, not both."
        )
    if config.validation_split is not None or has_file:
        return
    for name in ("n_evals", "eval_steps", "early_stopping_patience"):
        if getattr(config, name) is not None:
            raise _bad_value(name, f"'{name}' needs a validation_file or a validation_split.")
    if config.chooses_best:
        raise _bad_value(
            "checkpoint_choice",
            "A 'checkpoint_choice' of 'best' needs a validation_file or a validation_split.",
        )


def _defaults_for(entry: CatalogueEntry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Defaults of `TrainingConfig` and of `LoraShape` that depend on the base model."""
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


def _learned_part(given: dict[str, Any]) -> dict[str, Any]:
    """What is learned, which has two names: `train_on_inputs` means `everything`."""
    train_on, with_inputs = given.get("train_on"), given.get("train_on_inputs")
    if train_on is None:
        return {"train_on": "everything"} if with_inputs else {}
    if with_inputs is not None and with_inputs != (train_on == "everything"):
        raise _bad_value(
            "train_on_inputs",
            f"'train_on_inputs' is {str(with_inputs).lower()}, and 'train_on' is '{train_on}'. "
            "Give only 'train_on'.",
        )
    return {"train_on_inputs": train_on == "everything"}


def _target_modules(asked: list[str] | str, entry: CatalogueEntry) -> tuple[str, ...]:
    """The names of the modules that were asked for, by name or by group."""
    groups = {
        "all-linear": entry.target_modules,
        "attention": tuple(name for name in entry.target_modules if name in _ATTENTION_MODULES),
        "mlp": tuple(name for name in entry.target_modules if name in _MLP_MODULES),
    }
    names = [asked] if isinstance(asked, str) else asked
    known = groups | {name: (name,) for name in entry.target_modules}
    unknown = [name for name in names if not known.get(name)]
    if unknown or not names:
        offered = ", ".join(entry.target_modules)
        what = f"{unknown[0][:80]!r} is not a module" if unknown else "Name at least one module"
        raise _bad_value("lora_target_modules", f"{what} that LoRA can target here: {offered}.")
    return tuple(dict.fromkeys(module for name in names for module in known[name]))


def _multiplied_learning_rate(given: dict[str, Any]) -> float:
    if "learning_rate" in given:
        raise _bad_value(
            "learning_rate_multiplier",
            "Give either 'learning_rate' or 'learning_rate_multiplier', not both.",
        )
    return DEFAULT_LEARNING_RATE * given["learning_rate_multiplier"]


def _bad_value(name: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=f"hyperparameters.{name}")
