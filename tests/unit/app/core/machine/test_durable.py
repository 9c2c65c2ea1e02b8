import os
from pathlib import Path

import pytest

from app.core.machine.durable import make_directory, sync


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Whatever is synced, in this order."""
    paths: list[Path] = []
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    return paths


def test_files_and_directories_can_be_synced(tmp_path: Path, synced: list[Path]) -> None:
    (tmp_path / "file").write_bytes(b"bytes")

    sync(tmp_path / "file")
    sync(tmp_path)

    assert synced == [tmp_path / "file", tmp_path]


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "there already"])
def test_every_name_on_the_way_is_on_the_disk(
    tmp_path: Path, synced: list[Path], *, is_there: bool
) -> None:
    """One that is there may be of a process that was killed before it could sync."""
    directory = tmp_path / "a" / "b" / "c"
    if is_there:
        directory.mkdir(parents=True)

    make_directory(directory, below=tmp_path)

    assert directory.is_dir()
    assert synced == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]


def test_without_an_end_the_way_is_synced_as_far_as_its_file_system_reaches(
    tmp_path: Path, synced: list[Path]
) -> None:
    make_directory(tmp_path / "a")

    device = tmp_path.stat().st_dev
    assert synced == [path for path in (tmp_path / "a").parents if path.stat().st_dev == device]


def test_a_link_on_the_way_leads_to_the_directories_that_hold_the_names(
    tmp_path: Path, synced: list[Path]
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    make_directory(tmp_path / "link" / "a", below=tmp_path)

    assert synced == [tmp_path / "real", tmp_path]


def test_what_may_not_be_read_was_there_before_us(
    tmp_path: Path, synced: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_descriptor = os.open

    def refuse(path: Path, flags: int) -> int:
        if path == tmp_path:
            raise PermissionError(path)
        return open_descriptor(path, flags)

    monkeypatch.setattr(os, "open", refuse)  # root may read everything, so no mode would do

    make_directory(tmp_path / "a" / "b")

    assert synced == [tmp_path / "a"]
