"""Which files belong to a base model beside its weights, and how large they may be."""

import re
from pathlib import Path

from app.core.base_models import is_weights
from app.core.disk import MIB
from worker.model_store.configs import CONFIG_NAMES
from worker.model_store.errors import RefusedModelError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TEMPLATE_NAME = "chat_template.jinja"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json")

_WANTED_NAMES = frozenset(
    {
        *CONFIG_NAMES,
        *TOKENIZER_NAMES,
        "added_tokens.json",
        TEMPLATE_NAME,
        "merges.txt",
        "special_tokens_map.json",
        INDEX_NAME,
    }
)
_WANTED_TEXT = re.compile(r"(LICEN[CS]E|NOTICE|README|USE_POLICY)(\.(md|txt))?", re.IGNORECASE)

_MAX_BYTES = dict.fromkeys((*TOKENIZER_NAMES, "merges.txt"), 64 * MIB) | {
    INDEX_NAME: 16 * MIB,
    TEMPLATE_NAME: MIB // 4,
}
"""Maximum size of a file, in bytes: at least twice that of the largest in any known model."""

_MAX_OTHER_BYTES = 4 * MIB
"""Maximum size of every other file beside the weights, in bytes."""


def is_wanted(name: str) -> bool:
    """Whether a file of this name, beside the weights, belongs to an installed model."""
    return name in _WANTED_NAMES or _WANTED_TEXT.fullmatch(name) is not None


def check_size(name: str, size: int) -> None:
    """Check that a file is not too large. Weights may have any size.

    Args:
        size: size of the file, in bytes.

    Raises:
        RefusedModelError: it is.
    """
    limit = _MAX_BYTES.get(name, _MAX_OTHER_BYTES)
    if size > limit and not is_weights(name):
        raise RefusedModelError(
            f"{name} has {size:,} bytes, and at most {limit:,} are taken. Use an intact copy."
        )


def check_file(path: Path) -> None:
    """Check that `path` is a regular file and not too large.

    Raises:
        RefusedModelError: it is not.
    """
    if path.is_symlink() or not path.is_file():
        raise RefusedModelError(f"{path.name} is not a regular file. Replace it with a copy.")
    check_size(path.name, path.stat().st_size)
