"""A job that repeats another."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.base_models import RECORD_NAME
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_file,
    add_job,
    build_config,
    build_job_in,
    dump_tables,
    get_job,
    list_messages,
)

JOBS = "/v1/fine_tuning/jobs"
EMPTY = [
    pytest.param({}, id="nothing"),
    pytest.param({"content": b"", "headers": {"content-type": "application/json"}}, id="stock"),
    pytest.param({"json": {}}, id="object"),
]


def add_original(database: Database, store: LocalBlobStore, **changes: Any) -> Job:
    """A job of every setting that can be repeated, on files that are there."""
    values: dict[str, Any] = {
        "training_file_id": add_file(database, store).id,
        "validation_file_id": add_file(database, store).id,
        "suffix": "My Suffix",
        "priority": 3,
        "base_model_sha256": "0" * 64,
        "config": build_config(epochs=5, seed=42, n_evals=2).model_dump(mode="json"),
        "learning_rate_multiplier": 1.8,
    }
    return add_job(database, **(values | changes))


def rerun(client: TestClient, job_id: str, **options: Any) -> Any:
    return client.post(f"{JOBS}/{job_id}/rerun", **options)


def change_model(settings: Settings, **changes: Any) -> None:
    """Install the base model `tiny` anew, with other weights say."""
    record = settings.data_dir / "models" / "tiny" / RECORD_NAME
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


@pytest.mark.parametrize("options", EMPTY)
def test_a_rerun_is_the_same_job_under_another_name(
    client: TestClient, database: Database, store: LocalBlobStore, options: dict[str, Any]
) -> None:
    body = {
        "model": "tiny",
        "training_file": add_file(database, store).id,
        "validation_file": add_file(database, store).id,
        "suffix": "My Suffix",
        "metadata": {"team": "red", "run": "1"},
        "priority": 3,
        "hyperparameters": {"n_epochs": 5, "learning_rate_multiplier": 1.8, "n_evals": 2},
    }
    original = client.post(JOBS, json=body).json()

    answer = rerun(client, original["id"], **options)

    assert answer.status_code == 200, answer.text
    again = answer.json()
    own = {"id", "created_at", "rerun_of"}
    assert {name for name in again if again[name] != original[name]} <= own
    assert again["rerun_of"] == original["id"]
    first, second = get_job(database, original["id"]), get_job(database, again["id"])
    assert second.config == first.config
    assert second.base_model_sha256 == first.base_model_sha256 == "0" * 64
    assert first.fine_tuned_model == f"ft:tiny:tunery:my-suffix:{first.id[-12:]}"
    assert second.fine_tuned_model == f"ft:tiny:tunery:my-suffix:{second.id[-12:]}"
    assert list_messages(database, second.id)[0] == f"Created fine-tuning job: {second.id}"


@pytest.mark.parametrize("status", JobStatus)
def test_a_job_is_repeated_whatever_has_become_of_it(
    client: TestClient, database: Database, store: LocalBlobStore, status: JobStatus
) -> None:
    original = add_original(database, store, **build_job_in(status))

    assert rerun(client, original.id).json()["status"] == "validating_files"


def test_a_rerun_can_be_rerun_after_the_original_is_deleted(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    original = add_original(database, store, **build_job_in(JobStatus.CANCELLED))
    first = rerun(client, original.id).json()["id"]
    client.delete(f"{JOBS}/{original.id}")

    second = rerun(client, first).json()

    assert second["rerun_of"] == first
    assert client.get(f"{JOBS}/{first}").json()["rerun_of"] == original.id


def test_a_job_that_does_not_know_its_models_weights_is_repeated_with_those_there_are(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    original = add_original(database, store, base_model_sha256=None)

    again = rerun(client, original.id).json()["id"]

    assert get_job(database, again).base_model_sha256 == "0" * 64


@pytest.mark.parametrize(
    ("changes", "spoil", "status", "code", "param"),
    [
        pytest.param(
            {"training_file_id": "file-gone"},
            lambda _: None,
            404,
            "file_not_found",
            "training_file",
            id="training file",
        ),
        pytest.param(
            {"validation_file_id": "file-gone"},
            lambda _: None,
            404,
            "file_not_found",
            "validation_file",
            id="validation file",
        ),
        pytest.param(
            {},
            lambda settings: change_model(settings, sha256="1" * 64),
            400,
            "base_model_changed",
            "model",
            id="other weights",
        ),
        pytest.param(
            {"base_model": "absent"},
            lambda _: None,
            400,
            "model_not_available",
            "model",
            id="model that is not installed",
        ),
        pytest.param(
            {"base_model": "forgotten"},
            lambda _: None,
            400,
            "model_not_available",
            "model",
            id="model that is in no catalogue",
        ),
        pytest.param(
            {"config": build_config(max_sequence_tokens=1024).model_dump(mode="json")},
            lambda _: None,
            400,
            "invalid_value",
            "hyperparameters.context_length",
            id="limit that was lowered",
        ),
    ],
)
def test_what_cannot_be_repeated_is_refused(
    client: TestClient,
    database: Database,
    store: LocalBlobStore,
    *,
    settings: Settings,
    changes: dict[str, Any],
    spoil: Callable[[Settings], None],
    status: int,
    code: str,
    param: str,
) -> None:
    original = add_original(database, store, **changes)
    spoil(settings)
    before = dump_tables(database)

    answer = rerun(client, original.id)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert dump_tables(database) == before


def test_a_file_that_has_expired_is_gone(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    expired = add_file(database, store, expires_at=NOW - timedelta(days=10_000))
    original = add_original(database, store, validation_file_id=expired.id)

    assert rerun(client, original.id).json()["error"]["code"] == "file_not_found"
