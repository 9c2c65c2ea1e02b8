"""Outputs of the layers below the first adapter that are kept on the disk between steps."""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.child.training_events import Noted, OutOfSpace
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import DpoSettings
from tests.numerics.test_forward import EVERY_LINEAR, FAMILIES, assert_same
from tests.numerics.test_preference_jobs import POLITE, as_rows
from tests.numerics.test_resume import Run, assert_ends_like, begin_again, hand_over, run, write
from tests.numerics.test_shared_beginnings import CASES, batch_of
from tests.tiny import build_peft_model, chat_row
from worker.training.compute import kept
from worker.training.data.batching import MicroBatch
from worker.training.model.decoder_layer import decoder_layer
from worker.training.model.forward import FusedForward, ReferenceForward
from worker.training.model.kept_states import KeptStates

LAYERS = 4
SYSTEM = {"role": "system", "content": "You answer in a few words, and never more than that."}
ROWS = [
    {"messages": [SYSTEM, *chat_row(f"What is {i}?", f"It is {i * 'x'}.")["messages"]]}
    for i in range(10)
]
HALF = LoraShape(rank=4, dropout=0.05, layers=1)
"""The upper one of the two layers."""


def keep(
    forward: FusedForward, batch: MicroBatch, directory: Path, parts: Sequence[list[int]]
) -> MicroBatch:
    """Keep the rows of a batch, computed in other micro-batches. Returns the batch, as kept."""
    states = KeptStates(directory, np.array(batch.lengths), width=32, dtype=torch.float32)
    forward.keep((select(batch, rows) for rows in parts), states, dataset="kept")
    return replace(batch, dataset="kept")


def select(batch: MicroBatch, rows: list[int]) -> MicroBatch:
    return replace(
        batch,
        input_ids_BL=batch.input_ids_BL[rows],
        labels_BL=batch.labels_BL[rows],
        examples=[batch.examples[row] for row in rows],
        lengths=[batch.lengths[row] for row in rows],
        owners=[batch.owners[row] for row in rows],
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_gradients_are_those_of_the_plain_code(model_type: str, case: str, tmp_path: Path) -> None:
    model = build_peft_model(
        model_type,
        target_modules=EVERY_LINEAR,
        num_hidden_layers=LAYERS,
        variant={"layers": (2, 3)},
    )
    batch = batch_of(CASES[case])
    backwards = list(reversed(range(len(batch.lengths))))

    for is_checkpointing in (False, True):
        ours = FusedForward(model, is_checkpointing=is_checkpointing)
        parts = [backwards[::2], backwards[1::2]] if len(backwards) > 1 else [backwards]
        kept_batch = keep(ours, batch, tmp_path, parts)
        assert_same(ours, ReferenceForward(model), kept_batch, rel=1e-5)


def test_only_the_layers_from_the_first_adapter_on_are_computed(tmp_path: Path) -> None:
    runs: list[bool] = []

    def run_layer(*arguments: Any) -> Tensor:
        runs.append(torch.is_grad_enabled())
        return decoder_layer(*arguments)

    model = build_peft_model(num_hidden_layers=LAYERS, variant={"layers": 1})
    forward = FusedForward(model, layer=run_layer)
    batch = keep(forward, batch_of(CASES["ragged"]), tmp_path, [[0, 1], [2, 3]])
    assert runs == 2 * [False] * 3
    runs.clear()

    forward.log_probs(batch, None).log_probs_N.sum().backward()

    assert runs == [True]
    assert list(tmp_path.iterdir()) == []  # the file has no name


JOBS: dict[str, dict[str, Any]] = {
    "shared beginnings": {"epochs": 2, "validation": ROWS[:3], "n_evals": 4},
    "small micro-batches": {
        "epochs": 3,
        "validation_split": 0.3,
        "compute": ComputeSettings(dtype="bfloat16", compile=False, micro_batch_tokens=100),
    },
    "continued": {"epochs": 2, "is_continued": True, "checkpoint_choice": "best"},
    "pairs": {
        "rows": as_rows(POLITE[:10]),
        "validation": as_rows(POLITE[10:13]),
        "epochs": 2,
        "is_continued": True,
        "dpo": DpoSettings(),
    },
}


@pytest.fixture(scope="module", params=JOBS)
def whole(
    request: pytest.FixtureRequest, base_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A job that nothing has interrupted."""
    directory = tmp_path_factory.mktemp("jobs") / "whole"
    write(directory, base_model, **{"rows": ROWS, "lora": HALF, **JOBS[request.param]})
    return run(directory)


def told(run: Run) -> list[str]:
    """What a job says about the outputs that it keeps."""
    notes = [event.message for event in run.events if isinstance(event, Noted)]
    return [note for note in notes if "outputs take" in note]


def test_a_job_that_is_stopped_after_every_step_ends_like_one_that_was_not(
    whole: Run, tmp_path: Path
) -> None:
    attempts: list[Run] = []
    for step in range(len(whole.steps)):
        directory = tmp_path / f"attempt-{step}"
        if attempts:
            hand_over(attempts, step, directory)
        else:
            begin_again(whole, directory)
        attempts.append(run(directory, steps=1))

    assert len(whole.steps) >= 6
    assert_ends_like(whole, attempts)
    assert [told(each) for each in attempts] == [told(whole)] * len(attempts)
    assert len(told(whole)) == 1


def test_a_job_learns_what_it_learns_without(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_MOST_BYTES", 0)
    begin_again(whole, tmp_path / "without")

    without = run(tmp_path / "without")

    assert told(without) == []
    is_float32 = "bfloat16" not in (whole.directory / "job.json").read_text()
    ours, theirs = (
        [each for row in one.rows for each in (row.train_loss, row.valid_loss) if each is not None]
        for one in (whole, without)
    )
    assert ours == pytest.approx(theirs, rel=1e-4 if is_float32 else 2e-2)


@pytest.mark.parametrize(
    ("settings", "examples"),
    [
        ({"epochs": 2}, 10),
        ({"epochs": 1}, None),
        ({"epochs": 1, "validation": ROWS[:3]}, 3),
        ({"epochs": 2, "validation": ROWS[:3]}, 13),
        ({"max_steps": 5}, None),  # an epoch has three
        ({"max_steps": 6}, 10),
        ({"epochs": 2, "lora": LoraShape(rank=4)}, None),
        ({"epochs": 2, "compute": ComputeSettings(dtype="float32", forward="plain")}, None),
        ({"epochs": 2, "lora": HALF.model_copy(update={"use_dora": True})}, None),
        (
            {"epochs": 2, "lora": HALF.model_copy(update={"modules_to_save": ("embed_tokens",)})},
            None,
        ),
    ],
)
def test_outputs_are_kept_where_they_are_read_often_enough(
    base_model: Path, tmp_path: Path, settings: dict[str, Any], examples: int | None
) -> None:
    write(tmp_path / "job", base_model, **{"rows": ROWS, "lora": HALF, **settings})

    said = told(run(tmp_path / "job"))

    if examples is None:
        assert said == []
    else:
        assert len(said) == 1
        assert f"Computing 1 of 2 layers only once, for {examples} examples," in said[0]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("cause", ["no room", "less than must stay free"])
def test_a_job_for_whose_outputs_there_is_no_room_ends_before_its_first_step(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    write(tmp_path / "job", base_model, ROWS, lora=HALF, epochs=2)
    if cause == "no room":
        monkeypatch.setattr(os, "posix_fallocate", full_disk)
    else:
        begin_again(Run(tmp_path / "job", []), tmp_path / "next", spare_disk_bytes=10**18)
        shutil.rmtree(tmp_path / "job")
        (tmp_path / "next").rename(tmp_path / "job")

    result = run(tmp_path / "job")

    assert result.rows == []
    assert isinstance(result.events[-1], OutOfSpace)
    assert "disk is full" in result.events[-1].message


def test_a_file_that_is_shorter_than_it_was_is_an_error(tmp_path: Path) -> None:
    forward = FusedForward(build_peft_model(variant={"layers": 1}))
    batch = keep(forward, batch_of(CASES["ragged"]), tmp_path, [[0, 1, 2, 3]])
    os.truncate(forward.kept["kept"]._file, 100)  # pyright: ignore[reportPrivateUsage]

    with pytest.raises(OSError, match="outputs of a layer"):
        forward.log_probs(batch, None)
