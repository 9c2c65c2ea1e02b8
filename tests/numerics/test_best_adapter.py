"""Early stopping counts as `transformers` does."""

import pytest
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from tests.tiny import build_peft_model
from worker.training.step.step import BestAdapter

LOSSES = [3.0, 2.9, 2.95, 2.6, 2.55, 2.52, 2.5, 2.4, 2.39, 2.38, 2.37, 2.9, 2.9]


def stop_of_transformers(patience: int, threshold: float) -> int | None:
    """The number of the evaluation after which `transformers` would stop; None for no stop."""
    callback = EarlyStoppingCallback(patience, threshold)
    settings = TrainingArguments(
        output_dir="unused",
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        eval_strategy="steps",
        load_best_model_at_end=True,
        save_strategy="steps",
        use_cpu=True,
        report_to=[],
    )
    state, control = TrainerState(), TrainerControl()
    for number, loss in enumerate(LOSSES, start=1):
        callback.on_evaluate(settings, state, control, metrics={"eval_loss": loss})
        if control.should_training_stop:
            return number
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric = loss
    return None


def stop_of_ours(patience: int, threshold: float) -> int | None:
    model, best = build_peft_model(), BestAdapter(patience=patience, threshold=threshold)
    for number, loss in enumerate(LOSSES, start=1):
        best.observe(number, loss, model)
        assert best.loss == min(LOSSES[:number])
        if best.is_final:
            return number
    return None


@pytest.mark.parametrize("patience", [1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [0.0, 0.04, 0.2])
def test_a_job_stops_after_the_same_evaluation_as_in_transformers(
    patience: int, threshold: float
) -> None:
    assert stop_of_ours(patience, threshold) == stop_of_transformers(patience, threshold)


def test_without_patience_a_job_never_stops() -> None:
    model, best = build_peft_model(), BestAdapter(patience=None)
    for number, loss in enumerate(LOSSES, start=1):
        best.observe(number, loss, model)

    assert (best.is_final, best.step, best.loss) == (False, 11, 2.37)
