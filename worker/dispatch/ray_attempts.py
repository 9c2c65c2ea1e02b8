"""Runs attempts in actors of a Ray cluster."""

import logging
from dataclasses import dataclass

from app.core.db.repositories.leases import Lease
from app.core.db.repositories.machines.placements import Ticket
from worker.dispatch.attempt_launcher import AlreadyLaunchedError, Health, Place
from worker.dispatch.connection import RayAwayError, RayConnection
from worker.launch.launcher import Signal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RayHandle:
    """An attempt that was given to Ray."""

    name: str
    actor_id: str
    session: str
    """The cluster that has it. Another head knows nothing of its actors."""


class RayAttempts:
    """An `AttemptLauncher` for a Ray cluster."""

    def __init__(self, connection: RayConnection) -> None:
        self._connection = connection

    def launch(self, lease: Lease, place: Place) -> RayHandle:
        """Start an actor on the node of `place`.

        Raises:
            AlreadyLaunchedError: the cluster has an actor for this attempt.
            RayAwayError: Ray has not confirmed it. There may be an actor nevertheless.
        """
        name = f"attempt-{lease.job_id}-{lease.attempt}"
        actor_id = self._connection.ask(
            "launch",
            name=name,
            node=place.node,
            ticket=Ticket.of(lease).model_dump_json(),
            cpus=place.threads,
            memory_bytes=place.memory_bytes,
            gpus=place.gpus,
        )
        if actor_id is None:
            raise AlreadyLaunchedError(name)
        return RayHandle(name, actor_id, self._connection.session)

    def signal(self, handle: RayHandle, signal: Signal) -> None:
        """As `AttemptLauncher.signal`. If Ray is away, nothing happens: the lease decides."""
        match signal:
            case Signal.CONTINUE:
                return
            case Signal.SAVE_AND_STOP:
                self._tell("save_and_stop", handle)
            case Signal.KILL:
                self._tell("kill", handle)

    def check(self, handle: RayHandle) -> Health:
        try:
            found = self._connection.ask("check", actor_id=handle.actor_id)
        except RayAwayError:
            return Health.UNKNOWN
        if self._connection.session != handle.session or not found["state"]:
            return Health.UNKNOWN
        if found["state"] != "DEAD":
            return Health.RUNNING
        logger.info("attempt gone: %s", found["why"], extra={"actor": handle.name})
        return Health.GONE

    def release(self, handle: RayHandle) -> None:
        self._tell("kill", handle)

    def _tell(self, call: str, handle: RayHandle) -> None:
        try:
            self._connection.ask(call, name=handle.name)
        except RayAwayError as error:
            logger.warning("%s was not told to Ray: %s", call, error, extra={"actor": handle.name})
