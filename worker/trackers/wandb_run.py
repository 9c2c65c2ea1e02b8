"""The run of a job in Weights & Biases, by its own library."""

from app.core.job.integrations import WandbTarget
from app.core.job.loss_log import StepMetrics
from worker.trackers.messages import Ending, OpenRun

_INIT_TIMEOUT_S = 30.0

_EXIT_CODES: dict[Ending, int] = {"succeeded": 0, "failed": 1, "cancelled": 255}


class WandbRun:
    """A run that has the id of its job, so that no attempt makes a second one.

    The library keeps what it is given and sends it in the background. So a step counts as sent
    before the server has it, and what is missing shows when the run is closed or opened again.

    Attributes:
        last_step: last step that the run had when it was opened.
        name: name of the run, for people.
    """

    def __init__(self, request: OpenRun, target: WandbTarget) -> None:
        import wandb  # noqa: PLC0415 - an optional library

        settings = wandb.Settings(
            api_key=request.access.wandb_api_key,
            base_url=request.access.wandb_base_url,
            console="off",
            disable_code=True,
            disable_git=True,
            host="tunery",  # nothing of the operator's machine is the user's
            init_timeout=_INIT_TIMEOUT_S,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=target.project,
            entity=target.entity,
            name=target.name or request.job_id,
            tags=target.tags,
            id=request.job_id,
            resume="allow",
            config=request.parameters,
            settings=settings,
        )
        self.last_step = self._run.step - 1
        self.name = f"{self._run.name} in the project {target.project}"

    def send(self, rows: tuple[StepMetrics, ...]) -> None:
        """Give steps to the library."""
        for row in rows:
            self._run.log(row.measurements(), step=row.step, commit=True)

    def close(self, ending: Ending | None) -> None:
        """Wait until the server has everything, and end the run if its job has ended."""
        if ending is None:
            self._run.mark_preempting()
        self._run.finish(exit_code=1 if ending is None else _EXIT_CODES[ending])
