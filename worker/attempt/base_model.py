"""Brings the base model of a job to this machine, if it is not there.

It comes from the store, or else from the model hub at the commit that the catalogue pins. Meanwhile
the lease is renewed, and a cancelled, paused or lost job ends the fetch.
"""

import logging
import math
import os
import subprocess
import time
from collections.abc import Callable

from app.core.base_models import HubSource
from app.core.clock import steady_s
from app.core.db.repositories.base_models.stored import StoredModels
from app.core.db.session import Session
from app.core.job.child.training_events import Noted
from app.core.machine.subprocesses import python_module, with_import_path
from app.core.settings.store_urls import is_shared
from app.core.stored_models.fetching import ModelUnavailableError, Progress, fetch_model
from app.core.stored_models.reach import forget_failure, note_failure
from worker.attempt.lease_keeper import LeaseKeeper, Resources

logger = logging.getLogger(__name__)

TELL_INTERVAL_S = 30.0
"""Minimum interval between two events on the progress of a fetch, in seconds."""

_LOOK_S = 0.2


def bring_base_model(
    keeper: LeaseKeeper,
    resources: Resources,
    note: Callable[[Session, Noted], None] = lambda _session, _event: None,
    *,
    needs_weights: bool = True,
) -> None:
    """Make sure that the base model of a lease is on this machine.

    Without a shared store, this does nothing, and a missing base model is noticed later.

    Args:
        keeper: keeps the lease.
        resources: what all attempts of the worker share.
        note: adds an event that tells the user of the fetch.
        needs_weights: whether an outline without weights is not enough.

    Raises:
        ModelUnavailableError: it cannot be fetched now.
        NotWantedError: somebody stops the fetch. What has arrived stays for the next one.
        LeaseLostError: the lease is lost.
    """

    def tell(message: str) -> None:
        logger.info("%s", message)
        keeper.transact(lambda session: note(session, Noted(message=message)))

    lease, catalogue = keeper.lease, resources.catalogue
    model_id, sha256 = catalogue.resolve(lease.base_model), lease.base_model_sha256
    if catalogue.find_version(model_id, sha256, needs_weights=needs_weights) is not None:
        return
    copy = keeper.read(lambda session: StoredModels(session).find(model_id, sha256))
    try:
        if copy is None:
            _bring_from_hub(model_id, sha256, keeper, resources, tell)
        else:
            watch = _Watch(model_id, keeper, tell if needs_weights else logger.info)
            fetch_model(
                *(copy, catalogue, resources.store, watch),
                spare_bytes=resources.settings.min_free_bytes,
                needs_weights=needs_weights,
            )
            watch.tell_end()
    except ModelUnavailableError:
        note_failure(catalogue, model_id)
        raise
    forget_failure(catalogue, model_id)


def _bring_from_hub(
    model_id: str,
    sha256: str | None,
    keeper: LeaseKeeper,
    resources: Resources,
    tell: Callable[[str], None],
) -> None:
    """Install a base model at its pinned commit, in a process that may load the libraries for it.

    Raises:
        ModelUnavailableError: it has no pinned commit, cannot be installed, or has other files.
    """
    settings, catalogue = resources.settings, resources.catalogue
    if not is_shared(settings.store_url):
        return
    entry = catalogue.find(model_id)
    is_pinned = entry is not None and isinstance(entry.source, HubSource) and entry.source.revision
    if is_pinned and catalogue.find_installed(model_id) is None:
        tell(f"Fetching base model {model_id} from the model hub to the worker's machine")
        command = python_module("worker.commands", "install", model_id)
        environment = with_import_path(os.environ) | {"TUNERY_DATA_DIR": str(settings.data_dir)}
        with subprocess.Popen(command, env=environment) as process:  # noqa: S603
            try:
                while process.poll() is None:
                    keeper.require_wanted()
                    time.sleep(_LOOK_S)
            finally:
                process.kill()
        if catalogue.find_version(model_id, sha256) is not None:
            return
    raise ModelUnavailableError(
        f"The base model {model_id}, as it was when the job was created, is neither on the "
        "worker's machine nor in the store. Run `tunery models install "
        f"{model_id}` on a machine that has it; the job then starts by itself."
    )


class _Watch:
    """Tells of a fetch, and stops it when its job does."""

    def __init__(self, model_id: str, keeper: LeaseKeeper, tell: Callable[[str], None]) -> None:
        self._model_id = model_id
        self._keeper = keeper
        self._tell = tell
        self._began_s = steady_s()
        self._told_s = -math.inf
        self._has_waited = False

    def __call__(self, progress: Progress) -> None:
        self._keeper.require_wanted()
        if steady_s() - self._told_s < TELL_INTERVAL_S and self._has_waited == progress.is_waiting:
            return
        is_first, self._told_s = self._told_s == -math.inf, steady_s()
        self._has_waited = progress.is_waiting
        name, total = f"base model {self._model_id}", f"{progress.total_bytes / 1e9:.2f} GB"
        if progress.is_waiting:
            message = f"Waiting for {name}, which another worker of the machine fetches"
        elif is_first:
            message = f"Fetching {name} from the store to the worker's machine: {total}"
        else:
            message = f"Fetching {name}: {progress.bytes / 1e9:.2f} of {total} are there"
        self._tell(message)

    def tell_end(self) -> None:
        """Tell that the base model is here, if the user was told of the fetch."""
        if self._told_s != -math.inf:
            seconds = steady_s() - self._began_s
            self._tell(
                f"Base model {self._model_id} is on the worker's machine after {seconds:.0f} s"
            )
