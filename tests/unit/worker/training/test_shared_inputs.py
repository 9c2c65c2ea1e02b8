"""Jobs of a sweep share tokens only if the tokens of both would be the same."""

from typing import Any

from app.core.job.training_config import CHECKED_FIELDS, TrainingConfig
from tests.builders import build_job, build_job_spec, build_lease
from worker.training.preparation.prepared_data import describe_inputs


def test_all_that_tokens_depend_on_decides_what_is_shared() -> None:
    read = set[str]()

    class Watched(TrainingConfig):
        def __getattribute__(self, name: str) -> Any:
            if name in TrainingConfig.model_fields:
                read.add(name)
            return super().__getattribute__(name)

    config = Watched(seed=7)
    spec = build_job_spec(build_lease(build_job())).model_copy(update={"config": config})
    read.clear()

    describe_inputs(spec)

    assert {"max_sequence_tokens", "train_on"} <= read
    assert read - {"dpo"} <= set(CHECKED_FIELDS), "all jobs of a sweep have the same method"
