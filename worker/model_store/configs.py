"""Checks the JSON files of a base model: that they are small and plain, and only data.

transformers imports Python files, loads kernels and opens other files when a configuration says so.
Some versions did part of this without `trust_remote_code`. So no such key gets into a model's
directory.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jiter

from app.core.strict_json import StrictJsonError, is_deeper, loads, members
from worker.model_store.errors import RefusedModelError

CONFIG_NAME = "config.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
CONFIG_NAMES = (CONFIG_NAME, "generation_config.json", TOKENIZER_CONFIG_NAME)

_MAX_DEPTH = 32
"""Maximum nesting of a configuration: several times that of any real one."""

_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_generate"})
_FILE_LIST_KEYS = frozenset({"configuration_files", "fast_tokenizer_files", "transformers_weights"})
"""Keys that make transformers read other files than those that are checked here."""

_FILE_KEYS = frozenset({"tokenizer_file", "vocab_file", "merges_file", "spm_file"})


def check_configs(directory: Path) -> None:
    """Check that no configuration in `directory` makes a program run code or read other files.

    Raises:
        RefusedModelError: one does or is not JSON, or `config.json` is missing.
    """
    for name in CONFIG_NAMES:
        if name == CONFIG_NAME or (directory / name).exists():
            check_config(directory / name)


def read_object(path: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        RefusedModelError: it is missing, ambiguous, or not a JSON object.
    """
    try:
        value = loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RefusedModelError(f"It has no {path.name}. Add it.") from error
    except StrictJsonError as error:
        raise RefusedModelError(
            f"{path.name} is not JSON that every program reads alike: {error}. Take an intact copy."
        ) from error
    if not isinstance(value, dict):
        raise RefusedModelError(f"{path.name} is not a JSON object. Take an intact copy.")
    return cast("dict[str, Any]", value)


def check_json(path: Path) -> None:
    """Check that a file that only libraries read is JSON, and not nested deeply.

    Raises:
        RefusedModelError: it is not.
    """
    try:
        jiter.from_json(path.read_bytes(), cache_mode="none")  # it stops at a depth of 200
    except ValueError as error:
        raise RefusedModelError(
            f"{path.name} is not JSON: {error}. Take an intact copy."
        ) from error


def count_layers(directory: Path) -> int:
    """The largest number of layers that `config.json` gives any part of the model. 0 for none."""
    found = (
        value
        for key, value in _walk(read_object(directory / CONFIG_NAME))
        if key == "num_hidden_layers" and isinstance(value, int)
    )
    return max(found, default=0)


def check_config(path: Path) -> None:
    """Check one of these files.

    Raises:
        RefusedModelError: it makes a program run code or read other files, or is not JSON.
    """
    config = read_object(path)
    if is_deeper(config, _MAX_DEPTH):
        raise RefusedModelError(
            f"{path.name} is nested more than {_MAX_DEPTH} levels deep. Take an intact copy."
        )
    for key, value in _walk(config):
        _check_key(path.name, key, value)


def _check_key(name: str, key: str, value: Any) -> None:
    if key in _CODE_KEYS or key.endswith("_internal"):
        raise RefusedModelError(
            f"{name} has the key {key!r}, which can make a program run code. Tunery runs no code "
            "of a model: use one whose architecture transformers knows."
        )
    if key.endswith("_implementation") and "/" in json.dumps(value):
        raise RefusedModelError(
            f"{name} has the key {key!r}, which names code in a repository: {value!r:.200}. "
            "Remove the key from a copy of the model, and give that directory as the source."
        )
    if key in _FILE_LIST_KEYS or (key in _FILE_KEYS and _is_path(value)):
        raise RefusedModelError(
            f"{name} has the key {key!r}, which names other files to read: {value!r:.200}. "
            "Remove the key from a copy of the model, and give that directory as the source."
        )


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or "\\" in value)


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at every depth."""
    if isinstance(value, dict):
        yield from cast("dict[str, Any]", value).items()
    for item in members(value):
        yield from _walk(item)
