"""What a child may report, and in which order."""

from collections.abc import Sequence

import pytest

from app.core.job.child.training_events import (
    Checked,
    Checkpointed,
    Failed,
    Finished,
    JobError,
    MemoryShort,
    Noted,
    OutOfSpace,
    Planned,
    ProtocolError,
    Saved,
    Started,
    Stepped,
    Stopped,
    TrainingEvent,
    Unresumable,
)
from tests.builders import build_base_metrics, build_data_report, build_metrics
from worker.attempt.report_check import MAX_NOTES, ReportCheck

TOTAL = 9


def stepped(step: int) -> Stepped:
    return Stepped(metrics=build_metrics(step))


BASE = Stepped(metrics=build_base_metrics())


def checkpointed(step: int, *, state: int | None = None, directory: str = "") -> Checkpointed:
    return Checkpointed(
        step=step,
        directory=directory or f"out/step-{step}",
        state=None if state is None else f"out/resume-{state}",
    )


def saved(step: int, directory: str = "") -> Saved:
    return Saved(step=step, directory=directory or f"out/resume-{step}")


def check(*events: TrainingEvent, after_step: int = 0) -> None:
    reports = ReportCheck()
    reports.begin(after_step=after_step, total_steps=TOTAL)
    for event in events:
        reports.check(event)


NOTE = Noted(message="hello")
DONE = Finished(step=1, trained_tokens=1)
CHECKED = Checked(report=build_data_report(), directory="out/tokens")
REFUSED = JobError(code="row_too_long", message="Too long.")


@pytest.mark.parametrize(
    ("after_step", "events"),
    [
        (0, [NOTE, Planned(total_steps=3), NOTE, Started(total_steps=3), stepped(1), DONE]),
        (0, [stepped(1), checkpointed(1, state=1), stepped(2), saved(2), Stopped(step=2)]),
        (4, [Started(total_steps=9), stepped(5), checkpointed(2), Finished(step=2,
             trained_tokens=1)]),
        (4, [Unresumable(step=4, message="damaged")]),
        (4, [Started(total_steps=9), Stopped(step=4)]),
        (0, [Failed(code="no_chat_template", message="bad")]),
        (0, [stepped(1), OutOfSpace(message="full")]),
        (0, [MemoryShort(message="full", device="cpu", needed_bytes=9, total_bytes=8)]),
        (0, [NOTE] * MAX_NOTES),
        (0, [BASE, stepped(1), DONE]),
        (0, [BASE, Stopped(step=0)]),
    ],
    ids=["whole", "saved", "best", "unresumable", "asked", "failed", "full", "memory", "notes",
         "base", "base-only"],
)  # fmt: skip
def test_what_a_training_does_is_accepted(after_step: int, events: Sequence[TrainingEvent]) -> None:
    check(*events, after_step=after_step)


@pytest.mark.parametrize(
    ("after_step", "events"),
    [
        (0, [stepped(2)]),
        (0, [stepped(1), stepped(1)]),
        (0, [stepped(1), stepped(3)]),
        (4, [stepped(4)]),
        (4, [BASE]),
        (0, [BASE, BASE]),
        (0, [stepped(1), BASE]),
        (0, [Planned(total_steps=TOTAL + 1)]),
        (0, [Planned(total_steps=3), Started(total_steps=4)]),
        (0, [Started(total_steps=3), Started(total_steps=3)]),
        (0, [Started(total_steps=1), stepped(1), stepped(2)]),
        (0, [stepped(step) for step in range(1, TOTAL + 2)]),
        (0, [checkpointed(1)]),
        (0, [stepped(1), checkpointed(1), checkpointed(1)]),
        (0, [stepped(1), checkpointed(1, directory="out/step-2")]),
        (0, [stepped(1), stepped(2), checkpointed(2, state=1)]),
        (0, [stepped(1), stepped(2), saved(1)]),
        (0, [stepped(1), saved(1), saved(1)]),
        (0, [stepped(1), checkpointed(1, state=1), saved(1)]),
        (4, [saved(4)]),
        (0, [stepped(1), saved(1, "out/resume-2")]),
        (0, [Finished(step=1, trained_tokens=1)]),
        (0, [stepped(1), DONE, NOTE]),
        (0, [stepped(1), DONE, DONE]),
        (0, [stepped(1), Stopped(step=0)]),
        (0, [Unresumable(step=1, message="damaged")]),
        (4, [Unresumable(step=3, message="damaged")]),
        (4, [stepped(5), Unresumable(step=4, message="damaged")]),
        (0, [NOTE] * (MAX_NOTES + 1)),
        (0, [CHECKED]),
    ],
)
def test_anything_else_is_refused_at_its_last_event(
    after_step: int, events: Sequence[TrainingEvent]
) -> None:
    check(*events[:-1], after_step=after_step)

    with pytest.raises(ProtocolError):
        check(*events, after_step=after_step)


def check_in_check(*events: TrainingEvent) -> None:
    reports = ReportCheck()
    reports.begin_check()
    for event in events:
        reports.check(event)


@pytest.mark.parametrize(
    "events",
    [
        [NOTE, NOTE, CHECKED],
        [Checked(report=build_data_report(), error=REFUSED)],
        [NOTE, Failed(code="tokenizer_unsupported", message="bad")],
        [OutOfSpace(message="full")],
    ],
    ids=["checked", "refused", "failed", "full"],
)
def test_what_a_check_of_data_does_is_accepted(events: Sequence[TrainingEvent]) -> None:
    check_in_check(*events)


@pytest.mark.parametrize(
    "events",
    [
        [Planned(total_steps=3)],
        [stepped(1)],
        [Stopped(step=0)],
        [DONE],
        [CHECKED, NOTE],
        [CHECKED, CHECKED],
        [Checked(report=build_data_report())],
        [Checked(report=build_data_report(), error=REFUSED, directory="out/tokens")],
        [NOTE] * (MAX_NOTES + 1),
    ],
)
def test_a_check_of_data_reports_nothing_else(events: Sequence[TrainingEvent]) -> None:
    check_in_check(*events[:-1])

    with pytest.raises(ProtocolError):
        check_in_check(*events)
