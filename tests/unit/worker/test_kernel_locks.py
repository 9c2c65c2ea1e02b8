import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.builders import build_job, build_lease
from tests.waiting import wait_until
from worker.job_directory import JobDirectory
from worker.launch.locks import JobLock, JobLockedError, TrainingSlots, try_lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "ftjob-1.lock"


def test_a_lock_is_held_by_one(path: Path) -> None:
    held = JobLock(path).take(within_s=0)

    with pytest.raises(JobLockedError):
        JobLock(path).take(within_s=0.1)

    os.close(held)
    os.close(JobLock(path).take(within_s=0))


def test_a_child_holds_the_lock_until_it_dies(path: Path) -> None:
    held = JobLock(path).take(within_s=0)
    waiting = [sys.executable, "-c", "import signal; signal.pause()"]
    child = subprocess.Popen(waiting, pass_fds=[held])
    os.close(held)

    assert try_lock(path) is None
    child.kill()
    child.wait()
    os.close(JobLock(path).take(within_s=0))


def test_a_file_that_is_deleted_meanwhile_is_no_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two could hold it: one the old file, one the new."""
    real_open, opened = os.open, []

    def open_and_lose(*arguments: object, **more: object) -> int:
        descriptor = real_open(*arguments, **more)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if not opened:
            path.unlink()
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    held = JobLock(path).take(within_s=5)

    assert os.fstat(held).st_ino == path.stat().st_ino
    assert len(opened) == 2
    os.close(held)


def test_a_lock_in_use_is_not_removed(path: Path) -> None:
    held = JobLock(path).take(within_s=0)

    JobLock(path).remove_if_free()
    was_kept = path.exists()
    os.close(held)
    JobLock(path).remove_if_free()

    assert (was_kept, path.exists()) == (True, False)


@pytest.mark.parametrize("obstacle", ["link", "dangling link", "pipe"])
def test_what_a_training_process_puts_in_the_place_of_a_lock_is_removed(
    path: Path, tmp_path: Path, obstacle: str
) -> None:
    target = tmp_path / "target"
    path.parent.mkdir()
    if obstacle == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    if obstacle == "link":
        target.write_text("mine")

    os.close(JobLock(path).take(within_s=10))

    assert path.is_file()
    assert not path.is_symlink()
    assert target.exists() == (obstacle == "link")


def test_the_name_of_a_holder_is_not_written_through_a_link(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    path.parent.mkdir()
    path.symlink_to(target)

    with pytest.raises(OSError, match="ftjob-1"):
        JobLock(path).name_holder(os.getpid())
    JobLock(path).remove_if_free()

    assert target.read_text() == "mine"
    assert not path.is_symlink()


def test_the_lock_of_a_process_that_is_dying_is_removed_once_it_is_dead(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path / "work", build_lease(build_job()))
    directory.directory.mkdir(parents=True)
    lock = directory.directory.parent.with_suffix(".lock")
    held = JobLock(lock).take(within_s=0)

    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(directory.remove)
        with pytest.raises(TimeoutError):
            removal.result(0.2)
        os.close(held)
        removal.result()

    assert list((tmp_path / "work").iterdir()) == []


def test_the_holder_that_was_written_down_is_ended(path: Path) -> None:
    lock = JobLock(path)
    held = lock.take(within_s=0)
    waiting = [sys.executable, "-c", "import signal; signal.pause()"]
    child = subprocess.Popen(waiting, pass_fds=[held], start_new_session=True)
    lock.name_holder(child.pid)
    os.close(held)

    os.close(JobLock(path).take(within_s=10))

    assert child.wait(10) == -9


def test_a_process_that_only_has_the_same_id_is_left_alone(path: Path) -> None:
    waiting = [sys.executable, "-c", "import signal; signal.pause()"]
    bystander = subprocess.Popen(waiting, start_new_session=True)
    held = JobLock(path).take(within_s=0)
    path.write_text(f"{bystander.pid} 1")

    with pytest.raises(JobLockedError):
        JobLock(path).take(within_s=0.2)

    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    os.close(held)


def test_there_are_so_many_slots_and_a_slot_is_given_back(tmp_path: Path) -> None:
    first, second = (TrainingSlots(tmp_path, 2) for _ in range(2))

    with first.take() as one, second.take() as two, first.take() as three:
        seen = [one, two, three]
    with second.take() as again:
        seen.append(again)

    assert seen == [True, True, False, True]


def test_a_slot_is_free_again_when_its_holder_dies(tmp_path: Path) -> None:
    script = (
        "import signal, sys; from pathlib import Path\n"
        "from worker.launch.locks import TrainingSlots\n"
        "with TrainingSlots(Path(sys.argv[1]), 1).take(): print('held', flush=True); signal.pause()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"

    with TrainingSlots(tmp_path, 1).take() as during:
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()

    assert not during

    def is_free() -> bool:
        with TrainingSlots(tmp_path, 1).take() as found:
            return found

    wait_until(is_free, within_s=5)


def test_who_has_lost_the_job_does_not_end_the_child_of_its_next_attempt(path: Path) -> None:
    lock = JobLock(path)
    held = lock.take(within_s=0)
    waiting = [sys.executable, "-c", "import signal; signal.pause()"]
    child = subprocess.Popen(waiting, pass_fds=[held], start_new_session=True)
    lock.name_holder(child.pid)
    os.close(held)

    with pytest.raises(JobLockedError):
        JobLock(path).take(within_s=10, is_over=lambda: True)

    assert child.poll() is None
    child.kill()
    child.wait()


def test_looking_at_slots_takes_them_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = TrainingSlots(tmp_path, 1)
    looking = try_lock(tmp_path / "slot-0.lock", how=fcntl.LOCK_SH)
    assert looking is not None

    assert not slots.is_any_taken()
    monkeypatch.setattr(time, "sleep", lambda _: os.close(looking))  # before the next try
    with slots.take() as is_taken:
        assert is_taken
        assert slots.is_any_taken()
