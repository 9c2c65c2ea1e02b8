"""Imports an adapter that was made elsewhere, as the tuned model of a job that has no training."""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from app.core.access import Caller
from app.core.adapter_files.archive import ImportRefusedError
from app.core.adapter_files.process import Import, check_in_process
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.files import MADE_BY_JOB
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, File, Job, TunedModel
from app.core.errors import InvalidRequestError
from app.core.ids import IdPrefix, new_id
from app.core.job.artifacts import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, MANIFEST_NAME
from app.core.job.child.job_spec import BaseModelRef
from app.core.job.lora_shape import ImportedArchive, LoraShape
from app.core.job.status import JobStatus
from app.core.job.training_config import TrainingConfig
from app.core.manifest import Manifest, ManifestFile
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.stored_models.local_models import LocalModels
from app.services.adapters.lookup import name_model
from app.services.files import plain_name
from app.services.idempotency import IdempotentRequest
from app.services.job_inputs import find_installed
from app.services.quotas import require_bytes
from app.services.received_files import ReceivedFile, scratch_file

MAX_SUFFIX = 64
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _NewFile:
    """A file of the adapter, in the store's scratch space."""

    name: str
    path: Path
    bytes: int
    sha256: str
    crc32: int


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter that fits its base model."""

    job_id: str
    model: str
    """Name that the tuned model gets."""
    suffix: str | None
    base_model: BaseModelRef
    config: TrainingConfig
    """Shape of the adapter. The other hyperparameters are defaults that nothing has used."""
    archive: ImportedArchive
    files: list[_NewFile]

    def blobs(self) -> dict[str, Path]:
        """The files by the keys that they get in the store."""
        return {_blob_key(self.job_id, file.name): file.path for file in self.files}


@dataclass(frozen=True, slots=True)
class NewModel:
    name: str
    is_replay: bool
    """True if an earlier sending of the same request imported the model."""


def content_of(received: ReceivedFile) -> dict[str, Any]:
    """What a request asks for: the same content is the same import."""
    return {"fields": received.fields, "sha256": received.sha256}


def find_imported(once: IdempotentRequest) -> NewModel | None:
    """The model that this request imported when it was sent before.

    Raises:
        InvalidRequestError: the idempotency key belongs to another request.
    """
    job = once.find_job()
    return job and NewModel(job.fine_tuned_model, is_replay=True)


@contextlib.contextmanager
def checked_adapter(
    received: ReceivedFile,
    store: BlobStore,
    models: LocalModels,
    settings: Settings,
) -> Generator[CheckedAdapter]:
    """Check an archive in a process of its own. Takes as long as its weights need.

    Args:
        received: the archive, with the other fields of its form.
        store: its scratch space has the files until the end of the `with` block.
        models: the base models of this machine, and of the store.
        settings: those of the service.

    Raises:
        InvalidRequestError: a field of the form is invalid, or the archive is not an adapter for
            the base model.
        BaseModelNotHereError: the base model cannot be fetched from the store.
    """
    suffix = _read_suffix(received.fields.get("suffix"))
    asked = _read_base_model(received.fields)
    entry, installed = models.read(lambda session: find_installed(session, models.catalogue, asked))
    base_model = BaseModelRef(**installed.model_dump(include=set(BaseModelRef.model_fields)))
    job_id = new_id(IdPrefix.JOB)
    name = name_model(entry.id, settings.organization, suffix, job_id)
    archive = ImportedArchive(filename=plain_name(received.filename), sha256=received.sha256)
    with contextlib.ExitStack() as scratch:
        weights = scratch.enter_context(scratch_file(store))
        request = Import(
            archive=received.path.absolute(),
            weights=weights.absolute(),
            base_model=models.find(installed, needs_weights=False),
            target_modules=entry.target_modules,
            max_rank=entry.max_lora_rank,
            max_bytes=settings.max_upload_bytes,
        )
        try:
            shape = check_in_process(request)
        except ImportRefusedError as error:
            raise InvalidRequestError(str(error), code="invalid_adapter", param="file") from error
        files = [_describe(ADAPTER_WEIGHTS_NAME, weights)]
        config_file = scratch.enter_context(scratch_file(store))
        config_file.write_text(_adapter_settings(shape, base_model), encoding="utf-8")
        files.append(_describe(ADAPTER_CONFIG_NAME, config_file))
        described = scratch.enter_context(scratch_file(store))
        manifest = Manifest(
            job_id=job_id,
            attempt=0,
            step=0,
            files={file.name: ManifestFile(bytes=file.bytes, sha256=file.sha256) for file in files},
            provenance={
                "fine_tuned_model": name,
                "base_model": base_model.model_dump(mode="json"),
                "imported": archive.model_dump(mode="json"),
            },
        )
        described.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        files.append(_describe(MANIFEST_NAME, described))
        config = TrainingConfig(
            lora=shape, seed=0, max_sequence_tokens=min(512, entry.context_length)
        )
        yield CheckedAdapter(job_id, name, suffix, base_model, config, archive, files)


def import_once(once: IdempotentRequest, adapter: CheckedAdapter) -> NewModel:
    """Publish a checked adapter, unless the same request has done so meanwhile.

    The caller owns the transaction. The files of the adapter are in the store.

    Raises:
        InvalidRequestError: the idempotency key belongs to another request.
        QuotaExceededError: the project may not store so much.
    """
    earlier = find_imported(once)
    if earlier is not None:
        return earlier
    once.remember(_import(once.session, once.caller, adapter, now=once.now))
    return NewModel(adapter.model, is_replay=False)


def _import(session: Session, caller: Caller, adapter: CheckedAdapter, *, now: datetime) -> Job:
    require_bytes(session, caller, sum(file.bytes for file in adapter.files))
    rows = [_as_row(file, adapter.job_id, now=now) for file in adapter.files]
    job = _build_job(adapter, now=now)
    JobRepository(session, caller.project_id).add_imported(job)
    checkpoint = Checkpoint(
        id=new_id(IdPrefix.CHECKPOINT),
        job_id=job.id,
        attempt=0,
        step=0,
        created_at=now,
        metrics={},
        manifest_sha256=rows[-1].sha256,
        files=rows,
    )
    CheckpointRepository(session, caller.project_id).add(checkpoint)
    job.result_checkpoint_id = checkpoint.id
    model = TunedModel(
        id=adapter.model,
        job_id=job.id,
        checkpoint_id=checkpoint.id,
        base_model=job.base_model,
        created_at=now,
    )
    TunedModelRepository(session, caller.project_id).add(model)
    audit.record(session, caller, Action.MODEL_IMPORTED, model.id, now=now)
    return job


def _blob_key(job_id: str, name: str) -> str:
    return f"jobs/{job_id}/import/{name}"


def _build_job(adapter: CheckedAdapter, *, now: datetime) -> Job:
    return Job(
        id=adapter.job_id,
        status=JobStatus.SUCCEEDED,
        created_at=now,
        finished_at=now,
        base_model=adapter.base_model.id,
        base_model_sha256=adapter.base_model.sha256,
        training_file_id="",
        suffix=adapter.suffix,
        config=adapter.config.model_dump(mode="json"),
        imported=adapter.archive.model_dump(),
        fine_tuned_model=adapter.model,
    )


def _as_row(file: _NewFile, job_id: str, *, now: datetime) -> File:
    return File(
        id=new_id(IdPrefix.FILE),
        purpose=MADE_BY_JOB,
        filename=file.name,
        bytes=file.bytes,
        sha256=file.sha256,
        crc32=file.crc32,
        blob_key=_blob_key(job_id, file.name),
        created_at=now,
        job_id=job_id,
    )


def _read_base_model(fields: dict[str, str]) -> str:
    if not fields.get("base_model"):
        raise InvalidRequestError(
            "The field 'base_model' is missing. Name the base model that the adapter was made for.",
            code="missing_required_parameter",
            param="base_model",
        )
    return fields["base_model"]


def _read_suffix(suffix: str | None) -> str | None:
    if suffix is not None and len(suffix) > MAX_SUFFIX:
        raise InvalidRequestError(
            f"'suffix' can have at most {MAX_SUFFIX} characters.", param="suffix"
        )
    return suffix or None


def _adapter_settings(shape: LoraShape, base_model: BaseModelRef) -> str:
    """The configuration that readers of adapters need, without what only its maker knew."""
    settings: dict[str, Any] = {
        "base_model_name_or_path": base_model.address,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": int(shape.alpha) if shape.alpha.is_integer() else shape.alpha,
        "lora_dropout": shape.dropout,
        "peft_type": "LORA",
        "r": shape.rank,
        "target_modules": list(shape.target_modules),
        "task_type": "CAUSAL_LM",
    }
    optional = {
        "layers_to_transform": shape.layers,
        "modules_to_save": list(shape.modules_to_save),
        "revision": base_model.revision,
        "use_dora": shape.use_dora,
        "use_rslora": shape.use_rslora,
    }
    settings |= {name: value for name, value in optional.items() if value}
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def _describe(name: str, path: Path) -> _NewFile:
    sha256, crc32, size = hashlib.sha256(), 0, 0
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            sha256.update(chunk)
            crc32 = zlib.crc32(chunk, crc32)
            size += len(chunk)
    return _NewFile(name, path, size, sha256.hexdigest(), crc32)
