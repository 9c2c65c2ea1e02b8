"""A database with very many jobs, and all that hangs on them."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from app.core.abilities.needs import needs_of
from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.session import Database
from app.core.job.training_config import TrainingConfig

EVENTS_EACH = 10
QUEUED_OF_TEN = 1
"""Number of queued jobs among ten. The others have ended."""
RARE = 3
"""Jobs with a rare label, status, base model and purpose of their files: the oldest, so that a list
by one of these has all other jobs before them."""
MODELS = 20
"""Number of tuned models in every database: the list of models has all of them."""
CHECKPOINTS = 20
"""Number of checkpoints of one job, the same in every database. The others have one each."""
LONG_STEPS = 1000
"""Number of rows in the loss log of the newest job, and of its additional events. It is the same in
every database."""
_COPIED_AT_ONCE = 100_000
"""Rows of a statement. One for a whole table would take longer than the service waits for any."""

_Rows = Iterator[tuple[Any, ...]]


def job_id(number: int) -> str:
    """Sorts before every id that is made now."""
    return f"ftjob-{number:026}"


def build_rows(jobs: int) -> dict[str, tuple[str, Callable[[], _Rows]]]:
    """Columns and rows of every table, in the order in which they can be written."""
    config = json.dumps(TrainingConfig(seed=7).model_dump(mode="json"))
    needs = needs_of("tiny")
    at, project = "2026-01-02 03:04:05.000000+00:00", DEFAULT_PROJECT_ID
    metrics = json.dumps({"step": 1, "epoch": 0.1, "train_loss": 1.0, "learning_rate": 1e-4})

    def job_rows() -> _Rows:
        for number in range(jobs):
            is_queued = number % 10 < QUEUED_OF_TEN
            status, ended = ("queued", None) if is_queued else ("cancelled", at)
            base_model = "tiny"
            if number < RARE:
                status, ended, base_model = "paused", None, "rare"
            result = None if is_queued else f"file-{number:026}"
            events = EVENTS_EACH + (LONG_STEPS if number == jobs - 1 else 0)
            yield (job_id(number), project, status, at, ended, 0, base_model,
                   f"file-in-{number % 99}", config, f"ft:tiny:tunery::{number}", 0, 0, 0, 0,
                   result, at, events, needs)  # fmt: skip

    def file_rows() -> _Rows:
        for number in range(jobs):
            key = f"file-{number:026}"
            purpose = "fine-tune" if number < RARE else "fine-tune-results"
            yield (key, project, purpose, "a.csv", 1, "0", 0, f"files/{key}", at, False,
                   job_id(number), None)  # fmt: skip

    def submission_rows() -> _Rows:
        now = utc_now().isoformat(" ")
        for number in range(jobs):
            yield job_id(number), project, "create", f"key-{number}", f"{number:064}", now

    def label_rows() -> _Rows:
        for number in range(jobs):
            yield job_id(number), "team", "rare" if number < RARE else f"team-{number % 100}"

    def checkpoint_rows() -> _Rows:
        for number in range(jobs + CHECKPOINTS):
            owner = min(number, jobs - 1)
            yield (f"ftckpt-{number:026}", project, job_id(owner), 1, number - owner, at, metrics,
                   "0" * 64)  # fmt: skip

    def event_rows() -> _Rows:
        for number in range(jobs * EVENTS_EACH + LONG_STEPS):
            owner = min(number // EVENTS_EACH, jobs - 1)  # the last one has many more
            yield (f"ftevent-{number:026}", project, job_id(owner), at, "info", "metrics",
                   f"Step {number}: training loss=1.00", metrics,
                   number - owner * EVENTS_EACH + 1)  # fmt: skip

    def step_rows() -> _Rows:
        for step in range(1, LONG_STEPS + 1):
            loss = {"tokens_seen": step, "elapsed_s": 1.0, "grad_norm": 1.0}
            accuracy = {"train_mean_token_accuracy": 0.5, "step": step}
            row = json.loads(metrics) | loss | accuracy
            yield job_id(jobs - 1), step, 1, json.dumps(row), row["train_loss"]

    job_columns = (
        "id, project_id, status, created_at, finished_at, priority, base_model, training_file_id, "
        "config, fine_tuned_model, attempt, trained_steps, crashes, interruptions, result_file_id, "
        "updated_at, event_count, needs"
    )
    file_columns = (
        "id, project_id, purpose, filename, bytes, sha256, crc32, blob_key, created_at, "
        "uses_tools, job_id, expires_at"
    )
    submission_columns = "job_id, project_id, route, key, fingerprint, created_at"
    event_columns = "id, project_id, job_id, created_at, level, type, message, data, number"
    return {
        "jobs": (job_columns, job_rows),
        "files": (file_columns, file_rows),
        "submissions": (submission_columns, submission_rows),
        "job_metadata": ("job_id, key, value", label_rows),
        "events": (event_columns, event_rows),
        "checkpoints": (
            "id, project_id, job_id, attempt, step, created_at, metrics, manifest_sha256",
            checkpoint_rows,
        ),
        "tuned_models": (
            "id, project_id, job_id, checkpoint_id, base_model, created_at",
            lambda: (
                (f"ft:{number}", project, job_id(number), f"ftckpt-{number:026}", "tiny", at)
                for number in range(MODELS)
            ),
        ),
        "audit_events": (
            "id, project_id, created_at, action, object_id",
            lambda: (
                (f"audit-{number:026}", project, at, "job.created", job_id(number))
                for number in range(jobs)
            ),
        ),
        "steps": ("job_id, step, attempt, metrics, train_loss", step_rows),
    }


def fill(database: Database, jobs: int) -> None:
    """Past SQLAlchemy, which would take hours, and then as a server would do by itself at night."""
    connection = database.engine.raw_connection()
    is_sqlite = database.engine.dialect.name == "sqlite"
    cursor = connection.cursor()
    if is_sqlite:
        cursor.execute("PRAGMA synchronous = OFF")
        cursor.execute("BEGIN")
    for table, (columns, rows) in build_rows(jobs).items():
        if is_sqlite:
            marks = ", ".join("?" * len(columns.split(",")))
            cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows())  # noqa: S608
            continue
        left = rows()
        while piece := list(islice(left, _COPIED_AT_ONCE)):
            with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                for row in piece:
                    copy.write_row(row)
    if is_sqlite:
        cursor.execute("COMMIT")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.commit()
    cursor.close()
    connection.close()
    if not is_sqlite:
        with database.engine.connect() as session:
            raw = session.execution_options(isolation_level="AUTOCOMMIT")
            raw.exec_driver_sql("VACUUM ANALYZE")
