"""Projects take turns in the queue; none waits for the whole queue of another."""

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.base import Project
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.queue import QueueRepository, Turns
from app.core.db.session import Database
from app.core.job.status import JobStatus
from tests.builders import MINUTE, NOW, add_job, add_project, build_job, claim, get_job


def fill(database: Database, jobs: dict[str, int]) -> None:
    """Queue so many jobs of each project, all of the first one before those of the next."""
    for project_id in jobs.keys() - {DEFAULT_PROJECT_ID}:
        add_project(database, project_id)
    with database.writing() as session:
        for project_id, count in jobs.items():
            session.add_all(build_job(project_id=project_id) for _ in range(count))
            session.flush()


def finish(database: Database, lease: Lease) -> None:
    with database.writing() as session:
        LeaseRepository(session).finish(lease, JobStatus.SUCCEEDED, now=NOW)


def run_jobs(database: Database, count: int) -> list[str]:
    """The projects of the next jobs, each run to its end before the next one is claimed."""
    projects: list[str] = []
    for _ in range(count):
        lease = claim(database)
        finish(database, lease)
        projects.append(lease.project_id)
    return projects


def find_turn(database: Database) -> bool:
    with database.reading() as session:
        return Turns(session).is_any(now=NOW)


def test_one_job_starts_within_a_round_however_many_others_wait(database: Database) -> None:
    fill(database, {DEFAULT_PROJECT_ID: 1000, "proj-many": 100, "proj-one": 1})

    projects = run_jobs(database, 9)

    assert "proj-one" in projects[:3]
    assert projects[3:9].count(DEFAULT_PROJECT_ID) == projects[3:9].count("proj-many") == 3


def test_a_project_that_comes_later_has_the_next_turn(database: Database) -> None:
    fill(database, {DEFAULT_PROJECT_ID: 20})
    run_jobs(database, 5)
    fill(database, {"proj-late": 1})

    assert run_jobs(database, 2) == ["proj-late", DEFAULT_PROJECT_ID]


def test_a_project_cannot_buy_turns_with_priorities(database: Database) -> None:
    add_project(database, "proj-modest")
    for _ in range(4):
        add_job(database, priority=1000)
        add_job(database, project_id="proj-modest")

    projects = run_jobs(database, 8)

    assert projects[::2] == [projects[0]] * 4
    assert projects[1::2] == [projects[1]] * 4
    assert projects[0] != projects[1]


def test_deleting_its_jobs_gives_a_project_no_earlier_turn(database: Database) -> None:
    fill(database, {DEFAULT_PROJECT_ID: 6, "proj-b": 6})
    projects: list[str] = []
    for _ in range(6):
        lease = claim(database)
        finish(database, lease)
        projects.append(lease.project_id)
        with database.writing() as session:
            jobs = JobRepository(session, lease.project_id)
            jobs.delete(jobs.get(lease.job_id))

    assert projects == projects[:2] * 3


def test_the_project_with_the_fewest_running_jobs_is_next(database: Database) -> None:
    fill(database, {DEFAULT_PROJECT_ID: 4, "proj-b": 4})
    long_running, short = claim(database), claim(database)
    finish(database, short)

    assert short.project_id != long_running.project_id
    assert run_jobs(database, 2) == [short.project_id] * 2


def test_a_project_at_its_limit_of_running_jobs_waits(database: Database) -> None:
    fill(database, {"proj-small": 3})
    with database.writing() as session:
        project = session.get(Project, "proj-small")
        assert project is not None
        project.max_running_jobs = 1
    lease = claim(database)

    assert not find_turn(database)
    with database.writing() as session:
        assert LeaseRepository(session).claim("worker-2", now=NOW, lease_for=MINUTE) is None
    finish(database, lease)
    assert find_turn(database)


def test_a_project_without_processor_hours_waits_for_the_next_month(database: Database) -> None:
    fill(database, {"proj-small": 1})
    with database.writing() as session:
        project = session.get(Project, "proj-small")
        assert project is not None
        project.max_processor_hours = 0.5
        UsageRepository(session, "proj-small").add(processor_s=1800, now=NOW)

    assert not find_turn(database)
    with database.writing() as session:
        leases = LeaseRepository(session)
        assert leases.claim("worker-1", now=NOW, lease_for=MINUTE) is None
        assert leases.claim("worker-1", now=NOW + 31 * 24 * 60 * MINUTE, lease_for=MINUTE)


def test_an_attempt_counts_its_duration_times_its_threads(database: Database) -> None:
    add_job(database)
    with database.writing() as session:
        lease = LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE, threads=3)
    assert lease is not None
    with database.reading() as session:
        so_far = UsageRepository(session, DEFAULT_PROJECT_ID).processor_s(now=NOW + MINUTE)
    with database.writing() as session:
        LeaseRepository(session).finish(lease, JobStatus.SUCCEEDED, now=NOW + 2 * MINUTE)

    with database.reading() as session:
        in_all = UsageRepository(session, DEFAULT_PROJECT_ID).processor_s(now=NOW + 2 * MINUTE)
    assert (so_far, in_all) == (180.0, 360.0)


def test_a_position_counts_the_jobs_of_the_own_project(database: Database) -> None:
    fill(database, {DEFAULT_PROJECT_ID: 50, "proj-other": 0})
    own = [add_job(database, project_id="proj-other") for _ in range(2)]

    with database.reading() as session:
        queue = QueueRepository(session)
        assert [queue.position(job) for job in own] == [1, 2]
        assert queue.positions(own) == {own[0].id: 1, own[1].id: 2}
    assert get_job(database, add_job(database).id).status is JobStatus.QUEUED
