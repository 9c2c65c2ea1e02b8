"""The files of an adapter are believed no more than necessary."""

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from worker.sampling.model.adapter_files import (
    AdapterFiles,
    AdapterWeights,
    DamagedAdapterError,
    ModuleSizes,
    UnsupportedAdapterError,
    read_adapter,
)

SIZES = ModuleSizes(linears={"layers.0.q_proj": (6, 5)}, embeddings={"embed_tokens": (9, 5)})
A = "base_model.model.layers.0.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")
EMBEDDING = "base_model.model.embed_tokens.weight"
MAGNITUDE = "base_model.model.layers.0.q_proj.lora_magnitude_vector"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}


def tensors() -> dict[str, Tensor]:
    return {A: torch.ones(2, 5), B: torch.ones(6, 2)}


def files(weights: bytes, config: bytes, **changes: Any) -> AdapterFiles:
    settings: dict[str, Any] = {
        "weights": io.BytesIO(weights),
        "config": io.BytesIO(config),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "max_bytes": 10_000,
    }
    return AdapterFiles(**(settings | changes))


def read(changes: dict[str, Tensor | None] | None = None, **config: Any) -> AdapterWeights:
    changed = {**tensors(), **(changes or {})}
    weights = save({name: tensor for name, tensor in changed.items() if tensor is not None})
    return read_adapter(files(weights, json.dumps(CONFIG | config).encode()), SIZES)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 6 / 2),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 10}}, 10 / 2),
        ({"alpha_pattern": {"layers.0.q_proj": 10}}, 10 / 2),
        ({"alpha_pattern": {"proj": 10}}, 6 / 2),
    ],
)
def test_the_scale_follows_from_the_settings(config: dict[str, Any], scale: float) -> None:
    assert read(**config).linears["layers.0.q_proj"].scale == pytest.approx(scale)


def test_embeddings_may_be_all_that_changes() -> None:
    adapter = read({A: None, B: None, EMBEDDING: torch.ones(9, 5)})

    assert not adapter.linears
    assert list(adapter.embeddings) == ["embed_tokens"]


@pytest.mark.parametrize(
    "changes",
    [
        {A: torch.ones(2, 4)},
        {A: torch.ones(10)},
        {B: torch.ones(5, 2)},
        {B: torch.ones(6, 3)},
        {A: torch.ones(0, 5), B: torch.ones(6, 0)},
        {A: None},
        {B: None},
        {A: None, B: None},
        {A: torch.full((2, 5), torch.nan)},
        {B: torch.full((6, 2), torch.inf)},
        {A: torch.ones(2, 5, dtype=torch.int64)},
        {EMBEDDING: torch.ones(9, 6)},
        {MAGNITUDE: torch.ones(6)},
    ],
    ids=[
        "inputs",
        "dimensions",
        "outputs",
        "ranks",
        "no rank",
        "no A",
        "no B",
        "empty",
        "nan",
        "infinity",
        "integers",
        "embedding",
        "magnitude without DoRA",
    ],
)
def test_tensors_that_do_not_fit_the_base_model_are_refused(
    changes: dict[str, Tensor | None],
) -> None:
    with pytest.raises(DamagedAdapterError):
        read(changes)


def test_dora_without_its_magnitudes_is_refused() -> None:
    with pytest.raises(DamagedAdapterError, match="DoRA"):
        read(use_dora=True)


def test_what_changes_another_module_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedAdapterError, match=r"layers\.1\.q_proj\.lora_A"):
        read({A.replace("0", "1"): torch.ones(2, 5)})


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "IA3"},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "loftq"},
        {"task_type": "SEQ_CLS"},
        {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [3]},
        {"alora_invocation_tokens": [1, 2]},
        {"fan_in_fan_out": True},
        {"alpha_pattern": {"(a+)+$": 1}},
        {"alpha_pattern": {"q_proj": "1"}},
        {"something_new": 1},
    ],
    ids=json.dumps,
)
def test_settings_that_the_sampler_does_not_know_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedAdapterError, match=next(iter(config))):
        read(**config)


@pytest.mark.parametrize(
    "config", [b"[]", b"{", b"\xff", b'{"peft_type": "LORA", "lora_alpha": NaN}', b"[" * 100_000]
)
def test_settings_that_are_no_json_object_are_refused(config: bytes) -> None:
    with pytest.raises(DamagedAdapterError):
        read_adapter(files(save(tensors()), config), SIZES)


@pytest.mark.parametrize("alpha", [0, -1, "16", True, None, 1e300])
def test_an_alpha_that_is_no_sensible_number_is_refused(alpha: object) -> None:
    with pytest.raises(DamagedAdapterError, match="lora_alpha"):
        read(lora_alpha=alpha)


@pytest.mark.parametrize(
    "damage",
    [
        lambda weights: weights[:-1],
        lambda weights: weights + b"\0",
        lambda weights: b"",
        lambda weights: b"\xff" * 100,
        lambda weights: pickle.dumps({"weight": 1}),
    ],
    ids=["cut", "longer", "empty", "huge header", "pickle"],
)
def test_weights_that_are_no_safetensors_are_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DamagedAdapterError, match="safetensors"):
        read_adapter(files(damage(save(tensors())), json.dumps(CONFIG).encode()), SIZES)


@pytest.mark.parametrize("changed", ["weights_sha256", "config_sha256"])
def test_other_bytes_than_those_asked_for_are_refused(changed: str) -> None:
    with pytest.raises(DamagedAdapterError, match="SHA-256"):
        read_adapter(
            files(save(tensors()), json.dumps(CONFIG).encode(), **{changed: "0" * 64}), SIZES
        )


def test_more_bytes_than_allowed_are_refused() -> None:
    with pytest.raises(DamagedAdapterError, match="more than 100 bytes"):
        read_adapter(files(save(tensors()), json.dumps(CONFIG).encode(), max_bytes=100), SIZES)
