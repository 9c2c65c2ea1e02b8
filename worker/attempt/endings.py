"""How an attempt ends, decided by what its process reported or by what went wrong.

The attempt may be at a job, at the check of its data, or at an export or a report. What any of them
can end with is worded for all.
"""

import logging
import re
import signal
from dataclasses import dataclass

from app.core.db.repositories.leases import Lease, RequestedAction
from app.core.db.repositories.recovery import Crash, Interruption, ModelAway
from app.core.disk import as_storage_full
from app.core.errors import StoreAwayError
from app.core.job.child.child_text import last_line, without_paths
from app.core.job.child.training_events import (
    Failed,
    Finished,
    JobError,
    MemoryShort,
    OutOfSpace,
    ProtocolError,
    Stopped,
    Unresumable,
)
from app.core.machine.signals import signal_name
from app.core.manifest import ManifestError
from app.core.signing.signatures import SigningKeyError
from app.core.stored_models.fetching import ModelUnavailableError
from worker.attempt.lease_keeper import NotWantedError
from worker.job_directory import BaseModelChangedError, BaseModelMissingError, ParentLostError
from worker.launch.launcher import Ending
from worker.launch.locks import JobLockedError
from worker.model_store.errors import RefusedModelError
from worker.stored_file import DataDamagedError

logger = logging.getLogger(__name__)

LastEvent = Finished | Failed | Stopped | OutOfSpace | MemoryShort | Unresumable
"""What a process reports before it exits, unless it dies or has made what it was to make."""

_FREE_SPACE = "Free space on the disk, or save fewer checkpoints."


_OVER_TIME = JobError(
    code="max_duration_exceeded",
    message="The job has trained for as long as its project allows. Its checkpoints are kept. "
    'POST .../rerun with {"from": "saved_state"} continues it as a new job.',
)

_OVER_TIME_BEFORE_TRAINING = JobError(
    code="max_duration_exceeded",
    message="The time that the project allows a job, its max_duration_s, was over before the first "
    "step. Loading the base model and reading the data count. Ask the operator for a longer time, "
    "then rerun the job.",
)

_OUT_OF_MEMORY = JobError(
    code="out_of_memory",
    message="The memory that its process may take here is too small. Choose a smaller base model. "
    "A training also takes less with shorter examples, or with a lower context_length or lora_r.",
)
_FAILED_ALLOCATION = re.compile(r"memory allocation of \d+ bytes failed|std::bad_alloc")
"""Last words of a library in Rust or C++, such as the tokenizer, that gets no memory. It ends the
process, so Python cannot report the error."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The user has cancelled the job."""


@dataclass(frozen=True, slots=True)
class Released:
    """The worker leaves the job for a reason that counts neither as crash nor as interruption."""

    why: str
    """What happened, to begin a sentence with: `The worker was stopped`."""


UnpublishedEnd = JobError | Cancelled | Crash | Interruption | Released | MemoryShort | ModelAway
AttemptEnd = Finished | Unresumable | UnpublishedEnd


def end_of_process(
    event: LastEvent | None,
    ending: Ending,
    *,
    action: RequestedAction,
    is_stopping: bool,
    is_over_time: bool,
    has_trained: bool,
) -> AttemptEnd:
    """Decide how the attempt ends after its process has.

    Args:
        event: the last event, if there was one.
        action: what the user has asked the job to do.
        is_stopping: whether the worker is told to stop.
        is_over_time: whether the job has run for as long as its project allows.
        has_trained: whether the job has taken a step.
    """
    match event:
        case Finished() if ending.exit_code == 0 or _was_ended(ending):
            return event
        case _ if action is RequestedAction.CANCEL:
            return Cancelled()
        case Failed():
            return JobError.model_validate(event.model_dump(exclude={"kind"}))
        case OutOfSpace():
            return Interruption(event.message.rstrip("."), _FREE_SPACE)
        case Unresumable() | MemoryShort():
            return event
        case _:
            over_time = _OVER_TIME if has_trained else _OVER_TIME_BEFORE_TRAINING
            return (
                over_time
                if is_over_time
                else _end_of_interrupted(event, ending, is_stopping=is_stopping)
            )


def end_of_error(error: Exception, lease: Lease) -> JobError | Interruption | ModelAway | Released:
    """Decide how an attempt ends that failed with this exception, which is being handled."""
    base_model, context = lease.base_model, {"job_id": lease.job_id}
    match error:
        case ProtocolError() | ManifestError():
            logger.warning("the training process broke its protocol", exc_info=True, extra=context)
            what = without_paths(str(error)).rstrip(".")
            return JobError(
                code="training_protocol_violated",
                message=f"The process was stopped. {what}. "
                "Try again; if it fails again, report a bug with the worker's log.",
            )
        case JobLockedError() | SigningKeyError():
            return _error_of_machine(error, context)
        case StoreAwayError() | DataDamagedError():
            return _error_of_store(error, lease)
        case (
            BaseModelMissingError()
            | BaseModelChangedError()
            | RefusedModelError()
            | ParentLostError()
            | ModelUnavailableError()
            | NotWantedError()
        ):
            return _end_of_model(error, base_model)
        case OSError() if as_storage_full(error) is not None:
            return Interruption("The disk is full", _FREE_SPACE)
        case _:
            logger.exception("attempt failed", extra=context)
            return JobError(
                code="internal_error",
                message=f"The worker failed on this job: {without_paths(repr(error)):.300}. "
                "See the worker's log.",
            )


def _error_of_machine(
    error: JobLockedError | SigningKeyError, context: dict[str, str]
) -> Interruption:
    if isinstance(error, JobLockedError):
        logger.warning("job locked: %s", error, extra=context)
        return Interruption(
            "Its previous process does not end",
            "Find out what blocks that process, or restart the machine.",
        )
    logger.error("the manifest cannot be signed: %s", error, extra=context)
    return Interruption(
        "The service's signing key cannot be used",
        "The operator finds the cause in the worker's log.",
    )


def _error_of_store(error: StoreAwayError | DataDamagedError, lease: Lease) -> JobError | Released:
    if isinstance(error, StoreAwayError):
        logger.warning("given back: %s", error.for_operator, extra={"job_id": lease.job_id})
        return Released("The blob store does not answer")
    is_training = error.file.id == lease.training_file_id
    return JobError(
        code="data_damaged",
        message=f"The store of the service has other bytes of {error.file.filename} than were "
        "uploaded. Upload the file again, and create the job with its new id. "
        "'tunery doctor --deep' says more to the operator.",
        param="training_file" if is_training else "validation_file",
    )


def _end_of_model(
    error: BaseModelMissingError
    | BaseModelChangedError
    | RefusedModelError
    | ParentLostError
    | ModelUnavailableError
    | NotWantedError,
    base_model: str,
) -> JobError | ModelAway | Released:
    match error:
        case ModelUnavailableError():
            logger.warning("%s", error)
            return ModelAway(str(error))
        case NotWantedError():
            return _release(is_stopping=error.is_stopping)
        case ParentLostError():
            return JobError(
                code="parent_unusable",
                message=f"The adapter of {error}, which the job continues, is damaged or missing "
                "in the store. 'tunery doctor --deep' says more to the operator. Create a job that "
                "continues another model.",
                param="model",
            )
        case BaseModelMissingError():
            return JobError(
                code="model_not_available",
                message=f"The base model {base_model} is no longer installed. Install it with "
                f"'tunery models install {base_model}' and try again.",
            )
        case BaseModelChangedError():
            return JobError(
                code="base_model_changed",
                message=f"The base model {base_model} was reinstalled after the job was created, "
                "and its weights have changed. Install the previous one, or create the job again.",
            )
        case RefusedModelError():
            return JobError(
                code="base_model_refused",
                message=f"The base model {base_model} cannot be used: {error} Remove it with "
                f"'tunery models remove {base_model}', install it again and try again.",
            )


def _end_of_interrupted(
    event: LastEvent | None, ending: Ending, *, is_stopping: bool
) -> JobError | Released | Crash:
    was_told = ending.was_asked or is_stopping
    if _was_ended(ending) or (was_told and isinstance(event, Stopped)):
        return _release(is_stopping=is_stopping)
    if ending.exit_code == -signal.SIGABRT and _FAILED_ALLOCATION.search(ending.log_tail):
        return _OUT_OF_MEMORY
    if ending.exit_code == -signal.SIGKILL:
        return Crash(
            "The process was killed, most likely because the machine ran out of memory",
            "Lower batch_size or context_length, or take a smaller base model.",
            last_line(ending.log_tail),
        )
    if ending.exit_code < 0:
        what = f"The process died of {signal_name(-ending.exit_code)}"
    elif isinstance(event, Stopped):
        what = "The process stopped without being asked to"
    else:
        what = f"The process ended with exit code {ending.exit_code}"
    return Crash(what, "The worker's log has more of its log.", last_line(ending.log_tail))


def _release(*, is_stopping: bool) -> Released:
    return Released("The worker was stopped" if is_stopping else "The job was interrupted")


def _was_ended(ending: Ending) -> bool:
    """Whether the worker ended the process. One that is asked to save may die before it can."""
    return ending.was_killed or (ending.was_asked and ending.exit_code == -signal.SIGTERM)
