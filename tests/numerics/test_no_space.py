"""A full disk is no fault of the job: the child says so, and leaves nothing half-written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError

from app.core.job.child.training_events import Checkpointed, OutOfSpace
from app.core.manifest import verify
from tests.numerics.test_resume import reported_state, run, write


def failing_at(call: int, error: Exception, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which raises `error` when it is called for that time, counted from 1."""
    calls = 0

    def fail_or_call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return function(*arguments, **options)

    return fail_or_call


def run_out_of_space(directory: Path) -> str:
    """Run a job of three steps, each of which is saved. Returns what it says at its end."""
    events = run(directory).events

    names = {path.name for path in (directory / "out").iterdir()}
    assert not [name for name in names if name.startswith(".")]
    for name in names:
        verify(directory / "out" / name)
    reported = [state for _, state in filter(None, map(reported_state, events))]
    reported += [event.directory for event in events if isinstance(event, Checkpointed)]
    assert {Path(name).name for name in reported} <= names
    assert isinstance(events[-1], OutOfSpace)
    assert [event for event in events if isinstance(event, OutOfSpace)] == events[-1:]
    return events[-1].message


# Of the state after step 1 four names are synced before the directory above it; then comes step 2.
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6, 11, 15, 25])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_when_files_are_synced_ends_the_attempt(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, number: int
) -> None:
    write(tmp_path / "job", base_model, epochs=1, save_interval_s=1e-9)
    error = OSError(number, os.strerror(number), "/a/path/of/ours")
    monkeypatch.setattr(os, "fsync", failing_at(call, error, os.fsync))

    message = run_out_of_space(tmp_path / "job")

    assert message == f"The disk is full: {os.strerror(number)}."


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_disk_that_is_full_when_tensors_are_written_ends_the_attempt(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    write(tmp_path / "job", base_model, epochs=1, save_interval_s=1e-9)
    error = SafetensorError("I/O error: No space left on device (os error 28)")
    serialize = safetensors.torch.serialize_file
    monkeypatch.setattr(safetensors.torch, "serialize_file", failing_at(call, error, serialize))

    message = run_out_of_space(tmp_path / "job")

    assert "No space left on device" in message


def test_any_other_error_of_a_disk_is_a_crash(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "job", base_model, epochs=1)
    error = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(os, "fsync", failing_at(2, error, os.fsync))

    with pytest.raises(OSError, match="Input/output error"):
        run(tmp_path / "job")

    assert list((tmp_path / "job" / "out").iterdir()) == []
