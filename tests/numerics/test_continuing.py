"""A job that continues an adapter starts as that adapter, and with a fresh optimizer.

That it is resumed bit for bit is in `test_resume.py`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.core.job.child.job_spec import PARENT_NAME
from app.core.job.child.training_events import Failed, Finished, Stepped, TrainingEvent
from app.core.job.lora_shape import LoraShape
from app.core.manifest import verify
from tests.numerics.test_resume import ROWS, WEIGHTS, change_spec
from tests.tiny import (
    ALL_LINEAR,
    VOCABULARY,
    build_model,
    build_tokenizer,
    write_job,
    write_parent,
)
from worker.training.recipe import run_job

TEXT = "To be, or not to be, that is the question."
RATE = 1e-3
SHAPES = {
    "usual": LoraShape(rank=4, dropout=0),
    "rslora-all-linear": LoraShape(
        rank=4, alpha=6, dropout=0, use_rslora=True, target_modules=tuple(ALL_LINEAR)
    ),
    "dora": LoraShape(rank=4, dropout=0, use_dora=True),
}

Continue = Callable[..., tuple[Path, list[TrainingEvent]]]


@pytest.fixture
def continue_adapter(base_model: Path, tmp_path: Path) -> Continue:
    """Runs a job that continues a trained adapter. Returns its directory and its events."""

    def run(name: str = "job", rows: list[Any] = ROWS, **settings: Any) -> Any:
        directory = tmp_path / name
        change = settings.pop("change", None)
        spec = write_job(directory, rows, base_model=base_model, learning_rate=RATE, **settings)
        parent = write_parent(directory, spec.config.lora)
        if change is not None:
            change(directory / PARENT_NAME)
        change_spec(directory, spec, parent=parent)
        events: list[TrainingEvent] = []
        run_job(directory, events.append)
        return directory, events

    return run


def step_of_peft(adapter: Path) -> dict[str, Tensor]:
    """One step on `TEXT` as `peft` and torch take it from a saved adapter."""
    model = PeftModel.from_pretrained(build_model(), str(adapter), is_trainable=True).train()
    optimizer = torch.optim.AdamW(
        (weight for weight in model.parameters() if weight.requires_grad),
        lr=RATE,
        weight_decay=0.0,
    )
    tokenizer = build_tokenizer()
    tokens: list[int] = [*tokenizer(TEXT)["input_ids"], VOCABULARY - 1]
    input_ids = torch.tensor([tokens])
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    optimizer.step()
    model.save_pretrained(str(adapter.parent / "expected"), save_embedding_layers=False)
    return load_file(adapter.parent / "expected" / WEIGHTS)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_step_is_the_step_that_peft_takes_from_the_same_adapter(
    continue_adapter: Continue, shape: LoraShape
) -> None:
    directory, events = continue_adapter(
        rows=[{"text": TEXT}], lora=shape, max_steps=1, max_grad_norm=1000.0
    )

    assert isinstance(events[-1], Finished)
    trained = load_file(directory / "out" / "step-1" / WEIGHTS)
    expected = step_of_peft(directory / "parent")
    parent = load_file(directory / PARENT_NAME)
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-5)
        assert not torch.equal(trained[name], parent[name])


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("embeddings", [(), ("embed_tokens",)])
def test_step_0_is_the_loss_of_the_adapter_and_not_of_the_base_model(
    continue_adapter: Continue, embeddings: tuple[str, ...]
) -> None:
    lora = {"rank": 4, "modules_to_save": embeddings}
    row = {"text": TEXT}
    directory, events = continue_adapter(rows=[row], validation=[row], max_steps=1, lora=lora)

    model = PeftModel.from_pretrained(build_model(), str(directory / "parent")).eval()
    input_ids = torch.tensor([[*build_tokenizer()(TEXT)["input_ids"], VOCABULARY - 1]])
    with torch.no_grad():
        loss = model(input_ids=input_ids, labels=input_ids).loss.item()
        base = build_model().eval()(input_ids=input_ids, labels=input_ids).loss.item()
    (first, *_) = [event.metrics for event in events if isinstance(event, Stepped)]
    assert (first.step, first.valid_loss) == (0, pytest.approx(loss, abs=1e-5))
    assert first.valid_loss != pytest.approx(base, abs=1e-2)


def test_the_same_job_gives_the_same_bits_twice(continue_adapter: Continue) -> None:
    lora = LoraShape(rank=4, dropout=0.1)

    first, second = (continue_adapter(name, epochs=2, lora=lora)[0] for name in ("a", "b"))

    one, other = (job / "out" / "step-6" / WEIGHTS for job in (first, second))
    assert one.read_bytes() == other.read_bytes()


def test_card_and_manifest_name_the_adapter_that_was_continued(continue_adapter: Continue) -> None:
    directory, _ = continue_adapter(epochs=1)

    checkpoint = directory / "out" / "step-3"
    parent = verify(checkpoint).provenance["parent"]
    assert (parent["model"], parent["step"]) == ("ft:tiny:org::0", 3)
    card = (checkpoint / "README.md").read_text()
    assert "It continues the adapter of `ft:tiny:org::0` after that one's step 3" in card
    assert f"have the sha256 `{parent['sha256']}`.\n\n## Data" in card


def spoil(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[Path], None]:
    """Changes one tensor of a file, or takes it out."""

    def spoil_file(file: Path) -> None:
        tensors = load_file(file)
        (key,) = (key for key in tensors if name in key)
        changed = change(tensors.pop(key))
        save_file(tensors if changed is None else tensors | {key: changed}, file)

    return spoil_file


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda file: file.write_bytes(b"no tensors"), "no tensors: "),
        (spoil("layers.0.self_attn.q_proj.lora_A", lambda _: None), "other tensors: base_model."),
        (
            spoil("layers.1.self_attn.v_proj.lora_B", lambda weight: weight[:, :2].contiguous()),
            "of shape [16, 2], not [16, 4]",
        ),
        (
            spoil("layers.1.self_attn.v_proj.lora_B", lambda weight: weight / 0),
            "that are not finite",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_fails_the_job(
    continue_adapter: Continue, change: Callable[[Path], object], what: str
) -> None:
    _, events = continue_adapter(change=change)

    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert (failed.code, failed.param) == ("parent_unusable", "model")
    assert what in failed.message
    assert failed.message.endswith(
        "Create a job that continues another model, or tunes a base model."
    )
