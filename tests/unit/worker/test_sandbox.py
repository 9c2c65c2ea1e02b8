"""What a sandbox gives each job, and what it says; `tests/integration` attacks it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.job.child.containment import CORE, Layer, LayerKind, find_layers
from app.core.job.child.job_spec import BASE_MODEL_NAME, PROJECT_CACHE_NAME
from app.core.job.child.training_events import Noted, TrainingEvent
from tests.fakes import FakeLauncher, Watch
from worker.launch.announcing import AnnouncingLauncher
from worker.launch.launcher import Signal
from worker.launch.sandbox.grants import hand_over, make_cache, readable_paths
from worker.launch.sandbox.sandbox import NO_SANDBOX, Sandbox, make_sandbox

PROJECT = Path(__file__).parents[3]


def sandbox(tmp_path: Path, **missing: str) -> Sandbox:
    layers = [
        Layer(kind=kind, name=kind.value, missing=missing.get(kind.value, "")) for kind in LayerKind
    ]
    return Sandbox(layers, tmp_path, tmp_path / "workers", 2)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A job directory, with links as the worker makes them."""
    directory = tmp_path / "work" / "job" / "attempt-1"
    (directory / "out").mkdir(parents=True)
    for name, target in ((BASE_MODEL_NAME, "models/tiny"), (PROJECT_CACHE_NAME, "cache/own")):
        (tmp_path / target).mkdir(parents=True)
        (directory / name).symlink_to(tmp_path / target)
    return directory


def test_what_holds_is_said_and_what_is_missing_too(tmp_path: Path) -> None:
    event = sandbox(tmp_path, user="only root can").describe()

    assert event.level == "info"
    assert event.message.startswith("The training process is contained by privileges, limits, ")
    assert event.message.endswith("; not available: user (only root can).")


@pytest.mark.parametrize("kind", CORE)
def test_a_missing_core_layer_is_a_warning(tmp_path: Path, kind: LayerKind) -> None:
    assert sandbox(tmp_path, **{kind.value: "no"}).describe().level == "warn"


def test_a_sandbox_that_is_off_is_a_warning(tmp_path: Path) -> None:
    off = make_sandbox("off", data_dir=tmp_path, locks_dir=tmp_path, threads=1)

    assert off.describe().level == "warn"
    assert "TUNERY_SANDBOX" in off.describe().message


def test_a_job_is_told_before_its_process_starts(tmp_path: Path) -> None:
    seen: list[TrainingEvent] = []
    event, other = NO_SANDBOX.describe(), Noted(message="from the process")
    launcher = AnnouncingLauncher(FakeLauncher([other]), event)

    launcher.run(tmp_path, Watch(seen.append, lambda: Signal.CONTINUE))

    assert seen == [event, other]


def test_every_layer_that_needs_no_privilege_holds_here() -> None:
    assert [str(layer) for layer in find_layers() if layer.is_core and layer.missing] == []


WITHOUT_LANDLOCK = """
from pathlib import Path
from worker.launch.sandbox.file_access import READ, WRITE, restrict_files
from worker.launch.sandbox.privileges import give_up_privileges
from worker.launch.sandbox.sandbox import SandboxError, make_sandbox

give_up_privileges(None)
for _ in range(16):  # the kernel allows no more of them in one another
    restrict_files([(Path("/"), READ | WRITE)])
for mode in ("auto", "required"):
    try:
        print(make_sandbox(mode, data_dir=Path(), locks_dir=Path(), threads=1).describe().level)
    except SandboxError as error:
        print(error)
"""


def test_a_required_sandbox_refuses_a_machine_without_one_of_the_core_layers() -> None:
    """Here, a machine on which Landlock cannot be used once more."""
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_LANDLOCK],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert answer.stdout.startswith("warn\nTUNERY_SANDBOX is required, and this machine lacks")
    assert "Landlock" in answer.stdout


def test_each_user_of_a_project_has_a_cache_of_its_own(directory: Path, tmp_path: Path) -> None:
    caches = [make_cache(directory, user) for user in (60578, 60579)]

    assert caches == [tmp_path / "cache" / "own" / user for user in ("60578", "60579")]
    assert {cache.stat().st_mode & 0o777 for cache in caches} == {0o700}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has users to give")
def test_jobs_that_run_at_once_have_different_users(directory: Path, tmp_path: Path) -> None:
    with sandbox(tmp_path).confine(directory, "tests") as one:
        assert (directory / "out").stat().st_uid == 60578
        with sandbox(tmp_path).confine(directory, "tests") as other:
            assert (directory / "out").stat().st_uid == 60579
    with sandbox(tmp_path).confine(directory, "tests") as next_one:
        pass

    assert one is not None
    assert other is not None
    assert next_one is not None
    assert [one.user, other.user, next_one.user] == [60578, 60579, 60578]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_user_is_given_the_job_and_may_read_the_base_model(
    directory: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "models" / "tiny" / "model.safetensors"
    weights.touch(0o600)

    hand_over(directory, make_cache(directory, 60578), 60578)

    assert (weights.stat().st_mode & 0o777, weights.stat().st_uid) == (0o644, 0)
    assert (directory / BASE_MODEL_NAME).lstat().st_uid == 60578
    assert directory.stat().st_uid == 60578


def test_the_data_directory_is_closed_where_it_lies_among_the_libraries(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    data_dir = tmp_path / "data"
    data_dir.mkdir()

    found = list(readable_paths(directory, "tests.stand_in_child", hidden=data_dir))

    assert tmp_path / "lib" in found
    assert {tmp_path, data_dir} & set(found) == set()
