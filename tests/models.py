"""Base models for tests: the embedded one, installed once for all runs, and a tiny one of files.

`conftest.py` imports the fixtures; `.cache/tunery-tests` (or TUNERY_TEST_CACHE) keeps what they
install, under a name that changes with the code that converts it.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from app.core import base_models
from app.core.base_models import DEFAULT_MODEL_ID, load_catalogue
from benchmarks.support.samples import write_entries
from worker.model_store import gguf
from worker.model_store.install import install_model

_DEFAULT_CACHE = Path(__file__).resolve().parents[1] / ".cache" / "tunery-tests"
_CACHE = Path(os.environ.get("TUNERY_TEST_CACHE") or _DEFAULT_CACHE)


def install_embedded_model() -> Path:
    """The directory of the embedded base model, installed if no earlier run has done it."""
    data_dir = _CACHE / _digest_of_conversion()
    data_dir.mkdir(parents=True, exist_ok=True)
    catalogue = load_catalogue(data_dir)
    entry = catalogue.find(DEFAULT_MODEL_ID)
    assert entry is not None
    install_model(entry, catalogue)
    return catalogue.directory(entry.id)


def link_embedded_model(data_dir: Path) -> None:
    """Make the embedded base model an installed one of `data_dir`, without copying it."""
    models_dir = data_dir / "models"
    models_dir.mkdir(parents=True, exist_ok=True)
    (models_dir / DEFAULT_MODEL_ID).symlink_to(install_embedded_model())


def install_models(data_dir: Path, *entries: dict[str, Any]) -> None:
    """Write a catalogue of these entries, and install all of them."""
    write_entries(data_dir, *entries)
    catalogue = load_catalogue(data_dir)
    names = {entry["id"] for entry in entries}
    for entry in catalogue.entries:
        if entry.id in names:
            install_model(entry, catalogue)


def _digest_of_conversion() -> str:
    catalogue = Path(base_models.__file__).with_name(base_models.CATALOGUE_NAME)
    content = b"".join(path.read_bytes() for path in (Path(str(gguf.__file__)), catalogue))
    return hashlib.sha256(content).hexdigest()[:16]


@pytest.fixture(scope="session")
def embedded_model_dir() -> Path:
    """Read only: every test of every run shares it."""
    return install_embedded_model()


def tiny_model_files(*, weight_bytes: int = 1024) -> dict[str, bytes]:
    """The files of a model, by name: in the right form, and with nothing behind them."""
    weights = np.random.default_rng(0).bytes(weight_bytes)
    tensor = np.frombuffer(weights, dtype=np.uint8)
    return {
        "config.json": json.dumps({"model_type": "llama", "hidden_size": 8}).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"auto_map": 0}}}',
        "tokenizer_config.json": b'{"model_max_length": 128}',
        "README.md": b"# Tiny\n",
        "model.safetensors": safetensors.numpy.save({"weight": tensor}),
    }


def sharded_model_files() -> dict[str, bytes]:
    """The files of a model whose weights are in two files and an index."""
    files = tiny_model_files()
    del files["model.safetensors"]
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, shard in enumerate(shards):
        files[shard] = safetensors.numpy.save({f"weight.{number}": np.full(4, number)})
    weight_map = {f"weight.{number}": shard for number, shard in enumerate(shards)}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


def write_files(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory
