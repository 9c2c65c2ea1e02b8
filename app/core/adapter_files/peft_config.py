"""What an `adapter_config.json` that `peft` has written may say, for everyone who reads one."""

from collections.abc import Mapping, Set
from typing import Any, cast

from app.core import strict_json

PREFIX = "base_model.model."
"""What `peft` writes before the name of each module."""

_EXPECTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
}
"""What the configuration may say, and nothing else."""

_START = "init_lora_weights"
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Starts of an adapter that leave the base model's own weights as they are."""

_WITHOUT_EFFECT = frozenset(
    {"auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying"}
    | {"eva_config", "inference_mode", "loftq_config", "lora_ga_config", "megatron_core"}
    | {"peft_version", "qalora_group_size", "revision", "runtime_config"}
)
"""What says where an adapter comes from, or has an effect only together with another setting."""

_NOTHING: tuple[Any, ...] = (None, False, "", "none", [], {})
"""Values of a setting that is not used."""


class UnsupportedSettingError(ValueError):
    """The adapter is of a kind that is not supported here. The message names the setting."""


def parse_config(text: bytes) -> dict[str, Any]:
    """Parse a configuration, in which everything may be wrong.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        config = strict_json.loads(text)
    except strict_json.StrictJsonError as error:
        raise ValueError(f"It is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError("It is no JSON object.")  # noqa: TRY004 - the text is wrong, no argument
    return cast("dict[str, Any]", config)


def refuse_unsupported(config: Mapping[str, Any], *, known: Set[str]) -> None:
    """Refuse an adapter that is more than plain LoRA on the base model as it is.

    Args:
        config: the configuration.
        known: settings that the caller reads, or need not read.

    Raises:
        UnsupportedSettingError: something else is set, or has an unsupported value.
    """
    for name, allowed in _EXPECTED.items():
        if config.get(name) not in allowed:
            raise UnsupportedSettingError(f"'{name}' must be '{allowed[0]}'.")
    if config.get(_START) not in _PLAIN_STARTS:
        raise UnsupportedSettingError(
            f"'{_START}' is {str(config[_START])[:80]!r}, so the adapter needs changed weights of "
            "its base model. Convert it to plain LoRA: save it with peft's "
            "path_initial_model_for_weight_conversion."
        )
    for name in sorted(config.keys() - known - _EXPECTED.keys() - _WITHOUT_EFFECT - {_START}):
        if config[name] not in _NOTHING:
            raise UnsupportedSettingError(f"{name[:80]!r} is set, which is not supported here.")
