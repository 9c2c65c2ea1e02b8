"""`python -m worker.trackers`: keep the run of one job in one tracker, as standard input asks.

The libraries of trackers run here and not in the worker: whatever they do, the training goes on. An
error ends the process. The worker starts another one, which asks the tracker how far it got.
"""

import os
import sys
from collections.abc import Iterator
from typing import Protocol

from app.core.job.loss_log import StepMetrics
from app.core.machine.linux import die_with_parent
from app.core.redaction import redact
from worker.trackers.messages import (
    REQUESTS,
    Access,
    CloseRun,
    Done,
    Ending,
    Failed,
    Opened,
    OpenRun,
    Reply,
    SendRows,
)

_NICENESS = 19
"""The lowest priority: training needs the processor more."""

_MAX_DETAIL = 500


class Run(Protocol):
    """The run of a job in a tracker."""

    last_step: int
    """Last step that the run had when it was opened."""
    name: str
    """Name of the run, for people."""

    def send(self, rows: tuple[StepMetrics, ...]) -> None: ...

    def close(self, ending: Ending | None) -> None: ...


def main() -> None:
    die_with_parent(sys.stdout.fileno())
    os.nice(_NICENESS)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no reply
    for reply in _serve():
        replies.write(reply.model_dump_json() + "\n")
        replies.flush()
    os._exit(0)  # without waiting for threads of the libraries


def _serve() -> Iterator[Reply]:
    request = OpenRun.model_validate_json(sys.stdin.buffer.readline())
    try:
        run = _open(request)
        yield Opened(last_step=run.last_step, run=run.name)
        for line in sys.stdin.buffer:
            match REQUESTS.validate_json(line):
                case SendRows(rows=rows):
                    run.send(rows)
                case CloseRun(ending=ending):
                    run.close(ending)
            yield Done()
    except Exception as error:
        yield _explain(error, request.access)


def _open(request: OpenRun) -> Run:
    integration = request.integration
    if integration.mlflow is not None:
        from worker.trackers.mlflow_run import MlflowRun  # noqa: PLC0415 - an optional library

        return MlflowRun(request, integration.mlflow)
    if integration.wandb is not None:
        from worker.trackers.wandb_run import WandbRun  # noqa: PLC0415 - an optional library

        return WandbRun(request, integration.wandb)
    raise TypeError(integration.type)


def _explain(error: Exception, access: Access) -> Failed:
    reason = type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        reason = "the worker does not have its library"
    detail = redact(access.hide_in(" ".join(str(error).split())))
    return Failed(reason=reason, detail=detail[:_MAX_DETAIL])


if __name__ == "__main__":
    main()
