"""A worker takes only jobs that fit it, and none starves because another one is warm."""

from datetime import datetime
from typing import Any

import pytest

from app.core.abilities.ability import Ability, StoredPlan
from app.core.abilities.needs import Needs
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.machines.claims import Claims
from app.core.db.repositories.machines.drains import Drains
from app.core.db.repositories.machines.fitting import MAX_PASSED_OVER, WarmModels
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.workers import SILENT_AFTER, WorkerRepository
from app.core.db.session import Database
from app.core.db.tables import Job, SavedState
from app.core.job.artifacts import NUMERICS_VERSION
from app.core.job.child.job_spec import ComputeSettings
from app.core.job.status import JobStatus
from app.core.machine.memory import PLENTY, Memory
from tests.builders import MINUTE, NOW, add_job, build_identity, get_job, list_messages

GB = 10**9
COMPUTE = ComputeSettings(device="cpu", dtype="float32", forward="fast", compile=False)


def build_ability(**changes: Any) -> Ability:
    facts: dict[str, Any] = {
        "machine": "ml-1",
        "cores": 4,
        "threads": 4,
        "memory_bytes": 8 * GB,
        "processor": "x86_64 GenuineIntel 6 143",
        "instructions": "avx2 avx512f",
        "torch": "2.13.0",
        "transformers": "5.0.0",
        "peft": "0.19.0",
        "numerics": NUMERICS_VERSION,
    }
    return Ability(**(facts | changes))


ABLE = build_ability()
OTHER = build_ability(machine="ml-2", torch="2.14.0")


def take(
    database: Database, ability: Ability, *, now: datetime = NOW, warm: WarmModels | None = None
) -> Lease | None:
    with database.writing() as session:
        return LeaseRepository(session).claim(
            "worker-1", now=now, lease_for=MINUTE, threads=2, ability=ability, warm=warm
        )


def begin(database: Database, ability: Ability = ABLE, *, saved_step: int = 3) -> Job:
    """A job that a worker has begun, planned and put back; with a saved state unless that is 0."""
    job = add_job(database)
    lease = take(database, ability)
    assert lease is not None
    with database.writing() as session:
        LeaseRepository(session).start(lease, total_steps=9, plan=ability.plan(COMPUTE, 4))
        if saved_step:
            session.add(
                SavedState(
                    project_id=job.project_id,
                    job_id=job.id,
                    step=saved_step,
                    attempt=1,
                    created_at=NOW,
                    files={},
                )
            )
            session.flush()
        RecoveryRepository(session).release(lease, "The worker was stopped", now=NOW)
    return get_job(database, job.id)


def live(database: Database, ability: Ability, *, now: datetime = NOW) -> None:
    with database.writing() as session:
        worker = build_identity(f"worker-{ability.machine}", host=ability.machine)
        WorkerRepository(session).beat(worker, now=now, ability=ability)


@pytest.mark.parametrize(
    "changes",
    [
        {"torch": "2.14.0"},
        {"transformers": "5.1.0"},
        {"peft": "0.20.0"},
        {"processor": "x86_64 AuthenticAMD 25 1"},
        {"instructions": "avx2"},
        {"cores": 3},
    ],
)
def test_a_begun_job_is_left_to_a_worker_that_computes_the_same(
    database: Database, changes: dict[str, Any]
) -> None:
    job = begin(database)

    assert take(database, build_ability(**changes)) is None
    lease = take(database, build_ability(machine="ml-7", cores=16, threads=16))
    assert lease is not None
    assert (lease.job_id, lease.is_replanned) == (job.id, False)
    assert lease.plan == StoredPlan.model_validate(job.plan)


def test_a_job_without_a_saved_state_may_be_planned_anew(database: Database) -> None:
    job = begin(database, saved_step=0)

    assert job.plan is None
    lease = take(database, OTHER)
    assert lease is not None
    assert not lease.is_replanned


def test_it_goes_on_inexactly_only_if_that_is_allowed_and_nobody_can_do_better(
    database: Database,
) -> None:
    job = begin(database)
    with database.writing() as session:
        row = session.get_one(Job, job.id)
        row.allow_inexact_resume = True
        row.needs = str(Needs.parse(row.needs)).removesuffix("0") + "1"
    live(database, ABLE)

    assert take(database, OTHER) is None
    later = NOW + SILENT_AFTER + MINUTE
    lease = take(database, OTHER, now=later)
    assert lease is not None
    assert lease.is_replanned
    with database.writing() as session:
        LeaseRepository(session).begin(lease, after_step=3, now=later)
        LeaseRepository(session).start(lease, total_steps=9, plan=OTHER.plan(COMPUTE, 2))
    assert any("inexactly" in message for message in list_messages(database, job.id))
    assert StoredPlan.model_validate(get_job(database, job.id).plan).threads == 2


def test_a_state_of_another_numerics_version_is_left_to_those_who_read_it(
    database: Database,
) -> None:
    begin(database)
    newer = build_ability(machine="ml-3", numerics=NUMERICS_VERSION + 1)
    live(database, ABLE)

    assert take(database, newer) is None
    lease = take(database, newer, now=NOW + SILENT_AFTER + MINUTE)
    assert lease is not None  # nobody reads it any more, so the job starts over


def test_a_job_that_does_not_fit_holds_up_no_other(database: Database) -> None:
    begun = begin(database)
    add_job(database, base_model="absent", priority=9)
    free = add_job(database)
    picky = OTHER.model_copy(update={"base_models": (begun.base_model,)})

    lease = take(database, picky)

    assert lease is not None
    assert lease.job_id == free.id
    assert take(database, picky) is None


def test_a_worker_sees_without_writing_whether_it_would_take_something(database: Database) -> None:
    begin(database)

    with database.reading() as session:
        assert not Claims(session, OTHER, PLENTY).is_any(now=NOW)
        assert Claims(session, ABLE, PLENTY).is_any(now=NOW)


def test_the_memory_that_decides_is_exact(database: Database) -> None:
    job = add_job(database, needed_memory_bytes=6 * GB)

    for total, is_taken in ((2 * GB, False), (6 * GB - 1, False), (6 * GB, True)):
        memory = Memory(total=total, free=total)
        with database.writing() as session:
            lease = LeaseRepository(session).claim(
                "worker-1", now=NOW, lease_for=MINUTE, memory=memory, ability=ABLE
            )
        assert (lease is not None) == is_taken, total
    assert get_job(database, job.id).status is JobStatus.RUNNING


def test_a_warm_model_is_preferred_a_bounded_number_of_times(database: Database) -> None:
    first = add_job(database, base_model="large")
    for _ in range(3 * MAX_PASSED_OVER):
        add_job(database, base_model="small")
    warm = WarmModels({"small"})

    leases = [take(database, ABLE, warm=warm) for _ in range(MAX_PASSED_OVER + 1)]
    taken = [lease.job_id for lease in leases if lease is not None]

    assert taken.index(first.id) == MAX_PASSED_OVER


def test_each_of_many_workers_passes_over_a_job_so_often_at_most(database: Database) -> None:
    workers = [WarmModels({"small"}) for _ in range(3)]
    first = add_job(database, base_model="large")
    for _ in range(20):
        add_job(database, base_model="small")

    taken: list[str] = []
    while first.id not in taken:
        for warm in workers:
            lease = take(database, ABLE, warm=warm)
            assert lease is not None
            taken.append(lease.job_id)

    assert taken.index(first.id) <= MAX_PASSED_OVER * len(workers)


def test_what_is_warm_never_comes_before_a_higher_priority(database: Database) -> None:
    add_job(database, base_model="small")
    urgent = add_job(database, base_model="large", priority=1)

    lease = take(database, ABLE, warm=WarmModels({"small"}))

    assert lease is not None
    assert lease.job_id == urgent.id


def test_a_drained_machine_takes_nothing_until_it_is_undrained(database: Database) -> None:
    job = add_job(database)
    with database.writing() as session:
        assert Drains(session).drain("ml-1", now=NOW)
        assert not Drains(session).drain("ml-1", now=NOW)

    assert take(database, ABLE) is None
    with database.writing() as session:
        assert Drains(session).undo("ml-1")
        assert not Drains(session).undo("ml-1")
    lease = take(database, ABLE)
    assert lease is not None
    assert lease.job_id == job.id


def test_needs_are_read_as_they_were_written() -> None:
    for needs in (Needs("a b"), Needs("x", 33, 4, 2, "abc", is_flexible=True)):
        assert Needs.parse(str(needs)) == needs


def test_what_a_newer_version_can_do_is_unknown_and_no_error() -> None:
    assert Ability.read(ABLE.model_dump_json()) == ABLE
    assert Ability.read('{"cores": 4, "wings": 2}') is None
