"""Runs attempts in threads of this process."""

import threading
from contextvars import copy_context
from dataclasses import dataclass, field

from app.core.clock import steady_s
from app.core.db.repositories.leases import Lease
from worker.attempt.attempt import Attempt
from worker.attempt.lease_keeper import Resources
from worker.dispatch.attempt_launcher import AlreadyLaunchedError, Health, Place
from worker.launch.launcher import Signal
from worker.loop import SAVING_SHARE


@dataclass(slots=True)
class LocalHandle:
    """An attempt in a thread of this process."""

    thread: threading.Thread
    stop_at_s: float | None = field(default=None)
    """When it must have ended, by `steady_s`. None while it may go on."""


class LocalAttempts:
    """An `AttemptLauncher` for this machine.

    Args:
        resources: what all attempts share.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._launched: set[tuple[str, int]] = set()

    def launch(self, lease: Lease, place: Place) -> LocalHandle:
        """Start a thread. Whoever launches has made sure that there is room."""
        del place
        name = (lease.job_id, lease.attempt)
        if name in self._launched:
            raise AlreadyLaunchedError(f"{lease.job_id}, attempt {lease.attempt}")
        self._launched.add(name)
        attempt = Attempt(lease, self._resources, stop_at_s=lambda: handle.stop_at_s)
        thread = threading.Thread(target=copy_context().run, args=(attempt.run,), daemon=True)
        handle = LocalHandle(thread)
        thread.start()
        return handle

    def signal(self, handle: LocalHandle, signal: Signal) -> None:
        match signal:
            case Signal.CONTINUE:
                handle.stop_at_s = None
            case Signal.SAVE_AND_STOP:
                grace_s = self._resources.settings.stop_grace_s * SAVING_SHARE
                handle.stop_at_s = handle.stop_at_s or steady_s() + grace_s
            case Signal.KILL:
                handle.stop_at_s = steady_s()

    def check(self, handle: LocalHandle) -> Health:
        return Health.RUNNING if handle.thread.is_alive() else Health.GONE

    def release(self, handle: LocalHandle) -> None:
        if handle.thread.is_alive():
            self.signal(handle, Signal.KILL)
        handle.thread.join()
