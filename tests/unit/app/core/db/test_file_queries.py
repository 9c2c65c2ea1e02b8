from datetime import timedelta

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.files import ExpiredFiles, FileRepository
from app.core.db.session import Database
from app.core.db.tables import File
from app.core.errors import NotFoundError
from tests.builders import MINUTE, NOW, add_job, build_file, claim


def add(database: Database, **changes: object) -> File:
    file = build_file(**changes)
    with database.writing() as session:
        FileRepository(session, DEFAULT_PROJECT_ID).add(file)
    return file


def list_expired(database: Database, *, after: timedelta) -> list[str]:
    with database.writing() as session:
        found = ExpiredFiles(session).list_all(now=NOW + after, limit=10)
        return [file.id for file in found]


def test_an_expired_file_is_as_good_as_gone(database: Database) -> None:
    file = add(database, expires_at=NOW + MINUTE)

    with database.reading() as session:
        files = FileRepository(session, DEFAULT_PROJECT_ID)
        assert files.get(file.id, now=NOW).id == file.id
        with pytest.raises(NotFoundError):
            files.get(file.id, now=NOW + MINUTE)
        page = files.list_page(
            now=NOW + MINUTE, after=None, limit=10, order="desc", purpose=None, checkpoint=None
        )
        assert page.rows == []


def test_a_job_that_was_accepted_may_still_read_its_expired_file(database: Database) -> None:
    file = add(database, expires_at=NOW)

    with database.reading() as session:
        assert FileRepository(session, DEFAULT_PROJECT_ID).get_for_job(file.id).id == file.id


def test_a_file_that_does_not_exist_is_not_found_for_a_job_either(database: Database) -> None:
    with database.reading() as session, pytest.raises(NotFoundError):
        FileRepository(session, DEFAULT_PROJECT_ID).get_for_job("file-nope")


def test_expired_files_are_listed_for_deletion_unless_a_job_has_yet_to_read_them(
    database: Database,
) -> None:
    expired = add(database, expires_at=NOW)
    queued, running = add(database, expires_at=NOW), add(database, expires_at=NOW)
    add(database, expires_at=NOW + 2 * MINUTE)
    add(database)
    add_job(database, training_file_id=running.id)
    claim(database)
    add_job(database, validation_file_id=queued.id)

    assert list_expired(database, after=MINUTE) == [expired.id]


def test_a_file_of_another_project_does_not_exist(database: Database) -> None:
    file = add(database)

    with database.reading() as session:
        others = FileRepository(session, "proj-other")
        with pytest.raises(NotFoundError):
            others.get(file.id, now=NOW)
        with pytest.raises(NotFoundError):
            others.get_for_job(file.id)
