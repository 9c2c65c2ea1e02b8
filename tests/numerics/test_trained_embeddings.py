"""`modules_to_save`: whole embeddings that are trained beside the adapter, as in `peft`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.child.training_events import Finished, Noted, TrainingEvent
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import TrainingConfig
from tests.numerics.test_cross_entropy import PROMPTS, RAGGED, attention_mask, build_batch
from tests.tiny import (
    BASE_MODEL,
    build_model,
    build_peft_model,
    chat_row,
    write_job,
    write_tiny_model,
)
from worker.training.artifacts.checkpoint import write_adapter
from worker.training.failures import TrainingFailedError
from worker.training.model.base_model import attach_adapter
from worker.training.model.embeddings import take_adapter_out
from worker.training.model.forward import Forward, FusedForward, ReferenceForward
from worker.training.model.randomness import DropoutKey
from worker.training.recipe import run_job
from worker.training.step.step import build_optimizer, train_step

BOTH = ("embed_tokens", "lm_head")
RATE = 1e-2
LONG, SHORT = (200, 180, 190), (1, 1, 1)
"""Rows with more learned tokens than a chunk of the loss has."""


def our_steps(make_forward: Callable[[PeftModel], Forward], model: PeftModel) -> None:
    forward = make_forward(model)
    optimizer = build_optimizer(model, TrainingConfig(seed=0, learning_rate=RATE))
    for step, rows in enumerate([(RAGGED, PROMPTS), (LONG, SHORT)], start=1):
        batch = [build_batch(*rows)]
        train_step(forward, optimizer, batch, dropout=DropoutKey(0, step), max_grad_norm=1.0)


def steps_of_torch(model: nn.Module) -> None:
    """The same steps, by the model's own loss and torch's own optimizer."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    for lengths, prompts in [(RAGGED, PROMPTS), (LONG, SHORT)]:
        batch = build_batch(lengths, prompts)
        model(
            input_ids=batch.input_ids_BL,
            attention_mask=attention_mask(lengths),
            labels=batch.labels_BL,
            use_cache=False,
        ).loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def model_of_peft(modules: tuple[str, ...], *, is_tied: bool) -> PeftModel:
    adapter = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        modules_to_save=list(modules),
        ensure_weight_tying=is_tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = build_model(tie_word_embeddings=is_tied)
        return get_peft_model(base, adapter).train()  # pyright: ignore[reportReturnType]


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def build(modules: tuple[str, ...], **changes: Any) -> PeftModel:
    return build_peft_model(is_trained=False, variant={"modules_to_save": modules}, **changes)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(40, 60)[None], use_cache=False).logits


@pytest.mark.parametrize("make_forward", [FusedForward, ReferenceForward])
@pytest.mark.parametrize(
    ("modules", "is_tied"),
    [
        (("embed_tokens",), False),
        (("lm_head",), False),
        (BOTH, False),
        (("embed_tokens",), True),
        (("lm_head",), True),
        (BOTH, True),
    ],
    ids=["input", "output", "both", "tied-input", "tied-output", "tied-both"],
)
def test_steps_are_those_of_torch_and_peft(
    make_forward: Callable[[PeftModel], Forward], modules: tuple[str, ...], *, is_tied: bool
) -> None:
    ours = build(modules, tie_word_embeddings=is_tied)
    theirs = model_of_peft(modules, is_tied=is_tied)
    before = {name: weights.clone() for name, weights in trained(ours).items()}

    our_steps(make_forward, ours)
    steps_of_torch(theirs)

    assert trained(ours).keys() == trained(theirs).keys()
    for name, weights in trained(theirs).items():
        torch.testing.assert_close(trained(ours)[name], weights, rtol=0, atol=1e-4)
        assert (weights - before[name]).abs().max() > RATE / 2
    whole = [name for name in before if "modules_to_save" in name]
    assert len(whole) == (1 if is_tied else len(modules))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("is_tied", [True, False])
def test_the_adapter_has_the_embeddings_under_their_own_names(
    tmp_path: Path, *, is_tied: bool
) -> None:
    model = build(BOTH, tie_word_embeddings=is_tied)
    our_steps(FusedForward, model)

    write_adapter(tmp_path, model)

    base = build_model(tie_word_embeddings=is_tied)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == [*BOTH]
    assert "ensure_weight_tying" not in settings, "older peft does not know it"
    weights = load_file(tmp_path / "adapter_model.safetensors")
    embeddings = [w for name, w in weights.items() if name.endswith(("tokens.weight", "d.weight"))]
    assert len(embeddings) == len(BOTH)
    assert torch.equal(*embeddings) == is_tied


def test_the_base_model_without_the_adapter_has_its_own_embeddings() -> None:
    model = build(BOTH)
    our_steps(FusedForward, model)

    torch.testing.assert_close(
        logits(take_adapter_out(model)), logits(build_model()), rtol=0, atol=0
    )


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
def test_the_adapter_can_be_merged_into_a_base_model_with_one_matrix(tmp_path: Path) -> None:
    model = build(("embed_tokens",))
    our_steps(FusedForward, model)
    write_adapter(tmp_path, model)

    merged: Any = PeftModel.from_pretrained(build_model(), str(tmp_path)).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-4)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., list[TrainingEvent]]]:
    """Runs a job with embeddings of a tiny model in `tmp_path/job`."""

    def run_with(
        modules: tuple[str, ...], compute: ComputeSettings | None = None, **changes: Any
    ) -> list[TrainingEvent]:
        write_tiny_model(tmp_path / "model", **changes)
        write_job(
            tmp_path / "job",
            [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(8)],
            base_model=tmp_path / "model",
            compute=compute,
            epochs=1,
            learning_rate=RATE,
            lora=LoraShape(rank=4, modules_to_save=modules),  # pyright: ignore[reportArgumentType]
        )
        events: list[TrainingEvent] = []
        run_job(tmp_path / "job", events.append)
        return events

    yield run_with
    torch.use_deterministic_algorithms(mode=False)


@pytest.mark.parametrize("forward", ["fast", "plain"])
@pytest.mark.parametrize("model_type", ["llama", "gemma", "gemma2"])
def test_a_job_in_bfloat16_keeps_its_embeddings_in_float32(
    run: Callable[..., list[TrainingEvent]], tmp_path: Path, model_type: str, forward: Any
) -> None:
    compute = ComputeSettings(dtype="bfloat16", forward=forward, compile=False)

    events = run(BOTH, compute, model_type=model_type)

    assert isinstance(events[-1], Finished), "the saved adapter is the one that was trained"
    weights = load_file(tmp_path / "job/out/step-2/adapter_model.safetensors")
    assert {each.dtype for each in weights.values()} == {torch.float32}
    warnings = [e.message for e in events if isinstance(e, Noted) and e.level == "warn"]
    assert any("vLLM and llama.cpp cannot load it" in warning for warning in warnings)
    card = (tmp_path / "job/out/step-2/README.md").read_text()
    assert "cannot load trained embeddings" in card
    assert "| lora.modules_to_save | `embed_tokens`, `lm_head` |" in card


def test_embeddings_that_have_another_name_are_refused() -> None:
    shape = LoraShape(target_modules=("query_key_value",), modules_to_save=("embed_tokens",))

    with pytest.raises(TrainingFailedError, match="It has embed_in, lm_head") as caught:
        attach_adapter(build_model("gpt_neox"), shape, BASE_MODEL)

    assert caught.value.param == "hyperparameters.modules_to_save"
