"""What is asked for many times a second is answered in few steps."""

from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event
from starlette.testclient import TestClient

from app.core.base_models import Catalogue
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Database
from app.core.db.tables import JobMetadata
from app.core.settings import Settings
from tests.builders import NOW, add_job, build_identity, claim
from worker.membership.machine import measure_ability

JOBS = "/v1/fine_tuning/jobs"


@pytest.mark.parametrize(
    ("path", "queries"),
    [
        pytest.param("/{id}", 1, id="job"),
        pytest.param("/{id}/events", 2, id="events"),
        pytest.param("", 6, id="list"),  # half of them find out why the jobs wait
    ],
)
def test_a_poll_asks_the_database_little(
    *,
    app: FastAPI,
    client: TestClient,
    database: Database,
    settings: Settings,
    catalogue: Catalogue,
    path: str,
    queries: int,
) -> None:
    with database.writing() as session:  # whose ability decides why the jobs wait
        ability = measure_ability(settings, catalogue)
        WorkerRepository(session).beat(build_identity(), now=NOW, ability=ability)
    job = add_job(database, metadata_items=[JobMetadata(key="a", value="b")])
    claim(database)
    for _ in range(3):
        add_job(database, metadata_items=[JobMetadata(key="a", value="b")])
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        # Keys are looked up once a second at most, for all polls.
        if statement.startswith("SELECT") and "api_keys" not in statement:
            statements.append(statement)

    event.listen(app.state.resources.database.engine, "before_cursor_execute", note)
    answer = client.get(JOBS + path.format(id=job.id))

    assert answer.status_code == 200
    assert len(statements) == queries, statements
