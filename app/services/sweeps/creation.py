"""Creates sweeps: all jobs of one in one transaction, or none. The caller owns the transaction."""

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import datetime

from app.core.access import Caller
from app.core.base_models import Catalogue
from app.core.db.check_tables import Sweep
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action
from app.core.db.repositories.sweeps.sweeps import SweepRepository
from app.core.db.session import Session
from app.core.disk import require_room
from app.core.errors import InvalidRequestError
from app.core.ids import IdPrefix, new_id
from app.core.job.training_config import TrainingConfig
from app.core.settings import Settings
from app.schemas.hyperparameters import as_hyperparameters
from app.schemas.sweeps import SweepCreate
from app.services.idempotency import IdempotentRequest, RequestOrigin
from app.services.job_inputs import CheckedRequest, check_request, require_trackers
from app.services.new_jobs import add_checked_job
from app.services.quotas import require_job
from app.services.sweeps.points import Point, read_points

CHECKED_FIELDS = (
    "max_sequence_tokens",
    "overlong_row_behavior",
    "train_on_inputs",
    "train_on",
    "template_date",
    "validation_split",
    "seed",
)
"""Hyperparameters on which the check of a job's data depends, besides its estimate. With the base
model and the files, which are the same in a sweep, they are what `describe_inputs` in
`worker/training/preparation/prepared_data.py` lists, and what decides which rows are held out."""


@dataclass(frozen=True, slots=True)
class NewSweep:
    sweep_id: str
    is_replay: bool
    """True if an earlier sending of the same request made the sweep."""


def create_sweep_once(
    session: Session,
    caller: Caller,
    request: SweepCreate,
    origin: RequestOrigin,
    *,
    catalogue: Catalogue,
    settings: Settings,
    now: datetime,
) -> NewSweep:
    """Create a sweep, or find the one that this very request has created before.

    Raises:
        InvalidRequestError: a point is invalid, two points are the same, or there is no validation
            data; the idempotency key belongs to another request; or as `check_request`.
        NotFoundError: as `check_request`.
        StorageFullError: the disk has no room for new jobs.
        QuotaExceededError: the project may not have so many more jobs.
    """
    once = IdempotentRequest(session, caller, origin, "sweep", request.content(), now=now)
    earlier = once.find_job()
    if earlier is not None and earlier.sweep_id is not None:
        return NewSweep(earlier.sweep_id, is_replay=True)
    require_room(settings)
    if request.seed is None:
        request = request.model_copy(update={"seed": secrets.randbelow(2**31)})
    points = read_points(request)
    checked = [_check(session, caller, each, catalogue, settings, now=now) for each in points]
    _refuse_equal(points, checked)
    require_trackers((each.type for each in request.integrations or ()), settings)
    require_job(session, caller, jobs=len(points), now=now)
    sweep = Sweep(id=new_id(IdPrefix.SWEEP), created_at=now, points={})
    jobs = {
        add_checked_job(
            session,
            caller,
            point.request,
            each,
            organization=settings.organization,
            sweep_id=sweep.id,
            shared=_digest(sweep.id, each.config),
            now=now,
        ): _shown(point, each)
        for point, each in zip(points, checked, strict=True)
    }
    sweep.points = {job.id: shown for job, shown in jobs.items()}
    SweepRepository(session, caller.project_id).add(sweep)
    audit.record(session, caller, Action.SWEEP_CREATED, sweep.id, now=now)
    once.remember(next(iter(jobs)))
    return NewSweep(sweep.id, is_replay=False)


def _check(
    session: Session,
    caller: Caller,
    point: Point,
    catalogue: Catalogue,
    settings: Settings,
    *,
    now: datetime,
) -> CheckedRequest:
    """Check the request for one job. What varies is named by its place in the sweep."""
    try:
        checked = check_request(
            session,
            caller,
            point.request,
            catalogue,
            default_recipe=settings.default_recipe,
            now=now,
        )
    except InvalidRequestError as error:
        name = (error.param or "").removeprefix("hyperparameters.")
        place = point.places.get(name)
        if place is None and not (error.param or "").startswith("hyperparameters."):
            raise
        raise InvalidRequestError(
            f"With {point.describe()}: {error}", code=error.code, param=place or error.param
        ) from error
    if point.request.validation_file is None and checked.config.validation_split is None:
        raise InvalidRequestError(
            "A sweep compares its jobs by their validation loss, so it needs validation data. Give "
            "a validation_file, or the hyperparameter validation_split.",
            code="validation_data_required",
            param="validation_file",
        )
    return checked


def _refuse_equal(points: list[Point], checked: list[CheckedRequest]) -> None:
    """Refuse two points that would train the same, however each of them is written."""
    seen: dict[str, Point] = {}
    for point, each in zip(points, checked, strict=True):
        first = seen.setdefault(each.config.model_dump_json(), point)
        if first is not point:
            place = next(
                (place for name, place in point.places.items() if first.places.get(name) != place),
                "sweep",
            )
            raise InvalidRequestError(
                f"Two jobs of the sweep would be the same: {first.describe()}, and again "
                f"{point.describe()}. Leave one out.",
                code="repeated_point",
                param=place,
            )


def _digest(sweep_id: str, config: TrainingConfig) -> str:
    """What `DataCheck.shared` has."""
    values = config.model_dump(mode="json", include=set(CHECKED_FIELDS))
    text = json.dumps([sweep_id, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(point: Point, checked: CheckedRequest) -> dict[str, object]:
    """The hyperparameters that vary, resolved where the job has them under this name."""
    given = point.request.given_hyperparameters()
    multiplier = checked.asked.learning_rate_multiplier(checked.config)
    resolved = as_hyperparameters(checked.config, multiplier)
    return {name: resolved.get(name, given.get(name)) for name in point.places}
