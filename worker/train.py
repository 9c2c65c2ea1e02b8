"""The training child: `python -m worker.train DIR`. Run by hand, it repeats a job directory.

Standard output carries only the events of `app.core.job.child.training_events`, one JSON object a
line. Whatever libraries print goes to standard error. The exit code is 0 after `Finished`,
`Failed`, `Stopped`, `OutOfSpace`, `MemoryShort`, `Unresumable`, `Checked`, `Exported` or
`Reported`, and 1 with a traceback after an unexpected error. SIGTERM asks a child that trains to
save its state and stop.

`worker.launch.fork_server` imports this module as well: it calls `preload` and `prepare`, then
forks children into `main`.
"""

import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TextIO

from app.core.job.child.job_spec import JOB_SPEC_NAME, PROJECT_CACHE_NAME, JobSpec, TaskName
from app.core.job.child.training_events import Started, TrainingEvent
from app.core.machine.linux import die_with_parent


def main(directory: Path) -> None:
    """Do the task of the job in `directory`, and write the events to standard output."""
    die_with_parent(sys.stdout.fileno())  # when the worker is killed, nobody trains on
    with _take_standard_output() as events:
        _set_environment()
        # Compiled layers are kept for other jobs of the project that train as the same user.
        cache = directory / PROJECT_CACHE_NAME / str(os.geteuid())
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "compiled")
        os.chdir(directory)
        # Only now: what an import prints must not be among the events.
        from worker.training.check import check_data  # noqa: PLC0415
        from worker.training.export import export_adapter  # noqa: PLC0415
        from worker.training.preloaded_model import preloaded_model  # noqa: PLC0415
        from worker.training.recipe import run_job  # noqa: PLC0415

        stop_request = _StopRequest()

        def report(event: TrainingEvent) -> None:
            if isinstance(event, Started):
                stop_request.listen()
            events.write(event.model_dump_json() + "\n")
            events.flush()

        match _task_of(directory):
            case "check_data":
                check_data(directory, report, loader=preloaded_model)
            case "train":
                run_job(directory, report, lambda: stop_request.has_come, loader=preloaded_model)
            case "report":
                # Nobody else needs these libraries.
                from worker.scoring.report import report_answers  # noqa: PLC0415

                report_answers(directory, report)
            case _:
                export_adapter(directory, report)


def preload() -> None:
    """Load the libraries that every job needs. Copies of this process will call `main`.

    This starts no thread, because the copies would lack it.
    """
    _set_environment()
    for module in ("check", "export", "recipe"):
        importlib.import_module(f"worker.training.{module}")


def prepare(directory: Path) -> None:
    """Load what `main` needs for the job in `directory`; for the rest, see `preload`.

    The base model of another job stays loaded while anything else is done.
    """
    preload()
    from worker.training.preloaded_model import preloaded_model  # noqa: PLC0415

    if _task_of(directory) == "train":
        preloaded_model.load(directory)


def _task_of(directory: Path) -> TaskName:
    return JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes()).task


class _StopRequest:
    """Notes a SIGTERM once there is progress to lose. Before that, it ends the process at once.

    Attributes:
        has_come: not a `threading.Event`, because the signal may find its lock taken.
    """

    def __init__(self) -> None:
        self.has_come = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._take)

    def _take(self, signal_number: int, frame: FrameType | None) -> None:
        del signal_number, frame
        self.has_come = True


def _take_standard_output() -> TextIO:
    """Keep standard output for events alone: whatever else is printed goes to standard error."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events


def _set_environment() -> None:
    """Set what libraries read when they are imported."""
    # Reach for no model hub, and write nowhere but in the job's directory, where `main` goes: this
    # path is read only once, by a process that may not know yet which directory that will be.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = "cache"
    # Processes to compile in would outlive this one.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # rows are tokenized one at a time
    # A thread that waits for the others spins for some microseconds, then sleeps. Sleeping at once
    # costs a quarter of the speed of a quiet machine. Spinning for as long as is usual takes the
    # processor from the very thread it waits for as soon as anything else runs: a step was 5 times
    # slower.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # Whether there is a GPU is asked without a touch to it: a process that has touched one cannot
    # be forked. With this much memory of its own for products, a GPU's sums are the same each time.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The threads of torch are enough; numpy and pyarrow would start some when they are imported.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
