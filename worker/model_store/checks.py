"""Checks that a base model is only data, and nothing that makes a program run code.

transformers imports Python files and loads kernels that a configuration names, and it unpickles
weights that are not safetensors. Some versions did part of this without `trust_remote_code`. So
none of it gets into a model's directory.
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from worker.model_store.errors import RefusedModelError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

_TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_CONFIG_NAMES = (CONFIG_NAME, "generation_config.json", "tokenizer_config.json")
_WANTED_NAMES = frozenset(
    {
        *_CONFIG_NAMES,
        *_TOKENIZER_NAMES,
        "added_tokens.json",
        "chat_template.jinja",
        "merges.txt",
        "special_tokens_map.json",
        INDEX_NAME,
    }
)
_WANTED_TEXT = re.compile(r"(LICEN[CS]E|NOTICE|README|USE_POLICY)(\.(md|txt))?", re.IGNORECASE)
_SHARD_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")


def is_wanted(name: str) -> bool:
    """Whether a file of this name, beside the weights, belongs to an installed model."""
    return name in _WANTED_NAMES or _WANTED_TEXT.fullmatch(name) is not None


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
    weight_map = _read_object(path).get("weight_map")
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
    check_configs(directory)
    names = {path.name for path in directory.iterdir()}
    if names.isdisjoint(_TOKENIZER_NAMES):
        raise RefusedModelError(
            f"It has no tokenizer: none of {', '.join(_TOKENIZER_NAMES)}. Add it."
        )
    weights = find_weight_files(directory, names)
    for name in sorted(names):
        path = directory / name
        if path.is_symlink() or not path.is_file():
            raise RefusedModelError(f"{name} is not a regular file. Replace it with a copy.")
        if name not in weights and not is_wanted(name):
            raise RefusedModelError(f"{name} does not belong to a model. Remove it.")
    for name in weights:
        _check_weights(directory / name)


def check_configs(directory: Path) -> None:
    """Check that no configuration in `directory` makes a program run code.

    Raises:
        RefusedModelError: one does or is not JSON, or `config.json` is missing.
    """
    for name in _CONFIG_NAMES:
        if name == CONFIG_NAME or (directory / name).exists():
            _check_config(directory / name)


def _check_config(path: Path) -> None:
    for key, value in _walk(_read_object(path)):
        if key in ("auto_map", "trust_remote_code") or key.endswith("_internal"):
            raise RefusedModelError(
                f"{path.name} has the key {key!r}, which can make a program run code. Tunery "
                "runs no code of a model: use one whose architecture transformers knows."
            )
        if key.endswith("_implementation") and "/" in json.dumps(value):
            raise RefusedModelError(
                f"{path.name} has the key {key!r}, which names code in a repository: {value!r}. "
                "Remove the key from a copy of the model, and give that directory as the source."
            )


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at every depth."""
    if isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            yield key, item
            yield from _walk(item)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _walk(item)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RefusedModelError(f"It has no {path.name}. Add it.") from error
    except (ValueError, RecursionError) as error:
        raise RefusedModelError(
            f"{path.name} is not JSON: {error}. Take an intact copy."
        ) from error
    if not isinstance(value, dict):
        raise RefusedModelError(f"{path.name} is not a JSON object. Take an intact copy.")
    return cast("dict[str, Any]", value)


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):  # reads the header and checks the sizes
            pass
    except SafetensorError as error:
        raise RefusedModelError(
            f"{path.name} is not a safetensors file: {error}. Take an intact copy."
        ) from error
