"""Exports over HTTP: begun by a request, reported while they are made, then downloaded."""

import io
import json
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID, LOCAL_CALLER
from app.core.clock import utc_now
from app.core.db.base import Project
from app.core.db.check_tables import Task
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.tasks.leases import KEPT_FOR, TaskLeases
from app.core.db.session import Database
from app.core.db.tables import Checkpoint, Job
from app.core.job.child.training_events import JobError
from app.core.manifest import MANIFEST_NAME
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.services.adapters.kept import keep_adapter
from tests.builders import NOW, add_job, add_succeeded_job, build_config, list_checkpoints
from tests.exports import VERIFICATION, add_finished_export, claim_task

MERGED = {"config.json": b"{}", "model.safetensors": b"weights", MANIFEST_NAME: b"[]"}
GGUF = {"adapter.gguf": b"GGUF and more", MANIFEST_NAME: b"[]"}


@pytest.fixture
def job(database: Database, store: LocalBlobStore, data_dir: Path) -> Job:
    """A job whose base model says of what architecture it is, and has no weights."""
    (data_dir / "models/tiny/config.json").write_text('{"model_type": "llama"}')
    return add_succeeded_job(database, store, steps=(2, 4))


@pytest.fixture
def checkpoint(database: Database, job: Job) -> Checkpoint:
    """The result of the job."""
    return list_checkpoints(database, job.id)[-1]


def test_no_adapter_is_deleted_while_its_export_is_being_requested(
    database: Database, job: Job, checkpoint: Checkpoint
) -> None:
    has_begun = threading.Event()

    def delete() -> None:
        has_begun.set()
        with database.writing() as session:
            checkpoints = CheckpointRepository(session, DEFAULT_PROJECT_ID)
            checkpoints.lock_to_delete(job.id, checkpoint.id)

    with ThreadPoolExecutor() as threads:
        with database.writing() as session:
            assert keep_adapter(session, LOCAL_CALLER, job.id, None).id == checkpoint.id
            deletion = threads.submit(delete)
            assert has_begun.wait(timeout=60)
            assert not wait([deletion], timeout=0.3).done
        deletion.result(timeout=60)


def count_tasks(database: Database) -> int:
    with database.reading() as session:
        return session.query(Task).count()


def change_lora(database: Database, job: Job, **changes: Any) -> None:
    with database.writing() as session:
        lora = {"target_modules": ["q_proj"]} | changes
        session.get_one(Job, job.id).config = build_config(lora=lora).model_dump(mode="json")


def test_the_first_request_begins_an_export_and_later_ones_tell_its_progress(
    client: TestClient, database: Database, job: Job, checkpoint: Checkpoint
) -> None:
    address = f"/v1/fine_tuning/jobs/{job.id}/adapter?format=merged"
    first = client.get(address)
    task = claim_task(database)
    with database.writing() as session:
        TaskLeases(session, task.id).progress(task.lease, 0.4)
    second = client.get(address)

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.headers["retry-after"] == "2"
    shown = first.json()
    assert (shown["object"], shown["status"], shown["progress"], shown["retry_after"]) == (
        "fine_tuning.job.export",
        "queued",
        0.0,
        2,
    )
    assert (shown["checkpoint_id"], shown["step_number"]) == (checkpoint.id, 4)
    assert (second.json()["status"], second.json()["progress"]) == ("running", 0.4)
    assert second.json()["id"] == shown["id"]
    assert count_tasks(database) == 1


def test_two_requests_at_once_make_one_export(
    client: TestClient, database: Database, job: Job
) -> None:
    answers: list[int] = []
    together = threading.Barrier(4)

    def ask() -> None:
        together.wait()
        answers.append(client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=gguf").status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [202] * 4
    assert count_tasks(database) == 1


def test_a_merged_model_is_sent_as_an_archive_in_ranges_as_well(
    client: TestClient, database: Database, store: LocalBlobStore, job: Job, checkpoint: Checkpoint
) -> None:
    add_finished_export(database, store, checkpoint, MERGED, variant="merged")
    address = f"/v1/fine_tuning/jobs/{job.id}/adapter?format=merged"

    whole = client.get(address)
    rest = client.get(address, headers={"range": "bytes=10-", "if-range": whole.headers["etag"]})
    same = client.get(address, headers={"if-none-match": whole.headers["etag"]})

    with zipfile.ZipFile(io.BytesIO(whole.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == MERGED
    assert (rest.status_code, rest.content) == (206, whole.content[10:])
    assert same.status_code == 304
    assert f"{job.id}-step-4-merged.zip" in whole.headers["content-disposition"]
    verification = json.loads(whole.headers["x-tunery-verification"])
    assert verification == VERIFICATION.model_dump(mode="json")


def test_a_gguf_adapter_is_sent_as_the_file_that_it_is(
    client: TestClient, database: Database, store: LocalBlobStore, job: Job
) -> None:
    first = list_checkpoints(database, job.id)[0]
    add_finished_export(database, store, first, GGUF, variant="gguf")

    answer = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=gguf&checkpoint=2")

    assert answer.content == b"GGUF and more"
    assert f"{job.id}-step-2.gguf" in answer.headers["content-disposition"]


def test_a_download_keeps_the_export_for_another_day(
    client: TestClient, database: Database, store: LocalBlobStore, job: Job, checkpoint: Checkpoint
) -> None:
    now = utc_now()
    task = add_finished_export(database, store, checkpoint, GGUF, variant="gguf", expires_at=now)

    client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=gguf", headers={"range": "bytes=0-"})

    with database.reading() as session:
        expires_at = session.get_one(Task, task.id).expires_at
    assert expires_at is not None
    assert expires_at >= now + KEPT_FOR


@pytest.mark.parametrize(
    ("lora", "why"),
    [({"use_dora": True}, "use_dora"), ({"modules_to_save": ["lm_head"]}, "embeddings (lm_head)")],
)
def test_what_llama_cpp_cannot_load_is_refused_with_what_to_take_instead(
    client: TestClient, database: Database, job: Job, lora: dict[str, Any], why: str
) -> None:
    change_lora(database, job, **lora)

    refused = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=gguf")

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (
        400,
        "format_not_possible",
        "format",
    )
    assert why in error["message"]
    assert "format=merged" in error["message"]
    assert client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=merged").status_code == 202


def test_an_architecture_that_llama_cpp_names_otherwise_is_refused(
    client: TestClient, job: Job, data_dir: Path
) -> None:
    config = data_dir / "models/tiny/config.json"
    config.write_text(json.dumps({"model_type": "mamba"}))

    error = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=gguf").json()["error"]

    assert error["code"] == "format_not_possible"
    assert "mamba" in error["message"]


def test_an_unknown_format_is_refused_by_name(client: TestClient, job: Job) -> None:
    error = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=onnx").json()["error"]

    assert (error["code"], error["param"]) == ("invalid_value", "format")


def test_an_export_needs_a_result_or_a_checkpoint(client: TestClient, database: Database) -> None:
    queued = add_job(database)

    error = client.get(f"/v1/fine_tuning/jobs/{queued.id}/adapter?format=merged").json()["error"]

    assert error["code"] == "adapter_not_ready"


def test_an_export_without_its_base_model_is_refused(
    client: TestClient, job: Job, data_dir: Path
) -> None:
    (data_dir / "models/tiny/tunery.json").unlink()

    error = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=merged").json()["error"]

    assert error["code"] == "model_not_available"
    assert "tunery models install tiny" in error["message"]


def test_an_export_with_other_weights_of_its_base_model_is_refused(
    client: TestClient, database: Database, job: Job
) -> None:
    with database.writing() as session:
        session.get_one(Job, job.id).base_model_sha256 = "1" * 64

    error = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=merged").json()["error"]

    assert error["code"] == "base_model_changed"
    assert "so its adapter can be downloaded only with format=peft" in error["message"]


def test_an_export_that_does_not_fit_into_the_quota_is_refused(
    client: TestClient, database: Database, job: Job
) -> None:
    with database.writing() as session:
        session.get_one(Project, DEFAULT_PROJECT_ID).max_stored_bytes = 1_000_000

    refused = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=merged")

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert count_tasks(database) == 0


class TestWithoutRoom:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"min_free_bytes": 2**60})

    def test_an_export_that_does_not_fit_on_the_disk_is_refused(
        self, client: TestClient, database: Database, job: Job
    ) -> None:
        refused = client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=merged")

        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (507, "insufficient_storage")
        assert count_tasks(database) == 0


def test_a_failed_export_says_why(client: TestClient, database: Database, job: Job) -> None:
    address = f"/v1/fine_tuning/jobs/{job.id}/adapter?format=merged"
    client.get(address)
    task = claim_task(database)
    with database.writing() as session:
        error = JobError(code="not_enough_memory", message="It needs 14 GB.")
        TaskLeases(session, task.id).fail(task.lease, error, now=NOW)

    refused = client.get(address)

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "export_failed")
    assert "(not_enough_memory): It needs 14 GB." in refused.json()["error"]["message"]


def test_the_exports_of_a_job_are_listed_with_how_to_serve_them(
    client: TestClient, database: Database, store: LocalBlobStore, job: Job, checkpoint: Checkpoint
) -> None:
    add_finished_export(database, store, checkpoint, GGUF, variant="gguf")
    client.get(f"/v1/fine_tuning/jobs/{job.id}/adapter?format=merged")

    merged, gguf = client.get(f"/v1/fine_tuning/jobs/{job.id}/exports").json()["data"]

    assert (gguf["status"], gguf["bytes"]) == ("succeeded", sum(map(len, GGUF.values())))
    assert gguf["command"] == "llama-server -m BASE.gguf --lora FILE.gguf"
    assert (merged["status"], merged["bytes"], merged["verification"]) == ("queued", None, None)
    assert merged["command"] == f"vllm serve DIR --served-model-name {job.fine_tuned_model}"
