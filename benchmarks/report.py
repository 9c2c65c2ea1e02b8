"""`docs/benchmarks.md` and its chart, written from the results of all parts that were run."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import estimates, tight, upper_layers
from benchmarks.chart import Bar, draw_bars
from benchmarks.quality import ALLOWED_PERCENT

Part = dict[str, Any]

_GIB = 2**30
NAMES = {
    "reference": "reference script",
    "trl": "TRL",
    "tunery": "**Tunery**",
    "tunery-compiled": "**Tunery**, compiled, as for longer jobs",
    "products-bfloat16": "matrix products alone, bfloat16",
    "products-float32": "matrix products alone, float32",
}
_HEADINGS = {
    "speed": "docstrings, all instructions of the processor",
    "speed-system-prompt-4": "one-line answers after a system prompt, batch size 4",
    "speed-system-prompt-16": "one-line answers after a system prompt, batch size 16",
    "speed-one-line-4": "one-line answers",
    "speed-long-4": "long rows",
    "speed-pairs-4": "DPO on pairs with a prompt of about 200 tokens",
    "speed-avx512": "limited to AVX-512, without the instructions for bfloat16 and AMX",
    "speed-avx2": "limited to AVX2",
}
"""What the parts on speed measure, in the order of the page."""

_HEAD = """# How fast Tunery trains

![Real tokens per second](benchmarks.svg)

`python -m benchmarks.training --write` writes this page from measurements. Do not edit it.

## How to read this

- **Real tokens per second**: the number of tokens in the examples, truncated to 512 (long rows to
  2,048) and without padding, divided by the wall time of the training loop. A trainer that spends
  its time on padding is slow by this measure.
- The data are docstrings of Python's standard library as conversations, or made of these: only
  their first lines, the same after a system prompt of 80 words, or all docstrings of a module as
  one answer of up to 2,048 tokens. All trainers read the same tokens, with the same number of
  threads, rank 64 on `q_proj` and `v_proj`, and the same number of examples per optimizer step.
- The trainers run in turn, each in a fresh process, for as many rounds as `--rounds` says. The
  figure is the median of the rounds, with the minimum and maximum in brackets. The first steps are
  a warm-up and are not counted.
- The figures are those of one machine in one hour. Only ratios carry over to other machines, and
  only to processors with the same instructions. AMX matters most.
- **Matrix products alone** performs only the matrix products of Tunery's micro-batches, forward and
  backward, with what rows share at their beginnings computed once. It is an upper bound. A trainer
  with a share of 80 % could save at most a fifth of its time without faster matrix products.
- **Reference script** is the [script that Tunery grew out of](reference-script.md), with its flaws:
  it pads every row to 512 tokens in float32 and learns the padding.
- The suffix of TRL, such as `bf16-1`, names its configuration: the data type, and the number of
  rows in a micro-batch.
"""


def write_report(results: dict[str, Part], directory: Path) -> None:
    """Write the document and its chart into `directory`."""
    text = "\n".join([_HEAD, *_sections(results)])
    (directory / "benchmarks.md").write_text(text.rstrip() + "\n", "utf-8")
    bars = list(_bars(results))
    (directory / "benchmarks.svg").write_text(
        draw_bars(bars, title="Fine-tuning on a CPU, real tokens per second"), "utf-8"
    )


def _sections(results: dict[str, Part]) -> Iterator[str]:
    for name, heading in _HEADINGS.items():
        if name in results:
            yield from _speed(results[name], f"Speed: {heading}")
    if "sizes" in results:
        yield from _sizes(results["sizes"])
    for name in filter(lambda name: name.startswith("search"), results):
        yield from _search(results[name])
    if "quality" in results:
        yield from _quality(results["quality"])
    if "large" in results:
        yield from _large(results["large"])
    for name, describe in {"layers": upper_layers.describe, "tight": tight.describe}.items():
        if name in results:
            heading, text = describe(results[name])
            yield from (f"## {heading}\n", _paragraph(text), *_provenance(results[name]))
    if "estimates" in results:
        yield from _estimates(results["estimates"])
    if "service" in results:
        yield from _service(results["service"])


def _speed(part: Part, heading: str) -> Iterator[str]:
    entrants, bound = part["entrants"], part["bound"]
    base = entrants.get("reference", {}).get("median")
    yield f"## {heading}\n"
    yield "| trainer | real tokens/s | speed-up | share of the bound | peak memory |"
    yield "|---|---|---|---|---|"
    for name, found in entrants.items():
        ratio = f"{found['median'] / base:.1f} x" if base else ""
        share = f"{100 * found['median'] / bound:.0f} %" if bound else ""
        memory = f"{found['peak_bytes'] / _GIB:.1f} GiB" if name in _TRAINERS else ""
        yield f"| {_name(part, name)} | {_spread(found)} | {ratio} | {share} | {memory} |"
    data = part["data"]
    yield ""
    yield _paragraph(
        f"{data['examples']} examples, median {data['median_tokens']} and mean "
        f"{data['mean_tokens']:.0f} tokens; {_steps(entrants)} steps were timed."
    )
    yield from _products(entrants)
    yield from _provenance(part)


_TRAINERS = ("reference", "trl", "tunery", "tunery-compiled")


def _name(part: Part, name: str) -> str:
    variant = f", {part['variant']}" if name == "trl" and "variant" in part else ""
    return NAMES[name] + variant


def _steps(entrants: Part) -> int:
    return next(iter(entrants.values()))["steps"]


def _spread(found: Part) -> str:
    return f"{found['median']:,.0f} ({found['lowest']:,.0f} to {found['highest']:,.0f})"


def _products(entrants: Part) -> Iterator[str]:
    """Speed of the machine, so that readers can compare their own."""
    speeds = {
        name.removeprefix("products-"): found["gflops"]
        for name, found in entrants.items()
        if name.startswith("products-")
    }
    if not speeds:
        return
    yield f"| one product, GFLOP/s | {' | '.join(speeds)} |"
    yield "|---" * (len(speeds) + 1) + "|"
    for shape in next(iter(speeds.values())):
        cells = " | ".join(f"{of_type[shape]:,.0f}" for of_type in speeds.values())
        yield f"| {shape} | {cells} |"
    yield ""


def _sizes(part: Part) -> Iterator[str]:
    yield "## Sizes of base models\n"
    yield _paragraph(
        "135M is the default base model. The others have the shapes of SmolLM2-360M, Qwen2.5-0.5B "
        "and Qwen2.5-1.5B, and random weights. The last two columns are shares of the speed of the "
        "matrix products alone."
    )
    names = ("tunery", "tunery-compiled")
    yield "| parameters | tokens/s | compiled | matrix products alone | share | compiled |"
    yield "|---|---|---|---|---|---|"
    for size, found in part["sizes"].items():
        speeds = [found["entrants"][name]["median"] for name in names]
        cells = [f"{speed:,.0f}" for speed in (*speeds, found["bound"])]
        cells += [f"{100 * speed / found['bound']:.0f} %" for speed in speeds]
        yield f"| {size} | {' | '.join(cells)} |"
    yield ""
    yield from _provenance(part)


def _search(part: Part) -> Iterator[str]:
    of_data = part["data"].get("kind", "docstrings")
    yield f"## Configurations of TRL on {of_data}\n"
    yield "| variant | real tokens/s |"
    yield "|---|---|"
    ranked = sorted(part["entrants"].items(), key=lambda item: -item[1]["median"])
    for name, found in ranked:
        yield f"| `{name}` | {_spread(found)} |"
    yield ""
    yield from _provenance(part)


def _quality(part: Part) -> Iterator[str]:
    verdict = "within" if part["is_equal"] else "**not within**"
    yield "## The same result\n"
    yield _paragraph(
        "Validation loss after training, in nats per learned token, compared with plain "
        "`transformers` and `peft` in float32. The plain trainer reads one row at a time without "
        "padding, sums the loss over the learned tokens, and divides it once per step. Data, seed, "
        "steps and order are the same; the dropout masks differ. Tunery's loss is shown as Tunery "
        "reports it, and as the plain trainer computes it with Tunery's adapter. The last column "
        'is the larger of the two differences from the column "plain float32". The largest of all '
        f"is {part['worst_percent']:.2f} %, {verdict} the allowed {ALLOWED_PERCENT:g} %."
    )
    yield "| seed | before | plain float32 | Tunery, reported | Tunery, checked | difference |"
    yield "|---|---|---|---|---|---|"
    for seed in part["seeds"]:
        keys = ("before", "plain", "tunery_reported", "tunery_checked")
        losses = " | ".join(f"{seed[key]:.4f}" for key in keys)
        yield f"| {seed['seed']} | {losses} | {seed['percent']:+.2f} % |"
    yield ""
    yield from _provenance(part)


def _estimates(part: Part) -> Iterator[str]:
    yield "## Estimates and what the jobs took\n"
    yield _paragraph(
        "`POST /v1/fine_tuning/jobs/estimate` was asked about each job before it was trained "
        "through the service, whose data directory was new. The duration runs from the start of "
        "the attempt to the end of the job. Peak memory is that of the training process, with what "
        "it shares with others."
    )
    yield "| job | steps | tokens | estimated | took | ratio | estimated | peak memory | ratio |"
    yield "|---|---|---|---|---|---|---|---|---|"
    yield from map(estimates.row, part["jobs"])
    yield ""
    yield from _provenance(part)


def _large(part: Part) -> Iterator[str]:
    yield "## The reference script's own job\n"
    yield _paragraph(
        f"The job has 3 rows, 3 epochs and a model of the shape of Qwen2-1.5B ({part['layers']} "
        "layers, random weights). For the script, the time runs from its start to its end. For "
        "Tunery, it runs from the request to a downloadable adapter, through an API and a worker "
        "that are already running. Peak memory is that of all processes together; memory that "
        "processes share is divided among them. The largest process counts with all of its memory, "
        "so its figure can be higher."
    )
    yield "| | whole job | peak memory | largest process |"
    yield "|---|---|---|---|"
    for name, found in part["entrants"].items():
        all_, largest = (found[key] / _GIB for key in ("peak_bytes", "largest_process_bytes"))
        yield f"| {NAMES[name]} | {found['whole_s']:,.1f} s | {all_:.1f} GiB | {largest:.1f} GiB |"
    yield ""
    yield from _provenance(part)


def _service(part: Part) -> Iterator[str]:
    percent = part["percent"]
    yield "## What the service costs\n"
    yield _paragraph(
        f"This compares the wall time of {part['steps']} steps, including the checkpoints at the "
        "ends of epochs, with the training loop alone. The training process, with its events and "
        f"checkpoints, adds {percent['child']:.1f} %. The whole service, with API and worker on "
        f"the same cores, adds {percent['service']:.1f} %. A value below zero means that the cost "
        "is smaller than the variation between runs. The first step ended "
        f"{part['to_first_step_s']:.1f} s after the request, and the adapter could be downloaded "
        f"{part['after_last_step_s']:.1f} s after the last step."
    )
    yield from _provenance(part)


def _provenance(part: Part) -> Iterator[str]:
    machine = "; ".join(value for value in part["machine"].values() if value)
    yield _paragraph(f"`{part['command']}`, {part['date']}: {machine}.")


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False) + "\n"


def _bars(results: dict[str, Part]) -> Iterator[Bar]:
    part = results.get("speed", {"entrants": {}})
    for name, found in part["entrants"].items():
        if name in _TRAINERS or found["median"] == part["bound"]:
            label = NAMES[name].replace("`", "").replace("*", "")
            yield Bar(
                label,
                found["median"],
                found["lowest"],
                found["highest"],
                is_ours=name.startswith("tunery"),
            )


def load_results(path: Path) -> dict[str, Part]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
