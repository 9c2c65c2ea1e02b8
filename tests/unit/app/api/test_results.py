"""What a job has made: how it is found, and how it is deleted."""

import io
import re
import zipfile
from pathlib import Path

import openai
import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import add_job, add_succeeded_job, build_checkpoint, build_pair_metrics, claim

ROOT = Path(__file__).parents[4]


@pytest.fixture
def job(database: Database, store: LocalBlobStore) -> Job:
    """A job with checkpoints at the steps 2 and 4, of which the last is its result."""
    return add_succeeded_job(database, store, steps=(2, 4))


@pytest.fixture
def stopped_early(database: Database, store: LocalBlobStore) -> Job:
    """A job with checkpoints at the steps 2, 4 and 6, of which the second is its result."""
    return add_succeeded_job(database, store, steps=(2, 4, 6), best=1)


def test_a_job_that_has_succeeded_names_its_results(client: TestClient, job: Job) -> None:
    shown = client.get(f"/v1/fine_tuning/jobs/{job.id}").json()

    assert shown["status"] == "succeeded"
    assert shown["fine_tuned_model"] == job.fine_tuned_model
    assert (shown["result_files"], shown["trained_tokens"]) == ([job.result_file_id], 1234)


def test_the_result_is_marked_and_has_the_models_own_name(
    strict: openai.OpenAI, stopped_early: Job
) -> None:
    job = strict.fine_tuning.jobs.retrieve(stopped_early.id)
    found = list(strict.fine_tuning.jobs.checkpoints.list(job.id))

    model = job.fine_tuned_model
    assert [
        (one.step_number, one.fine_tuned_model_checkpoint, (one.model_extra or {})["is_result"])
        for one in found
    ] == [
        (6, f"{model}:ckpt-step-6", False),
        (4, model, True),
        (2, f"{model}:ckpt-step-2", False),
    ]
    assert (job.model_extra or {})["result_checkpoint"] == found[1].id


def test_a_job_that_has_not_succeeded_has_no_result(client: TestClient, database: Database) -> None:
    job = add_job(database)
    with database.writing() as session:
        CheckpointRepository(session, DEFAULT_PROJECT_ID).add(build_checkpoint(job, 5))

    shown = client.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    (checkpoint,) = client.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints").json()["data"]

    assert (shown["result_checkpoint"], checkpoint["is_result"]) == (None, False)
    assert checkpoint["fine_tuned_model_checkpoint"] == f"{job.fine_tuned_model}:ckpt-step-5"


@pytest.mark.parametrize("program", ["README.md", "examples/quickstart.py"])
def test_the_documented_programs_download_the_result(
    program: str,
    strict: openai.OpenAI,
    stopped_early: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (ROOT / program).read_text("utf-8")
    found = re.search(
        r"^.*\.mkdir\(exist_ok=True\)\n(.*?)(?=^```|\Z)", text, re.DOTALL | re.MULTILINE
    )
    assert found
    monkeypatch.chdir(tmp_path)
    adapter = Path("adapter")
    adapter.mkdir()

    names = {"client": strict, "job": stopped_early, "Path": Path, "ADAPTER": adapter}
    exec(found[1], names)  # noqa: S102 - our own text

    written = (adapter / "adapter_model.safetensors").read_text("utf-8")
    assert written.startswith("adapter_model.safetensors of step 4\n")


@pytest.mark.parametrize("is_running", [False, True])
def test_a_job_that_has_not_ended_names_no_results(
    client: TestClient, database: Database, *, is_running: bool
) -> None:
    job = add_job(database)
    if is_running:
        claim(database)

    shown = client.get(f"/v1/fine_tuning/jobs/{job.id}").json()

    assert (shown["fine_tuned_model"], shown["result_files"]) == (None, [])
    assert (shown["trained_tokens"], shown["finished_at"], shown["error"]) == (None, None, None)


def test_only_checkpoints_of_preferences_have_rewards(
    client: TestClient, database: Database
) -> None:
    job = add_job(database)
    metrics = build_pair_metrics(2).model_dump()
    with database.writing() as session:
        checkpoints = CheckpointRepository(session, DEFAULT_PROJECT_ID)
        checkpoints.add(build_checkpoint(job, 1))
        checkpoints.add(build_checkpoint(job, 2, metrics=metrics))

    listed = client.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints").json()["data"]

    of_pairs, usual = (each["metrics"] for each in listed)
    assert not [name for name in usual if "reward" in name]
    rewards = {name: value for name, value in of_pairs.items() if "reward" in name}
    assert rewards == build_pair_metrics(2).named_rewards()
    assert of_pairs["valid_perplexity"] is None


def test_the_file_of_a_checkpoint_cannot_be_deleted_alone(client: TestClient, job: Job) -> None:
    (last, _) = client.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints").json()["data"]
    file_id = last["result_files"][0]

    answer = client.delete(f"/v1/files/{file_id}")

    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": f"{file_id} is part of the checkpoint {last['id']} and cannot be deleted alone. "
        "Delete the tuned model to delete the files of its adapter.",
        "type": "invalid_request_error",
        "param": None,
        "code": "file_in_use",
    }


def test_the_loss_log_of_an_ended_job_can_be_deleted(client: TestClient, job: Job) -> None:
    assert client.delete(f"/v1/files/{job.result_file_id}").status_code == 200
    assert client.get(f"/v1/files/{job.result_file_id}").status_code == 404
    assert len(client.get(f"/v1/fine_tuning/jobs/{job.id}/metrics").json()["data"]) == 4


def test_the_data_of_an_ended_job_can_be_deleted(
    client: TestClient, database: Database, settings: Settings
) -> None:
    files = {"file": ("a.jsonl", b'{"text": "a"}\n')}
    uploaded = client.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
    job = add_job(database, training_file_id=uploaded)
    client.post(f"/v1/fine_tuning/jobs/{job.id}/cancel")

    answer = client.delete(f"/v1/files/{uploaded}")

    assert answer.json() == {"id": uploaded, "object": "file", "deleted": True}
    assert not (settings.blobs_dir / "files" / uploaded).exists()
    assert client.get(f"/v1/fine_tuning/jobs/{job.id}").json()["training_file"] == uploaded


def test_a_deleted_model_takes_its_adapter_with_it_and_nothing_else(
    client: TestClient, job: Job, settings: Settings
) -> None:
    blobs_before = sum(path.is_file() for path in settings.blobs_dir.rglob("*"))

    answer = client.delete(f"/v1/models/{job.fine_tuned_model}")

    assert answer.json() == {"id": job.fine_tuned_model, "object": "model", "deleted": True}
    assert sum(path.is_file() for path in settings.blobs_dir.rglob("*")) == blobs_before - 2
    assert client.get(f"/v1/models/{job.fine_tuned_model}").status_code == 404
    gone = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "adapter_deleted")
    assert gone.json()["error"]["message"] == (
        f"The adapter of job {job.id} was deleted, with its model {job.fine_tuned_model}."
    )
    (left,) = client.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints").json()["data"]
    assert left["step_number"] == 2
    kept = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?checkpoint=2")
    with zipfile.ZipFile(io.BytesIO(kept.content)) as archive:
        assert archive.testzip() is None


def test_a_model_cannot_be_deleted_twice(client: TestClient, job: Job) -> None:
    client.delete(f"/v1/models/{job.fine_tuned_model}")

    assert client.delete(f"/v1/models/{job.fine_tuned_model}").status_code == 404


def test_a_checkpoint_of_another_job_is_not_found(
    client: TestClient, job: Job, database: Database, store: LocalBlobStore
) -> None:
    other = add_succeeded_job(database, store)

    for checkpoint in (other.result_checkpoint_id, "1"):
        answer = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?checkpoint={checkpoint}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "checkpoint_not_found")


def test_the_same_adapter_has_the_same_etag_and_another_one_another(
    client: TestClient, job: Job
) -> None:
    url = f"/v1/fine_tuning/jobs/{job.id}/adapter"

    final, named, earlier = [
        client.get(url + query).headers["etag"] for query in ("", "?checkpoint=4", "?checkpoint=2")
    ]

    assert final == named != earlier


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        ("text/csv", "text/csv; charset=utf-8"),
        ("text/csv, */*;q=0.1", "text/csv; charset=utf-8"),
        ("application/x-ndjson", "application/x-ndjson"),
    ],
)
def test_the_loss_log_comes_in_the_form_asked_for(
    client: TestClient, job: Job, accept: str, media_type: str
) -> None:
    answer = client.get(f"/v1/fine_tuning/jobs/{job.id}/metrics", headers={"accept": accept})

    assert answer.headers["content-type"] == media_type


def test_the_loss_log_of_a_job_that_waits_is_empty(client: TestClient, database: Database) -> None:
    url = f"/v1/fine_tuning/jobs/{add_job(database).id}/metrics"

    assert client.get(url).json() == {"object": "list", "data": [], "has_more": False}
    assert client.get(url, headers={"accept": "text/csv"}).text.startswith("step,train_loss,")
    assert client.get(url, headers={"accept": "application/x-ndjson"}).text == ""
