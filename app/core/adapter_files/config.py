"""Reads the configuration of an adapter that `peft` has saved elsewhere."""

from collections.abc import Sequence
from typing import Any, cast, get_args

from pydantic import ValidationError

from app.core.adapter_files.archive import ImportRefusedError
from app.core.adapter_files.peft_config import parse_config, refuse_unsupported
from app.core.job.artifacts import ADAPTER_CONFIG_NAME
from app.core.job.lora_shape import Embeddings, LoraShape

_SHAPE = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
"""Field of `LoraShape` by its name in the configuration."""
_KNOWN = {*_SHAPE, "target_modules", "modules_to_save", "layers_to_transform"}


_NAMES = {field: key for key, field in _SHAPE.items()} | {"layers": "layers_to_transform"}


def read_config(text: bytes, *, target_modules: Sequence[str], max_rank: int) -> LoraShape:
    """Read the shape of an adapter.

    Args:
        text: content of `adapter_config.json`.
        target_modules: linear layers of the base model that an adapter may have.
        max_rank: highest rank for the base model.

    Raises:
        ImportRefusedError: it is not the configuration of an adapter that can be used here.
    """
    try:
        config = parse_config(text)
        refuse_unsupported(config, known=_KNOWN)
    except ValueError as error:
        raise _refused(str(error)) from error
    targets, embeddings = (
        _read_names(config, key) for key in ("target_modules", "modules_to_save")
    )
    _refuse_unknown("target_modules", targets, target_modules)
    _refuse_unknown("modules_to_save", embeddings, get_args(Embeddings))
    if not targets:
        raise _refused("'target_modules' has no module.")
    values = {field: config[name] for name, field in _SHAPE.items() if config.get(name) is not None}
    if not {"rank", "alpha"} <= values.keys():
        raise _refused("'r' and 'lora_alpha' must be set.")
    names = {"target_modules": targets, "modules_to_save": embeddings}
    try:
        shape = LoraShape.model_validate(
            values | names | {"layers": _read_layers(config)}, strict=True
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = _NAMES[str(first["loc"][0])]
        raise _refused(f"'{name}': {first['msg']}.") from error
    if shape.rank > max_rank:
        raise _refused(f"'r' is {shape.rank}, and can be at most {max_rank} for this base model.")
    return shape


def _refuse_unknown(key: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise _refused(f"'{key}' has {name[:80]!r}. It can have {', '.join(known)}.")


def _read_names(config: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of names, without repeats and sorted, since `peft` writes sets in any order."""
    names = cast("object", config.get(key) or [])
    if not isinstance(names, list) or not all(type(each) is str for each in cast("Any", names)):
        raise _refused(f"'{key}' must be a list of names.")
    return tuple(sorted(set(cast("list[str]", names))))


def _read_layers(config: dict[str, Any]) -> object:
    """The indices of the layers that have an adapter; `peft` also writes a single one."""
    layers = cast("object", config.get("layers_to_transform"))
    if isinstance(layers, list):
        return tuple(cast("list[object]", layers)) or None
    return layers if layers is None else (layers,)


def _refused(what: str) -> ImportRefusedError:
    return ImportRefusedError(f"{ADAPTER_CONFIG_NAME}: {what}")
