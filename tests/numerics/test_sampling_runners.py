"""Both runners against `transformers.generate` and `peft`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.core.hand_off.formats import GGUF_ARCHITECTURES
from tests.model_families import FUSED, OTHERS, ModelFamily
from tests.sampled_models import (
    PROMPTS,
    answer_greedily,
    generate_greedily,
    load_into,
    load_tiny_runner,
    log_probs_after,
    write_base,
    write_random_adapter,
)
from worker.sampling.model.fused_runner import FusedRunner
from worker.sampling.model.loading import load_runner
from worker.sampling.model.reference_runner import ReferenceRunner
from worker.sampling.model.runner import Row
from worker.training.compute.plan import Placement
from worker.training.model.forward import PLAIN_HEADS


def compare_with_generate(tmp_path: Path, family: ModelFamily, runner_type: type) -> None:
    """A batch of the base model and three adapters, with ragged prompts."""
    base = write_base(tmp_path / "base", family.model_type, **family.settings)
    adapters = [
        write_random_adapter(tmp_path / str(seed), base, seed=seed, modules=family.modules, r=seed)
        for seed in (1, 2, 3)
    ]
    places = [None, *adapters]
    runner = load_tiny_runner(base)
    assert isinstance(runner, runner_type)

    log_probs = answer_greedily(runner, PROMPTS, [load_into(runner, each) for each in places])

    expected = torch.stack(
        [
            generate_greedily(base, adapter, prompt)
            for adapter, prompt in zip(places, PROMPTS, strict=True)
        ]
    )
    answers = log_probs.argmax(-1).tolist()
    assert answers == expected.argmax(-1).tolist()
    assert len(set(map(tuple, answers))) == len(answers)
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", FUSED)
def test_greedy_tokens_of_fused_layers_are_those_of_generate(tmp_path: Path, name: str) -> None:
    compare_with_generate(tmp_path, FUSED[name], FusedRunner)


@pytest.mark.parametrize("name", OTHERS)
def test_greedy_tokens_of_every_other_architecture_are_those_of_generate(
    tmp_path: Path, name: str
) -> None:
    compare_with_generate(tmp_path, OTHERS[name], ReferenceRunner)


def test_every_architecture_that_is_named_is_tried() -> None:
    tried = {family.model_type for family in (*FUSED.values(), *OTHERS.values())}

    assert PLAIN_HEADS | set(GGUF_ARCHITECTURES) <= tried


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "two layers": ({}, {"modules": ("q_proj", "v_proj")}),
    "key and up": ({}, {"modules": ("k_proj", "up_proj")}),
    "rslora": ({}, {"use_rslora": True}),
    "dora": ({}, {"use_dora": True}),
    "dora with biases": ({"attention_bias": True, "mlp_bias": True}, {"use_dora": True}),
    "bias of the adapter": ({"attention_bias": True, "mlp_bias": True}, {"lora_bias": True}),
    "patterns": (
        {},
        {"alpha_pattern": {"layers.1.mlp.up_proj": 40}, "rank_pattern": {"q_proj": 2}},
    ),
    "tied embeddings": ({}, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "input": ({"tie_word_embeddings": False}, {"modules_to_save": ["embed_tokens"]}),
    "output": ({"tie_word_embeddings": False}, {"modules_to_save": ["lm_head"]}),
    "both": ({"tie_word_embeddings": False}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
}


@pytest.mark.parametrize("runner_type", [FusedRunner, ReferenceRunner])
@pytest.mark.parametrize("name", VARIANTS)
def test_log_probabilities_with_every_form_of_adapter_are_those_of_peft(
    tmp_path: Path, name: str, runner_type: type
) -> None:
    changes, lora = VARIANTS[name]
    window = {"sliding_window": 30} if runner_type is ReferenceRunner else {}
    base = write_base(tmp_path / "base", "mistral" if window else "llama", **changes, **window)
    adapter = write_random_adapter(tmp_path / "adapter", base, **lora)
    runner = load_tiny_runner(base)
    assert isinstance(runner, runner_type)
    rows = [
        Row(runner.new_cache(), prompt, load_into(runner, each))
        for prompt, each in zip(PROMPTS, (adapter, None, adapter, None), strict=True)
    ]

    log_probs = runner.read(rows).log_softmax(-1)

    for ours, prompt, each in zip(log_probs, PROMPTS, (adapter, None, adapter, None), strict=True):
        torch.testing.assert_close(
            ours, log_probs_after(base, each, prompt), rtol=0, atol=1e-3, check_stride=False
        )
    plain = log_probs_after(base, None, PROMPTS[0])
    assert (log_probs[0] - plain).abs().max() > 1e-2


def test_a_rotation_that_changes_ends_the_window_where_it_does(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rotation = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    family = ModelFamily(
        "phi3",
        {"original_max_position_embeddings": 24, "rope_parameters": rotation},
        OTHERS["phi3"].modules,
    )

    compare_with_generate(tmp_path, family, ReferenceRunner)

    assert load_tiny_runner(tmp_path / "base").window == 24


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "olmo2", "gemma3_text", "lfm2"])
def test_a_fork_continues_as_if_it_had_read_everything(tmp_path: Path, model_type: str) -> None:
    changes = {"sliding_window": 8} if model_type == "gemma3_text" else {}
    runner = load_tiny_runner(write_base(tmp_path / "base", model_type, **changes))
    tokens = list(range(40, 240))
    whole = runner.read([Row(runner.new_cache(), tokens, None)])
    cache = runner.new_cache()
    runner.read([Row(cache, tokens[:150], None)])

    fork = cache.fork(150)
    runner.read([Row(cache, [7] * 100, None)])  # must not change the fork
    short = fork.fork(100)
    pieces = runner.read([Row(fork, tokens[150:], None), Row(short, tokens[short.length :], None)])

    assert fork.length == short.length == cache.length - 50 == len(tokens)
    for piece in pieces:
        torch.testing.assert_close(piece, whole[0], rtol=0, atol=1e-3)


def test_memory_is_told_in_bytes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "llama")
    runner = load_tiny_runner(base)
    cache = runner.new_cache()
    assert cache.bytes == 0

    runner.read([Row(cache, [1, 2, 3], None)])

    assert runner.bytes_per_token == 2 * 2 * 2 * 8 * 4
    assert cache.bytes == 128 * runner.bytes_per_token
    adapter = load_into(runner, write_random_adapter(tmp_path / "adapter", base))
    assert adapter is not None
    assert 0 < adapter.bytes < runner.bytes


@pytest.mark.parametrize("name", FUSED)
def test_in_bfloat16_it_is_about_what_it_is_in_float32(tmp_path: Path, name: str) -> None:
    model_type, settings = FUSED[name].model_type, FUSED[name].settings
    base = write_base(tmp_path / "base", model_type, initializer_range=0.1, **settings)
    adapter = write_random_adapter(tmp_path / "adapter", base, use_dora=True)
    answers: list[torch.Tensor] = []
    for dtype in ("float32", "bfloat16"):
        runner = load_runner(base, Placement("cpu", dtype))
        cache, own = runner.new_cache(), load_into(runner, adapter)
        runner.read([Row(cache, PROMPTS[0], own)])
        answers.append(
            runner.read([Row(cache, PROMPTS[2], own), Row(runner.new_cache(), [5], None)])
        )

    exact, rounded = answers
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()
