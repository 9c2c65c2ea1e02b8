from pathlib import Path

import pytest

from app.core.job.child.job_spec import JobSpec
from tests.tiny import build_peft_model, build_trainer, write_job
from worker.training.artifacts.saved_state import StateSaver
from worker.training.step.trainer import Trainer


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return write_job(tmp_path / "job", [{"text": "a"}], base_model=tmp_path)


@pytest.fixture
def trainer() -> Trainer:
    return build_trainer(build_peft_model())


def test_a_state_is_due_when_its_interval_has_passed_since_the_last(
    spec: JobSpec, trainer: Trainer, tmp_path: Path
) -> None:
    clock = iter([1000.0, 1119.0, 1120.0, 1125.0, 1244.0, 1245.0])
    saver = StateSaver(
        tmp_path / "out",
        spec,
        trainer=trainer,
        best=None,
        data_sha256="d",
        clock=lambda: next(clock),
    )
    trainer.take_step()

    before = [saver.is_due, saver.is_due]
    saver.save()  # takes five seconds
    after = [saver.is_due, saver.is_due]

    assert spec.save_interval_s == 120
    assert before == after == [False, True]


def test_a_state_is_out_of_date_from_the_next_step_on(
    spec: JobSpec, trainer: Trainer, tmp_path: Path
) -> None:
    saver = StateSaver(tmp_path / "out", spec, trainer=trainer, best=None, data_sha256="d")
    seen = [saver.is_up_to_date]
    for _ in range(2):
        trainer.take_step()
        seen.append(saver.is_up_to_date)
        assert saver.save() == tmp_path / "out" / f"resume-{trainer.progress.step}"
        seen.append(saver.is_up_to_date)

    assert seen == [True, False, True, False, True]


def test_no_state_is_deleted(spec: JobSpec, trainer: Trainer, tmp_path: Path) -> None:
    saver = StateSaver(tmp_path / "out", spec, trainer=trainer, best=None, data_sha256="d")
    for _ in range(3):
        trainer.take_step()
        saver.save()

    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "resume-1",
        "resume-2",
        "resume-3",
    }
