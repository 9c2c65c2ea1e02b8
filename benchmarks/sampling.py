"""How fast a model is sampled, beside its matrix products alone, `transformers` and llama.cpp.

    python benchmarks/sampling.py                 # about 6 minutes, on a quiet machine

Everything runs in turn, round after round, so that a machine's moods hit all alike; llama.cpp in a
process of its own, on the same weights, if `make clients` has installed it. The products are those
of one token in one row: every weight of the model, read once. Their speed is the bound for one row,
whatever else a token needs. The rows of a batch share each weight. An answer that is streamed
passes API and sampler, which are processes of their own.

On a busy machine, compare the columns of processor time. Those of other processes are not counted.
"""

import argparse
import hashlib
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from safetensors.torch import save
from transformers import AutoModelForCausalLM

from benchmarks.matrix_products import Shape
from benchmarks.real_service import serving_default_model
from benchmarks.support.gguf_models import write_base_gguf
from benchmarks.support.llama_cpp import LlamaCpp, is_installed
from benchmarks.support.streamed_answers import StreamedAnswers
from worker.sampling.model.adapter_files import AdapterFiles
from worker.sampling.model.loading import load_runner
from worker.sampling.model.runner import Adapter, Row, Runner
from worker.training.compute.plan import Placement

_BATCHES = (1, 2, 4, 8, 16)
_PROMPT = list(range(1000, 1064))
_SHORT_PROMPT = _PROMPT[:32]


@dataclass(frozen=True, slots=True)
class Time:
    """What one token took."""

    wall_s: float
    cpu_s: float = math.nan
    """Processor time of all threads. NaN if it was not measured."""


def clock(run: Callable[[], object], tokens: int) -> Time:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Time((time.perf_counter() - wall) / tokens, (time.process_time() - cpu) / tokens)


class Products:
    """The products with all weights of a model for one token, and nothing else."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        sizes, width = shape.projections, shape.width
        # Those with the same input are one product, which is never slower.
        fused = [
            (width, sum(sizes[name][1] for name in ("q_proj", "k_proj", "v_proj"))),
            sizes["o_proj"],
            (width, sum(sizes[name][1] for name in ("gate_proj", "up_proj"))),
            sizes["down_proj"],
        ]
        self._weights = [
            torch.rand(out, in_).to(dtype) for _ in range(shape.layers) for in_, out in fused
        ]
        self._weights.append(torch.rand(shape.vocabulary, width).to(dtype))
        self._inputs = {
            weight.shape[1]: torch.rand(1, weight.shape[1]).to(dtype) for weight in self._weights
        }

    @torch.inference_mode()
    def run(self, tokens: int) -> None:
        for _ in range(tokens):
            for weight in self._weights:
                torch.nn.functional.linear(self._inputs[weight.shape[1]], weight)


def build_adapter(shape: Shape, rank: int, seed: int) -> AdapterFiles:
    """An adapter of every linear layer, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(shape.layers):
        for name, (in_, out) in shape.projections.items():
            room = "mlp" if name in {"gate_proj", "up_proj", "down_proj"} else "self_attn"
            module = f"base_model.model.model.layers.{layer}.{room}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, in_, generator=generator) * 0.01
            tensors[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.01
    weights = save(tensors)
    config = json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}).encode()
    return AdapterFiles(
        weights=io.BytesIO(weights),
        config=io.BytesIO(config),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        config_sha256=hashlib.sha256(config).hexdigest(),
        max_bytes=len(weights),
    )


def decode(runner: Runner, adapters: Sequence[Adapter | None], tokens: int) -> Time:
    """Decode one row for each of `adapters`, in one batch. The prompts are not timed."""
    caches = [runner.new_cache() for _ in adapters]
    pairs = list(zip(caches, adapters, strict=True))
    runner.read([Row(cache, _PROMPT, adapter) for cache, adapter in pairs])
    follows = [7] * len(adapters)

    def run() -> None:
        nonlocal follows
        for _ in range(tokens):
            rows = [
                Row(cache, [token], adapter)
                for (cache, adapter), token in zip(pairs, follows, strict=True)
            ]
            follows = runner.read(rows).argmax(-1).tolist()

    return clock(run, tokens * len(adapters))


def generate(model: Any, tokens: int) -> Time:
    """Decode one row with `transformers`. What its prompt and its first token take is left out."""
    prompt = torch.tensor([_PROMPT])

    def run(tokens: int) -> None:
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )

    first, all_ = clock(lambda: run(1), 1), clock(lambda: run(tokens + 1), 1)
    return Time((all_.wall_s - first.wall_s) / tokens, (all_.cpu_s - first.cpu_s) / tokens)


def decode_with(llama_cpp: LlamaCpp, tokens: int) -> Time:
    took = llama_cpp.decode(_PROMPT, tokens)
    return Time(took["restS"] / tokens, took["cpuS"] / tokens)


def read_first_token(runner: Runner) -> Time:
    """From a short prompt to its first token."""
    return clock(
        lambda: runner.read([Row(runner.new_cache(), _SHORT_PROMPT, None)]).argmax(-1).tolist(), 1
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    placement = Placement("cpu", options.dtype)
    shape = Shape.of(str(options.model))
    runner = load_runner(options.model, placement)
    model: Any = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=placement.torch_dtype
    ).eval()
    products = Products(shape, placement.torch_dtype)
    files = [build_adapter(shape, options.rank, seed) for seed in range(max(_BATCHES))]
    adapters = [runner.load_adapter(each) for each in files]
    entrants: dict[str, Callable[[], Time]] = {
        "products alone": lambda: clock(lambda: products.run(options.tokens), options.tokens),
        "generate": lambda: generate(model, options.tokens),
        "first token of 32": lambda: read_first_token(runner),
    }
    for rows in _BATCHES:
        of_rows: dict[str, list[Adapter | None]] = {
            "base": [None] * rows,
            "one adapter": [adapters[0]] * rows,
            "own adapters": list(adapters[:rows]),
        }
        for name, each in of_rows.items():
            entrants[f"{rows} rows, {name}"] = lambda each=each: decode(
                runner, each, options.tokens
            )
    with ExitStack() as stack:
        settings = {"training_dtype": options.dtype, "sampling_threads": str(options.threads)}
        service, _ = stack.enter_context(
            serving_default_model(options.model, has_sampler=True, **settings)
        )
        answers = StreamedAnswers(service.base_url)
        entrants |= {
            "first token, streamed": lambda: Time(answers.time_answer(2).first_s),
            "one answer, streamed": lambda: Time(answers.time_answer(options.tokens).token_s),
        }
        if is_installed():
            path = Path(stack.enter_context(TemporaryDirectory())) / "model.gguf"
            write_base_gguf(path, model)
            llama_cpp = stack.enter_context(LlamaCpp(path, options.threads))
            entrants["llama.cpp"] = lambda: decode_with(llama_cpp, options.tokens)
        else:
            print("llama.cpp is not installed: make clients")
        report(options, measure(entrants, options.rounds))
    return 0


def measure(entrants: dict[str, Callable[[], Time]], rounds: int) -> dict[str, list[Time]]:
    measured: dict[str, list[Time]] = {name: [] for name in entrants}
    for round_ in range(1 + rounds):
        for name, run in entrants.items():
            time_ = run()
            if round_:  # the first warms up
                measured[name].append(time_)
    return measured


def report(options: argparse.Namespace, measured: dict[str, list[Time]]) -> None:
    medians = {
        name: Time(
            statistics.median(each.wall_s for each in times),
            statistics.median(each.cpu_s for each in times),
        )
        for name, times in measured.items()
    }
    bound = medians["products alone"]
    print(f"{options.model.name}, {options.dtype}, {options.threads} threads, rank {options.rank}")
    head = f"medians of {options.rounds}"
    print(f"{head:24} {'ms/token':>9} {'CPU ms':>9} {'tok/s':>8} {'of products':>12} {'by CPU':>8}")
    for name, each in medians.items():
        print(
            f"{name:24} {each.wall_s * 1e3:9.2f} {each.cpu_s * 1e3:9.2f} {1 / each.wall_s:8.1f}"
            f" {bound.wall_s / each.wall_s:12.0%} {bound.cpu_s / each.cpu_s:8.0%}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
