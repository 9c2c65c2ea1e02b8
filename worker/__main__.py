"""`python -m worker`: train what is in the queue, until SIGTERM or Ctrl-C."""

import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence

from app.core.base_models import DEFAULT_MODEL_ID, load_catalogue
from app.core.clock import utc_now
from app.core.command_line.exit_codes import EXPECTED, report
from app.core.compute_choices import warn_of_sampler
from app.core.db.migrate import prepare
from app.core.db.session import Database
from app.core.ids import IdPrefix, new_id
from app.core.logging import configure_logging
from app.core.machine.linux import refuse_tracing
from app.core.machine.signals import listen_for_stops
from app.core.machine.subprocesses import python_module, with_import_path
from app.core.occupancy import make_data_dir, occupied
from app.core.settings import Settings, read_settings
from app.core.signing.keys import SigningKeys
from app.core.storage.local import LocalBlobStore
from app.core.storage.privacy import close_data_directory, keep_new_files_private
from worker.attempt.lease_keeper import Resources
from worker.beside import BesideTraining
from worker.data_check.loop import DataChecker
from worker.janitor import Janitor
from worker.launch.announcing import AnnouncingLauncher
from worker.launch.beside import BesideLauncher
from worker.launch.locks import TrainingSlots
from worker.launch.sandbox.sandbox import Sandbox, make_sandbox
from worker.launch.supervision import LocalLauncher
from worker.launch.warm import WarmLauncher
from worker.loop import Worker
from worker.presence import Pace
from worker.tasks.loop import TaskDoer

logger = logging.getLogger("worker")

CHECK_INTERVAL_S = 0.5
"""Interval at which the main thread checks whether all workers have ended, in seconds."""


def main(trainer: str = "worker.train") -> int:
    """Run workers until told to stop.

    Args:
        trainer: the module that a child runs.
    """
    keep_new_files_private()
    try:
        settings = read_settings()
        configure_logging(settings)
        make_data_dir(settings)
        close_data_directory(settings)
        with occupied(settings):
            _serve(settings, trainer)
    except EXPECTED as error:
        return report("worker", error)
    logger.info("worker stopped")
    return 0


def _serve(settings: Settings, trainer: str) -> None:
    refuse_tracing()  # this process knows the database's password
    database = Database(settings.resolved_database_url, kept_connections=settings.concurrency)
    prepare(database)
    catalogue = load_catalogue(settings.data_dir)
    if settings.install_default_model and catalogue.find_installed(DEFAULT_MODEL_ID) is None:
        _install_default_model(settings)
    SigningKeys(settings.signing_dir).ensure()
    store = LocalBlobStore(settings.blobs_dir)
    sandbox = make_sandbox(
        settings.sandbox,
        data_dir=settings.data_dir,
        locks_dir=settings.workers_dir,
        threads=settings.resolved_training_threads,
    )
    pace = Pace()
    workers: list[Worker] = []
    warm: list[WarmLauncher] = []
    worker_ids = [new_id(IdPrefix.WORKER) for _ in range(settings.concurrency)]
    for worker_id in worker_ids:
        launcher = _make_launcher(settings, trainer, sandbox)
        if isinstance(launcher, WarmLauncher):
            warm.append(launcher)
        announcing = AnnouncingLauncher(launcher, sandbox.describe())
        resources = Resources(settings, database, store, catalogue, announcing, pace=pace)
        janitor = Janitor(settings, database=database, store=store, clock=utc_now, pace=pace)
        workers.append(Worker(worker_id, resources, janitor.run_if_due))
    is_busy = TrainingSlots(settings.workers_dir, settings.concurrency).is_any_taken
    cold = LocalLauncher(trainer, sandbox=sandbox, is_busy=is_busy)
    beside = BesideLauncher(warm, cold, is_busy)
    resources = Resources(settings, database, store, catalogue, beside, pace=pace)
    checker = BesideTraining(DataChecker(worker_ids[0], resources, beside).check_any, pace)
    # In a thread of its own: no check waits for an export, which may take hours beside training.
    tasks = BesideTraining(TaskDoer(worker_ids[0], resources, beside).do_next, pace)
    if (warning := warn_of_sampler(settings)) is not None:
        logger.warning(warning)
    logger.info("worker ready", extra={"concurrency": len(workers)})
    _run([*workers, checker, tasks])
    database.dispose()


def _make_launcher(
    settings: Settings, trainer: str, sandbox: Sandbox
) -> WarmLauncher | LocalLauncher:
    """Make the launcher of one worker. Its fork server ends with the worker's thread."""
    if settings.warm_s and sys.platform == "linux":
        return WarmLauncher(trainer, idle_s=settings.warm_s, sandbox=sandbox)
    return LocalLauncher(trainer, sandbox=sandbox)


def _run(workers: Sequence[Worker | BesideTraining]) -> None:
    """Run each of them in a thread of its own until a signal comes. A second one stops at once."""
    signals = listen_for_stops()
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for at_once in (False, True):
        while any(thread.is_alive() for thread in threads):
            if select.select([signals], [], [], CHECK_INTERVAL_S)[0]:
                os.read(signals, 1)
                for worker in workers:
                    worker.stop(at_once=at_once)
                break
    for thread in threads:
        thread.join()


def _install_default_model(settings: Settings) -> None:
    """Install it in another process, because this one never loads the libraries for the conversion.

    A failure is only logged: other base models may be installed, and the API lists them.
    """
    logger.info("installing the base model", extra={"model": DEFAULT_MODEL_ID})
    command = python_module("worker.commands", "install", DEFAULT_MODEL_ID)
    environment = with_import_path(os.environ) | {"TUNERY_DATA_DIR": str(settings.data_dir)}
    if subprocess.run(command, env=environment, check=False).returncode != 0:  # noqa: S603
        logger.error("the base model could not be installed", extra={"model": DEFAULT_MODEL_ID})


if __name__ == "__main__":
    sys.exit(main())
