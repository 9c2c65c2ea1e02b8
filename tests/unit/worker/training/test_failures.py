import errno

import pytest
import torch

from app.core.training_events import DataProblem
from worker.training.failures import TrainingFailedError, is_out_of_memory


def test_an_allocation_that_torch_cannot_make_is_known_for_what_it_is() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)

    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_other_errors_are_told_apart(error: Exception, *, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_failure_becomes_an_event_that_fits_the_limits_of_events() -> None:
    problems = [DataProblem(line=i, path="", code="c", message="m") for i in range(80)]

    event = TrainingFailedError("c", "m" * 20_000, param="p", problems=problems).as_event()

    assert len(event.errors) == 50
    assert len(event.message) == 10_000
