"""Resolves the hyperparameters of a new job: the caller's values, then the model's defaults."""

import json
import secrets
from datetime import date
from typing import Any

from pydantic import ValidationError

from app.core.base_models import CatalogueEntry
from app.core.errors import InvalidRequestError
from app.core.job.lora_shape import MAX_LAYERS, LoraShape
from app.core.job.training_config import DpoSettings, Method, TrainingConfig
from app.schemas.hyperparameters import (
    DEFAULT_LEARNING_RATES,
    DPO_NAMES,
    LORA_WIRE_NAMES,
    SUPERVISED_NAMES,
    WIRE_NAMES,
    hint_for,
)

_ATTENTION_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "dense", "c_attn"}
)
_MLP_MODULES = frozenset(
    {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc"}
)
"""Names of linear layers in either half of a layer, over all architectures. A name that stands for
both, such as the `c_proj` of GPT-2, is in neither."""

_SHAPE_NAMES = {name: wire for wire, name in LORA_WIRE_NAMES.items() if name != "dropout"} | {
    "target_modules": "lora_target_modules"
}
"""Name on the wire of each field of `LoraShape` that a continued adapter keeps."""
_NAME_LISTS = frozenset({"target_modules", "modules_to_save"})
"""Fields of `LoraShape` whose order says nothing."""


def resolve_config(
    given: dict[str, Any],
    entry: CatalogueEntry,
    *,
    method: Method = "supervised",
    seed: int | None,
    today: date,
    shape: LoraShape | None = None,
) -> TrainingConfig:
    """Give every hyperparameter its value.

    Args:
        given: the hyperparameters that the caller set, by their names on the wire.
        entry: the base model.
        method: the training method.
        seed: the seed that the caller set.
        today: the date in UTC.
        shape: shape of the adapter that the job continues. None for a new adapter.

    Raises:
        InvalidRequestError: a value is above the limit of the base model, two of them exclude each
            other, the method does not have one, or one would change the shape of the adapter.
    """
    values, lora = _defaults_for(entry)
    values |= _method_settings(method, given)
    if shape is not None:
        lora = shape.model_dump()
    values |= {WIRE_NAMES[wire]: given[wire] for wire in given.keys() & WIRE_NAMES.keys()}
    lora |= {LORA_WIRE_NAMES[wire]: given[wire] for wire in given.keys() & LORA_WIRE_NAMES.keys()}
    if "lora_target_modules" in given:
        lora["target_modules"] = _target_modules(given["lora_target_modules"], entry)
    if "learning_rate_multiplier" in given:
        values["learning_rate"] = _multiplied_learning_rate(method, given)
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
    if shape is not None:
        config = _keep_shape(config, shape)
    _refuse_contradictions(config)
    _refuse_initialisation(config)
    check_limits(config, entry)
    choice = "best" if config.chooses_best else "final"
    return config.model_copy(update={"checkpoint_choice": choice})


def _keep_shape(config: TrainingConfig, shape: LoraShape) -> TrainingConfig:
    """Refuse to change the shape of the adapter that the job continues. Its dropout may change."""
    for name, wire in _SHAPE_NAMES.items():
        kept, asked = getattr(shape, name), getattr(config.lora, name)
        is_same = kept == asked if name not in _NAME_LISTS else set(kept) == set(asked)
        if not is_same:
            raise _bad_value(
                wire,
                f"'{wire}' is {json.dumps(kept)} in the adapter that the job continues, and "
                f"{json.dumps(asked)} in the request. It cannot change. Leave it out.",
            )
    lora = shape.model_copy(update={"dropout": config.lora.dropout})
    return config.model_copy(update={"lora": lora})


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
    if config.min_lr_ratio and kind not in ("linear", "cosine"):
        raise _bad_value(
            "min_lr_ratio", f"'min_lr_ratio' needs a rate that falls. '{kind}' does not."
        )


def _refuse_initialisation(config: TrainingConfig) -> None:
    """Refuse an initialisation that does not go with the other hyperparameters."""
    lora, kind = config.lora, config.lora.init_lora_weights
    if kind == "orthogonal" and lora.rank % 2:
        raise _bad_value(
            "init_lora_weights", f"'orthogonal' needs an even 'lora_r', and it is {lora.rank}."
        )
    if not lora.starts_from_base:
        return
    for name in ("use_dora", "use_rslora"):
        if getattr(lora, name):
            raise _bad_value("init_lora_weights", f"'{kind}' cannot be combined with '{name}'.")
    if config.weight_decay:
        raise _bad_value(
            "weight_decay",
            f"With an 'init_lora_weights' of '{kind}', 'weight_decay' would shrink weights of the "
            "base model itself. Leave it out.",
        )


def check_limits(config: TrainingConfig, entry: CatalogueEntry) -> None:
    """Check that the base model allows the rank and the context length.

    Raises:
        InvalidRequestError: one of them is above the base model's limit.
    """
    if config.lora.saved_rank > entry.max_lora_rank:
        highest = entry.max_lora_rank * config.lora.rank // config.lora.saved_rank
        start = config.lora.init_lora_weights
        why = f" with '{start}', which doubles it" if config.lora.starts_from_base else ""
        raise _bad_value("lora_r", f"'lora_r' can be at most {highest} for {entry.id}{why}.")
    if config.max_sequence_tokens > entry.context_length:
        raise _bad_value(
            "context_length",
            f"'context_length' can be at most {entry.context_length} tokens for {entry.id}.",
        )


def check_layers(config: TrainingConfig, layers: int | None) -> None:
    """Check that the base model has the layers that get an adapter.

    Args:
        layers: number of its layers. None if that is not known here: then the training checks.

    Raises:
        InvalidRequestError: it has fewer.
    """
    try:
        config.lora.adapted_layers(layers or MAX_LAYERS)
    except ValueError as error:
        raise _bad_value("lora_layers", str(error)) from error


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


def _method_settings(method: Method, given: dict[str, Any]) -> dict[str, Any]:
    """Values of `TrainingConfig` that depend on the method."""
    if method == "supervised":
        return {}
    for name in SUPERVISED_NAMES:
        if name in given:
            raise _bad_value(name, f"The method '{method}' has no '{name}'. {hint_for(name)}")
    dpo = DpoSettings(**{name: given[name] for name in DPO_NAMES if name in given})
    return {"dpo": dpo, "learning_rate": DEFAULT_LEARNING_RATES[method]}


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


def _multiplied_learning_rate(method: Method, given: dict[str, Any]) -> float:
    if "learning_rate" in given:
        raise _bad_value(
            "learning_rate_multiplier",
            "Give either 'learning_rate' or 'learning_rate_multiplier', not both.",
        )
    return DEFAULT_LEARNING_RATES[method] * given["learning_rate_multiplier"]


def _bad_value(name: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=f"hyperparameters.{name}")
