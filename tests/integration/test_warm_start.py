"""Two jobs in a row on a tiny real model: the second finds the base model loaded, and no more."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.job.child.training_events import Checked, Finished, Started, TrainingEvent
from tests.children import find_children
from tests.counting_trainer import loads
from tests.fakes import Watch
from tests.tiny import build_model, chat_row, write_job, write_tiny_model
from worker.launch.launcher import Ending, Launcher, Signal
from worker.launch.supervision import LocalLauncher
from worker.launch.warm import WarmLauncher

PROJECT = Path(__file__).parents[2]
ROWS = [chat_row(f"How many {i}?", "There are " + "very " * (i % 3) + "many.") for i in range(12)]
VALIDATION = [chat_row(f"How many {i}?", "There are many.") for i in (3, 30)]

VARIES = {"manifest.json", "metrics.csv", "metrics.jsonl", "README.md"}
"""They say how long something took, or when it was made."""


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmLauncher]:
    """For all of these tests, each of which has a base model of its own."""
    launcher = WarmLauncher("tests.counting_trainer", idle_s=600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT))
        yield launcher
    launcher.close()


class Bench:
    """Runs jobs on `launcher`, each in a directory of its own below `root/work`."""

    def __init__(self, root: Path, base_model: Path) -> None:
        self.root = root
        self.base_model = base_model
        self.children: list[int] = []
        """Process id of every child that has begun to train."""

    def run(self, launcher: Launcher, name: str, **settings: Any) -> Path:
        """Train a job to its end. Returns its directory."""
        directory = self.root / "work" / name / "attempt-1"
        write_job(directory, ROWS, base_model=self.base_model, validation=VALIDATION, **settings)
        seen: list[TrainingEvent] = []

        def on_event(event: TrainingEvent) -> None:
            seen.append(event)
            if isinstance(event, Started):
                self.children.append(find_children(self.root)[name])

        ending = launcher.run(
            directory, Watch(on_event=on_event, requested_signal=lambda: Signal.CONTINUE)
        )

        assert (ending.exit_code, ending.was_killed) == (0, False), ending.log_tail
        assert isinstance(seen[-1], Finished)
        return directory


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    base_model = tmp_path / "tiny"
    write_tiny_model(base_model)
    return Bench(tmp_path, base_model)


def results(directory: Path) -> dict[str, bytes]:
    """The files of its last checkpoint whose bytes follow from the job."""
    last = max((directory / "out").glob("step-*"), key=lambda path: int(path.name[5:]))
    return {path.name: path.read_bytes() for path in last.iterdir() if path.name not in VARIES}


def losses(directory: Path) -> list[tuple[float, float | None]]:
    rows = map(json.loads, (directory / "loss-log.jsonl").read_text().splitlines())
    return [(row["train_loss"], row["valid_loss"]) for row in rows]


def test_the_second_job_finds_the_base_model_loaded_and_trains_the_same_adapter(
    bench: Bench, warm: WarmLauncher
) -> None:
    """A job between them has trained on it; nothing of that is left."""
    cold = bench.run(LocalLauncher(), "cold")
    first = bench.run(warm, "first", seed=8)
    second = bench.run(warm, "second")

    assert warm._fork_server is not None
    assert loads(first) == [(warm._fork_server.pid, "tokenizer"), (warm._fork_server.pid, "model")]
    assert len(set(bench.children)) == 3
    assert results(second).keys() >= {"adapter_model.safetensors", "adapter_config.json"}
    assert results(second) == results(cold)
    assert losses(second) == losses(cold)
    assert results(first)["adapter_model.safetensors"] != results(cold)["adapter_model.safetensors"]


def test_a_base_model_that_is_installed_anew_is_loaded_anew(
    bench: Bench, warm: WarmLauncher
) -> None:
    first = bench.run(warm, "first")

    build_model(seed=1).save_pretrained(bench.base_model)  # under the same path
    second = bench.run(warm, "second")

    assert [what for _, what in loads(second)] == ["tokenizer", "model"] * 2
    assert len({pid for pid, _ in loads(second)}) == 1
    assert losses(second)[0] != losses(first)[0]


def test_another_base_model_takes_the_place_of_the_last_one(
    bench: Bench, tmp_path: Path, warm: WarmLauncher
) -> None:
    one, other = bench.base_model, tmp_path / "other"
    write_tiny_model(other)
    bench.run(warm, "first")

    bench.base_model = other
    bench.run(warm, "second")
    bench.base_model = one
    third = bench.run(warm, "third")

    assert [what for _, what in loads(third)] == ["tokenizer", "model"] * 3


def test_a_check_of_data_between_two_jobs_leaves_the_base_model_loaded(
    bench: Bench, tmp_path: Path, warm: WarmLauncher
) -> None:
    bench.run(warm, "first")

    other = tmp_path / "other"
    write_tiny_model(other)
    directory = tmp_path / "work" / "check" / "attempt-1"
    write_job(directory, ROWS, base_model=other, task="check_data")
    seen: list[TrainingEvent] = []
    ending = warm.run(
        directory, Watch(on_event=seen.append, requested_signal=lambda: Signal.CONTINUE)
    )
    third = bench.run(warm, "third")

    assert ending.exit_code == 0, ending.log_tail
    assert isinstance(seen[-1], Checked)
    assert warm._fork_server is not None
    in_fork_server = [what for pid, what in loads(third) if pid == warm._fork_server.pid]
    assert in_fork_server == ["tokenizer", "model"]
    assert "model" not in [what for pid, what in loads(third) if pid != warm._fork_server.pid]


def test_a_base_model_that_cannot_be_loaded_is_left_to_the_job_which_says_why(
    tmp_path: Path, bench: Bench, warm: WarmLauncher
) -> None:
    broken = tmp_path / "broken"
    write_tiny_model(broken)
    (broken / "model.safetensors").write_bytes(b"broken")
    directory = tmp_path / "work" / "job" / "attempt-1"
    write_job(directory, ROWS, base_model=broken)

    ending: Ending = warm.run(
        directory, Watch(on_event=lambda _: None, requested_signal=lambda: Signal.CONTINUE)
    )

    assert ending.exit_code == 1
    assert "safetensors" in ending.log_tail
    assert warm._fork_server is not None
    bench.run(warm, "next")


def test_what_libraries_might_cache_is_in_the_jobs_own_directory(
    bench: Bench, warm: WarmLauncher, tmp_path: Path
) -> None:
    """Although they ask where only once, in the fork server."""
    directory = bench.run(warm, "first")

    assert not (tmp_path / "cache").exists()
    assert not (PROJECT / "cache").exists()
    assert {path.name for path in directory.iterdir()} <= {
        "base-model", "cache", "job.json", "loss-log.jsonl", "machine-cache",
        "metrics.csv", "metrics.jsonl", "out", "tokenized", "train.jsonl",
        "validation.jsonl",
    }  # fmt: skip
