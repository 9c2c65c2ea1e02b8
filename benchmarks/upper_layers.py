"""Three epochs with an adapter in all layers, and in the upper half alone, in turn."""

import statistics
from typing import Any

from benchmarks.options import Options, open_bench
from benchmarks.trainers import tunery
from worker.training.model.base_model import ModelShape

_EPOCHS = 3


def compare_layers(options: Options) -> dict[str, Any]:
    """Seconds from the plan of a job to its last step: the layers that are computed once count."""
    layers = ModelShape.read(options.model).layers
    entrants = {f"all {layers} layers": None, f"the last {layers // 2}": layers // 2}
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    with open_bench(options) as bench:
        steps = _EPOCHS * -(-options.examples // options.batch_size)
        for round_ in range(options.rounds):
            for name, chosen in entrants.items():
                with bench.task(steps=steps, lora_layers=chosen) as task:
                    run = tunery.train(task, bench.environment)
                seconds[name].append(run.more["loop_s"])
                print(f"round {round_ + 1}: {name:18} {seconds[name][-1]:8.1f} s", flush=True)
        about_data = bench.about_data
    whole, upper = (statistics.median(each) for each in seconds.values())
    print(f"{whole / upper:.2f} times as fast", flush=True)
    return {"data": about_data, "seconds": seconds, "ratio": whole / upper}


def describe(part: dict[str, Any]) -> tuple[str, str]:
    """Heading and text for the report."""
    (whole_s, upper_s), data = part["seconds"].values(), part["data"]
    rounds = ", ".join(
        f"{whole:.1f} and {upper:.1f} s" for whole, upper in zip(whole_s, upper_s, strict=True)
    )
    text = (
        f"With `lora_layers`, {_EPOCHS} epochs over {data['examples']} docstrings took {rounds} in "
        f"turn, for all layers and for the upper half: {part['ratio']:.2f} times as fast. The "
        "outputs of the lower half are computed once, which counts, and kept on disk. The result "
        "is another one."
    )
    return "An adapter in the upper half of the layers", text
