"""Creates sweeps: all jobs of one in one transaction, or none. The caller owns the transaction."""

import hashlib
import secrets
from datetime import datetime

from app.core.access import Caller
from app.core.base_models import Catalogue
from app.core.db.check_tables import Sweep
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action
from app.core.db.repositories.sweeps.sweeps import SweepRepository
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.errors import InvalidRequestError
from app.core.ids import IdPrefix, new_id
from app.core.settings import Settings
from app.schemas.sweeps import SweepCreate
from app.services.idempotency import IdempotentRequest, RequestOrigin
from app.services.job_inputs import CheckedRequest, check_request
from app.services.new_jobs import NewJob, add_checked_job, make_once
from app.services.quotas import require_job
from app.services.sweeps.points import Point, read_points


def create_sweep_once(
    session: Session,
    caller: Caller,
    request: SweepCreate,
    origin: RequestOrigin,
    *,
    catalogue: Catalogue,
    settings: Settings,
    now: datetime,
) -> NewJob:
    """Create a sweep, or find the one that this very request has created before.

    Returns:
        The first job of the sweep.

    Raises:
        InvalidRequestError: as `check_sweep` or `make_once`.
        NotFoundError: as `check_sweep`.
        StorageFullError: the disk has no room for new jobs.
        QuotaExceededError: the project may not have so many more jobs.
    """

    def create() -> Job:
        return _create(session, caller, request, catalogue, settings, now=now)

    once = IdempotentRequest(session, caller, origin, "sweep", request.content(), now=now)
    return make_once(once, create, settings)


def _create(
    session: Session,
    caller: Caller,
    request: SweepCreate,
    catalogue: Catalogue,
    settings: Settings,
    *,
    now: datetime,
) -> Job:
    """Create a sweep. Returns its first job."""
    checked = check_sweep(session, caller, request, catalogue, settings, now=now)
    require_job(session, caller, jobs=len(checked), now=now)
    sweep = Sweep(id=new_id(IdPrefix.SWEEP), created_at=now, points={})
    jobs = [
        add_checked_job(
            session,
            caller,
            point.request,
            each,
            organization=settings.organization,
            sweep_id=sweep.id,
            shared=hashlib.sha256(f"{sweep.id} {each.config.data_key}".encode()).hexdigest(),
            now=now,
        )
        for point, each in checked
    ]
    sweep.points = {
        job.id: _shown(point, each) for job, (point, each) in zip(jobs, checked, strict=True)
    }
    SweepRepository(session, caller.project_id).add(sweep)
    audit.record(session, caller, Action.SWEEP_CREATED, sweep.id, now=now)
    return jobs[0]


def check_sweep(
    session: Session,
    caller: Caller,
    request: SweepCreate,
    catalogue: Catalogue,
    settings: Settings,
    *,
    now: datetime,
) -> list[tuple[Point, CheckedRequest]]:
    """Check the request for each job, in the order of the points.

    Raises:
        InvalidRequestError: a point is invalid, two points are the same, or there is no validation
            data; or as `check_request`.
        NotFoundError: as `check_request`.
    """
    if request.seed is None:
        request = request.model_copy(update={"seed": secrets.randbelow(2**31)})
    points = read_points(request)
    checked = [
        (point, _check(session, caller, point, catalogue, settings, now=now)) for point in points
    ]
    _refuse_equal(checked)
    return checked


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


def _refuse_equal(checked: list[tuple[Point, CheckedRequest]]) -> None:
    """Refuse two points that would train the same, however each of them is written."""
    seen: dict[str, Point] = {}
    for point, each in checked:
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


def _shown(point: Point, checked: CheckedRequest) -> dict[str, object]:
    """The hyperparameters that vary, resolved where the job has them under this name."""
    given = point.request.given_hyperparameters()
    return {name: checked.shown.get(name, given.get(name)) for name in point.places}
