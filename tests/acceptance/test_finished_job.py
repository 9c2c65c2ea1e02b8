"""A job from its creation to its result, as the stock client sees it."""

import csv
import hashlib
import io
import json
import re
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from app.core.job.loss_log import COLUMNS
from tests.acceptance.processes import InstalledService

STEPS = 24
CHECKPOINTS = [10, 12, 20, 24]
"""Every ten steps, and at the end of each epoch."""

EVALUATED = CHECKPOINTS

ADAPTER_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "generation_config.json",
    "loss.svg",
    "manifest.json",
    "manifest.json.sig",
    "metrics.csv",
    "metrics.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_config.json",
}


@pytest.fixture
def http(service: InstalledService, finished_job: FineTuningJob) -> Iterator[httpx.Client]:
    """Plain HTTP, relative to the finished job."""
    base_url = f"{service.base_url}/fine_tuning/jobs/{finished_job.id}"
    with httpx.Client(base_url=base_url) as http:
        yield http


def checkpoints(client: openai.OpenAI, job: FineTuningJob) -> list[FineTuningJobCheckpoint]:
    return list(client.fine_tuning.jobs.checkpoints.list(job.id))


def result_files(checkpoint: FineTuningJobCheckpoint) -> list[str]:
    return (checkpoint.model_extra or {})["result_files"]


def extra(thing: openai.BaseModel) -> dict[str, Any]:
    """The fields that are ours."""
    return thing.model_extra or {}


def test_the_job_has_succeeded_with_everything_openai_documents(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    job = client.fine_tuning.jobs.retrieve(finished_job.id)

    assert (job.object, job.status, job.error) == ("fine_tuning.job", "succeeded", None)
    assert (job.model, job.seed, job.metadata) == ("tiny", 42, {"team": "red", "run": "1"})
    assert job.fine_tuned_model == f"ft:tiny:tunery:my-suffix:{job.id[-12:]}"
    assert job.finished_at is not None
    assert job.created_at <= extra(job)["started_at"] <= job.finished_at <= time.time()
    assert (job.estimated_finish, job.integrations) == (None, [])
    assert job.trained_tokens is not None
    assert job.trained_tokens > 1000
    assert len(job.result_files) == 1
    assert client.files.retrieve(job.training_file).filename == "train.jsonl"
    assert extra(job)["user_provided_suffix"] == "My Suffix"


def test_the_job_shows_every_setting_with_the_value_it_had(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    job = client.fine_tuning.jobs.retrieve(finished_job.id)

    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (2, 4)
    assert job.hyperparameters.learning_rate_multiplier == 1.8
    assert extra(job.hyperparameters) == {
        "learning_rate": pytest.approx(3.6e-4),
        "lr_scheduler": "linear",
        "warmup_ratio": 0.0,
        "warmup_steps": None,
        "min_lr_ratio": 0.0,
        "loraplus_lr_ratio": None,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "max_grad_norm": 1.0,
        "max_steps": None,
        "context_length": 512,
        "overlong_row_behavior": "truncate",
        "train_on": "all_assistant",
        "train_on_inputs": False,
        "template_date": datetime.fromtimestamp(job.created_at, UTC).date().isoformat(),
        "logging_steps": 5,
        "checkpoint_steps": 10,
        "keep_checkpoints": None,
        "validation_split": None,
        "n_evals": None,
        "eval_steps": None,
        "early_stopping_patience": None,
        "early_stopping_threshold": 0.0,
        "checkpoint_choice": "final",
        "lora_r": 8,
        "lora_alpha": 16.0,
        "lora_dropout": 0.05,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": "kaiming",
        "modules_to_save": [],
        "lora_layers": None,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    assert job.method is not None
    assert job.method.type == "supervised"
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.model_dump() == job.hyperparameters.model_dump()


def test_the_job_shows_how_far_it_has_come(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    progress = extra(client.fine_tuning.jobs.retrieve(finished_job.id))

    assert (progress["trained_steps"], progress["total_steps"]) == (STEPS, STEPS)
    assert (progress["progress"], progress["epoch"], progress["attempt"]) == (1.0, 2.0, 1)
    assert progress["queue_position"] is None
    assert progress["train_loss"] > 0
    assert progress["valid_loss"] > 0
    assert progress["tokens_per_second"] > 0


def test_the_events_tell_the_story_newest_first_in_openais_words(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    events = list(client.fine_tuning.jobs.list_events(finished_job.id))
    story = [event.message for event in reversed(events) if event.type == "message"]

    name = finished_job.fine_tuned_model
    assert story[:2] == [
        f"Created fine-tuning job: {finished_job.id}",
        f"Validating training file: {finished_job.training_file}",
    ]
    validated = story.index("Files validated, moving job to queued state")
    before = story[2:validated]
    assert any(told.startswith('"recipe": "auto" would choose ') for told in before)
    assert any("of them learned" in told for told in before)
    assert story[validated + 1 : validated + 3] == [
        "Fine-tuning job started",
        "Loading base model tiny",
    ]
    assert story[-9:-5] == [
        f"Checkpoint created at step {step}: {name}:ckpt-step-{step}" for step in CHECKPOINTS
    ]
    told = [
        "Computed ",
        "The validation loss was still falling: ",
        "The adapter of step 24, the last one, is the result. ",
    ]
    assert all(one.startswith(start) for one, start in zip(story[-5:-2], told, strict=True))
    assert story[-2:] == [
        f"New fine-tuned model created: {name}",
        "The job has successfully completed",
    ]
    assert any(
        re.fullmatch(
            r"trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: [\d.]+", told
        )
        for told in story
    )
    assert {event.object for event in events} == {"fine_tuning.job.event"}
    assert [event.id for event in events] == sorted((event.id for event in events), reverse=True)


def test_the_report_says_what_was_learned(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    data: Any = client.get(f"/fine_tuning/jobs/{finished_job.id}/data", cast_to=object)

    assert data["status"] == "succeeded"
    file = data["report"]["training_file"]
    assert file["file_id"] == finished_job.training_file
    assert 0 < file["learned_tokens"] < file["tokens"]


def test_metrics_events_have_openais_keys(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    events = [
        event
        for event in client.fine_tuning.jobs.list_events(finished_job.id)
        if event.type == "metrics"
    ]
    data = {event.data["step"]: event.data for event in events}  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]

    assert sorted(data) == [0, 5, 10, 12, 15, 20, 24]
    position = {"step", "total_steps"}
    trained = {"train_loss", "train_mean_token_accuracy"}
    evaluated = {
        "valid_perplexity",
        "valid_loss",
        "valid_mean_token_accuracy",
        "full_valid_loss",
        "full_valid_mean_token_accuracy",
    }
    assert data[0].keys() == position | evaluated
    assert data[5].keys() == position | trained
    assert data[10].keys() == position | trained | evaluated
    assert re.fullmatch(r"Step 0/24: full validation loss=\d\.\d\d", events[-1].message)
    assert re.fullmatch(
        r"Step 24/24: training loss=\d\.\d\d, full validation loss=\d\.\d\d", events[0].message
    )


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_the_client_pages_through_every_list_of_the_job(
    client: openai.OpenAI, finished_job: FineTuningJob, limit: int
) -> None:
    jobs = client.fine_tuning.jobs
    all_events = jobs.list_events(finished_job.id, limit=1000).data
    all_checkpoints = jobs.checkpoints.list(finished_job.id, limit=1000).data

    events = list(jobs.list_events(finished_job.id, limit=limit))
    found = list(jobs.checkpoints.list(finished_job.id, limit=limit))

    assert [event.id for event in events] == [event.id for event in all_events]
    assert [one.id for one in found] == [one.id for one in all_checkpoints]


def test_the_checkpoints_are_listed_newest_first(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    found = checkpoints(client, finished_job)

    assert [checkpoint.step_number for checkpoint in found] == CHECKPOINTS[::-1]
    last = found[0]
    assert last.object == "fine_tuning.job.checkpoint"
    assert last.fine_tuning_job_id == finished_job.id
    assert last.fine_tuned_model_checkpoint == finished_job.fine_tuned_model
    assert extra(finished_job)["result_checkpoint"] == last.id
    assert [extra(checkpoint)["is_result"] for checkpoint in found] == [True, False, False, False]
    assert last.metrics.step == STEPS
    assert last.metrics.full_valid_loss == extra(finished_job)["valid_loss"]


def test_each_file_of_each_checkpoint_is_what_its_manifest_says(
    client: openai.OpenAI, finished_job: FineTuningJob, tmp_path: Path
) -> None:
    for checkpoint in checkpoints(client, finished_job):
        directory = tmp_path / checkpoint.id
        directory.mkdir()
        for file_id in result_files(checkpoint):
            name = client.files.retrieve(file_id).filename
            client.files.content(file_id).write_to_file(directory / name)

        manifest = json.loads((directory / "manifest.json").read_bytes())
        assert {path.name for path in directory.iterdir()} == ADAPTER_FILES
        assert manifest["files"].keys() == ADAPTER_FILES - {"manifest.json", "manifest.json.sig"}
        assert (manifest["job_id"], manifest["step"]) == (finished_job.id, checkpoint.step_number)
        for name, promised in manifest["files"].items():
            content = (directory / name).read_bytes()
            assert promised == {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }


def test_the_loss_log_has_every_step_in_openais_columns(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    file = client.files.retrieve(finished_job.result_files[0])
    rows = list(csv.reader(io.StringIO(client.files.content(file.id).text)))

    assert (file.filename, file.purpose) == ("step_metrics.csv", "fine-tune-results")
    assert tuple(rows[0]) == COLUMNS
    assert rows[0][:5] == [
        "step",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    ]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, STEPS + 1))
    assert [int(row[0]) for row in rows[1:] if row[3]] == EVALUATED


def test_the_loss_log_counts_tokens_time_and_learning_rate(http: httpx.Client) -> None:
    rows = http.get("/metrics", params={"step_from": 1}).json()["data"]

    for earlier, later in pairwise(rows):
        assert earlier["tokens_seen"] < later["tokens_seen"]
        assert earlier["elapsed_s"] < later["elapsed_s"]
        assert earlier["learning_rate"] > later["learning_rate"] >= 0
        assert earlier["epoch"] < later["epoch"]
    assert rows[0]["learning_rate"] == pytest.approx(3.6e-4)
    assert rows[-1]["epoch"] == 2.0


def test_the_three_forms_of_the_loss_log_agree(
    http: httpx.Client, client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    as_json = http.get("/metrics")
    as_csv = http.get("/metrics", headers={"accept": "text/csv"})
    as_lines = http.get("/metrics", headers={"accept": "application/x-ndjson"})

    rows = as_json.json()["data"]
    assert as_json.json()["has_more"] is False
    assert [json.loads(line) for line in as_lines.text.splitlines()] == rows
    assert [
        {name: float(value) if value else None for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(as_csv.text))
    ] == rows
    header, base_model, *others = as_csv.text.splitlines(keepends=True)
    assert base_model.startswith("0,,")
    result = client.files.content(finished_job.result_files[0]).text
    assert result == "".join([header, *others])
    assert as_csv.headers["content-type"] == "text/csv; charset=utf-8"
    assert as_lines.headers["content-type"].startswith("application/x-ndjson")


def test_a_part_of_the_loss_log_can_be_asked_for(http: httpx.Client) -> None:
    rows = http.get("/metrics", params={"step_from": 5, "step_to": 7}).json()["data"]

    assert [row["step"] for row in rows] == [5, 6, 7]


def test_the_adapter_is_a_zip_of_the_final_checkpoint(
    http: httpx.Client, client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    answer = http.get("/adapter")

    assert answer.headers["content-type"] == "application/zip"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert f"{finished_job.id}-step-24.zip" in answer.headers["content-disposition"]
    (last, *_) = checkpoints(client, finished_job)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [*sorted(ADAPTER_FILES), "report.md"]
        for file_id in result_files(last):
            name = client.files.retrieve(file_id).filename
            assert archive.read(name) == client.files.content(file_id).read()


def test_a_broken_download_is_resumed(http: httpx.Client) -> None:
    whole = http.get("/adapter")
    etag = whole.headers["etag"]
    middle = len(whole.content) // 2

    rest = http.get("/adapter", headers={"range": f"bytes={middle}-", "if-range": etag})

    assert rest.status_code == 206
    assert rest.content == whole.content[middle:]
    total = len(whole.content)
    assert rest.headers["content-range"] == f"bytes {middle}-{total - 1}/{total}"


def test_an_earlier_checkpoint_is_picked_by_its_step_or_its_id(
    http: httpx.Client, client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    first = checkpoints(client, finished_job)[-1]

    by_step = http.get("/adapter", params={"checkpoint": 10})
    by_id = http.get("/adapter", params={"checkpoint": first.id})

    assert by_step.content == by_id.content != http.get("/adapter").content
    with zipfile.ZipFile(io.BytesIO(by_step.content)) as archive:
        assert json.loads(archive.read("manifest.json"))["step"] == 10


def test_the_adapter_says_what_it_belongs_to(http: httpx.Client) -> None:
    with zipfile.ZipFile(io.BytesIO(http.get("/adapter").content)) as archive:
        config = json.loads(archive.read("adapter_config.json"))
        card = archive.read("README.md").decode()
        log = archive.read("metrics.csv").decode()

    assert (config["base_model_name_or_path"], config["r"]) == ("./models/tiny", 8)
    assert "`models/tiny` in the service's data directory" in card
    assert log.splitlines()[-1].startswith("24,")


def test_the_tuned_model_is_listed_after_the_base_models(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    assert finished_job.fine_tuned_model is not None
    models = client.models.list().data

    assert models[0].id == "tiny"
    assert finished_job.fine_tuned_model in [model.id for model in models]
    tuned = client.models.retrieve(finished_job.fine_tuned_model)
    assert (tuned.object, tuned.owned_by) == ("model", "tunery")
    assert extra(tuned)["base_model"] == "tiny"
    assert extra(tuned)["fine_tuning_job_id"] == finished_job.id


def test_a_base_model_shows_its_limits(client: openai.OpenAI) -> None:
    base = client.models.retrieve("tiny")

    assert extra(base)["limits"] == {
        "context_length": 512,
        "max_lora_rank": 256,
        "target_modules": [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        "supports_tools": False,
    }


def test_a_finished_job_cannot_be_cancelled(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.fine_tuning.jobs.cancel(finished_job.id)

    assert refusal.value.code == "job_not_cancellable"


def test_what_a_job_has_made_is_no_data_set(
    client: openai.OpenAI, finished_job: FineTuningJob
) -> None:
    made = finished_job.result_files[0]

    with pytest.raises(openai.BadRequestError) as refusal:
        client.fine_tuning.jobs.create(model="tiny", training_file=made)

    assert refusal.value.body == {
        "message": f"{made} was made by a job; training_file must be an uploaded dataset.",
        "type": "invalid_request_error",
        "param": "training_file",
        "code": "invalid_value",
    }
