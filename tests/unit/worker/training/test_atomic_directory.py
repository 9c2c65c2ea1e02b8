import os
from pathlib import Path

import pytest

from app.core.manifest import MANIFEST_NAME, atomic_directory, verify
from tests.tiny import write_job


def test_a_checkpoint_has_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", [{"text": "a"}], base_model=tmp_path)
    target = tmp_path / "out" / "step-3"

    with atomic_directory(target, 3, spec) as directory:
        (directory / "weights").write_bytes(b"abc")
        assert not target.exists()

    assert directory.name == ".tmp-step-3"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["step-3"]
    manifest = verify(target)
    assert list(manifest.files) == ["weights"]
    assert (manifest.job_id, manifest.attempt, manifest.step) == ("ftjob-1", 1, 3)


def test_a_checkpoint_that_could_not_be_written_is_not_there(tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", [{"text": "a"}], base_model=tmp_path)
    target = tmp_path / "out" / "step-3"

    def fail() -> None:
        with atomic_directory(target, 3, spec) as directory:
            (directory / "weights").write_bytes(b"abc")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()

    assert list((tmp_path / "out").iterdir()) == []  # a full disk is not left fuller


def test_everything_is_on_the_disk_before_the_name_that_promises_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_job(tmp_path / "job", [{"text": "a"}], base_model=tmp_path)
    target = tmp_path / "out" / "step-3"
    log: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def logged_fsync(descriptor: int) -> None:
        log.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def logged_rename(self: Path, to: Path) -> Path:
        log.append(f"rename {self.name}")
        return rename(self, to)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    with atomic_directory(target, 3, spec) as directory:
        (directory / "weights").write_bytes(b"abc")

    assert log[0] == f"sync {tmp_path.name}"
    assert log[-5:] == [
        "sync weights",
        f"sync {MANIFEST_NAME}",
        "sync .tmp-step-3",
        "rename .tmp-step-3",
        "sync out",
    ]


def test_the_manifest_says_where_the_checkpoint_came_from(tmp_path: Path) -> None:
    spec = write_job(tmp_path / "job", [{"text": "a"}], base_model=tmp_path)

    with atomic_directory(tmp_path / "out" / "step-1", 1, spec):
        pass

    provenance = verify(tmp_path / "out" / "step-1").provenance
    assert provenance["base_model"]["sha256"] == spec.base_model.sha256
    assert provenance["base_model"]["revision"] == spec.base_model.revision
    assert provenance["training_file"]["sha256"] == spec.training_file.sha256
    assert provenance["validation_file"] is None
    assert provenance["seed"] == spec.config.seed
    assert {"torch", "transformers", "peft"} <= provenance["libraries"].keys()
