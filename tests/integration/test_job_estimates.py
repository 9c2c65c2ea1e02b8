"""Estimates over HTTP, with the process that makes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.db.tables import Event, Job
from tests.builders import add_worker
from tests.tiny import CHAT_TEMPLATE, build_tokenizer, chat_row, write_tiny_model

pytestmark = pytest.mark.only_sqlite

ROWS = [chat_row(f"What is {i}?", f"It is {i % 7 * 'x'}.") for i in range(700)]


@pytest.fixture
def estimate(client: TestClient, data_dir: Path) -> Callable[..., Any]:
    """Asks what a job on the base model `tiny` takes, which has weights and a tokenizer here."""
    model = data_dir / "models" / "tiny"
    write_tiny_model(model)
    build_tokenizer(CHAT_TEMPLATE).save_pretrained(model)

    def ask(file_id: str, **body: Any) -> Any:
        body = {"model": "tiny", "training_file": file_id, "seed": 1} | body
        return client.post("/v1/fine_tuning/jobs/estimate", json=body)

    return ask


def upload(client: TestClient, rows: list[dict[str, Any]]) -> str:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    form = {"files": {"file": ("a.jsonl", content)}, "data": {"purpose": "fine-tune"}}
    return client.post("/v1/files", **form).json()["id"]


def test_a_job_is_estimated_from_a_sample_and_not_created(
    client: TestClient, database: Database, estimate: Callable[..., Any]
) -> None:
    file_id = upload(client, ROWS)

    answer = estimate(file_id, hyperparameters={"n_epochs": 2, "batch_size": 10})

    body = answer.json()
    made = body["estimate"]
    assert answer.status_code == 200, body
    assert (body["object"], body["model"]) == ("fine_tuning.job.estimate", "tiny")
    assert (body["sampled_rows"], body["rows"]) == (500, 700)
    assert (made["steps"], made["examples"]) == (140, 700)
    assert made["tokens"] == 2 * made["tokens_per_epoch"] > 2 * made["learned_tokens"] > 0
    assert made["duration"]["low"] < made["duration"]["seconds"] < made["duration"]["high"]
    assert made["peak_memory_bytes"] > 500_000_000
    assert (body["hyperparameters"]["n_epochs"], made["compute"]["device"]) == (2, "cpu")
    with database.reading() as session:
        assert session.scalars(select(func.count()).select_from(Job)).one() == 0
        assert session.scalars(select(func.count()).select_from(Event)).one() == 0


@pytest.fixture
def estimate_sweep(client: TestClient, estimate: Callable[..., Any]) -> Callable[..., Any]:
    """Asks what a sweep takes, whose jobs hold out a part of the file."""

    def ask(file_id: str, **grid: Any) -> Any:
        body = {"model": "tiny", "training_file": file_id, "sweep": {"grid": grid}, "seed": 1}
        body["hyperparameters"] = {"n_epochs": 1, "validation_split": 0.1}
        return client.post("/v1/fine_tuning/sweeps/estimate", json=body)

    return ask


def test_a_sweep_is_estimated_job_by_job_and_not_created(
    client: TestClient, database: Database, estimate_sweep: Callable[..., Any]
) -> None:
    body = estimate_sweep(upload(client, ROWS), batch_size=[2, 4], lora_r=[8, 16]).json()

    jobs = body["jobs"]
    shown = [job["hyperparameters"] for job in jobs]
    varied = [(2, 8), (2, 16), (4, 8), (4, 16)]
    assert body["object"] == "fine_tuning.sweep.estimate", body
    assert [(each["batch_size"], each["lora_r"]) for each in shown] == varied
    assert [job["estimate"]["steps"] for job in jobs] == [315, 315, 158, 158]
    for name in ("seconds", "low", "high"):
        each = [job["estimate"]["duration"][name] for job in jobs]
        assert body["duration"][name] == pytest.approx(sum(each))
    with database.reading() as session:
        assert session.scalars(select(func.count()).select_from(Job)).one() == 0


def test_what_a_sweep_cannot_have_its_estimate_cannot_have(
    client: TestClient, estimate_sweep: Callable[..., Any]
) -> None:
    error = estimate_sweep(upload(client, ROWS[:9]), learning_rate=[1e-4, 2]).json()["error"]

    assert (error["code"], error["param"]) == ("invalid_value", "sweep.grid.learning_rate[1]")


def test_the_largest_sweep_is_estimated_within_the_limits_and_each_job_from_its_own_tokens(
    client: TestClient, estimate_sweep: Callable[..., Any]
) -> None:
    lengths = list(range(64, 72))
    long = [chat_row(f"{i}?", "It is this. " * 30) for i in range(300)]

    body = estimate_sweep(
        upload(client, long), context_length=lengths, batch_size=list(range(249, 257))
    ).json()

    tokens = [job["estimate"]["tokens_per_epoch"] for job in body["jobs"]]
    assert tokens == [270 * length for length in lengths for _ in range(8)]
    assert {job["rows"] for job in body["jobs"]} == {300}


def test_a_validation_file_takes_time(client: TestClient, estimate: Callable[..., Any]) -> None:
    training, validation = upload(client, ROWS), upload(client, ROWS[:650])
    hyperparameters = {"n_epochs": 1}

    without = estimate(training, hyperparameters=hyperparameters).json()["estimate"]
    answer = estimate(training, validation_file=validation, hyperparameters=hyperparameters)

    made = answer.json()["estimate"]
    assert made["duration"]["seconds"] > without["duration"]["seconds"]
    assert made["steps"] == without["steps"]


def test_what_no_worker_has_memory_for_is_told_what_would_fit(
    client: TestClient, database: Database, estimate: Callable[..., Any]
) -> None:
    add_worker(database, memory_bytes=500_000_000)

    made = estimate(upload(client, ROWS)).json()["estimate"]

    assert made["least_memory_bytes"] > 500_000_000
    assert made["advice"][0].startswith("It does not fit into 0.5 GB with any context_length.")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": "none"}, "model_not_available", "model"),
        ({"training_file": "file-none"}, "file_not_found", "training_file"),
        ({"hyperparameters": {"lora_r": 999}}, "invalid_value", "hyperparameters.lora_r"),
        ({"hyperparameters": {"eval_steps": 1}}, "invalid_value", "hyperparameters.eval_steps"),
        (
            {"hyperparameters": {"context_length": 16, "overlong_row_behavior": "error"}},
            "row_too_long",
            "training_file",
        ),
        (
            {"hyperparameters": {"context_length": 16, "overlong_row_behavior": "drop"}},
            "no_trainable_tokens",
            "training_file",
        ),
    ],
    ids=str,
)
def test_what_a_job_cannot_have_an_estimate_cannot_have(
    client: TestClient,
    estimate: Callable[..., Any],
    body: dict[str, Any],
    code: str,
    param: str,
) -> None:
    answer = estimate(upload(client, ROWS[:3]), **body)

    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
