"""The method of a job on the wire, with its hyperparameters: OpenAI's three and ours.

`TrainingConfig` is the source of their ranges, defaults and descriptions. This module only gives
the fields the names that users of other fine-tuning services know.
"""

import re
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    field_validator,
)
from pydantic_core import PydanticCustomError

from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import DPO_RATE_DIVISOR, DpoSettings, Method, TrainingConfig
from app.schemas.bodies import RequestBody

_RENAMED = {"epochs": "n_epochs", "max_sequence_tokens": "context_length"}
WIRE_NAMES = MappingProxyType(
    {
        _RENAMED.get(name, name): name
        for name in TrainingConfig.model_fields
        if name not in ("lora", "dpo", "seed", "recipe")
    }
)
"""Field of `TrainingConfig` by its name on the wire."""

LORA_WIRE_NAMES = MappingProxyType(
    {
        "lora_r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "use_rslora": "use_rslora",
        "use_dora": "use_dora",
        "init_lora_weights": "init_lora_weights",
        "modules_to_save": "modules_to_save",
        "lora_layers": "layers",
    }
)
"""Field of `LoraShape` by its name on the wire."""

DPO_NAMES = tuple(DpoSettings.model_fields)
"""Hyperparameters of preference tuning alone, by their names on the wire."""

SUPERVISED_NAMES = ("train_on", "train_on_inputs")
"""Hyperparameters of supervised jobs alone, by their names on the wire."""

DEFAULT_LEARNING_RATES: MappingProxyType[Method, float] = MappingProxyType(
    {
        "supervised": (_usual_rate := TrainingConfig.model_fields["learning_rate"].default),
        "dpo": _usual_rate / DPO_RATE_DIVISOR,
    }
)
"""Default of `learning_rate`, which `learning_rate_multiplier` multiplies, by the method."""

RECIPE_NAMES = frozenset(
    {
        "n_epochs",
        "learning_rate",
        "learning_rate_multiplier",
        "lora_r",
        "lora_alpha",
        "lora_target_modules",
    }
)
"""Hyperparameters, by their names on the wire, for which `"auto"` asks for a value that fits the
job. For every other one, it means the default."""

_LISTED_RECIPE_NAMES = ", ".join(f"`{name}`" for name in sorted(RECIPE_NAMES))

AUTO = "auto"

_WIRE_NAME_OF = {name: wire for wire, name in (*WIRE_NAMES.items(), *LORA_WIRE_NAMES.items())}

_NARROWER_RANGES = MappingProxyType({"lora_dropout": Field(le=0.99)})
"""Ranges of new jobs that are narrower than those of stored jobs. A dropout that rounds to 1 in
single precision zeroes the whole input and divides by zero."""

_ALIASES = {"lora_r": "lora_rank", "context_length": "max_seq_length"}


def _auto_is_none(value: Any) -> Any:
    return None if value == AUTO else value


def _keep_auto(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return AUTO if value == AUTO else check(value)


_LeftToDefault = BeforeValidator(_auto_is_none)
_LeftToRecipe = (WrapValidator(_keep_auto), PlainSerializer(lambda value: value))
"""Keeps `"auto"`, which the type of the field does not mention: errors then name one type."""


def _allow_auto(schema: dict[str, Any]) -> None:
    """Tell the OpenAPI document about `"auto"`, which the validators take."""
    schema["anyOf"].append({"type": "string", "const": AUTO})


def _field(default: Any = None, **options: Any) -> Any:
    return Field(default=default, json_schema_extra=_allow_auto, **options)


class ComputedHyperparameters(RequestBody):
    """The hyperparameters that are not simply a field of `TrainingConfig`."""

    learning_rate_multiplier: Annotated[
        Annotated[float, Field(gt=0, le=10_000)] | None, *_LeftToRecipe
    ] = _field()
    """OpenAI's way to set the learning rate: a factor on the default, which is 2e-4, or 2e-5 with
    the method `dpo`. It cannot be given together with `learning_rate`."""

    gradient_accumulation_steps: Annotated[int | None, _LeftToDefault] = _field(ge=1, le=256)
    """Multiplier of `batch_size`: an optimizer step takes `batch_size` times this many examples. If
    only this is set, `batch_size` counts as 1."""

    lora_target_modules: Annotated[
        list[str] | Literal["all-linear", "attention", "mlp"] | None, *_LeftToRecipe
    ] = _field()
    """Names of the linear layers that get an adapter. `all-linear` stands for all that the base
    model offers, `attention` and `mlp` for those of the two halves of its layers, alone or in the
    list. The job shows the names."""

    packing: Annotated[Literal[False] | None, _LeftToDefault] = _field()
    """Packing of several examples into one sequence. It is not offered, so this must be `false`.
    Examples are not padded to a common length, so packing would save nothing."""


def _hyperparameter(model: type[BaseModel], name: str, wire_name: str) -> tuple[Any, Any]:
    """A field like `model.name`, which may also be absent, null or `"auto"`."""
    field = model.model_fields[name]
    narrower = _NARROWER_RANGES.get(wire_name, Field())
    annotation = Annotated[_as_json(field.annotation), narrower, *field.metadata]  # pyright: ignore[reportInvalidTypeForm]
    alias = _ALIASES.get(wire_name)
    options = {} if alias is None else {"validation_alias": AliasChoices(wire_name, alias)}
    auto = _LeftToRecipe if wire_name in RECIPE_NAMES else (_LeftToDefault,)
    return (
        Annotated[annotation | None, *auto],  # pyright: ignore[reportInvalidTypeForm]
        _field(description=_in_wire_names(field.description or ""), **options),
    )


def _as_json(annotation: Any) -> Any:
    """The type of a field in JSON, which has lists and no tuples."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is tuple:
        return list[parts[0]]
    if kind is Annotated:
        return Annotated[_as_json(parts[0]), *parts[1:]]
    if kind in (Union, UnionType):
        either: Any = _as_json(parts[0])
        for other in parts[1:]:
            either |= _as_json(other)
        return either
    return annotation


def _in_wire_names(text: str) -> str:
    """The text with each field in backticks under the name that users of the API know."""
    return re.sub(r"`(\w+)`", lambda match: f"`{_WIRE_NAME_OF.get(match[1], match[1])}`", text)


_fields: dict[str, Any] = {
    **{wire: _hyperparameter(TrainingConfig, name, wire) for wire, name in WIRE_NAMES.items()},
    **{wire: _hyperparameter(LoraShape, name, wire) for wire, name in LORA_WIRE_NAMES.items()},
}

_dpo_fields = {name: field for name, field in _fields.items() if name not in SUPERVISED_NAMES} | {
    name: _hyperparameter(DpoSettings, name, name) for name in DPO_NAMES
}

if TYPE_CHECKING:
    Hyperparameters = ComputedHyperparameters
    DpoHyperparameters = ComputedHyperparameters
else:
    Hyperparameters = create_model(
        "Hyperparameters",
        __base__=ComputedHyperparameters,
        __doc__="Hyperparameters of a job. One that is absent or null gets its default, or a value "
        'that fits the job if the recipe of the job is `auto`. "auto" asks for a fitting value of '
        f"this one hyperparameter, if it is {_LISTED_RECIPE_NAMES}; otherwise it means the "
        "default. The job shows all values.",
        **_fields,
    )
    DpoHyperparameters = create_model(
        "DpoHyperparameters",
        __base__=ComputedHyperparameters,
        __doc__="Hyperparameters of preference tuning: those of `Hyperparameters` without what "
        "chooses the learned tokens, and its own.",
        **_dpo_fields,
    )


class SupervisedMethod(RequestBody):
    hyperparameters: Hyperparameters | None = None


class DpoMethod(RequestBody):
    hyperparameters: DpoHyperparameters | None = None


class MethodCreate(RequestBody):
    type: str
    """Training method: `supervised`, or `dpo` for direct preference optimization, which needs files
    with preferences."""
    supervised: SupervisedMethod | None = None
    """Settings of the method `supervised`."""
    dpo: DpoMethod | None = None
    """Settings of the method `dpo`."""
    reinforcement: Any = None
    """Settings of reinforcement fine-tuning. It is not offered, so this must be null or absent."""

    @property
    def hyperparameters(self) -> Hyperparameters | None:
        """The hyperparameters of the method that the request names."""
        settings = self.dpo or self.supervised
        return settings and settings.hyperparameters

    @field_validator("reinforcement")
    @classmethod
    def _must_be_absent(cls, value: Any, checked: ValidationInfo) -> Any:
        if value is not None and "type" in checked.data:  # an unknown type is reported instead
            raise PydanticCustomError(
                "unsupported_method", "This method is not offered here; use 'supervised' or 'dpo'"
            )
        return value

    @field_validator("supervised", "dpo")
    @classmethod
    def _must_be_of_the_type(cls, value: Any, checked: ValidationInfo) -> Any:
        asked = checked.data.get("type", checked.field_name)
        if value is not None and asked != checked.field_name:
            raise PydanticCustomError(
                "conflict",
                "The type of the method is '{asked}'. Move these settings to '{asked}', or change "
                "the type",
                {"asked": asked},
            )
        return value

    @field_validator("type")
    @classmethod
    def _must_be_offered(cls, value: str) -> str:
        if value not in get_args(Method):
            raise PydanticCustomError(
                "unsupported_method",
                "The method {method} is not offered here; use 'supervised' or 'dpo'",
                {"method": repr(value[:40])},
            )
        return value


def hint_for(name: str) -> str | None:
    """Where a hyperparameter that the method does not have belongs. None if no method has it."""
    if name in DPO_NAMES:
        return "It belongs to preference tuning: give it in 'method.dpo.hyperparameters'."
    if name in SUPERVISED_NAMES:
        return "Preference tuning always learns the two answers. Leave it out."
    return None


def as_hyperparameters(config: TrainingConfig, multiplier: float | None) -> dict[str, Any]:
    """The resolved hyperparameters by their names on the wire."""
    shown = {} if config.dpo is None else config.dpo.model_dump()
    hidden = () if config.dpo is None else SUPERVISED_NAMES
    shown |= {
        wire: getattr(config, name) for wire, name in WIRE_NAMES.items() if wire not in hidden
    }
    shown |= {wire: getattr(config.lora, name) for wire, name in LORA_WIRE_NAMES.items()}
    shown["lora_target_modules"] = list(config.lora.target_modules)
    shown["learning_rate_multiplier"] = multiplier
    return shown
