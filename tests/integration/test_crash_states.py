"""A power cut at any moment: the publish protocols, in every state they can be found in.

Nothing is mounted here and nothing killed. The real code runs once and is watched; the states are
computed, laid out, and opened by the real readers. `make powercut` cuts the power of a disk.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

from app.core import manifest
from app.core.db.session import Database
from app.core.errors import BlobNotFoundError
from app.core.machine import durable
from app.core.manifest import MANIFEST_NAME, atomic_directory
from app.core.storage.local import LocalBlobStore
from tests.builders import build_job, build_job_spec, build_lease, put_blob
from tests.powercut.crash_states import CrashState, Recorder, crash_states
from worker.job_directory import JobDirectory

LEASE = build_lease(build_job(id="ftjob-1", fine_tuned_model="ft:tiny:tunery::1"))
FILES = {"adapter_model.safetensors": b"weights" * 20, "state.safetensors": b"momenta" * 20}

Check = Callable[[Path, CrashState], str | None]
"""What is wrong with what a power cut has left, if anything."""


class Protocol(NamedTuple):
    """Something that is published, and how the real reader tells whether it is whole."""

    publish: Callable[[Path, Recorder], None]
    check: Check


def _put_blobs(disk: Path, recorder: Recorder) -> None:
    store = LocalBlobStore(disk / "data/blobs")
    for key in ("files/file-1", "jobs/j/attempt-1/step-5/adapter"):
        put_blob(store, key, key.encode() * 9)
        recorder.acknowledge(key)


def _check_blobs(disk: Path, state: CrashState) -> str | None:
    for key in ("files/file-1", "jobs/j/attempt-1/step-5/adapter"):
        content = _read_blob(disk, key)
        if content is None and key in state.acknowledged:
            return f"{key} is lost"
        if content not in (None, key.encode() * 9):
            return f"{key} is damaged"
    return None


def _put_again(disk: Path, recorder: Recorder) -> None:
    store = LocalBlobStore(disk / "data/blobs")
    for content in ("old", "new"):
        put_blob(store, "jobs/j/log", content.encode())
        recorder.acknowledge(content)


def _check_put_again(disk: Path, state: CrashState) -> str | None:
    allowed = [None, b"old", b"new"][len(state.acknowledged) :]
    content = _read_blob(disk, "jobs/j/log")
    if content in allowed:
        return None
    return f"{state.acknowledged} is lost" if content in (None, b"old") else f"{content!r}: damaged"


def _delete(disk: Path, recorder: Recorder) -> None:
    _put_blobs(disk, recorder)
    LocalBlobStore(disk / "data/blobs").delete("jobs/j/attempt-1/step-5/adapter")


def _check_deleted(disk: Path, state: CrashState) -> str | None:
    reported = _check_blobs(disk, state)
    is_gone = reported == "jobs/j/attempt-1/step-5/adapter is lost"
    return None if is_gone and len(state.acknowledged) == 2 else reported


def _save(disk: Path, recorder: Recorder) -> None:
    for step in (1, 2):
        target = disk / f"data/work/ftjob-1/attempt-1/out/step-{step}"
        with atomic_directory(target, step, build_job_spec(LEASE)) as directory:
            _write_files(directory)
        recorder.acknowledge(f"step-{step}")


def _check_saved(disk: Path, state: CrashState) -> str | None:
    for name in ("step-1", "step-2"):
        target = disk / "data/work/ftjob-1/attempt-1/out" / name
        if not target.exists():
            if name in state.acknowledged:
                return f"{name} is lost"
            continue
        try:
            if set(manifest.verify(target).files) != set(FILES):
                return f"{name} has other files"
        except manifest.ManifestError as error:
            return f"{name} has its name and is not whole: {error}"
    return None


def _store_directory(disk: Path, recorder: Recorder) -> None:
    """The job directory is somewhere else; what the store is given is what counts."""
    job_directory = JobDirectory(disk.with_name("work"), LEASE)
    shutil.rmtree(job_directory.directory, ignore_errors=True)
    target = job_directory.directory / "out/step-1"
    with atomic_directory(target, 1, build_job_spec(LEASE)) as directory:
        _write_files(directory)
    job_directory.store_directory(LocalBlobStore(disk / "data/blobs"), "out/step-1", step=1)
    recorder.acknowledge("step-1")


def _check_stored(disk: Path, state: CrashState) -> str | None:
    source = JobDirectory(disk.with_name("work"), LEASE).directory / "out/step-1"
    for name in (*FILES, MANIFEST_NAME):
        content = _read_blob(disk, f"jobs/ftjob-1/attempt-1/step-1/{name}")
        if content is None and state.acknowledged:
            return f"{name} is lost"
        if content not in (None, (source / name).read_bytes()):
            return f"{name} is damaged"
    return None


def _open_database(disk: Path, recorder: Recorder) -> None:
    """Its file syncs itself; SQLite does not ask who made the directory it is in."""
    Database(f"sqlite:///{disk / 'data/db/tunery.db'}").dispose()
    recorder.acknowledge("database")


def _check_directory(disk: Path, state: CrashState) -> str | None:
    is_lost = state.acknowledged and not (disk / "data/db").is_dir()
    return "the directory is lost" if is_lost else None


PROTOCOLS = {
    "put a blob": Protocol(_put_blobs, _check_blobs),
    "put it again": Protocol(_put_again, _check_put_again),
    "delete a blob": Protocol(_delete, _check_deleted),
    "save a checkpoint": Protocol(_save, _check_saved),
    "store a checkpoint": Protocol(_store_directory, _check_stored),
    "open a database": Protocol(_open_database, _check_directory),
}
PUBLISHED = PROTOCOLS.keys() - {"open a database"}
"""What has bytes."""


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_a_power_cut_leaves_is_whole_and_what_was_acknowledged_is_there(
    tmp_path: Path, name: str
) -> None:
    faults = list(_faults(tmp_path, PROTOCOLS[name]))

    assert [what for what in faults if what] == []
    assert len(faults) > (20 if name in PUBLISHED else 2)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_without_syncing_files_it_is_not(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sync_only(monkeypatch, Path.is_dir)

    assert _is_caught(tmp_path, PROTOCOLS[name], "")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_without_syncing_directories_it_is_not(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sync_only(monkeypatch, Path.is_file)

    assert _is_caught(tmp_path, PROTOCOLS[name], "lost")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_without_syncing_the_names_of_new_directories_it_is_not(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_make(path: Path, *, below: Path | None = None) -> None:
        path.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(durable, "make_directory", only_make)

    assert _is_caught(tmp_path, PROTOCOLS[name], "lost")


@pytest.mark.parametrize("name", ["put a blob", "store a checkpoint"])
def test_naming_a_blob_before_its_bytes_are_synced_is_caught(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(self: LocalBlobStore, key: str, scratch: Path) -> None:
        target = self._path(key)
        durable.make_directory(target.parent)
        scratch.replace(target)
        durable.sync(target)
        durable.sync(target.parent)

    monkeypatch.setattr(LocalBlobStore, "put", put)

    assert _is_caught(tmp_path, PROTOCOLS[name], "damaged")


def test_writing_a_checkpoint_in_place_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the trainer it replaces does, though with everything synced, and its manifest last."""
    monkeypatch.setattr(Path, "with_name", lambda path, name: path.parent / path.name)
    monkeypatch.setattr(Path, "rename", lambda path, target: None)

    assert _is_caught(tmp_path, PROTOCOLS["save a checkpoint"], "is not whole")


def _watch(tmp_path: Path, protocol: Protocol) -> Recorder:
    disk = tmp_path / "disk"
    disk.mkdir()
    recorder = Recorder(disk)
    with recorder.watching():
        protocol.publish(disk, recorder)
    return recorder


def _faults(tmp_path: Path, protocol: Protocol) -> Iterator[str | None]:
    """What is wrong with each state, if anything."""
    found = tmp_path / "found"
    for state in crash_states(_watch(tmp_path, protocol)):
        found.mkdir()
        state.write(found)
        with patch.object(durable, "sync"):  # the power is not cut again, so save the time
            what = protocol.check(found, state)
        yield what and f"after step {state.after_step}: {what}"
        shutil.rmtree(found)


def _is_caught(tmp_path: Path, protocol: Protocol, words: str) -> bool:
    return any(what and words in what for what in _faults(tmp_path, protocol))


def _read_blob(disk: Path, key: str) -> bytes | None:
    try:
        with LocalBlobStore(disk / "data/blobs").open(key) as blob:
            return blob.read()
    except BlobNotFoundError:
        return None


def _write_files(directory: Path) -> None:
    for name, content in FILES.items():
        (directory / name).write_bytes(content)


def _sync_only(monkeypatch: pytest.MonkeyPatch, is_synced: Callable[[Path], bool]) -> None:
    sync = durable.sync
    monkeypatch.setattr(durable, "sync", lambda path: sync(path) if is_synced(path) else None)
