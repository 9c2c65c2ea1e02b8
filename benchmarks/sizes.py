"""How fast Tunery trains base models of several sizes, and what is possible with each."""

from dataclasses import replace
from typing import Any

from benchmarks.large import prepare_model
from benchmarks.options import Options
from benchmarks.speed import compare_speed

_SHAPES = ("360M", "0.5B", "1.5B")
_TRAINERS = ("tunery", "products")


def compare_sizes(options: Options) -> dict[str, Any]:
    """Tunery and the matrix products alone, for the model of the options and for larger ones."""
    models = {"135M": options.model} | {shape: prepare_model(options, shape) for shape in _SHAPES}
    found: dict[str, Any] = {}
    for size, model in models.items():
        print(f"{size}:", flush=True)
        found[size] = compare_speed(replace(options, model=model, trainers=_TRAINERS))
    return {"sizes": found}
