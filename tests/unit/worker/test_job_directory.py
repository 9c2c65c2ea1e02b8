"""The job directory; what a whole turn of the worker does with it is in `test_loop.py`."""

from pathlib import Path
from typing import Any

import pytest

from app.core.base_models import Catalogue
from app.core.db.repositories.leases import Lease
from app.core.db.session import Database
from app.core.manifest import ManifestError, sha256_of
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import NOW, add_file, add_job, claim, write_checkpoint
from worker.job_directory import JobDirectory, JobInputs, as_file


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


def test_a_checkpoint_is_stored_under_keys_of_its_attempt(
    job_directory: JobDirectory, store: LocalBlobStore, lease: Lease
) -> None:
    write_checkpoint(job_directory.directory, 3)

    stored = job_directory.store_directory(store, "out/step-3")

    prefix = f"jobs/{lease.job_id}/attempt-1/step-3"
    assert {file.blob_key for file in stored} == {
        f"{prefix}/{name}"
        for name in ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
    }
    for file in stored:
        path = job_directory.directory / "out/step-3" / file.name
        assert (file.bytes, file.sha256) == (path.stat().st_size, sha256_of(path))


@pytest.mark.parametrize("other", [{"job_id": "ftjob-other"}, {"attempt": 2}])
def test_a_checkpoint_of_something_else_is_refused(
    job_directory: JobDirectory, store: LocalBlobStore, other: dict[str, Any]
) -> None:
    write_checkpoint(job_directory.directory, 3, **other)

    with pytest.raises(ManifestError, match="of another job or attempt"):
        job_directory.store_directory(store, "out/step-3")


def test_a_stored_file_becomes_a_row_of_its_job(
    job_directory: JobDirectory, store: LocalBlobStore, lease: Lease
) -> None:
    stored = job_directory.store_text(store, "log.csv", "step\n1\n")

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
    ],
)
def test_a_checkpoint_that_is_not_as_promised_is_refused(
    job_directory: JobDirectory, store: LocalBlobStore, spoil: Any
) -> None:
    write_checkpoint(job_directory.directory, 3)
    spoil(job_directory.directory / "out/step-3")

    with pytest.raises(ManifestError):
        job_directory.store_directory(store, "out/step-3")


@pytest.mark.parametrize("link", ["out/step-3", "out"])
def test_a_checkpoint_that_is_a_link_is_not_followed(
    job_directory: JobDirectory, store: LocalBlobStore, tmp_path: Path, link: str
) -> None:
    write_checkpoint(job_directory.directory, 3)
    planted = job_directory.directory / link
    planted.rename(tmp_path / "elsewhere")
    planted.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ManifestError, match="is a link, not a directory"):
        job_directory.store_directory(store, "out/step-3")


@pytest.mark.parametrize("name", ["adapter_config.json", "more.json"])
def test_a_link_in_a_checkpoint_is_not_followed(
    job_directory: JobDirectory, store: LocalBlobStore, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("of the machine")
    write_checkpoint(job_directory.directory, 3)
    planted = job_directory.directory / "out/step-3" / name
    planted.unlink(missing_ok=True)
    planted.symlink_to(tmp_path / "secret")

    with pytest.raises(OSError, match=name):
        job_directory.store_directory(store, "out/step-3")


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
