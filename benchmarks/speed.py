"""Real tokens per second of each trainer, in turn, and of the matrix products alone."""

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.options import Bench, Options, open_bench
from benchmarks.trainers import tunery
from benchmarks.trainers.child import ChildFailedError, run_module
from benchmarks.trainers.task import Run
from benchmarks.trainers.trl_variants import TOO_SLOW_TO_SEARCH, VARIANTS

_PRODUCTS = {
    "native": ("bfloat16", "float32"),
    "avx512": ("bfloat16", "float32"),
    # Below AVX-512, torch makes bfloat16 products in loops of its own: minutes for one step.
    "avx2": ("float32",),
}


def compare_speed(options: Options) -> dict[str, Any]:
    """Everybody in turn, round after round, so that a machine's moods hit all alike."""
    runs: dict[str, list[Run]] = {}
    with open_bench(options) as bench:
        if "tunery" in options.trainers:  # compiled code is on the disk, as it is after one job
            _run_tunery(bench, variant=tunery.COMPILED)
        for round_ in range(options.rounds):
            for name, run_once in _entrants(bench, options).items():
                run = run_once()
                runs.setdefault(name, []).append(run)
                speed = run.tokens_per_second(options.warm_up)
                print(f"round {round_ + 1}: {name:18} {speed:8.1f} tok/s", flush=True)
        about_data = bench.about_data
    entrants = {name: _summarise(of_one, options.warm_up) for name, of_one in runs.items()}
    products = [found["median"] for name, found in entrants.items() if name.startswith("products")]
    return {
        "data": about_data,
        "variant": options.variant,
        "entrants": entrants,
        "bound": max(products, default=None),
    }


def search_variants(options: Options) -> dict[str, Any]:
    """Every configuration of TRL, shortly."""
    found: dict[str, Any] = {}
    fast = set(_PRODUCTS[options.isa])
    chosen = [
        name
        for name, variant in VARIANTS.items()
        if name not in TOO_SLOW_TO_SEARCH
        and {variant.weights, variant.compute} <= fast | {"float32"}
    ]
    with open_bench(options) as bench:
        for name in chosen:
            if VARIANTS[name].rows > options.batch_size:
                continue  # more rows than an optimizer step has
            try:
                runs = [_run_trl(bench, name) for _ in range(options.rounds)]
            except ChildFailedError as error:
                print(f"{name:18} failed: {error}", flush=True)
                continue
            found[name] = _summarise(runs, options.warm_up)
            print(f"{name:18} {found[name]['median']:8.1f} tok/s", flush=True)
        about_data = bench.about_data
    return {"data": about_data, "entrants": found}


def _entrants(bench: Bench, options: Options) -> dict[str, Callable[[], Run]]:
    entrants: dict[str, Callable[[], Run]] = {
        "reference": lambda: _run(bench, "benchmarks.trainers.reference"),
        "trl": lambda: _run_trl(bench, options.variant),
        "tunery": lambda: _run_tunery(bench),
        "tunery-compiled": lambda: _run_tunery(bench, variant=tunery.COMPILED),
    } | {
        f"products-{dtype}": lambda dtype=dtype: _run(
            bench, "benchmarks.matrix_products", variant=dtype
        )
        for dtype in _PRODUCTS[options.isa]
    }
    return {
        name: run_once
        for name, run_once in entrants.items()
        if name.partition("-")[0] in options.trainers
        and not (name == "reference" and bench.has_pairs)  # the script has no such method
    }


def _run(bench: Bench, module: str, **changes: Any) -> Run:
    with bench.task(**changes) as task:
        return run_module(module, task, bench.environment)


def _run_trl(bench: Bench, variant: str) -> Run:
    method = "dpo" if bench.has_pairs else "sft"
    return _run(bench, f"benchmarks.trainers.trl_{method}", variant=variant)


def _run_tunery(bench: Bench, **changes: Any) -> Run:
    with bench.task(**changes) as task:
        return tunery.train(task, bench.environment)


def _summarise(runs: list[Run], warm_up: int) -> dict[str, Any]:
    speeds = [run.tokens_per_second(warm_up) for run in runs]
    return {
        "median": statistics.median(speeds),
        "lowest": min(speeds),
        "highest": max(speeds),
        "tokens": runs[0].tokens(warm_up),
        "steps": len(runs[0].ticks) - warm_up,
        "wall_s": statistics.median(run.wall_s for run in runs),
        "peak_bytes": max(run.peak_bytes for run in runs),
        "gflops": runs[-1].more.get("gflops"),
    }
