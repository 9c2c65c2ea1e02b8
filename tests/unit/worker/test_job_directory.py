"""The job directory; what a whole turn of the worker does with it is in `test_loop.py`."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.core.base_models import Catalogue
from app.core.compute_choices import sampler_memory
from app.core.db.repositories.leases import Lease
from app.core.db.session import Database
from app.core.db.tables import File
from app.core.job.child.job_spec import PARENT_NAME
from app.core.job.lora_shape import ParentAdapter
from app.core.machine.memory import measure_memory
from app.core.manifest import Manifest, ManifestError, describe_files, sha256_of
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_file,
    add_job,
    claim,
    nested_directories,
    put_blob,
    write_checkpoint,
)
from worker.job_directory import JobDirectory, ParentLostError
from worker.job_spec import JobInputs
from worker.sampling.serving.options import GRACE_S
from worker.stored_file import as_file

MIB = 1024 * 1024


@pytest.fixture
def lease(database: Database) -> Lease:
    add_job(database)
    return claim(database)


@pytest.fixture
def job_directory(
    lease: Lease,
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
) -> JobDirectory:
    """Filled, as for a job with a training file alone."""
    job_directory = JobDirectory(settings.work_dir, lease)
    job_directory.fill(JobInputs(add_file(database, store)), store, catalogue, settings)
    return job_directory


def test_filling_again_starts_from_nothing(
    job_directory: JobDirectory,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    settings: Settings,
) -> None:
    (job_directory.directory / "out/step-1").mkdir()
    file = add_file(database, store)

    job_directory.fill(JobInputs(file), store, catalogue, settings)

    assert list((job_directory.directory / "out").iterdir()) == []
    assert not (job_directory.directory / "validation.jsonl").exists()


def test_the_base_model_is_linked_not_copied(
    job_directory: JobDirectory, settings: Settings
) -> None:
    link = job_directory.directory / "base-model"

    assert link.is_symlink()
    assert link.readlink() == (settings.data_dir / "models/tiny").resolve()


def test_a_job_is_planned_without_the_memory_that_the_sampler_keeps(
    lease: Lease,
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
) -> None:
    sampler = {"sampling": "shared", "sampling_memory_bytes": 100 * MIB}
    settings = settings.model_copy(update=sampler)
    job_directory = JobDirectory(settings.work_dir, lease)

    job_directory.fill(JobInputs(add_file(database, store)), store, catalogue, settings)

    assert job_directory.spec.memory_bytes == measure_memory().total - sampler_memory(settings)
    assert job_directory.spec.memory_wait_s == 0


def test_a_job_waits_for_the_memory_of_a_sampler_that_makes_way(
    job_directory: JobDirectory,
) -> None:
    assert job_directory.spec.memory_wait_s > GRACE_S


def test_a_checkpoint_is_stored_under_keys_of_its_attempt(
    job_directory: JobDirectory, store: LocalBlobStore, lease: Lease
) -> None:
    write_checkpoint(job_directory.directory, 3)

    stored = job_directory.store_directory(store, "out/step-3", step=3).files

    prefix = f"jobs/{lease.job_id}/attempt-1/step-3"
    assert {file.blob_key for file in stored} == {
        f"{prefix}/{name}"
        for name in ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
    }
    for file in stored:
        path = job_directory.directory / "out/step-3" / file.name
        assert (file.bytes, file.sha256) == (path.stat().st_size, sha256_of(path))


@pytest.mark.parametrize(
    ("other", "step"), [({"job_id": "ftjob-other"}, 3), ({"attempt": 2}, 3), ({}, 4)]
)
def test_a_checkpoint_of_something_else_is_refused(
    job_directory: JobDirectory, store: LocalBlobStore, other: dict[str, Any], step: int
) -> None:
    write_checkpoint(job_directory.directory, 3, **other)

    with pytest.raises(ManifestError, match="of another job, attempt or step"):
        job_directory.store_directory(store, "out/step-3", step=step)


def test_a_stored_file_becomes_a_row_of_its_job(
    job_directory: JobDirectory, store: LocalBlobStore, lease: Lease
) -> None:
    stored = job_directory.store_texts(store, "log.csv", ["step\n", "1\n"])

    row = as_file(stored, lease, now=NOW)

    assert (row.filename, row.bytes, row.job_id) == ("log.csv", 7, lease.job_id)
    assert (row.purpose, row.format, row.project_id) == (
        "fine-tune-results",
        None,
        lease.project_id,
    )


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: (path / "adapter_config.json").unlink(), id="missing"),
        pytest.param(lambda path: (path / "more.bin").touch(), id="additional"),
        pytest.param(lambda path: (path / "adapter_config.json").write_text("{}"), id="changed"),
        pytest.param(lambda path: (path / "manifest.json").unlink(), id="no manifest"),
        pytest.param(lambda path: (path / "manifest.json").write_bytes(b"[" * MIB), id="nested"),
        pytest.param(lambda path: (path / "README.md").mkdir(), id="directory"),
        pytest.param(lambda path: os.mkfifo(path / "README.md"), id="pipe"),
        pytest.param(lambda path: replace_by_pipe(path / "manifest.json"), id="manifest is a pipe"),
        pytest.param(lambda path: (path / "loss.html").touch(), id="name"),
        pytest.param(lambda path: (path / "a\x1b[2J\n.json").touch(), id="name of a terminal"),
        pytest.param(lambda path: make_sparse(path / "README.md"), id="sparse"),
        pytest.param(lambda path: bind_socket(path / "README.md"), id="socket"),
    ],
)
def test_a_checkpoint_that_is_not_as_promised_is_refused(
    job_directory: JobDirectory, store: LocalBlobStore, spoil: Any
) -> None:
    write_checkpoint(job_directory.directory, 3)
    spoil(job_directory.directory / "out/step-3")

    with pytest.raises(ManifestError) as refused:
        job_directory.store_directory(store, "out/step-3", step=3)

    assert str(refused.value).isprintable()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 * 1024 * MIB)


def bind_socket(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY)  # the path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{descriptor}/{path.name}")
    os.close(descriptor)


def test_another_file_of_the_machine_cannot_be_published_under_a_second_name(
    job_directory: JobDirectory, store: LocalBlobStore, tmp_path: Path
) -> None:
    (tmp_path / "database").write_bytes(b"of everybody")
    checkpoint = job_directory.directory / "out/step-3"
    write_checkpoint(job_directory.directory, 3)
    (checkpoint / "adapter_config.json").unlink()
    (checkpoint / "manifest.json").unlink()
    os.link(tmp_path / "database", checkpoint / "adapter_config.json")
    promised = Manifest(
        job_id=job_directory.directory.parent.name,
        attempt=1,
        step=3,
        files=describe_files(checkpoint),
        provenance={},
    )
    (checkpoint / "manifest.json").write_text(promised.model_dump_json())

    with pytest.raises(ManifestError, match="not a regular file of its own"):
        job_directory.store_directory(store, "out/step-3", step=3)


def test_nothing_is_copied_of_a_checkpoint_that_is_too_large(
    job_directory: JobDirectory, store: LocalBlobStore
) -> None:
    write_checkpoint(job_directory.directory, 3)
    make_sparse(job_directory.directory / "out/step-3/README.md")

    with pytest.raises(ManifestError, match="larger than"):
        job_directory.store_directory(store, "out/step-3", step=3)

    assert [blob for blob in store.list_all() if "step-3" in blob.key] == []


def test_a_checkpoint_with_a_million_names_is_not_listed(
    job_directory: JobDirectory, store: LocalBlobStore
) -> None:
    checkpoint = job_directory.directory / "out/step-3"
    write_checkpoint(job_directory.directory, 3)
    for number in range(1000):
        (checkpoint / f"{number}.json").touch()

    with pytest.raises(ManifestError, match="does not belong"):
        job_directory.store_directory(store, "out/step-3", step=3)


def test_what_is_dropped_is_not_looked_for_behind_a_link(
    job_directory: JobDirectory, tmp_path: Path
) -> None:
    (tmp_path / "others/resume-3").mkdir(parents=True)
    out = job_directory.directory / "out"
    out.rename(out.with_name("elsewhere"))
    out.symlink_to(tmp_path / "others")

    job_directory.drop_directory("out/resume-3")

    assert (tmp_path / "others/resume-3").exists()


def test_a_directory_that_is_too_deep_for_a_path_is_removed(job_directory: JobDirectory) -> None:
    with nested_directories(job_directory.directory / "out" / "d", levels=3000):
        job_directory.remove()

        assert not job_directory.directory.exists()


@pytest.mark.parametrize("link", ["out/step-3", "out"])
def test_a_checkpoint_that_is_a_link_is_not_followed(
    job_directory: JobDirectory, store: LocalBlobStore, tmp_path: Path, link: str
) -> None:
    write_checkpoint(job_directory.directory, 3)
    planted = job_directory.directory / link
    planted.rename(tmp_path / "elsewhere")
    planted.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ManifestError, match="is a link or no directory"):
        job_directory.store_directory(store, "out/step-3", step=3)


@pytest.mark.parametrize("name", ["adapter_config.json", "more.json"])
def test_a_link_in_a_checkpoint_is_not_followed(
    job_directory: JobDirectory, store: LocalBlobStore, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("of the machine")
    write_checkpoint(job_directory.directory, 3)
    planted = job_directory.directory / "out/step-3" / name
    planted.unlink(missing_ok=True)
    planted.symlink_to(tmp_path / "secret")

    with pytest.raises(ManifestError, match=r"cannot be opened|does not belong"):
        job_directory.store_directory(store, "out/step-3", step=3)


def test_removing_leaves_another_attempts_directory(
    job_directory: JobDirectory, settings: Settings, lease: Lease
) -> None:
    other = settings.work_dir / lease.job_id / "attempt-2"
    other.mkdir()

    job_directory.remove()

    assert [path.name for path in (settings.work_dir / lease.job_id).iterdir()] == ["attempt-2"]


def test_removing_twice_is_no_error(job_directory: JobDirectory, settings: Settings) -> None:
    job_directory.remove()
    job_directory.remove()

    assert list(settings.work_dir.iterdir()) == []


def test_removing_does_not_follow_the_link_to_the_base_model(
    job_directory: JobDirectory, settings: Settings
) -> None:
    record = settings.data_dir / "models/tiny/tunery.json"

    job_directory.remove()

    assert record.is_file()


def test_a_data_set_is_copied_whole(
    job_directory: JobDirectory,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    settings: Settings,
) -> None:
    content = b'{"text": "' + b"x" * 3_000_000 + b'"}\n'
    file = add_file(database, store, content)

    job_directory.fill(JobInputs(file, file), store, catalogue, settings)

    assert (job_directory.directory / "train.jsonl").read_bytes() == content
    assert (job_directory.directory / "validation.jsonl").read_bytes() == content


def test_a_worker_that_was_suspended_leaves_the_next_attempts_directory_alone(
    job_directory: JobDirectory,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    settings: Settings,
) -> None:
    """It goes on in the midst of filling its own, long after it has lost the job."""
    older, newer = (job_directory.directory.with_name(f"attempt-{n}") for n in (0, 2))
    older.mkdir()
    newer.mkdir()

    file = add_file(database, store)
    job_directory.fill(JobInputs(file), store, catalogue, settings)

    assert (older.exists(), newer.exists()) == (False, True)


class Continued(NamedTuple):
    """An attempt that continues the adapter of another job."""

    job_directory: JobDirectory
    inputs: JobInputs
    weights: File


@pytest.fixture
def continued(
    lease: Lease, settings: Settings, database: Database, store: LocalBlobStore
) -> Continued:
    weights = add_file(database, store, b"weights")
    parent = ParentAdapter(
        model="ft:a", job_id="ftjob-a", checkpoint_id="ckpt-a", step=2, sha256=weights.sha256
    )
    job_directory = JobDirectory(settings.work_dir, replace(lease, parent=parent))
    inputs = JobInputs(add_file(database, store), parent_weights=weights)
    return Continued(job_directory, inputs, weights)


def test_the_adapter_that_a_job_continues_is_copied(
    continued: Continued, store: LocalBlobStore, catalogue: Catalogue, settings: Settings
) -> None:
    job_directory = continued.job_directory

    job_directory.fill(continued.inputs, store, catalogue, settings)

    assert (job_directory.directory / PARENT_NAME).read_bytes() == b"weights"
    assert job_directory.spec.parent is not None
    assert job_directory.spec.parent.sha256 == continued.weights.sha256


def damage(store: LocalBlobStore, weights: File) -> File:
    put_blob(store, "damaged", b"weightz")
    weights.blob_key = "damaged"
    return weights


def lose(store: LocalBlobStore, weights: File) -> File:
    store.delete(weights.blob_key)
    return weights


@pytest.mark.parametrize("spoil", [damage, lose, lambda *_: None])
def test_an_adapter_that_is_not_there_as_it_was_is_refused(
    continued: Continued,
    store: LocalBlobStore,
    catalogue: Catalogue,
    settings: Settings,
    *,
    spoil: Callable[[LocalBlobStore, File], File | None],
) -> None:
    inputs = replace(continued.inputs, parent_weights=spoil(store, continued.weights))

    with pytest.raises(ParentLostError):
        continued.job_directory.fill(inputs, store, catalogue, settings)


def test_the_check_of_the_data_needs_no_adapter(
    continued: Continued, store: LocalBlobStore, catalogue: Catalogue, settings: Settings
) -> None:
    lease = continued.job_directory._lease
    check = JobDirectory(settings.work_dir, lease, "check_data")

    check.fill(replace(continued.inputs, parent_weights=None), store, catalogue, settings)

    assert not (check.directory / PARENT_NAME).exists()
