"""How much of its fall the validation loss had left at the end of a job."""

import pytest

from worker.training.artifacts.loss_log import Losses


@pytest.mark.parametrize(
    ("valid", "share"),
    [
        ([(0, 4.0), (10, 2.0), (20, 1.5), (30, 1.0)], 0.5 / 3),
        ([(0, 4.0), (10, 1.2), (20, 1.0), (25, 1.1), (30, 1.0)], 0.0),
        ([(0, 4.0), (10, 1.0), (20, 2.0)], -1 / 2),
        ([(0, 4.0), (9, 1.0), (20, 0.5)], 0.0),
        ([(0, 4.0), (20, 1.0)], 0.0),
        ([(0, 4.0), (10, 6.0), (20, 5.0)], 0.0),
        ([(10, 2.0), (20, 1.0)], 0.0),
        ([(0, 4.0)], 0.0),
        ([], 0.0),
    ],
    ids=[
        "falls to the end",
        "has settled",
        "rises at the end",
        "no evaluation in the middle",
        "one epoch",
        "worse than the base model",
        "no step 0",
        "no step",
        "no validation data",
    ],
)
def test_the_share_of_the_end_in_the_fall_of_the_validation_loss(
    valid: list[tuple[int, float]], share: float
) -> None:
    assert Losses(valid=valid).late_share() == pytest.approx(share)
