"""Checks the requests that a process with a tokenizer answers. The caller owns the transaction."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.core.access import Caller
from app.core.base_models import Catalogue, InstalledModel
from app.core.compute_choices import compute_choices, training_memory
from app.core.dataset.formats import DatasetFormat
from app.core.dataset.tokenizing.messages import MAX_ROWS, EstimateRequest, PreviewRequest
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Session
from app.core.errors import InvalidRequestError
from app.core.job.child.job_spec import MACHINE_CACHE_NAME
from app.core.settings import Settings
from app.core.storage.local_copies import BlobRef
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.sweeps import SweepCreate
from app.services.job_inputs import check_file, check_request, find_start, require_trackers
from app.services.job_settings import resolve_config
from app.services.sweeps.creation import check_sweep

_DEFAULT_ROWS = 5
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class AskedPreview:
    """What a client asks for."""

    file_id: str
    model: str
    rows: str | None
    hyperparameters: dict[str, Any]
    """Those that the client has set, by their names on the wire."""


@dataclass(frozen=True, slots=True)
class PreviewPlan:
    blob: BlobRef
    """The bytes of the file."""
    base_model: InstalledModel
    """The base model, whose directory the request has only if it is on this machine."""
    request: PreviewRequest


def plan_preview(
    session: Session,
    caller: Caller,
    asked: AskedPreview,
    *,
    settings: Settings,
    catalogue: Catalogue,
    now: datetime,
) -> PreviewPlan:
    """Check what a client asks for, and complete it.

    Raises:
        NotFoundError: no file has this id, or no tuned model this name.
        InvalidRequestError: the file has no rows to train on, the base model is not installed, or
            a value is out of range.
    """
    file = FileRepository(session, caller.project_id).get(asked.file_id, now=now)
    start = find_start(session, caller, catalogue, asked.model)
    entry = start.entry
    method = "dpo" if file.format == DatasetFormat.PREFERENCE else "supervised"
    check_file(file, entry, method, "file_id")
    try:
        config = resolve_config(
            asked.hyperparameters,
            entry,
            method=method,
            seed=0,
            today=now.date(),
            shape=start.shape,
        )
    except InvalidRequestError as error:
        param = (error.param or "").removeprefix("hyperparameters.")
        raise InvalidRequestError(str(error), code=error.code, param=param) from error
    return PreviewPlan(
        BlobRef(file.blob_key, file.sha256),
        start.installed,
        PreviewRequest(
            base_model=catalogue.directory(entry.id).absolute(),
            data_dir=settings.data_dir.absolute(),
            sandbox=settings.sandbox,
            config=config,
            rows=read_rows(asked.rows, examples=file.examples or 0),
        ),
    )


@dataclass(frozen=True, slots=True)
class EstimatePlan:
    blobs: list[BlobRef]
    """The training file and, if there is one, the validation file."""
    base_model: InstalledModel
    """The base model, whose directory the request has only if it is on this machine."""
    request: EstimateRequest
    hyperparameters: list[dict[str, Any]]
    """All hyperparameters of each job with their resolved values, by their names on the wire."""


def plan_estimate(
    session: Session,
    *,
    caller: Caller,
    request: JobCreate,
    catalogue: Catalogue,
    settings: Settings,
    now: datetime,
) -> EstimatePlan:
    """Check a request as if its job or its sweep were created, and say what the estimate takes.

    Raises:
        InvalidRequestError: as `create_job` or `check_sweep`.
        NotFoundError: as `create_job`.
    """
    if isinstance(request, SweepCreate):
        pairs = check_sweep(session, caller, request, catalogue, settings, now=now)
        checked = [each for _, each in pairs]
    else:
        default = settings.default_recipe
        checked = [
            check_request(session, caller, request, catalogue, default_recipe=default, now=now)
        ]
    require_trackers((each.type for each in request.integrations or ()), settings)
    model = checked[0].start.installed
    config, *others = (each.config for each in checked)
    ids = filter(None, (request.training_file, request.validation_file))
    repository = FileRepository(session, caller.project_id)
    files = [repository.get(file_id, now=now) for file_id in ids]
    workers = WorkerRepository(session)
    return EstimatePlan(
        blobs=[BlobRef(file.blob_key, file.sha256) for file in files],
        base_model=model,
        request=EstimateRequest(
            base_model=catalogue.directory(model.id).absolute(),
            data_dir=settings.data_dir.absolute(),
            sandbox=settings.sandbox,
            config=config,
            rows=tuple(file.examples or 1 for file in files),
            compute=compute_choices(settings),
            machine_cache=settings.caches_of(caller.project_id)[MACHINE_CACHE_NAME].absolute(),
            threads=settings.resolved_training_threads,
            memory_bytes=workers.largest_memory() or training_memory(settings),
            others=tuple(others),
        ),
        hyperparameters=[each.shown for each in checked],
    )


def read_rows(text: str | None, *, examples: int) -> tuple[int, ...]:
    """The numbers in a list of rows such as `1,5,10-20`, in their order in the file.

    Args:
        text: the list; None for the first rows.
        examples: number of rows of the file.

    Raises:
        InvalidRequestError: it is no such list, names too many rows, or one that does not exist.
    """
    if text is None:
        return tuple(range(1, min(_DEFAULT_ROWS, examples) + 1))
    ranges = [_read_range(part) for part in text.replace(" ", "").split(",")]
    if sum(map(len, ranges)) > MAX_ROWS:
        raise _bad_rows(f"'rows' names more than {MAX_ROWS} rows. Ask for fewer.")
    rows = sorted({row for each in ranges for row in each})
    if rows[-1] > examples:
        raise _bad_rows(f"The file has {examples:,} rows, so there is no row {rows[-1]:,}.")
    return tuple(rows)


def _read_range(text: str) -> range:
    match = _RANGE.fullmatch(text)
    first = int(match[1]) if match else 0
    last = int(match[2] or first) if match else 0
    if not 1 <= first <= last:
        raise _bad_rows(
            f"'rows' has {text[:40]!r}, which is no row and no range of rows. Name rows from 1, "
            "such as rows=1,5,10-20."
        )
    return range(first, last + 1)


def _bad_rows(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="rows")
