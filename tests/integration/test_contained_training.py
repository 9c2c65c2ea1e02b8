"""Training in the sandbox: the same adapters, and compiled layers that only its project finds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.job.child.containment import find_layers
from app.core.job.child.job_spec import MACHINE_CACHE_NAME, PROJECT_CACHE_NAME, ComputeSettings
from app.core.job.child.training_events import Finished, TrainingEvent
from tests.fakes import Watch
from tests.tiny import chat_row, write_job, write_tiny_model
from worker.launch.launcher import Launcher, Signal
from worker.launch.sandbox.sandbox import Sandbox
from worker.launch.supervision import LocalLauncher
from worker.launch.warm import WarmLauncher

ROWS = [chat_row(f"How many {i}?", "There are " + "very " * (i % 3) + "many.") for i in range(8)]
COMPILED = ComputeSettings(dtype="float32", compile=True)


@pytest.fixture(scope="module")
def layers() -> Any:
    return find_layers()


@pytest.fixture
def sandbox(layers: Any, tmp_path: Path) -> Sandbox:
    write_tiny_model(tmp_path / "models" / "tiny")
    return Sandbox(layers, tmp_path, tmp_path / "workers", 1)


@pytest.fixture
def warm(sandbox: Sandbox) -> Iterator[WarmLauncher]:
    launcher = WarmLauncher(idle_s=60, sandbox=sandbox)
    yield launcher
    launcher.close()


def train(launcher: Launcher, data_dir: Path, name: str, **settings: Any) -> Path:
    """Train a job to its end. Returns its directory."""
    directory = data_dir / "work" / name / "attempt-1"
    project = settings.pop("project", "own")
    write_job(directory, ROWS, base_model=data_dir / "models" / "tiny", **settings)
    for link, target in ((MACHINE_CACHE_NAME, "machine"), (PROJECT_CACHE_NAME, project)):
        (data_dir / "cache" / target).mkdir(parents=True, exist_ok=True)
        (directory / link).symlink_to(data_dir / "cache" / target)
    seen: list[TrainingEvent] = []
    ending = launcher.run(directory, Watch(seen.append, lambda: Signal.CONTINUE))
    assert ending.exit_code == 0, ending.log_tail
    assert isinstance(seen[-1], Finished)
    return directory


def adapter(directory: Path) -> bytes:
    (weights,) = directory.glob("out/step-*/adapter_model.safetensors")
    return weights.read_bytes()


def compiled_files(directory: Path) -> dict[Path, int]:
    compiled = (directory / PROJECT_CACHE_NAME).resolve()
    return {path: path.stat().st_ino for path in compiled.rglob("*.so")}


def test_a_contained_job_trains_the_same_adapter(
    tmp_path: Path, sandbox: Sandbox, warm: WarmLauncher
) -> None:
    free = train(LocalLauncher(), tmp_path, "free", epochs=1)
    cold = train(LocalLauncher(sandbox=sandbox), tmp_path, "cold", epochs=1)
    forked = train(warm, tmp_path, "forked", epochs=1)

    assert warm._failures == 0
    assert adapter(cold) == adapter(free)
    assert adapter(forked) == adapter(free)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_compiled_layers_are_found_by_the_next_job_of_their_project(
    tmp_path: Path, sandbox: Sandbox, warm: WarmLauncher
) -> None:
    """The compiler runs in the sandbox as well."""
    free = train(LocalLauncher(), tmp_path, "free", epochs=1, compute=COMPILED, project="free")
    first = train(warm, tmp_path, "first", epochs=1, compute=COMPILED)
    compiled = compiled_files(first)
    second = train(warm, tmp_path, "second", epochs=1, compute=COMPILED)

    assert compiled
    assert compiled_files(second) == compiled
    assert adapter(first) == adapter(second) == adapter(free)
