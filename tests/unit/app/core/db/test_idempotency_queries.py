from datetime import datetime

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.base import Project
from app.core.db.repositories.idempotency import IdempotencyRepository, OldIdempotencyRecords
from app.core.db.session import Database
from tests.builders import MINUTE, NOW, add_job, dump_tables


def submit(
    database: Database, key: str | None, fingerprint: str = "f", *, now: datetime = NOW
) -> str:
    """Remember a request that has made a job, whose id is returned."""
    job = add_job(database)
    with database.writing() as session:
        IdempotencyRepository(session, DEFAULT_PROJECT_ID).add(
            job, "create", key=key, fingerprint=fingerprint, now=now
        )
    return job.id


@pytest.mark.parametrize("project", ["proj-default", "proj-other"])
def test_a_request_is_known_in_its_project_only(database: Database, project: str) -> None:
    with database.writing() as session:
        session.add(Project(id="proj-other", name="Other", created_at=NOW))
    keyed, plain = submit(database, "k"), submit(database, None)
    is_own = project == "proj-default"

    with database.reading() as session:
        records = IdempotencyRepository(session, project)
        by_key = records.find_by_key("create", "k")
        recent = records.find_recent("create", "f", since=NOW)

    assert (by_key and by_key.job_id) == (keyed if is_own else None)
    assert (recent and recent.job_id) == (plain if is_own else None)


def test_a_request_is_known_on_its_route_only(database: Database) -> None:
    submit(database, "k")
    submit(database, None)

    with database.reading() as session:
        records = IdempotencyRepository(session, DEFAULT_PROJECT_ID)
        assert records.find_by_key("rerun", "k") is None
        assert records.find_recent("rerun", "f", since=NOW) is None


def test_a_request_with_a_key_is_known_by_that_alone(database: Database) -> None:
    submit(database, "k")

    with database.reading() as session:
        assert (
            IdempotencyRepository(session, DEFAULT_PROJECT_ID).find_recent("create", "f", since=NOW)
            is None
        )


def test_what_is_old_is_forgotten_and_its_job_stays(database: Database) -> None:
    submit(database, "old", now=NOW - MINUTE)
    submit(database, None, now=NOW - MINUTE)
    submit(database, "new", now=NOW)
    jobs = dump_tables(database)["jobs"]

    with database.writing() as session:
        OldIdempotencyRecords(session).delete_older(than=NOW)

    tables = dump_tables(database)
    assert len(tables["submissions"]) == 1
    assert "new" in tables["submissions"][0]
    assert tables["jobs"] == jobs
