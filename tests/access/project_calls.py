"""A call of every method of every repository of a project, with what belongs to that project."""

import importlib
import pkgutil
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import select

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db import repositories
from app.core.db.base import Project, ProjectRepository
from app.core.db.check_tables import DataCheck, Sweep
from app.core.db.repositories.files import MADE_BY_JOB
from app.core.db.repositories.jobs import JobFilter
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.session import Database
from app.core.db.tables import Event, TunedModel
from app.core.storage.local import LocalBlobStore
from app.core.webhooks.events import WebhookEventType
from tests.builders import (
    MINUTE,
    NOW,
    add_file,
    add_job,
    add_part,
    add_succeeded_job,
    build_checkpoint,
    build_data_report,
    build_file,
    build_job,
    build_metrics,
    build_part,
    build_saved_state,
    build_upload,
    claim,
    list_checkpoints,
)
from tests.exports import add_finished_export, build_task
from tests.webhooks import add_endpoint, build_endpoint, queue_event

OTHER_PROJECT = "proj-other"


class Call(NamedTuple):
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def on(self, repository: ProjectRepository, method: str) -> Any:
        return getattr(repository, method)(*self.arguments, **self.options)


def call(*arguments: Any, **options: Any) -> Call:
    return Call(arguments, options)


def find_repositories() -> dict[str, type[ProjectRepository]]:
    """Every repository of one project, by its name."""
    for module in pkgutil.walk_packages(repositories.__path__, f"{repositories.__name__}."):
        importlib.import_module(module.name)
    return {each.__name__: each for each in ProjectRepository.__subclasses__()}


def find_methods() -> list[str]:
    """Every public method of them, such as `JobRepository.get`."""
    return [
        f"{name}.{method}"
        for name, repository in find_repositories().items()
        for method in vars(repository)
        if not method.startswith("_")
    ]


class World:
    """Something of every kind in the default project, and another project that has nothing."""

    def __init__(self, database: Database, store: LocalBlobStore) -> None:
        self.done = add_succeeded_job(database, store, steps=(1, 6))
        self.first_checkpoint, self.result = list_checkpoints(database, self.done.id)
        self.running = add_job(database)
        self.lease = claim(database)
        self.file = add_file(database, store)
        self.used_file = add_file(database, store)
        self.queued = add_job(
            database,
            training_file_id=self.used_file.id,
            parent_checkpoint_id=self.first_checkpoint.id,
            sweep_id="ftsweep-a",
        )
        self.sweep = Sweep(id="ftsweep-a", created_at=NOW, points={self.queued.id: {"lora_r": 8}})
        self.upload = build_upload()
        self.part = add_part(database, store, self.upload)
        self.model = TunedModel(
            id=self.done.fine_tuned_model,
            job_id=self.done.id,
            checkpoint_id=self.result.id,
            base_model="tiny",
            created_at=NOW,
        )
        self.task = add_finished_export(database, store, self.result, {"adapter.gguf": b"GGUF"})
        self.endpoint = add_endpoint(database, "https://hooks.example.com/")
        queue_event(database)
        with database.reading() as session:
            self.event_ids = session.scalars(select(Event.id)).all()
        with database.writing() as session:
            session.add(Project(id=OTHER_PROJECT, name="Other", created_at=NOW))
            self.sweep.project_id = DEFAULT_PROJECT_ID
            session.add(self.sweep)
            UsageRepository(session, DEFAULT_PROJECT_ID).add(processor_s=1.0, requests=1, now=NOW)
            for job in (self.done, self.running):
                state = {"key": f"{job.id}/state", "bytes": 1}
                session.add(build_saved_state(job.id, 1, {"state": state}))
            done, running = (
                session.get_one(DataCheck, job.id) for job in (self.done, self.running)
            )
            done.report = build_data_report().model_dump(mode="json")
            running.files = {"tokens": {"key": "tokens", "bytes": 1}}

    def calls(self) -> dict[str, list[Call]]:
        """By method. Several calls of a method ask different questions."""
        done, queued = self.done, self.queued
        page: dict[str, Any] = {"after": None, "limit": 9}
        files: dict[str, Any] = page | {"now": NOW, "order": "asc"}
        record: dict[str, Any] = {"key": "k", "fingerprint": "f", "now": NOW}
        new_model = TunedModel(
            id="ft:new",
            job_id=done.id,
            checkpoint_id=self.first_checkpoint.id,
            base_model="tiny",
            created_at=NOW,
        )
        later = NOW + timedelta(days=9)
        return {
            "ErasureRepository.revoke_keys": [call(now=NOW)],
            "ErasureRepository.count_rows": [call()],
            "ErasureRepository.delete_jobs": [call(limit=9)],
            "ErasureRepository.delete_rest": [call()],
            "RetentionRepository.find_files": [call(later, now=later, limit=9)],
            "RetentionRepository.find_jobs": [call(later, limit=9)],
            "RetentionRepository.find_events": [call(later, limit=9)],
            "RetentionRepository.expire_files": [call([self.file.id], now=later)],
            "RetentionRepository.delete_jobs": [call([done.id])],
            "RetentionRepository.delete_events": [call(self.event_ids)],
            "UsageRepository.add": [call(requests=1, now=NOW), call(processor_s=1.0, now=NOW)],
            "UsageRepository.count_waiting_jobs": [call(1)],
            "UsageRepository.job_seconds": [call(self.running.id, now=NOW + MINUTE)],
            "UsageRepository.list_inner_files": [call()],
            "UsageRepository.lock_limits": [call()],
            "UsageRepository.measure": [call(now=NOW)],
            "UsageRepository.processor_s": [call(now=NOW + MINUTE)],
            "UsageRepository.stored_bytes": [call()],
            "SweepRepository.add": [call(Sweep(id="ftsweep-new", created_at=NOW, points={}))],
            "SweepRepository.get": [call(self.sweep.id)],
            "SweepRepository.list_page": [call(**page)],
            "SweepRepository.list_jobs": [call([self.sweep.id])],
            "SweepRepository.delete_if_empty": [call(self.sweep.id)],
            "CheckpointRepository.add": [call(build_checkpoint(done, 9))],
            "CheckpointRepository.list_page": [call(done.id, **page)],
            "CheckpointRepository.find": [call(done.id, self.result.id)],
            "CheckpointRepository.find_at_step": [call(done.id, 1)],
            "CheckpointRepository.find_of_model": [call(done.fine_tuned_model, 1)],
            "CheckpointRepository.list_surplus": [
                call(done.id, keep=0, keeps_best=keeps_best) for keeps_best in (False, True)
            ],
            "CheckpointRepository.lock_to_continue": [call(self.result.id)],
            "CheckpointRepository.lock_to_delete": [
                call(done.id),
                call(done.id, self.first_checkpoint.id),
            ],
            "CheckpointRepository.delete": [call(self.first_checkpoint)],
            "TunedModelRepository.add": [call(new_model)],
            "TunedModelRepository.find": [call(self.model.id)],
            "TunedModelRepository.get": [call(self.model.id)],
            "TunedModelRepository.list_all": [call()],
            "TunedModelRepository.delete": [call(self.model)],
            "EventRepository.add": [call(queued.id, "Hello", now=NOW)],
            "EventRepository.add_metrics": [
                call(queued.id, [build_metrics()], total_steps=1, now=NOW)
            ],
            "EventRepository.list_after": [call(queued.id, 0, limit=9)],
            "EventRepository.list_page": [call(queued.id, **page)],
            "FileRepository.add": [call(build_file())],
            "FileRepository.get": [call(self.file.id, now=NOW)],
            "FileRepository.get_to_use": [call(self.file.id, now=NOW, param="training_file")],
            "FileRepository.get_to_delete": [call(self.file.id, now=NOW)],
            "FileRepository.get_for_job": [call(self.file.id)],
            "FileRepository.find_weights": [call(self.result.id)],
            "FileRepository.list_page": [
                call(**files, purpose=None, checkpoint=None),
                call(**files, purpose=MADE_BY_JOB, checkpoint=None),
                call(**files, purpose=None, checkpoint=self.result.id),
            ],
            "FileRepository.find_unfinished_job_using": [call(self.used_file.id)],
            "FileRepository.delete": [call(self.file)],
            "IdempotencyRepository.lock": [call("create", "k")],
            "IdempotencyRepository.find_by_key": [call("create", "k")],
            "IdempotencyRepository.find_recent": [call("create", "f", since=NOW)],
            "IdempotencyRepository.add": [call(queued, "create", **record)],
            "JobRepository.add": [call(build_job())],
            "JobRepository.add_imported": [call(build_job())],
            "JobRepository.get": [call(queued.id)],
            "JobRepository.require": [call(queued.id)],
            "JobRepository.list_page": [
                call(**page, which=JobFilter(metadata=metadata))
                for metadata in ({}, {"team": "a"}, None)
            ],
            "JobRepository.request_cancel": [call(queued.id, now=NOW)],
            "JobRepository.request_pause": [call(queued.id, now=NOW)],
            "JobRepository.resume": [call(queued.id, now=NOW)],
            "JobRepository.allow_inexact_resume": [call(queued.id, now=NOW)],
            "JobRepository.delete": [call(done)],
            "JobRepository.find_check": [call(done.id)],
            "JobRepository.copy_steps": [call(done.id, queued.id, last=9)],
            "JobRepository.list_attempts": [call(done.id, limit=9)],
            "JobRepository.list_steps": [call(done.id, last=9)],
            "CurveRepository.list_points": [
                call(done.id, first=1, last=None, points=points) for points in (4, 9)
            ],
            "ChangeRepository.find_newest_step": [call(done.id)],
            "ChangeRepository.list_steps_after": [
                call(done.id, attempt=1, next_step=2, limit=9),
            ],
            "ChangeRepository.find_last_change": [call()],
            "ChangeRepository.list_changed": [call(NOW - MINUTE)],
            "ChangeRepository.list_jobs": [call([queued.id])],
            "SavedStateRepository.add": [call(self.lease, 2, {}, now=NOW)],
            "SavedStateRepository.drop": [call(self.lease, 1)],
            "SavedStateRepository.list_newest": [call(done.id)],
            "SavedStateRepository.newest_step": [call(done.id)],
            "SavedStateRepository.list_to_continue": [call(done.id)],
            "SavedStateRepository.move": [call(done.id, queued.id)],
            "SavedStateRepository.delete": [call(done.id)],
            "TaskRepository.find": [call(self.result.id, "export", "merged")],
            "TaskRepository.find_to_add": [call(self.result.id, "export", "merged")],
            "TaskRepository.add": [call(build_task(self.first_checkpoint))],
            "TaskRepository.delete": [call(self.task.id)],
            "TaskRepository.delete_waiting": [call(done.id, "export", keep=0)],
            "TaskRepository.list_of_job": [call(done.id, "export")],
            "TaskRepository.keep_until": [call(self.task.id, later)],
            "TaskRepository.delete_of_job": [call(done.id)],
            "TaskRepository.delete_of_checkpoint": [call(self.result.id)],
            "UploadRepository.add": [call(build_upload())],
            "UploadRepository.get": [call(self.upload.id)],
            "UploadRepository.get_to_change": [call(self.upload.id)],
            "UploadRepository.list_parts": [call(self.upload.id)],
            "UploadRepository.find_part": [call(self.upload.id, self.part.sha256)],
            "UploadRepository.measure_parts": [call(self.upload.id)],
            "UploadRepository.add_part": [call(build_part(self.upload, b"other"))],
            "UploadRepository.end": [call(self.upload, "cancelled")],
            "WebhookRepository.lock": [call()],
            "WebhookRepository.count": [call()],
            "WebhookRepository.add": [call(build_endpoint("https://hooks.example.com/"))],
            "WebhookRepository.get": [call(self.endpoint.id)],
            "WebhookRepository.get_to_change": [call(self.endpoint.id)],
            "WebhookRepository.list_page": [call(**page)],
            "WebhookRepository.delete": [call(self.endpoint)],
            "WebhookRepository.count_deliveries": [call([self.endpoint])],
            "WebhookRepository.announce": [call(WebhookEventType.SUCCEEDED, done.id, now=NOW)],
        }
