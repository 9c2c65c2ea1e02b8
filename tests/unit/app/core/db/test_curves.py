"""Points of a loss log: the peaks survive, whatever is left out."""

from collections.abc import Iterable

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.job_views.curves import CurveRepository
from app.core.db.session import Database
from app.core.db.tables import Job, StepRow
from app.core.job.loss_log import StepMetrics
from tests.builders import add_job, build_step

STEPS = 1500


def add_log(database: Database, *, evaluated: Iterable[int] = (), **peaks: float) -> Job:
    """A job with a flat loss log, except for these peaks, such as `step_7=9.0`."""
    job = add_job(database)
    losses = {int(name.removeprefix("step_")): loss for name, loss in peaks.items()}
    steps = set(evaluated)

    def row(step: int) -> StepRow:
        valid_loss = 1.0 + step / STEPS if step in steps else None
        return build_step(job, step, train_loss=losses.get(step, 2.0), valid_loss=valid_loss)

    with database.writing() as session:
        session.add_all(map(row, range(1, STEPS + 1)))
    return job


def list_points(
    database: Database, job: Job, points: int, first: int = 0, last: int | None = None
) -> list[StepMetrics]:
    with database.reading() as session:
        curves = CurveRepository(session, DEFAULT_PROJECT_ID)
        return curves.list_points(job.id, first=first, last=last, points=points)


def steps_of(rows: list[StepMetrics]) -> list[int]:
    return [row.step for row in rows]


@pytest.mark.parametrize("points", [50, 1000])
def test_a_peak_of_one_step_is_among_the_points(database: Database, points: int) -> None:
    job = add_log(database, step_1234=40.0, step_1235=0.5, step_1499=7.0)

    rows = list_points(database, job, points)

    assert len(rows) <= points
    assert {1, 1234, 1235, 1499, STEPS} <= set(steps_of(rows))
    assert steps_of(rows) == sorted(set(steps_of(rows)))


def test_every_evaluation_is_among_the_points(database: Database) -> None:
    evaluated = range(100, STEPS + 1, 100)
    job = add_log(database, evaluated=evaluated, step_33=9.0)

    rows = list_points(database, job, 200)

    assert {*evaluated, 1, 33} <= set(steps_of(rows))
    assert len(rows) <= 200


def test_of_too_many_evaluations_the_extremes_remain(database: Database) -> None:
    job = add_log(database, evaluated=range(1, STEPS + 1), step_750=9.0)

    rows = list_points(database, job, 100)

    assert {1, 750, STEPS} <= set(steps_of(rows))
    assert 50 <= len(rows) <= 100


def test_a_part_of_a_log_has_its_own_peaks(database: Database) -> None:
    job = add_log(database, step_10=90.0, step_777=9.0)

    rows = list_points(database, job, 40, first=700, last=999)

    assert {700, 777, 999} <= set(steps_of(rows))
    assert min(steps_of(rows)) == 700
    assert max(steps_of(rows)) == 999


@pytest.mark.parametrize(
    ("first", "last", "points", "expected"),
    [
        (1, 5, 5, [1, 2, 3, 4, 5]),
        (1498, None, 1000, [1498, 1499, 1500]),
        (1, None, 2, [1, STEPS]),
        (1, None, 3, [1, STEPS]),
        (STEPS + 1, None, 9, []),
        (7, 3, 9, []),
    ],
)
def test_few_points_are_the_ends_and_a_short_log_is_whole(
    database: Database, first: int, last: int | None, points: int, expected: list[int]
) -> None:
    job = add_log(database)

    assert steps_of(list_points(database, job, points, first, last)) == expected
