"""A job that continues a tuned model or a checkpoint: what is accepted, kept and refused."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    add_file,
    add_key,
    add_succeeded_job,
    bearer,
    build_job,
    build_saved_state,
    build_step,
    dump_tables,
    get_job,
    list_blobs,
    list_checkpoints,
    list_messages,
)

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def parent(database: Database, store: LocalBlobStore) -> Job:
    """A job with checkpoints at the steps 2 and 4, of which the second is its result."""
    return add_succeeded_job(database, store, steps=(2, 4))


@pytest.fixture
def body(database: Database, store: LocalBlobStore, parent: Job) -> dict[str, Any]:
    """A request that continues the model of `parent`."""
    return {"model": parent.fine_tuned_model, "training_file": add_file(database, store).id}


def create(client: TestClient, body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    answer = client.post(JOBS, json=body | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


@pytest.mark.parametrize(("suffix", "step"), [("", 4), (":ckpt-step-4", 4), (":ckpt-step-2", 2)])
def test_a_model_and_each_of_its_checkpoints_can_be_continued(
    client: TestClient,
    database: Database,
    parent: Job,
    *,
    body: dict[str, Any],
    suffix: str,
    step: int,
) -> None:
    name = parent.fine_tuned_model + suffix

    job = create(client, body, model=name, suffix="further")

    (checkpoint,) = [each for each in list_checkpoints(database, parent.id) if each.step == step]
    (weights,) = [file for file in checkpoint.files if file.filename.endswith(".safetensors")]
    assert job["parent"] == {
        "model": name,
        "job_id": parent.id,
        "checkpoint_id": checkpoint.id,
        "step": step,
        "sha256": weights.sha256,
    }
    assert job["model"] == parent.base_model
    kept = get_job(database, job["id"])
    assert kept.fine_tuned_model == f"ft:tiny:tunery:further:{kept.id[-12:]}"
    assert client.get(f"{JOBS}/{job['id']}").json() == job


def give_shape(database: Database, job: Job, **shape: Any) -> None:
    with database.writing() as session:
        row = session.get_one(Job, job.id)
        row.config = row.config | {"lora": row.config["lora"] | shape, "epochs": 7}


@pytest.mark.parametrize("recipe", ["reference", "auto"])
def test_the_new_job_keeps_the_shape_of_the_adapter_and_nothing_else(
    client: TestClient, database: Database, parent: Job, body: dict[str, Any], recipe: str
) -> None:
    shape = {"rank": 8, "alpha": 5.0, "target_modules": ["k_proj", "q_proj"], "use_rslora": True}
    give_shape(database, parent, **shape, dropout=0.2)

    job = create(client, body, recipe=recipe, hyperparameters={"lora_r": "auto"})

    shown = job["hyperparameters"]
    assert {
        "lora_r": 8,
        "lora_alpha": 5.0,
        "lora_target_modules": ["k_proj", "q_proj"],
        "use_rslora": True,
        "lora_dropout": 0.2,
    }.items() <= shown.items()
    assert shown["n_epochs"] != 7
    events = client.get(f"{JOBS}/{job['id']}/events").json()["data"]
    assert not [event for event in events if "would choose lora_" in event["message"]]


def test_the_same_shape_may_be_said_again_and_another_dropout(
    client: TestClient, database: Database, parent: Job, body: dict[str, Any]
) -> None:
    give_shape(database, parent, target_modules=["k_proj", "q_proj"])
    said = {
        "lora_r": 64,
        "lora_alpha": 16,
        "lora_target_modules": ["q_proj", "k_proj"],
        "lora_dropout": 0.3,
    }

    job = create(client, body, hyperparameters=said)

    shown = job["hyperparameters"]
    assert shown["lora_target_modules"] == ["k_proj", "q_proj"]
    assert shown["lora_dropout"] == 0.3


OTHER_SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"lora_r": 32}, "64"),
    ({"lora_alpha": 32}, "16.0"),
    ({"lora_target_modules": ["q_proj"]}, '["q_proj", "v_proj"]'),
    ({"lora_target_modules": "all-linear"}, '["q_proj", "v_proj"]'),
    ({"use_rslora": True}, "false"),
    ({"use_dora": True}, "false"),
    ({"init_lora_weights": "olora"}, '"kaiming"'),
    ({"modules_to_save": ["lm_head"]}, "[]"),
    ({"lora_layers": 1}, "null"),
]


@pytest.mark.parametrize("route", [JOBS, f"{JOBS}/estimate"])
def test_another_shape_is_refused_with_both_values(
    client: TestClient, database: Database, body: dict[str, Any], route: str
) -> None:
    before = dump_tables(database)

    for asked, kept in OTHER_SHAPES:
        answer = client.post(route, json=body | {"hyperparameters": asked})

        ((name, _),) = asked.items()
        assert refusal(answer) == (400, "invalid_value", f"hyperparameters.{name}")
        message = answer.json()["error"]["message"]
        assert message.startswith(f"'{name}' is {kept} in the adapter that the job continues, and ")
    assert dump_tables(database) == before


NO_MODELS = [
    "ft:",
    "ft:tiny",
    "ft:tiny:tunery::gone",
    "MODEL:ckpt-step-3",
    "MODEL:ckpt-step-0",
    "MODEL:ckpt-step-04",
    "MODEL:ckpt-step-",
    "MODEL:ckpt-step-99999999999",
    "MODEL:",
]


@pytest.mark.parametrize("route", [JOBS, f"{JOBS}/estimate"])
def test_a_model_that_does_not_exist_cannot_be_continued(
    client: TestClient, parent: Job, body: dict[str, Any], route: str
) -> None:
    for name in NO_MODELS:
        model = name.replace("MODEL", parent.fine_tuned_model)

        answer = client.post(route, json=body | {"model": model})

        assert refusal(answer) == (404, "model_not_found", "model"), name


def test_a_model_of_another_project_does_not_exist(
    client: TestClient, database: Database, store: LocalBlobStore, body: dict[str, Any]
) -> None:
    key = add_key(database, "other")
    file = add_file(database, store, project_id=find_project(database, "other"))

    answer = client.post(JOBS, json=body | {"training_file": file.id}, headers=bearer(key))

    assert refusal(answer) == (404, "model_not_found", "model")


def find_project(database: Database, name: str) -> str:
    (row,) = [row for row in dump_tables(database)["projects"] if name in row]
    return row[0]


def test_a_base_model_with_other_weights_is_refused(
    client: TestClient, database: Database, parent: Job, body: dict[str, Any]
) -> None:
    with database.writing() as session:
        session.get_one(Job, parent.id).base_model_sha256 = "1" * 64

    answer = client.post(JOBS, json=body)

    assert refusal(answer) == (400, "base_model_changed", "model")


def delete_model(client: TestClient, parent: Job) -> Any:
    return client.delete(f"/v1/models/{parent.fine_tuned_model}")


def delete_job(client: TestClient, parent: Job) -> Any:
    return client.delete(f"{JOBS}/{parent.id}")


Delete = Callable[[TestClient, Job], Any]


@pytest.mark.parametrize("delete", [delete_model, delete_job])
def test_the_adapter_is_kept_until_the_job_has_ended(
    client: TestClient,
    store: LocalBlobStore,
    database: Database,
    *,
    parent: Job,
    body: dict[str, Any],
    delete: Delete,
) -> None:
    job = create(client, body)
    blobs = list_blobs(store)

    answer = delete(client, parent)

    assert refusal(answer) == (400, "adapter_in_use", None)
    assert f"The job {job['id']} continues " in answer.json()["error"]["message"]
    assert list_blobs(store) == blobs
    client.post(f"{JOBS}/{job['id']}/cancel")
    assert delete(client, parent).status_code == 200
    kept = client.get(f"{JOBS}/{job['id']}").json()
    assert kept["parent"]["model"] == parent.fine_tuned_model
    rerun = client.post(f"{JOBS}/{job['id']}/rerun")
    assert refusal(rerun) == (400, "parent_deleted", "model")
    assert get_job(database, job["id"]).status is JobStatus.CANCELLED


def test_a_rerun_from_a_saved_state_needs_no_adapter(
    client: TestClient,
    database: Database,
    parent: Job,
    body: dict[str, Any],
) -> None:
    job = create(client, body)
    file = {"key": "state", "bytes": 7, "sha256": "a" * 64}
    with database.writing() as session:
        session.add(build_saved_state(job["id"], 1, {"adapter.safetensors": file}))
        session.add(build_step(session.get_one(Job, job["id"]), 1))
    client.post(f"{JOBS}/{job['id']}/cancel")
    assert delete_model(client, parent).status_code == 200

    rerun = client.post(f"{JOBS}/{job['id']}/rerun", json={"from": "saved_state"})

    assert rerun.status_code == 200
    assert rerun.json()["parent"]["model"] == parent.fine_tuned_model


def test_another_checkpoint_of_the_job_is_deleted_as_ever(
    client: TestClient, parent: Job, body: dict[str, Any]
) -> None:
    create(client, body, model=f"{parent.fine_tuned_model}:ckpt-step-2")

    assert delete_model(client, parent).status_code == 200
    assert refusal(delete_job(client, parent)) == (400, "adapter_in_use", None)


def test_a_rerun_continues_the_same_adapter(client: TestClient, body: dict[str, Any]) -> None:
    job = create(client, body, seed=3)

    rerun = client.post(f"{JOBS}/{job['id']}/rerun").json()

    assert rerun["parent"] == job["parent"] is not None
    assert rerun["hyperparameters"] == job["hyperparameters"]


def test_a_model_says_which_adapter_it_continues(
    client: TestClient, database: Database, parent: Job
) -> None:
    record = {
        "model": "ft:a",
        "job_id": "ftjob-a",
        "checkpoint_id": "ftckpt-a",
        "step": 1,
        "sha256": "0" * 64,
    }
    with database.writing() as session:
        session.get_one(Job, parent.id).parent = record

    name = parent.fine_tuned_model
    assert client.get(f"/v1/models/{name}").json()["parent"] == record
    assert client.get(f"/v1/models/{name}:ckpt-step-2").json()["parent"] == record
    (listed,) = [each for each in client.get("/v1/models").json()["data"] if each["id"] == name]
    assert listed["parent"] == record


def test_an_event_says_which_adapter_is_continued(
    client: TestClient, database: Database, parent: Job, body: dict[str, Any]
) -> None:
    job = create(client, body)

    said = f"Continuing the adapter of {parent.fine_tuned_model}, saved at its step 4"
    assert list_messages(database, job["id"])[1] == said


def test_a_deletion_waits_for_a_job_that_is_just_being_created(
    database: Database, parent: Job
) -> None:
    checkpoint_id = parent.result_checkpoint_id or ""
    has_begun = threading.Event()

    def delete() -> dict[str, str]:
        has_begun.set()
        with database.writing() as session:
            checkpoints = CheckpointRepository(session, DEFAULT_PROJECT_ID)
            return checkpoints.lock_to_delete(parent.id, checkpoint_id)

    with ThreadPoolExecutor() as threads:
        with database.writing() as session:
            checkpoints = CheckpointRepository(session, DEFAULT_PROJECT_ID)
            assert checkpoints.lock_to_continue(checkpoint_id)
            needed = threads.submit(delete)
            assert has_begun.wait(timeout=60)
            assert not wait([needed], timeout=0.3).done
            job = build_job(parent_checkpoint_id=checkpoint_id)
            JobRepository(session, DEFAULT_PROJECT_ID).add(job)
        assert needed.result(timeout=60) == {checkpoint_id: job.id}
