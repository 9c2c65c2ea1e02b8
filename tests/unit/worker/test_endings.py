"""How an attempt ends whose training process reports one thing and exits with another."""

import signal

import pytest

from app.core.db.repositories.leases import RequestedAction
from app.core.db.repositories.recovery import Crash
from app.core.job.child.training_events import Finished, JobError
from worker.attempt.endings import AttemptEnd, LastEvent, end_of_process
from worker.launch.launcher import Ending

FINISHED = Finished(step=5, trained_tokens=100)


def end(
    event: LastEvent | None,
    signal_number: int,
    *,
    log: str = "",
    was_asked: bool = False,
    was_killed: bool = False,
    is_over_time: bool = False,
) -> AttemptEnd:
    """How an attempt ends whose process died of a signal."""
    return end_of_process(
        event,
        Ending(-signal_number, was_asked=was_asked, was_killed=was_killed, log_tail=log),
        action=RequestedAction.CONTINUE,
        is_stopping=False,
        is_over_time=is_over_time,
        has_trained=True,
    )


def test_a_job_that_has_finished_keeps_its_result_if_it_is_told_to_stop_while_it_exits() -> None:
    ends = [
        end(FINISHED, signal.SIGTERM, was_asked=True, is_over_time=True),
        end(FINISHED, signal.SIGTERM, was_asked=True),
        end(FINISHED, signal.SIGKILL, was_asked=True, was_killed=True, is_over_time=True),
    ]

    assert ends == [FINISHED] * 3


def test_a_process_that_reports_its_end_and_then_crashes_has_crashed() -> None:
    assert isinstance(end(FINISHED, signal.SIGSEGV), Crash)


@pytest.mark.parametrize(
    "last_words",
    [
        "memory allocation of 80 bytes failed\nnote: run with `RUST_BACKTRACE=1` environment ...",
        "terminate called after throwing an instance of 'std::bad_alloc'",
    ],
)
def test_a_library_that_aborts_without_memory_is_no_crash(last_words: str) -> None:
    ended = end(None, signal.SIGABRT, log=last_words)

    assert isinstance(ended, JobError)
    assert ended.code == "out_of_memory"
    assert isinstance(end(None, signal.SIGABRT, log="Fatal Python error"), Crash)
