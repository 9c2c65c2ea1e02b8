"""The run of a job in MLflow, by MLflow's own client."""

import os
import time

from app.core.job.integrations import MlflowTarget
from app.core.job.loss_log import StepMetrics
from worker.trackers.messages import NOTHING_SENT, Ending, OpenRun

_JOB_TAG = "tunery.job_id"
"""Tag by which the run of a job is found again, so that no attempt makes a second one."""

_STEP_TAG = "tunery.last_step"
"""Tag with the last step that was sent. It is written together with the metrics."""

_STATUSES: dict[Ending, str] = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the worker itself tries again later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


class MlflowRun:
    """A run that is found by the id of its job, or made.

    Attributes:
        last_step: last step that the run had when it was opened.
        name: name of the run, for people.
    """

    def __init__(self, request: OpenRun, target: MlflowTarget) -> None:
        access = request.access
        os.environ |= _ENVIRONMENT
        if access.mlflow_tracking_token:
            os.environ["MLFLOW_TRACKING_TOKEN"] = access.mlflow_tracking_token
        from mlflow import MlflowClient  # noqa: PLC0415 - it reads the environment

        self._client = MlflowClient(tracking_uri=access.mlflow_tracking_uri)
        run = self._find(request, target) or self._make(request, target)
        self._run_id = run.info.run_id
        self.last_step = int(run.data.tags.get(_STEP_TAG, NOTHING_SENT))
        self.name = f"{run.info.run_name} in the experiment {target.experiment}"

    def send(self, rows: tuple[StepMetrics, ...]) -> None:
        """Send steps, and with them the number of the last one."""
        from mlflow.entities import Metric, RunTag  # noqa: PLC0415 - as above

        now_ms = time.time_ns() // 1_000_000
        metrics = [
            Metric(name, value, now_ms, row.step)
            for row in rows
            for name, value in row.measurements().items()
        ]
        tag = RunTag(_STEP_TAG, str(rows[-1].step))
        self._client.log_batch(self._run_id, metrics=metrics, tags=[tag])

    def close(self, ending: Ending | None) -> None:
        """End the run if its job has ended."""
        if ending is not None:
            self._client.set_terminated(self._run_id, _STATUSES[ending])

    def _find(self, request: OpenRun, target: MlflowTarget):
        experiment = self._client.get_experiment_by_name(target.experiment)
        if experiment is None:
            return None
        found = self._client.search_runs(
            [experiment.experiment_id],
            filter_string=f"tags.`{_JOB_TAG}` = '{request.job_id}'",
            max_results=1,
        )
        return found[0] if found else None

    def _make(self, request: OpenRun, target: MlflowTarget):
        from mlflow.entities import Param  # noqa: PLC0415 - as above

        client = self._client
        experiment = client.get_experiment_by_name(target.experiment)
        experiment_id = (
            experiment.experiment_id if experiment else client.create_experiment(target.experiment)
        )
        name = target.name or request.job_id
        run = client.create_run(experiment_id, run_name=name, tags={_JOB_TAG: request.job_id})
        parameters = [Param(name, str(value)) for name, value in request.parameters.items()]
        client.log_batch(run.info.run_id, params=parameters)
        return run
