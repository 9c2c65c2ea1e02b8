"""Checks that every blob that a row names exists and has the bytes that were written."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from app.core import manifest
from app.core.db.blob_keys import (
    BlobKeyRepository,
    NamedBlob,
    iterate_model_objects,
    iterate_named,
    iterate_task_blobs,
)
from app.core.db.inspection import ManifestedFiles, iterate_manifested
from app.core.errors import BlobNotFoundError
from app.core.signing.keys import SigningKeys
from app.core.signing.signatures import PublicKey, find_signer
from app.core.storage.blob_store import BlobStore
from app.maintenance.findings import Finding, Level, Patient

_SHOWN = 10
"""Maximum number of damaged things that a finding names."""


@dataclass(frozen=True, slots=True)
class _Damage:
    blob: NamedBlob
    what: str

    def __str__(self) -> str:
        return f"{self.blob.key} ({self.blob.owner}) {self.what}"


def check_blobs(patient: Patient) -> Iterator[Finding]:
    """Check all blobs. A damaged file is lost. Everything else can be deleted and made again."""
    damaged: list[_Damage] = []
    count = 0
    has_models = False
    reading = patient.database.reading
    sizes = _list_sizes(patient)
    kinds = (iterate_named, iterate_task_blobs, iterate_model_objects)
    for blob in chain.from_iterable(iterate(reading) for iterate in kinds):
        count += 1
        has_models |= blob.model is not None
        if sizes.get(blob.key) == blob.bytes:
            continue
        what = find_damage(patient.store, blob, is_deep=patient.is_deep)
        if what is not None and _is_still_named(patient, blob):
            damaged.append(_Damage(blob, what))
    lost = [damage for damage in damaged if damage.blob.file_id is not None]
    if lost:
        message = f"{len(lost)} of {count} are damaged: {_name_some(lost)}"
        advice = "Restore a backup, or delete the files and tuned models these belong to."
        yield Finding("blobs", Level.BAD, message, advice=advice)
    else:
        how = "with the right content" if patient.is_deep else "with the right sizes"
        yield Finding("blobs", Level.OK, f"{count - len(damaged)} are there, {how}")
    yield from _check_parts(patient, [each for each in damaged if each.blob.part_id is not None])
    yield from _check_states(patient, [each for each in damaged if each.blob.job_id is not None])
    yield from _check_tokens(
        patient, [each for each in damaged if each.blob.checked_job_id is not None]
    )
    yield from _check_tasks(patient, [each for each in damaged if each.blob.task_id is not None])
    if has_models:
        yield from _check_models(patient, [each for each in damaged if each.blob.model is not None])


def _list_sizes(patient: Patient) -> dict[str, int]:
    """Sizes of blobs by key, where a list is much quicker than a look at each; otherwise empty."""
    if patient.is_deep or not patient.settings.store_url.startswith("s3:"):
        return {}
    sizes: dict[str, int] = {}
    for blob in patient.store.list_all():  # of a service that moves, first what is read first
        sizes.setdefault(blob.key, blob.bytes)
    return sizes


def _check_parts(patient: Patient, damaged: list[_Damage]) -> Iterator[Finding]:
    if damaged and not patient.may_repair:
        message = f"{len(damaged)} are damaged: {_name_some(damaged)}"
        advice = (
            "Run `tunery doctor --repair`: clients then see that these parts must be sent again."
        )
        yield Finding("upload parts", Level.BAD, message, advice=advice)
        return
    if damaged:
        with patient.database.writing() as session:
            for damage in damaged:
                BlobKeyRepository(session).delete_part(damage.blob.part_id or "")
    repaired = f"{len(damaged)} deleted: {_name_some(damaged)}" if damaged else ""
    yield Finding("upload parts", Level.OK, "every part that is listed is there", repaired=repaired)


def _check_states(patient: Patient, damaged: list[_Damage]) -> Iterator[Finding]:
    if damaged and not patient.may_repair:
        message = f"{len(damaged)} files are damaged: {_name_some(damaged)}"
        advice = "Run `tunery doctor --repair`: their jobs then resume from an older state."
        yield Finding("saved states", Level.BAD, message, advice=advice)
    elif damaged:
        states = sorted({(each.blob.job_id or "", each.blob.step or 0) for each in damaged})
        with patient.database.writing() as session:
            for job_id, step in states:
                BlobKeyRepository(session).delete_saved_state(job_id, step)
        message = "every job can resume from a saved state or start again"
        repaired = "deleted: " + ", ".join(f"step {step} of {job_id}" for job_id, step in states)
        yield Finding("saved states", Level.OK, message, repaired=repaired)
    else:
        yield Finding("saved states", Level.OK, "every job can resume from its saved state")


def _check_tokens(patient: Patient, damaged: list[_Damage]) -> Iterator[Finding]:
    if damaged and not patient.may_repair:
        message = f"{len(damaged)} files are damaged: {_name_some(damaged)}"
        advice = "Run `tunery doctor --repair`: their jobs then tokenize their data again."
        yield Finding("tokens", Level.BAD, message, advice=advice)
        return
    job_ids = sorted({each.blob.checked_job_id or "" for each in damaged})
    if job_ids:
        with patient.database.writing() as session:
            for job_id in job_ids:
                BlobKeyRepository(session).forget_tokens(job_id)
    repaired = f"forgotten: those of {', '.join(job_ids)}" if job_ids else ""
    message = "the tokens of every checked job are there, or are made again"
    yield Finding("tokens", Level.OK, message, repaired=repaired)


def _check_tasks(patient: Patient, damaged: list[_Damage]) -> Iterator[Finding]:
    if damaged and not patient.may_repair:
        message = f"{len(damaged)} files are damaged: {_name_some(damaged)}"
        advice = "Run `tunery doctor --repair`: they are made again when somebody asks for them."
        yield Finding("exports", Level.BAD, message, advice=advice)
        return
    task_ids = sorted({each.blob.task_id or "" for each in damaged})
    if task_ids:
        with patient.database.writing() as session:
            for task_id in task_ids:
                BlobKeyRepository(session).delete_task(task_id)
    repaired = f"deleted: {', '.join(task_ids)}" if task_ids else ""
    yield Finding("exports", Level.OK, "the files of every export are there", repaired=repaired)


def _check_models(patient: Patient, damaged: list[_Damage]) -> Iterator[Finding]:
    copies = sorted({each.blob.model for each in damaged if each.blob.model is not None})
    install = "Run `tunery models install ID` on a machine that has it, which stores it again."
    if copies and not patient.may_repair:
        message = f"{len(damaged)} files are damaged: {_name_some(damaged)}"
        advice = f"Run `tunery doctor --deep --repair`, which forgets the copy. {install}"
        yield Finding("stored models", Level.BAD, message, advice=advice)
        return
    if copies:
        with patient.database.writing() as session:
            for model_id, sha256 in copies:
                BlobKeyRepository(session).delete_model(model_id, sha256)
        names = ", ".join(model_id for model_id, _ in copies)
        repaired = f"forgotten in the store: {names}. {install}"
        yield Finding("stored models", Level.OK, "every other one is there", repaired=repaired)
        return
    yield Finding("stored models", Level.OK, "the files of every base model in the store are there")


def check_manifests(patient: Patient) -> Iterator[Finding]:
    bad: list[str] = []
    count = 0
    keys = SigningKeys(patient.settings.signing_dir).list_public()
    for files in iterate_manifested(patient.database.reading):
        count += 1
        try:
            _verify(patient.store, files, keys)
        except (manifest.ManifestError, BlobNotFoundError, OSError) as error:
            if all(_is_still_named(patient, blob) for blob in files.blobs.values()):
                bad.append(f"{files.owner}: {error}")
    if bad:
        message = f"{len(bad)} of {count} do not match their files: {_name_some(bad)}"
        advice = "Do not use these adapters. Restore a backup, or run their jobs again."
        yield Finding("manifests", Level.BAD, message, advice=advice)
    else:
        yield Finding("manifests", Level.OK, f"{count} match their files")


def find_damage(store: BlobStore, blob: NamedBlob, *, is_deep: bool) -> str | None:
    """The damage of a blob, as the end of a sentence that begins with its key. None if intact."""
    try:
        with store.open(blob.key) as source:
            size = source.seek(0, os.SEEK_END)
            if size != blob.bytes:
                return f"has {size:,} bytes instead of {blob.bytes:,}"
            source.seek(0)
            if is_deep and hashlib.file_digest(source, "sha256").hexdigest() != blob.sha256:
                return "does not have the bytes that were written"
    except BlobNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error}"
    return None


def _is_still_named(patient: Patient, blob: NamedBlob) -> bool:
    """False if the blob was deleted since it was listed: it is then not missing."""
    with patient.database.reading() as session:
        return BlobKeyRepository(session).still_names(blob)


def _verify(store: BlobStore, files: ManifestedFiles, keys: Sequence[PublicKey]) -> None:
    blob = files.blobs.get(manifest.MANIFEST_NAME)
    if blob is None:
        raise manifest.ManifestError("it has no manifest")
    content = _read(store, blob)
    if hashlib.sha256(content).hexdigest() != files.manifest_sha256:
        raise manifest.ManifestError("its manifest is not the one that was published")
    signature = files.blobs.get(manifest.SIGNATURE_NAME)  # states and older checkpoints have none
    if signature is not None and not find_signer(content, _read(store, signature), keys):
        raise manifest.ManifestError("its manifest is not signed with a key of this service")
    promised = manifest.parse(content)
    rows = {
        name: manifest.ManifestFile(bytes=blob.bytes, sha256=blob.sha256)
        for name, blob in files.blobs.items()
        if name not in manifest.UNLISTED_NAMES
    }
    manifest.check(promised, rows)


def _read(store: BlobStore, blob: NamedBlob) -> bytes:
    with store.open(blob.key) as source:
        return source.read(blob.bytes + 1)


def _name_some(damaged: Sequence[object]) -> str:
    more = f"; and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    return "; ".join(map(str, damaged[:_SHOWN])) + more
