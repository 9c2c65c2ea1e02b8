"""Which jobs are compiled: those that save more than it takes, which is little after the first."""

from pathlib import Path

import pytest

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.lora_shape import LoraShape
from app.core.machine.memory import Memory
from tests.builders import build_job, build_job_spec, build_lease
from tests.unit.worker.training.test_estimate import MACHINE, SMOL
from worker.training.compute import plan
from worker.training.compute.compiled_layers import are_in_cache, remember_compiled
from worker.training.compute.plan import Placement, Workload, make_plan

MINUTE_TOKENS = 60 * 400
"""Tokens that the smallest base model is trained on in a minute, on two cores with bfloat16."""


def is_compiled(tokens: int, *, is_in_cache: bool) -> bool:
    work = Workload(
        base_model=SMOL,
        lora=LoraShape(),
        batch_size=4,
        tokens=tokens,
        longest_row=200,
        threads=2,
    )
    made = make_plan(
        ComputeSettings(),
        Placement("cpu", "bfloat16"),
        MACHINE.speeds,
        work,
        memory=Memory(total=24 * 10**9, free=24 * 10**9),
        is_in_cache=is_in_cache,
    )
    return made.compile


def test_a_job_of_a_minute_is_compiled_once_an_earlier_job_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "has_compiler", lambda: True)

    assert not is_compiled(MINUTE_TOKENS, is_in_cache=False)
    assert is_compiled(MINUTE_TOKENS, is_in_cache=True)
    assert not is_compiled(MINUTE_TOKENS // 2, is_in_cache=True)
    assert is_compiled(MINUTE_TOKENS * 6, is_in_cache=False)


def test_compiled_layers_are_known_again_only_if_nothing_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = build_job_spec(build_lease(build_job()))
    other = spec.model_copy(update={"threads": spec.threads + 1})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert not are_in_cache(spec, SMOL, "bfloat16")

    remember_compiled(spec, SMOL, "bfloat16")

    assert are_in_cache(spec, SMOL, "bfloat16")
    assert not are_in_cache(spec, SMOL, "float32")
    assert not are_in_cache(other, SMOL, "bfloat16")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert not are_in_cache(spec, SMOL, "bfloat16")
