"""A job that is interrupted and resumed ends as one that never was, bit for bit."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from app.core.job.child.job_spec import (
    JOB_SPEC_NAME,
    LOSS_LOG_NAME,
    RESUME_NAME,
    ComputeSettings,
    JobSpec,
)
from app.core.job.child.training_events import (
    Checkpointed,
    Finished,
    Noted,
    Planned,
    Saved,
    Started,
    Stepped,
    Stopped,
    TrainingEvent,
    Unresumable,
)
from app.core.job.lora_shape import LoraShape
from app.core.job.loss_log import StepMetrics
from app.core.manifest import verify
from tests.tiny import (
    REWRITING_TEMPLATE,
    chat_row,
    write_job,
    write_parent,
    write_tiny_model,
)
from worker.training.recipe import run_job

ROWS = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(10)]
WEIGHTS = "adapter_model.safetensors"

CASES: dict[str, dict[str, Any]] = {
    "dropout-and-ragged-epochs": {"epochs": 3},
    "validation": {"epochs": 2, "validation": ROWS[:3], "n_evals": 4, "checkpoint_steps": 2},
    "warmup-cosine-decay": {
        "epochs": 2,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.4,
        "weight_decay": 0.1,
    },
    "lora-plus-and-betas": {
        "epochs": 2,
        "loraplus_lr_ratio": 8.0,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "warmup_steps": 2,
        "min_lr_ratio": 0.2,
    },
    "rslora-gaussian": {
        "epochs": 2,
        "lora": LoraShape(rank=4, use_rslora=True, init_lora_weights="gaussian"),
    },
    "dora-and-lora-plus": {
        "epochs": 2,
        "lora": LoraShape(rank=4, use_dora=True, init_lora_weights="orthogonal"),
        "loraplus_lr_ratio": 4.0,
    },
    "embeddings": {
        "epochs": 2,
        "lora": LoraShape(rank=4, modules_to_save=("embed_tokens", "lm_head")),
        "compute": ComputeSettings(dtype="bfloat16", compile=False),
        "validation": ROWS[:3],
        "checkpoint_choice": "best",
        "weight_decay": 0.1,
    },
    "data-shape-and-threshold": {
        "epochs": 2,
        "rows": [{"messages": chat_row("Say a", i * "a")["messages"] * 2} for i in range(8, 18)],
        "validation": ROWS[:2],
        "train_on": "last_assistant",
        "max_sequence_tokens": 80,
        "overlong_row_behavior": "drop",
        "lora": LoraShape(rank=8, alpha=32, target_modules=("o_proj", "gate_proj")),
        "early_stopping_patience": 3,
        "early_stopping_threshold": 0.5,
    },
    "pissa": {
        "epochs": 2,
        "lora": LoraShape(rank=4, dropout=0.05, init_lora_weights="pissa_niter_16"),
        "loraplus_lr_ratio": 4.0,
    },
    "olora": {
        "epochs": 2,
        "lora": LoraShape(rank=4, init_lora_weights="olora", modules_to_save=("lm_head",)),
        "compute": ComputeSettings(forward="plain", dtype="bfloat16"),
    },
    "max-steps-in-mid-epoch": {"max_steps": 8, "checkpoint_steps": 5, "max_grad_norm": 0.1},
    "stops-early": {
        "rows": [chat_row("Say a", "aaaaaaaaaaaa")] * 32,
        "validation": [chat_row("Say z", "zzzzzzzzzzzz")],
        "n_evals": 24,
        "learning_rate": 0.1,
        "early_stopping_patience": 3,
    },
    "continued": {"epochs": 2, "validation": ROWS[:3], "is_continued": True},
    "continued-pissa-and-embeddings": {
        "epochs": 2,
        "is_continued": True,
        "lora": LoraShape(
            rank=4, init_lora_weights="pissa_niter_16", modules_to_save=("embed_tokens",)
        ),
    },
    "continued-dora": {
        "epochs": 2,
        "is_continued": True,
        "lora": LoraShape(rank=4, use_dora=True),
    },
    "split": {"epochs": 2, "validation_split": 0.3, "n_evals": 2, "checkpoint_choice": "best"},
    "best-without-patience": {
        "rows": [chat_row("Say a", "aaaaaaaaaaaa")] * 16,
        "validation": [chat_row("Say z", "zzzzzzzzzzzz")],
        "epochs": 2,
        "eval_steps": 2,
        "learning_rate": 0.1,
        "checkpoint_choice": "best",
    },
    "bfloat16": {"epochs": 2, "compute": ComputeSettings(dtype="bfloat16", compile=False)},
    "plain": {"epochs": 2, "compute": ComputeSettings(forward="plain", dtype="float32")},
    "best-is-not-last": {
        "rows": [chat_row("Say a", "aaaaaaaaaaaa")] * 16,
        "validation": [chat_row("Say z", "zzzzzzzzzzzz")],
        "epochs": 5,
        "n_evals": 10,
        "learning_rate": 0.1,
        "early_stopping_patience": 9,
    },
}


@dataclass(frozen=True, slots=True)
class Run:
    """A job that was run in `directory`, and all that it reported."""

    directory: Path
    events: list[TrainingEvent]

    @property
    def rows(self) -> list[StepMetrics]:
        """The loss log, as far as this attempt has written it."""
        return [event.metrics for event in self.events if isinstance(event, Stepped)]

    @property
    def steps(self) -> list[int]:
        """The steps that this attempt has taken."""
        return [row.step for row in self.rows if row.step > 0]

    @property
    def log(self) -> list[StepMetrics]:
        """The rows without what no two runs have in common."""
        return [row.model_copy(update={"elapsed_s": 0.0}) for row in self.rows]

    @property
    def states(self) -> dict[int, str]:
        """The directories of the saved states that were reported, by step."""
        return dict(filter(None, map(reported_state, self.events)))

    def until(self, step: int) -> "Run":
        """The same, had it died once it had reported the state of `step`."""
        reported = [state and state[0] for state in map(reported_state, self.events)]
        return Run(self.directory, self.events[: reported.index(step) + 1])

    @property
    def checkpoints(self) -> dict[int, bytes]:
        """The adapters that were reported, by step, in the order of the reports."""
        return {
            event.step: (self.directory / event.directory / WEIGHTS).read_bytes()
            for event in self.events
            if isinstance(event, Checkpointed)
        }


def reported_state(event: TrainingEvent) -> tuple[int, str] | None:
    match event:
        case Saved():
            return event.step, event.directory
        case Checkpointed(state=str(directory)):
            return event.step, directory
        case _:
            return None


def write(
    directory: Path,
    base_model: Path,
    rows: list[Any] = ROWS,
    *,
    is_continued: bool = False,
    **settings: Any,
) -> None:
    spec: dict[str, Any] = {"save_interval_s": settings.pop("save_interval_s", 1e6)}
    settings = {"learning_rate": 1e-2, "lora": LoraShape(rank=4, dropout=0.05), **settings}
    job = write_job(directory, rows, base_model=base_model, **settings)
    if is_continued:
        spec["parent"] = write_parent(directory, job.config.lora)
    change_spec(directory, job, **spec)


def change_spec(directory: Path, spec: JobSpec, **changes: Any) -> None:
    text = spec.model_copy(update=changes).model_dump_json()
    (directory / JOB_SPEC_NAME).write_text(text, encoding="utf-8")


def run(directory: Path, *, steps: int | None = None) -> Run:
    """Run the job in `directory`, or ask it to stop after so many steps of its own."""
    result = Run(directory, [])
    run_job(
        directory,
        result.events.append,
        lambda: steps is not None and len(result.steps) >= steps,
    )
    return result


def begin_again(run: Run, directory: Path, **changes: Any) -> None:
    """Make another directory of the same job."""
    shutil.copytree(
        run.directory, directory, symlinks=True, ignore=shutil.ignore_patterns("out", "events")
    )
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    change_spec(directory, spec, **changes)


def hand_over(earlier: list[Run], step: int, directory: Path, **changes: Any) -> None:
    """Make the job directory of the next attempt, as the parent does, from `earlier` ones."""
    last = earlier[-1]
    spec = JobSpec.model_validate_json((last.directory / JOB_SPEC_NAME).read_bytes())
    begin_again(last, directory, resume_step=step, attempt=spec.attempt + 1, **changes)
    shutil.rmtree(directory / RESUME_NAME, ignore_errors=True)
    shutil.copytree(last.directory / last.states[step], directory / RESUME_NAME)
    rows = [row for run in earlier for row in run.rows if row.step <= step]
    log = "".join(row.model_dump_json() + "\n" for row in rows)
    (directory / LOSS_LOG_NAME).write_text(log, encoding="utf-8")


@pytest.fixture(scope="module", params=CASES)
def whole(
    request: pytest.FixtureRequest, base_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A job that nothing has interrupted, with no state but those of its checkpoints."""
    directory = tmp_path_factory.mktemp("jobs") / "whole"
    write(directory, base_model, **CASES[request.param])
    return run(directory)


def total_steps(run: Run) -> int:
    return next(event.total_steps for event in run.events if isinstance(event, Started))


def assert_ends_like(whole: Run, attempts: list[Run]) -> None:
    """Everything the attempts have reported, put together, is what one alone would have."""
    assert [row for attempt in attempts for row in attempt.log] == whole.log
    checkpoints: dict[int, bytes] = {}
    for attempt in attempts:
        checkpoints |= attempt.checkpoints
    assert list(checkpoints) == list(whole.checkpoints)
    assert checkpoints == whole.checkpoints
    assert attempts[-1].events[-1] == whole.events[-1]
    clock = [row.elapsed_s for attempt in attempts for row in attempt.rows]
    assert clock == sorted(clock)


def test_a_job_that_resumes_at_any_step_ends_like_one_that_was_not_interrupted(
    whole: Run, tmp_path: Path
) -> None:
    begin_again(whole, tmp_path / "saving", save_interval_s=1e-9)
    saving = run(tmp_path / "saving")

    assert_ends_like(whole, [saving])
    assert list(saving.states) == whole.steps
    for step in saving.states:
        directory = tmp_path / f"from-{step}"
        before = saving.until(step)
        hand_over([before], step, directory)
        resumed = run(directory)

        started = [event for event in resumed.events if isinstance(event, Started)]
        assert [event.total_steps for event in started] == [total_steps(whole)]
        assert_ends_like(whole, [before, resumed])
        assert isinstance(resumed.events[-1], Finished)
        assert resumed.events[-1].step in resumed.checkpoints  # as another job has no earlier ones
        assert (directory / LOSS_LOG_NAME).read_text().count("\n") == len(whole.rows)


@pytest.mark.parametrize(("case", "is_early"), [("stops-early", True), ("best-is-not-last", False)])
def test_the_cases_with_patience_end_with_an_earlier_adapter(
    base_model: Path, tmp_path: Path, case: str, *, is_early: bool
) -> None:
    write(tmp_path / "job", base_model, **CASES[case])

    whole = run(tmp_path / "job")

    assert isinstance(whole.events[-1], Finished)
    assert whole.events[-1].step < len(whole.steps)
    assert (len(whole.steps) < total_steps(whole)) == is_early


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

    for i, attempt in enumerate(attempts[:-1], start=1):
        assert attempt.events[-1] == Stopped(step=i)
        assert list(attempt.states) == [i]
        assert verify(attempt.directory / attempt.states[i]).step == i
    assert_ends_like(whole, attempts)


def test_another_job_goes_on_from_the_state_of_one_that_is_named(
    base_model: Path, tmp_path: Path
) -> None:
    STEPS(tmp_path / "whole", base_model)
    STEPS(tmp_path / "stopped", base_model)
    whole, stopped = run(tmp_path / "whole"), run(tmp_path / "stopped", steps=2)

    hand_over([stopped], 2, tmp_path / "next", job_id="ftjob-2", resume_job_id="ftjob-1")
    continued = run(tmp_path / "next")

    assert_ends_like(whole, [stopped, continued])
    state = continued.directory / continued.states[6]
    assert (verify(state).job_id, verify(state).step) == ("ftjob-2", 6)


def test_a_job_of_an_earlier_release_goes_on_without_an_evaluation_of_its_base_model(
    base_model: Path, tmp_path: Path
) -> None:
    settings = CASES["validation"]
    write(tmp_path / "whole", base_model, **settings)
    write(tmp_path / "stopped", base_model, **settings)
    whole, stopped = run(tmp_path / "whole"), run(tmp_path / "stopped", steps=2)
    hand_over([stopped], 2, tmp_path / "next")
    log = tmp_path / "next" / LOSS_LOG_NAME
    first, *rest = log.read_text().splitlines(keepends=True)
    assert '"step":0' in first
    log.write_text("".join(rest))

    assert_ends_like(whole, [stopped, run(tmp_path / "next")])
    assert log.read_text().count("\n") == len(whole.steps)


STEPS = partial(write, epochs=2)
"""A job of six steps, with checkpoints after the third and the last."""


def test_a_job_that_is_stopped_at_a_checkpoint_does_not_save_its_state_twice(
    base_model: Path, tmp_path: Path
) -> None:
    STEPS(tmp_path / "job", base_model)

    events = run(tmp_path / "job", steps=3).events

    assert events[-2:] == [
        Checkpointed(step=3, directory="out/step-3", state="out/resume-3"),
        Stopped(step=3),
    ]


def test_a_job_that_is_stopped_between_two_saves_is_saved_first(
    base_model: Path, tmp_path: Path
) -> None:
    STEPS(tmp_path / "job", base_model)

    events = run(tmp_path / "job", steps=4).events

    assert events[-2:] == [Saved(step=4, directory="out/resume-4"), Stopped(step=4)]


@pytest.mark.parametrize("train_on", ["all_assistant", "last_assistant", "everything"])
def test_a_job_on_chats_of_several_turns_and_with_a_date_resumes_exactly(
    tmp_path: Path, train_on: str
) -> None:
    write_tiny_model(tmp_path / "model", chat_template=REWRITING_TEMPLATE)
    rows = [{"messages": one["messages"] + other["messages"]} for one, other in pairwise(ROWS)]
    settings = {"train_on": train_on, "template_date": "2026-01-31", "epochs": 2}
    for name in ("whole", "stopped"):
        write(tmp_path / name, tmp_path / "model", rows, **settings)

    whole, stopped = run(tmp_path / "whole"), run(tmp_path / "stopped", steps=4)
    hand_over([stopped], 4, tmp_path / "next")
    resumed = run(tmp_path / "next")

    assert total_steps(whole) == (10 if train_on == "all_assistant" else 6)
    assert_ends_like(whole, [stopped, resumed])


@pytest.mark.parametrize("step", [0, 2])
def test_a_job_that_is_stopped_before_its_first_step_has_nothing_to_save(
    base_model: Path, tmp_path: Path, step: int
) -> None:
    STEPS(tmp_path / "job", base_model)
    directory = tmp_path / "job"
    if step > 0:
        hand_over([run(tmp_path / "job", steps=step)], step, tmp_path / "next")
        directory = tmp_path / "next"

    events = run(directory, steps=0).events

    assert isinstance(events[-2], Started)
    assert events[-1] == Stopped(step=step)


def test_a_job_that_is_stopped_after_its_last_step_just_finishes(
    base_model: Path, tmp_path: Path
) -> None:
    STEPS(tmp_path / "job", base_model)

    assert isinstance(run(tmp_path / "job", steps=6).events[-1], Finished)


def test_a_job_that_had_taken_its_last_step_makes_its_result_again_and_verifies_it(
    base_model: Path, tmp_path: Path
) -> None:
    STEPS(tmp_path / "job", base_model)
    whole = run(tmp_path / "job")
    hand_over([whole], 6, tmp_path / "next")

    last = run(tmp_path / "next")

    kinds = [type(event) for event in last.events if not isinstance(event, Noted)]
    assert kinds == [Planned, Started, Checkpointed, Finished]
    assert last.checkpoints == {6: whole.checkpoints[6]}


def test_between_checkpoints_a_state_is_saved_only_when_it_is_time(
    base_model: Path, tmp_path: Path
) -> None:
    STEPS(tmp_path / "seldom", base_model)
    STEPS(tmp_path / "often", base_model, save_interval_s=1e-9)

    assert list(run(tmp_path / "seldom").states) == [3, 6]
    often = run(tmp_path / "often").events
    assert [e.step for e in often if isinstance(e, Saved)] == [1, 2, 4, 5]
    assert [e.state for e in often if isinstance(e, Checkpointed)] == [
        "out/resume-3",
        "out/resume-6",
    ]


@pytest.fixture
def next_attempt(base_model: Path, tmp_path: Path) -> Path:
    """A job directory whose job goes on from step 2."""
    STEPS(tmp_path / "job", base_model)
    hand_over([run(tmp_path / "job", steps=2)], 2, tmp_path / "next")
    return tmp_path / "next"


def refusal(directory: Path) -> str:
    """What the job says, before it does anything, of the state that it should go on from."""
    said = run(directory).events
    (refused,) = [event for event in said if not isinstance(event, Noted | Planned)]
    assert isinstance(refused, Unresumable)
    return refused.message


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "manifest.json"])
def test_a_damaged_state_is_refused(next_attempt: Path, name: str) -> None:
    path = next_attempt / RESUME_NAME / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)

    assert refusal(next_attempt)


def change_state(state: Path, **changes: Any) -> None:
    """Change `state.json`, or take fields out where a change is None, and keep the state whole."""
    path = state / "state.json"
    numbers = json.loads(path.read_text()) | changes
    numbers = {name: value for name, value in numbers.items() if changes.get(name, 0) is not None}
    path.write_text(json.dumps(numbers))
    manifest = json.loads((state / "manifest.json").read_text())
    manifest["files"]["state.json"] = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (state / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_state_with_unknown_fields_is_refused(next_attempt: Path) -> None:
    change_state(next_attempt / RESUME_NAME, of_a_later_version=1)

    assert "of_a_later_version" in refusal(next_attempt)


@pytest.mark.parametrize("more", [{}, {"of_a_later_version": 1}])
def test_a_state_of_other_numerics_is_refused_with_the_versions(
    next_attempt: Path, more: dict[str, Any]
) -> None:
    change_state(next_attempt / RESUME_NAME, numerics=2, **more)

    said = refusal(next_attempt)

    assert "saved by numerics version 2, and this release of Tunery computes with version 4" in said


def test_a_state_that_was_saved_before_numerics_had_versions_is_refused(next_attempt: Path) -> None:
    change_state(next_attempt / RESUME_NAME, numerics=None)

    assert "saved by numerics version 1" in refusal(next_attempt)


def test_a_state_of_the_same_rows_with_other_tokens_is_refused(next_attempt: Path) -> None:
    spec = JobSpec.model_validate_json((next_attempt / JOB_SPEC_NAME).read_bytes())
    config = spec.config.model_copy(update={"train_on_inputs": True})
    change_spec(next_attempt, spec, config=config)

    assert "The data became other tokens than in the attempt that saved it" in refusal(next_attempt)


def test_a_state_that_is_not_there_is_refused(next_attempt: Path) -> None:
    shutil.rmtree(next_attempt / RESUME_NAME)

    assert refusal(next_attempt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume_step": 3}, "of step 2 of ftjob-1, not of step 3 of ftjob-1"),
        ({"job_id": "ftjob-2"}, "of step 2 of ftjob-1, not of step 2 of ftjob-2"),
    ],
)
def test_a_state_of_another_step_or_job_is_refused(
    next_attempt: Path, changes: dict[str, Any], message: str
) -> None:
    spec = JobSpec.model_validate_json((next_attempt / JOB_SPEC_NAME).read_bytes())
    change_spec(next_attempt, spec, **changes)

    assert message in refusal(next_attempt)


@pytest.mark.parametrize(
    "lines", [slice(0, 1), slice(1, 2), slice(0, 0)], ids=["short", "gap", "none"]
)
def test_a_loss_log_that_ends_elsewhere_is_refused(next_attempt: Path, lines: slice) -> None:
    path = next_attempt / LOSS_LOG_NAME
    path.write_text("".join(path.read_text().splitlines(keepends=True)[lines]))

    with pytest.raises(RuntimeError, match="is not the loss log of steps 1 to 2"):
        run(next_attempt)
