import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from app.core.job.child.training_events import DataProblem
from worker.training.failures import TrainingFailedError, is_out_of_memory, is_out_of_space


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EFBIG, "File too large"), False),
        # As safetensors 0.8 has said it on a full tmpfs.
        (
            SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ),
            True,
        ),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), True),
        (SafetensorError("I/O error: No such file or directory (os error 2)"), False),
        (RuntimeError("No space left on device (os error 28)"), False),
    ],
)
def test_a_full_disk_is_told_apart(error: Exception, *, expected: bool) -> None:
    assert is_out_of_space(error) is expected


def test_safetensors_gives_the_number_of_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match=r"\(os error 2\)"):
        save_file({"a": torch.zeros(1)}, tmp_path / "absent" / "a")


def test_a_failure_becomes_an_event_that_fits_the_limits_of_events() -> None:
    problems = [DataProblem(line=i, path="", code="c", message="m") for i in range(80)]

    event = TrainingFailedError("c", "m" * 20_000, param="p", problems=problems).as_event()

    assert len(event.errors) == 50
    assert len(event.message) == 2000
