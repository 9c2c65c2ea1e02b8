"""Whole jobs on pairs: what they reach, what their reference is, and that they resume exactly."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.core.job.artifacts import LOSS_CHART_NAME, METRICS_CSV_NAME, MODEL_CARD_NAME
from app.core.job.child.job_spec import PARENT_NAME, ComputeSettings, JobSpec
from app.core.job.child.training_events import Finished, Noted, TrainingEvent
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import DpoSettings
from app.core.manifest import sha256_of
from tests.numerics.test_resume import (
    ROWS,
    WEIGHTS,
    Run,
    assert_ends_like,
    begin_again,
    change_spec,
    hand_over,
    run,
)
from tests.tiny import build_tokenizer, change_job, write_job, write_parent
from worker.training import first_passes
from worker.training.recipe import run_job

POLITE = [
    (f"What is {i} and {i}?", f"It is {2 * i}, please.", f"Go away, {i} fool! " * (1 + i % 3))
    for i in range(40)
]
"""Pairs whose preferred answer is polite and short."""
HELD_OUT = [
    (f"Tell me of {i}.", f"With pleasure: {i}, please.", f"No, {i} fool!") for i in range(8)
]
LORA = LoraShape(rank=4, dropout=0.05)


def write_pairs(
    directory: Path,
    base_model: Path,
    pairs: list[tuple[str, str, str]] = POLITE,
    *,
    validation: list[tuple[str, str, str]] | None = None,
    is_continued: bool = False,
    **settings: Any,
) -> JobSpec:
    """A job directory with pairs."""
    settings = {"dpo": DpoSettings(), "learning_rate": 1e-2, "lora": LORA, **settings}
    job = write_job(
        directory,
        as_rows(pairs),
        base_model=base_model,
        validation=None if validation is None else as_rows(validation),
        **settings,
    )
    if is_continued:
        job = job.model_copy(update={"parent": write_parent(directory, job.config.lora)})
    change_spec(directory, job)
    return job


def as_rows(pairs: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "input": {"messages": [{"role": "user", "content": prompt}]},
            "preferred_output": [{"role": "assistant", "content": chosen}],
            "non_preferred_output": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in pairs
    ]


def test_a_model_learns_to_be_polite(base_model: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "job", base_model, validation=HELD_OUT, epochs=3)

    result = run(tmp_path / "job")

    first, *_, last = result.rows
    assert isinstance(result.events[-1], Finished)
    assert first.step == 0
    assert first.valid_loss == pytest.approx(math.log(2), abs=1e-5)
    assert last.step == 30
    assert last.train_rewards is not None
    assert last.valid_rewards is not None
    assert last.valid_loss is not None
    assert last.valid_loss < 0.5
    assert last.train_rewards.accuracy > 0.9
    assert last.valid_rewards.accuracy > 0.9
    assert last.valid_rewards.chosen > last.valid_rewards.rejected
    question = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    texts = [question.format(prompt, answer) for prompt, *both in POLITE for answer in both]
    lengths = [len(row) for row in build_tokenizer()(texts)["input_ids"]]
    assert last.tokens_seen == 3 * sum(lengths)
    checkpoint = tmp_path / "job/out/step-30"
    assert "valid_reward_accuracy\n" in (checkpoint / METRICS_CSV_NAME).read_text()
    assert "reward accuracy, running mean" in (checkpoint / LOSS_CHART_NAME).read_text()
    card = " ".join((checkpoint / MODEL_CARD_NAME).read_text().split())
    assert "with a beta of 0.1. The reference is the base model without an adapter." in card
    assert "| dpo.beta | 0.1 |" in card
    assert "| validation accuracy | reward accuracy | reward margin |" in card
    assert f"| 100.0% | {last.valid_rewards.margin:.3f} |" in card
    assert "- dpo ---" in card


CASES: dict[str, dict[str, Any]] = {
    "usual": {"validation": HELD_OUT[:3], "n_evals": 3},
    "continued": {"is_continued": True, "validation_split": 0.2, "checkpoint_choice": "best"},
    "pissa": {"lora": LoraShape(rank=4, dropout=0.05, init_lora_weights="pissa_niter_16")},
    "reference-free": {
        "dpo": DpoSettings(reference_free=True, length_normalized=True, label_smoothing=0.1),
        "validation_split": 0.3,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_job_that_is_stopped_after_every_step_ends_like_one_that_was_not(
    base_model: Path, tmp_path: Path, case: str
) -> None:
    write_pairs(tmp_path / "whole", base_model, POLITE[:10], epochs=2, **CASES[case])
    whole = run(tmp_path / "whole")
    attempts: list[Run] = []
    for step in range(len(whole.steps)):
        directory = tmp_path / f"attempt-{step}"
        if attempts:
            hand_over(attempts, step, directory)
        else:
            begin_again(whole, directory)
        attempts.append(run(directory, steps=1))

    assert len(whole.steps) == (4 if "validation_split" in CASES[case] else 6)
    assert_ends_like(whole, attempts)
    has_reference = case != "reference-free"
    told = [event for event in whole.events if is_of_reference(event)]
    assert len(told) == has_reference  # and no resumed attempt computes it again
    assert not any(is_of_reference(event) for each in attempts[1:] for event in each.events)


def is_of_reference(event: TrainingEvent) -> bool:
    return isinstance(event, Noted) and event.message.startswith("Computing the reference")


def test_a_long_pass_over_the_pairs_tells_its_progress_a_few_times(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child may send a hundred messages in all, and is ended if it sends more."""
    write_pairs(tmp_path / "job", base_model, validation=HELD_OUT, max_steps=1)
    change_job(tmp_path / "job", compute=ComputeSettings(dtype="float32", micro_batch_tokens=1))
    monkeypatch.setattr(first_passes, "_TELL_S", 0.0)

    events = run(tmp_path / "job").events

    notes = [event.message for event in events if isinstance(event, Noted)]
    told = [note for note in notes if note.startswith("Reference: ")]
    assert told[0] == "Reference: 5 of 48 pairs (10%)."
    assert len(told) == 10
    assert told[-1] == "Reference: 48 of 48 pairs (100%)."


class KilledError(BaseException):
    """Stands for the signal that ends a child."""


def test_a_job_that_is_killed_while_its_reference_is_computed_begins_again(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "whole", base_model, POLITE[:10], epochs=1)
    whole = run(tmp_path / "whole")
    begin_again(whole, tmp_path / "killed")
    monkeypatch.setattr(first_passes, "_TELL_S", 0.0)
    told: list[str] = []

    def report(event: TrainingEvent) -> None:
        if isinstance(event, Noted) and event.message.startswith("Reference: "):
            told.append(event.message)
            raise KilledError

    with pytest.raises(KilledError):
        run_job(tmp_path / "killed", report)
    again = run(tmp_path / "killed")

    assert len(told) == 1
    assert " of 10 pairs" in told[0]
    assert_ends_like(whole, [again])


@pytest.mark.parametrize("start", ["base model", "pissa", "adapter", "supervised job"])
def test_the_reference_is_the_model_that_the_job_starts_from(
    base_model: Path, tmp_path: Path, start: str
) -> None:
    lora = LoraShape(
        rank=4, dropout=0, init_lora_weights="pissa_niter_16" if start == "pissa" else "kaiming"
    )
    write_pairs(
        tmp_path / "job",
        base_model,
        POLITE[:8],
        lora=lora,
        epochs=1,
        validation=HELD_OUT,
        is_continued=start == "adapter",
    )
    if start == "supervised job":
        write_job(
            tmp_path / "sft", ROWS, base_model=base_model, lora=lora, learning_rate=1e-2, epochs=1
        )
        trained = run(tmp_path / "sft")
        weights = shutil.copyfile(
            tmp_path / "sft/out/step-3" / WEIGHTS, tmp_path / "job" / PARENT_NAME
        )
        parent = write_parent(tmp_path / "sft", lora)
        assert isinstance(trained.events[-1], Finished)
        change_job(
            tmp_path / "job", parent=parent.model_copy(update={"sha256": sha256_of(weights)})
        )

    result = run(tmp_path / "job")

    before, first = result.rows[:2]
    for rewards in (before.valid_rewards, first.train_rewards):
        assert rewards is not None
        assert abs(rewards.chosen) < 1e-4 > abs(rewards.rejected)
    assert before.valid_loss == pytest.approx(math.log(2), abs=1e-4)
    assert first.train_loss == pytest.approx(math.log(2), abs=1e-4)
    last = result.rows[-1]
    assert last.valid_rewards is not None
    assert abs(last.valid_rewards.chosen) > 1e-3
