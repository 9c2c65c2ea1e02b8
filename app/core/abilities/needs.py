"""What a queued job needs of a worker, in one text that the queue is indexed by.

Jobs with the same text fit the same workers, give or take some memory. A project's queue has few
different ones, so a worker passes over all jobs of one that does not fit it in one step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from app.core.abilities.ability import Ability, StoredPlan
from app.core.machine.memory import Memory

_ANY = "-"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a worker must have to run a job.

    Attributes:
        base_model: id of the base model.
        memory_class: number of binary digits of the memory that the job needs, in bytes. 0 if that
            is unknown.
        threads: threads of the plan; 0 for a job without a plan.
        numerics: numerics version of the plan; 0 without a plan.
        environment: digest of the plan's environment; None without a plan.
        is_flexible: whether the user allows another plan if no worker can execute this one.
    """

    base_model: str
    memory_class: int = 0
    threads: int = 0
    numerics: int = 0
    environment: str | None = None
    is_flexible: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` has written."""
        model, memory, threads, numerics, environment, flexible = text.rsplit(" ", 5)
        digest = None if environment == _ANY else environment
        return cls(model, int(memory), int(threads), int(numerics), digest, flexible == "1")

    def __str__(self) -> str:
        fields = (self.memory_class, self.threads, self.numerics, self.environment or _ANY)
        return " ".join(map(str, (self.base_model, *fields, int(self.is_flexible))))

    def may_fit(self, memory: Memory) -> bool:
        """Whether some jobs of this class fit the memory. The exact memory is compared later."""
        return memory.total.bit_length() >= self.memory_class

    def is_executable(self, ability: Ability) -> bool:
        """Whether the worker goes on exactly as the plan says. True if there is no plan."""
        return self.environment is None or (
            self.environment in ability.digests
            and self.threads <= ability.cores
            and self.numerics == ability.numerics
        )

    def may_be_replanned(self, ability: Ability) -> bool:
        """Whether a worker that cannot execute the plan may go on if no other worker can.

        A state of another numerics version is refused, so that such a job starts over. That is
        exact as well.
        """
        return self.is_flexible or self.numerics != ability.numerics


def needs_of(
    base_model: str,
    needed_memory_bytes: int | None = None,
    plan: Mapping[str, Any] | None = None,
    allow_inexact_resume: bool = False,  # noqa: FBT001, FBT002 - a column
    **_: object,
) -> str:
    """What a job with these columns needs, as the queue has it."""
    needs = Needs(base_model, (needed_memory_bytes or 0).bit_length())
    if plan is not None:
        stored = StoredPlan.model_validate(plan)
        needs = replace(
            needs,
            threads=stored.threads,
            numerics=stored.numerics,
            environment=stored.environment.digest,
            is_flexible=allow_inexact_resume,
        )
    return str(needs)
