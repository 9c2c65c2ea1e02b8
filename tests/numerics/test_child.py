"""The training child as the worker starts it: a process, a directory, and lines of JSON."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.core.job.child.training_events import (
    Checkpointed,
    Finished,
    Saved,
    Started,
    Stepped,
    Stopped,
    TrainingEvent,
    parse_event,
)
from app.core.job.lora_shape import LoraShape
from app.core.job.loss_log import COLUMNS, StepMetrics
from app.core.manifest import verify
from tests.numerics.test_resume import Run, assert_ends_like, hand_over, run
from tests.tiny import END_OF_TURN, chat_row, write_job

ROWS = [chat_row(f"How many {i}?", "There are " + "very " * (i % 3) + "many.") for i in range(22)]
VALIDATION = [chat_row(f"How many {i}?", "There are many.") for i in (3, 30, 300)]

FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "generation_config.json",
    "loss.svg",
    "manifest.json",
    "metrics.csv",
    "metrics.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_config.json",
}


PROJECT = Path(__file__).parents[2]
# A home that cannot be written to: the child has no business there.
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


def command(directory: Path) -> list[str]:
    return [sys.executable, "-m", "worker.train", str(directory)]


def run_child(directory: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(directory),
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
        cwd=PROJECT,
        timeout=120,
    )


def start_child(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd=PROJECT,
    )


@pytest.fixture(scope="module")
def job(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("jobs") / "job"
    write_job(
        directory,
        ROWS,
        base_model=base_model,
        validation=VALIDATION,
        epochs=8,
        learning_rate=3e-2,
        checkpoint_steps=10,
        lora=LoraShape(
            rank=8, alpha=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
        ),
    )
    return directory


@pytest.fixture(scope="module")
def events(job: Path) -> list[TrainingEvent]:
    child = run_child(job)
    assert child.returncode == 0, child.stderr.decode()
    return [parse_event(line) for line in child.stdout.splitlines()]


@pytest.fixture
def result(job: Path, events: list[TrainingEvent]) -> Path:
    assert isinstance(events[-1], Finished)
    return job / "out" / f"step-{events[-1].step}"


def metrics(events: list[TrainingEvent]) -> list[StepMetrics]:
    return [event.metrics for event in events if isinstance(event, Stepped)]


def test_a_child_reports_every_step_in_events_alone(events: list[TrainingEvent]) -> None:
    assert [event.total_steps for event in events if isinstance(event, Started)] == [48]
    assert [row.step for row in metrics(events)] == list(range(49))
    assert isinstance(events[-1], Finished)


def test_the_validation_loss_falls(events: list[TrainingEvent]) -> None:
    losses = [row.valid_loss for row in metrics(events) if row.valid_loss is not None]

    assert losses[-1] < 0.5 * losses[0]


def test_every_checkpoint_is_whole_and_has_the_log_so_far(
    job: Path, events: list[TrainingEvent]
) -> None:
    saved = [event for event in events if isinstance(event, Checkpointed)]

    assert [event.step for event in saved] == [6, 10, 12, 18, 20, 24, 30, 36, 40, 42, 48]
    for event in saved:
        directory = job / event.directory
        assert verify(directory).step == event.step
        assert {path.name for path in directory.iterdir()} == FILES
        header, *rows = (directory / "metrics.csv").read_text().splitlines()
        assert header == ",".join(COLUMNS)
        assert len(rows) == event.step + 1  # and the base model


def test_the_validation_loss_is_what_plain_peft_and_transformers_compute(
    result: Path, base_model: Path, events: list[TrainingEvent]
) -> None:
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(result)).eval()
    tokenizer = AutoTokenizer.from_pretrained(result)

    total, learned = 0.0, 0
    for row in VALIDATION:
        prompt, answer = row["messages"][0], row["messages"][1]["content"] + END_OF_TURN
        prompt_ids = tokenizer.apply_chat_template(
            [prompt], add_generation_prompt=True, return_dict=False
        )
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        input_ids = torch.tensor([prompt_ids + answer_ids])
        labels = torch.tensor([[-100] * len(prompt_ids) + answer_ids])
        with torch.no_grad():
            loss = model(input_ids=input_ids, labels=labels).loss.item()
        total += loss * len(answer_ids)
        learned += len(answer_ids)

    assert metrics(events)[-1].valid_loss == pytest.approx(total / learned, abs=1e-3)


def test_a_tuned_model_gives_the_answers_it_was_taught_and_stops(
    result: Path, base_model: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(result)).eval()
    tokenizer = AutoTokenizer.from_pretrained(result)
    chat: list[dict[str, Any]] = [{"role": "user", "content": "How many 7?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")

    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)

    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer.startswith("There are ")
    assert answer.endswith(f"many.{END_OF_TURN}")


def test_a_child_whose_job_cannot_be_read_dies_with_a_traceback(tmp_path: Path) -> None:
    child = run_child(tmp_path)

    assert child.returncode == 1
    assert child.stdout == b""
    assert b"FileNotFoundError" in child.stderr


def read_until(child: subprocess.Popen[bytes], step: int) -> list[TrainingEvent]:
    """What a child reports up to `step`."""
    assert child.stdout is not None
    events: list[TrainingEvent] = []
    while not events or not (isinstance(events[-1], Stepped) and events[-1].metrics.step >= step):
        events.append(parse_event(child.stdout.readline()))
    return events


def test_a_child_that_is_asked_to_stop_saves_its_state_and_another_goes_on(
    base_model: Path, tmp_path: Path
) -> None:
    settings = {"max_steps": 150, "checkpoint_steps": 140, "batch_size": 1}
    rows = ROWS * 20
    write_job(tmp_path / "whole", rows, base_model=base_model, **settings)
    write_job(tmp_path / "first", rows, base_model=base_model, **settings)

    with start_child(tmp_path / "first") as first:
        events = read_until(first, step=5)
        first.terminate()
        output, log = first.communicate(timeout=60)
    events += [parse_event(line) for line in output.splitlines()]
    assert first.returncode == 0, log.decode()
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    hand_over([Run(tmp_path / "first", events)], stopped.step, tmp_path / "second")
    lines = run_child(tmp_path / "second").stdout.splitlines()
    second = Run(tmp_path / "second", [parse_event(line) for line in lines])
    whole = run(tmp_path / "whole")

    assert 5 <= stopped.step < 140
    assert events[-2] == Saved(step=stopped.step, directory=f"out/resume-{stopped.step}")
    assert_ends_like(whole, [Run(tmp_path / "first", events), second])


def test_a_child_that_has_nothing_to_lose_yet_ends_at_once(
    base_model: Path, tmp_path: Path
) -> None:
    write_job(tmp_path / "job", ROWS, base_model=base_model)
    data = tmp_path / "job" / "train.jsonl"
    data.unlink()
    os.mkfifo(data)

    with start_child(tmp_path / "job") as child, data.open("wb"):  # waits until it is read
        child.terminate()
        output, _ = child.communicate(timeout=60)

    assert child.returncode == -signal.SIGTERM
    assert output == b""


PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
print(child.pid, flush=True)
for line in child.stdout:
    print(line.decode(), end="", flush=True)
"""
"""Starts a child and passes its events on; its own first line is the child's process id."""


def test_a_child_does_not_outlive_its_parent(base_model: Path, tmp_path: Path) -> None:
    write_job(tmp_path / "job", ROWS, base_model=base_model, max_steps=1_000_000)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *command(tmp_path / "job")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        cwd=PROJECT,
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        first_step = next(line for line in parent.stdout if b'"stepped"' in line)

        parent.kill()

        assert isinstance(parse_event(first_step), Stepped)
        has_ended, _, _ = select.select([child], [], [], 10)
    os.close(child)
    assert has_ended
