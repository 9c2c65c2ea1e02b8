"""Checks the database: its version, schema and integrity, its jobs, workers and clock."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from app.core.db import inspection
from app.core.db.migrate import is_known_revision, newest_revision, read_revision
from app.core.db.repositories.machines.server_clock import server_time
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.workers import WorkerRepository
from app.core.job.status import JobStatus
from app.maintenance.findings import Finding, Level, Patient

_CLOCK_TOLERANCE = timedelta(minutes=5)


def check_engine(patient: Patient) -> Iterator[Finding]:
    with patient.database.reading() as session:
        database = patient.database.backend.describe(session)
    level = Level.WARN if database.problem else Level.OK
    message = f"{database.text} {database.problem}".strip()
    yield Finding("database", level, message, advice=database.advice)


def check_schema(patient: Patient) -> Iterator[Finding]:
    with patient.database.reading() as session:
        revision = read_revision(session)
    if revision == newest_revision():
        yield Finding("schema", Level.OK, f"at {revision}, the newest")
    elif revision is not None and not is_known_revision(revision):
        message = f"at {revision}, from a newer version of the service than this one"
        advice = "Run that version, or restore a backup of this one."
        yield Finding("schema", Level.BAD, message, advice=advice)
    else:
        message = (
            f"at {revision or 'nothing'}, and the newest is {newest_revision()}; the checks of "
            "rows were skipped"
        )
        advice = "Start the service: it upgrades the database."
        yield Finding("schema", Level.WARN, message, advice=advice)


def check_integrity(patient: Patient) -> Iterator[Finding]:
    with patient.database.reading() as session:
        damage = patient.database.backend.find_damage(session)
    if damage:
        advice = "Stop the service, keep a copy of the database's files, and restore a backup."
        yield Finding("integrity", Level.BAD, "; ".join(damage), advice=advice)
    else:
        yield Finding("integrity", Level.OK, "nothing is damaged, and no reference is broken")


def check_jobs(patient: Patient) -> Iterator[Finding]:
    with patient.database.reading() as session:
        counts = inspection.count_jobs(session)
        now = server_time(session, local=patient.now)
        stuck = inspection.count_expired_leases(session, now=now)
    summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    yield Finding("jobs", Level.OK, summary or "none")
    if stuck and not patient.may_repair:
        message = f"{stuck} running jobs have an expired lease"
        advice = "Start a worker, which requeues them, or run `tunery doctor --repair`."
        yield Finding("stuck jobs", Level.BAD, message, advice=advice)
        return
    repaired = ""
    if stuck:
        with patient.database.writing() as session:
            rescued = RecoveryRepository(session).rescue_expired(now=now)
        repaired = f"{len(rescued)} requeued: {', '.join(job.job_id for job in rescued)}"
    yield Finding("stuck jobs", Level.OK, "none", repaired=repaired)


def check_tasks(patient: Patient) -> Iterator[Finding]:
    with patient.database.reading() as session:
        counts = inspection.count_tasks(session)
        now = server_time(session, local=patient.now)
        stuck = inspection.count_expired_tasks(session, now=now)
    each = [f"{kind}: {count} {status}" for (kind, status), count in counts.items()]
    if stuck:
        message = f"{stuck} exports or reports have an expired lease"
        yield Finding("tasks", Level.WARN, message, advice="Start a worker, which takes them.")
    else:
        yield Finding("tasks", Level.OK, ", ".join(each) or "no exports or reports")


def check_workers(patient: Patient) -> Iterator[Finding]:
    with patient.database.reading() as session:
        now = server_time(session, local=patient.now)
        workers = WorkerRepository(session).list_all()
        jobs, tasks = inspection.count_jobs(session), inspection.count_tasks(session)
    unfinished = [count for (_, status), count in tasks.items() if status in ("queued", "running")]
    work = {
        "jobs": jobs[JobStatus.VALIDATING_FILES] + jobs[JobStatus.QUEUED],
        "exports or reports": sum(unfinished),
    }
    waiting = " and ".join(f"{count} {kind}" for kind, count in work.items() if count)
    alive = [worker for worker in workers if not worker.is_silent(now=now)]
    if waiting and not alive:
        message = f"none is alive, and {waiting} wait"
        yield Finding("workers", Level.WARN, message, advice="Start a worker.")
    else:
        by_state = Counter(worker.state for worker in alive)
        states = ", ".join(f"{count} {state}" for state, count in by_state.items())
        message = f"{len(alive)} alive: {states}" if alive else "none is alive, and nothing waits"
        yield Finding("workers", Level.OK, message)


def check_clock(patient: Patient) -> Iterator[Finding]:
    with patient.database.reading() as session:
        ahead = inspection.count_from_the_future(
            session, now=patient.now, tolerance=_CLOCK_TOLERANCE
        )
    time = f"{patient.now:%Y-%m-%d %H:%M:%S} UTC"
    if ahead:
        message = f"{ahead} rows have a creation time in the future; it is {time}"
        advice = "Set the machine's clock; leases and expiry dates depend on it."
        yield Finding("clock", Level.WARN, message, advice=advice)
    else:
        yield Finding("clock", Level.OK, f"{time}; no row is from the future")
