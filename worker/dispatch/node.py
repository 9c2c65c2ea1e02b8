"""What runs in the processes of a Ray node, with the environment that the node was started with.

Database, store and credentials come from that environment, never through Ray, whose dashboard and
logs show arguments.
"""

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta

from app.core.db.repositories.leases import Lease
from app.core.db.repositories.machines.placements import Placements, Ticket
from app.core.db.repositories.workers import WorkerRepository
from app.core.errors import LeaseLostError
from app.core.logging import log_context
from app.core.settings import read_settings
from worker.attempt.lease_keeper import Resources
from worker.dispatch.attempt_launcher import Place
from worker.dispatch.local_attempts import LocalAttempts, LocalHandle
from worker.launch.announcing import AnnouncingLauncher
from worker.launch.launcher import Signal
from worker.launch.supervision import LocalLauncher
from worker.membership.joining import joined
from worker.membership.machine import LOOK_INTERVAL_S, MachineWatch
from worker.presence import Presence, this_worker

logger = logging.getLogger(__name__)

_HERE = Place(threads=0, memory_bytes=0)
"""This process. Ray has reserved what the attempt takes."""

TRAINER = "worker.train"
"""Module that trains."""


class NodeAttempt:
    """Takes an attempt over from the dispatcher that has claimed it, and runs it in a thread.

    Args:
        ended: called from the thread when nothing is left to do.
    """

    def __init__(self, ticket: Ticket, ended: Callable[[], None], trainer: str) -> None:
        self._ticket = ticket
        self._ended = ended
        self._trainer = trainer
        self._is_stopping = threading.Event()
        self._running: tuple[LocalAttempts, LocalHandle] | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def save_and_stop(self) -> None:
        """Save the attempt's state and end it. Its job is queued again."""
        self._is_stopping.set()
        if self._running is not None:
            attempts, handle = self._running
            attempts.signal(handle, Signal.SAVE_AND_STOP)

    def _run(self) -> None:
        try:
            with (
                _opened(self._trainer) as (resources, watch),
                log_context(job_id=self._ticket.job_id, attempt=self._ticket.attempt),
            ):
                self._attempt(resources, watch)
        except LeaseLostError:
            logger.warning("the attempt was given to another process, or back to the queue")
        except Exception:  # its job is recovered once the lease has run out
            logger.exception("the attempt failed")
        finally:
            self._ended()

    def _attempt(self, resources: Resources, watch: MachineWatch) -> None:
        lease = self._take_over(resources)
        presence = Presence(
            this_worker(lease.worker_id),
            resources.database,
            clock=resources.clock,
            is_stopping=self._is_stopping.is_set,
            memory_bytes=None,  # of the node, whose row says what it has
            machine=resources.settings.resolved_machine,  # so that draining waits for this attempt
        )
        with presence.keep():
            attempts = LocalAttempts(resources)
            handle = attempts.launch(lease, _HERE)
            self._running = attempts, handle
            while handle.thread.is_alive():
                watch.look()
                if self._is_stopping.is_set() or watch.drained_s() is not None:
                    self.save_and_stop()
                handle.thread.join(LOOK_INTERVAL_S)

    def _take_over(self, resources: Resources) -> Lease:
        now = resources.clock()
        until = now + timedelta(seconds=resources.settings.lease_s)
        with resources.database.writing() as session:
            lease = Placements(session).take_over(self._ticket, until=until)
            worker, machine = this_worker(lease.worker_id), resources.settings.resolved_machine
            WorkerRepository(session).beat(worker, now=now, machine=machine)
        logger.info("job taken over")
        return lease


def start(ticket: str, ended: Callable[[], None], trainer: str = TRAINER) -> NodeAttempt:
    """Start the attempt that the dispatcher has written a ticket for. Returns at once."""
    return NodeAttempt(Ticket.model_validate_json(ticket), ended, trainer)


def describe() -> str:
    """What this node can do, as JSON of an `Ability`.

    Raises:
        OperatorError, SettingsError: the node cannot run jobs. The message says what to do.
    """
    with _opened(TRAINER) as (resources, _):
        if resources.ability is None:
            raise TypeError(resources)
        return resources.ability.model_dump_json()


@contextmanager
def _opened(trainer: str) -> Generator[tuple[Resources, MachineWatch]]:
    """What an attempt needs on this node, and what tells it of the machine."""
    with joined(read_settings(), may_move=False) as member:
        local = LocalLauncher(trainer, sandbox=member.sandbox)
        launcher = AnnouncingLauncher(local, member.sandbox.describe())
        yield member.resources(launcher, ability=member.ability), member.watch
