"""The same code on a GPU: `pytest -m gpu` where there is one."""

from pathlib import Path

import pytest
import torch

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.child.training_events import Finished, TrainingEvent
from tests.numerics.test_cross_entropy import PROMPTS, RAGGED, build_batch
from tests.numerics.test_forward import EVERY_LINEAR, FAMILIES, assert_same
from tests.tiny import build_peft_model, chat_row, write_job, write_tiny_model
from worker.training.model.forward import FusedForward, ReferenceForward
from worker.training.recipe import run_job

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("model_type", FAMILIES)
def test_it_computes_what_the_plain_code_computes_on_a_processor(model_type: str) -> None:
    ours = build_peft_model(model_type, target_modules=EVERY_LINEAR).to("cuda")
    theirs = build_peft_model(model_type, target_modules=EVERY_LINEAR)
    batch = build_batch(RAGGED, PROMPTS)

    assert_same(FusedForward(ours), ReferenceForward(theirs), batch, rel=1e-4)


def test_a_job_takes_it_without_being_told_and_ends_in_the_same_bits_each_time(
    tmp_path: Path,
) -> None:
    write_tiny_model(tmp_path / "model")
    rows = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(10)]

    for name in ("first", "second"):
        events: list[TrainingEvent] = []
        write_job(tmp_path / name, rows, base_model=tmp_path / "model", compute=ComputeSettings())
        run_job(tmp_path / name, events.append)
        torch.use_deterministic_algorithms(mode=False)
        assert isinstance(events[-1], Finished)
        assert any(torch.cuda.get_device_name() in str(event) for event in events)

    adapter = Path("out/step-9/adapter_model.safetensors")
    first, second = ((tmp_path / name / adapter).read_bytes() for name in ("first", "second"))
    assert first == second
