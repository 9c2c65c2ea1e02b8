"""How full the disk is. What it says is replaced; a real one is filled by `make diskfull`."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.core.disk import Ballast, as_storage_full, free_bytes, has_room, require_room
from app.core.errors import StorageFullError
from app.core.settings import Settings

MIB = 1024 * 1024


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    return Settings(
        _env_file=None, data_dir=data_dir, min_free_bytes=100 * MIB, ballast_bytes=4 * MIB
    )  # pyright: ignore[reportCallIssue]


def set_free(monkeypatch: pytest.MonkeyPatch, free: int, *, inodes: int = 1) -> None:
    answer = SimpleNamespace(f_frsize=1, f_bavail=free, f_files=1000, f_favail=inodes)
    monkeypatch.setattr(os, "statvfs", lambda _: answer)


def test_the_disk_of_a_directory_that_is_not_there_yet_is_that_of_its_parent(
    tmp_path: Path,
) -> None:
    about = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize

    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(about, rel=0.1)


def test_there_is_room_for_what_leaves_enough_free(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, 110 * MIB)

    assert has_room(settings)
    assert has_room(settings, 10 * MIB)
    assert not has_room(settings, 10 * MIB + 1)


def test_a_disk_without_inodes_is_full(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 110 * MIB, inodes=0)

    assert not has_room(settings)


def test_a_watermark_of_nothing_lets_the_disk_be_filled(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, 0)

    assert has_room(settings.model_copy(update={"min_free_bytes": 0}), 10**12)


def test_a_refusal_says_what_there_is_what_is_needed_and_what_to_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, 99 * MIB)

    with pytest.raises(StorageFullError) as refusal:
        require_room(settings, 5 * MIB)

    assert "99 MiB are free, and this needs 105 MiB" in str(refusal.value)
    assert "Delete files" in str(refusal.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_found_no_space_is_told_apart(number: int) -> None:
    assert isinstance(as_storage_full(OSError(number, "")), StorageFullError)


def test_any_other_error_of_the_system_is_none_of_it() -> None:
    assert as_storage_full(OSError(errno.EIO, "")) is None


def test_ballast_takes_space_until_it_is_released(settings: Settings) -> None:
    ballast = Ballast(settings)
    assert not ballast.is_there

    assert ballast.make_if_room()
    stat = (settings.data_dir / "ballast").stat()
    assert ballast.is_there
    assert stat.st_blocks * 512 >= 4 * MIB

    assert ballast.release()
    assert not (settings.data_dir / "ballast").exists()
    assert not ballast.release()


def test_ballast_is_dropped_when_there_is_next_to_nothing_else(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballast = Ballast(settings)
    ballast.make_if_room()

    set_free(monkeypatch, MIB)
    assert not ballast.release_if_full()
    set_free(monkeypatch, MIB - 1)
    assert ballast.release_if_full()
    assert not ballast.release_if_full()


def test_no_ballast_is_made_of_what_must_stay_free(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballast = Ballast(settings)

    set_free(monkeypatch, 104 * MIB - 1)
    assert not ballast.make_if_room()
    set_free(monkeypatch, 104 * MIB)
    assert ballast.make_if_room()


def test_ballast_that_is_there_stays_however_full_the_disk_becomes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballast = Ballast(settings)
    ballast.make_if_room()
    set_free(monkeypatch, 0)

    assert ballast.make_if_room()
    assert ballast.is_there


def test_ballast_of_another_size_is_made_anew(settings: Settings) -> None:
    Ballast(settings).make_if_room()
    larger = Ballast(settings.model_copy(update={"ballast_bytes": 5 * MIB}))

    assert not larger.is_there
    assert larger.make_if_room()
    assert (settings.data_dir / "ballast").stat().st_size == 5 * MIB


def test_ballast_of_nothing_is_none(settings: Settings) -> None:
    Ballast(settings).make_if_room()

    assert not Ballast(settings.model_copy(update={"ballast_bytes": 0})).make_if_room()
    assert not (settings.data_dir / "ballast").exists()


def test_a_disk_that_fills_up_meanwhile_is_left_as_it_was(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)

    assert not Ballast(settings).make_if_room()
    assert list(settings.data_dir.iterdir()) == []
