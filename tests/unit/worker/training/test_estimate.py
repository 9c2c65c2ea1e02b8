"""What a job takes, estimated from lengths. `make estimates` compares it with real jobs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.estimate import Estimate
from app.core.job.training_config import DpoSettings, LoraShape, TrainingConfig
from worker.training.compute.cost import Cost
from worker.training.compute.hardware import Machine, Speeds
from worker.training.data.counted_rows import Rows
from worker.training.estimate import estimate
from worker.training.failures import TrainingFailedError
from worker.training.model.base_model import ModelShape

SMOL = ModelShape(
    architecture="llama",
    parameters=134_515_008,
    layers=30,
    width=576,
    mlp_width=1536,
    heads=9,
    head_width=64,
    kv_heads=3,
    vocabulary=49_152,
)
MACHINE = Machine(speeds=Speeds(float32=90, bfloat16=190), threads=2, total_bytes=24 * 10**9)


def rows(count: int = 100, *, length: int = 200, sampled: int | None = None) -> Rows:
    lengths = np.full(sampled or count, length)
    return Rows(lengths=lengths, count=count, learned_tokens=int(lengths.sum()) // 4)


def of(
    training: Rows | None = None,
    validation: Rows | None = None,
    *,
    machine: Machine = MACHINE,
    asked: ComputeSettings | None = None,
    jobs: int = 1,
    **settings: Any,
) -> Estimate:
    return estimate(
        SMOL,
        TrainingConfig(seed=0, **settings),
        training or rows(),
        validation,
        asked=asked or ComputeSettings(compile=False),
        machine=machine,
        jobs=jobs,
    )


def seconds(made: Estimate) -> float:
    assert made.duration is not None
    assert made.duration.low < made.duration.seconds < made.duration.high
    return made.duration.seconds


def test_steps_and_tokens_are_counted() -> None:
    made = of(rows(101), epochs=3)

    assert (made.steps, made.examples) == (3 * 26, 101)
    assert (made.tokens_per_epoch, made.tokens) == (101 * 200, 3 * 101 * 200)
    assert made.learned_tokens == 101 * 50


def test_a_sample_stands_for_the_whole_file() -> None:
    whole, sample = of(rows(5000)), of(rows(5000, sampled=500))

    assert sample == whole


def test_a_job_of_a_large_sweep_is_counted_from_fewer_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(0)
    uneven = replace(rows(5000), lengths=generator.integers(20, 400, 512))
    counted: list[int] = []
    step = Cost.step

    def count(cost: Cost, rows: Any, **more: Any) -> float:
        counted.append(len(rows))
        return step(cost, rows, **more)

    monkeypatch.setattr(Cost, "step", count)

    alone = of(uneven, rows(100), batch_size=16)
    of_many = of(uneven, rows(100), batch_size=16, jobs=64)

    assert counted == (400 + 6) * [16]
    assert seconds(of_many) == pytest.approx(seconds(alone), rel=0.1)


def test_rows_that_nobody_counted_have_no_learned_tokens() -> None:
    assert of(replace(rows(), learned_tokens=None)).learned_tokens is None


def test_held_out_rows_are_not_trained_on() -> None:
    made = of(rows(100), validation_split=0.2)

    assert (made.examples, made.steps) == (80, 3 * 20)
    with pytest.raises(TrainingFailedError, match="leaves none of the 1 examples"):
        of(rows(1), validation_split=0.2)


@pytest.mark.parametrize(
    "slower",
    [
        {"training": rows(200)},
        {"training": rows(length=400)},
        {"validation": rows(50)},
        {"epochs": 6},
        {"lora": LoraShape(rank=256)},
        {"lora": LoraShape(use_dora=True)},
        {"checkpoint_steps": 1},
        {"asked": ComputeSettings(compile=False, gradient_checkpointing=True)},
        {"asked": ComputeSettings(compile=False, dtype="float32")},
        {"machine": replace(MACHINE, threads=1)},
    ],
    ids=str,
)
def test_more_to_do_takes_longer(slower: dict[str, Any]) -> None:
    assert seconds(of(**slower)) > 1.05 * seconds(of())


def test_a_preference_is_one_example_of_two_rows() -> None:
    pairs = rows(202)

    made = of(pairs, epochs=3, dpo=DpoSettings())
    held_out = of(pairs, validation_split=0.2, dpo=DpoSettings())

    assert (made.steps, made.examples) == (3 * 26, 101)
    assert (made.tokens_per_epoch, made.tokens) == (202 * 200, 3 * 202 * 200)
    assert (held_out.examples, held_out.steps) == (81, 3 * 21)
    assert of(rows(2020, sampled=404), dpo=DpoSettings()).steps == 3 * 253


def test_the_reference_reads_all_pairs_once() -> None:
    settings: dict[str, Any] = {"training": rows(200), "validation": rows(200)}

    free = seconds(of(**settings, epochs=1, dpo=DpoSettings(reference_free=True)))
    computed = seconds(of(**settings, epochs=1, dpo=DpoSettings()))
    twice = seconds(of(**settings, epochs=2, dpo=DpoSettings()))
    twice_free = seconds(of(**settings, epochs=2, dpo=DpoSettings(reference_free=True)))

    one_evaluation = seconds(of(rows(200), rows(400), epochs=1)) - seconds(
        of(rows(200), rows(200), epochs=1)
    )
    assert computed - free == pytest.approx(one_evaluation, rel=0.2)
    assert twice - twice_free == pytest.approx(computed - free, abs=0.2)


def test_both_answers_of_a_pair_share_a_micro_batch_in_the_estimate() -> None:
    asked = ComputeSettings(compile=False, micro_batch_tokens=200)

    pairs, alone = of(asked=asked, dpo=DpoSettings()), of(asked=asked)
    two = of(asked=asked.model_copy(update={"micro_batch_tokens": 400}))

    assert pairs.peak_memory_bytes == two.peak_memory_bytes > alone.peak_memory_bytes
    assert pairs.least_memory_bytes > alone.least_memory_bytes


def test_what_rows_of_a_step_share_takes_neither_time_nor_memory_again() -> None:
    alike = replace(rows(), read=lambda _row: np.arange(200))

    assert seconds(of(alike)) < 0.6 * seconds(of())
    assert of(alike).peak_memory_bytes < of().peak_memory_bytes
    assert of(alike).tokens == of().tokens
    padded = LoraShape(use_dora=True)  # trains with the reference layers
    assert seconds(of(alike, lora=padded)) == seconds(of(lora=padded))


def test_more_evaluations_take_longer_and_are_named() -> None:
    made = of(validation=rows(100), eval_steps=1)

    assert seconds(made) > 2 * seconds(of(validation=rows(100)))
    assert any("Evaluations take" in advice for advice in made.advice)


def test_a_job_that_cannot_fit_is_told_what_would() -> None:
    small = replace(MACHINE, total_bytes=1_200_000_000)
    made = of(rows(length=4096), machine=small, batch_size=1)

    assert made.least_memory_bytes > small.total_bytes
    assert made.advice[0] == "It would fit into 1.2 GB with a context_length of 512."


def test_no_length_helps_a_base_model_that_is_too_large() -> None:
    made = of(machine=replace(MACHINE, total_bytes=700_000_000))

    assert made.advice[0].endswith("Choose a smaller base model.")


def test_nobody_knows_how_fast_a_gpu_is() -> None:
    made = of(asked=ComputeSettings(device="cuda"), machine=replace(MACHINE, has_gpu=True))

    assert made.duration is None
    assert (made.compute.device, made.compute.dtype) == ("cuda", "bfloat16")
    with pytest.raises(TrainingFailedError, match="has no GPU"):
        of(asked=ComputeSettings(device="cuda"), machine=replace(MACHINE, has_gpu=False))


def test_checkpoints_and_saved_states_take_disk_until_they_are_bounded() -> None:
    unbounded, bounded = of(epochs=10), of(epochs=10, keep_checkpoints=2)

    adapter = 30 * 64 * (1152 + 768) * 4
    assert unbounded.disk_bytes - bounded.disk_bytes == 8 * (adapter + 5_000_000)


def test_layers_below_the_first_adapter_take_time_once_and_space_on_the_disk() -> None:
    few, many = rows(4000), rows(60_000)
    job: dict[str, Any] = {"checkpoint_steps": 1000, "keep_checkpoints": 1}
    upper = LoraShape(layers=15)
    once, thrice = (of(few, **job, lora=upper, epochs=epochs) for epochs in (1, 3))
    too_large = of(many, **job, lora=upper, epochs=3)

    assert thrice.disk_bytes - once.disk_bytes == 4000 * 200 * 576 * 2
    assert too_large.disk_bytes == once.disk_bytes
    assert seconds(thrice) < 2.6 * seconds(once)
    assert seconds(of(few, **job, epochs=3)) / seconds(thrice) == pytest.approx(1.7, abs=0.1)


def test_short_memory_makes_a_job_slower() -> None:
    tight = of(machine=replace(MACHINE, total_bytes=1_700_000_000))

    assert tight.compute.gradient_checkpointing
    assert tight.peak_memory_bytes <= 1_700_000_000 < of().peak_memory_bytes
    assert any("computed twice" in advice for advice in tight.advice)
