"""Checks that a base model is complete and only data, and nothing that makes a program run code.

Only known names are taken (`files.py`), and weights only from safetensors, never from pickles.
`configs.py` checks the JSON files, and `templates.py` the chat templates.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from worker.model_store.configs import (
    CONFIG_NAME,
    CONFIG_NAMES,
    check_configs,
    check_json,
    count_layers,
    read_object,
)
from worker.model_store.errors import RefusedModelError
from worker.model_store.files import (
    INDEX_NAME,
    TOKENIZER_NAMES,
    WEIGHTS_NAME,
    check_file,
    is_wanted,
)
from worker.model_store.templates import check_templates

_SHARD_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")


def find_weight_files(directory: Path, names: Collection[str]) -> list[str]:
    """Choose the files of `names` that hold the weights.

    Args:
        directory: has the index, if `names` has it.
        names: names of all files of the model.

    Raises:
        RefusedModelError: there are no safetensors weights, or not all of them.
    """
    shards = _read_index(directory / INDEX_NAME) if INDEX_NAME in names else []
    if WEIGHTS_NAME in names:  # transformers prefers this file to those that an index names
        return [WEIGHTS_NAME]
    if not shards:
        raise RefusedModelError(
            f"It has neither {WEIGHTS_NAME} nor {INDEX_NAME}: weights are taken from safetensors "
            "only, never from pickles. Use a repository that has them, or convert the model with "
            "`save_pretrained` and give its directory as the source."
        )
    missing = [shard for shard in shards if shard not in names]
    if missing:
        raise RefusedModelError(
            f"{INDEX_NAME} names {missing[0]}, which is missing. Add that file."
        )
    return shards


def _read_index(path: Path) -> list[str]:
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RefusedModelError(f"{path.name} has no weight_map. Take an intact copy of it.")
    shards = sorted({str(shard) for shard in cast("dict[str, Any]", weight_map).values()})
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard):
            raise RefusedModelError(
                f"{path.name} names {shard!r}, which is not a safetensors file beside it. "
                "Do not use this model unless its publisher explains it."
            )
    return shards


def check_model_directory(directory: Path) -> None:
    """Check that `directory` holds a complete model, and only data.

    Raises:
        RefusedModelError: it does not.
    """
    names = sorted(path.name for path in directory.iterdir())
    for name in names:
        check_file(directory / name)
    check_configs(directory)
    if not set(TOKENIZER_NAMES) & set(names):
        raise RefusedModelError(
            f"It has no tokenizer: none of {', '.join(TOKENIZER_NAMES)}. Add it."
        )
    weights = find_weight_files(directory, names)
    for name in names:
        if name not in weights and not is_wanted(name):
            raise RefusedModelError(f"{name} does not belong to a model. Remove it.")
        if name.endswith(".json") and name not in CONFIG_NAMES:
            check_json(directory / name)
    _check_weights(directory, weights)
    check_templates(directory)


def _check_weights(directory: Path, names: Sequence[str]) -> None:
    tensors = 0
    for name in names:
        try:  # reads the header and checks the sizes
            opened: Any = safe_open(directory / name, framework="numpy")
            with opened as weights:
                tensors += len(weights.keys())
        except SafetensorError as error:
            raise RefusedModelError(
                f"{name} is not a safetensors file: {error}. Take an intact copy."
            ) from error
    layers = count_layers(directory)
    if layers > tensors:  # building so many would fill the memory before any weight is read
        raise RefusedModelError(
            f"{CONFIG_NAME} promises {layers:,} layers, and the weights have only {tensors:,} "
            "tensors. Take intact copies of both."
        )
