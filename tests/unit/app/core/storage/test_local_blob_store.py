"""What only the store in a directory promises; the rest is in `tests/conformance`."""

import os
from pathlib import Path

import pytest

from app.core.storage.local import LocalBlobStore
from tests.builders import put_blob


def test_deleting_leaves_no_empty_directory_behind(store: LocalBlobStore, data_dir: Path) -> None:
    put_blob(store, "jobs/j/attempt-1/step-5/adapter", b"bytes")
    put_blob(store, "jobs/j/log", b"bytes")

    store.delete("jobs/j/attempt-1/step-5/adapter")

    assert [path.name for path in (data_dir / "blobs/jobs/j").iterdir()] == ["log"]


def test_a_directory_into_which_others_may_be_about_to_put_stays(
    store: LocalBlobStore, data_dir: Path
) -> None:
    put_blob(store, "files/file-1", b"bytes")

    store.delete("files/file-1")

    assert list((data_dir / "blobs/files").iterdir()) == []


def test_bytes_are_on_the_disk_before_the_name_that_promises_them(
    store: LocalBlobStore, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut in between there is a name without bytes in no order but this."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append(f"sync {path.name}" if path.is_dir() else f"sync file in {path.parent.name}")
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append("name")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    put_blob(store, "jobs/j/log", b"bytes")

    assert done == ["sync jobs", "sync blobs", "sync file in .incoming", "name", "sync j"]


def test_opening_a_store_that_exists_keeps_its_blobs(store: LocalBlobStore, data_dir: Path) -> None:
    put_blob(store, "files/file-1", b"bytes")

    with LocalBlobStore(data_dir / "blobs").open("files/file-1") as blob:
        assert blob.read() == b"bytes"
