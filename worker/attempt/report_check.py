"""Checks that a child reports what its task does, in an order in which it can happen.

The child may be hostile. What it may report is bounded by its job: no step comes twice, and no
checkpoint or saved state either. A child that checks data reports messages and then its result. One
that makes an export or a report reports its progress and then its result.
"""

from app.core.job.child.training_events import (
    Checked,
    Checkpointed,
    Exported,
    Failed,
    Finished,
    Made,
    MemoryShort,
    Noted,
    OutOfSpace,
    Planned,
    Progressed,
    ProtocolError,
    Reported,
    Saved,
    Started,
    Stepped,
    Stopped,
    TrainingEvent,
    Unresumable,
)
from app.core.job.loss_log import MAX_STEP

MAX_NOTES = 100
"""Number of messages in one attempt. A training has about ten, and a check at most 42."""

MAX_PROGRESS = 1000
"""Number of times that an export or a report tells its progress. It does so 10 to 20 times."""

_OF_ALL_TASKS = (Noted, Failed, OutOfSpace)
_OF_TRAINING = (
    *(Planned, Started, Stepped, Saved, Checkpointed),
    *(Stopped, MemoryShort, Unresumable, Finished),
)


class ReportCheck:
    """What the child of one attempt has reported, as far as it limits what may come next.

    Attributes:
        last_step: the last step that was taken, also by an earlier attempt.
    """

    def __init__(self) -> None:
        self._first_step = self.last_step = 0
        self._is_base_evaluated = False
        self._total_steps = MAX_STEP
        self._kinds: set[str] = set()
        self._directories: set[str] = set()
        self._notes = self._progress_reports = 0
        self._is_over = False
        self._of_task: tuple[type[object], ...] = _OF_TRAINING

    def begin_check(self) -> None:
        """Expect a child that only checks the data of its job."""
        self._of_task = (Checked,)

    def begin_export(self) -> None:
        """Expect a child that only exports an adapter."""
        self._of_task = (Progressed, MemoryShort, Exported)

    def begin_report(self) -> None:
        """Expect a child that only reports how a tuned model answers."""
        self._of_task = (Progressed, MemoryShort, Reported)

    def begin(self, *, after_step: int, total_steps: int) -> None:
        """Expect a training that resumes after `after_step` and has at most `total_steps`."""
        self._first_step = self.last_step = after_step
        self._total_steps = total_steps

    def check(self, event: TrainingEvent) -> None:
        """Take the next event.

        Raises:
            ProtocolError: the event cannot be true here.
        """
        _require(not self._is_over, "It reported more after its last event.")
        is_of_task = isinstance(event, (*_OF_ALL_TASKS, *self._of_task))
        _require(is_of_task, f"It reported {event.kind}, which is not of its task.")
        match event:
            case Noted():
                self._notes += 1
                _require(self._notes <= MAX_NOTES, f"It sent more than {MAX_NOTES} messages.")
            case Progressed():
                self._progress_reports += 1
                is_few = self._progress_reports <= MAX_PROGRESS
                _require(is_few, f"It reported its progress more than {MAX_PROGRESS:,} times.")
            case Planned() | Started():
                self._check_total(event)
            case Stepped():
                self._check_step(event.metrics.step)
            case Checkpointed():
                self._check_taken(event.step)
                self._check_directory(event.directory, f"out/step-{event.step}")
                if event.state is not None:
                    self._check_state(event.step, event.state)
            case Saved():
                self._check_state(event.step, event.directory)
            case _:
                self._check_end(event)

    def _check_total(self, event: Planned | Started) -> None:
        total, limit = event.total_steps, self._total_steps
        _require(event.kind not in self._kinds, f"It reported {event.kind} twice.")
        _require(total <= limit, f"It announced {total:,} steps; the job has at most {limit:,}.")
        self._kinds.add(event.kind)
        self._total_steps = total

    def _check_step(self, step: int) -> None:
        if step == 0 == self.last_step and not self._is_base_evaluated:
            self._is_base_evaluated = True
            return
        expected = self.last_step + 1
        _require(step == expected, f"It reported step {step:,} where step {expected:,} comes next.")
        _require(step <= self._total_steps, f"It took more than {self._total_steps:,} steps.")
        self.last_step = step

    def _check_state(self, step: int, directory: str) -> None:
        is_new = step == self.last_step > self._first_step
        _require(is_new, f"It saved a state of step {step:,}, which it has not just taken.")
        self._check_directory(directory, f"out/resume-{step}")

    def _check_directory(self, directory: str, expected: str) -> None:
        _require(directory == expected, f"It reported {directory} where {expected} belongs.")
        _require(directory not in self._directories, f"It reported {directory} twice.")
        self._directories.add(directory)

    def _check_taken(self, step: int) -> None:
        _require(step <= self.last_step, f"It reported step {step:,} before it took that step.")

    def _check_end(
        self,
        event: Stopped | Finished | Failed | OutOfSpace | MemoryShort | Unresumable | Made,
    ) -> None:
        self._is_over = True
        match event:
            case Stopped():
                is_last = event.step == self.last_step
                _require(is_last, f"It stopped at step {event.step:,}, which is not its last.")
            case Finished():
                self._check_taken(event.step)
            case Checked():
                is_either = (event.error is None) is (event.directory is not None)
                _require(is_either, "It must report its tokens, or why the job cannot train.")
            case Unresumable():
                was_given = event.step == self._first_step == self.last_step
                _require(was_given, f"It refused a state of step {event.step:,}, which it had not.")
            case _:
                return


def _require(is_true: bool, otherwise: str) -> None:  # noqa: FBT001 - reads like an assertion
    if not is_true:
        raise ProtocolError(otherwise)
