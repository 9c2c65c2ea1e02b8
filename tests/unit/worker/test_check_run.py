"""The data check of a job by a worker: what becomes of the job, for every way its child can end."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import Catalogue
from app.core.db.check_tables import DataCheck
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from app.core.db.tables import File, Job
from app.core.job.artifacts import TOKENS_INDEX_NAME
from app.core.job.child.job_spec import JOB_SPEC_NAME, TOKENS_NAME, JobSpec
from app.core.job.child.training_events import (
    Checked,
    Failed,
    Finished,
    JobError,
    Noted,
    OutOfSpace,
    Started,
)
from app.core.job.status import JobStatus
from app.core.manifest import MANIFEST_NAME, Manifest, describe_files
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    TEXT_LINE,
    add_file,
    add_job,
    build_data_report,
    get_job,
)
from tests.fakes import Act, FakeLauncher, FrozenClock
from worker.attempt.lease_keeper import Resources
from worker.beside import PAUSE_AFTER_FAILURE_S, BesideTraining
from worker.data_check.loop import LONG_PATIENCE, PATIENCE, SMALL_BYTES, DataChecker
from worker.loop import Worker

REPORT = build_data_report()
BAD_DATA = JobError(code="row_too_long", message="Two rows are too long.", param="training_file")
REFUSED = Checked(report=REPORT, error=BAD_DATA)


def go_on() -> None:
    """When a worker that is not told to stop must have left a check."""


class Bench:
    """A checker with a fake child."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: LocalBlobStore,
        catalogue: Catalogue,
        clock: FrozenClock,
    ) -> None:
        self.database = database
        self.store = store
        self.clock = clock
        self.launcher = FakeLauncher()
        self.resources = Resources(settings, database, store, catalogue, self.launcher, clock)
        self.checker = DataChecker("worker-1", self.resources, self.launcher)

    def add_job(self, **changes: object) -> Job:
        file = add_file(self.database, self.store, TEXT_LINE * 3)
        status = JobStatus.VALIDATING_FILES
        return add_job(self.database, training_file_id=file.id, status=status, **changes)

    def check(self, *acts: Act, exit_code: int = 0) -> float | None:
        self.launcher.acts = acts
        self.launcher.exit_code = exit_code
        return self.checker.check_small(go_on)

    def job(self, job: Job) -> Job:
        return get_job(self.database, job.id)

    def row(self, job: Job) -> DataCheck:
        with self.database.reading() as session:
            return session.get_one(DataCheck, job.id)

    def messages(self, job: Job) -> list[str]:
        with self.database.reading() as session:
            events = EventRepository(session, DEFAULT_PROJECT_ID)
            page = events.list_page(job.id, after=None, limit=100)
        return [event.message for event in page.rows]

    def cancel(self, job: Job) -> None:
        with self.database.writing() as session:
            jobs = JobRepository(session, DEFAULT_PROJECT_ID)
            jobs.request_cancel(job.id, now=self.clock())


@pytest.fixture
def bench(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    clock: FrozenClock,
) -> Bench:
    return Bench(settings, database, store, catalogue, clock)


def tokens_made(directory: Path) -> Checked:
    """Write tokens as a child does, and report them."""
    tokens = directory / "out/tokens"
    tokens.mkdir(parents=True)
    (tokens / TOKENS_INDEX_NAME).write_text("{}")
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    manifest = Manifest(
        job_id=spec.job_id,
        attempt=spec.attempt,
        step=0,
        files=describe_files(tokens),
        provenance={},
    )
    (tokens / MANIFEST_NAME).write_text(manifest.model_dump_json())
    return Checked(report=REPORT, directory="out/tokens")


def doing(act: Callable[[], None]) -> Callable[[Path], None]:
    return lambda _: act()


def test_a_checked_job_is_queued_with_its_report_and_its_tokens(bench: Bench) -> None:
    job = bench.add_job()

    assert bench.check(Noted(message="3 examples"), tokens_made) == 0.0

    assert bench.job(job).status is JobStatus.QUEUED
    row = bench.row(job)
    assert row.report == REPORT.model_dump(mode="json")
    assert row.files is not None
    assert row.files.keys() == {TOKENS_INDEX_NAME, MANIFEST_NAME}
    with bench.store.open(row.files[TOKENS_INDEX_NAME]["key"]) as blob:
        assert blob.read() == b"{}"
    assert bench.messages(job)[:2] == [
        "Files validated, moving job to queued state",
        "3 examples",
    ]
    assert not bench.launcher.directories[0].exists()


def test_training_is_given_the_tokens_of_the_check(bench: Bench) -> None:
    job = bench.add_job()
    bench.check(tokens_made)
    seen: list[str] = []

    def look(directory: Path) -> None:
        seen.extend(path.name for path in (directory / TOKENS_NAME).iterdir())

    bench.launcher.acts = [look, Failed(code="x", message="y")]
    Worker("worker-1", bench.resources, lambda: None).run_once()

    assert bench.job(job).status is JobStatus.FAILED
    assert set(seen) == {TOKENS_INDEX_NAME, MANIFEST_NAME}


def test_tokens_that_have_changed_are_not_given_to_training(bench: Bench) -> None:
    job = bench.add_job()
    bench.check(tokens_made)
    with bench.database.writing() as session:
        check = session.get_one(DataCheck, job.id)
        assert check.files is not None
        changed = check.files[TOKENS_INDEX_NAME] | {"sha256": "0" * 64}
        check.files = check.files | {TOKENS_INDEX_NAME: changed}
    seen: list[bool] = []

    def look(directory: Path) -> None:
        seen.append((directory / TOKENS_NAME).exists())

    bench.launcher.acts = [look, Failed(code="x", message="y")]
    Worker("worker-1", bench.resources, lambda: None).run_once()

    assert seen == [False]


def test_bad_data_fails_the_job_and_the_report_stays(bench: Bench) -> None:
    job = bench.add_job()

    bench.check(REFUSED)

    failed = bench.job(job)
    assert failed.status is JobStatus.FAILED
    assert failed.error == BAD_DATA.model_dump(mode="json")
    assert bench.row(job).report == REPORT.model_dump(mode="json")


def test_a_job_that_is_asked_to_pause_pauses_after_its_check(bench: Bench) -> None:
    job = bench.add_job(pause_requested_at=bench.clock())

    bench.check(tokens_made)

    assert bench.job(job).status is JobStatus.PAUSED
    assert bench.job(job).pause_requested_at is None
    assert bench.messages(job)[0] == "Files validated, paused until it is resumed"


def test_a_cancelled_job_stays_cancelled_and_its_tokens_are_freed(bench: Bench) -> None:
    job = bench.add_job()

    bench.check(doing(lambda: bench.cancel(job)), tokens_made)

    assert bench.job(job).status is JobStatus.CANCELLED
    assert bench.row(job).files is None
    jobs = bench.resources.settings.blobs_dir / "jobs"
    assert not [path for path in jobs.rglob("*") if path.is_file()]


def test_a_crash_is_tried_again_and_the_third_one_fails_the_job(bench: Bench) -> None:
    job = bench.add_job()
    for _ in range(2):
        bench.check(exit_code=-11)
        assert bench.job(job).status is JobStatus.VALIDATING_FILES

    bench.check(exit_code=-11)

    error = bench.job(job).error
    assert error is not None
    assert error["code"] == "data_check_crashed"
    assert "SIGSEGV" in error["message"]


@pytest.mark.parametrize(
    "acts",
    [[Started(total_steps=1)], [Finished(step=1, trained_tokens=1)], [REFUSED, REFUSED]],
)
def test_a_child_that_reports_what_no_check_does_fails_the_job(
    bench: Bench, acts: Sequence[Act]
) -> None:
    job = bench.add_job()

    bench.check(*acts)

    error = bench.job(job).error
    assert error is not None
    assert error["code"] == "training_protocol_violated"


def test_a_full_disk_leaves_the_check_for_later(bench: Bench) -> None:
    job = bench.add_job()

    assert bench.check(OutOfSpace(message="The disk is full.")) == PAUSE_AFTER_FAILURE_S
    assert bench.job(job).status is JobStatus.VALIDATING_FILES

    bench.check(tokens_made)
    assert bench.job(job).status is JobStatus.QUEUED


def test_what_the_child_refuses_without_a_report_fails_the_job(bench: Bench) -> None:
    job = bench.add_job()

    bench.check(Failed(code="no_chat_template", message="It has no chat template."))

    error = bench.job(job).error
    assert error is not None
    assert error["code"] == "no_chat_template"


def test_a_worker_whose_check_was_taken_over_writes_nothing(bench: Bench) -> None:
    job = bench.add_job()

    def lose() -> None:
        bench.clock.advance(timedelta(hours=1))
        other = DataChecker("worker-2", bench.resources, FakeLauncher([tokens_made]))
        assert other.check_small(go_on) == 0.0

    bench.check(doing(lose), REFUSED)

    assert bench.job(job).status is JobStatus.QUEUED


def test_an_idle_worker_leaves_large_files_to_the_checker_beside_training(bench: Bench) -> None:
    job = bench.add_job()
    with bench.database.writing() as session:
        large = session.get_one(Job, job.id).training_file_id
        file = session.get_one(File, large)
        file.bytes = SMALL_BYTES + 1
    bench.launcher.acts = [tokens_made]

    assert bench.checker.check_small(go_on) is None
    assert bench.checker.check_any(go_on) is None  # an idle worker may still take a small file
    bench.clock.advance(PATIENCE)
    assert bench.checker.check_any(go_on) == 0.0
    assert bench.job(job).status is JobStatus.QUEUED


def test_no_check_begins_beside_an_idle_worker_that_will_take_it_next(bench: Bench) -> None:
    """It would load the libraries itself, for minutes if that worker begins to train."""
    bench.add_job()
    beside = DataChecker(
        "worker-2", bench.resources, bench.launcher, are_others_at_it=bench.checker.is_at_it
    )
    answers: list[float | None] = []

    def look_beside() -> None:
        bench.add_job()
        bench.clock.advance(PATIENCE)
        answers.append(beside.check_any(go_on))
        bench.clock.advance(LONG_PATIENCE - PATIENCE)
        bench.launcher.acts = [tokens_made]
        answers.append(beside.check_any(go_on))

    bench.check(doing(look_beside), tokens_made)

    assert answers == [None, 0.0]
    assert bench.checker.is_at_it(), "it takes the next one within moments"


def test_a_worker_trains_what_is_queued_before_it_checks(bench: Bench) -> None:
    validating = bench.add_job()
    file = add_file(bench.database, bench.store, TEXT_LINE)
    queued = add_job(bench.database, training_file_id=file.id)
    worker = Worker("worker-1", bench.resources, lambda: None)

    bench.launcher.acts = [Failed(code="x", message="y")]
    worker.run_once()
    assert bench.job(queued).status is JobStatus.FAILED
    assert bench.job(validating).status is JobStatus.VALIDATING_FILES

    bench.launcher.acts = [tokens_made]
    assert worker.run_once() == 0.0
    assert bench.job(validating).status is JobStatus.QUEUED


def test_the_checker_beside_training_gives_its_check_back_when_it_is_stopped(bench: Bench) -> None:
    job = bench.add_job()
    bench.clock.advance(PATIENCE)
    checker = BesideTraining(bench.checker.check_any)
    bench.launcher.acts = [doing(checker.stop), tokens_made]

    checker.run()

    assert bench.job(job).status is JobStatus.VALIDATING_FILES
    assert bench.row(job).worker_id is None
