"""The directory of one try at a task: base model, adapter, data, and what becomes of them."""

import errno
import os
from pathlib import Path

from app.core import manifest
from app.core.base_models import Catalogue
from app.core.compute_choices import compute_choices, training_memory
from app.core.db.repositories.tasks.leases import ClaimedTask
from app.core.db.tables import Checkpoint, File
from app.core.disk import has_room
from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME, export_task
from app.core.job.child.job_spec import TRAINING_DATA_NAME, VALIDATION_DATA_NAME, JobSpec
from app.core.job.scores.report import REPORT, REQUEST_NAME, ReportRequest
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from worker.job_directory import JobDirectory
from worker.stored_file import copy_checked, copy_data

_COPIES = 2
"""An export is in the directory and in the blob store until the directory is removed."""

_FROM_CHECKPOINT = ("training_file", "validation_file")
"""What the manifest of the checkpoint says of its data."""


class TaskDirectory(JobDirectory):
    """The directory, with the attributes of `JobDirectory`.

    Attributes:
        step: step of the checkpoint, set by `fill_with`.
    """

    def __init__(self, root: Path, task: ClaimedTask) -> None:
        name = "report" if task.kind == REPORT else export_task(task.variant)
        super().__init__(root, task.lease, name, task_id=task.id)
        self.step: int
        self._request = task.request
        self._max_artifact_bytes = task.bytes

    def fill_with(
        self,
        checkpoint: Checkpoint,
        data: File | None,
        store: BlobStore,
        catalogue: Catalogue,
        settings: Settings,
    ) -> None:
        """Make the directory, with the checkpoint and a link to its base model.

        Args:
            checkpoint: what the task is on.
            data: file with the validation data, for a report.
            store: has the files.
            catalogue: has the base model.
            settings: the settings of the service.

        Raises:
            BaseModelMissingError: the base model is not installed.
            BaseModelChangedError: the base model has other weights than when the job was created.
            RefusedModelError: a file of the base model was changed, or may not be used.
            BlobNotFoundError: the store has lost a file of the checkpoint or the data.
            ManifestError: the checkpoint has changed.
            DataDamagedError: the validation data have changed.
            OSError: there is no room for the export.
        """
        if not has_room(settings, _COPIES * self._max_artifact_bytes):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        base_model, model = self._find_base_model(catalogue)
        self._make()
        self._link_shared(model, settings)
        adapter = self.directory / ADAPTER_DIRECTORY_NAME
        adapter.mkdir()
        for file in checkpoint.files:
            copy_checked(store, file.blob_key, file.sha256, adapter / file.filename)
        if self._request is not None:
            self._put_request(ReportRequest.model_validate(self._request), data, store)
        promised = manifest.verify(adapter)
        self.step = promised.step
        spec = {
            "task": self._task,
            "job_id": self._lease.job_id,
            "attempt": self._lease.attempt,
            "fine_tuned_model": self._lease.fine_tuned_model,
            "config": self._lease.config,
            "base_model": base_model,
            "threads": 1,
            "memory_bytes": training_memory(settings),
            "compute": compute_choices(settings),
        }
        given = {name: promised.provenance.get(name) for name in _FROM_CHECKPOINT}
        if given["training_file"] is None:  # the adapter was imported; only its archive is known
            archive = promised.provenance["imported"]
            given["training_file"] = archive | {"file_id": "", "bytes": 0, "examples": 0}
        self._put_spec(JobSpec.model_validate(spec | given))

    def _put_request(self, request: ReportRequest, data: File | None, store: BlobStore) -> None:
        (self.directory / REQUEST_NAME).write_text(request.model_dump_json(), encoding="utf-8")
        if data is not None:
            is_own = data.id == self._lease.validation_file_id
            name = VALIDATION_DATA_NAME if is_own else TRAINING_DATA_NAME
            copy_data(store, data, self.directory / name)
