"""Whether training faster gives the same result: validation loss against plain float32."""

from dataclasses import replace
from typing import Any

from benchmarks.options import Options, open_bench
from benchmarks.trainers import tunery
from benchmarks.trainers.child import run_module

ALLOWED_PERCENT = 1.0
_PLAIN = "benchmarks.trainers.plain"


def compare_quality(options: Options) -> dict[str, Any]:
    """For each seed: same data, order, steps and first adapter; two final validation losses.

    Tunery's is measured twice: as it reports it, and by the plain computation on its adapter, so
    that a wrong evaluation cannot hide a wrong training. The worse one counts.
    """
    seeds = [_compare(replace(options, seed=options.seed + i)) for i in range(options.rounds)]
    worst = max(abs(seed["percent"]) for seed in seeds)
    return {"seeds": seeds, "worst_percent": worst, "is_equal": worst <= ALLOWED_PERCENT}


def _compare(options: Options) -> dict[str, Any]:
    with open_bench(options) as bench:
        with bench.task(validate=True) as task:
            run = tunery.train(task, bench.environment)
            reported: float = run.more["valid_loss"]
            with bench.task(adapter=run.more["adapter"]) as check:
                checked = run_module(_PLAIN, check, bench.environment).more["valid_loss"]
        with bench.task() as task:
            plain = run_module(_PLAIN, task, bench.environment).more
    differences = [100 * (loss / plain["valid_loss"] - 1) for loss in (reported, checked)]
    result = {
        "seed": options.seed,
        "before": plain["before"],
        "plain": plain["valid_loss"],
        "tunery_reported": reported,
        "tunery_checked": checked,
        "percent": max(differences, key=abs),
        "steps": len(run.ticks),
    }
    print(
        f"seed {options.seed}: {plain['before']:.4f} before; plain {plain['valid_loss']:.4f}, "
        f"Tunery {reported:.4f} (checked: {checked:.4f}), {result['percent']:+.3f} %",
        flush=True,
    )
    return result
