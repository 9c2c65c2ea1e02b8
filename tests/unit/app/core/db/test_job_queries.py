from collections.abc import Mapping

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.jobs import JobFilter, JobRepository
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.repositories.queue import MAX_POSITION, QueueRepository
from app.core.db.session import Database
from app.core.db.tables import Event, Job, JobMetadata
from app.core.errors import NotFoundError
from app.core.job.status import JobStatus
from tests.builders import (
    MINUTE,
    NOW,
    add_job,
    build_file,
    build_job,
    build_metrics,
    build_pair_metrics,
    claim,
    get_job,
    pass_checks,
)


def cancel(database: Database, job_id: str) -> Job | None:
    with database.writing() as session:
        return JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(job_id, now=NOW + MINUTE)


def list_ids(database: Database, metadata: Mapping[str, str] | None) -> list[str]:
    with database.reading() as session:
        page = JobRepository(session, DEFAULT_PROJECT_ID).list_page(
            after=None, limit=100, which=JobFilter(metadata=metadata)
        )
        return [job.id for job in page.rows]


def events(database: Database, job_id: str) -> list[Event]:
    with database.reading() as session:
        return (
            EventRepository(session, DEFAULT_PROJECT_ID)
            .list_page(job_id, after=None, limit=100)
            .rows
        )


def test_a_new_job_tells_its_story_in_openais_words(database: Database) -> None:
    file = build_file()
    job = add_job(database, status=JobStatus.VALIDATING_FILES, training_file_id=file.id)
    with database.writing() as session:
        session.add(file)

    pass_checks(database)

    assert [event.message for event in reversed(events(database, job.id))] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {file.id}",
        "Files validated, moving job to queued state",
    ]


def test_a_queued_job_is_cancelled_at_once(database: Database) -> None:
    job = add_job(database)

    cancelled = cancel(database, job.id)

    assert cancelled is not None
    assert cancelled.status is JobStatus.CANCELLED
    assert cancelled.finished_at == cancelled.cancel_requested_at == NOW + MINUTE
    assert events(database, job.id)[0].message == "Fine-tuning job cancelled"


def test_a_running_job_is_only_marked_and_the_first_request_counts(database: Database) -> None:
    job = add_job(database)
    claim(database)
    cancel(database, job.id)

    with database.writing() as session:
        again = JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(
            job.id, now=NOW + 2 * MINUTE
        )

    assert again is not None
    assert (again.status, again.finished_at) == (JobStatus.RUNNING, None)
    assert again.cancel_requested_at == NOW + MINUTE
    assert "Fine-tuning job cancelled" not in [event.message for event in events(database, job.id)]


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.CANCELLED])
def test_a_job_that_has_ended_is_not_touched(database: Database, status: JobStatus) -> None:
    job = add_job(database)
    with database.writing() as session:
        lease = LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE)
        assert lease is not None
        LeaseRepository(session).finish(lease, status, now=NOW)

    assert cancel(database, job.id) is None
    assert get_job(database, job.id).cancel_requested_at is None


def test_a_job_of_another_project_does_not_exist(database: Database) -> None:
    job = add_job(database)

    with database.writing() as session:
        others = JobRepository(session, "proj-other")
        assert others.request_cancel(job.id, now=NOW) is None
        assert others.list_page(after=None, limit=10).rows == []
        with pytest.raises(NotFoundError):
            others.get(job.id)


def test_jobs_are_filtered_by_all_labels_given(database: Database) -> None:
    both = add_job(database, metadata_items=labels(team="red", run="1"))
    red = add_job(database, metadata_items=labels(team="red"))
    plain = add_job(database)

    assert list_ids(database, {}) == [plain.id, red.id, both.id]
    assert list_ids(database, {"team": "red"}) == [red.id, both.id]
    assert list_ids(database, {"team": "red", "run": "1"}) == [both.id]
    assert list_ids(database, {"team": "blue"}) == []
    assert list_ids(database, None) == [plain.id]


def test_a_job_knows_its_place_in_the_queue_until_it_is_taken(database: Database) -> None:
    jobs = [add_job(database) for _ in range(3)]
    claim(database)
    taken, *waiting = [get_job(database, job.id) for job in jobs]

    with database.reading() as session:
        queue = QueueRepository(session)
        assert queue.position(taken) is None
        assert [queue.position(job) for job in waiting] == [1, 2]
        assert queue.count() == 2


def test_a_job_far_back_in_the_queue_is_not_counted_to(database: Database) -> None:
    with database.writing() as session:
        session.add_all(build_job(priority=9) for _ in range(MAX_POSITION - 3))
    priorities = [0, 1, 0, 1, 2, 0]
    ids = [add_job(database, priority=priority).id for priority in priorities]
    paused = add_job(database, status=JobStatus.PAUSED).id
    found = [get_job(database, job_id) for job_id in [*ids, paused]]

    with database.reading() as session:
        queue = QueueRepository(session)
        one_by_one = [queue.position(job) for job in found]
        together = queue.positions(found)

    assert MAX_POSITION == 1000
    assert one_by_one == [1000, 999, 1000, 1000, 998, 1000, None]
    assert [together[job.id] for job in found] == one_by_one


def test_the_loss_log_is_read_by_step_with_both_ends(database: Database) -> None:
    job = add_job(database)
    rows = [build_metrics(step) for step in range(1, 6)]
    with database.writing() as session:
        lease = LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE)
        assert lease is not None
        LeaseRepository(session).record_steps(
            lease, rows, tokens_per_second=None, estimated_finish_at=None
        )

    with database.reading() as session:
        jobs = JobRepository(session, DEFAULT_PROJECT_ID)
        assert jobs.list_steps(job.id) == rows
        assert jobs.list_steps(job.id, first=2, last=4) == rows[1:4]
        assert jobs.list_steps(job.id, first=5) == rows[4:]


def test_a_metrics_event_of_preferences_has_their_rewards(database: Database) -> None:
    job = add_job(database)

    with database.writing() as session:
        repository = EventRepository(session, DEFAULT_PROJECT_ID)
        rows = [build_pair_metrics(2, train_loss=0.6)]
        repository.add_metrics(job.id, rows, total_steps=300, now=NOW)

    event = events(database, job.id)[0]
    assert event.message == (
        "Step 2/300: training loss=0.60, full validation loss=0.50, "
        "training reward accuracy=0.75, full validation reward accuracy=0.50"
    )
    assert event.data is not None
    rewards = {name: value for name, value in event.data.items() if "reward" in name}
    assert rewards == rows[0].named_rewards()
    assert len(rewards) == 8
    assert event.data["valid_perplexity"] is None


def test_a_metrics_event_has_openais_words_and_keys(database: Database) -> None:
    job = add_job(database)
    plain = build_metrics(1, train_loss=0.154)
    evaluated = build_metrics(2, train_loss=0.149, valid_loss=0.27, valid_mean_token_accuracy=0.9)

    with database.writing() as session:
        repository = EventRepository(session, DEFAULT_PROJECT_ID)
        for metrics in (plain, evaluated):
            repository.add_metrics(job.id, [metrics], total_steps=300, now=NOW)

    second, first = events(database, job.id)[:2]
    assert (first.type, first.message) == ("metrics", "Step 1/300: training loss=0.15")
    assert first.data == {
        "step": 1,
        "total_steps": 300,
        "train_loss": 0.154,
        "train_mean_token_accuracy": 0.5,
    }
    assert second.message == "Step 2/300: training loss=0.15, full validation loss=0.27"
    assert second.data == {
        "step": 2,
        "total_steps": 300,
        "train_loss": 0.149,
        "train_mean_token_accuracy": 0.5,
        "valid_loss": 0.27,
        "valid_perplexity": pytest.approx(1.30996, rel=1e-5),
        "valid_mean_token_accuracy": 0.9,
        "full_valid_loss": 0.27,
        "full_valid_mean_token_accuracy": 0.9,
    }


def labels(**pairs: str) -> list[JobMetadata]:
    return [JobMetadata(key=key, value=value) for key, value in pairs.items()]
