"""Rows that cannot be, because the database refuses them."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError, StatementError

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.session import Database
from app.core.db.tables import Base, Event, JobMetadata, TunedModel
from app.core.ids import IdPrefix, new_id
from app.core.job.status import JobStatus
from tests.builders import (
    MINUTE,
    NOW,
    build_checkpoint,
    build_file,
    build_job,
    build_upload,
    get_job,
)


def refuse(database: Database, *rows: Base) -> str:
    """What the database says to these rows, added in this order."""
    with pytest.raises(IntegrityError) as refusal:
        add(database, *rows)
    return str(refusal.value.orig)


def add(database: Database, *rows: Base) -> None:
    with database.writing() as session:
        for row in rows:
            session.add(row)
            session.flush()


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        pytest.param({"finished_at": NOW}, "finished", id="queued, and finished"),
        pytest.param({"status": JobStatus.CANCELLED}, "finished", id="ended, without a time"),
        pytest.param({"lease_expires_at": NOW}, "leased", id="queued, with a lease"),
        pytest.param({"status": JobStatus.RUNNING}, "leased", id="running, without a lease"),
        pytest.param({"error": {"code": "x"}}, "error", id="queued, with an error"),
        pytest.param(
            {"status": JobStatus.FAILED, "finished_at": NOW}, "error", id="failed, without one"
        ),
        pytest.param(
            {"result_checkpoint_id": "ftckpt_1"}, "result_of_success", id="queued, with a result"
        ),
    ],
)
def test_a_job_that_contradicts_itself_is_refused(
    database: Database, changes: dict[str, Any], constraint: str
) -> None:
    assert f"ck_jobs_{constraint}" in refuse(database, build_job(**changes))


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        pytest.param({"status": "asleep"}, "status", id="no such status"),
        pytest.param({"file_id": "file-1"}, "file_of_completed", id="pending, with a file"),
        pytest.param({"part_ids": ["part_1"]}, "parts_of_completed", id="pending, of parts"),
        pytest.param(
            {"status": "completed", "part_ids": []}, "file_of_completed", id="without a file"
        ),
    ],
)
def test_an_upload_that_contradicts_itself_is_refused(
    database: Database, changes: dict[str, Any], constraint: str
) -> None:
    assert f"ck_uploads_{constraint}" in refuse(database, build_upload(**changes))


def test_a_status_that_does_not_exist_is_refused(database: Database) -> None:
    job = build_job()
    add(database, job)

    with pytest.raises(IntegrityError, match="jobstatus"), database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET status = 'asleep'")


@pytest.mark.parametrize("changes", [{"level": "fatal"}, {"type": "gossip"}])
def test_an_event_of_unknown_kind_is_refused(database: Database, changes: dict[str, Any]) -> None:
    job = build_job()
    values: dict[str, Any] = {
        "id": new_id(IdPrefix.EVENT),
        "project_id": DEFAULT_PROJECT_ID,
        "job_id": job.id,
        "number": 1,
        "created_at": NOW,
        "level": "info",
        "type": "message",
        "message": "Hello",
    }

    refusal = refuse(database, job, Event(**(values | changes)))

    assert f"ck_events_{next(iter(changes))}" in refusal


def test_two_checkpoints_of_one_step_are_refused(database: Database) -> None:
    job = build_job()

    refusal = refuse(database, job, build_checkpoint(job, 5), build_checkpoint(job, 5))

    sqlite, postgresql = "checkpoints.job_id, checkpoints.step", "uq_checkpoints_job_id_step"
    assert sqlite in refusal or postgresql in refusal


def test_two_files_with_the_same_bytes_of_the_store_are_refused(database: Database) -> None:
    files = build_file(blob_key="files/one"), build_file(blob_key="files/one")

    refusal = refuse(database, *files)

    assert "files.blob_key" in refusal or "uq_files_blob_key" in refusal


@pytest.mark.parametrize(
    "row",
    [
        JobMetadata(job_id="ftjob-none", key="a", value="b"),
        build_checkpoint(build_job()),
        build_file(checkpoint_id="ftckpt_none"),
        build_file(project_id="proj-none"),
        TunedModel(
            id="ft:x",
            project_id=DEFAULT_PROJECT_ID,
            job_id="ftjob-none",
            checkpoint_id="ftckpt_none",
            base_model="x",
            created_at=NOW,
        ),
    ],
    ids=["metadata", "checkpoint", "file of a checkpoint", "file of a project", "model"],
)
def test_a_row_that_points_nowhere_is_refused(database: Database, row: Base) -> None:
    assert "foreign key constraint" in refuse(database, row).lower()


def test_a_naive_time_has_no_place_in_the_database(database: Database) -> None:
    job = build_job(created_at=datetime(2030, 1, 1))  # noqa: DTZ001 - the point of the test

    with pytest.raises(StatementError, match="naive"):
        add(database, job)


def test_times_come_back_in_utc_wherever_they_were_written(database: Database) -> None:
    seoul = timezone(timedelta(hours=9))
    job = build_job(created_at=NOW.astimezone(seoul), cancel_requested_at=NOW + MINUTE)
    add(database, job)

    found = get_job(database, job.id)

    assert (found.created_at, found.cancel_requested_at) == (NOW, NOW + MINUTE)
    assert found.created_at.tzinfo is UTC
