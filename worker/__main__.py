"""`python -m worker`: train what is in the queue, until SIGTERM or Ctrl-C."""

import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from app.core.base_models import DEFAULT_MODEL_ID
from app.core.command_line.exit_codes import EXPECTED, report
from app.core.compute_choices import warn_of_sampler
from app.core.ids import IdPrefix, new_id
from app.core.machine.signals import listen_for_stops
from app.core.machine.subprocesses import python_module, with_import_path
from app.core.settings import Settings, read_settings
from worker.attempt.lease_keeper import Resources
from worker.beside import BesideTraining
from worker.data_check.loop import DataChecker
from worker.dispatch.connection import RayConnection
from worker.dispatch.dispatcher import Dispatcher
from worker.janitor import Janitor
from worker.launch.announcing import AnnouncingLauncher
from worker.launch.beside import BesideLauncher
from worker.launch.locks import TrainingSlots
from worker.launch.sandbox.sandbox import Sandbox
from worker.launch.supervision import LocalLauncher
from worker.launch.warm import WarmLauncher
from worker.loop import Worker
from worker.membership.joining import Member, joined
from worker.membership.machine import LOOK_INTERVAL_S
from worker.membership.move_watch import MoveWatch
from worker.presence import repeating
from worker.tasks.loop import TaskDoer

logger = logging.getLogger("worker")

CHECK_INTERVAL_S = 0.5
"""Interval at which the main thread checks whether all workers have ended, in seconds."""


def main(trainer: str = "worker.train", node_module: str = "worker.dispatch.node") -> int:
    """Run workers until told to stop.

    Args:
        trainer: the module that a child runs.
        node_module: the module that runs attempts on the nodes of a Ray cluster.
    """
    try:
        settings = read_settings()
        with joined(settings, may_move=True, kept_connections=settings.concurrency) as member:
            _serve(member, trainer, node_module)
    except EXPECTED as error:
        return report("worker", error)
    logger.info("worker stopped")
    return 0


def _serve(member: Member, trainer: str, node_module: str) -> None:
    settings, watch, pace = member.settings, member.watch, member.pace
    installed = member.catalogue.find_installed(DEFAULT_MODEL_ID)
    if settings.install_default_model and installed is None:
        _install_default_model(settings)
    trainers: list[Worker] = []
    warm: list[WarmLauncher] = []
    worker_ids = [new_id(IdPrefix.WORKER) for _ in range(settings.concurrency)]
    for worker_id in worker_ids if settings.launcher == "local" else ():
        launcher = _make_launcher(settings, trainer, member.sandbox)
        if isinstance(launcher, WarmLauncher):
            warm.append(launcher)
        announcing = AnnouncingLauncher(launcher, member.sandbox.describe())
        resources = member.resources(announcing, ability=member.ability)
        trainers.append(Worker(worker_id, resources, _chores(resources), watch.drained_s))
    workers: list[Worker | Dispatcher | BesideTraining] = [*trainers]
    is_busy = TrainingSlots(settings.workers_dir, settings.concurrency).is_any_taken
    cold = LocalLauncher(trainer, sandbox=member.sandbox, is_busy=is_busy)
    beside = BesideLauncher(warm, cold, is_busy)
    resources = member.resources(beside)
    if settings.launcher == "ray":
        cluster = RayConnection(settings.ray_address, node_module)
        chores = _chores(resources)
        # In a thread of its own, because a lost head keeps a dispatcher waiting.
        chores_beside = BesideTraining(lambda _: chores(), pace=pace)
        workers = [Dispatcher(worker_ids[0], resources, cluster), chores_beside]
    checker = DataChecker(
        worker_ids[0],
        resources,
        beside,
        are_others_at_it=lambda: any(one.is_checking() for one in trainers),
    )
    # In a thread of its own: no check waits for an export, which may take hours beside training.
    tasks = TaskDoer(worker_ids[0], resources, beside)
    for do_next in (checker.check_any, tasks.do_next):
        workers.append(BesideTraining(do_next, watch.drained_s, pace))
    if (warning := warn_of_sampler(settings)) is not None:
        logger.warning(warning)
    logger.info("worker ready", extra={"concurrency": settings.concurrency})
    moves = MoveWatch(member.connection)
    with (
        repeating(watch.look, interval_s=lambda: pace.always_s(LOOK_INTERVAL_S, most_s=10.0)),
        repeating(moves.look, interval_s=lambda: pace.always_s(moves.INTERVAL_S, most_s=10.0)),
    ):
        _run(workers)
    moves.require_no_move()


def _chores(resources: Resources) -> Callable[[], None]:
    """What a worker looks after between jobs."""
    janitor = Janitor(
        resources.settings,
        database=resources.database,
        store=resources.store,
        clock=resources.clock,
        pace=resources.pace,
    )
    return janitor.run_if_due


def _make_launcher(
    settings: Settings, trainer: str, sandbox: Sandbox
) -> WarmLauncher | LocalLauncher:
    """Make the launcher of one worker. Its fork server ends with the worker's thread."""
    if settings.warm_s and sys.platform == "linux":
        return WarmLauncher(trainer, idle_s=settings.warm_s, sandbox=sandbox)
    return LocalLauncher(trainer, sandbox=sandbox)


def _run(workers: Sequence[Worker | Dispatcher | BesideTraining]) -> None:
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
