"""A job that resumes from the saved state of another, which failed or was cancelled."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.repositories.recovery import (
    MAX_INTERRUPTIONS,
    Interruption,
    RecoveryRepository,
)
from app.core.db.repositories.saved_states import PASSING_CODES, SavedStateRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.child.training_events import JobError
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    add_file,
    add_job,
    build_job_in,
    build_metrics,
    claim,
    dump_tables,
    get_job,
    list_blobs,
    list_messages,
    put_blob,
)
from worker.janitor import Janitor

JOBS = "/v1/fine_tuning/jobs"
WEEK = timedelta(days=7)
FROM_STATE = {"json": {"from": "saved_state"}}


def add_interrupted_job(
    database: Database,
    store: LocalBlobStore,
    *,
    states: tuple[int, ...] = (2, 4),
    finished_at: datetime | None = None,
    code: str = "interrupted_too_often",
    **changes: Any,
) -> Job:
    """A failed job that has logged five steps of six and saved its state after some of them."""
    job = add_job(database, training_file_id=add_file(database, store).id, **changes)
    lease = claim(database)
    assert lease.job_id == job.id
    now = finished_at or utc_now()
    with database.writing() as session:
        leases = LeaseRepository(session)
        leases.start(lease, total_steps=6)
        rows = [build_metrics(step) for step in range(1, 6)]
        leases.record_steps(lease, rows, tokens_per_second=1.0, estimated_finish_at=None)
        for step in states:
            key = f"jobs/{job.id}/attempt-1/resume-{step}/state"
            put_blob(store, key, b"state")
            files = {"state": {"key": key, "bytes": 5, "sha256": "0" * 64}}
            SavedStateRepository(session, DEFAULT_PROJECT_ID).add(lease, step, files, now=now)
        error = JobError(code=code, message="It failed.")
        leases.finish(lease, JobStatus.FAILED, now=now, error=error)
    return get_job(database, job.id)


def rerun(client: TestClient, job_id: str, **options: Any) -> Any:
    return client.post(f"{JOBS}/{job_id}/rerun", **(FROM_STATE | options))


def states_of(database: Database, job_id: str) -> list[tuple[int, str | None]]:
    with database.reading() as session:
        found = SavedStateRepository(session, DEFAULT_PROJECT_ID).list_newest(job_id)
        return [(state.step, state.saved_by) for state in found]


def steps_of(database: Database, job_id: str) -> list[int]:
    with database.reading() as session:
        return [row.step for row in JobRepository(session, DEFAULT_PROJECT_ID).list_steps(job_id)]


def clean_up(
    database: Database, store: LocalBlobStore, settings: Settings, *, at: datetime
) -> None:
    janitor = Janitor(settings, database=database, store=store, clock=lambda: at)
    janitor.delete_saved_states()
    janitor.delete_expired_files()


def test_the_new_job_takes_over_the_states_and_the_loss_log_up_to_them(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    failed = add_interrupted_job(database, store)
    blobs = list_blobs(store)

    answer = rerun(client, failed.id)

    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "validating_files"
    assert (job["rerun_of"], job["resumed_from_step"]) == (failed.id, 4)
    assert (job["trained_steps"], job["total_steps"], job["progress"]) == (4, 6, 4 / 6)
    assert job["train_loss"] == build_metrics(4).train_loss
    assert states_of(database, job["id"]) == [(4, failed.id), (2, failed.id)]
    assert states_of(database, failed.id) == []
    assert list_blobs(store) == blobs
    assert steps_of(database, job["id"]) == [1, 2, 3, 4]
    assert steps_of(database, failed.id) == [1, 2, 3, 4, 5]
    assert f"The job {job['id']} continues after step 4" in list_messages(database, failed.id)
    told = f"Created to continue after step 4 of the job {failed.id}"
    assert told in list_messages(database, job["id"])


@pytest.mark.parametrize("options", [{"json": {"from": None}}, {"json": {}}, {"json": None}])
def test_without_from_a_rerun_begins_with_its_first_step(
    client: TestClient, database: Database, store: LocalBlobStore, options: dict[str, Any]
) -> None:
    failed = add_interrupted_job(database, store)

    job = rerun(client, failed.id, **options).json()

    assert (job["resumed_from_step"], job["trained_steps"], job["total_steps"]) == (None, 0, None)
    assert states_of(database, failed.id) == [(4, None), (2, None)]


def test_a_cancelled_job_can_be_continued(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    job = add_job(database, training_file_id=add_file(database, store).id)
    lease = claim(database)
    with database.writing() as session:
        rows = [build_metrics(1)]
        LeaseRepository(session).record_steps(
            lease, rows, tokens_per_second=1.0, estimated_finish_at=None
        )
        SavedStateRepository(session, DEFAULT_PROJECT_ID).add(lease, 1, {}, now=utc_now())
        LeaseRepository(session).finish(lease, JobStatus.CANCELLED, now=utc_now())

    assert rerun(client, job.id).json()["resumed_from_step"] == 1


@pytest.mark.parametrize("deleted", ["the first", "the second"])
def test_either_job_can_be_deleted_without_harm_to_the_other(
    client: TestClient, database: Database, store: LocalBlobStore, deleted: str
) -> None:
    failed = add_interrupted_job(database, store)
    job_id = rerun(client, failed.id).json()["id"]
    client.post(f"{JOBS}/{job_id}/cancel")

    is_first = deleted == "the first"
    client.delete(f"{JOBS}/{failed.id if is_first else job_id}")

    assert [key for key in list_blobs(store) if "resume-" in key] == (
        [f"jobs/{failed.id}/attempt-1/resume-{step}/state" for step in (2, 4)] if is_first else []
    )
    assert steps_of(database, job_id if is_first else failed.id)


def test_a_job_that_was_continued_and_failed_can_be_continued_again(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    first = add_interrupted_job(database, store)
    second = rerun(client, first.id).json()["id"]
    client.post(f"{JOBS}/{second}/cancel")

    third = rerun(client, second).json()

    assert (third["rerun_of"], third["resumed_from_step"]) == (second, 4)
    assert states_of(database, third["id"]) == [(4, first.id), (2, first.id)]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"states": ()}, "it ended before it saved a state"),
        ({"code": "loss_not_finite"}, "it failed with loss_not_finite and would fail again"),
        (
            {"finished_at": utc_now() - WEEK - timedelta(hours=1)},
            "saved states are deleted 7 days after the end of a job",
        ),
    ],
)
def test_where_there_is_nothing_to_go_on_from_the_answer_says_why(
    client: TestClient, database: Database, store: LocalBlobStore, how: dict[str, Any], why: str
) -> None:
    failed = add_interrupted_job(database, store, **how)
    before = dump_tables(database)

    answer = rerun(client, failed.id)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "no_saved_state", "from")
    assert why in error["message"]
    assert "'from'" in error["message"]
    assert dump_tables(database) == before


def test_a_state_is_given_to_one_job_only(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    failed = add_interrupted_job(database, store)
    job_id = rerun(client, failed.id).json()["id"]

    error = rerun(client, failed.id).json()["error"]

    assert error["code"] == "no_saved_state"
    assert f"job {job_id} has already resumed from it" in error["message"]


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (JobStatus.VALIDATING_FILES, "it is validating_files and continues by itself"),
        (JobStatus.QUEUED, "it is queued and continues by itself"),
        (JobStatus.RUNNING, "it is running and continues by itself"),
        (JobStatus.PAUSED, "POST .../resume continues it"),
        (JobStatus.SUCCEEDED, "it succeeded"),
    ],
)
def test_a_job_that_has_not_failed_is_not_continued(
    client: TestClient, database: Database, status: JobStatus, why: str
) -> None:
    job = add_job(database, **build_job_in(status))

    error = rerun(client, job.id).json()["error"]

    assert (error["code"], error["param"]) == ("no_saved_state", "from")
    assert why in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [({"from": "checkpoint"}, "from"), ({"from": 1}, "from"), ({"form": "saved_state"}, "form")],
)
def test_another_body_is_refused(
    client: TestClient, database: Database, store: LocalBlobStore, body: Any, param: str
) -> None:
    failed = add_interrupted_job(database, store)

    answer = rerun(client, failed.id, json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "from_" not in answer.text


def test_a_key_tells_a_continuation_from_a_repetition(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    failed = add_interrupted_job(database, store)
    key = {"headers": {"Idempotency-Key": "once"}}
    first = rerun(client, failed.id, **key)

    again = rerun(client, failed.id, **key)
    plain = rerun(client, failed.id, json={}, **key)

    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert plain.json()["error"]["code"] == "idempotency_key_reused"


def test_a_state_is_held_for_a_week_and_then_freed(
    database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    ended = utc_now() - timedelta(days=6)
    failed = add_interrupted_job(database, store, finished_at=ended)

    clean_up(database, store, settings, at=ended + WEEK - timedelta(seconds=1))
    assert states_of(database, failed.id) != []

    clean_up(database, store, settings, at=ended + WEEK)
    assert states_of(database, failed.id) == []
    assert [key for key in list_blobs(store) if "resume-" in key] == []


def test_a_file_that_expires_is_held_with_the_state_and_can_be_used_again(
    client: TestClient, database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    """Whoever needs it no longer deletes the job."""
    expired = utc_now() - timedelta(days=1)
    files = [add_file(database, store, expires_at=expired) for _ in range(2)]
    held, given_up = (
        add_interrupted_job(database, store, validation_file_id=file.id) for file in files
    )
    client.delete(f"{JOBS}/{given_up.id}")

    clean_up(database, store, settings, at=utc_now())

    assert [file.blob_key in list_blobs(store) for file in files] == [True, False]
    assert rerun(client, held.id, json={}).json()["error"]["code"] == "file_not_found"
    assert rerun(client, held.id).json()["validation_file"] == files[0].id
    clean_up(database, store, settings, at=utc_now() + 2 * WEEK)
    assert files[0].blob_key in list_blobs(store)


def test_a_user_may_delete_a_held_file_and_then_there_is_nothing_to_go_on_with(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    failed = add_interrupted_job(database, store)

    assert client.delete(f"/v1/files/{failed.training_file_id}").json()["deleted"] is True

    error = rerun(client, failed.id).json()["error"]
    assert (error["code"], error["param"]) == ("file_not_found", "training_file")


@pytest.mark.parametrize("code", ["loss_not_finite", "base_model_changed", *sorted(PASSING_CODES)])
def test_only_states_that_can_be_of_use_are_held(
    database: Database, store: LocalBlobStore, settings: Settings, code: str
) -> None:
    failed = add_interrupted_job(database, store, code=code)

    clean_up(database, store, settings, at=utc_now())

    assert bool(states_of(database, failed.id)) == (code in PASSING_CODES)


def test_no_state_is_held_where_that_is_switched_off(
    client: TestClient, database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    failed = add_interrupted_job(database, store)

    clean_up(database, store, settings.model_copy(update={"held_state_s": 0.0}), at=utc_now())

    assert states_of(database, failed.id) == []
    assert "it ended before" in rerun(client, failed.id).json()["error"]["message"]


def test_an_error_says_that_the_state_can_be_used(database: Database) -> None:
    job = add_job(database)
    lease = claim(database)
    with database.writing() as session:
        SavedStateRepository(session, DEFAULT_PROJECT_ID).add(lease, 3, {}, now=utc_now())
    for number in range(MAX_INTERRUPTIONS):
        lease = lease if number == 0 else claim(database)
        with database.writing() as session:
            why = Interruption("It failed", "Wait.")
            RecoveryRepository(session).interrupt(lease, why, now=utc_now())

    found = get_job(database, job.id).error
    assert found is not None
    assert found["message"].endswith(
        '.../rerun with {"from": "saved_state"} continues after step 3.'
    )
