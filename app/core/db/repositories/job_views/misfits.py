"""Why no running worker may take a job, in sentences for people."""

from collections.abc import Collection, Mapping

from app.core.abilities.ability import Ability, StoredPlan
from app.core.abilities.needs import Needs
from app.core.db.tables import Job

_HOW_TO_GO_ON = (
    "The job starts as soon as a worker joins that can compute it as it was begun. To let it go on "
    "inexactly before that, resume it with allow_inexact_resume: tunery resume --inexact {job}."
)


def tell_misfit(job: Job, abilities: Mapping[Ability, str]) -> str | None:
    """Why none of the workers may take the job. None if one may, or too little is known.

    Args:
        job: a queued job.
        abilities: what the workers that take jobs can do, each with the name of a machine.
    """
    if not abilities:
        return None
    needs = Needs.parse(job.needs)
    if not any(ability.has_model(needs.base_model) for ability in abilities):
        return (
            f"No running worker has the base model {job.base_model}. Install it on one of their "
            f"machines: tunery models install {job.base_model}."
        )
    able = [ability for ability in abilities if ability.has_model(needs.base_model)]
    may_go_on = any(needs.is_executable(each) or needs.may_be_replanned(each) for each in able)
    if may_go_on or job.plan is None:
        return None
    return _tell_plan(job.id, StoredPlan.model_validate(job.plan), able, abilities)


def _tell_plan(
    job_id: str, plan: StoredPlan, able: Collection[Ability], machines: Mapping[Ability, str]
) -> str:
    nearest = min(able, key=lambda ability: len(ability.differences(plan)))
    differences = ", ".join(map(str, nearest.differences(plan)))
    return (
        "No running worker can compute the job exactly as it was begun. The nearest, on "
        f"{machines[nearest]}, differs in {differences}. {_HOW_TO_GO_ON.format(job=job_id)}"
    )
