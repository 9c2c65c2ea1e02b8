"""/v1/fine_tuning/jobs: create, repeat, list, read, cancel, pause, delete; and their events."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.deps import Cursor, Now, Services, ServicesDep, WriteDep
from app.api.pagination import as_page
from app.api.requests import StrictJsonRoute
from app.api.responses import as_json
from app.api.submissions import REPLAYED_HEADER, SenderDep, mark_replay
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Session
from app.core.db.tables import Event, Job
from app.core.disk import require_room
from app.core.errors import InvalidRequestError
from app.core.ids import IdPrefix
from app.core.job.status import JobStatus
from app.core.job.training_config import TrainingConfig
from app.schemas.fine_tuning_jobs import (
    MAX_LABELS,
    EventRead,
    JobCreate,
    JobDeleted,
    JobErrorRead,
    JobRead,
    JobRerun,
)
from app.schemas.hyperparameters import as_hyperparameters
from app.schemas.pages import PageRead
from app.services import jobs as job_service
from app.services import new_jobs
from app.services.submissions import submit_once

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"], route_class=StrictJsonRoute)


@router.post("", responses=REPLAYED_HEADER)
def create_job(
    body: JobCreate,
    response: Response,
    sender: SenderDep,
    session: WriteDep,
    services: ServicesDep,
    now: Now,
) -> JobRead:
    """Queue a fine-tuning job. The answer shows every setting with the value it will have.

    Safe to repeat with the header `Idempotency-Key`: the same key and body make one job.
    """

    def create() -> Job:
        require_room(services.settings)  # not of a request that was granted before
        return new_jobs.create_job(
            session,
            body,
            catalogue=services.catalogue,
            organization=services.settings.organization,
            now=now,
        )

    submitted = submit_once(session, sender, "create", body.content(), create, now=now)
    mark_replay(response, submitted)
    return _read(session, services, submitted.job)


@router.get("", response_model=PageRead[JobRead])
def list_jobs(
    request: Request,
    services: ServicesDep,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.JOB))],
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> Response:
    """Jobs, newest first. `metadata[KEY]=VALUE` filters by label, `metadata=null` for no label."""
    metadata = _metadata_filter(request)
    with services.database.reading() as session:
        jobs = JobRepository(session)
        page = jobs.list_page(after=after, limit=limit, metadata=metadata)
        positions = jobs.queue_positions(page.rows)
        return as_json(as_page(page, lambda job: _show(services, job, positions[job.id])))


@router.get("/{job_id}", response_model=JobRead)
def get_job(job_id: str, services: ServicesDep) -> Response:
    """A job: its status, its progress, and what it has made."""
    with services.database.reading() as session:
        return as_json(_read(session, services, JobRepository(session).get(job_id)))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, services: ServicesDep, now: Now) -> JobRead:
    """Stop a job as soon as possible. Safe to repeat.

    A running job is still `running` in the answer, with `cancel_requested_at` set; it is
    `cancelled` within seconds, and keeps its log and the checkpoints made so far.
    """
    return services.make_room(
        lambda session: _read(session, services, job_service.cancel_job(session, job_id, now=now))
    )


@router.post("/{job_id}/pause")
def pause_job(job_id: str, session: WriteDep, services: ServicesDep, now: Now) -> JobRead:
    """Take a job out of the queue until it is resumed. Safe to repeat.

    A running job is still `running` in the answer, with `pause_requested_at` set; it is `paused`
    as soon as its state is saved, and goes on from there.
    """
    return _read(session, services, job_service.pause_job(session, job_id, now=now))


@router.post("/{job_id}/resume")
def resume_job(job_id: str, session: WriteDep, services: ServicesDep, now: Now) -> JobRead:
    """Put a paused job back into the queue. Safe to repeat: one that is not paused is left alone.

    A running job that was asked to pause, and has not yet, goes on.
    """
    return _read(session, services, job_service.resume_job(session, job_id, now=now))


@router.post("/{job_id}/rerun", responses=REPLAYED_HEADER)
def rerun_job(
    job_id: str,
    response: Response,
    sender: SenderDep,
    session: WriteDep,
    services: ServicesDep,
    now: Now,
    body: JobRerun | None = None,
) -> JobRead:
    """Queue a job that repeats another: its files, base model, settings and seed, its labels.

    Whatever has become of the other one. With `from` set to `saved_state`, it continues where a job
    that failed or was cancelled has stopped. Safe to repeat with the header `Idempotency-Key`.
    """
    is_continued = body is not None and body.from_ is not None

    def rerun() -> Job:
        require_room(services.settings)
        return new_jobs.rerun_job(
            session,
            job_id,
            catalogue=services.catalogue,
            organization=services.settings.organization,
            held_for=timedelta(seconds=services.settings.held_state_s) if is_continued else None,
            now=now,
        )

    content = {"rerun_of": job_id} | ({"from": "saved_state"} if is_continued else {})
    submitted = submit_once(session, sender, "rerun", content, rerun, now=now)
    mark_replay(response, submitted)
    return _read(session, services, submitted.job)


@router.delete("/{job_id}")
def delete_job(job_id: str, services: ServicesDep) -> JobDeleted:
    """Delete a job that has ended, with all it has made: adapter, model, checkpoints, log, events.

    The uploaded files stay.
    """
    blob_keys = services.make_room(lambda session: job_service.delete_job(session, job_id))
    services.free(blob_keys)
    return JobDeleted(id=job_id)


@router.get("/{job_id}/events", response_model=PageRead[EventRead])
def list_events(
    job_id: str,
    services: ServicesDep,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.EVENT))],
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> Response:
    """What happened to a job, newest first."""
    with services.database.reading() as session:
        JobRepository(session).require(job_id)
        page = EventRepository(session).list_page(job_id, after=after, limit=limit)
        return as_json(as_page(page, _event))


def _metadata_filter(request: Request) -> dict[str, str] | None:
    if request.query_params.get("metadata") == "null":
        return None
    labels = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if len(labels) > MAX_LABELS:
        raise InvalidRequestError(
            f"No job has more than {MAX_LABELS} labels, so none has all of these.",
            param="metadata",
        )
    return labels


def _event(event: Event) -> EventRead:
    return EventRead.model_validate(
        {
            "id": event.id,
            "created_at": int(event.created_at.timestamp()),
            "level": event.level,
            "message": event.message,
            "type": event.type,
            "data": event.data,
        }
    )


def _read(session: Session, services: Services, job: Job) -> JobRead:
    return _show(services, job, JobRepository(session).queue_position(job))


def _show(services: Services, job: Job, queue_position: int | None) -> JobRead:
    config = TrainingConfig.model_validate(job.config)
    hyperparameters = as_hyperparameters(config, job.learning_rate_multiplier)
    has_succeeded = job.status is JobStatus.SUCCEEDED
    return JobRead(
        id=job.id,
        created_at=int(job.created_at.timestamp()),
        finished_at=_unix(job.finished_at),
        estimated_finish=_unix(job.estimated_finish_at),
        status=_shown_status(services, job),
        model=job.base_model,
        fine_tuned_model=job.fine_tuned_model if has_succeeded else None,
        organization_id=f"org-{services.settings.organization}",
        training_file=job.training_file_id,
        validation_file=job.validation_file_id,
        result_files=[job.result_file_id] if job.result_file_id else [],
        result_checkpoint=job.result_checkpoint_id,
        trained_tokens=job.trained_tokens,
        seed=config.seed,
        error=None if job.error is None else JobErrorRead.model_validate(job.error),
        hyperparameters=hyperparameters,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        metadata={item.key: item.value for item in job.metadata_items} or None,
        user_provided_suffix=job.suffix,
        started_at=_unix(job.started_at),
        cancel_requested_at=_unix(job.cancel_requested_at),
        pause_requested_at=_unix(job.pause_requested_at),
        priority=job.priority,
        rerun_of=job.rerun_of,
        resumed_from_step=job.resumed_from_step,
        attempt=job.attempt,
        queue_position=queue_position,
        trained_steps=job.trained_steps,
        total_steps=job.total_steps,
        progress=1.0 if has_succeeded else job.trained_steps / (job.total_steps or 1),
        epoch=job.epoch,
        train_loss=job.train_loss,
        valid_loss=job.valid_loss,
        tokens_per_second=job.tokens_per_second,
    )


def _shown_status(services: Services, job: Job) -> JobStatus:
    is_paused = job.status is JobStatus.PAUSED
    return JobStatus(services.settings.show_paused_as) if is_paused else job.status


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
