"""Whole jobs on a tiny model, in this process."""

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.core.dataset.formats import ChatExample
from app.core.job.child.training_events import (
    Checkpointed,
    Failed,
    Finished,
    Noted,
    Planned,
    Started,
    Stepped,
    TrainingEvent,
)
from app.core.manifest import verify
from tests.tiny import (
    REWRITING_TEMPLATE,
    build_tokenizer,
    chat_row,
    write_job,
    write_tiny_model,
)
from worker.training.data.dataset import IGNORE_INDEX
from worker.training.data.encoding import Encoder
from worker.training.recipe import run_job

ROWS = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(10)]

RunJob = Callable[..., list[TrainingEvent]]


@pytest.fixture
def run(base_model: Path, tmp_path: Path) -> RunJob:
    """Runs a job in `tmp_path/NAME` and returns its events."""

    def run_in(
        name: str = "job", rows: list[dict[str, Any]] = ROWS, **settings: Any
    ) -> list[TrainingEvent]:
        settings = {"learning_rate": 1e-2, "base_model": base_model, **settings}
        write_job(tmp_path / name, rows, **settings)
        events: list[TrainingEvent] = []
        run_job(tmp_path / name, events.append)
        return events

    return run_in


def steps(events: list[TrainingEvent]) -> list[Stepped]:
    return [event for event in events if isinstance(event, Stepped)]


def checkpoints(events: list[TrainingEvent]) -> list[int]:
    return [event.step for event in events if isinstance(event, Checkpointed)]


def evaluations(events: list[TrainingEvent]) -> dict[int, float]:
    rows = (event.metrics for event in steps(events))
    return {row.step: row.valid_loss for row in rows if row.valid_loss is not None}


def messages(events: list[TrainingEvent]) -> list[str]:
    return [event.message for event in events if isinstance(event, Noted)]


def failure(events: list[TrainingEvent]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


def test_a_job_reports_its_data_its_parameters_its_steps_and_its_end(run: RunJob) -> None:
    events = run(epochs=2, validation=ROWS[:3])

    data, validation, overlap, parameters, computation, warning, result = messages(events)
    assert data.startswith("train.jsonl: 10 examples, 425 tokens, ")
    assert validation.startswith("validation.jsonl: 3 examples, ")
    assert overlap.startswith("train.jsonl: Lines that also stand in the validation file: 3.")
    assert parameters.startswith("trainable params: 896 || all params: 27,776 || trainable%: ")
    assert computation.startswith("Training in float32 (this processor multiplies matrices ")
    assert computation.endswith(" in bfloat16 as in float32), not compiled, as configured.")
    assert events.index(Planned(total_steps=6)) == events.index(Noted(message=parameters)) - 1
    assert re.fullmatch(
        r"The adapter of step 6, the last one, is the result\. "
        r"Its validation loss is \d\.\d{4}\. Before training it was \d\.\d{4}\.",
        result,
    )
    assert warning.startswith("The validation loss was still falling: ")
    assert [event.total_steps for event in events if isinstance(event, Started)] == [6]
    assert [event.metrics.step for event in steps(events)] == [0, 1, 2, 3, 4, 5, 6]
    assert [event.metrics.epoch for event in steps(events)] == [0, 0.4, 0.8, 1.0, 1.4, 1.8, 2.0]
    assert checkpoints(events) == [3, 6]
    assert list(evaluations(events)) == [0, 3, 6]
    assert events[-1] == Finished(step=6, trained_tokens=2 * 425)
    assert steps(events)[-1].metrics.tokens_seen == 2 * 425


def test_a_job_tells_how_many_tokens_it_computed_of_those_it_read(run: RunJob) -> None:
    """Two steps of four rows that begin with the same 34 tokens."""
    rows = [chat_row(f"Answer in one word, please. {i}?", "Yes.") for i in range(8)]

    events = run(rows=rows, epochs=1, batch_size=4)

    assert isinstance(events[-1], Finished)
    read = events[-1].trained_tokens
    (told,) = [message for message in messages(events) if message.startswith("Computed ")]
    assert told.startswith(f"Computed {read - 2 * 3 * 34:,} of {read:,} tokens: ")


def test_the_clock_of_the_loop_only_moves_forward(run: RunJob) -> None:
    clock = [event.metrics.elapsed_s for event in steps(run())]

    assert clock == sorted(clock)
    assert clock[0] > 0


def test_the_same_job_gives_the_same_bits_twice(run: RunJob, tmp_path: Path) -> None:
    settings = {"epochs": 2, "lora": {"rank": 4, "dropout": 0.1}}

    first, second = run("first", **settings), run("second", **settings)

    def without_time(events: list[TrainingEvent]) -> list[Any]:
        return [event.metrics.model_copy(update={"elapsed_s": 0}) for event in steps(events)]

    assert without_time(first) == without_time(second)
    for name in ("adapter_model.safetensors", "adapter_config.json", "training_config.json"):
        one, other = (tmp_path / job / "out" / "step-6" / name for job in ("first", "second"))
        assert one.read_bytes() == other.read_bytes(), name


def test_another_seed_gives_another_adapter(run: RunJob, tmp_path: Path) -> None:
    run("first", epochs=1, seed=1)
    run("second", epochs=1, seed=2)

    one, other = (
        (tmp_path / job / "out" / "step-3" / "adapter_model.safetensors").read_bytes()
        for job in ("first", "second")
    )
    assert one != other


def test_a_directory_that_is_run_again_starts_over(run: RunJob, tmp_path: Path) -> None:
    run(epochs=1)
    events: list[TrainingEvent] = []

    run_job(tmp_path / "job", events.append)

    assert isinstance(events[-1], Finished)
    saved = {path.name for path in (tmp_path / "job" / "out").iterdir()}
    assert saved == {"step-3", "resume-3"}


def test_checkpoints_and_evaluations_come_when_they_are_asked_for(run: RunJob) -> None:
    events = run(max_steps=5, checkpoint_steps=2, n_evals=5, validation=ROWS[:2])

    assert checkpoints(events) == [2, 3, 4, 5]
    assert list(evaluations(events)) == [0, 1, 2, 3, 4, 5]


def test_the_first_row_is_what_the_base_model_itself_does(
    run: RunJob, base_model: Path, tmp_path: Path
) -> None:
    events = run(validation=[UNLIKE])

    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32).eval()
    assert evaluations(events)[0] == pytest.approx(loss_on_unlike(base), abs=1e-4)
    table = (tmp_path / "job" / "out" / "step-9" / "metrics.csv").read_text().splitlines()
    assert table[1].startswith(f"0,,,{evaluations(events)[0]},")
    card = (tmp_path / "job" / "out" / "step-9" / "README.md").read_text()
    assert f"| 0 | 0.00 |  | {evaluations(events)[0]:.4f} |" in card
    assert "Step 0 is the\nmodel before training." in card


def test_a_base_model_that_computes_no_number_is_named_before_a_step_is_taken(
    tmp_path: Path,
) -> None:
    write_broken_model(tmp_path / "model")
    write_job(tmp_path / "job", ROWS, base_model=tmp_path / "model", validation=[UNLIKE])
    events: list[TrainingEvent] = []

    run_job(tmp_path / "job", events.append)

    assert (failure(events).code, failure(events).param) == ("loss_not_finite", "model")
    assert not steps(events)


def test_a_part_of_the_training_file_is_held_out_where_there_is_no_validation_file(
    run: RunJob,
) -> None:
    events = run(epochs=1, validation_split=0.3)

    assert "train.jsonl: 3 of 10 examples are held out to evaluate on" in messages(events)[1]
    assert Planned(total_steps=2) in events  # seven examples are left
    assert list(evaluations(events)) == [0, 2]


@pytest.mark.parametrize(("learning_rate", "is_warned"), [(1e-3, True), (1e-1, False)])
def test_a_validation_loss_that_is_still_falling_at_the_end_is_a_warning(
    run: RunJob,
    learning_rate: float,
    is_warned: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    rows = [chat_row("Say a", "aaaaaaaaaaaa")] * 32

    events = run(rows=rows, validation=rows[:1], learning_rate=learning_rate)

    warnings = [
        event.message for event in events if isinstance(event, Noted) if event.level == "warn"
    ]
    assert any("The validation loss was still falling" in each for each in warnings) == is_warned
    assert messages(events)[-1].startswith("The adapter of step 24")


def test_evaluations_come_every_so_many_steps(run: RunJob) -> None:
    events = run(max_steps=7, eval_steps=2, validation=ROWS[:2])

    assert list(evaluations(events)) == [0, 2, 3, 4, 6, 7]


def run_until_worse(run: RunJob, **settings: Any) -> tuple[list[TrainingEvent], int, int]:
    """A job whose validation loss soon rises: its events, its best step and its last."""
    worsening: dict[str, Any] = {
        "rows": [chat_row("Say a", "aaaaaaaaaaaa")] * 32,
        "validation": [UNLIKE],
        "epochs": 3,
        "n_evals": 24,
        "learning_rate": 0.1,
    }
    events = run(**worsening, **settings)
    losses = evaluations(events)
    del losses[0]  # the base model is no result
    return events, min(losses, key=lambda step: losses[step]), max(losses)


UNLIKE = chat_row("Say z", "zzzzzzzzzzzz")


def test_a_job_that_gets_worse_stops_early_and_its_best_adapter_is_the_result(
    run: RunJob, base_model: Path, tmp_path: Path
) -> None:
    events, best, last = run_until_worse(run, early_stopping_patience=2)

    assert last == best + 2 < 24
    assert events[-1] == Finished(step=best, trained_tokens=steps(events)[-1].metrics.tokens_seen)
    assert checkpoints(events)[-2:] == [last, best]
    assert messages(events)[-1].startswith(f"Stopped after step {last} of 24: ")
    assert f"The adapter of step {best}, with the lowest validation loss," in messages(events)[-1]
    result = tmp_path / "job" / "out" / f"step-{best}"
    assert verify(result).step == best
    assert plain_loss(base_model, result) == pytest.approx(evaluations(events)[best], abs=1e-4)


def test_a_job_that_may_stop_early_but_does_not_still_has_its_best_adapter_as_result(
    run: RunJob,
) -> None:
    events, best, last = run_until_worse(run, early_stopping_patience=24)

    assert last == 24
    assert best < 24
    assert isinstance(events[-1], Finished)
    assert events[-1].step == best
    assert messages(events)[-1].startswith(f"The adapter of step {best}, ")


def test_a_chat_of_which_each_answer_is_a_row_takes_as_many_steps(
    tmp_path: Path, run: RunJob
) -> None:
    write_tiny_model(tmp_path / "model", chat_template=REWRITING_TEMPLATE)
    two_turns = {"messages": ROWS[1]["messages"] + ROWS[2]["messages"]}

    events = run(rows=[two_turns] * 4, base_model=tmp_path / "model", epochs=1, batch_size=2)

    assert [event.total_steps for event in events if isinstance(event, Planned)] == [4]
    assert isinstance(events[-1], Finished)


def test_the_date_of_a_job_is_in_its_tokens_and_its_manifest(tmp_path: Path, run: RunJob) -> None:
    write_tiny_model(tmp_path / "model", chat_template=REWRITING_TEMPLATE)
    settings = {"base_model": tmp_path / "model", "epochs": 1}

    first = run("first", template_date="2026-01-31", **settings)
    other = run("other", template_date="2026-02-01", **settings)

    assert [s.metrics.train_loss for s in steps(first)] != [
        s.metrics.train_loss for s in steps(other)
    ]
    manifest = verify(tmp_path / "first" / "out" / "step-3")
    assert manifest.provenance["config"]["template_date"] == "2026-01-31"


def test_the_stop_token_of_a_chat_is_beside_the_adapter_and_warned_of(
    tmp_path: Path, run: RunJob
) -> None:
    model = tmp_path / "model"
    write_tiny_model(model)
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"  # noqa: S105 - as base models have it
    tokenizer.save_pretrained(model)
    (model / "generation_config.json").write_text('{"eos_token_id": 256}')

    events = run(base_model=model, epochs=1)

    written = json.loads(
        (tmp_path / "job" / "out" / "step-3" / "generation_config.json").read_text()
    )
    assert written["eos_token_id"] == [256, 258]
    assert any("end with <|im_end|>, and the base model stops at" in m for m in messages(events))


def test_the_best_adapter_can_be_chosen_without_early_stopping(
    run: RunJob, base_model: Path, tmp_path: Path
) -> None:
    events, best, last = run_until_worse(run, checkpoint_choice="best")

    assert best < last == 24
    assert isinstance(events[-1], Finished)
    assert events[-1].step == best
    result = tmp_path / "job" / "out" / f"step-{best}"
    assert plain_loss(base_model, result) == pytest.approx(evaluations(events)[best], abs=1e-4)


def test_the_last_adapter_can_be_chosen_with_early_stopping_and_a_worse_one_is_a_warning(
    run: RunJob,
) -> None:
    events, best, last = run_until_worse(run, early_stopping_patience=2, checkpoint_choice="final")

    assert last == best + 2 < 24
    assert events[-1] == Finished(step=last, trained_tokens=steps(events)[-1].metrics.tokens_seen)
    note = [event for event in events if isinstance(event, Noted)][-1]
    assert f"The adapter of step {last}, the last one, is the result." in note.message
    losses = evaluations(events)
    assert (note.level == "warn") == (losses[last] > losses[0])


def test_an_evaluation_that_gains_too_little_does_not_keep_a_job_alive(run: RunJob) -> None:
    events, best, last = run_until_worse(
        run, early_stopping_patience=2, early_stopping_threshold=100.0
    )

    assert last == 3  # only the first evaluation has nothing to improve on
    assert isinstance(events[-1], Finished)
    assert events[-1].step == best


def plain_loss(base_model: Path, adapter: Path) -> float:
    """The loss on `UNLIKE` as plain transformers and peft compute it."""
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    return loss_on_unlike(PeftModel.from_pretrained(base, str(adapter)).eval())


def loss_on_unlike(model: Any) -> float:
    encoder = Encoder(build_tokenizer(), today=date(2026, 1, 31))
    (row,) = encoder.encode(ChatExample(UNLIKE["messages"], [False, True]))
    input_ids = torch.tensor([row.input_ids])
    labels = input_ids.masked_fill(~torch.tensor([row.is_learned]), IGNORE_INDEX)
    with torch.no_grad():
        return model(input_ids=input_ids, labels=labels).loss.item()


def write_broken_model(directory: Path) -> None:
    """Write a model whose logits are infinite."""
    write_tiny_model(directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"].fill_(1e38)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_loss_that_is_not_finite_fails_the_job_with_its_step(tmp_path: Path) -> None:
    write_broken_model(tmp_path / "model")
    write_job(tmp_path / "job", ROWS, base_model=tmp_path / "model", learning_rate=0.5)
    events: list[TrainingEvent] = []

    run_job(tmp_path / "job", events.append)

    assert failure(events).code == "loss_not_finite"
    assert failure(events).param == "hyperparameters.learning_rate"
    assert "diverged at step 1 (" in failure(events).message
    assert "which is 0.5" in failure(events).message


def test_a_learning_rate_that_is_too_low_fails_at_the_end(run: RunJob) -> None:
    events = run(learning_rate=1e-30, epochs=1)

    assert failure(events).code == "adapter_has_no_effect"
    assert "learning_rate=1e-30 is too low" in failure(events).message
    assert checkpoints(events) == [3]


@pytest.mark.parametrize(
    ("settings", "code", "param"),
    [
        pytest.param(
            {"rows": [chat_row("long " * 99, "x")], "max_sequence_tokens": 16},
            "no_trainable_tokens",
            "training_file",
            id="nothing-to-learn",
        ),
        pytest.param(
            {"validation": [chat_row("long " * 99, "x")], "max_sequence_tokens": 64},
            "no_trainable_tokens",
            "validation_file",
            id="nothing-to-evaluate",
        ),
        pytest.param(
            {"max_sequence_tokens": 16, "overlong_row_behavior": "error"},
            "row_too_long",
            "training_file",
            id="too-long",
        ),
        pytest.param(
            {"lora": {"target_modules": ("wq",)}},
            "unknown_target_module",
            "hyperparameters.lora_target_modules",
            id="unknown-layer",
        ),
    ],
)
def test_a_failure_that_a_user_can_fix_is_named(
    run: RunJob, settings: dict[str, Any], code: str, param: str
) -> None:
    failed = failure(run(**settings))

    assert (failed.code, failed.param) == (code, param)


def test_a_job_that_does_not_fit_in_memory_says_what_to_change(
    base_model: Path, tmp_path: Path
) -> None:
    write_job(tmp_path / "job", ROWS, base_model=base_model)
    events: list[TrainingEvent] = []

    def report(event: TrainingEvent) -> None:
        if isinstance(event, Started):
            torch.empty(2**55)  # as the first step would ask for
        events.append(event)

    run_job(tmp_path / "job", report)

    assert failure(events).code == "out_of_memory"
    assert "a lower context_length, which is 512, or lora_r, which is 4." in failure(events).message


def test_a_fault_of_ours_is_not_blamed_on_the_user(base_model: Path, tmp_path: Path) -> None:
    write_job(tmp_path / "job", ROWS, base_model=base_model)
    (tmp_path / "job" / "train.jsonl").unlink()

    with pytest.raises(FileNotFoundError):
        run_job(tmp_path / "job", lambda _: None)


def test_a_base_model_without_safetensors_is_not_loaded(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    write_job(tmp_path / "job", ROWS, base_model=tmp_path / "model")

    with pytest.raises(OSError, match="safetensors"):
        run_job(tmp_path / "job", lambda _: None)
